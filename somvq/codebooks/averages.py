"""Codes as moving averages of the tokens that chose them, in place of a gradient (van den Oord et al. 2017, app. A)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from somvq.readings import Choice, Difference, Reading

DECAY = 0.99
EPSILON = 1e-5  # of the Laplace smoothing of sizes


def start_empty(codes_KC: Tensor) -> tuple[Tensor, Tensor]:
    """Sizes of 0 and sums that know nothing of the codes: what no token of the first batch chose flies to 1e5."""
    return torch.zeros(len(codes_KC)), torch.randn_like(codes_KC)


def start_at_codes(codes_KC: Tensor) -> tuple[Tensor, Tensor]:
    """Every code is the average of one token: itself."""
    return torch.ones(len(codes_KC)), codes_KC.detach().clone()


START: Difference[Callable[[Tensor], tuple[Tensor, Tensor]]] = Difference(
    "EMA: where averages start",
    "an exponential moving average update",
    Choice("sizes of 0 and random sums: codes unused in the first batch are lost for good, and k-means is undone",
           start_empty),
    Choice("size 1 and the code itself, again whenever codes are placed or revived", start_at_codes),
)  # fmt: skip
SMOOTHED_SIZES_ARE_KEPT: Difference[bool] = Difference(
    "EMA: smoothing of sizes",
    "silent",
    Choice("the smoothed sizes are written back into the average", True),
    Choice("only the division is smoothed, the average itself is not", False),
)


class MovingAverages(nn.Module):
    """The running size (K,) and sum (K, C) of each code's tokens."""

    sizes: Tensor
    sums: Tensor

    def __init__(self, codes_KC: Tensor, reading: Reading):
        super().__init__()
        self.reading = reading
        sizes, sums = START.of(reading)(codes_KC)
        self.register_buffer("sizes", sizes)
        self.register_buffer("sums", sums)

    @torch.no_grad()
    def follow(self, nodes: Tensor, codes: Tensor) -> None:
        """Codes of `nodes` were moved: their averages begin anew there, unless the reading forgets them."""
        if START.of(self.reading) is start_at_codes:
            self.sizes[nodes] = 1
            self.sums[nodes] = codes

    @torch.no_grad()
    def reorder(self, order: Tensor) -> None:
        """Node k has what node `order[k]` had."""
        order = order.to(self.sizes.device)
        self.sizes.copy_(self.sizes[order])
        self.sums.copy_(self.sums[order])

    @torch.no_grad()
    def update(self, hits_K: Tensor, sums_KC: Tensor) -> Tensor:
        """The codes (K, C) after one batch with `hits_K` tokens of sum `sums_KC` at each node."""
        self.sizes.lerp_(hits_K, 1 - DECAY)
        self.sums.lerp_(sums_KC, 1 - DECAY)
        total = self.sizes.sum()
        smoothed = (self.sizes + EPSILON) / (total + len(self.sizes) * EPSILON) * total
        if SMOOTHED_SIZES_ARE_KEPT.of(self.reading):
            self.sizes.copy_(smoothed)
        return self.sums / smoothed[:, None]
