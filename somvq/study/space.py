"""A sweep's parameters as Optuna's distributions: what they are, may become, and have in common with another's."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial
from pydantic import ValidationError

from somvq.config import RunConfig
from somvq.definitions import LOGARITHMIC, QUANTISED, ROW, Bounds, Parameter, Sweep, explain
from somvq.errors import DefinitionError, StudyError

MAY_CHANGE = (
    "early_terminate",
    "monitor",
    "run_cap",
    "description",
    "upload_brain_images",
)  # nothing that trials had decides on them


def distributions(sweep: Sweep) -> dict[str, BaseDistribution]:
    """What Optuna is to suggest: every parameter that has more than one value."""
    found = {name: distribution(p) for name, p in sweep.parameters.items() if p.value is None}
    rows = sweep.parameters[ROW].values if ROW in found and sweep.method == "grid" else None
    return {**found, ROW: IntDistribution(0, len(rows) - 1)} if rows else found  # Optuna lets no category be added


def distribution(parameter: Parameter) -> BaseDistribution:
    """One parameter in Optuna's words."""
    if parameter.values is not None:
        return CategoricalDistribution(parameter.values)
    assert parameter.min is not None
    assert parameter.max is not None
    logarithmic = parameter.distribution in LOGARITHMIC
    low, high, step = parameter.min, parameter.max, None
    if parameter.distribution == "q_uniform":
        (low, high), step = parameter.bounds, parameter.step
    if parameter.whole:
        return IntDistribution(int(low), int(high), log=logarithmic, step=int(step or 1))
    return FloatDistribution(float(low), float(high), log=logarithmic, step=step)


def override(sweep: Sweep, settings: Mapping[str, Any]) -> Sweep:
    """`sweep` with some parameters fixed (X), given other values ([X, Y]) or another range ({min: X, max: Y}).

    Raises:
        DefinitionError: what is set is no setting, or impossible.
    """
    parameters = {name: p.model_dump(exclude_none=True) for name, p in sweep.parameters.items()}
    parameters |= {name: said(name, value) for name, value in settings.items()}
    rows = {row: {k: v for k, v in told.items() if k not in settings} for row, told in sweep.rows.items()}
    try:
        return Sweep.model_validate({**sweep.model_dump(), "parameters": parameters, "rows": rows})
    except ValidationError as error:
        path, told = explain(error.errors()[0], Sweep)
        key = ".".join(map(str, path[1:] if path[:1] == ["parameters"] else path))
        idle = told.removeprefix("parameters: ").split()[0]
        if idle in sweep.parameters and idle not in settings:
            told += f"; the sweep file says {idle}: copy it, and take that line out"
        raise DefinitionError(f"--set{' ' + key if key else ''}: {told}") from error


def said(name: str, value: Any) -> dict[str, Any]:
    """What --set says of parameter `name`, as a sweep file would."""
    if name == "seed":
        raise DefinitionError(f"--set seed={value}: each trial has a seed of its own, from --seed {value}")
    if isinstance(value, list):
        return {"values": value}
    if isinstance(value, dict):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise DefinitionError(f"--set {name}: give one value, a list or a range, not {value!r}")
    return {"value": value}


def find_twin(sweep: Sweep, params: Mapping[str, Any], trials: Iterable[FrozenTrial]) -> FrozenTrial | None:
    """The first of `trials` whose run is told the same as that of `params`, its seed apart."""
    searched = distributions(sweep).keys()
    if not sweep.rows and not any(p.distribution in QUANTISED for p in sweep.parameters.values()):
        return next((trial for trial in trials if trial.params == params), None)  # nothing is rounded afterwards
    wanted = told_run(sweep, params)
    whole = (trial for trial in trials if searched <= trial.params.keys())  # else its worker died while it asked
    return next((trial for trial in whole if told_run(sweep, trial.params) == wanted), None)


def told_run(sweep: Sweep, params: Mapping[str, Any]) -> RunConfig | dict[str, Any]:
    """What tells runs apart: without rows, whose runs name different settings, what they say is all."""
    settings = sweep.settings(dict(params))
    if not sweep.rows:
        return settings
    try:
        return RunConfig(**settings)
    except ValidationError:
        return settings  # impossible together: its trial fails, and says why


