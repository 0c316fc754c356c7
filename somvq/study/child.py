"""The process that trains: a child of the worker, which outlives no worker and takes none with it."""

import os
import subprocess
import sys
from pathlib import Path

from somvq.runs import Run
from somvq.study.lease import Lease

PATIENCE_S = 30.0  # for an attempt that was asked to stop; a step of the largest model takes less


def start_attempt(folder: Path, log: Path, lease: Lease | None = None) -> "subprocess.Popen[bytes]":
    """A child process that trains the run at `folder`, as long as `lease` is held.

    Its threads sleep while they wait: OpenMP's own choice, to spin, is no faster alone, and made steps 2 to 8 times as
    long on cores that something else used as well (benchmarks/threads.py).
    """
    frugal = {"MALLOC_MMAP_THRESHOLD_": "65536"} if Run(folder).progress().micro_batch else {}  # freed means given back
    command = [sys.executable, "-m", "somvq.study.attempt", str(folder), str(os.getpid())]
    command += [lease.token] if lease else []
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={"OMP_WAIT_POLICY": "PASSIVE", **frugal, **os.environ},
            start_new_session=True,
        )


def end(child: "subprocess.Popen[bytes]") -> None:
    """Asks `child` to stop, and makes it."""
    child.terminate()
    try:
        child.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
