"""A sweep's method as Optuna's sampler."""

from collections.abc import Callable

from optuna.samplers import BaseSampler, GridSampler, RandomSampler, TPESampler

from somvq.definitions import Sweep


def _bayes(sweep: Sweep, seed: int) -> BaseSampler:
    return TPESampler(seed=seed)  # Optuna 5: multivariate, and aware of what other workers are trying


def _random(sweep: Sweep, seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


class EndlessGrid(GridSampler):
    """A grid that leaves it to the study's budget to stop: Optuna's would stop a loop that we do not run."""

    def after_trial(self, *_: object, **__: object) -> None:
        """Nothing."""


def _grid(sweep: Sweep, seed: int) -> BaseSampler:
    lists = {name: list(p.values) for name, p in sweep.parameters.items() if p.values is not None}
    return EndlessGrid(lists, seed=0)  # the same for every trial: it decides which number means which combination


SAMPLERS: dict[str, Callable[[Sweep, int], BaseSampler]] = {"bayes": _bayes, "random": _random, "grid": _grid}


def build_sampler(sweep: Sweep, seed: int) -> BaseSampler:
    """The sampler of `sweep`: made anew for each trial, since Optuna does not store samplers."""
    return SAMPLERS[sweep.method](sweep, seed)
