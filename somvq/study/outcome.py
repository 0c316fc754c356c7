"""What a run's ledger says of its trial: the values of the study's goals, and which constraints it violates."""

import math

from somvq.definitions import Sweep
from somvq.runs import Row

UNMEASURED = 1.0  # the violation of a constraint on a metric that the row lacks


def values(sweep: Sweep, row: Row) -> list[float] | None:
    """The goals' values, in their order; none if one was not measured."""
    return None if missing(sweep, row) else [row[goal.name] for goal in sweep.goals]


def missing(sweep: Sweep, row: Row) -> str:
    """The first goal's metric that was not measured; empty if all were."""
    return next((goal.name for goal in sweep.goals if not is_measured(row, goal.name)), "")


def violations(sweep: Sweep, row: Row) -> dict[str, float]:
    """By how much each constraint is violated: above 0 where it is, as Optuna has it.

    The keys are words, such as "codebook/used_share >= 0.1"; a metric that was not measured violates.
    """
    found = {}
    for name, bounds in sweep.constraints.items():
        known = is_measured(row, name)
        if bounds.min is not None:
            found[f"{name} >= {bounds.min:.15g}"] = bounds.min - row[name] if known else UNMEASURED
        if bounds.max is not None:
            found[f"{name} <= {bounds.max:.15g}"] = row[name] - bounds.max if known else UNMEASURED
    return found


def feasible(sweep: Sweep, row: Row) -> bool:
    """Whether every constraint is kept."""
    return all(excess <= 0 for excess in violations(sweep, row).values())


def is_measured(row: Row, name: str) -> bool:
    """Whether the row has a number for metric `name`."""
    return math.isfinite(row.get(name, math.nan))
