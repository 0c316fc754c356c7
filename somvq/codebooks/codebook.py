"""What every codebook is: codes, the rule that picks them, and the terms of the loss that teach them."""

# Shapes: N tokens, C channels of a token, K nodes; M scans of T tokens.
# All of it keeps float32, under autocast too: the distance is a small difference of large squares, and in bfloat16's
# 8 bits one token in six was nearest to another code (tokens of mean 3 and spread 1, 256 codes).

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from somvq.codebooks.grid import Grid, Neighbourhood


class Care(NamedTuple):
    """What is done to codes as an epoch begins, with all tokens of the training set; nothing by default.

    A code that fewer than `revive` tokens are nearest to is moved among them. With `swap`, codes of a map exchange
    their nodes where that makes neighbours of those that are nearest to the same tokens. The optimiser's moments stay
    with the node, and fade in some ten steps.
    """

    revive: int = 0
    swap: bool = False


NO_CARE = Care()


class Picked(NamedTuple):
    """What a codebook makes of N tokens; `losses` are its terms, before their weights."""

    codes: Tensor  # to be decoded, (N, C)
    nodes: Tensor  # the nearest, (N,)
    losses: dict[str, Tensor]
    soft: bool = False  # whether `codes` are means of many codes


class Codebook(nn.Module, ABC):
    """Codes (K, C), laid out on `grid`; a VQ-VAE's only to be drawn.

    Args:
        grid: the map.
        channels: of a code (C).
        weights: how much each term of the loss counts.
        care: of codes, as an epoch begins.
    """

    codes: Tensor

    def __init__(self, grid: Grid, channels: int, *, weights: dict[str, float], care: Care):
        super().__init__()
        self.grid, self.channels, self.weights, self.care = grid, channels, weights, care

    @property
    def wants_tokens(self) -> bool:
        """Whether `start_epoch` needs the training set's tokens."""
        return self.care.revive > 0 or self.care.swap

    def start_epoch(self, tokens_MTC: Tensor | None, progress: float) -> None:
        """Called before an epoch, with the training set's tokens if they are wanted; `progress` goes from 0 to 1."""
        if tokens_MTC is not None and self.care.revive:
            self.revive_dead(tokens_MTC)
        if tokens_MTC is not None and self.care.swap:
            self.reorder(swaps(count_pairs(tokens_MTC, self.codes), self.grid.adjacency.numpy()))

    @abstractmethod
    def forward(self, tokens_NC: Tensor, rows: Tensor | None = None) -> Picked:
        """Codes and losses of tokens; `rows` are their scans' places in the training set, none when validating."""

    @torch.no_grad()
    def nearest(self, tokens_NC: Tensor) -> Tensor:
        """The node whose code is nearest to each token, (N,)."""
        return squared_distances(tokens_NC, self.codes).argmin(1)

    @torch.no_grad()
    def place(self, codes_KC: Tensor) -> None:
        """Puts the codes where an initialiser wants them."""
        self.codes.copy_(codes_KC)

    @torch.no_grad()
    def revive_dead(self, tokens_MTC: Tensor) -> None:
        """Moves the codes that hardly any token is nearest to."""
        hits = sum(torch.bincount(self.nearest(tokens), minlength=self.grid.nodes) for tokens in tokens_MTC)
        dead = torch.nonzero(torch.as_tensor(hits) < self.care.revive).flatten()
        if len(dead):
            self.move(dead, self.homes(dead, tokens_MTC.flatten(0, 1)))

    @torch.no_grad()
    def reorder(self, order: Tensor) -> None:
        """Gives node k the code that node `order[k]` has, (K,)."""
        self.codes.copy_(self.codes[order.to(self.codes.device)])

    def homes(self, dead: Tensor, tokens_NC: Tensor) -> Tensor:
        """Where `dead` nodes go, (dead, C): to tokens drawn at random."""
        drawn = torch.randint(len(tokens_NC), (len(dead),)).to(tokens_NC.device)
        return tokens_NC[drawn]

    def move(self, nodes: Tensor, codes: Tensor) -> None:
        """Puts the codes of `nodes` elsewhere."""
        self.codes.data[nodes] = codes


