"""Every trial of the studies that a report is of, best first, and the table of them."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from somvq.errors import RunError
from somvq.report.privacy import Censor
from somvq.runs import METRICS, Row, Run, describe
from somvq.study.record import OpenStudy
from somvq.study.status import ENDED, Status, TrialStatus
from somvq.study.tables import Columns, cells

LONGEST = 400  # letters of a reason


@dataclass(frozen=True)
class Member:
    """A study as it was when the report was made."""

    opened: OpenStudy
    status: Status
    censor: Censor

    @property
    def name(self) -> str:
        """The study's."""
        return self.status.study


@dataclass(frozen=True, eq=False)
class Entry:
    """One trial, and its run."""

    study: str
    trial: TrialStatus
    run: Run  # its own, or that of the trial whose settings it has
    settings: dict[str, Any]  # of the run, and what was suggested; without its seed
    best: bool
    notes: str

    @property
    def label(self) -> str:
        """Its name among all trials of the report."""
        return f"{self.study}/{self.trial.number}"


@dataclass(frozen=True)
class Cell:
    """What a table shows, and the value that it sorts by."""

    text: str
    value: float | str | None = None


@dataclass(frozen=True)
class Column:
    """A heading, and what it means."""

    name: str
    heading: str
    meaning: str = ""
    number: bool = False


def list_entries(members: Sequence[Member]) -> list[Entry]:
    """All trials, best first: over all studies where they have the same goals, else study after study."""
    entries, one_aim = [], len({tuple(member.status.goals) for member in members}) == 1
    keys: dict[str, tuple[Any, ...]] = {}
    for place, member in enumerate(members):
        status = member.status
        ranked = {trial.number: rank for rank, trial in enumerate(status.ranked())}
        for trial in status.trials:
            entry = make_entry(member, trial, best=ranked.get(trial.number) == 0 or is_on_front(status, trial))
            among = (0,) if one_aim else (place,)
            if trial.number in ranked and one_aim:
                order: tuple[Any, ...] = (bool(trial.violated), not status.leads(trial), status.cost(trial)[0])
            else:
                order = (ranked.get(trial.number, 0),)
            keys[entry.label] = (*among, trial.number not in ranked, *order, place, trial.number)
            entries.append(entry)
    return sorted(entries, key=lambda entry: keys[entry.label])


def is_on_front(status: Status, trial: TrialStatus) -> bool:
    """Whether no trial beats it in all of several goals, and it keeps the constraints."""
    finished = trial.values is not None and trial.state == "done" and not trial.violated
    return len(status.goals) > 1 and finished and status.leads(trial)


def make_entry(member: Member, trial: TrialStatus, *, best: bool) -> Entry:
    """The trial with its run and settings, as far as they can be read."""
    run = member.opened.record.run(trial.number if trial.same_as is None else trial.same_as)
    try:
        settings = {name: value for name, value in run.record.config.model_dump().items() if name != "seed"}
    except RunError:  # not begun, or damaged
        settings = {}
    said = [f"as trial {trial.same_as}"] if trial.same_as is not None else []
    said += [f"does not keep {', '.join(trial.broken)}"] if trial.broken and trial.state in ENDED else []
    reason = trial.reason.replace(f"{member.opened.record.folder}/", "")  # which file of a run, but not where
    said += [shorten(member.censor.clean(reason))] if reason else []
    said += [f"copied from {trial.copied_from}"] if trial.copied_from else []
    return Entry(member.name, trial, run, {**settings, **trial.params}, best, "; ".join(said))


def shorten(reason: str) -> str:
    """Its beginning, where it is longer than a table has room for."""
    return reason if len(reason) <= LONGEST else f"{reason[:LONGEST]}…"


def by_turns(entries: Sequence[Entry]) -> list[Entry]:
    """The best of each study, then the second of each, and so on: where not all have room, each study has its share."""
    places: Counter[str] = Counter()
    turns: dict[str, int] = {}
    for entry in entries:
        places[entry.study] += 1
        turns[entry.label] = places[entry.study]
    return sorted(entries, key=lambda entry: turns[entry.label])


def differing(entries: Sequence[Entry]) -> list[str]:
    """Settings that were searched, or are not the same in all runs; those that were searched first."""
    searched = dict.fromkeys(name for entry in entries for name in entry.trial.params)
    every = dict.fromkeys(name for entry in entries for name in entry.settings)
    known = [entry for entry in entries if "model" in entry.settings]
    varied = [name for name in every if len({repr(entry.settings.get(name)) for entry in known}) > 1]
    return list(dict.fromkeys([*searched, *varied]))


def shared(entries: Sequence[Entry]) -> dict[str, str]:
    """The settings that all runs have in common."""
    known = next((entry.settings for entry in entries if "model" in entry.settings), {})
    others = differing(entries)
    return {name: describe(value) for name, value in known.items() if name not in others and value is not None}


def spell(heading: str) -> str:
    """A heading of the terminal's on one line."""
    return heading.replace("-\n", "").replace("/\n", "/").replace("\n", " ")


def table_columns(members: Sequence[Member], metrics: Columns, settings: Sequence[str]) -> list[Column]:
    """The leaderboard's headings."""
    return [
        Column("trial", "trial", number=True),
        *([Column("study", "study")] if len(members) > 1 else []),
        Column("state", "state"),
        *(Column(name, spell(heading), METRICS.get(name, ""), True) for name, (heading, _) in metrics.items()),
        Column("epochs", "epochs AE + own", "of the auto-encoder that it starts from, and its own", True),
        *(Column(f"setting {name}", name) for name in settings),
        Column("notes", "notes"),
    ]


def table_cells(entry: Entry, metrics: Columns, settings: Sequence[str]) -> dict[str, Cell]:
    """A trial's row of the leaderboard, by column; numbers as the terminal shows them."""
    trial = entry.trial
    numbers = zip(metrics, cells(trial.row, metrics), strict=True)
    own = f"{trial.epoch}/{trial.epochs}" if trial.epoch < trial.epochs else f"{trial.epochs}"
    epochs = f"{trial.stage_epochs} + {own}" if trial.epochs else ""
    return {
        "study": Cell(entry.study, entry.study),
        "trial": Cell(str(trial.number), trial.number),
        "state": Cell(trial.state, trial.state),
        **{name: Cell(text, finite(trial.row.get(name))) for name, text in numbers},
        "epochs": Cell(epochs, trial.stage_epochs + trial.epoch),
        **{f"setting {name}": setting_cell(entry.settings.get(name)) for name in settings},
        "notes": Cell(entry.notes, entry.notes),
    }


def setting_cell(value: Any) -> Cell:
    """A setting; none where the model makes no use of it."""
    if value is None:
        return Cell("", None)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(describe(value), value if number else describe(value))


def control_cells(row: Row, metrics: Columns) -> dict[str, Cell]:
    """A row of numbers that no trial measured."""
    return {name: Cell(text) for name, text in zip(metrics, cells(row, metrics), strict=True)}


def finite(value: float | None) -> float | None:
    """A number that JSON knows."""
    return value if value is not None and math.isfinite(value) else None
