"""Codes from a self-organising map of tokens (Kohonen 2013, Neural Networks 37)."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from somvq.codebooks.codebook import squared_distances
from somvq.codebooks.grid import Grid
from somvq.initialisers.start import MOST_TOKENS, Tokens
from somvq.readings import Choice, Difference

STEPS = 60
FIRST_WIDTH, LAST_WIDTH = 3 / 8, 0.5  # of the neighbourhood: a share of the map's longer side; steps on the map
FAINTEST = 1e-30  # the least neighbourhood weight, in tokens, that float32 still divides by exactly
PUBLISHED_EPOCHS, PUBLISHED_PASSES, PUBLISHED_TOKENS = 500, 20, 5_000


def batch_map(tokens: Tokens, grid: Grid, seed: int) -> Tensor:
    """Codes (K, C) of a batch SOM of a sample of tokens, background included.

    With background tokens at a tenth of the weight, the trained PSOM used 66 % of its nodes on the demo cohort instead
    of 75 %, and 83 % instead of 91 % of the codes' nearest neighbours were tokens.
    """
    tokens = tokens.sample(MOST_TOKENS, seed)
    return batch_som(Tokens(tokens.values, torch.ones_like(tokens.brain)), grid)


def batch_som(tokens: Tokens, grid: Grid, steps: int = STEPS) -> Tensor:
    """Codes (K, C): each the mean of tokens under a Gaussian neighbourhood on the map that shrinks.

    The neighbourhood is in steps on the map, unlike the paper's code, which measured it between codes and so never
    ordered them. A node whose neighbourhood no token reaches any more stays where it was, among the tokens.
    """
    values, weights = tokens.values, tokens.weights
    codes = plane(values, weights, grid)
    first = max(FIRST_WIDTH * max(grid.height, grid.width), LAST_WIDTH)
    for step in range(steps):
        width = first * (LAST_WIDTH / first) ** (step / max(steps - 1, 1))
        neighbourhood = torch.exp(-grid.distances.float().square() / (2 * width**2))
        nearest = squared_distances(values, codes).argmin(1)
        hits = torch.zeros(grid.nodes).index_add_(0, nearest, weights)
        sums = torch.zeros_like(codes).index_add_(0, nearest, values * weights[:, None])
        reached = (neighbourhood @ hits)[:, None]
        codes = torch.where(reached > FAINTEST, (neighbourhood @ sums) / reached, codes)
    return codes


def plane(values: Tensor, weights: Tensor, grid: Grid) -> Tensor:
    """Codes (K, C) on the principal axes of tokens: a sheet on the first two, a torus on the first four.

    A sheet cannot be closed to a torus without a fold; a torus lies in four dimensions without one.
    """
    mean = (weights[:, None] * values).sum(0) / weights.sum()
    _, deviations, axes = torch.linalg.svd(
        (values - mean) * (weights / weights.sum()).sqrt()[:, None], full_matrices=False
    )
    row, column = torch.arange(grid.nodes) // grid.width, torch.arange(grid.nodes) % grid.width
    places: list[Tensor] = []
    for place, length in ((row, grid.height), (column, grid.width)):
        if grid.topology == "toroidal":
            angle = 2 * torch.pi * place / length
            places += [torch.cos(angle), torch.sin(angle)]
        else:
            places.append(place / max(length - 1, 1) * 2 - 1)
    used = min(len(places), len(deviations))
    codes: Tensor = mean + torch.stack(places[:used], 1) * deviations[:used] @ axes[:used]
    return codes


def map_between_codes(tokens: Tokens, grid: Grid, seed: int) -> Tensor:
    """Codes (K, C) as the paper's code finds them: a token at a time, a neighbourhood between codes, not on the map.

    The winner becomes the token, for the rate is 1 (exp(-epoch / 1000) later); its four neighbours, on a map without
    joined edges, move by exp(-||w_c - w_n||^2 / 2), which between codes of 32 channels is next to nothing. The paper's
    500 epochs over all tokens are 20 passes over 5,000 here, with rates as spread; its loss hardly moved in them.
    """
    values = tokens.sample(PUBLISHED_TOKENS, seed).values.numpy()
    random = np.random.default_rng(seed)
    codes = random.standard_normal((grid.nodes, values.shape[1])).astype(np.float32)
    adjacency = Grid(grid.height, grid.width, "rectangular").adjacency.numpy() > 0
    for epoch in np.linspace(0, PUBLISHED_EPOCHS - 1, PUBLISHED_PASSES):
        rate = np.exp(-epoch / 1000)
        for batch in np.array_split(random.permutation(len(values)), 4):
            winners = squared_distances(torch.from_numpy(values[batch]), torch.from_numpy(codes)).argmin(1).numpy()
            for token, winner in zip(values[batch], winners, strict=True):  # the winner is fixed for a batch
                near = adjacency[winner]
                weight = np.exp(-np.square(codes[near] - codes[winner]).sum(1, keepdims=True) / 2)
                codes[near] += rate * weight * (token - codes[near])
                codes[winner] += rate * (token - codes[winner])
    return torch.from_numpy(codes)


MAP: Difference[Callable[[Tokens, Grid, int], Tensor]] = Difference(
    "Init AE SOM",
    "the original Kohonen map",
    Choice("neighbours are weighted by the distance between codes, and hardly move: no order on the map",
           map_between_codes),
    Choice("a batch SOM from the principal plane: neighbours by steps on the map", batch_map),
)  # fmt: skip
