"""How well a codebook is a map: whether nodes that are neighbours have codes that are alike, against shuffled nodes."""

# Shapes: N tokens, K nodes, C channels. Most metrics here are an offset and sums over pairs of nodes of something that
# the map says of a pair times something that the codes say of it (Pairs). To shuffle the codes over the nodes is then
# to shuffle the rows and columns of the second: 199 permutations of 256 nodes take milliseconds.

import math
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from torch import Tensor

from somvq.codebooks.grid import Grid

Matrix = NDArray[np.float64]
Neighbours = Literal[4, 8]


class Null(NamedTuple):
    """A statistic beside what it is by chance: mean and deviation over permutations, and p, the share as good.

    p = (1 + permutations at least as good) / (permutations + 1); NaN where the statistic has no value.
    """

    value: float
    mean: float
    deviation: float
    p: float


class Pairs(NamedTuple):
    """A statistic: `offset` and the sums of map * code over pairs of nodes, each (K, K), for each of `terms`."""

    terms: tuple[tuple[Matrix, Matrix], ...]
    offset: float = 0.0

    def value(self, order: NDArray[np.int64] | None = None) -> float:
        """The statistic; of the codes in another `order` (K,) over the nodes if one is given."""
        at = np.ix_(order, order) if order is not None else ...
        return self.offset + float(sum((by_map * by_code[at]).sum() for by_map, by_code in self.terms))


def permutation_null(
    statistic: Callable[[Tensor], float],
    codes: Tensor,
    *,
    permutations: int = 199,
    seed: int,
    larger_is_better: bool,
) -> Null:
    """`statistic` of `codes` (K, ...) against that of codes shuffled over the nodes."""
    orders = node_orders(len(codes), permutations, seed)
    drawn = [statistic(codes[torch.from_numpy(order).to(codes.device)]) for order in orders]
    return null_of(statistic(codes), drawn, larger_is_better=larger_is_better)


def null_of(value: float, drawn: Iterable[float], *, larger_is_better: bool = True) -> Null:
    """`value` beside those `drawn` by chance; equal but for rounding is as good."""
    drawn = np.asarray(list(drawn), dtype=np.float64)
    if math.isnan(value) or not len(drawn) or np.isnan(drawn).any():
        return Null(value, math.nan, math.nan, math.nan)
    rounding = 1e-12 * max(1.0, abs(value))
    as_good = drawn >= value - rounding if larger_is_better else drawn <= value + rounding
    return Null(value, float(drawn.mean()), float(drawn.std()), float((1 + as_good.sum()) / (1 + len(drawn))))


def node_orders(nodes: int, permutations: int, seed: int) -> list[NDArray[np.int64]]:
    """Random orders of the nodes, (K,) each."""
    generator = np.random.default_rng(seed)
    return [generator.permutation(nodes) for _ in range(permutations)]


def neighbourhood(grid: Grid, neighbours: Neighbours) -> Matrix:
    """1 where two nodes are neighbours, (K, K): by an edge (4), or by an edge or a corner (8), on a torus around it."""
    return matrix(grid.adjacency if neighbours == 4 else grid.adjacency_8)


def matrix(tensor: Tensor) -> Matrix:
    """`tensor` in float64 for numpy, wherever it is."""
    return np.asarray(tensor.detach().double().cpu().numpy())


def of_map(codes_KC: Tensor, grid: Grid) -> Matrix:
    """The codes of `grid`, (K, C), in float64 for numpy.

    Raises:
        ValueError: there are more or fewer of them than nodes.
    """
    if len(codes_KC) != grid.nodes:
        raise ValueError(f"a {grid.height} x {grid.width} map has {grid.nodes} nodes, not {len(codes_KC)}")
    return matrix(codes_KC)


# neighbours


def topographic_error(distances_NK: Tensor, grid: Grid, neighbours: Neighbours = 4) -> float:
    """Share of tokens whose two nearest nodes are no neighbours, of 4 or of 8 (Kiviluoto 1996); NaN without tokens."""
    return topographic_error_of(distances_NK.topk(2, dim=1, largest=False).indices, grid, neighbours)


def topographic_error_of(nodes_N2: Tensor, grid: Grid, neighbours: Neighbours = 4) -> float:
    """The same from the two nearest nodes of each token, as `nearest_two` finds them."""
    near = torch.from_numpy(neighbourhood(grid, neighbours)).to(nodes_N2.device)
    return float((near[nodes_N2[:, 0], nodes_N2[:, 1]] == 0).double().mean())


def error_pairs(nodes_N2: Tensor, grid: Grid, neighbours: Neighbours) -> Pairs:
    """Topographic error: 1 less the share of tokens, by their two nearest nodes, whose nodes are neighbours."""
    first, second = nodes_N2.cpu().numpy().T
    tokens = np.bincount(first * grid.nodes + second, minlength=grid.nodes**2).reshape(grid.nodes, grid.nodes)
    with np.errstate(invalid="ignore"):
        return Pairs(((-neighbourhood(grid, neighbours), tokens / np.float64(len(first))),), 1.0)


