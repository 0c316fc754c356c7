"""Waiting for a storage that does not answer: a database that is restarted, a disk that is full."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from somvq.errors import RunError
from somvq.processes import say
from somvq.storages import explain, is_away

T = TypeVar("T")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
POLL_S = 0.2


class Blocked(RunError):
    """Something here fails every attempt, through no fault of the trial, which goes on when that is mended."""


def patiently(call: Callable[[], T], while_waiting: Callable[[], object], patience_s: float) -> T:
    """What `call` gives, called again and again while the storage is away; `while_waiting` may raise to give up.

    Raises:
        Blocked: it has been away for `patience_s` seconds.
    """
    gives_up = time.monotonic() + patience_s
    pause = FIRST_PAUSE_S
    while True:
        try:
            return call()
        except Exception as error:
            if not is_away(error):
                raise
            if time.monotonic() > gives_up:
                raise Blocked(
                    f"the study's storage did not answer for {patience_s:g} s: {explain(error)}; "
                    "nothing is lost, and the same command goes on when it does"
                ) from error
            say(f"the study's storage does not answer ({explain(error)}); asking again")
        wait(pause * random.uniform(0.5, 1.5), while_waiting)  # not all workers at once
        pause = min(2 * pause, LONGEST_PAUSE_S)


def wait(seconds: float, while_waiting: Callable[[], object]) -> None:
    """Sleeps, and calls `while_waiting` meanwhile."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        while_waiting()
        time.sleep(min(left, POLL_S))
