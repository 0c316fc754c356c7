"""The probabilistic self-organising map of T-DPSOM (Manduchi et al. 2021), codebook of the PSOM-VAE (paper eq. 5)."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from somvq.codebooks.codebook import NO_CARE, Care, OnMap, Picked, full_precision, squared_distances
from somvq.codebooks.grid import Neighbourhood
from somvq.codebooks.som import neighbour_term
from somvq.codebooks.vq import commitment as distance_to_codes
from somvq.readings import Choice, Difference, Reading


def cut(tokens_NC: Tensor) -> Tensor:
    """Tokens as constants."""
    return tokens_NC.detach()


def keep(tokens_NC: Tensor) -> Tensor:
    """Tokens as they are."""
    return tokens_NC


def hardening_of_sum(target_NK: Tensor, log_s_NK: Tensor) -> Tensor:
    """KL(t || s), summed over tokens and not divided; t has a gradient too."""
    return (target_NK * (target_NK.clamp_min(torch.finfo(target_NK.dtype).tiny).log() - log_s_NK)).sum()


def hardening_of_mean(target_NK: Tensor, log_s_NK: Tensor) -> Tensor:
    """KL(t || s), the mean over tokens, nats; its gradient reaches tokens and codes, not t."""
    return F.kl_div(log_s_NK, target_NK.detach(), reduction="batchmean")


def neighbours_of_all(log_s_NK: Tensor, log_s_of_codes_NK: Tensor, others_KK: Tensor) -> Tensor:
    """-mean_i sum_j s_ij sum_e log s_ie over the e whose neighbour j is; nothing is constant."""
    with full_precision(log_s_NK):
        return -(log_s_NK.exp() * (log_s_NK @ others_KK)).sum(1).mean()


def neighbours_of_codes(log_s_NK: Tensor, log_s_of_codes_NK: Tensor, others_KK: Tensor) -> Tensor:
    """-mean_i sum_j sg(s_ij) sum_{e in N(j)} log s_ie, with the tokens constant in log s_ie: it moves codes only."""
    with full_precision(log_s_NK):
        return -(log_s_NK.detach().exp() * (log_s_of_codes_NK @ others_KK.T)).sum(1).mean()


TOKENS: Difference[Callable[[Tensor], Tensor]] = Difference(
    "Eq. (3b): gradient to z",
    "silent",
    Choice("every distance is of constant tokens: neither term of eq. (5) reaches the encoder", cut),
    Choice("cluster hardening moves tokens and codes (DPSOM)", keep),
)
TARGET_OF_EPOCH: Difference[bool] = Difference(
    "Eq. (4): t_ij",
    "f_j is a sum over all i'",
    Choice("made of each batch, and with a gradient", False),
    Choice("made of the whole training set as an epoch begins, and constant (DPSOM)", True),
)
HARDENING: Difference[Callable[[Tensor, Tensor], Tensor]] = Difference(
    "Eq. (5): first sum",
    "a sum over tokens",
    Choice("a sum over all tokens of a batch, 28,512 of them", hardening_of_sum),
    Choice("a mean over tokens (DPSOM)", hardening_of_mean),
)
SMOOTHING: Difference[Callable[[Tensor, Tensor, Tensor], Tensor]] = Difference(
    "Eq. (5): second sum",
    "a mean over tokens",
    Choice("a mean; s_ij has a gradient, which is least where s is uniform", neighbours_of_all),
    Choice("a mean; s_ij and the tokens are constant, so that it moves codes only (DPSOM)", neighbours_of_codes),
)


class PSOM(OnMap):
    """Codes on a map; every token belongs to every node, by Student's t.

    The paper's PSOM decodes tokens alone, so nothing but its two terms tells the codes where tokens are. With an
    `assignment`, codes are decoded too: their reconstruction teaches them, and a commitment holds the tokens to them.

    Args:
        neighbourhood: the map, and N(j).
        channels: of a code (C).
        alpha: degrees of freedom; the smaller, the heavier the tails of the assignment.
        weights: of "hardening" (gamma) and "neighbours" (beta); of "order" where the SOM's own neighbour term (eq. 3),
            which moves codes to their neighbours' tokens, is beside eq. 5; of "commitment" where codes are decoded.
        assignment: whether each token's nearest code is decoded (hard) or the mean of all by s (soft).
        care: of codes, as an epoch begins.
        reading: of eq. 3b, 4 and 5.
    """

    frequency: Tensor

    def __init__(
        self, neighbourhood: Neighbourhood, channels: int, *, alpha: float, weights: dict[str, float],
        assignment: Literal["hard", "soft"] = "hard", care: Care = NO_CARE, reading: Reading = "corrected",
    ):  # fmt: skip
        super().__init__(neighbourhood.grid, channels, weights=weights, care=care)
        self.neighbourhood, self.alpha, self.reading = neighbourhood, alpha, reading
        self.assignment = assignment
        self.codes = nn.Parameter(torch.randn(self.grid.nodes, channels))
        self.register_buffer("frequency", torch.ones(self.grid.nodes))  # f_j over the training set, once an epoch
        self.epoch_tokens: Tensor | None = None  # of the training set as the epoch began, (M, T, C)
        self.epoch_codes: Tensor | None = None  # then, (K, C)

    @property
    def wants_tokens(self) -> bool:
        """Its target is made of them."""
        return super().wants_tokens or TARGET_OF_EPOCH.of(self.reading)

    def start_epoch(self, tokens_MTC: Tensor | None, progress: float) -> None:
        """Also fixes the target distribution for an epoch (T-DPSOM).

        What decides the target is kept, not the target itself, which is K / C times as large.
        """
        super().start_epoch(tokens_MTC, progress)
        if tokens_MTC is not None and TARGET_OF_EPOCH.of(self.reading):
            frequency = torch.zeros_like(self.frequency)
            for tokens in tokens_MTC:
                frequency += self.assign(tokens).detach().sum(0)
            self.frequency.copy_(frequency)
            self.epoch_tokens, self.epoch_codes = tokens_MTC, self.codes.detach().clone()

    def target(self, s_NK: Tensor, rows: Tensor | None) -> Tensor:
        """t_ij, (N, K): of the training scans at `rows` the same all through an epoch.

        A validation scan's is its own, with the training set's f_j: constant for backpropagation all the same.
        """
        if not TARGET_OF_EPOCH.of(self.reading):
            return sharpen(s_NK, s_NK.sum(0))
        if rows is None:
            return sharpen(s_NK.detach(), self.frequency)
        assert self.epoch_tokens is not None, "start_epoch fixes the target"
        assert self.epoch_codes is not None, "start_epoch fixes the target"
        with torch.no_grad():
            s = self.log_assign(self.epoch_tokens[rows].flatten(0, 1), self.epoch_codes).exp()
            return sharpen(s, self.frequency)

    def forward(self, tokens_NC: Tensor, rows: Tensor | None = None) -> Picked:
        """The codes to decode, with the terms of eq. 5; `rows` as in `target`."""
        log_s_NK = self.log_assign(TOKENS.of(self.reading)(tokens_NC), self.codes)
        log_s_of_codes_NK = self.log_assign(tokens_NC.detach(), self.codes)
        losses = {
            "hardening": HARDENING.of(self.reading)(self.target(log_s_NK.exp(), rows), log_s_NK),
            "neighbours": SMOOTHING.of(self.reading)(log_s_NK, log_s_of_codes_NK, self.neighbourhood.like_four),
        }
        nodes = log_s_NK.detach().argmax(1)
        soft = self.assignment == "soft"
        codes_NC = self.mean_code(log_s_NK) if soft else self.codes[nodes]
        if "order" in self.weights:
            losses["order"] = neighbour_term(tokens_NC.detach(), nodes, self.codes, self.neighbourhood.with_self)
        if "commitment" in self.weights:
            losses["commitment"] = distance_to_codes(tokens_NC, codes_NC)
        return Picked(codes_NC, nodes, losses, soft)

    def log_assign(self, tokens_NC: Tensor, codes_KC: Tensor) -> Tensor:
        """log s_ij: how much token i belongs to node j, rows of s summing to 1, (N, K); paper eq. 3b.

        The distance is squared, as in T-DPSOM and in the paper's code, not as the paper prints it.
        """
        kernel_NK = torch.log1p(squared_distances(tokens_NC, codes_KC) / self.alpha)
        return F.log_softmax(-(self.alpha + 1) / 2 * kernel_NK, dim=1)

    def assign(self, tokens_NC: Tensor) -> Tensor:
        """s_ij, (N, K)."""
        return self.log_assign(tokens_NC, self.codes).exp()

    def mean_code(self, log_s_NK: Tensor) -> Tensor:
        """The mean of all codes by each token's s, (N, C)."""
        with full_precision(log_s_NK):
            return log_s_NK.exp() @ self.codes


def sharpen(s_NK: Tensor, frequency_K: Tensor) -> Tensor:
    """The target t_ij = (s_ij^2 / f_j) / sum_j'(s_ij'^2 / f_j'), f_j = sum_i s_ij of the training set (paper eq. 4)."""
    weighted_NK = s_NK.square() / frequency_K.clamp_min(torch.finfo(s_NK.dtype).tiny)
    return weighted_NK / weighted_NK.sum(1, keepdim=True)