def topographic_error_null(
    nodes_N2: Tensor, grid: Grid, neighbours: Neighbours = 4, *, permutations: int = 199, seed: int
) -> Null:
    """Topographic error against that of nodes that changed places on the map; smaller is better."""
    pairs = error_pairs(nodes_N2, grid, neighbours)
    drawn = map(pairs.value, node_orders(grid.nodes, permutations, seed))
    return null_of(topographic_error_of(nodes_N2, grid, neighbours), drawn, larger_is_better=False)


def neighbour_correlation(codes_KC: Tensor, grid: Grid, *, centred: bool) -> float:
    """Mean Pearson r over channels of each pair of neighbouring codes; NaN if any code does not vary over channels.

    `centred` removes the codebook's mean first: a mean that all codes share makes any two codes alike. A codebook
    collapsed to one point then has no r (NaN).
    """
    return correlation_pairs(codes_KC, grid, centred=centred).value()


def correlation_pairs(codes_KC: Tensor, grid: Grid, *, centred: bool) -> Pairs:
    """Neighbour correlation, as sums over pairs."""
    codes = of_map(codes_KC, grid)
    largest = np.abs(codes).max()
    codes = codes - codes.mean(0) if centred else codes
    codes = codes - codes.mean(1, keepdims=True)
    length = np.linalg.norm(codes, axis=1, keepdims=True)
    length[length <= 1e-12 * largest] = np.nan  # what rounding leaves of a code that does not vary
    codes = codes / length
    weights = np.zeros((grid.nodes, grid.nodes))
    weights[tuple(grid.edges.numpy().T)] = 1 / len(grid.edges) if len(grid.edges) else np.nan
    return Pairs(((weights, codes @ codes.T),), 0.0 if len(grid.edges) else math.nan)


def morans_i(codes_KC: Tensor, grid: Grid) -> float:
    """Moran's I of the codes on the map, no node beside itself: 1 if neighbours are the same, -1 / (K - 1) by chance.

    K / W sum_ij w_ij <x_i, x_j> / sum_i <x_i, x_i> with x less its mean over nodes, w the four neighbours, W = sum w:
    one ratio for all channels, so each counts by its variance. NaN where all codes are the same.
    """
    return moran_pairs(codes_KC, grid, matrix(grid.adjacency)).value()


def morans_i_published(codes_KC: Tensor, grid: Grid) -> float:
    """Moran's I as the paper's code computes it: weights exp(-steps), every node beside itself too.

    Self-pairs alone make 0.235 of shuffled codes on a rectangular map of 16 x 16, 0.211 on a toroidal one.
    """
    return moran_pairs(codes_KC, grid, np.exp(-matrix(grid.distances))).value()


def moran_pairs(codes_KC: Tensor, grid: Grid, weights: Matrix) -> Pairs:
    """Moran's I by `weights` (K, K), as sums over pairs."""
    codes = of_map(codes_KC, grid)
    centred = codes - codes.mean(0)
    spread = np.square(centred).sum()
    if spread <= 1e-24 * np.square(codes).sum() or not weights.any():
        return Pairs((), math.nan)
    return Pairs(((weights * (grid.nodes / weights.sum()), centred @ centred.T / spread),))


# ranks


def by_rank(table: Matrix, distances: Matrix) -> Matrix:
    """Of each pair of nodes, what `table` (K - 1,) holds for the rank of the second among those nearest to the first.

    Nodes equally near share the ranks they take together: each gets the mean over them, which is what breaking ties at
    random gives on average. 0 of a node and itself.
    """
    distances = distances.copy()
    np.fill_diagonal(distances, np.inf)
    sums = np.concatenate([[0.0], np.cumsum(table), [0.0]])
    values = np.zeros_like(distances)
    for row, of_node in enumerate(distances):
        ordered = np.sort(of_node)
        below, upto = (np.searchsorted(ordered, of_node, side) for side in ("left", "right"))
        values[row] = (sums[upto] - sums[below]) / (upto - below)
    np.fill_diagonal(values, 0)
    return values


def map_distances(grid: Grid) -> Matrix:
    """Euclidean distance of nodes on the map, in steps, (K, K); on a torus the shorter way."""
    return np.asarray(np.hypot(*map(matrix, grid.steps)))


def trustworthiness(codes_KC: Tensor, grid: Grid, neighbours: int = 5) -> float:
    """Whether nodes that are nearest on the map have codes that are nearest: 1 if all, about 0.5 by chance.

    1 - 2 / (K k (2 K - 3 k - 1)) sum_i sum_j max(0, r(i, j) - k) over the k `neighbours` j of i on the map, r the rank
    of j's code among those nearest to i's (Venna & Kaski 2001). Distances are Euclidean on both sides. Nodes (and
    codes) equally near count as ties broken at random do on average: `by_rank`.

    Raises:
        ValueError: the map has not more than twice as many nodes as `neighbours`.
    """
    return trustworthiness_pairs(codes_KC, grid, neighbours).value()


