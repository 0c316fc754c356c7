"""One try at a run, in a process of its own: python -m somvq.study.attempt FOLDER PARENT.

A crash, a segmentation fault or the kernel's out-of-memory killer takes this process and no other. It says how it ended
in state.json; its parent, the worker, tells Optuna and W&B.
"""

import fcntl
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

from somvq.audit import read_device
from somvq.errors import DataError, SomvqError
from somvq.processes import die_with
from somvq.runs import Run, State

EXIT: dict[State, int] = {"complete": 0, "diverged": 0, "failed": 1, "interrupted": 143}
TAKEOVER_S = 30.0  # how long a dying predecessor may keep the run


def main(folder: Path, parent: int) -> int:
    """Trains the run at `folder` until it is done, fails or is told to stop; the exit status."""
    die_with(parent)
    stopping: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    run = Run(folder)
    with (folder / ".attempt.lock").open("a") as lock:
        take(lock.fileno())
        run.set_state("running", new_attempt=True)
        try:
            state, why = train(run, lambda: bool(stopping) or os.getppid() != parent)
            run.set_state(state, why)
        except (OSError, DataError) as error:  # the disk or the cohort, not the settings: nothing of the run is lost
            print(error)
            with suppress(OSError):
                run.set_state("interrupted", str(error))
            return os.EX_TEMPFAIL
    return EXIT[state]


def train(run: Run, should_stop: Callable[[], bool]) -> tuple[State, str]:
    """How the training ended, and why.

    Raises:
        OSError, DataError: a file could not be read or written.
    """
    from somvq.training import Diverged, Interrupted, fit  # torch takes seconds to load

    try:
        run.note_device(read_device())
        fit(run, should_stop)
    except Interrupted as stop:
        return "interrupted", str(stop)
    except Diverged as divergence:
        return "diverged", str(divergence)
    except (OSError, DataError):
        raise
    except SomvqError as error:
        return "failed", str(error)
    except Exception as error:
        traceback.print_exc()  # goes to the run's attempts.log
        return "failed", f"{type(error).__name__}: {error}".splitlines()[0][:300]
    return "complete", ""


def take(descriptor: int) -> None:
    """Waits for the run's previous attempt to be gone."""
    deadline = time.monotonic() + TAKEOVER_S
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise SystemExit("another process is training this run") from None
            time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
