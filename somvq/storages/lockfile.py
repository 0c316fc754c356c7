"""A lock for shared disks: a file that is there while its holder lives, wherever that is.

The kernels of two machines do not always share their locks on a shared disk, but they agree on who made a file first.
A holder that was killed cannot remove its file: others do, at once on its machine and after a while elsewhere.
"""

import json
import os
import random
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from somvq.processes import machine, start_of

GRACE_S = 30.0  # silence after which a holder on another machine is taken for dead
LONGEST_PAUSE_S = 0.05  # between two looks at a lock that is held
STALE_S = 86400.0  # for what killed processes left beside a lock; those that wait touch theirs all the time


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, and when it was last heard of, by the file server's clock."""

    token: str  # of this one holding, never used again
    machine: str
    pid: int
    started: str | None
    heard: float


@contextmanager
def holding(path: Path) -> Iterator[str]:
    """Holds the lock file `path`; gives the token that tells its holder from all others."""
    token = take(path)
    try:
        yield token
    finally:
        if is_held(path, token):
            path.unlink(missing_ok=True)


@contextmanager
def beating(path: Path, token: str) -> Iterator[None]:
    """Says that the holder of `path` lives, all the time: for what may take longer than other machines wait."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(GRACE_S / 6):
            with suppress(OSError):
                if is_held(path, token):
                    os.utime(path)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def take(path: Path) -> str:
    """Waits for the lock file `path` and takes it; the token of its new holder.

    The file is made under another name and linked: it appears whole, and only if no other is there.
    """
    token = secrets.token_hex(8)
    ticket = path.with_name(f"{path.name}.{token}")
    pause = 0.001
    try:
        pid = os.getpid()
        ticket.write_text(json.dumps({"token": token, "machine": machine(), "pid": pid, "started": start_of(pid)}))
        while True:
            with suppress(FileExistsError):
                os.link(ticket, path)
                return token
            holder = read_holder(path)
            if holder is not None and holder.token == token:  # a file server's first answer was lost
                return token
            os.utime(ticket)
            if holder is not None and is_dead(holder, now=ticket.stat().st_mtime):
                evict(path, holder)
                continue
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, LONGEST_PAUSE_S)
    finally:
        ticket.unlink(missing_ok=True)


def is_held(path: Path, token: str) -> bool:
    """Whether the lock is still ours: a process that was suspended may wake to find it given away."""
    holder = read_holder(path)
    return holder is not None and holder.token == token


def read_holder(path: Path) -> Holder | None:
    """Who holds the lock file `path`; a file that Optuna's own locks made says nothing but its age."""
    try:
        found = path.lstat()
        said = json.loads(path.read_bytes()) if not path.is_symlink() else {}
        return Holder(said["token"], said["machine"], said["pid"], said["started"], found.st_mtime)
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, KeyError):
        return Holder(f"{found.st_ino}-{found.st_mtime_ns}", "", 0, None, found.st_mtime)


def is_dead(holder: Holder, now: float) -> bool:
    """Whether `holder` is gone: by its process on this machine, by its silence on another."""
    if holder.machine == machine():
        return start_of(holder.pid) != holder.started
    return now - holder.heard > GRACE_S


def evict(path: Path, dead: Holder) -> None:
    """Removes the lock file that `dead` left.

    Those who find it dead do so one after another, under a lock named after its token, and look again: the second
    finds it gone, or a new one there that it must not remove.
    """
    with holding(path.with_name(f"{path.name}.{dead.token}.evict")):
        if read_holder(path) == dead:
            path.unlink(missing_ok=True)


def sweep(path: Path) -> None:
    """Removes what killed processes left beside the lock file `path`."""
    for left in path.parent.glob(f"{path.name}.*"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > STALE_S:
                left.unlink()