class OnMap(Codebook):
    """What codebooks share whose codes lie on a map."""

    neighbourhood: Neighbourhood

    def start_epoch(self, tokens_MTC: Tensor | None, progress: float) -> None:
        """Also shrinks the neighbourhood."""
        self.neighbourhood.shrink(progress)
        super().start_epoch(tokens_MTC, progress)

    def homes(self, dead: Tensor, tokens_NC: Tensor) -> Tensor:
        """Where `dead` nodes go: among their neighbours."""
        return homes_on_map(self.neighbourhood.others, self.codes.detach(), dead, tokens_NC)


def homes_on_map(others_KK: Tensor, codes_KC: Tensor, dead: Tensor, tokens_NC: Tensor) -> Tensor:
    """Where `dead` nodes of a map go, (dead, C): each to a token of its own near the mean of its neighbours' codes.

    It keeps the map's order, which tokens drawn at random would break; a token for each, by Hungarian assignment, since
    nodes that died together have much the same neighbours. 4,096 tokens are looked at.
    """
    looked_at = tokens_NC[torch.randperm(len(tokens_NC))[:4096].to(tokens_NC.device)]
    looked_at = looked_at.repeat(-(-len(dead) // len(looked_at)), 1)  # should there be fewer tokens than dead nodes
    weights = others_KK[dead]
    means = (weights @ codes_KC) / weights.sum(1, keepdim=True).clamp_min(1e-12)
    _, chosen = linear_sum_assignment(squared_distances(means, looked_at).cpu().numpy())
    return looked_at[torch.from_numpy(chosen).to(looked_at.device)]


@torch.no_grad()
def count_pairs(tokens_MTC: Tensor, codes_KC: Tensor) -> npt.NDArray[np.float64]:
    """How many tokens any two codes are the two nearest of, (K, K), symmetric."""
    nodes = len(codes_KC)
    counts = torch.zeros(nodes * nodes, device=codes_KC.device)
    for tokens in tokens_MTC:
        first, second = squared_distances(tokens, codes_KC).topk(2, largest=False).indices.T
        counts += torch.bincount(first * nodes + second, minlength=nodes * nodes)
    pairs = counts.view(nodes, nodes).double().cpu().numpy()
    return np.asarray(pairs + pairs.T)


def swaps(pairs_KK: npt.NDArray[np.float64], adjacency_KK: npt.NDArray[np.float32]) -> Tensor:
    """Which node's code each node is to have, (K,), so that `pairs_KK` of codes are neighbours more often.

    The swap that gains most, again and again, until none gains: a local search of a quadratic assignment, which moves
    codes about the map and leaves all else of a codebook as it is. LSOR (Ouyang et al. 2023) swaps too, once, at random
    and by distance between codes. The gain of a swap is exact: 2 (C_ij + C_ji - C_ii - C_jj) + 4 A_ij P_ij, C = A P.
    """
    order = np.arange(len(pairs_KK))
    while True:
        ordered = pairs_KK[np.ix_(order, order)]
        with_neighbours = adjacency_KK @ ordered
        own = np.diag(with_neighbours)
        gains = with_neighbours + with_neighbours.T - own - own[:, None] + 2 * adjacency_KK * ordered
        best, other = np.unravel_index(gains.argmax(), gains.shape)
        if gains[best, other] <= 0.5:  # counts are whole: less is rounding
            return torch.from_numpy(order)
        order[[best, other]] = order[[other, best]]


def squared_distances(tokens_NC: Tensor, codes_KC: Tensor) -> Tensor:
    """Squared Euclidean distance of every token to every code, (N, K)."""
    with full_precision(tokens_NC):
        cross = tokens_NC @ codes_KC.T
    return (tokens_NC.square().sum(1, keepdim=True) + codes_KC.square().sum(1) - 2 * cross).clamp_min(0)


def full_precision(tensor: Tensor) -> torch.autocast:
    """Where `tensor` is, products keep the precision of their factors, whatever surrounds them."""
    return torch.autocast(tensor.device.type, enabled=False)


def sums_by_node(nodes: Tensor, tokens_NC: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """How many tokens each of `count` nodes has (K,), and their sum (K, C)."""
    hits = torch.bincount(nodes, minlength=count).to(tokens_NC.dtype)
    return hits, tokens_NC.new_zeros(count, tokens_NC.shape[1]).index_add_(0, nodes, tokens_NC)
