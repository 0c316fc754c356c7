"""The run that a user means."""

from pathlib import Path

from somvq.errors import StudyError
from somvq.runs import Run, describe
from somvq.settings import Settings
from somvq.study.record import list_studies, load_study
from somvq.study.status import read_status


def find_run(settings: Settings, named: str) -> tuple[Run, str]:
    """The run at a folder or called STUDY/NUMBER, or the best finished trial of a study; and why it, if it was chosen.

    Raises:
        StudyError: there is none; lists those there are.
    """
    runs, path = settings.runs.resolve(), Path(named).resolve()
    below = path.relative_to(runs) if path.is_relative_to(runs) else Path(named)
    numbered = below.with_name(f"{int(below.name):04d}") if below.name.isdecimal() else below
    for folder in (path, runs / numbered):
        if (folder / "config.json").exists():
            return Run(folder), ""
    if len(below.parts) == 1:
        return best_run(settings, below.name)
    there = sorted(config.parent.name for config in (runs / below).parent.glob("*/config.json"))
    if there:
        those = f"{there[0]} to {there[-1]}" if len(there) > 1 else there[0]
        raise StudyError(f"no run {numbered.name} in {settings.runs / below.parent} (there: {those})")
    known = ", ".join(list_studies(settings)) or "none yet"
    raise StudyError(f"no run at {named}: give a run's folder, STUDY/NUMBER or a study (there: {known})")


def best_run(settings: Settings, study: str) -> tuple[Run, str]:
    """The best finished trial's run of `study`, and what it is the best of."""
    opened = load_study(settings, study)
    status = read_status(opened)
    ranked = status.ranked()
    if not ranked:
        raise StudyError(f"study '{study}' has no finished trial yet; somvq resume {study} goes on with it")
    best = ranked[0]
    assert best.value is not None
    trials = "1 finished trial" if len(ranked) == 1 else f"{len(ranked)} finished trials"
    return opened.record.run(best.number), f"the best of {trials} of {study}, {status.metric} {describe(best.value)}"
