"""One started worker, and what can start one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol


class Job(Protocol):
    """A command that was started somewhere."""

    log: Path

    def poll(self) -> int | None:
        """Its exit status, minus the signal's number if it was killed; none while it runs."""

    def terminate(self) -> None:
        """Asks it to stop, so that it can leave things in order."""

    def kill(self) -> None:
        """Ends it at once."""


class Executor(Protocol):
    """A place to run commands; it knows nothing of training."""

    workers: int  # that it has room for at once

    def submit(self, command: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> Job:
        """Starts `command` with its output appended to `log`."""
