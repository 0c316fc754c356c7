"""Whether places that are near in the brain are near on the map: the paper's aim, measured against shuffles."""

# Shapes: B scans of X x Y x Z tokens (T in all), N tokens, K nodes. Steps: between tokens, 16 voxels each; between
# nodes, along rows and columns of the map (Manhattan). Masks are of the tokens that count: the brain's, for one.

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import pdist, squareform
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional as F

from somvq.codebooks.grid import Grid
from somvq.metrics.maps import Matrix, Null, null_of

TISSUES = ("background", "csf", "gm", "wm")

Nodes = NDArray[np.int64]
Mask = NDArray[np.bool_]


def on_cpu(nodes: Tensor, mask: Tensor | None) -> tuple[Nodes, Mask]:
    """Nodes and mask, (B, T) each, for numpy; without a mask, every token counts."""
    nodes_BT = nodes.detach().flatten(1).cpu().numpy().astype(np.int64)
    if mask is None:
        return nodes_BT, np.ones(nodes_BT.shape, dtype=bool)
    return nodes_BT, mask.detach().flatten(1).cpu().numpy().astype(bool)


# distances


def mantel(a: ArrayLike, b: ArrayLike, *, permutations: int = 199, seed: int) -> Null:
    """Spearman correlation of two distance matrices of the same items, (N, N) or condensed (Mantel 1967).

    The null is of the items of `b` in random order; larger is better. NaN where either has one distance only.
    """
    a, b = (squareform(d, checks=False) if np.ndim(d) == 2 else np.asarray(d) for d in (a, b))
    ranks_a, ranks_b = standardised(rankdata(a)), squareform(standardised(rankdata(b)))
    upper = np.triu_indices(len(ranks_b), 1)
    generator = np.random.default_rng(seed)
    orders = (generator.permutation(len(ranks_b)) for _ in range(permutations))
    drawn = [float(ranks_a @ ranks_b[np.ix_(order, order)][upper]) for order in orders]
    return null_of(float(ranks_a @ ranks_b[upper]), drawn)


def standardised(values: Matrix) -> Matrix:
    """`values` less their mean, of length 1, so that products are correlations; NaN if they are all the same."""
    centred = values - values.mean()
    length = np.linalg.norm(centred)
    return centred / length if length > 1e-12 * np.abs(values).max() else np.full_like(centred, np.nan)


def ranks_of_steps(steps: Nodes) -> Matrix:
    """Ranks of small whole numbers, ties the mean of theirs: rankdata without its sorting."""
    counts = np.bincount(steps)
    return (np.cumsum(counts) - (counts - 1) / 2)[steps]


def anatomical_locality(
    nodes_BXYZ: Tensor,
    grid: Grid,
    mask_BXYZ: Tensor | None = None,
    *,
    tokens: int = 200,
    shuffle: Literal["tokens", "nodes"] = "tokens",
    permutations: int = 199,
    seed: int,
) -> Null:
    """Spearman correlation of two tokens' distance in the scan and on the map, within each scan, the mean over scans.

    Distance in the scan is Euclidean, in tokens. Over the pairs of at most `tokens` random tokens of each scan, those
    of the mask. The null is a Mantel test that shuffles, and so asks:

    tokens: which token has which node, within each scan. Do nodes have to do with place at all?
    nodes: where on the map each node lies. Does the map order them by place? Any codebook whose nodes cover connected
    regions passes the first test, map or not; only a map passes this one.

    A scan of fewer than three tokens, or of one node, says nothing and is left out; NaN if none is left.
    """
    generator = np.random.default_rng(seed)
    apart = grid.distances.numpy().astype(np.int64)
    samples = list(sample_tokens(*on_cpu(nodes_BXYZ, mask_BXYZ), nodes_BXYZ.shape[1:], tokens, generator))

    def correlation(shuffled: str) -> float:
        order = generator.permutation(grid.nodes) if shuffled == "nodes" else np.arange(grid.nodes)
        found = []
        for nodes, ranks, (first, second) in samples:
            of_tokens = order[generator.permutation(nodes) if shuffled == "tokens" else nodes]
            found.append(ranks @ standardised(ranks_of_steps(apart[of_tokens[first], of_tokens[second]])))
        return float(np.mean(found)) if found else math.nan

    value = correlation("nothing")
    return null_of(value, [correlation(shuffle) for _ in range(permutations)] if samples else [])


def sample_tokens(
    nodes_BT: Nodes, mask_BT: Mask, shape: tuple[int, ...], tokens: int, generator: np.random.Generator
) -> list[tuple[Nodes, Matrix, tuple[Nodes, Nodes]]]:
    """Of each scan that says anything: nodes of random tokens, ranks of their distances, and which pairs those are."""
    samples = []
    for nodes, mask in zip(nodes_BT, mask_BT, strict=True):
        inside = np.flatnonzero(mask)
        chosen = generator.permutation(inside)[:tokens]
        if len(chosen) > 2 and len(np.unique(nodes[chosen])) > 1:
            places = np.stack(np.unravel_index(chosen, shape), axis=1)
            ranks = standardised(rankdata(pdist(places)))
            samples.append((nodes[chosen], ranks, np.triu_indices(len(chosen), 1)))
    return samples


