"""What every codebook is: codes, the rule that picks them, and the terms of the loss that teach them."""

# Shapes: N tokens, C channels of a token, K nodes; M scans of T tokens.
# All of it keeps float32, under autocast too: the distance is a small difference of large squares, and in bfloat16's
# 8 bits one token in six was nearest to another code (tokens of mean 3 and spread 1, 256 codes).

from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from somvq.codebooks.grid import Grid


class Picked(NamedTuple):
    """What a codebook makes of N tokens; `losses` are its terms, before their weights."""

    codes: Tensor  # to be decoded, (N, C)
    nodes: Tensor  # the nearest, (N,)
    losses: dict[str, Tensor]
    soft: bool = False  # whether `codes` are means of many codes


class Codebook(nn.Module):
    """Codes (K, C), laid out on `grid`; a VQ-VAE's only to be drawn.

    Args:
        grid: the map.
        channels: of a code (C).
        weights: how much each term of the loss counts.
        revive: a code that fewer tokens of the training set are nearest to is moved among them as an epoch begins; 0
            leaves all where they are.
    """

    codes: Tensor

    def __init__(self, grid: Grid, channels: int, *, weights: dict[str, float], revive: int = 0):
        super().__init__()
        self.grid, self.channels, self.weights, self.revive = grid, channels, weights, revive

    @property
    def wants_tokens(self) -> bool:
        """Whether `start_epoch` needs the training set's tokens."""
        return self.revive > 0

    def start_epoch(self, tokens_MTC: Tensor | None, progress: float) -> None:
        """Called before an epoch, with the training set's tokens if they are wanted; `progress` goes from 0 to 1."""
        if self.revive and tokens_MTC is not None:
            self.revive_dead(tokens_MTC)

    def forward(self, tokens_NC: Tensor, rows: Tensor | None) -> Picked:
        """Codes and losses of tokens; `rows` are their scans' places in the training set, none when validating."""
        raise NotImplementedError

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
        dead = torch.nonzero(torch.as_tensor(hits) < self.revive).flatten()
        if len(dead):
            self.move(dead, self.homes(dead, tokens_MTC.flatten(0, 1)))

    def homes(self, dead: Tensor, tokens_NC: Tensor) -> Tensor:
        """Where `dead` nodes go, (dead, C): to tokens drawn at random."""
        drawn = torch.randint(len(tokens_NC), (len(dead),)).to(tokens_NC.device)
        return tokens_NC[drawn]

    def move(self, nodes: Tensor, codes: Tensor) -> None:
        """Puts the codes of `nodes` elsewhere."""
        self.codes.data[nodes] = codes


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
