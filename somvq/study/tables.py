"""A study as tables on a terminal: how its trials go, and how they rank."""

import time
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from somvq.runs import Row, describe
from somvq.study.status import ENDED, Status, TrialStatus

COLUMNS = {  # of the leaderboard: a ledger's key, its heading and format
    "val/ssim": ("SSIM\nx'_e", ".3f"),
    "val/ssim_q": ("SSIM\nx'_q", ".3f"),
    "val/psnr": ("PSNR\nx'_e", ".1f"),
    "codebook/used": ("codes\nused", ".0f"),
    "codebook/perplexity": ("perpl-\nexity", ".0f"),
    "map/topographic_error": ("topo.\nerror", ".2f"),
}
LIVELY = {"running": 0, "waiting": 1, "failed": 2, "pruned": 3, "done": 4}  # what a small screen shows first
STYLES = {"running": "cyan", "waiting": "yellow", "failed": "red", "pruned": "dim"}


def summary_line(status: Status) -> str:
    """One line: what is done, what is to come, what it took."""
    counts = [f"{status.count('done')} done"]
    counts += [f"{status.count(s)} {s}" for s in ("running", "waiting", "pruned", "failed") if status.count(s)]
    line = f"{status.study}: {', '.join(counts)}, {status.to_go} to go of {status.target} trials"
    if status.hours >= 0.1:
        line += f"; {status.hours:.1f} h"
    if status.gpu_hours >= 0.1:
        line += f", {status.gpu_hours:.1f} GPU-h"
    return f"{line}; {status.stopped}" if status.stopped else line


def progress_table(status: Status, width: int, most: int | None = None) -> Table:
    """Every trial, or the `most` that matter now: what is under way, what waits or failed, then the latest."""
    table = Table(title=summary_line(status), title_justify="left", title_style="bold", box=None, pad_edge=False)
    narrow = width < 100
    for heading in ("trial", "state", "epoch", "left", status.metric):
        right = heading in ("epoch", "left", status.metric)
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    if not narrow:
        table.add_column("tries", justify="right")
        table.add_column("host", no_wrap=True)
    table.add_column("settings", overflow="fold")
    for name, stage in status.stages.items():
        if stage.state != "complete":
            extra = [] if narrow else [str(stage.attempts), ""]
            table.add_row("shared", styled(stage.state), *pace(stage), "", *extra, Text(f"auto-encoder {name}", "dim"))
    shown, hidden = choose(status.trials, most)
    for trial in shown:
        value = trial.row.get(status.metric)
        extra = [] if narrow else [str(trial.attempts or ""), trial.host.split(".")[0]]
        told = describe(float(value)) if value is not None else ""
        table.add_row(str(trial.number), styled(trial.state), *pace(trial), told, *extra, settings_and_reason(trial))
    if hidden:
        table.add_row("…", Text(f"{hidden} more: --all", "dim"))
    return table


def choose(trials: list[TrialStatus], most: int | None) -> tuple[list[TrialStatus], int]:
    """The trials to show, by number, and how many are left out."""
    if most is None or len(trials) <= most:
        return trials, 0
    liveliest = sorted(trials, key=lambda trial: (LIVELY[trial.state], -trial.number))[:most]
    return sorted(liveliest, key=lambda trial: trial.number), len(trials) - most


def styled(state: str) -> Text:
    """A state in its colour."""
    return Text(state, STYLES.get(state, ""))


def settings_and_reason(trial: TrialStatus) -> Text:
    """What was searched, and what is to be said about the trial."""
    said = [describe_params(trial.params)]
    if trial.micro_batch:
        said.append(f"{trial.micro_batch} scans at once, since memory ran out")
    if trial.broken and trial.state in ENDED:
        said.append(f"does not keep {', '.join(trial.broken)}")
    said += [note for note in (trial.reason, trial.copied_from and f"copied from {trial.copied_from}") if note]
    return Text("  ".join(said), "dim")


def pace(trial: TrialStatus) -> tuple[str, str]:
    """Epochs done of all, and the time left."""
    return (f"{trial.epoch}/{trial.epochs}" if trial.epochs else ""), duration(trial.seconds_left)


def duration(seconds: float | None) -> str:
    """Hours, minutes and seconds; days where there are any."""
    if seconds is None:
        return ""
    days, rest = divmod(int(seconds), 86_400)
    return (f"{days}d " if days else "") + time.strftime("%H:%M:%S", time.gmtime(rest))


def describe_params(params: dict[str, Any]) -> str:
    """What was searched, in a few words."""
    return " ".join(f"{name}={describe(value)}" for name, value in params.items())


def leaderboard(status: Status) -> Table:
    """Finished trials, best first, beside the mean image and the auto-encoder that they started from."""
    aim = ", ".join(f"{goal} {metric}" for metric, goal in status.goals)
    title = f"{status.study}: {aim} on the validation set"
    title += "" if status.count("done") else "; no finished trial yet"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.min_width = len(title)  # a narrow table would break it
    columns = columns_of([status])
    for heading in ("trial", *(heading for heading, _ in columns.values()), "epochs\nAE + own"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("settings", style="cyan")
    for rank, trial in enumerate(status.ranked()):
        first = rank == 0 or (len(status.goals) > 1 and status.leads(trial))
        style = "dim" if trial.violated else "bold green" if first else ""
        epochs = f"{trial.stage_epochs} + {trial.epochs}"
        said = describe_params(trial.params)
        said += f"  as trial {trial.same_as}" if trial.same_as is not None else ""
        said += f"  does not keep {', '.join(trial.violated)}" if trial.violated else ""
        table.add_row(str(trial.number), *cells(trial.row, columns), epochs, said, style=style)
    table.add_section()
    for name, stage in status.stages.items():
        if stage.state == "complete":
            kind = name.split("-")[0].upper()
            row = cells(stage.row, columns)
            table.add_row(kind, *row, str(stage.epochs), "auto-encoder alone", style="dim")
    if status.baseline:
        table.add_row("mean", *cells(status.baseline, columns), "", "mean of the training set", style="dim")
    return table


def best_table(found: Sequence[Status]) -> Table:
    """The best trial of each study, one below the other."""
    title = "the best of each study"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    columns = columns_of(found)
    table.add_column("study", no_wrap=True)
    for heading in ("trial", *(heading for heading, _ in columns.values())):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("settings", style="cyan")
    for status in found:
        best = status.best(feasible=True) or status.best(feasible=False)
        if best:
            row = (str(best.number), *cells(best.row, columns), describe_params(best.params))
            table.add_row(status.study, *row)
        else:
            table.add_row(status.study, "", *[""] * len(columns), "no finished trial yet", style="dim")
    return table


Columns = dict[str, tuple[str, str]]


def columns_of(found: Sequence[Status]) -> Columns:
    """Those of COLUMNS that a trial has, and the goals of the studies."""
    goals = [name for status in found for name, _ in status.goals]
    measured = {name for status in found for trial in status.trials for name in trial.row}
    shown = {name: column for name, column in COLUMNS.items() if name in goals or name in measured}
    others = {name: (name.replace("/", "/\n"), ".4g") for name in goals if name not in COLUMNS}
    return {**shown, **others}


def cells(row: Row, columns: Columns) -> list[str]:
    """The leaderboard's columns of one row."""
    return [format(row[key], style) if key in row else "" for key, (_, style) in columns.items()]
