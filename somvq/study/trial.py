"""One trial from its claim to its end: train in a child process, follow its ledger, tell Optuna once.

The ledger is the truth; Optuna is told of it as far as its storage answers, and training never waits for that.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import Literal

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial, TrialState

from somvq.errors import RunError, SomvqError
from somvq.files import clock
from somvq.processes import gpus_in_use, oom_kills
from somvq.runs import FINISHED, Attempt, Outcome, Row, Run, State, describe
from somvq.settings import Settings
from somvq.storages import is_away
from somvq.study import child as child_process
from somvq.study.attempt import INFRASTRUCTURE, OUT_OF_MEMORY
from somvq.study.claim import OUT_OF_MEMORY as NO_MEMORY
from somvq.study.claim import REASON, Claim
from somvq.study.lease import Lease
from somvq.study.outcome import missing, values, violations
from somvq.study.patience import LONGEST_PAUSE_S, Blocked, patiently, wait
from somvq.study.pruners import is_rung, lags
from somvq.study.record import OpenStudy
from somvq.study.retries import Retries
from somvq.study.stages import stage_runs, take_stage
from somvq.study.stops import asked_to_stop
from somvq.tracking import Tracker

POLL_S = 0.3

Ending = State | Literal["lost"]


class Stopped(Exception):
    """This worker is to end; its trial goes on from its checkpoint, here or elsewhere."""


class Lost(Exception):
    """The trial was given to another worker while this one slept."""


class Pruned(Exception):
    """The trial ends before its last epoch: it lags behind others, or a user said so."""


class Conductor:
    """What a worker does with one claim.

    Args:
        stopping: why the worker is to end; empty while it is not.
    """

    def __init__(
        self, opened: OpenStudy, claim: Claim, tracker: Tracker, stopping: Callable[[], str], settings: Settings
    ):
        self.opened, self.claim, self.tracker, self.stopping = opened, claim, tracker, stopping
        self.settings, self.sweep = settings, opened.record.sweep
        self.leases = [claim.lease]
        rows = len(claim.run.rows()) if claim.taken_over else 0
        self.reported = max(claim.trial.intermediate_values, default=0)  # steps are write-once in Optuna
        self.judged = max(self.reported, rows - 1)  # what a predecessor let pass is not judged by later rivals
        self.page_says: State | None = None  # how W&B was told that the trial's last attempt ended
        self.ask_again = 0.0  # when, after the storage did not answer

    @cached_property
    def trial(self) -> Trial:
        """Optuna's, made when its storage answers."""
        return Trial(self.opened.study, self.claim.trial._trial_id)

    def conduct(self) -> Ending:
        """Trains the trial and tells how it ended; `interrupted` and `lost` are not told, the trial goes on.

        Raises:
            Blocked: no trial could be trained here now.
        """
        try:
            ending, reason = self.train()
            patiently(lambda: self.tell(ending, reason), self.keep_hold, self.settings.outage_s)
        except Stopped:
            return "interrupted"
        except Lost:
            return "lost"
        except OSError as error:
            raise Blocked(f"{error.filename or self.claim.run.folder}: {error.strerror or error}") from error
        finally:
            for lease in self.leases:
                with suppress(OSError):
                    lease.release()  # only where it is still held
        return ending

    def train(self) -> tuple[State, str]:
        """How the trial ends, and why."""
        try:
            run = self.prepare()
            ending = run.progress().state
            if ending not in FINISHED:  # else its worker died between its end and telling it
                ending = self.attempt_until_done(run, self.claim.lease, self.attend)
            self.tell_page(run, ending)
            return ending, run.progress().reason
        except Pruned as pruned:
            self.claim.run.set_state("pruned", str(pruned))
            self.tell_page(self.claim.run, "pruned")
            return "pruned", str(pruned)
        except Blocked:
            raise
        except SomvqError as error:
            return "failed", str(error)

    def prepare(self) -> Run:
        """The trial's run, told what it needs; the auto-encoder that it starts from is trained first."""
        record, trial = self.opened.record, self.claim.trial
        config = record.run_config(trial.number, trial.params)
        stages = stage_runs(record, config)
        beside = {kind: f"../stages/{stage.folder.name}" for kind, stage in stages.items()}
        run = Run.create(self.claim.run.folder, record.run_record(config, label=f"t{trial.number:04d}", stages=beside))
        for stage in stages.values():
            self.ensure(stage)
        return run

    def ensure(self, stage: Run) -> None:
        """Has `stage` trained, here or by another worker; one whose worker died is gone on with."""
        while stage.progress().state != "complete":
            lease = patiently(
                lambda: take_stage(self.opened, stage, self.settings.lease_s), self.heed, self.settings.outage_s
            )
            if lease is None:
                wait(POLL_S, self.heed)
                continue
            self.leases.append(lease)
            if self.attempt_until_done(stage, lease, lambda run: self.heed()) != "complete":
                raise RunError(f"the auto-encoder it starts from failed: {stage.progress().reason}; see {stage.log}")
            self.leases.remove(lease)
            lease.release()

    def attempt_until_done(self, run: Run, lease: Lease, attend: Callable[[Run], None]) -> State:
        """Attempts `run` until it is over; one that was killed goes on from its checkpoint."""
        retries = Retries(run)
        while True:
            self.heed()
            before = len(run.rows())
            outcome = self.attempt(run, lease, attend)
            if outcome not in FINISHED:
                pause = retries.spend(outcome, gained=len(run.rows()) > before)
                wait(pause, self.heed)
            if (state := run.progress().state) in FINISHED:
                return state

    def attempt(self, run: Run, lease: Lease, attend: Callable[[Run], None]) -> Outcome:
        """One try in a child process, noted in attempts.jsonl."""
        noted = begin(run, lease)
        before, kills = len(run.rows()), oom_kills()
        self.tracker.follow(run)
        child = child_process.start_attempt(run.folder, run.log, lease)
        outcome: Outcome = "abandoned"
        try:
            while not has_ended(child):
                attend(run)
            attend(run)
            outcome = classify(child.returncode, run, oom_kills() > kills)
            return outcome
        except (Stopped, Pruned) as ending:
            child_process.end(child)
            pruned = isinstance(ending, Pruned) and run.folder == self.claim.run.folder
            outcome = "pruned" if pruned else "stopped"
            raise
        except Lost:
            child.kill()  # its successor waits for it
            child.wait()
            raise
        finally:
            if child.poll() is None:  # something unforeseen: nothing may go on without its worker
                child_process.end(child)
            said: State = outcome if outcome in FINISHED else "interrupted"
            self.tracker.finish(said)
            self.page_says = said if run.folder == self.claim.run.folder else self.page_says
            if lease.held():
                told = {"ended": clock(run.folder), "outcome": outcome, "epochs": len(run.rows()) - before}
                run.note_attempt(noted.model_copy(update={**told, "reason": run.progress().reason}))

    def tell_page(self, run: Run, ending: State) -> None:
        """Tells W&B how the trial ended, where that was decided after its last attempt, or by another worker's."""
        if ending != self.page_says and (run.folder / "config.json").exists():
            self.tracker.follow(run)
            self.tracker.finish(ending)

    def keep_hold(self) -> None:
        """Beats; raises if this worker is to stop or has lost the trial."""
        for lease in self.leases:
            if not lease.held():
                raise Lost
            lease.beat()
        if why := self.stopping():
            raise Stopped(why)

    def heed(self) -> None:
        """Also raises if a user has ended the trial."""
        self.keep_hold()
        if asked_to_stop(self.claim.run.folder):
            raise Pruned(f"stopped by a user after epoch {len(self.claim.run.rows())}")

    def attend(self, run: Run) -> None:
        """Passes on what is new in the ledger; ends the attempt if its trial lags behind."""
        self.heed()
        rows = run.rows()
        for row in rows:
            epoch = int(row["epoch"])
            if epoch > self.judged and epoch < run.record.config.epochs:
                self.judge(epoch, row)
            self.judged = max(self.judged, epoch)
        self.report(rows)

    def judge(self, epoch: int, row: Row) -> None:
        """Ends the trial if `epoch` is a rung of early_terminate and others did better there."""
        monitor = self.sweep.monitor_goal.name
        if not is_rung(self.sweep, epoch) or monitor not in row:
            return
        rivals = [run.rows() for run in self.opened.record.runs() if run.folder != self.claim.run.folder]
        theirs = [rows[epoch - 1][monitor] for rows in rivals if len(rows) >= epoch and monitor in rows[epoch - 1]]
        if lags(self.sweep, epoch, row[monitor], theirs):
            raise Pruned(f"{monitor} {describe(row[monitor])} lagged behind at epoch {epoch}")

    def report(self, rows: list[Row], *, over: bool = False) -> None:
        """Tells Optuna of milestones that it does not know; later, if its storage does not answer now.

        Not of every epoch: each is a commit, and each worker that starts reads them all.
        """
        metric = self.sweep.goals[0].name
        if len(self.sweep.goals) > 1 or time.monotonic() < self.ask_again:
            return  # Optuna keeps no curves of several objectives
        try:
            for row in rows:
                epoch = int(row["epoch"])
                if epoch > self.reported and metric in row and (is_milestone(epoch) or (over and row is rows[-1])):
                    self.trial.report(row[metric], epoch)
                    self.reported = epoch
        except UpdateFinishedTrialError:
            raise Lost from None
        except Exception as error:
            if not is_away(error):
                raise
            self.ask_again = time.monotonic() + LONGEST_PAUSE_S

    def tell(self, ending: State, reason: str) -> None:
        """Tells Optuna, once; a trial that another worker has told meanwhile stays as it is."""
        if not self.claim.lease.held():
            raise Lost
        study, number, rows = self.opened.study, self.claim.trial.number, self.claim.run.rows()
        last = rows[-1] if rows else {}
        told = values(self.sweep, last)
        if ending == "complete" and told is None:
            ending, reason = "failed", f"{missing(self.sweep, last)} was not measured"
        out_of_memory = ending == "failed" and [a.outcome for a in self.claim.run.attempts()][-1:] == ["memory"]
        with suppress(UpdateFinishedTrialError):
            if reason:
                self.trial.set_user_attr(REASON, reason)
            if ending != "failed":
                self.report_rest(rows)
                self.constrain(violations(self.sweep, last))
            if out_of_memory:
                self.constrain({NO_MEMORY: 1.0})
            if ending == "complete":
                study.tell(number, told, skip_if_finished=True)
            else:
                failed = ending == "failed" and not out_of_memory
                study.tell(number, state=TrialState.FAIL if failed else TrialState.PRUNED, skip_if_finished=True)

    def report_rest(self, rows: list[Row]) -> None:
        """Also what the storage did not answer to while the trial was trained."""
        self.ask_again = 0.0
        self.report(rows, over=True)

    def constrain(self, violated: dict[str, float]) -> None:
        """Sets constraints, each once: Optuna ignores a second value."""
        known = self.opened.storage.get_trial(self.claim.trial._trial_id).constraints
        for name, value in violated.items():
            if name not in known:
                self.trial.set_constraint(name, value)


