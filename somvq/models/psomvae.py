"""The PSOM-VAE: an auto-encoder whose tokens gather round the codes of a probabilistic map (paper eq. 5)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from somvq.codebooks.grid import Grid
from somvq.codebooks.psom import PSOM, sharpen
from somvq.models.convolutions import CHANNELS, build_decoder, build_encoder
from somvq.models.output import Output


class PSOMVAE(nn.Module):
    """Reconstruction from the unquantised z, with T-DPSOM's terms on the codebook.

    Args:
        grid: the map.
        alpha: degrees of freedom of the assignment.
        beta: weight of the neighbour term, nats a token; DPSOM's 0.25, over the 32 channels, is RunConfig's default.
        gamma: weight of the cluster hardening, nats a token; DPSOM's 20, over the 32 channels, is RunConfig's default.
    """

    frequency: Tensor

    def __init__(self, grid: Grid, *, alpha: float, beta: float, gamma: float):
        super().__init__()
        self.encoder = build_encoder()
        self.decoder = build_decoder()
        self.codebook = PSOM(grid, CHANNELS, alpha)
        self.weights = {"reconstruction": 1.0, "hardening": gamma, "neighbours": beta}
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
        return Output(reconstruction, z, {"reconstruction": F.mse_loss(reconstruction.float(), scans), **losses})

    def quantise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest code of every token, like `z`, and its node, (B, x, y, z)."""
        nodes = self.codebook.nearest(flatten(z).float())
        places = (len(z), *z.shape[2:])
        return self.codebook.codes[nodes].view(*places, -1).movedim(-1, 1), nodes.view(places)


def flatten(z: Tensor) -> Tensor:
    """Tokens (N, C) of `z` (B, C, x, y, z), scan by scan."""
    return z.movedim(1, -1).flatten(0, -2)
