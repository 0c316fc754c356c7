"""Processes that end with those that started them, and work that is shared out among them."""

import ctypes
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, TypeVar

from somvq.errors import RunError

T = TypeVar("T")
R = TypeVar("R")
PR_SET_PDEATHSIG = 1
WORTH_A_PROCESS = 8  # scans that one process prepares while another is still starting
MOST_PROCESSES = 16
GPU_SHARE = "_SOMVQ_GPU_SHARE"  # what an executor tells a worker that has a GPU with others
HIDDEN = ("", "-1", "NoDevFiles")  # in CUDA_VISIBLE_DEVICES: no GPU from here on


def die_with(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Ends this process when `parent` does, however it does: an orphan would work beside its successor."""
    if sys.platform == "linux":  # elsewhere an attempt notices at its next step
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:
        raise SystemExit(143)


def start_of(pid: int) -> str | None:
    """When process `pid` started, in a form that no later process of the same number shares; none if there is none."""
    if not Path("/proc/self/stat").exists():  # not Linux
        asked = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return asked.stdout.strip() or None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else f"{fields[19]}@{boot_id()}"


def boot_id() -> str:
    """Which start of this machine it is."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def say(line: str) -> None:
    """Prints `line` at once; where the log's disk is full, nothing."""
    with suppress(OSError):
        print(line, flush=True)


def leave(status: int) -> NoReturn:
    """Exits with `status`, also where what was printed finds no room: Python itself would say 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(status)


def oom_kills() -> int:
    """How many processes the kernel has killed here for want of memory, since it started."""
    with suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def visible_gpus() -> list[str]:
    """The NVIDIA GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES has for them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        return names[: next((i for i, name in enumerate(names) if name in HIDDEN), len(names))]
    try:
        asked = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(number) for number, _ in enumerate(re.findall(r"^GPU \d+:", asked.stdout, re.MULTILINE))]


def gpus_in_use() -> float:
    """How many GPUs a training of this process has: one, or its share of one; 0 where there is none."""
    return float(os.environ.get(GPU_SHARE, "1")) if visible_gpus() else 0.0


def machine() -> str:
    """Which machine this is, since its last start, and in which of its spaces of process numbers we are."""
    space = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}@{boot_id()}/{space.stat().st_ino if space.exists() else 0}"


def usable_cores() -> int:
    """How many cores this process may use: a Slurm job's, not the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_out(work: Callable[[T], R], items: Sequence[T], on_done: Callable[[int], None]) -> list[R]:
    """`work` of each of `items`, in their order, on all cores where there are many; `on_done` is told how many are.

    Raises:
        RunError: a process was killed.
    """
    processes = min(usable_cores(), len(items) // WORTH_A_PROCESS, MOST_PROCESSES)
    results: list[R] = []
    if processes < 2:
        for item in items:
            results.append(work(item))
            on_done(len(results))
        return results
    context = multiprocessing.get_context("spawn")  # a fork would keep the locks of a killed parent
    with ProcessPoolExecutor(processes, context, serve, (os.getpid(),)) as pool:
        try:
            for future in [pool.submit(work, item) for item in items]:
                results.append(future.result())
                on_done(len(results))
        except BrokenProcessPool as error:
            raise RunError(f"a process that read scans was killed after {len(results)}; out of memory?") from error
        finally:
            pool.shutdown(cancel_futures=True)
    return results


def serve(parent: int) -> None:
    """Makes this process one of `parent`'s: Ctrl-C is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with(parent)
