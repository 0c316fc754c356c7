"""How a codebook is used, and how its codes lie among the tokens."""

# Shapes: B scans, T tokens of a scan, N tokens, K nodes, C channels. Distances are Euclidean, in float64 and as
# differences (not as |a|^2 + |b|^2 - 2ab): codes that coincide are equally near, and a token on a code is 0 from it.

import math
from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK = 2**22  # distances held at a time: 32 MB


def count_hits(nodes: Tensor, K: int) -> Tensor:
    """How many tokens each of K nodes won, (K,), from the winners of any shape; `nodes[foreground]` for those alone."""
    return torch.bincount(nodes.flatten(), minlength=K)


def codes_used(hits_K: Tensor) -> int:
    """How many codes won a token."""
    return int((hits_K > 0).sum())


def dead_codes(hits_K: Tensor) -> int:
    """How many codes won no token."""
    return int((hits_K == 0).sum())


def codes_per_scan(nodes_BT: Tensor, K: int, mask_BT: Tensor | None = None) -> Tensor:
    """How many of K codes won a token of each scan, of those in `mask_BT` alone if there is one, (B,)."""
    weights_BT = torch.ones_like(nodes_BT) if mask_BT is None else mask_BT.to(nodes_BT.dtype)
    hits_BK = torch.zeros(len(nodes_BT), K, dtype=nodes_BT.dtype, device=nodes_BT.device)
    return (hits_BK.scatter_add_(1, nodes_BT, weights_BT) > 0).sum(1)


def perplexity(hits_K: Tensor) -> float:
    """exp of the entropy of code use: K if all codes win evenly, 1 if one wins all, NaN if none won."""
    share = hits_K.double() / hits_K.sum()
    return float(torch.exp(torch.special.entr(share).sum()))


def assignment_entropy(s_NK: Tensor) -> float:
    """Entropy of each token's assignment over ln K, the mean over tokens: 0 to 1; NaN for one code."""
    return float(torch.special.entr(s_NK.detach().double()).sum(1).mean() / math.log(s_NK.shape[1]))


def distances_in_chunks(points_NC: Tensor, others_MC: Tensor) -> Iterator[Tensor]:
    """Distances of some points at a time to all others, (n, M) with n M <= CHUNK, in the points' order."""
    others = others_MC.detach().double()
    for part in points_NC.detach().split(max(1, CHUNK // max(1, len(others)))):
        yield torch.cdist(part.double(), others, compute_mode="donot_use_mm_for_euclid_dist")


def nearest_two(tokens_NC: Tensor, codes_KC: Tensor) -> tuple[Tensor, Tensor]:
    """Distances to the two nearest codes and their nodes, (N, 2) each, nearest first; of equals the lower node first.

    Raises:
        ValueError: there are fewer than two codes.
    """
    if len(codes_KC) < 2:
        raise ValueError(f"a codebook of {len(codes_KC)} has no two nearest codes")
    found = []
    for distance in distances_in_chunks(tokens_NC, codes_KC):
        first = distance.argmin(1, keepdim=True)
        second = distance.scatter(1, first, math.inf).argmin(1, keepdim=True)
        nodes = torch.cat([first, second], dim=1)
        found.append((distance.gather(1, nodes), nodes))
    return torch.cat([part for part, _ in found]), torch.cat([nodes for _, nodes in found])


def quantisation_error(tokens_NC: Tensor, codes_KC: Tensor) -> float:
    """Mean distance of a token to its nearest code (Kohonen; MiniSom's definition)."""
    return float(nearest_two(tokens_NC, codes_KC)[0][:, 0].mean())


def relative_quantisation_error(tokens_NC: Tensor, codes_KC: Tensor) -> float:
    """Squared distances to the nearest codes over squared distances to the tokens' mean, each summed.

    0 if every token is a code, 1 if the codebook says no more than the tokens' mean would, above 1 if less. NaN where
    tokens do not vary.
    """
    return relative_error(tokens_NC, nearest_two(tokens_NC, codes_KC)[0][:, 0])


def relative_error(tokens_NC: Tensor, apart_N: Tensor) -> float:
    """The same from each token's distance to its nearest code, as `nearest_two` finds them."""
    tokens = tokens_NC.detach().double()
    spread = float((tokens - tokens.mean(0)).square().sum())
    return float(apart_N.square().sum()) / spread if spread else math.nan


def mixing(tokens_NC: Tensor, codes_KC: Tensor, neighbours: int = 5) -> float:
    """Of the nearest neighbours of each code, among tokens and the other codes together, the share that are tokens.

    Codes drawn from the tokens give N / (N + K - 1) on average; a codebook that lies apart from them gives 0. Equally
    near neighbours of which only some are among the nearest count by their share, so no order decides.

    Raises:
        ValueError: there are fewer than `neighbours`.
    """
    return share_of_others(codes_KC, tokens_NC, neighbours)


def token_overlap(
    tokens_NC: Tensor, codes_KC: Tensor, neighbours: int = 5, *, sample: int = 2000, seed: int = 0
) -> float:
    """Of the nearest neighbours of each token, the share that are codes, over its chance K / (n + K - 1).

    The other way round from `mixing`, over `sample` (n) random tokens: about 1 if codes lie where tokens are as densely
    as tokens do, 0 if they lie elsewhere, above 1 if they lie in their midst, as means do. What two-sample tests by
    nearest neighbours count (Schilling 1986).
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(tokens_NC), generator=generator)[:sample].to(tokens_NC.device)
    chance = len(codes_KC) / (len(chosen) + len(codes_KC) - 1)
    return share_of_others(tokens_NC[chosen], codes_KC, neighbours) / chance


def share_of_others(points: Tensor, others: Tensor, neighbours: int) -> float:
    """Of the nearest neighbours of each of `points`, among `others` and the other points, the share that are others."""
    if len(points) + len(others) - 1 < neighbours:
        raise ValueError(f"{len(points)} points and {len(others)} others: nobody has {neighbours} neighbours")
    shares, start = [], 0
    for distance in distances_in_chunks(points, torch.cat([others, points])):
        own = torch.arange(len(distance), device=distance.device)
        distance[own, len(others) + start + own] = math.inf  # no point is its own neighbour
        limit = distance.kthvalue(neighbours, dim=1, keepdim=True).values
        nearer, tied = distance < limit, distance == limit
        open_places = neighbours - nearer.sum(1)
        of_tied = tied[:, : len(others)].sum(1) / tied.sum(1)
        shares.append((nearer[:, : len(others)].sum(1) + open_places * of_tied) / neighbours)
        start += len(distance)
    return float(torch.cat(shares).double().mean())


def norm_ratio(tokens_NC: Tensor, codes_KC: Tensor) -> float:
    """The largest norm of a code over the largest of a token: far above 1 where codes run away."""
    return float(codes_KC.detach().double().norm(dim=1).max() / tokens_NC.detach().double().norm(dim=1).max())
