"""The self-organising map of the SOM-VAE (Fortuin et al. 2018; paper eq. 3): neighbours move together."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from somvq.codebooks.codebook import NO_CARE, Care, OnMap, Picked, full_precision, sums_by_node
from somvq.codebooks.grid import Neighbourhood
from somvq.codebooks.vq import VQ, commitment
from somvq.readings import Choice, Difference, Reading


def both_at_once(tokens_NC: Tensor, codes_NC: Tensor) -> dict[str, Tensor]:
    """One term without a stopped gradient, weight alpha: squared distance per channel, mean over tokens."""
    return {"commitment": F.mse_loss(codes_NC, tokens_NC)}


def each_by_itself(tokens_NC: Tensor, codes_NC: Tensor) -> dict[str, Tensor]:
    """Two terms of the same value, one that moves codes (alpha) and one that moves tokens (commitment)."""
    return {"codebook": commitment(codes_NC, tokens_NC), "commitment": commitment(tokens_NC, codes_NC)}


ATTRACTION: Difference[Callable[[Tensor, Tensor], dict[str, Tensor]]] = Difference(
    "Eq. (3): alpha",
    "alpha ||z_e - z_q||^2",
    Choice("one term that moves tokens and codes alike", both_at_once),
    Choice("two terms, each with a weight of its own (alpha, commitment): equal weights give the published gradient",
           each_by_itself),
)  # fmt: skip


class SOM(OnMap, VQ):
    """Codes on a map. With `alpha` and `beta` they learn by gradient, with neither as a Kohonen-VAE's, by averages.

    A Kohonen-VAE's averages (Irie et al. 2024) take in the neighbours' tokens too, 4 or 8 neighbours with a weight that
    falls as 1 / (1 + 0.1 step), a Gaussian neighbourhood with its own.

    Args:
        neighbourhood: the map, and which of its nodes move together.
        channels: of a code.
        alpha: weight of the codebook term (published: of the one term that moves both); none: averages.
        beta: weight of the neighbour term; none with averages.
        commitment: weight of the commitment; none where `alpha` moves both.
        care: of codes, as an epoch begins.
        reading: of eq. 3, and how averages start.
    """

    step: Tensor

    def __init__(
        self, neighbourhood: Neighbourhood, channels: int, *, alpha: float | None, beta: float | None,
        commitment: float | None, care: Care = NO_CARE, reading: Reading = "corrected",
    ):  # fmt: skip
        super().__init__(neighbourhood.grid, channels, alpha=alpha, beta=0.0, care=care, reading=reading)
        self.neighbourhood, self.reading = neighbourhood, reading
        given = {"codebook": alpha, "commitment": commitment, "neighbours": beta}
        if alpha is not None and ATTRACTION.of(reading) is both_at_once:
            given = {"commitment": alpha, "neighbours": beta}
        self.weights = {name: weight for name, weight in given.items() if weight is not None}
        self.register_buffer("step", torch.zeros(()))  # of the averages

    def forward(self, tokens_NC: Tensor, rows: Tensor | None = None) -> Picked:
        """The nearest codes, with the terms of eq. 3."""
        if self.averages is not None:
            return super().forward(tokens_NC, rows)
        nodes = self.nearest(tokens_NC)
        codes_NC = self.codes[nodes]
        term = neighbour_term(tokens_NC.detach(), nodes, self.codes, self.neighbourhood.with_self)
        return Picked(codes_NC, nodes, {**ATTRACTION.of(self.reading)(tokens_NC, codes_NC), "neighbours": term})

    def spread(self, hits_K: Tensor, sums_KC: Tensor) -> tuple[Tensor, Tensor]:
        """Each node learns of its neighbours' tokens, of fewer as it ages."""
        others = self.neighbourhood.others
        if self.neighbourhood.kind != "gaussian":
            others = others / (1 + 0.1 * self.step)
        self.step += 1
        with full_precision(hits_K):
            return hits_K + others.T @ hits_K, sums_KC + others.T @ sums_KC


def neighbour_term(tokens_NC: Tensor, nodes: Tensor, codes_KC: Tensor, weights_KK: Tensor) -> Tensor:
    """Squared distance (summed over channels) of each token to the codes round its node, the mean over those pairs.

    `weights_KK[j, k]` says how much node k moves with node j; the mean is by these weights. Tokens count as constants:
    it moves codes only. Every pair's distance follows from how many tokens a node has, their sum and their squares, so
    that one product of K x K and K x C replaces a loop over tokens. All is taken from the tokens' mean, where the
    squares are smallest.
    """
    centre = tokens_NC.mean(0)
    tokens_NC, codes_KC = tokens_NC - centre, codes_KC - centre
    hits_K, sums_KC = sums_by_node(nodes, tokens_NC, len(codes_KC))
    squares_K = torch.zeros_like(hits_K).index_add_(0, nodes, tokens_NC.square().sum(1))
    with full_precision(tokens_NC):
        reached_K, sums_KC = weights_KK.T @ hits_K, weights_KK.T @ sums_KC
        own = (weights_KK @ torch.ones_like(hits_K)) @ squares_K
    apart = (reached_K * codes_KC.square().sum(1)).sum() - 2 * (codes_KC * sums_KC).sum() + own
    return apart / reached_K.sum()
