"""Where weights and codes start, by the names that sweep files use."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from somvq.codebooks.grid import Grid
from somvq.config import RunConfig
from somvq.errors import DefinitionError
from somvq.initialisers import kmeans, kohonen, weights
from somvq.initialisers.start import Kind, Start, Tokens
from somvq.models import DECODER_OF_AE, Model
from somvq.models.ae import AE
from somvq.models.discrete import DiscreteAE
from somvq.readings import Choice, Difference

Codes = Callable[[Tokens, Grid, int], Tensor]

TOKENS_OF_ONE_BATCH: Difference[bool] = Difference(
    "Init AE KM: tokens",
    "the regular AE encoder output",
    Choice("those of one batch", True),
    Choice("those of the whole training set", False),
)
CENTRES_OF_AE: Difference[bool] = Difference(
    "Init VAE KM",
    "k-means of the VAE",
    Choice("centres of the AE's tokens, which the VAE's encoder never makes", True),
    Choice("centres of the VAE's own means", False),
)


class Initialiser(NamedTuple):
    """What is taken from a trained auto-encoder: its weights, codes among its tokens, or both."""

    kind: Kind | None = None
    weights: bool = True
    codes: Difference[Codes] | None = None


INITIALISERS = {
    "random": Initialiser(),
    "ae": Initialiser("ae"),
    "vae": Initialiser("vae"),
    "ae-kmeans": Initialiser("ae", codes=kmeans.CENTRES),
    "vae-kmeans": Initialiser("vae", codes=kmeans.CENTRES),
    "ae-som": Initialiser("ae", codes=kohonen.MAP),
    "vae-som": Initialiser("vae", codes=kohonen.MAP),
    "ae-kmeans-codes": Initialiser("ae", weights=False, codes=kmeans.CENTRES),
}


def initialise(model: Model, config: RunConfig, start: Start) -> None:
    """Starts the weights and codes of `model` as `config` says.

    Raises:
        DefinitionError: there are fewer tokens than nodes.
    """
    chosen = INITIALISERS[config.init]
    if chosen.kind and chosen.weights:
        assert chosen.kind in start.weights, "the stage that trains the auto-encoder has not run"
        fits = not (config.model == "som" and config.latent == "continuous" and DECODER_OF_AE.of(config.reading))
        weights.copy(start.weights[chosen.kind], model if isinstance(model, AE) else model.body, decoder=fits)
    if chosen.kind and chosen.codes and isinstance(model, DiscreteAE):
        of_ae = config.init == "vae-kmeans" and CENTRES_OF_AE.of(config.reading)
        encoder = weights.trained_encoder(start.weights["ae" if of_ae else chosen.kind])
        one_batch = chosen.codes is kmeans.CENTRES and TOKENS_OF_ONE_BATCH.of(config.reading)
        tokens = start.tokens(encoder, start.batch if one_batch else None)
        refuse_too_few(len(tokens.values), model.codebook.grid.nodes)
        model.codebook.place(chosen.codes.of(config.reading)(tokens, model.codebook.grid, start.seed))


def refuse_too_few(tokens: int, nodes: int) -> None:
    """Each code needs a token to start from."""
    if tokens < nodes:
        have = f"a map of {nodes} nodes cannot start from {tokens} tokens"
        raise DefinitionError(f"{have}; take a smaller grid, or init ae")
