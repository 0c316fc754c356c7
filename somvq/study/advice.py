"""What to do next with a study: look, put it on W&B, mend what is wrong, go on."""

import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from rich.markup import escape

from somvq.runs import Run, describe
from somvq.study.status import ENDED, Status, TrialStatus
from somvq.tracking.wandb import Tracked

LITTLE_SPACE = 50e6  # bytes: a few checkpoints
MOST_NAMED = 8  # trials in a line
SILENT_S = 60.0  # of a worker, before it is worth a word


def advise(status: Status) -> str:
    """Lines, each with a word of what it is about; those about what is wrong say what mends it."""
    lines = [*best_lines(status), *look_lines(status), *tracking_lines(status), *trouble_lines(status)]
    return "\n".join(escape(line) for line in [*lines, *next_lines(status)])


def best_lines(status: Status) -> list[str]:
    """The best trial, and the one that would be if constraints did not count."""
    best, overall = status.best(feasible=True), status.best(feasible=False)
    lines = []
    if best and len(status.goals) > 1:
        front = [str(trial.number) for trial in status.ranked() if not trial.violated and status.leads(trial)]
        lines.append(f"best     no trial beats {', '.join(front)} in {' and '.join(name for name, _ in status.goals)}")
    elif best and status.constrained:
        lines.append(f"best     trial {best.number}: {valued(status, best)}, all constraints kept")
    if overall and overall.violated:
        kept = "overall" if best else "best"
        broken = ", ".join(overall.violated)
        lines.append(f"{kept:9}trial {overall.number}: {valued(status, overall)}, but not {broken}")
    return lines


def valued(status: Status, trial: TrialStatus) -> str:
    """The first goal and its value."""
    return f"{status.metric} {describe(trial.value)}"


def look_lines(status: Status) -> list[str]:
    """Where there is something to see."""
    ranked = status.ranked()
    if not ranked:
        return []
    seen = next((t for t in ranked if t.same_as is None), ranked[0])
    return [f"look     {shorten(Path(status.folder))}/{seen.number:04d}/figures"]


def tracking_lines(status: Status) -> list[str]:
    """What W&B lacks, and where it shows the rest; nothing where nobody asked for W&B."""
    folder = Path(status.folder)
    tracked = {path.parent.name: Tracked.read(Run(path.parent)) for path in sorted(folder.glob("[0-9]*/tracking.json"))}
    if tracked:  # forked, say: one that ended and of which W&B was told nothing
        ended = [f"{trial.number:04d}" for trial in status.trials if trial.state in ENDED]
        unheard = [name for name in ended if name not in tracked and (folder / name / "config.json").exists()]
        tracked = dict(sorted({**tracked, **dict.fromkeys(unheard, Tracked())}.items()))
    missing = [str(int(name)) for name, told in tracked.items() if told.behind or told.mode == "offline"]
    lines = []
    if missing:
        which = f"trial {missing[0]}" if len(missing) == 1 else f"{len(missing)} trials ({shortened(missing)})"
        lines.append(f"W&B      not on W&B yet: {which}; {program('somvq')} push {status.study}")
    pages = sorted(folder.glob("*/wandb/offline-run-*"))
    if missing and pages:
        lines.append(f"         or look at one here: {program('wandb')} leet {shorten(pages[-1])}")
    if len(missing) < len(tracked):
        with suppress(OSError, ValueError, KeyError):  # nobody has pushed yet, or it is damaged: the next push says it
            lines.append(f"W&B      {json.loads((folder / 'summary' / 'address.json').read_text())['address']}")
    return lines


def shortened(numbers: list[str]) -> str:
    """The first few of `numbers`."""
    return ", ".join(numbers if len(numbers) <= MOST_NAMED else [*numbers[:MOST_NAMED], "..."])


def trouble_lines(status: Status) -> list[str]:
    """What is wrong, and what mends it."""
    lines = []
    for trial in [trial for trial in status.trials if trial.state == "failed"][:3]:
        log = shorten(Path(status.folder)) / f"{trial.number:04d}" / "attempts.log"
        lines.append(f"failed   trial {trial.number}: {trial.reason or 'no reason given'}; see {log}")
    blocked = [t for t in status.trials if t.state == "waiting" and t.last_outcome == "infrastructure"]
    if blocked:
        lines.append(f"blocked  trial {blocked[0].number}: {blocked[0].reason}; mend that, then go on")
    free = shutil.disk_usage(status.folder).free
    if status.unfinished and free < LITTLE_SPACE:
        lines.append(
            f"disk     only {free / 1e6:.0f} MB are free at {shorten(Path(status.folder))}: free some, then go on"
        )
    for trial in status.trials:
        if trial.silent_s is not None and trial.silent_s > min(SILENT_S, trial.lease_s / 2):
            lines.append(
                f"silent   trial {trial.number}: nothing heard from {trial.host} for {trial.silent_s:.0f} s; "
                "any other worker takes it over when its lease is out"
            )
    return lines


def next_lines(status: Status) -> list[str]:
    """How to go on."""
    resume = f"{program('somvq')} resume {status.study}"
    if status.stopped.startswith("stopped"):
        return [f"resume   {status.stopped}; {resume} goes on"]
    if status.stopped:
        gpu = "GPU" in status.stopped
        used = status.gpu_hours if gpu else status.hours
        more = max((status.limits["gpu_hours" if gpu else "hours"] or 0.0), used) * 2
        return [f"resume   {status.stopped}: {resume} {'--gpu-hours' if gpu else '--hours'} {more:.3g} goes on"]
    if status.unfinished:
        if status.count("running") and not status.count("waiting"):
            others = status.unfinished - status.count("running")
            return [] if not others else [f"go on    {counted(others)} to begin; the workers take them one by one"]
        return [f"resume   {counted(status.unfinished)} to finish: {resume}, or the same command again"]
    lines = ["resume   the same command goes on after any interruption; nothing is left to do now"]
    if not status.whole:
        lines.append(f"go on    {resume} --trials {status.target * 2}")
    return lines


def counted(trials: int) -> str:
    """1 trial, 2 trials."""
    return "1 trial" if trials == 1 else f"{trials} trials"


def program(name: str) -> str:
    """How the user can type the program `name`: as it is, or with its folder where the shell does not know it."""
    beside = Path(sys.executable).parent / name
    return str(shorten(beside)) if shutil.which(name) is None and beside.exists() else name


def shorten(path: Path) -> Path:
    """`path` from here, if it is below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
