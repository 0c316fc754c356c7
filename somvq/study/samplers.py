"""A sweep's method as Optuna's sampler."""

from collections.abc import Callable

from optuna.samplers import BaseSampler, GridSampler, RandomSampler, TPESampler

from somvq.definitions import Sweep


def _bayes(sweep: Sweep, seed: int) -> BaseSampler:
    return TPESampler(seed=seed)  # Optuna 5: multivariate, and aware of what other workers are trying


def _random(sweep: Sweep, seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


def _grid(sweep: Sweep, seed: int) -> BaseSampler:
    lists = {name: list(p.values) for name, p in sweep.parameters.items() if p.values is not None}
    return GridSampler(lists, seed=seed)


SAMPLERS: dict[str, Callable[[Sweep, int], BaseSampler]] = {"bayes": _bayes, "random": _random, "grid": _grid}


def build_sampler(sweep: Sweep, seed: int) -> BaseSampler:
    """The sampler of `sweep`: made anew for each trial, since Optuna does not store samplers."""
    return SAMPLERS[sweep.method](sweep, seed)
