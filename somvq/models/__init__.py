"""Models, one a file, by the names that sweep files use."""

from collections.abc import Callable

from somvq.codebooks.grid import Grid
from somvq.config import RunConfig
from somvq.models.ae import AE
from somvq.models.psomvae import PSOMVAE

Model = AE | PSOMVAE


def _grid(config: RunConfig) -> Grid:
    return Grid(*config.grid_shape, config.topology)


MODELS: dict[str, Callable[[RunConfig], Model]] = {
    "ae": lambda config: AE(),
    "psom": lambda config: PSOMVAE(
        _grid(config),
        alpha=config.alpha,
        beta=config.beta,
        gamma=config.gamma,
        gamma_q=config.gamma_q,
        assignment=config.assignment,
    ),
}


def build_model(config: RunConfig) -> Model:
    """The model that `config` names, with random weights and codes."""
    return MODELS[config.model](config)
