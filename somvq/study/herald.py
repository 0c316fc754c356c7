"""How a study stands, told to W&B while it goes on: by processes of their own, which nobody waits for."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping

from somvq.errors import SomvqError
from somvq.study.pushing import push_summary
from somvq.study.record import OpenStudy
from somvq.study.status import Status

PATIENCE_S = 10.0  # for a process that was asked to end
PAUSE_S = 300.0  # between two tellings, each of which costs a second or two of a core


class Silence:
    """Tells nobody."""

    def follow(self, status: Status) -> None:
        """The study is now as `status` says."""

    def finish(self, status: Status) -> str:
        """The supervisor ends; what went wrong, in a line."""
        return ""

    def leave(self) -> None:
        """Leaves no process behind."""


class Herald(Silence):
    """Tells W&B; `environment` is what workers get."""

    def __init__(self, opened: OpenStudy, environment: Mapping[str, str]):
        self.opened, self.environment = opened, environment
        self.told, self.again = 0, time.monotonic() + PAUSE_S
        self.process: subprocess.Popen[bytes] | None = None

    def follow(self, status: Status) -> None:
        """Begins to tell it where trials have ended since, if it is time."""
        idle = self.process is None or self.process.poll() is not None
        if idle and status.finished > self.told and time.monotonic() >= self.again:
            self.told, self.again = status.finished, time.monotonic() + PAUSE_S
            self.process = subprocess.Popen(
                [sys.executable, "-m", "somvq", "push", self.opened.record.name, "--summary"],
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the supervisor
            )

    def finish(self, status: Status) -> str:
        """Tells it to the end, within seconds."""
        if not status.finished:
            return ""
        try:
            push_summary(self.opened, status)
        except SomvqError as error:
            return f"W&B      the study's own page was not sent: {error}"
        except Exception as error:  # whatever befalls wandb, the sweep has ended well
            name = self.opened.record.name
            return f"W&B      the study's own page was not sent ({type(error).__name__}): somvq push {name}"
        return ""

    def leave(self) -> None:
        """Leaves no process behind."""
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
