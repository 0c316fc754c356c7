"""Jobs as processes of this machine."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from somvq.definitions import JobDefinition
from somvq.processes import GPU_SHARE, usable_cores, visible_gpus


class LocalJob:
    """A process with a session of its own, so that Ctrl-C in a terminal reaches it only through us."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path):
        self.process, self.log = process, log

    def poll(self) -> int | None:
        """Its exit status, minus the signal's number if it was killed; none while it runs."""
        return self.process.poll()

    def terminate(self) -> None:
        """SIGTERM."""
        self.process.terminate()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()


class LocalExecutor:
    """Starts processes, each with its share of this machine's cores and of one of its GPUs."""

    def __init__(self, place: JobDefinition):
        self.gpus, self.per_gpu = visible_gpus(), place.workers_per_gpu
        self.workers = place.workers or len(self.gpus) * self.per_gpu or 1
        self.jobs: dict[int, LocalJob] = {}  # by slot: which GPU, and which share of the cores

    def submit(self, command: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> LocalJob:
        """Starts `command` with its output appended to `log`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        slot = self.free_slot()
        with log.open("ab") as output:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **threads(self.workers), **self.gpu(slot), **environment},
                start_new_session=True,
            )
        self.jobs[slot] = LocalJob(process, log)
        return self.jobs[slot]

    def free_slot(self) -> int:
        """The first slot without a living job: a replacement gets the GPU of the one that died."""
        slots = range(max(self.workers, len(self.jobs) + 1))
        return next(slot for slot in slots if slot not in self.jobs or self.jobs[slot].poll() is not None)

    def gpu(self, slot: int) -> dict[str, str]:
        """The GPU of `slot`, and how much of it: those that may be seen, in turn."""
        if not self.gpus:
            return {}
        sharing = -(-self.workers // len(self.gpus))
        return {"CUDA_VISIBLE_DEVICES": self.gpus[slot % len(self.gpus)], GPU_SHARE: f"{1 / sharing:.4g}"}


def threads(workers: int) -> dict[str, str]:
    """An equal share of the cores for each worker, unless the user has said how many."""
    share = max(1, usable_cores() // workers)
    return {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(share)}
