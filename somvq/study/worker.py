"""A process that takes trials until none is left."""

import signal
from types import FrameType

from sqlalchemy.exc import SQLAlchemyError

from somvq.processes import die_with
from somvq.settings import Settings
from somvq.storages import explain
from somvq.study.claim import claim_trial
from somvq.study.record import load_study
from somvq.study.status import silence_optuna
from somvq.study.trial import Blocked, Conductor
from somvq.tracking import build_tracker

FAILURES = 3  # in a row: a bug, not bad luck


class Stop:
    """Whether this process was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.remember)

    def remember(self, number: int, frame: FrameType | None) -> None:
        """The signal handler: does as little as it can."""
        self.signal = number

    def asked(self) -> bool:
        """Whether to stop."""
        return self.signal != 0


def work(settings: Settings, name: str, parent: int | None = None) -> int:
    """Trains trials of the study `name` until it has all it should; the exit status.

    0: nothing is left to take. 1: trials kept failing. 128 + signal: told to stop. `parent` is a process to stop with.
    """
    silence_optuna()
    stop = Stop()
    if parent is not None:
        die_with(parent, signal.SIGTERM)
    opened = load_study(settings, name)
    failures = 0
    while not stop.asked() and failures < FAILURES:
        claim = claim_trial(opened)
        if claim is None:
            return 0
        print(f"trial {claim.trial.number}: {'taken over' if claim.taken_over else 'begun'}", flush=True)
        tracker = build_tracker(settings.wandb)
        try:
            ending = Conductor(opened, claim, tracker, stop.asked).conduct()
        except SQLAlchemyError as error:
            raise Blocked(
                f"the study's storage failed: {explain(error)}; the trial goes on when it is mended"
            ) from error
        print(f"trial {claim.trial.number}: {ending} {claim.run.progress().reason}".rstrip(), flush=True)
        failures = failures + 1 if ending == "failed" else 0
    return 128 + stop.signal if stop.asked() else 1
