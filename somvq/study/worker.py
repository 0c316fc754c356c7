"""A process that takes trials until none is left."""

import os
import signal
import time
from contextlib import suppress
from datetime import datetime
from types import FrameType

from optuna.trial import FrozenTrial, TrialState

from somvq.processes import die_with, say
from somvq.settings import Settings
from somvq.study.claim import Claim, claim_trial
from somvq.study.patience import Blocked, patiently
from somvq.study.record import OpenStudy, load_study
from somvq.study.status import silence_optuna
from somvq.study.stops import asked_to_stop, read_usage
from somvq.study.trial import Conductor
from somvq.tracking import build_tracker

FAILURES = 3  # in a row, whoever trained them: a bug, not bad luck
LOOK_S = 10.0  # between two looks at what the study has used up
FAILING = 3  # exit status: trials keep failing
BLOCKED = os.EX_TEMPFAIL  # exit status: nothing can be trained here now
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # USR1: Slurm's warning that the time is up soon


class Stop:
    """Whether this process was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal = self.times = 0
        for number in SIGNALS:
            signal.signal(number, self.remember)

    def remember(self, number: int, frame: FrameType | None) -> None:
        """The signal handler: does as little as it can."""
        self.signal = number
        self.times += 1

    def asked(self) -> bool:
        """Whether to stop."""
        return self.signal != 0


class Stopping(Exception):
    """The worker was told to end while it waited for the storage."""


class Worker:
    """Takes trials of one study."""

    def __init__(self, opened: OpenStudy, settings: Settings, stop: Stop):
        self.opened, self.settings, self.stop = opened, settings, stop
        brains = settings.upload_brain_images or opened.record.sweep.upload_brain_images
        self.tracker = build_tracker(settings.wandb, upload_brain_images=brains)
        self.looked, self.used_up = float("-inf"), ""
        self.failed = False  # the last trial of this worker
        self.ended_before = {trial.number for trial in self.ended()}

    def work(self) -> int:
        """Until nothing is left to take; the exit status."""
        while not (why := self.why_stop(now=True)):
            try:
                if self.failed and patiently(self.keeps_failing, self.heed, self.settings.outage_s):
                    return FAILING
                claim = patiently(self.claim, self.heed, self.settings.outage_s)
            except Stopping:
                continue
            if claim is None:
                return 0
            self.conduct(claim)
        say(f"stops: {why}")
        return 128 + self.stop.signal if self.stop.asked() else 0

    def claim(self) -> Claim | None:
        """The next trial."""
        return claim_trial(self.opened, self.settings.lease_s)

    def conduct(self, claim: Claim) -> None:
        """Trains one trial, and says so."""
        number = claim.trial.number
        say(f"trial {number}: {'taken over' if claim.taken_over else 'begun'}")
        ending = Conductor(self.opened, claim, self.tracker, self.why_stop, self.settings).conduct()
        reason = "this worker slept, and another has it now" if ending == "lost" else claim.run.progress().reason
        say(f"trial {number}: {ending} {reason}".rstrip())
        self.failed = ending == "failed"

    def heed(self) -> None:
        """Raises if this worker is to end."""
        if self.why_stop():
            raise Stopping

    def why_stop(self, *, now: bool = False) -> str:
        """Why this worker is to end; empty while it is not. What is used up is looked at `now`, or now and then."""
        if self.stop.asked():
            return f"told to by {signal.Signals(self.stop.signal).name}"
        folder = self.opened.record.folder
        if asked_to_stop(folder):
            return "somvq stop was said"
        if now or time.monotonic() - self.looked > LOOK_S:
            self.looked = time.monotonic()
            with suppress(Exception):  # a storage that is away sets no limit
                limits = self.opened.limits
                self.used_up = limits.reached(*read_usage(folder)) if limits.any() else ""
        return self.used_up

    def keeps_failing(self) -> bool:
        """Whether the trials that ended last, since this worker began, all failed."""
        since = [trial for trial in self.ended() if trial.number not in self.ended_before]
        last = sorted(since, key=lambda trial: trial.datetime_complete or datetime.min)[-FAILURES:]
        return len(last) == FAILURES and all(trial.state == TrialState.FAIL for trial in last)

    def ended(self) -> list[FrozenTrial]:
        """Trials that are over."""
        return [trial for trial in self.opened.study.get_trials(deepcopy=False) if trial.state.is_finished()]


def work(settings: Settings, name: str, parent: int | None = None) -> int:
    """Trains trials of the study `name` until it has all it should; the exit status.

    0: nothing is left to take, or the study was stopped. FAILING: trials keep failing. BLOCKED: nothing can be trained
    here. 128 + signal: told to stop. `parent` is a process to stop with.
    """
    silence_optuna()
    stop = Stop()
    if parent is not None:
        die_with(parent, signal.SIGTERM)

    def heed() -> None:
        if stop.asked():
            raise Stopping

    try:
        worker = patiently(lambda: Worker(load_study(settings, name), settings, stop), heed, settings.outage_s)
        return worker.work()
    except Stopping:
        return 128 + stop.signal
    except Blocked as blocked:
        say(str(blocked))
        return BLOCKED
