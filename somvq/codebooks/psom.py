"""The probabilistic self-organising map of T-DPSOM (Manduchi et al. 2021), codebook of the PSOM-VAE."""

# Shapes: N tokens, C channels of a token, K nodes.
# All of it keeps float32, under autocast too: the distance is a small difference of large squares, and in bfloat16's
# 8 bits one token in six was nearest to another code (tokens of mean 3 and spread 1, 256 codes).

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from somvq.codebooks.grid import Grid


def squared_distances(tokens_NC: Tensor, codes_KC: Tensor) -> Tensor:
    """Squared Euclidean distance of every token to every code, (N, K)."""
    with full_precision(tokens_NC):
        cross = tokens_NC @ codes_KC.T
    return (tokens_NC.square().sum(1, keepdim=True) + codes_KC.square().sum(1) - 2 * cross).clamp_min(0)


def full_precision(tensor: Tensor) -> torch.autocast:
    """Where `tensor` is, products keep the precision of their factors, whatever surrounds them."""
    return torch.autocast(tensor.device.type, enabled=False)


class PSOM(nn.Module):
    """Codes on a map; every token belongs to every node, by Student's t.

    Args:
        grid: the map.
        channels: of a code (C).
        alpha: degrees of freedom; the smaller, the heavier the tails of the assignment.
    """

    adjacency: Tensor

    def __init__(self, grid: Grid, channels: int, alpha: float):
        super().__init__()
        self.grid, self.alpha = grid, alpha
        self.codes = nn.Parameter(torch.randn(grid.nodes, channels))
        self.register_buffer("adjacency", grid.adjacency, persistent=False)

    def log_assign(self, tokens_NC: Tensor, codes_KC: Tensor) -> Tensor:
        """log s_ij: how much token i belongs to node j, rows of s summing to 1, (N, K); paper eq. 3b.

        The distance is squared, as in T-DPSOM and in the paper's code, not as the paper prints it.
        """
        kernel_NK = torch.log1p(squared_distances(tokens_NC, codes_KC) / self.alpha)
        return F.log_softmax(-(self.alpha + 1) / 2 * kernel_NK, dim=1)

    def assign(self, tokens_NC: Tensor) -> Tensor:
        """s_ij, (N, K)."""
        return self.log_assign(tokens_NC, self.codes).exp()

    def nearest(self, tokens_NC: Tensor) -> Tensor:
        """The node whose code is nearest to each token, (N,)."""
        return squared_distances(tokens_NC, self.codes).argmin(1)

    def mean_code(self, tokens_NC: Tensor) -> Tensor:
        """The mean of all codes by each token's s, (N, C)."""
        with full_precision(tokens_NC):
            return self.assign(tokens_NC) @ self.codes

    def losses(self, tokens_NC: Tensor, target_NK: Tensor) -> dict[str, Tensor]:
        """The codebook's two terms of paper eq. 5, each a mean over tokens, in nats."""
        log_s_NK = self.log_assign(tokens_NC, self.codes)
        return {"hardening": hardening(target_NK, log_s_NK), "neighbours": self.neighbour_term(tokens_NC, log_s_NK)}

    def neighbour_term(self, tokens_NC: Tensor, log_s_NK: Tensor) -> Tensor:
        """-mean_i sum_j sg(s_ij) sum_{e in N(j)} log s_ie, sg(z) in log s_ie: it moves only the codes (T-DPSOM)."""
        log_s_of_codes_NK = self.log_assign(tokens_NC.detach(), self.codes)
        with full_precision(tokens_NC):
            log_s_of_neighbours_NK = log_s_of_codes_NK @ self.adjacency
        return -(log_s_NK.detach().exp() * log_s_of_neighbours_NK).sum(1).mean()


def sharpen(s_NK: Tensor, frequency_K: Tensor) -> Tensor:
    """The target t_ij = (s_ij^2 / f_j) / sum_j'(s_ij'^2 / f_j'), f_j = sum_i s_ij of the training set (paper eq. 4)."""
    weighted_NK = s_NK.square() / frequency_K.clamp_min(torch.finfo(s_NK.dtype).tiny)
    return weighted_NK / weighted_NK.sum(1, keepdim=True)


def hardening(target_NK: Tensor, log_s_NK: Tensor) -> Tensor:
    """Cluster hardening: KL(t || s), the mean over tokens; its gradient reaches encoder and codes, not t (T-DPSOM)."""
    return F.kl_div(log_s_NK, target_NK.detach(), reduction="batchmean")
