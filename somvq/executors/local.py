"""Jobs as processes of this machine."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


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
    """Starts processes, each with its share of this machine's cores and one of its GPUs."""

    def __init__(self, workers: int):
        self.workers = workers
        self.started = 0

    def submit(self, command: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> LocalJob:
        """Starts `command` with its output appended to `log`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        slot = self.started % self.workers
        self.started += 1
        shares = {**threads(self.workers), **gpu(slot)}
        with log.open("ab") as output:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **shares, **environment},
                start_new_session=True,
            )
        return LocalJob(process, log)


def threads(workers: int) -> dict[str, str]:
    """An equal share of the cores for each worker, unless the user has said how many."""
    share = max(1, (os.cpu_count() or 1) // workers)
    return {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(share)}


def gpu(slot: int) -> dict[str, str]:
    """The GPU of worker `slot`: those that may be seen, in turn."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    drivers = Path("/proc/driver/nvidia/gpus")
    names = visible.split(",") if visible else [str(n) for n, _ in enumerate(drivers.glob("*"))]
    return {"CUDA_VISIBLE_DEVICES": names[slot % len(names)]} if names else {}
