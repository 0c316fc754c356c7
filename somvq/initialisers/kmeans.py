"""Codes at k-means centres of tokens."""

from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from somvq.codebooks.codebook import squared_distances
from somvq.codebooks.grid import Grid
from somvq.initialisers.kohonen import batch_som
from somvq.initialisers.start import MOST_TOKENS, Tokens
from somvq.readings import Choice, Difference


def centres_in_any_order(tokens: Tokens, grid: Grid, seed: int) -> Tensor:
    """Centres (K, C) as scikit-learn's defaults of the paper's time find them, background included."""
    return cluster(tokens.values.cpu().float(), None, grid.nodes, seed, starts=10)


def centres_on_the_map(tokens: Tokens, grid: Grid, seed: int) -> Tensor:
    """k-means++ centres (K, C) of a sample of tokens, weighted by their share of brain, laid out on the map.

    k-means knows no map: its centres come in arbitrary order. Each is given the node whose code in a batch SOM of the
    same tokens it is nearest to, by Hungarian assignment: neighbours start alike, at the same quantisation error.
    """
    tokens = tokens.sample(MOST_TOKENS, seed)
    centres = cluster(tokens.values, tokens.weights, grid.nodes, seed, starts=1)
    nodes, order = linear_sum_assignment(squared_distances(batch_som(tokens, grid), centres).numpy())
    assert (nodes == np.arange(len(nodes))).all()
    return centres[order]


def cluster(values: Tensor, weights: Tensor | None, count: int, seed: int, *, starts: int) -> Tensor:
    """`count` k-means centres (K, C) of `values` (N, C), the best of `starts`."""
    from sklearn.cluster import KMeans  # here: it takes a second to load, which most runs need not wait

    clusters = KMeans(count, n_init=starts, random_state=seed)
    clusters.fit(values.numpy(), sample_weight=None if weights is None else weights.numpy())
    return torch.from_numpy(np.asarray(clusters.cluster_centers_, np.float32))


CENTRES: Difference[Callable[[Tokens, Grid, int], Tensor]] = Difference(
    "Init AE KM: centres",
    "standard k-means of the AE's output",
    Choice("of one batch of tokens, background included, in arbitrary order on the map", centres_in_any_order),
    Choice("of the whole training set, weighted by brain, ordered on the map", centres_on_the_map),
)