def trustworthiness_pairs(codes_KC: Tensor, grid: Grid, neighbours: int) -> Pairs:
    """Trustworthiness, as sums over pairs."""
    codes, nodes = of_map(codes_KC, grid), grid.nodes
    if nodes <= 2 * neighbours:
        raise ValueError(
            f"trustworthiness of {neighbours} neighbours needs more than {2 * neighbours} nodes, not {nodes}"
        )
    ranks = np.arange(1.0, nodes)
    scale = 2 / (nodes * neighbours * (2 * nodes - 3 * neighbours - 1))
    nearest = by_rank((ranks <= neighbours).astype(np.float64), map_distances(grid))
    return Pairs(((-scale * nearest, by_rank(np.maximum(ranks - neighbours, 0), cdist(codes, codes))),), 1.0)


def topographic_product(codes_KC: Tensor, grid: Grid) -> float:
    """Whether the map has as many dimensions as the codes: below 0 too few, above 0 too many, 0 if orders agree.

    The mean of log P3 over nodes and their k-th neighbours (Bauer & Pawelzik 1992), distances Euclidean on both sides,
    ties as in `by_rank`. Codes that coincide are as far apart as the nearest two that do not; if all do: NaN. It is the
    difference of two violations, and near 0 too where both are large and alike: no measure of order. That is
    `topographic_violation`.
    """
    return product_pairs(codes_KC, grid, -1).value()


def topographic_violation(codes_KC: Tensor, grid: Grid) -> float:
    """How much the order of distances from a node differs between codes and map: 0 if nowhere, else above 0.

    The topographic product's two parts, which have opposite signs, added by size: the mean of (log P1 - log P2) / 2 in
    Bauer & Pawelzik's terms. Ours; ties and codes that coincide as there.
    """
    return product_pairs(codes_KC, grid, 1).value()


def product_pairs(codes_KC: Tensor, grid: Grid, sign: Literal[-1, 1]) -> Pairs:
    """The topographic product (sign -1) or violation (1), as sums over pairs.

    log P3(j, k) is the mean over l <= k of half the logs of Q1(j, l) and Q2(j, l), so rank l counts by
    h(l) = sum_{k >= l} 1 / (2 k), and each of Q1, Q2 is a distance at the rank that codes or map give a node.
    """
    codes, nodes = of_map(codes_KC, grid), grid.nodes
    apart, steps = cdist(codes, codes), map_distances(grid)
    if not (apart > 0).any():
        return Pairs((), math.nan)
    log_apart, log_steps = (np.log(np.maximum(d, d[d > 0].min())) for d in (apart, steps))
    table = np.cumsum(1 / (2 * np.arange(1.0, nodes))[::-1])[::-1] / (nodes * (nodes - 1))
    by_codes, by_map = by_rank(table, apart), by_rank(table, steps)
    codes_alone, map_alone = float((by_codes * log_apart).sum()), float((by_map * log_steps).sum())
    return Pairs(((by_map, log_apart), (sign * log_steps, by_codes)), -codes_alone - sign * map_alone)


# all of them


def map_nulls(
    codes_KC: Tensor,
    grid: Grid,
    nodes_N2: Tensor | None = None,
    *,
    neighbours: int = 5,
    permutations: int = 199,
    seed: int,
) -> dict[str, Null]:
    """Every metric of the map beside its null; topographic errors if `nodes_N2` says the tokens' two nearest nodes.

    Codes are shuffled over the nodes, by the same `permutations` for all. The topographic product is good near 0, its
    null that of its size. Trustworthiness is left out of a map of not more than twice as many nodes as `neighbours`.
    """
    larger = {
        "neighbour_correlation": correlation_pairs(codes_KC, grid, centred=True),
        "neighbour_correlation_raw": correlation_pairs(codes_KC, grid, centred=False),
        "morans_i": moran_pairs(codes_KC, grid, matrix(grid.adjacency)),
        "morans_i_published": moran_pairs(codes_KC, grid, np.exp(-matrix(grid.distances))),
    }
    if grid.nodes > 2 * neighbours:
        larger["trustworthiness"] = trustworthiness_pairs(codes_KC, grid, neighbours)
    smaller = {"topographic_violation": product_pairs(codes_KC, grid, 1)}
    if nodes_N2 is not None:
        smaller["topographic_error"] = error_pairs(nodes_N2, grid, 4)
        smaller["topographic_error_8"] = error_pairs(nodes_N2, grid, 8)
    orders = node_orders(grid.nodes, permutations, seed)
    nulls = {name: null_of(pairs.value(), map(pairs.value, orders)) for name, pairs in larger.items()}
    for name, pairs in smaller.items():
        nulls[name] = null_of(pairs.value(), map(pairs.value, orders), larger_is_better=False)
    product = product_pairs(codes_KC, grid, -1)
    size = null_of(abs(product.value()), map(abs, map(product.value, orders)), larger_is_better=False)
    return nulls | {"topographic_product": size._replace(value=product.value())}
