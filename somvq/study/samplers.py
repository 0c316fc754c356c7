"""A sweep's method as Optuna's sampler."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from somvq.definitions import Sweep
from somvq.study.space import distributions

Space = dict[str, BaseDistribution]


class Joint(TPESampler):
    """TPE over all parameters together, also after a range was widened.

    Optuna's own leaves out of the joint space what any finished trial had other bounds for, and samples it alone.
    """

    def __init__(self, space: Space, seed: int):
        super().__init__(seed=seed)  # Optuna 5: multivariate, and aware of what other workers are trying
        self.space = space

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Space:
        """What is sampled together: with several objectives nothing, as Optuna has it."""
        if not self._is_multivariate(study):
            return {}
        return {name: kind for name, kind in sorted(self.space.items()) if not kind.single()}

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Space) -> dict[str, Any]:
        """Of a trial to come: Optuna's own would note them in its storage, to be seen before they are its settings."""
        return self._sample_relative(study, trial, search_space)


class Grid(BaseSampler):
    """The first combination of values, in the file's order, that no other trial of the study has."""

    def __init__(self, space: Space):
        self.space = space

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Space:
        """All of it."""
        return self.space

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Space) -> dict[str, Any]:
        """A combination, called under the claim lock: of what `trial` has already, if its worker died while it asked.

        Where all are taken, which the study's budget does not let happen, the first again.
        """
        others = [each for each in study.get_trials(deepcopy=False) if each.number != trial.number]
        taken = {tuple(each.params.get(name) for name in self.space) for each in others}
        own = [c for c in self.combinations() if all(c[name] == value for name, value in trial.params.items())]
        return next((c for c in own if tuple(c.values()) not in taken), own[0])

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Every combination, the last parameter changing first."""
        for combination in product(*(every(kind) for kind in self.space.values())):
            yield dict(zip(self.space, combination, strict=True))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The first value: only what is not in the grid is sampled alone, and there is nothing."""
        return every(param_distribution)[0]


def every(kind: BaseDistribution) -> list[Any]:
    """The values of a distribution that has few."""
    if isinstance(kind, IntDistribution):
        return list(range(kind.low, kind.high + 1, kind.step))
    assert isinstance(kind, CategoricalDistribution)
    return list(kind.choices)


def _bayes(sweep: Sweep, seed: int) -> BaseSampler:
    return Joint(distributions(sweep), seed)


def _random(sweep: Sweep, seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


def _grid(sweep: Sweep, seed: int) -> BaseSampler:
    return Grid(distributions(sweep))


SAMPLERS: dict[str, Callable[[Sweep, int], BaseSampler]] = {"bayes": _bayes, "random": _random, "grid": _grid}


def build_sampler(sweep: Sweep, seed: int) -> BaseSampler:
    """The sampler of `sweep`: made anew for each trial, since Optuna does not store samplers."""
    return SAMPLERS[sweep.method](sweep, seed)
