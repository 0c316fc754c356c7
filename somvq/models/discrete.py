"""The auto-encoder with a codebook: VQ-VAE, SOM-VAE and PSOM-VAE, by the codebook that it has."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from somvq.codebooks.codebook import Codebook
from somvq.codebooks.estimators import Estimate
from somvq.models.ae import AE
from somvq.models.convolutions import CHANNELS
from somvq.models.output import Output


class DiscreteAE(nn.Module):
    """Scans are decoded from tokens (x'_e), from their codes (x'_q), or from both (paper eq. 1, 2, 3 and 5).

    Args:
        body: the auto-encoder; a VAE makes the latent continuous.
        codebook: codes and the rule that picks them.
        gamma_q: share of the reconstruction from codes, 0 to 1; gamma_e is the rest.
        estimate: how x'_q is differentiated (codebooks/estimators.py).
    """

    def __init__(self, body: AE, codebook: Codebook, *, gamma_q: float, estimate: Estimate):
        super().__init__()
        self.body, self.codebook = body, codebook
        self.gamma_q, self.estimate = gamma_q, estimate
        shares = {"reconstruction": 1.0 - gamma_q, "reconstruction_q": gamma_q}
        self.weights = {**body.weights, **shares, **codebook.weights}
        self.weights = {name: weight for name, weight in self.weights.items() if name not in shares or weight}

    @torch.no_grad()
    def start_epoch(self, batches: Iterable[Tensor], progress: float = 0.0) -> None:
        """Tells the codebook that an epoch begins, with the training set's tokens in eval mode if it asks for them."""
        if not self.codebook.wants_tokens:
            return self.codebook.start_epoch(None, progress)
        training = self.training
        self.eval()
        tokens = [flatten(self.body.encode(scans).z).float().view(len(scans), -1, CHANNELS) for scans in batches]
        self.train(training)
        self.codebook.start_epoch(torch.cat(tokens), progress)

    def forward(self, scans: Tensor, rows: Tensor | None = None) -> Output:
        """One pass; `rows` are the scans' places in the training set, none when validating."""
        z, features, losses = self.body.encode(scans)
        tokens, places = flatten(z).float(), (len(z), *z.shape[2:])
        picked = self.codebook(tokens, rows)
        losses = {**losses, **picked.losses}
        image = image_q = None
        if self.gamma_q < 1 or not self.training:
            image, losses["reconstruction"] = self.body.reconstruct(z, features, scans)
        if self.gamma_q or not self.training:
            codes = lay_out(self.estimate(tokens, picked.codes), places)
            image_q, losses["reconstruction_q"] = self.body.reconstruct(codes, features, scans)
        if picked.soft and not self.training:  # x'_q is of the nearest codes, whatever was trained
            nearest = lay_out(self.codebook.codes[picked.nodes], places)
            image_q, _ = self.body.reconstruct(nearest, features, scans)
        losses = {name: term for name, term in losses.items() if name in self.weights}
        return Output(z, losses, image, image_q, picked.nodes.view(places))


def flatten(z: Tensor) -> Tensor:
    """Tokens (N, C) of `z` (B, C, x, y, z), scan by scan."""
    return z.movedim(1, -1).flatten(0, -2)


def lay_out(tokens: Tensor, places: tuple[int, ...]) -> Tensor:
    """`tokens` (N, C) at their `places` (B, x, y, z), as (B, C, x, y, z): the way back from `flatten`."""
    return tokens.view(*places, -1).movedim(-1, 1)
