"""What an initialiser may start from."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

LEAST_WEIGHT = 0.25  # of a token without any brain: background needs a code or two, not a hundred
MOST_TOKENS = 50_000  # enough for any map here, and seconds on a CPU

Kind = Literal["ae", "vae"]


class Tokens(NamedTuple):
    """Tokens of the training set, in order."""

    values: Tensor  # (N, C)
    brain: Tensor  # share of brain in the voxels of each, (N,)

    @property
    def weights(self) -> Tensor:
        """How much each token counts where codes are placed, (N,)."""
        return LEAST_WEIGHT + (1 - LEAST_WEIGHT) * self.brain

    def sample(self, most: int, seed: int) -> "Tokens":
        """At most `most` of them on the CPU, drawn with `seed`."""
        order = torch.randperm(len(self.values), generator=torch.Generator().manual_seed(seed))[:most]
        return Tokens(self.values.cpu().float()[order], self.brain.cpu().float()[order])


class Start(NamedTuple):
    """`weights` are those of trained auto-encoders, by kind.

    `tokens(encoder, rows)` are those of the whole training set, or of its first `rows` scans, in eval mode.
    """

    seed: int
    tokens: Callable[[nn.Module, int | None], Tokens]
    batch: int = 32  # scans in one
    weights: Mapping[Kind, Mapping[str, Tensor]] = {}
