"""Codes from a batch self-organising map of a trained auto-encoder's tokens (Kohonen 2013, Neural Networks 37)."""

import torch
from torch import Tensor

from somvq.codebooks.grid import Grid
from somvq.codebooks.psom import squared_distances
from somvq.errors import DefinitionError
from somvq.initialisers import autoencoder
from somvq.initialisers.start import Start
from somvq.models import Model
from somvq.models.psomvae import PSOMVAE

MOST_TOKENS = 50_000  # enough for any map here, and seconds on a CPU
STEPS = 60
FIRST_WIDTH, LAST_WIDTH = 3 / 8, 0.5  # of the neighbourhood: a share of the map's longer side; steps on the map
FAINTEST = 1e-30  # the least neighbourhood weight, in tokens, that float32 still divides by exactly


def initialise(model: Model, start: Start) -> None:
    """Auto-encoder weights, and a batch SOM of the whole training set's tokens."""
    assert isinstance(model, PSOMVAE)
    autoencoder.initialise(model, start)
    tokens = sample(start.tokens(model.encoder), model.codebook.grid.nodes, start.seed)
    with torch.no_grad():
        model.codebook.codes.copy_(batch_som(tokens, model.codebook.grid, start.seed))


def sample(tokens: Tensor, nodes: int, seed: int) -> Tensor:
    """At most MOST_TOKENS of `tokens` (N, C) on the CPU, drawn with `seed`.

    Raises:
        DefinitionError: there are fewer tokens than nodes.
    """
    if len(tokens) < nodes:
        have = f"a map of {nodes} nodes cannot start from the {len(tokens)} tokens of this training set"
        raise DefinitionError(f"{have}; take a smaller grid, or init ae")
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))
    return tokens.cpu().float()[order[:MOST_TOKENS]]


def batch_som(tokens: Tensor, grid: Grid, seed: int, steps: int = STEPS) -> Tensor:
    """Codes (K, C): each the mean of `tokens` (N, C) under a Gaussian neighbourhood on the map that shrinks.

    The neighbourhood is in steps on the map, unlike the paper's code, which measured it between codes and so never
    ordered them. A node whose neighbourhood no token reaches any more stays where it was, among the tokens.
    """
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))
    codes = tokens[order[: grid.nodes]].clone()
    first = max(FIRST_WIDTH * max(grid.height, grid.width), LAST_WIDTH)
    for step in range(steps):
        width = first * (LAST_WIDTH / first) ** (step / max(steps - 1, 1))
        neighbourhood = torch.exp(-grid.distances.float().square() / (2 * width**2))
        nearest = squared_distances(tokens, codes).argmin(1)
        hits = torch.bincount(nearest, minlength=grid.nodes).float()
        sums = torch.zeros_like(codes).index_add_(0, nearest, tokens)
        weight = (neighbourhood @ hits)[:, None]
        codes = torch.where(weight > FAINTEST, (neighbourhood @ sums) / weight, codes)
    return codes