# agreement


def across_subject_agreement(
    nodes_BXYZ: Tensor, grid: Grid, mask_BXYZ: Tensor | None = None, *, permutations: int = 199, seed: int
) -> Null:
    """How much nearer on the map two scans are at the same place than at random places: 1 the same, 0 by chance.

    1 - (mean steps between the nodes of two scans at one place) / (mean steps between them at random places of each),
    over pairs of different scans and the places that both masks hold. The null shuffles each scan's nodes over its
    places. Scans have to be aligned. NaN with one scan, with no place in common, or with one node.
    """
    nodes, mask = on_cpu(nodes_BXYZ, mask_BXYZ)
    apart = grid.distances.numpy().astype(np.float32)  # whole numbers: float32 is exact
    chance = chance_apart(nodes, mask, apart)
    if not chance > 0:
        return null_of(math.nan, [])
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(permutations):
        drawn.append(1 - mean_apart(shuffle_places(nodes, mask, generator), mask, apart) / chance)
    return null_of(1 - mean_apart(nodes, mask, apart) / chance, drawn)


def hits_by_row(nodes_BT: Nodes, mask_BT: Mask, K: int) -> NDArray[np.float32]:
    """How many tokens of each row each node won, (B, K), of those in the mask."""
    row, place = np.nonzero(mask_BT)
    hits = np.bincount(row * K + nodes_BT[row, place], minlength=len(nodes_BT) * K)
    return hits.reshape(-1, K).astype(np.float32)


def mean_apart(nodes_BT: Nodes, mask_BT: Mask, apart_KK: NDArray[np.float32]) -> float:
    """Mean of `apart_KK` between the nodes of two different scans at the same place; NaN if there is no such pair.

    From how often each node won at each place: h' D h counts each pair of scans twice and each scan with itself, 0.
    """
    hits_TK = hits_by_row(nodes_BT.T, mask_BT.T, len(apart_KK))
    scans_T = mask_BT.sum(0)
    pairs = float((scans_T * (scans_T - 1)).sum())
    return float(((hits_TK @ apart_KK) * hits_TK).sum(dtype=np.float64)) / pairs if pairs else math.nan


def chance_apart(nodes_BT: Nodes, mask_BT: Mask, apart_KK: NDArray[np.float32]) -> float:
    """Mean of `apart_KK` between two different scans, each at a random place, as often as they have one in common."""
    hits_BK = hits_by_row(nodes_BT, mask_BT, len(apart_KK)).astype(np.float64)
    share_BK = hits_BK / np.maximum(mask_BT.sum(1, keepdims=True), 1)
    common_BB = mask_BT.astype(np.float64) @ mask_BT.T
    np.fill_diagonal(common_BB, 0)
    pairs = common_BB.sum()
    return float((common_BB * (share_BK @ apart_KK @ share_BK.T)).sum() / pairs) if pairs else math.nan


def shuffle_places(nodes_BT: Nodes, mask_BT: Mask, generator: np.random.Generator) -> Nodes:
    """Each scan's nodes in random order over the places of its mask."""
    shuffled = nodes_BT.copy()
    for of_scan, mask in zip(shuffled, mask_BT, strict=True):
        of_scan[mask] = generator.permutation(of_scan[mask])
    return shuffled


def same_node_share(nodes_BXYZ: Tensor, mask_BXYZ: Tensor | None = None) -> float:
    """How often two scans have the same node at the same place, over pairs of scans and the places both masks hold.

    NaN with one scan or with no place in common.
    """
    nodes, mask = on_cpu(nodes_BXYZ, mask_BXYZ)
    return 1 - mean_apart(nodes, mask, 1 - np.eye(int(nodes.max()) + 1, dtype=np.float32))


def position_baseline(nodes_BXYZ: Tensor, mask_BXYZ: Tensor | None = None) -> Tensor:
    """What place alone says: each token gets the node that the other scans have there most often, like `nodes_BXYZ`.

    Measured as the nodes are (`mutual_information`, for one), it says how much of their value is that of place. The
    lowest of equally frequent nodes; its own where no other scan's mask holds the place.
    """
    nodes, mask = on_cpu(nodes_BXYZ, mask_BXYZ)
    hits_TK = hits_by_row(nodes.T, mask.T, int(nodes.max()) + 1)
    places = np.arange(nodes.shape[1])
    found = nodes.copy()
    for row, (of_scan, inside) in enumerate(zip(nodes, mask, strict=True)):
        others_TK = hits_TK.copy()
        others_TK[places, of_scan] -= inside
        found[row] = np.where(others_TK.any(1), others_TK.argmax(1), of_scan)
    return torch.from_numpy(found).to(nodes_BXYZ.device).view(nodes_BXYZ.shape)


# what is known of a token


