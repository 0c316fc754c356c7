"""How far a study is, from its storage and its runs' folders, as data; tables.py shows it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from somvq.definitions import Sweep
from somvq.errors import RunError, StudyError
from somvq.runs import FINISHED, Row, Run
from somvq.settings import mask
from somvq.study.claim import OUT_OF_MEMORY, REASON, SAME_AS
from somvq.study.fork import COPIED_FROM
from somvq.study.lease import LEASE_S, is_alive, read_lease, silence
from somvq.study.record import OpenStudy
from somvq.study.stops import HOUR_S, Span, add_up, asked_to_stop, span

LABELS = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
}
ENDED = ("done", "pruned", "failed")


@dataclass
class TrialStatus:
    """One trial; `seconds_left` is its own epochs' mean times those to come."""

    number: int
    state: str  # done, running, waiting (its worker is gone), pruned or failed
    params: dict[str, Any]
    epoch: int = 0
    epochs: int = 0
    attempts: int = 0
    row: Row = field(default_factory=dict)
    values: list[float] | None = None  # of the goals, in their order
    reason: str = ""
    seconds_left: float | None = None
    stage_epochs: int = 0  # of the auto-encoder that it started from
    host: str = ""  # where it is under way
    silent_s: float | None = None  # how long its worker has said nothing
    lease_s: float = LEASE_S  # and how long it may
    violated: list[str] = field(default_factory=list)  # constraints that it does not keep
    same_as: int | None = None
    copied_from: str = ""  # the study and the trial that it was copied from
    last_outcome: str = ""  # of its attempts
    micro_batch: int | None = None  # scans in memory at once, after it ran out of it
    spans: list[Span] = field(default_factory=list)  # of its attempts

    @property
    def value(self) -> float | None:
        """Its value of the first goal."""
        return self.values[0] if self.values else None

    @property
    def broken(self) -> list[str]:
        """The sweep's constraints that it does not keep; of memory, which is none of them, its reason speaks."""
        return [name for name in self.violated if name != OUT_OF_MEMORY]

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        told = {name: value for name, value in vars(self).items() if name != "spans"}
        return {**told, "value": self.value, "hours": sum(end - begin for begin, end, _ in self.spans) / HOUR_S}


@dataclass
class Status:
    """A study at one moment."""

    study: str
    goals: list[tuple[str, str]]  # metric, and maximize or minimize; the first one leads
    target: int
    folder: str
    cohort: str
    storage: str
    trials: list[TrialStatus]
    baseline: Row = field(default_factory=dict)  # the mean image's
    whole: bool = False  # a grid of which every combination is a trial
    stages: dict[str, TrialStatus] = field(default_factory=dict)  # shared auto-encoders
    constrained: bool = False
    limits: dict[str, float | None] = field(default_factory=dict)
    stopped: str = ""  # why no worker takes trials though some are left
    changes: list[dict[str, Any]] = field(default_factory=list)  # of what is searched: when, after how many trials

    @property
    def metric(self) -> str:
        """What trials are ranked by first."""
        return self.goals[0][0]

    @property
    def hours(self) -> float:
        """In which anything of the study was under way."""
        return add_up(self.spans()).hours

    @property
    def gpu_hours(self) -> float:
        """Of all attempts."""
        return add_up(self.spans()).gpu_hours

    def spans(self) -> list[Span]:
        """Of all attempts at trials and stages."""
        return [span for each in (*self.trials, *self.stages.values()) for span in each.spans]

    def count(self, state: str) -> int:
        """How many trials are in `state`."""
        return sum(trial.state == state for trial in self.trials)

    @property
    def finished(self) -> int:
        """Trials that are over, however they ended."""
        return sum(trial.state in ENDED for trial in self.trials)

    @property
    def unfinished(self) -> int:
        """Trials that are not, begun or not."""
        return max(self.target, len(self.trials)) - self.finished

    @property
    def to_go(self) -> int:
        """Trials not yet begun."""
        return max(0, self.target - len(self.trials))

    @property
    def claimable(self) -> int:
        """Trials that a worker could take now."""
        waiting = [trial for trial in self.trials if trial.state == "waiting"]
        return self.to_go + sum(t.same_as is None or self.trials[t.same_as].state in ENDED for t in waiting)

    def ranked(self) -> list[TrialStatus]:
        """Trials with values, best first; those that keep all constraints before those that do not.

        With several goals, trials that no other beats in all of them come first.
        """
        done = [trial for trial in self.trials if trial.values is not None and trial.state == "done"]
        return sorted(done, key=lambda trial: (bool(trial.violated), not self.leads(trial), self.cost(trial)[0]))

    def cost(self, trial: TrialStatus) -> tuple[float, ...]:
        """Its values, less is better."""
        assert trial.values is not None
        pairs = zip(trial.values, self.goals, strict=True)
        return tuple(-value if goal == "maximize" else value for value, (_, goal) in pairs)

    def leads(self, trial: TrialStatus) -> bool:
        """Whether no trial beats it: of one goal that says nothing, so only several are asked."""
        if len(self.goals) == 1:
            return True
        rivals = [t for t in self.trials if t.state == "done" and t.values and bool(t.violated) == bool(trial.violated)]
        costs, own = np.array([self.cost(rival) for rival in rivals]), np.array(self.cost(trial))
        return not bool(((costs <= own).all(1) & (costs < own).any(1)).any())

    def best(self, *, feasible: bool) -> TrialStatus | None:
        """The best trial of all, or of those that keep the constraints."""
        ranked = [trial for trial in self.ranked() if not (feasible and trial.violated)]
        return min(ranked, key=lambda trial: self.cost(trial)[0], default=None)

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        best, overall = self.best(feasible=True), self.best(feasible=False)
        return {
            **vars(self),
            "trials": [trial.as_json() for trial in self.trials],
            "stages": {name: stage.as_json() for name, stage in self.stages.items()},
            "metric": self.metric,
            "goal": self.goals[0][1],
            "finished": self.finished,
            "to_go": self.to_go,
            "hours": self.hours,
            "gpu_hours": self.gpu_hours,
            "best": best and best.number,
            "best_overall": overall and overall.number,
        }


