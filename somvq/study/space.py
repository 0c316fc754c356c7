"""A sweep's parameters as Optuna's distributions."""

from collections.abc import Mapping
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from somvq.definitions import Parameter, Sweep
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
    from pydantic import ValidationError

    from somvq.definitions import plain

    parameters = {name: p.model_dump(exclude_none=True) for name, p in sweep.parameters.items()}
    parameters |= {name: {"value": value} for name, value in settings.items()}
    try:
        return Sweep.model_validate({**sweep.model_dump(), "parameters": parameters})
    except ValidationError as error:
        problem: Any = error.errors()[0]
        name = problem.get("ctx", {}).get("at", "")
        raise DefinitionError(f"--set{' ' + name if name else ''}: {plain(problem)}") from error


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
    """Each parameter, and what is optimised, in words that can be compared."""
    words = {name: describe_parameter(p) for name, p in sweep.parameters.items()}
    return words | {"metric": f"{sweep.metric.goal} {sweep.metric.name}"}


def describe_parameter(parameter: Parameter) -> str:
    """One parameter in a few words."""
    if parameter.value is not None:
        return str(parameter.value)
    if parameter.values is not None:
        return "one of " + ", ".join(map(str, parameter.values))
    scale = " (log)" if parameter.distribution == "log_uniform_values" else ""
    return f"{parameter.min} to {parameter.max}{scale}"
