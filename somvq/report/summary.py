"""What came of a study, in a sentence and a table: its best run beside the mean image and the auto-encoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from somvq.errors import RunError
from somvq.report.entries import Entry, Member, finite, spell
from somvq.runs import METRICS, Row
from somvq.study.status import TrialStatus
from somvq.study.tables import COLUMNS

HIGHER, LOWER = ("ssim", "psnr"), ("mse", "loss", "error")  # what makes a metric better, by its name
ALSO = ("val/psnr_q", "val/mse", "val/mse_q")  # beside goals and columns


@dataclass(frozen=True)
class Difference:
    """A control's value of a metric, and how far the best run is from it."""

    value: str
    by: str
    verdict: Literal["", "better", "worse"]


@dataclass(frozen=True)
class Comparison:
    """One metric of the best run, beside those controls that have it."""

    metric: str
    heading: str
    meaning: str
    best: str
    controls: dict[str, Difference]  # by name


@dataclass(frozen=True)
class Summary:
    """What there is to say of one study."""

    member: Member
    best: Entry | None
    sentence: str
    comparisons: tuple[Comparison, ...]

    @property
    def controls(self) -> list[str]:
        """The controls that the best run is beside: those that were measured."""
        return list(dict.fromkeys(name for row in self.comparisons for name in row.controls))


def summarise(member: Member, entries: Sequence[Entry]) -> Summary:
    """The best trial of `member` and how good it is."""
    best = member.status.best(feasible=True) or member.status.best(feasible=False)
    entry = next((e for e in entries if e.study == member.name and best and e.trial.number == best.number), None)
    if entry is None:
        return Summary(member, None, f"No trial of {member.name} has finished yet, so there is no best one.", ())
    stage = control_of(member, entry)
    sentence = " ".join([head_of(member, entry), *beside(member, entry, stage)])
    return Summary(member, entry, sentence, tuple(compare(member, entry, stage)))


def head_of(member: Member, best: Entry) -> str:
    """Which trial is best, of how many, and its value."""
    status, trial = member.status, best.trial
    done = status.count("done")
    of = f"the best of {done} finished trials" if done > 1 else "the only finished trial"
    value = f"{name_of(status.metric)} is {shown(trial.values[0], status.metric) if trial.values else 'unknown'}"
    if len(status.goals) > 1:
        goals = " and ".join(name_of(name) for name, _ in status.goals)
        front = sum(status.leads(t) and not t.violated for t in status.ranked())
        count = f"{front} of {done} finished trials are" if front != 1 else f"1 of {done} finished trials is"
        return f"{count} beaten by no other in {goals}; of these, trial {trial.number} leads: its {value}."
    broken = f", though it does not keep {', '.join(trial.violated)}" if trial.violated else ""
    return f"Trial {trial.number} is {of}{broken}: its {value}."


def beside(member: Member, best: Entry, stage: TrialStatus | None) -> list[str]:
    """How far the best trial is from the mean image and the auto-encoder, where they have its metric."""
    metric, row = member.status.metric, best.trial.row
    mean, control = member.status.baseline.get(metric), stage.row.get(metric) if stage else None
    if metric not in row or (mean is None and control is None):
        return []
    parts = []
    for known, what in ((mean, "the mean image of the training set"), (control, "the auto-encoder it started from")):
        if known is not None:
            apart, side = shown(abs(row[metric] - known), metric), "above" if row[metric] >= known else "below"
            parts.append(f"{apart} {side} {what} ({shown(known, metric)})")
    return [f"That is {' and '.join(parts)}."]


def name_of(metric: str) -> str:
    """SSIM x'_e (val/ssim), as far as it has another name."""
    return f"{spell(COLUMNS[metric][0])} ({metric})" if metric in COLUMNS else metric


def control_of(member: Member, best: Entry) -> TrialStatus | None:
    """The auto-encoder that the best run started from, if it did from one."""
    try:
        names = [Path(folder).name for folder in best.run.record.stages.values()]
    except RunError:
        return None
    return next((member.status.stages[name] for name in names if name in member.status.stages), None)


def compare(member: Member, best: Entry, stage: TrialStatus | None) -> list[Comparison]:
    """Each metric of the best run that is shown or that a control has."""
    goals, row = dict(member.status.goals), best.trial.row
    controls = {"mean image": member.status.baseline, "auto-encoder": stage.row if stage else {}}
    names = [name for name in dict.fromkeys([*goals, *COLUMNS, *ALSO]) if name in row]
    found = [
        Comparison(
            metric=name,
            heading=spell(COLUMNS[name][0]) if name in COLUMNS else name,
            meaning=METRICS.get(name, ""),
            best=shown(row[name], name),
            controls={who: apart for who, of in controls.items() if (apart := difference(name, row, of, goals))},
        )
        for name in names
    ]
    return sorted(found, key=lambda each: not each.controls)


def shown(value: float, metric: str) -> str:
    """A number as the leaderboard has it."""
    return format(value, COLUMNS[metric][1] if metric in COLUMNS else ".4g")


def difference(metric: str, row: Row, control: Row, goals: dict[str, str]) -> Difference | None:
    """How far `row` is from `control`, which has no codes: of x'_q as of x'_e; none if one has no such number."""
    ours, theirs = finite(row.get(metric)), finite(control.get(metric, control.get(metric.removesuffix("_q"))))
    if ours is None or theirs is None:
        return None
    by = ours - theirs
    style = COLUMNS[metric][1] if metric in COLUMNS else ".3g"
    wanted = direction(metric, goals)
    verdict: Literal["", "better", "worse"] = "" if not by * wanted else "better" if by * wanted > 0 else "worse"
    return Difference(shown(theirs, metric), format(by, f"+{style}").replace("-", "−"), verdict)


def direction(metric: str, goals: dict[str, str]) -> int:
    """1 if higher is better, -1 if lower is, 0 if that depends."""
    if metric in goals:
        return 1 if goals[metric] == "maximize" else -1
    return 1 if any(word in metric for word in HIGHER) else -1 if any(word in metric for word in LOWER) else 0