def has_ended(child: "subprocess.Popen[bytes]") -> bool:
    """Whether `child` ends within one look at its run: its end is noticed at once."""
    with suppress(subprocess.TimeoutExpired):
        child.wait(POLL_S)
    return child.poll() is not None


def is_milestone(epoch: int) -> bool:
    """Whether `epoch` is 1, 2 or 5 times a power of ten."""
    return str(epoch).rstrip("0") in ("1", "2", "5")


def begin(run: Run, lease: Lease) -> Attempt:
    """The next attempt at `run`, noted; one that its worker left open is closed."""
    past = run.attempts()
    if past and past[-1].ended is None:
        seen = max(lease.predecessor_seen, run.last_sign_of_training(), past[-1].began)
        gained = len(run.rows()) - sum(attempt.epochs for attempt in past)
        run.note_attempt(past[-1].model_copy(update={"ended": seen, "outcome": "abandoned", "epochs": gained}))
    noted = Attempt(
        number=len(past) + 1,
        began=clock(run.folder),
        host=socket.gethostname(),
        gpus=gpus_in_use(),
        micro_batch=run.progress().micro_batch,
    )
    run.note_attempt(noted)
    return noted


def classify(status: int, run: Run, oom_killed: bool) -> Outcome:
    """How an attempt ended, by its exit status and what it wrote into state.json."""
    if status == INFRASTRUCTURE:
        return "infrastructure"
    if status == OUT_OF_MEMORY or (status == -signal.SIGKILL and oom_killed):
        return "memory"
    state = run.progress().state
    return state if state in FINISHED and status in (os.EX_OK, 1) else "killed"
