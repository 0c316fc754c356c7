"""A study's own page on W&B: how good its best trial was after each that finished, at what cost, and what mattered.

All of it comes from Optuna's storage and the runs' folders: whoever tells it tells the same, and again from nothing.
"""

from datetime import datetime
from itertools import accumulate
from typing import Any

from optuna.importance import get_param_importances
from optuna.trial import FrozenTrial, TrialState

from somvq.study.record import OpenStudy
from somvq.study.status import ENDED, LABELS, Status, TrialStatus
from somvq.study.stops import add_up
from somvq.tracking.contents import Page, Step

FEWEST = 4  # trials that say something of what mattered
FOLDER = "summary"


def summary_page(opened: OpenStudy, status: Status) -> Page:
    """The study's page; a step is the number of trials that have finished."""
    record = opened.record
    identity = record.page("summary")
    return Page(
        id=identity.id,
        name=identity.name,
        group=record.name,
        kind="study",
        project=record.wandb_project,
        entity=record.wandb_entity,
        folder=record.folder / FOLDER,
        config=describe_search(status, opened),
        tags=(),
        summary={**counts(status), **best(status), **importances(opened, status)},
        steps=[Step(number, row) for number, row in enumerate(summary_rows(opened, status), 1)],
        axis="study/finished",
    )


def describe_search(status: Status, opened: OpenStudy) -> dict[str, Any]:
    """What is searched, how and on what: no names of files or people."""
    record = opened.record
    goals = {f"goal/{name}": goal for name, goal in status.goals}
    return {"method": record.sweep.method, "seed": record.seed, "cohort": record.cohort_fingerprint, **goals}


def summary_rows(opened: OpenStudy, status: Status) -> list[dict[str, Any]]:
    """How the study stood when each of its trials finished, in that order."""
    over = [trial for trial in opened.study.get_trials(deepcopy=False) if trial.state.is_finished()]
    over = sorted((t for t in over if t.number < len(status.trials)), key=when)
    ended = [status.trials[trial.number] for trial in over]
    if any(trial.state not in ENDED for trial in ended):
        return []  # one ended between two looks: the next who tells knows it
    leads = [best_so_far(status, goal, ended) for goal in range(len(status.goals))]
    shared = [span for stage in status.stages.values() for span in stage.spans]
    rows = []
    for finished in range(1, len(ended) + 1):
        so_far = ended[:finished]
        spans = [span for trial in so_far for span in trial.spans]
        until = max((end for _, end, _ in spans), default=0.0)
        used = add_up([*spans, *(span for span in shared if span[1] <= until)])
        row: dict[str, Any] = {"study/finished": finished}
        row |= {f"study/{state}": sum(trial.state == state for trial in so_far) for state in ENDED}
        row |= {"study/hours": used.hours, "study/gpu_hours": used.gpu_hours}
        values = {name: lead[finished - 1] for (name, _), lead in zip(status.goals, leads, strict=True)}
        rows.append(row | {f"best/{name}": value for name, value in values.items() if value is not None})
    return rows


def when(trial: FrozenTrial) -> tuple[datetime, int]:
    """When `trial` finished."""
    return trial.datetime_complete or datetime.max, trial.number


def best_so_far(status: Status, goal: int, ended: list[TrialStatus]) -> list[float | None]:
    """The best value of the goal after each trial; constraints must be kept."""
    pick = max if status.goals[goal][1] == "maximize" else min
    values = [t.values[goal] if t.values and t.state == "done" and not t.violated else None for t in ended]

    def better(one: float | None, other: float | None) -> float | None:
        return pick(one, other) if one is not None and other is not None else one if other is None else other

    return list(accumulate(values, better))


def counts(status: Status) -> dict[str, Any]:
    """Trials by state, now."""
    told = {f"study/{state}": status.count(state) for state in LABELS.values()}
    return {**told, "study/finished": status.finished, "study/target": status.target}


def best(status: Status) -> dict[str, Any]:
    """The best trial and its settings."""
    trial = status.best(feasible=True)
    if trial is None:
        return {}
    return {"best/trial": trial.number, **{f"best/{name}": value for name, value in trial.params.items()}}


def importances(opened: OpenStudy, status: Status) -> dict[str, float]:
    """How much each searched setting decided of how good trials are (PED-ANOVA); where enough trials differ."""
    done = [trial for trial in opened.study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    if len(done) < FEWEST or len({trial.values[0] for trial in done}) == 1 or not done[0].params:
        return {}
    found = get_param_importances(opened.study)
    return {f"importance/{name}": share for name, share in found.items()}
