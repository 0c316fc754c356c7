"""A sweep's parameters as Optuna's distributions."""

from collections.abc import Mapping
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import ValidationError

from somvq.definitions import Parameter, Sweep, plain
from somvq.errors import DefinitionError, StudyError


def distributions(sweep: Sweep) -> dict[str, BaseDistribution]:
    """What Optuna is to suggest: every parameter that has more than one value."""
    return {name: distribution(p) for name, p in sweep.parameters.items() if p.value is None}


def distribution(parameter: Parameter) -> BaseDistribution:
    """One parameter in Optuna's words."""
    if parameter.values is not None:
        return CategoricalDistribution(parameter.values)
    assert parameter.min is not None
    assert parameter.max is not None
    logarithmic = parameter.distribution == "log_uniform_values"
    if parameter.whole and parameter.distribution != "uniform":
        return IntDistribution(int(parameter.min), int(parameter.max), log=logarithmic)
    return FloatDistribution(float(parameter.min), float(parameter.max), log=logarithmic)


def override(sweep: Sweep, settings: Mapping[str, Any]) -> Sweep:
    """`sweep` with some parameters fixed.

    Raises:
        DefinitionError: what is fixed is no setting, or impossible.
    """
    parameters = {name: p.model_dump(exclude_none=True) for name, p in sweep.parameters.items()}
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise DefinitionError(f"--set {name}: give one value, not {value!r}")
        if name == "seed":
            raise DefinitionError(f"--set seed={value}: each trial has a seed of its own, from --seed {value}")
        parameters[name] = {"value": value}
    rows = {row: {k: v for k, v in said.items() if k not in settings} for row, said in sweep.rows.items()}
    try:
        return Sweep.model_validate({**sweep.model_dump(), "parameters": parameters, "rows": rows})
    except ValidationError as error:
        problem: Any = error.errors()[0]
        parameter = problem["loc"][1] if problem["loc"][:1] == ("parameters",) and len(problem["loc"]) > 1 else ""
        name = problem.get("ctx", {}).get("at", "") or parameter
        told = plain(problem)
        idle = told.removeprefix("parameters: ").split()[0]
        if idle in sweep.parameters and idle not in settings:
            told += f"; the sweep file says {idle}: copy it, and take that line out"
        raise DefinitionError(f"--set{' ' + name if name else ''}: {told}") from error


def refuse_another_space(study: str, had: Sweep, has: Sweep) -> None:
    """A study's trials must be comparable: the same parameters, over the same values, for the same metric.

    Raises:
        StudyError: says what differs, and how to begin a new study.
    """
    before, after = describe_space(had), describe_space(has)
    names = [name for name in [*before, *after] if before.get(name) != after.get(name)]
    if names:
        listed = "; ".join(
            f"{n} was {before.get(n, 'absent')}, is {after.get(n, 'absent')}" for n in dict.fromkeys(names)
        )
        raise StudyError(f"study '{study}' searches another space: {listed}. Give a new study a name: --study NAME")


def describe_space(sweep: Sweep) -> dict[str, str]:
    """Each parameter, what is optimised and how, in words that can be compared."""
    words = {name: describe_parameter(p) for name, p in sweep.parameters.items()}
    words |= {f"row {name}": ", ".join(f"{k} {describe_value(v)}" for k, v in sorted(row.items()))
              for name, row in sweep.rows.items()}  # fmt: skip
    rule = sweep.early_terminate
    stops = f"{rule.type} from epoch {rule.min_iter}, eta {rule.eta}" if rule else "none"
    aim = f"{sweep.metric.goal} {sweep.metric.name}"
    return words | {"metric": aim, "method": sweep.method, "early_terminate": stops}


def describe_parameter(parameter: Parameter) -> str:
    """One parameter in a few words; 10 and 10.0 are one value."""
    if parameter.value is not None:
        return describe_value(parameter.value)
    if parameter.values is not None:
        return "one of " + ", ".join(map(describe_value, parameter.values))
    meant = distribution(parameter)
    kind = ", whole" if isinstance(meant, IntDistribution) else ""
    scale = ", log" if getattr(meant, "log", False) else ""
    return f"{describe_value(parameter.min)} to {describe_value(parameter.max)}{kind}{scale}"


def describe_value(value: Any) -> str:
    """A number without needless digits, or a word."""
    return format(value, ".15g") if isinstance(value, int | float) else str(value)
