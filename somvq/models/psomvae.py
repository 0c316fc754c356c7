"""The PSOM-VAE: an auto-encoder whose tokens gather round the codes of a probabilistic map (paper eq. 5)."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from somvq.codebooks.grid import Grid
from somvq.codebooks.psom import PSOM, sharpen
from somvq.models.convolutions import CHANNELS, build_decoder, build_encoder
from somvq.models.output import Output

COMMITMENT = 0.25  # weight of the pull of tokens to their codes, beside a quantised reconstruction


class PSOMVAE(nn.Module):
    """Reconstruction from the unquantised z, with T-DPSOM's terms on the codebook; optionally also from the codes.

    The paper's PSOM decodes z alone, so nothing but its two terms tells the codes where tokens are. With `gamma_q` that
    share of the reconstruction is decoded from the codes themselves, without a straight-through estimate: its gradient
    reaches codes and decoder, and a commitment holds the tokens to them.

    Args:
        grid: the map.
        alpha: degrees of freedom of the assignment.
        beta: weight of the neighbour term, nats a token; DPSOM's 0.25, over the 32 channels, is RunConfig's default.
        gamma: weight of the cluster hardening, nats a token; DPSOM's 20, over the 32 channels, is RunConfig's default.
        gamma_q: share of the reconstruction from codes, 0 to 1; 0 leaves it and the commitment out.
        assignment: whether that decodes each token's nearest code (hard) or the mean of all by s (soft).
    """

    frequency: Tensor

    def __init__(
        self,
        grid: Grid,
        *,
        alpha: float,
        beta: float,
        gamma: float,
        gamma_q: float = 0.0,
        assignment: Literal["hard", "soft"] = "hard",
    ):
        super().__init__()
        self.encoder = build_encoder()
        self.decoder = build_decoder()
        self.codebook = PSOM(grid, CHANNELS, alpha)
        self.weights = {"reconstruction": 1.0 - gamma_q, "hardening": gamma, "neighbours": beta}
        if gamma_q:
            self.weights |= {"reconstruction_q": gamma_q, "commitment": COMMITMENT}
        self.gamma_q, self.assignment = gamma_q, assignment
        self.register_buffer("frequency", torch.ones(grid.nodes))  # f_j over the training set, once an epoch
        self.epoch_tokens: Tensor | None = None  # of the training set as the epoch began, (scans, tokens a scan, C)
        self.epoch_codes: Tensor | None = None  # then, (K, C)

    @torch.no_grad()
    def start_epoch(self, batches: Iterable[Tensor]) -> None:
        """Fixes the target distribution for an epoch, from the whole training set in order, in eval mode (T-DPSOM).

        What decides it is kept, not the distribution itself, which is K / C times as large.
        """
        training = self.training
        self.eval()
        tokens = [flatten(self.encoder(scans)).float().view(len(scans), -1, CHANNELS) for scans in batches]
        self.train(training)
        self.frequency.copy_(torch.stack([self.codebook.assign(part.flatten(0, 1)).sum(0) for part in tokens]).sum(0))
        self.epoch_tokens, self.epoch_codes = torch.cat(tokens), self.codebook.codes.detach().clone()

    @torch.no_grad()
    def target(self, rows: Tensor) -> Tensor:
        """t_ij of the training scans at `rows`, (N, K): the same all through an epoch."""
        assert self.epoch_tokens is not None, "start_epoch fixes the target"
        assert self.epoch_codes is not None, "start_epoch fixes the target"
        s = self.codebook.log_assign(self.epoch_tokens[rows].flatten(0, 1), self.epoch_codes).exp()
        return sharpen(s, self.frequency)

    def forward(self, scans: Tensor, rows: Tensor | None = None) -> Output:
        """One pass; `rows` are the scans' places in the training set, none when validating.

        A validation scan's target is its own, with the training set's f_j: constant for backpropagation all the same.
        """
        z = self.encoder(scans)
        reconstruction = self.decoder(z)
        tokens = flatten(z).float()
        target = sharpen(self.codebook.assign(tokens), self.frequency) if rows is None else self.target(rows)
        losses = self.codebook.losses(tokens, target)
        losses = {"reconstruction": F.mse_loss(reconstruction.float(), scans), **losses}
        if self.gamma_q:
            losses |= self.quantised_losses(scans, z)
        return Output(reconstruction, z, losses)

    def quantised_losses(self, scans: Tensor, z: Tensor) -> dict[str, Tensor]:
        """The reconstruction from codes, a mean over voxels, and the commitment, a mean over tokens and channels."""
        tokens = flatten(z).float()
        if self.assignment == "hard":
            codes = self.codebook.codes[self.codebook.nearest(tokens)]
        else:
            codes = self.codebook.mean_code(tokens)
        image = self.decoder(codes.view(len(z), *z.shape[2:], -1).movedim(-1, 1))
        return {
            "reconstruction_q": F.mse_loss(image.float(), scans),
            "commitment": F.mse_loss(tokens, codes.detach()),
        }

    def quantise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest code of every token, like `z`, and its node, (B, x, y, z)."""
        nodes = self.codebook.nearest(flatten(z).float())
        places = (len(z), *z.shape[2:])
        return self.codebook.codes[nodes].view(*places, -1).movedim(-1, 1), nodes.view(places)


def flatten(z: Tensor) -> Tensor:
    """Tokens (N, C) of `z` (B, C, x, y, z), scan by scan."""
    return z.movedim(1, -1).flatten(0, -2)
