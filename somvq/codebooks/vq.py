"""Vector quantisation (van den Oord et al. 2017), the codebook of the VQ-VAE: codes in no order."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from somvq.codebooks.averages import MovingAverages
from somvq.codebooks.codebook import NO_CARE, Care, Codebook, Picked, sums_by_node
from somvq.codebooks.grid import Grid
from somvq.readings import Reading


class VQ(Codebook):
    """Paper eq. 1: codes follow their tokens, and tokens are held to their codes.

    Args:
        grid: has as many nodes as there are codes.
        channels: of a code.
        alpha: weight of the codebook term; none: codes are moving averages, as in the paper's code.
        beta: weight of the commitment.
        care: of codes, as an epoch begins.
        reading: how moving averages start.
    """

    def __init__(
        self, grid: Grid, channels: int, *, alpha: float | None, beta: float, care: Care = NO_CARE,
        reading: Reading = "corrected",
    ):  # fmt: skip
        terms = {"commitment": beta} if alpha is None else {"codebook": alpha, "commitment": beta}
        super().__init__(grid, channels, weights=terms, care=care)
        codes = torch.randn(grid.nodes, channels)
        self.averages = MovingAverages(codes, reading) if alpha is None else None
        if self.averages is None:
            self.codes = nn.Parameter(codes)
        else:
            self.register_buffer("codes", codes)

    def forward(self, tokens_NC: Tensor, rows: Tensor | None = None) -> Picked:
        """The nearest codes; where codes are moving averages, training moves them after they were picked."""
        nodes = self.nearest(tokens_NC)
        codes_NC = self.codes[nodes]
        losses = {"commitment": commitment(tokens_NC, codes_NC)}
        if self.averages is None:
            losses["codebook"] = commitment(codes_NC, tokens_NC)
        elif self.training:
            self.learn(tokens_NC.detach(), nodes)
        return Picked(codes_NC, nodes, losses)

    @torch.no_grad()
    def learn(self, tokens_NC: Tensor, nodes: Tensor) -> None:
        """Moves the averages one batch on, and the codes with them."""
        assert self.averages is not None
        self.codes.copy_(self.averages.update(*self.spread(*sums_by_node(nodes, tokens_NC, self.grid.nodes))))

    def spread(self, hits_K: Tensor, sums_KC: Tensor) -> tuple[Tensor, Tensor]:
        """What each node learns of the tokens of all: here, its own."""
        return hits_K, sums_KC

    @torch.no_grad()
    def place(self, codes_KC: Tensor) -> None:
        """Puts the codes where an initialiser wants them, and their averages with them."""
        self.move(torch.arange(self.grid.nodes, device=self.codes.device), codes_KC.to(self.codes.device))

    @torch.no_grad()
    def reorder(self, order: Tensor) -> None:
        """Gives node k the code that node `order[k]` has, and its averages."""
        super().reorder(order)
        if self.averages is not None:
            self.averages.reorder(order)

    def move(self, nodes: Tensor, codes: Tensor) -> None:
        """Puts the codes of `nodes` elsewhere, and their averages with them."""
        super().move(nodes, codes)
        if self.averages is not None:
            self.averages.follow(nodes, codes)


def commitment(moved_NC: Tensor, held_NC: Tensor) -> Tensor:
    """Squared distance per channel, the mean over tokens; only `moved` has a gradient.

    Tokens moved to codes: the commitment. Codes moved to tokens: the codebook term. A weight w on it is w / C on a
    squared distance between vectors.
    """
    return F.mse_loss(moved_NC, held_NC.detach())
