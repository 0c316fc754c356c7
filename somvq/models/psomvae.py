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
        self.targets: Tensor | None = None  # t_ij, (training scans, tokens a scan, K); made again every epoch, not kept

    @torch.no_grad()
    def start_epoch(self, batches: Iterable[Tensor]) -> None:
        """Fixes the target distribution for an epoch, from the whole training set in order, in eval mode (T-DPSOM)."""
        training = self.training
        self.eval()
        s = torch.cat([self.assign(self.encoder(scans)) for scans in batches])
        self.train(training)
        self.frequency.copy_(s.sum((0, 1)))
        self.targets = sharpen(s.flatten(0, 1), self.frequency).view_as(s)

    def assign(self, z: Tensor) -> Tensor:
        """s_ij of each scan's tokens, (B, tokens, K)."""
        return self.codebook.assign(flatten(z).float()).view(len(z), -1, self.codebook.grid.nodes)

    def forward(self, scans: Tensor, rows: Tensor | None = None) -> Output:
        """One pass; `rows` are the scans' places in the training set, none when validating.

        A validation scan's target is its own, with the training set's f_j: constant for backpropagation all the same.
        """
        z = self.encoder(scans)
        reconstruction = self.decoder(z)
        tokens = flatten(z).float()
        if rows is None or self.targets is None:
            target = sharpen(self.codebook.assign(tokens), self.frequency)
        else:
            target = self.targets[rows].flatten(0, 1)
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
