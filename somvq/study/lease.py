"""A worker's hold on a run: lease.json, with a token that tells its holder from all others.

A holder lives as long as its process does and it beats. On the machine of a killed holder that is known at once; on
another, and of one that is suspended, its silence tells, by the file server's clock. A holder that wakes after its run
was given away finds another's token, and stops: it is fenced off.
"""

import json
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any

from somvq.files import clock, write_json
from somvq.processes import machine, start_of

FILE = "lease.json"
LEASE_S = 120.0  # silence after which a holder is taken for dead, where nobody says otherwise
BEATS = 10  # in that time


class Lease:
    """The hold of this process on the run at `folder`; `seconds` of silence end it."""

    def __init__(self, folder: Path, token: str, seconds: float):
        self.path, self.token, self.seconds = folder / FILE, token, seconds
        self.last_beat = time.monotonic()
        self.predecessor_seen = 0.0  # when the last holder beat, by the file server's clock

    @classmethod
    def take(cls, folder: Path, seconds: float = LEASE_S) -> "Lease":
        """Takes the run at `folder` for this process, from whoever had it; call while nobody else can claim."""
        lease = cls(folder, secrets.token_hex(8), seconds)
        lease.predecessor_seen = last_beat(folder)
        pid = os.getpid()
        holder = {"host": socket.gethostname(), "machine": machine(), "pid": pid, "started": start_of(pid)}
        content = {"token": lease.token, **holder, "seconds": seconds}
        write_json(lease.path, content, sync=False)  # a power cut ends the holder as well
        return lease

    def beat(self) -> None:
        """Says that its holder lives, if it is time to say so again."""
        if time.monotonic() - self.last_beat > self.seconds / BEATS and self.held():
            self.last_beat = time.monotonic()
            os.utime(self.path)

    def held(self) -> bool:
        """Whether the run is still ours: a worker that was suspended may wake to find it given away."""
        return holds(self.path.parent, self.token)

    def release(self) -> None:
        """Lets the run go."""
        if self.held():
            self.path.unlink(missing_ok=True)


def holds(folder: Path, token: str) -> bool:
    """Whether the run at `folder` is held with `token`."""
    return read_lease(folder).get("token") == token


def read_lease(folder: Path) -> dict[str, Any]:
    """What the lease of the run at `folder` says; nothing if there is none."""
    try:
        content: dict[str, Any] = json.loads((folder / FILE).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return content


def is_alive(folder: Path) -> bool:
    """Whether the holder of the run at `folder` lives."""
    lease = read_lease(folder)
    if not lease:
        return False
    gone = lease["started"] is None or start_of(int(lease["pid"])) != lease["started"]
    if lease["machine"] == machine() and gone:
        return False
    return silence(folder) < float(lease.get("seconds", LEASE_S))


def silence(folder: Path) -> float:
    """Seconds since the holder of the run at `folder` last said that it lives."""
    return clock(folder) - last_beat(folder)


def last_beat(folder: Path) -> float:
    """When the holder of the run at `folder` last said that it lives, by the file server's clock; 0 for none."""
    try:
        return (folder / FILE).stat().st_mtime
    except FileNotFoundError:
        return 0.0
