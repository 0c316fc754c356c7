"""One trial from its claim to its end: train in a child process, follow its ledger, tell Optuna once."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from somvq.errors import RunError, SomvqError
from somvq.runs import FINISHED, Run, State
from somvq.study.claim import Claim
from somvq.study.record import OpenStudy
from somvq.study.stages import ensure_stage, stage_runs
from somvq.tracking import Tracker

POLL_S = 0.3
PATIENCE_S = 30.0  # for an attempt that was asked to stop; a step of the largest model takes less
RETRIES = 3  # of attempts that a file could not be read or written for
RETRY_S = 2.0  # between them
FRUITLESS = 3  # attempts in a row that are killed before they finish an epoch: something here kills it every time

Ending = State | Literal["lost"]


class Stopped(Exception):
    """This worker is to end; its trial goes on from its checkpoint, here or elsewhere."""


class Lost(Exception):
    """The trial was given to another worker while this one slept."""


class Blocked(RunError):
    """The disk, or the cohort on it, fails every attempt: no fault of the trial, which goes on when that is mended."""


class Conductor:
    """What a worker does with one claim."""

    def __init__(self, opened: OpenStudy, claim: Claim, tracker: Tracker, should_stop: Callable[[], bool]):
        self.opened, self.claim, self.tracker, self.should_stop = opened, claim, tracker, should_stop
        known = opened.study.get_trials(deepcopy=False)[claim.trial.number].intermediate_values
        self.metric = opened.record.sweep.metric.name
        self.reported = max(known, default=0)  # steps are write-once in Optuna

    def conduct(self) -> Ending:
        """Trains the trial and tells how it ended; `interrupted` and `lost` are not told, the trial goes on.

        Raises:
            Blocked: no trial could be trained here now.
        """
        reason = ""
        try:
            run = self.prepare()
            ending = run.progress().state
            if ending not in FINISHED:  # else its worker died between its end and telling it
                ending = self.attempt_until_done(run, self.attend)
            reason = run.progress().reason
        except Stopped:
            ending = "interrupted"
        except Lost:
            return "lost"
        except Blocked:
            self.claim.lease.release()
            raise
        except SomvqError as error:
            ending, reason = "failed", str(error)
        if ending != "interrupted":
            self.tell(ending, reason)
        self.claim.lease.release()
        return ending

    def prepare(self) -> Run:
        """The trial's run, told what it needs; the auto-encoder that it starts from is trained first."""
        record, trial = self.opened.record, self.claim.trial
        config = record.run_config(trial.number, trial.params)
        stages = stage_runs(record, config)
        beside = {kind: f"../stages/{stage.folder.name}" for kind, stage in stages.items()}
        run = Run.create(self.claim.run.folder, record.run_record(config, label=f"t{trial.number:04d}", stages=beside))
        for stage in stages.values():
            ensure_stage(stage, self.train_stage, self.keep_hold)
        return run

    def train_stage(self, stage: Run) -> None:
        """Trains the shared auto-encoder; a trial cannot begin without it."""
        if self.attempt_until_done(stage, lambda run: self.keep_hold()) != "complete":
            raise RunError(f"the auto-encoder it starts from failed: {stage.progress().reason}; see {stage.log}")

    def attempt_until_done(self, run: Run, attend: Callable[[Run], None]) -> State:
        """Attempts `run` until it ends by itself; one that was killed goes on from its checkpoint."""
        fruitless = blocked = 0
        while True:
            before = len(run.rows())
            self.tracker.follow(run)
            state = self.attempt(run, attend)
            self.tracker.finish(state)
            if len(run.rows()) > before:
                fruitless = blocked = 0
            if state == "interrupted":
                blocked += 1
                if blocked == RETRIES:
                    raise Blocked(run.progress().reason or f"{run.folder} cannot be written; is the disk full?")
                time.sleep(RETRY_S)
                continue
            if state != "running":
                return state
            fruitless += 1
            if fruitless == FRUITLESS:
                run.set_state("failed", f"killed {FRUITLESS} times without finishing an epoch; out of memory?")
                return "failed"

    def attempt(self, run: Run, attend: Callable[[Run], None]) -> State:
        """One try in a child process; the state that it left: `running` if it was killed, `interrupted` if blocked."""
        child = start_attempt(run.folder, run.log)
        try:
            while child.poll() is None:
                attend(run)
                time.sleep(POLL_S)
            attend(run)
        except Prune as prune:
            end(child)
            run.set_state("pruned", str(prune))
        except Stopped:
            end(child)
            self.tracker.finish("interrupted")
            raise
        except Lost:
            child.kill()  # its successor waits for it
            child.wait()
            self.tracker.finish("interrupted")
            raise
        return "interrupted" if child.returncode == os.EX_TEMPFAIL else run.progress().state

    def keep_hold(self) -> None:
        """Beats; ends the attempt if this worker is to stop or has lost the trial."""
        if not self.claim.lease.held():
            raise Lost
        self.claim.lease.beat()
        if self.should_stop():
            raise Stopped

    def attend(self, run: Run) -> None:
        """Reports what is new in the ledger to Optuna; ends the attempt if its trial lags behind."""
        self.keep_hold()
        for row in run.rows():
            epoch = int(row["epoch"])
            if epoch > self.reported and self.metric in row:
                self.claim.trial.report(row[self.metric], epoch)
                self.reported = epoch
                if epoch < run.record.config.epochs and self.claim.trial.should_prune():
                    raise Prune(f"{self.metric} {row[self.metric]:.4g} lagged behind at epoch {epoch}")

    def tell(self, ending: State, reason: str) -> None:
        """Tells Optuna, once; a trial that another worker has told meanwhile stays as it is."""
        run, study, number = self.claim.run, self.opened.study, self.claim.trial.number
        if not self.claim.lease.held():
            return
        value = self.objective(run)
        if ending == "complete" and value is None:
            ending, reason = "failed", f"model {run.record.config.model} does not measure {self.metric}"
        with suppress(UpdateFinishedTrialError):
            if reason:
                self.claim.trial.set_user_attr("reason", reason)
            if ending == "complete":
                study.tell(number, value, skip_if_finished=True)
            else:
                state = TrialState.FAIL if ending == "failed" else TrialState.PRUNED
                study.tell(number, state=state, skip_if_finished=True)

    def objective(self, run: Run) -> float | None:
        """The metric at the run's last epoch; none if it was not measured."""
        rows = run.rows()
        return rows[-1].get(self.metric) if rows else None


class Prune(Exception):
    """The trial lags behind others at the same epoch."""


def start_attempt(folder: Path, log: Path) -> "subprocess.Popen[bytes]":
    """A child process that trains the run at `folder`.

    Its threads sleep while they wait: OpenMP's own choice, to spin, is no faster alone, and made steps 2 to 8 times as
    long on cores that something else used as well (benchmarks/threads.py).
    """
    command = [sys.executable, "-m", "somvq.study.attempt", str(folder), str(os.getpid())]
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
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
