"""One try at a run, in a process of its own: python -m somvq.study.attempt FOLDER PARENT [TOKEN].

A crash, a segmentation fault or the kernel's out-of-memory killer takes this process and no other. It says how it ended
in state.json, and by its exit status what is to be done about it; its parent, the worker, tells Optuna and W&B.
"""

import errno
import fcntl
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import IO, NamedTuple

from somvq.errors import DataError, SomvqError
from somvq.processes import die_with, leave, machine, say, start_of
from somvq.runs import Run, State
from somvq.study.lease import holds

ENDED = 0  # by itself: complete, diverged or collapsed
FAILED = 1  # a bug, or settings that cannot be trained
STOPPED = 128 + signal.SIGTERM  # as told; it goes on from its checkpoint
INFRASTRUCTURE = os.EX_TEMPFAIL  # the disk, the cohort or the device: another try may do better
OUT_OF_MEMORY = os.EX_OSERR  # so may one with fewer scans at once (Run.set_micro_batch)

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # SIGUSR1: Slurm's warning that time is nearly up
LOCK = ".attempt.lock"
TAKEOVER_S = 30.0  # how long a dying predecessor may keep the run
FENCED_S = 5.0  # and how long one that has lost it; a step and a look
NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|_STATUS_ALLOC_FAILED", re.IGNORECASE)
DEVICE = re.compile(r"CUDA|cuDNN|cuBLAS|NCCL|HIP error", re.IGNORECASE)
OWN_FAULT = re.compile("device-side assert")  # what the device says of a bug of ours


class Ending(NamedTuple):
    """How an attempt ended: its exit status, and what state.json is to say, the class of an error too."""

    status: int
    state: State
    reason: str = ""
    error: str = ""


def main(folder: Path, parent: int, token: str = "") -> int:
    """Trains the run at `folder` until it is done, fails, is told to stop or its `token` holds it no more.

    The last is how a run is kept from two who train it: a worker that was suspended may lose it without knowing.
    """
    die_with(parent)
    stopping: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.append(number)

    for number in STOPS:
        signal.signal(number, stop)

    def still_ours() -> bool:
        return not token or holds(folder, token)

    def should_stop() -> bool:
        return bool(stopping) or os.getppid() != parent or not still_ours()

    run = Run(folder)
    with (folder / LOCK).open("a+") as lock:
        try:
            take(lock, token)
            run.set_state("running", new_attempt=True)
            ending = train(run, should_stop, still_ours)
            if still_ours():
                run.set_state(ending.state, ending.reason, error=ending.error)
        except OSError as error:  # a full disk: there is nowhere to say so
            say(str(error))
            return INFRASTRUCTURE
    return ending.status


def train(run: Run, should_stop: Callable[[], bool], still_ours: Callable[[], bool]) -> Ending:
    """How the training ended, and why."""
    from somvq.health import Collapsed, Diverged
    from somvq.training import Interrupted, fit  # torch takes seconds to load

    try:
        fit(run, should_stop, still_ours)
    except Interrupted as stop:
        return Ending(STOPPED, "interrupted", str(stop))
    except Diverged as divergence:
        return Ending(ENDED, "diverged", str(divergence))
    except Collapsed as collapse:
        return Ending(ENDED, "collapsed", str(collapse))
    except Exception as error:
        return classify(error)
    return Ending(ENDED, "complete")


def classify(error: Exception) -> Ending:
    """What an error in training says: of memory or the machine, after which nothing of the run is lost, or of us."""
    if lacks_memory(error):
        ending = Ending(OUT_OF_MEMORY, "interrupted", describe_shortage(error))
    elif isinstance(error, OSError | DataError):  # the disk or the cohort, not the settings
        ending = Ending(INFRASTRUCTURE, "interrupted", str(error))
    elif is_of_device(error):
        ending = Ending(INFRASTRUCTURE, "interrupted", in_one_line(error))
    elif isinstance(error, SomvqError):
        return Ending(FAILED, "failed", str(error), type(error).__name__)
    else:
        traceback.print_exception(error)  # goes to the run's attempts.log
        return Ending(FAILED, "failed", in_one_line(error), type(error).__name__)
    say(ending.reason)
    return ending


def lacks_memory(error: Exception) -> bool:
    """Whether Python, torch's allocator, a library of the device or the system had no memory left."""
    import torch

    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(NO_MEMORY.search(str(error)))


def is_of_device(error: Exception) -> bool:
    """Whether the device or its libraries failed: they have no errors of their own kind, only words."""
    if not isinstance(error, RuntimeError) or OWN_FAULT.search(str(error)):
        return False
    return type(error).__name__ == "AcceleratorError" or bool(DEVICE.search(str(error)))


def describe_shortage(error: Exception) -> str:
    """How much was asked and what there is, as far as the error or the system says."""
    said = str(error)
    asked = re.search(r"allocate ([\d.]+) ?(\w+)", said)
    wanted = f"asked for {in_gib(*asked.groups())}" if asked else in_one_line(error)
    of_device = re.search(r"total capacity of ([\d.]+ \w+).*?of which ([\d.]+ \w+) is free", said, re.DOTALL)
    if of_device:
        return f"out of memory: {wanted}; the device has {of_device[1]}, {of_device[2]} of it free"
    if isinstance(error, MemoryError | OSError) or "CPU" in said:
        return f"out of memory: {wanted}; {available_gib():.1f} GiB are available"
    return f"out of memory: {wanted}"


def in_gib(number: str, unit: str) -> str:
    """An amount of memory as its error has it, bytes as GiB."""
    return f"{int(number) / 2**30:.1f} GiB" if unit == "bytes" else f"{number} {unit}"


def available_gib() -> float:
    """Memory that the system could give to a process now."""
    found = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
    return int(found[1]) / 2**20 if found else float("nan")


def in_one_line(error: Exception) -> str:
    """The error's kind and its first line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def take(lock: IO[str], token: str) -> None:
    """Waits for the run's previous attempt to be gone, and says that this one has it.

    With a `token` the run is ours by right: a previous attempt on this machine that does not go (it may sleep) is
    ended, and one on another is left to find out that it lost the run.
    """
    patience = time.monotonic() + (FENCED_S if token else TAKEOVER_S)
    while not locks(lock):
        time.sleep(0.1)
        if time.monotonic() < patience:
            continue
        if not token:
            raise SystemExit("another process is training this run")
        if not end_predecessor(lock):
            say("an attempt on another machine has not let go of this run; it stops when it next looks")
            return
    lock.seek(0)
    lock.truncate()
    json.dump({"machine": machine(), "pid": os.getpid(), "started": start_of(os.getpid())}, lock)
    lock.flush()


def locks(lock: IO[str]) -> bool:
    """Whether the lock is ours now."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def end_predecessor(lock: IO[str]) -> bool:
    """Ends the process that has the lock, if it is one of this machine."""
    lock.seek(0)
    try:
        holder = json.loads(lock.read())
    except json.JSONDecodeError:  # it has only just come
        return True
    if holder["machine"] != machine():
        return False
    if holder["started"] is not None and start_of(holder["pid"]) == holder["started"]:
        os.kill(holder["pid"], signal.SIGKILL)
    return True


if __name__ == "__main__":
    leave(main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]))
