"""Models, one a file, by the names that sweep files use."""

from collections.abc import Callable
from typing import Any

from somvq.codebooks.codebook import Care
from somvq.codebooks.estimators import ESTIMATORS
from somvq.codebooks.grid import Grid, Neighbourhood
from somvq.codebooks.psom import PSOM
from somvq.codebooks.som import SOM
from somvq.codebooks.vq import VQ
from somvq.config import RunConfig
from somvq.models.ae import AE
from somvq.models.convolutions import CHANNELS
from somvq.models.discrete import DiscreteAE
from somvq.models.vae import BATCH_NORM, VAE
from somvq.readings import Choice, Difference

Model = AE | DiscreteAE

DECODER_OF_AE: Difference[bool] = Difference(
    "Continuous SOM-VAE: decoder",
    "silent",
    Choice("the AE's, with batch norm, so that nothing of the VAE's fits it and it starts random", True),
    Choice("the VAE's, with its weights", False),
)


def build_body(config: RunConfig) -> AE:
    """The auto-encoder that `config` is about, or that its codebook is in."""
    skip = config.skip == "concatenate"
    if config.latent == "plain":
        return AE(skip=skip)
    decoder_batch_norm = BATCH_NORM.of(config.reading) or (config.model == "som" and DECODER_OF_AE.of(config.reading))
    return VAE(kl=given(config, "kl"), reading=config.reading, skip=skip, decoder_batch_norm=decoder_batch_norm)


def build_vq(config: RunConfig) -> DiscreteAE:
    """Any number of codes, in no order."""
    codes = VQ(Grid(*config.grid_shape), CHANNELS, alpha=config.alpha, beta=given(config, "beta"),
               care=care(config), reading=config.reading)  # fmt: skip
    return discrete(config, codes)


def build_som(config: RunConfig) -> DiscreteAE:
    """Codes on a map; each token belongs to its nearest."""
    codes = SOM(neighbourhood(config), CHANNELS, alpha=config.alpha, beta=config.beta, commitment=config.commitment,
                care=care(config), reading=config.reading)  # fmt: skip
    return discrete(config, codes)


def build_psom(config: RunConfig) -> DiscreteAE:
    """Codes on a map; each token belongs to all."""
    weights = {"hardening": given(config, "gamma"), "neighbours": given(config, "beta")}
    if config.beta_som:
        weights["order"] = config.beta_som
    if config.gamma_q:
        weights["commitment"] = given(config, "commitment")
    codes = PSOM(neighbourhood(config), CHANNELS, alpha=given(config, "alpha"), weights=weights,
                 assignment=config.assignment or "hard", care=care(config), reading=config.reading)  # fmt: skip
    return discrete(config, codes)


def care(config: RunConfig) -> Care:
    """What is done to codes as an epoch begins."""
    return Care(revive=config.revive or 0, swap=config.swap == "each-epoch")


def neighbourhood(config: RunConfig) -> Neighbourhood:
    """The map of `config`, and which of its nodes move together."""
    grid = Grid(*config.grid_shape, given(config, "topology"))
    return Neighbourhood(grid, given(config, "neighbours"), config.reading)


def discrete(config: RunConfig, codebook: VQ | SOM | PSOM) -> DiscreteAE:
    """The auto-encoder of `config` with `codebook` in it."""
    soft = config.assignment == "soft"  # a mean of codes needs no estimate of its gradient
    estimate = ESTIMATORS["direct" if soft or config.estimator is None else config.estimator]
    return DiscreteAE(build_body(config), codebook, gamma_q=config.gamma_q or 0.0, estimate=estimate)


def body_of(model: Model) -> AE:
    """The auto-encoder that `model` is, or that its codebook is in."""
    return model if isinstance(model, AE) else model.body


def given(config: RunConfig, name: str) -> Any:
    """A setting that this model makes use of: RunConfig has filled it."""
    value = getattr(config, name)
    assert value is not None, name
    return value


MODELS: dict[str, Callable[[RunConfig], Model]] = {
    "ae": build_body,
    "vae": build_body,
    "vqvae": build_vq,
    "som": build_som,
    "psom": build_psom,
}


def build_model(config: RunConfig) -> Model:
    """The model that `config` names, with random weights and codes."""
    return MODELS[config.model](config)