def read_status(opened: OpenStudy) -> Status:
    """The study now; what is over is read once."""
    trials = opened.study.get_trials(deepcopy=False)
    target, record = opened.refresh(), opened.record  # after the trials, which may be of a row that was just added
    found = [opened.over.get(t.number) or trial_status(t, record.run(t.number), record.sweep) for t in trials]
    opened.over |= {trial.number: trial for trial in found if trial.state in ENDED}
    stages = {folder.name: run_status(Run(folder)) for folder in sorted(record.folder.glob("stages/*ae-*"))}
    status = Status(
        study=record.name,
        goals=[(goal.name, goal.goal) for goal in record.sweep.goals],
        target=target,
        folder=str(record.folder),
        cohort=record.cohort_summary,
        storage=mask(opened.store.url),
        trials=found,
        baseline=read_baseline(record.cohort / "baseline.json"),
        stages=stages,
        whole=record.sweep.combinations() == len(trials),
        constrained=bool(record.sweep.constraints),
        limits=opened.limits.model_dump(),
        changes=opened.changes,
    )
    status.stopped = why_stopped(opened, status)
    for copy in status.trials:
        if copy.same_as is not None:
            copy_numbers(copy, status.trials[copy.same_as])
    return status


def read_baseline(path: Path) -> Row:
    """The mean image's numbers, if they were measured."""
    try:
        row: Row = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise StudyError(f"{path} is damaged; delete it: somvq resume measures it again") from error
    return row


def copy_numbers(trial: TrialStatus, twin: TrialStatus) -> None:
    """What `twin` measured is what `trial` came to, which was not trained."""
    trial.row, trial.epoch, trial.epochs, trial.stage_epochs = twin.row, twin.epoch, twin.epochs, twin.stage_epochs


def why_stopped(opened: OpenStudy, status: Status) -> str:
    """Why no worker takes trials though some are left; empty where nothing holds them back."""
    if status.unfinished == 0:
        return ""
    if asked_to_stop(opened.record.folder):
        return "stopped by somvq stop"
    return opened.limits.reached(status.hours, status.gpu_hours)


def run_status(run: Run) -> TrialStatus:
    """A run by itself, without Optuna: a stage."""
    try:
        state = run.progress().state
    except RunError:  # as its reason will say
        state = "waiting"
    alive = state in FINISHED or is_alive(run.folder)
    return follow(TrialStatus(-1, state if alive else "waiting", {}), run)


def trial_status(trial: FrozenTrial, run: Run, sweep: Sweep) -> TrialStatus:
    """A trial by what Optuna and its folder say of it."""
    status = TrialStatus(trial.number, LABELS[trial.state], sweep.named(trial.params))
    status.reason = str(trial.user_attrs.get(REASON, ""))
    status.values = list(trial.values) if trial.state == TrialState.COMPLETE else None
    status.violated = [name for name, value in trial.constraints.items() if value > 0]
    status.same_as = trial.user_attrs.get(SAME_AS)
    status.copied_from = trial.user_attrs.get(COPIED_FROM, "")
    if trial.state == TrialState.RUNNING:
        if is_alive(run.folder):
            lease = read_lease(run.folder)
            status.host, status.lease_s = str(lease.get("host", "")), float(lease.get("seconds", LEASE_S))
            status.silent_s = silence(run.folder)
        else:
            status.state = "waiting"
            if status.same_as is not None:
                status.reason = f"for trial {status.same_as}, whose settings it has"
    return follow(status, run)


def follow(status: TrialStatus, run: Run) -> TrialStatus:
    """Adds what the run's folder says."""
    try:
        status.epochs, status.stage_epochs = run.lengths()
    except FileNotFoundError:  # not begun
        return status
    except RunError as error:  # damaged, as what follows may be; the other trials are shown all the same
        status.reason = str(error)
    try:
        measured(status, run)
    except RunError as error:
        status.reason = str(error)
    return status


def measured(status: TrialStatus, run: Run) -> None:
    """Adds how far the run is and what it measured; a RunError says that its files do not tell."""
    status.row = run.last_row()
    status.epoch = int(status.row.get("epoch", 0))
    progress, attempts = run.progress(), run.attempts()
    status.reason = status.reason or progress.reason
    status.attempts, status.micro_batch = len(attempts), progress.micro_batch
    status.last_outcome = attempts[-1].outcome if attempts else ""
    status.spans = [span(run, attempt) for attempt in attempts]
    if status.epoch and status.state == "running":
        pace = sum(row["time/epoch_s"] for row in run.rows()) / status.epoch
        status.seconds_left = pace * (status.epochs - status.epoch)


def silence_optuna() -> None:
    """Optuna prints a line for each study that it opens; we print our own."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