@dataclass(frozen=True)
class Changes:
    """How a sweep differs from the one that a study was begun with, in words."""

    accepted: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def compare(had: Sweep, has: Sweep) -> Changes:
    """What differs, and which of it trials that there are can stand beside."""
    before, after = describe_space(had), describe_space(has)
    if adds_rows(had, has):
        after[ROW] = before[ROW]  # each row that is new is told by itself
    changes = Changes()
    for name in dict.fromkeys([*before, *after]):
        if before.get(name) != after.get(name):
            words = f"{name} was {before.get(name, 'absent')}, is {after.get(name, 'absent')}"
            (changes.accepted if may_change(name, had, has) else changes.refused).append(words)
    return changes


def may_change(name: str, had: Sweep, has: Sweep) -> bool:
    """Whether what differs in `name`, in describe_space's words, leaves trials comparable."""
    if name == "method":
        return "grid" not in (had.method, has.method)
    if name.startswith("row "):
        return adds_rows(had, has) and name.removeprefix("row ") not in had.rows
    if name in had.parameters and name in has.parameters:
        return widens(had.parameters[name], has.parameters[name])
    return name in MAY_CHANGE


def adds_rows(had: Sweep, has: Sweep) -> bool:
    """Whether a grid's rows are what they were, and others after them."""
    if ROW not in had.parameters or ROW not in has.parameters or not had.method == has.method == "grid":
        return False
    before, after = had.parameters[ROW].values, has.parameters[ROW].values
    return before is not None and after is not None and after[: len(before)] == before


def widens(had: Parameter, has: Parameter) -> bool:
    """Whether a range became wider on one side or both, and stayed of its kind."""
    if had.min is None or has.min is None or (had.distribution in QUANTISED) != (has.distribution in QUANTISED):
        return False
    before, after = distribution(had), distribution(has)
    ranges = (IntDistribution, FloatDistribution)
    if not isinstance(before, ranges) or not isinstance(after, ranges) or type(before) is not type(after):
        return False
    same = before.log == after.log and had.step == has.step
    return same and after.low <= before.low and after.high >= before.high


def refuse_another_space(study: str, had: Sweep, has: Sweep) -> Changes:
    """What changed, none of it such that trials could not be compared.

    Raises:
        StudyError: says what differs, and how to begin a new study.
    """
    changes = compare(had, has)
    if changes.refused:
        advice = "--fork NEW copies its finished trials onto the new space; --study NAME begins without them"
        raise StudyError(f"study '{study}' searches another space: {'; '.join(changes.refused)}. {advice}")
    return changes


def describe_space(sweep: Sweep) -> dict[str, str]:
    """Each parameter, what is optimised and how, in words that can be compared."""
    words = {name: describe_parameter(p) for name, p in sweep.parameters.items()}
    words |= {f"row {name}": ", ".join(f"{k} {describe_value(v)}" for k, v in sorted(row.items()))
              for name, row in sweep.rows.items()}  # fmt: skip
    words["metric" if sweep.metric else "objectives"] = ", ".join(f"{goal.goal} {goal.name}" for goal in sweep.goals)
    words |= {f"constraint on {name}": describe_bounds(bounds) for name, bounds in sweep.constraints.items()}
    rule = sweep.early_terminate
    stops = f"{rule.type} from epoch {rule.min_iter}, eta {rule.eta}" if rule else "none"
    words |= {"method": sweep.method, "early_terminate": stops}
    if sweep.monitor:
        words["monitor"] = f"{sweep.monitor.goal} {sweep.monitor.name}"
    words |= {"run_cap": str(sweep.run_cap)} if sweep.run_cap else {}
    words |= {"upload_brain_images": "true"} if sweep.upload_brain_images else {}
    return words | ({"description": repr(sweep.description)} if sweep.description else {})


def describe_parameter(parameter: Parameter) -> str:
    """One parameter in a few words; 10 and 10.0 are one value."""
    if parameter.value is not None:
        return describe_value(parameter.value)
    if parameter.values is not None:
        return "one of " + ", ".join(map(describe_value, parameter.values))
    meant = distribution(parameter)
    kind = ", whole" if isinstance(meant, IntDistribution) else ""
    scale = ", log" if getattr(meant, "log", False) else ""
    steps = f", multiples of {describe_value(parameter.step)}" if parameter.distribution in QUANTISED else ""
    return f"{describe_value(parameter.min)} to {describe_value(parameter.max)}{kind}{scale}{steps}"


def describe_bounds(bounds: Bounds) -> str:
    """A constraint in a few words."""
    sides = {"at least": bounds.min, "at most": bounds.max}
    return ", ".join(f"{side} {describe_value(value)}" for side, value in sides.items() if value is not None)


def describe_value(value: Any) -> str:
    """A number without needless digits, or a word."""
    return format(value, ".15g") if isinstance(value, int | float) else str(value)
