"""How far a study is, from its storage and its runs' folders: as data, as tables, as JSON."""

import json
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from somvq.runs import Row, Run, describe
from somvq.study.claim import is_alive
from somvq.study.record import OpenStudy

COLUMNS = {  # of the leaderboard: a ledger's key, its heading and format
    "val/ssim": ("SSIM\nx'_e", ".3f"),
    "val/ssim_q": ("SSIM\nx'_q", ".3f"),
    "val/psnr": ("PSNR\nx'_e", ".1f"),
    "codebook/used": ("codes\nused", ".0f"),
    "codebook/perplexity": ("perpl-\nexity", ".0f"),
    "map/topographic_error": ("topo.\nerror", ".2f"),
}
LABELS = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
}


@dataclass
class TrialStatus:
    """One trial; `seconds_left` is its own epochs' mean times those to come."""

    number: int
    state: str  # done, running, waiting (its worker is gone), pruned or failed
    params: dict[str, Any]
    epoch: int
    epochs: int
    attempts: int
    row: Row
    value: float | None = None
    reason: str = ""
    seconds_left: float | None = None
    stage_epochs: int = 0  # of the auto-encoder that it started from


@dataclass
class Status:
    """A study at one moment."""

    study: str
    metric: str
    goal: str
    target: int
    folder: str
    cohort: str
    trials: list[TrialStatus]
    baseline: Row = field(default_factory=dict)  # the mean image's
    whole: bool = False  # a grid of which every combination is a trial
    stages: dict[str, TrialStatus] = field(default_factory=dict)  # shared auto-encoders

    def count(self, state: str) -> int:
        """How many trials are in `state`."""
        return sum(trial.state == state for trial in self.trials)

    @property
    def finished(self) -> int:
        """Trials that are over, however they ended."""
        return self.count("done") + self.count("pruned") + self.count("failed")

    @property
    def to_go(self) -> int:
        """Trials not yet begun."""
        return max(0, self.target - len(self.trials))

    def ranked(self) -> list[TrialStatus]:
        """Finished trials with a value, best first."""
        done = [trial for trial in self.trials if trial.value is not None and trial.state == "done"]
        return sorted(done, key=lambda trial: trial.value or 0.0, reverse=self.goal == "maximize")

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return {**asdict(self), "finished": self.finished, "to_go": self.to_go}


def read_status(opened: OpenStudy) -> Status:
    """The study now."""
    record = opened.record
    trials = opened.study.get_trials(deepcopy=False)
    stages = {folder.name: run_status(Run(folder)) for folder in sorted(record.folder.glob("stages/*ae-*"))}
    baseline = record.cohort / "baseline.json"
    return Status(
        study=record.name,
        metric=record.sweep.metric.name,
        goal=record.sweep.metric.goal,
        target=opened.target,
        folder=str(record.folder),
        cohort=record.cohort_summary,
        trials=[trial_status(trial, record.run(trial.number)) for trial in trials],
        baseline=json.loads(baseline.read_text()) if baseline.exists() else {},
        stages=stages,
        whole=record.sweep.combinations() == len(trials),
    )


def run_status(run: Run) -> TrialStatus:
    """A run by itself, without Optuna: a stage."""
    return follow(TrialStatus(-1, run.progress().state, {}, 0, 0, 0, {}), run)


def trial_status(trial: FrozenTrial, run: Run) -> TrialStatus:
    """A trial by what Optuna and its folder say of it."""
    status = TrialStatus(trial.number, LABELS[trial.state], dict(trial.params), 0, 0, 0, {})
    status.reason = str(trial.user_attrs.get("reason", ""))
    status.value = trial.value if trial.state == TrialState.COMPLETE else None
    if trial.state == TrialState.RUNNING and not is_alive(run.folder / "lease.json"):
        status.state = "waiting"
    return follow(status, run)


def follow(status: TrialStatus, run: Run) -> TrialStatus:
    """Adds what the run's folder says."""
    if not (run.folder / "config.json").exists():
        return status
    rows, progress = run.rows(), run.progress()
    status.row = rows[-1] if rows else {}
    status.stage_epochs = run.record.config.ae_epochs if run.record.stages else 0
    status.epoch, status.epochs = int(status.row.get("epoch", 0)), run.record.config.epochs
    status.attempts, status.reason = progress.attempts, status.reason or progress.reason
    if rows and status.state == "running":
        pace = sum(row["time/epoch_s"] for row in rows) / len(rows)
        status.seconds_left = pace * (status.epochs - status.epoch)
    return status


def summary_line(status: Status) -> str:
    """One line: what is done and what is to come."""
    counts = [f"{status.count('done')} done"]
    counts += [f"{status.count(s)} {s}" for s in ("running", "waiting", "pruned", "failed") if status.count(s)]
    return f"{status.study}: {', '.join(counts)}, {status.to_go} to go of {status.target} trials"


def progress_table(status: Status) -> Table:
    """Every trial that is under way, and those that ended."""
    table = Table(title=summary_line(status), title_justify="left", title_style="bold", box=None, pad_edge=False)
    for heading in ("trial", "state", "epoch", "left", status.metric, "settings"):
        table.add_column(heading, justify="right" if heading in ("epoch", "left", status.metric) else "left")
    for name, stage in status.stages.items():
        if stage.state != "complete":
            table.add_row("shared", stage.state, *pace(stage), "", Text(f"auto-encoder {name}", style="dim"))
    for trial in status.trials:
        value = trial.row.get(status.metric)
        shown = describe(float(value)) if value is not None else ""
        settings = Text(describe_params(trial.params) + (f"  {trial.reason}" if trial.reason else ""), style="dim")
        table.add_row(str(trial.number), trial.state, *pace(trial), shown, settings)
    return table


def pace(trial: TrialStatus) -> tuple[str, str]:
    """Epochs done of all, and the time left."""
    left = time.strftime("%H:%M:%S", time.gmtime(trial.seconds_left)) if trial.seconds_left is not None else ""
    return (f"{trial.epoch}/{trial.epochs}" if trial.epochs else ""), left


def describe_params(params: dict[str, Any]) -> str:
    """What was searched, in a few words."""
    return " ".join(f"{name}={describe(value)}" for name, value in params.items())


def leaderboard(status: Status) -> Table:
    """Finished trials, best first, beside the mean image and the auto-encoder that they started from."""
    title = f"{status.study}: {status.goal} {status.metric} on the validation set"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("trial", *(heading for heading, _ in COLUMNS.values()), "epochs\nAE + own"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("settings", style="cyan")
    for rank, trial in enumerate(status.ranked()):
        style = "" if rank else "bold green"
        epochs = f"{trial.stage_epochs} + {trial.epochs}"
        table.add_row(str(trial.number), *cells(trial.row), epochs, describe_params(trial.params), style=style)
    table.add_section()
    for name, stage in status.stages.items():
        if stage.state == "complete":
            kind = name.split("-")[0].upper()
            table.add_row(kind, *cells(stage.row), str(stage.epochs), "auto-encoder alone", style="dim")
    if status.baseline:
        table.add_row("mean", *cells(status.baseline), "", "mean of the training set", style="dim")
    return table


def cells(row: Row) -> list[str]:
    """The leaderboard's columns of one row."""
    return [format(row[key], style) if key in row else "" for key, (_, style) in COLUMNS.items()]


def silence_optuna() -> None:
    """Optuna prints a line for each study that it opens; we print our own."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