def tissue_of_tokens(scans_B1XYZ: Tensor, mask_B1XYZ: Tensor, stride: int = 16) -> Tensor:
    """The most frequent of TISSUES in each token's block of `stride` voxels a side, by its index, (B, T).

    Brain voxels are parted by intensity, into CSF, GM and WM of T1, by each scan's own two thresholds (Otsu 1979, for
    three classes); the rest is background. The lower index of equals. A scan without brain is all background.

    Raises:
        ValueError: a scan's brain has fewer than three intensities.
    """
    labels = torch.zeros_like(scans_B1XYZ, dtype=torch.long)
    for scan, mask, of_scan in zip(scans_B1XYZ.detach().float(), mask_B1XYZ.bool(), labels, strict=True):
        if mask.any():
            of_scan[mask] = 1 + torch.bucketize(scan[mask], otsu_thresholds(scan[mask]), right=True)
    shares = [F.avg_pool3d((labels == tissue).float(), stride) for tissue in range(len(TISSUES))]
    return torch.cat(shares, dim=1).argmax(1).flatten(1)


def otsu_thresholds(intensities: Tensor) -> Tensor:
    """The two thresholds that part `intensities` (N,) into three classes, (2,)."""
    from skimage.filters import threshold_multiotsu

    thresholds = threshold_multiotsu(intensities.cpu().numpy(), classes=3)  # type: ignore[no-untyped-call]
    return torch.as_tensor(thresholds, dtype=intensities.dtype, device=intensities.device)


def mutual_information(
    nodes_N: Tensor,
    labels_N: Tensor,
    *,
    groups: Tensor | None = None,
    permutations: int = 199,
    seed: int,
) -> Null:
    """Mutual information of nodes and labels over the entropy of the labels: 0 none, 1 if the node tells the label.

    It is never 0 by chance and grows with the number of nodes: judge it by its null, of labels shuffled over tokens.
    What is one label for a whole subject (age) is shuffled over subjects: give `groups`, the scan of each token; tokens
    of a scan are no independent witnesses. NaN without tokens and where there is one label only.

    Raises:
        ValueError: with `groups`, a group has two labels.
    """
    nodes, labels = as_codes(nodes_N), as_codes(labels_N)
    if not len(nodes):
        return null_of(math.nan, [])
    generator = np.random.default_rng(seed)
    if groups is None:
        table = joint_counts(labels, nodes)
        drawn = [information(joint_counts(generator.permutation(labels), nodes)) for _ in range(permutations)]
        return null_of(information(table), drawn)
    nodes_of_group = joint_counts(as_codes(groups), nodes)
    group, label = np.nonzero(joint_counts(as_codes(groups), labels))
    if len(group) != len(nodes_of_group):
        raise ValueError(f"{len(nodes_of_group)} groups have {len(group)} labels: each may have one")
    groups_of_label = np.eye(int(label.max()) + 1)[label].T
    drawn = [information(generator.permutation(groups_of_label, axis=1) @ nodes_of_group) for _ in range(permutations)]
    return null_of(information(groups_of_label @ nodes_of_group), drawn)


def as_codes(values: Tensor) -> Nodes:
    """Which of its different values each of `values` is, from 0, (N,)."""
    return np.asarray(np.unique(values.detach().flatten().cpu().numpy(), return_inverse=True)[1], dtype=np.int64)


def joint_counts(rows: Nodes, columns: Nodes) -> Matrix:
    """How often each pair of values occurs, (different rows, different columns)."""
    width = int(columns.max(initial=-1)) + 1
    height = int(rows.max(initial=-1)) + 1
    return np.bincount(rows * width + columns, minlength=height * width).reshape(height, width).astype(np.float64)


def information(counts: Matrix) -> float:
    """Mutual information of rows and columns by the entropy of the rows; NaN if that is 0."""
    of_rows = entropy(counts.sum(1))
    if not of_rows > 0:
        return math.nan
    return max(0.0, of_rows + entropy(counts.sum(0)) - entropy(counts.ravel())) / of_rows


def entropy(counts: Matrix) -> float:
    """Entropy of what occurs `counts` times, in nats."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


def factor_information(
    nodes_BT: Tensor,
    factor_B: Tensor,
    mask_BT: Tensor | None = None,
    *,
    bins: int = 3,
    permutations: int = 199,
    seed: int,
) -> Null:
    """What the nodes of a scan's tokens tell of a factor of its subject, such as age: `mutual_information` over scans.

    The factor is cut at its quantiles into `bins`, unless it has no more values than that. Scans whose factor is not
    finite are left out.
    """
    mask_BT = torch.ones_like(nodes_BT, dtype=torch.bool) if mask_BT is None else mask_BT.bool()
    factor_B = factor_B.double().to(nodes_BT.device)
    values = factor_B[factor_B.isfinite()].unique()
    if len(values) > bins:
        inner = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=values.device)[1:-1]
        labels_B = torch.bucketize(factor_B, factor_B[factor_B.isfinite()].quantile(inner), right=True)
    else:
        labels_B = torch.bucketize(factor_B, values)
    scan, place = torch.nonzero(mask_BT & factor_B.isfinite()[:, None], as_tuple=True)
    return mutual_information(nodes_BT[scan, place], labels_B[scan], groups=scan, permutations=permutations, seed=seed)
