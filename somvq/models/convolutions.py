"""The paper's encoder and decoder: four convolutions of kernel 4 and stride 2, and their mirror."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

WIDTHS = (1, 4, 8, 16, 32)  # channels, from scan to token
CHANNELS = WIDTHS[-1]  # of a token, and so of a code
KERNEL, STRIDE, PADDING = 4, 2, 1  # voxels: every side is exactly halved, or doubled


class Encoder(nn.Sequential):
    """Scans (B, 1, X, Y, Z) to tokens (B, 32, X/16, Y/16, Z/16); the last convolution is bare, tokens are signed."""

    def __init__(self, *, batch_norm: bool = True):
        layers: list[nn.Module] = []
        *inner, (before, after) = pairwise(WIDTHS)
        for read, made in inner:
            layers += block(nn.Conv3d(read, made, KERNEL, STRIDE, PADDING), made, batch_norm)
        super().__init__(*layers, nn.Conv3d(before, after, KERNEL, STRIDE, PADDING))

    def with_features(self, scans: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Tokens, and what the first three blocks made on the way: 4, 8 and 16 channels at 1/2, 1/4 and 1/8."""
        features = []
        for layer in self:
            scans = layer(scans)
            if isinstance(layer, nn.ReLU):
                features.append(scans)
        return scans, features


class Decoder(nn.Sequential):
    """Tokens (B, 32, x, y, z) to scans (B, 1, 16 x, 16 y, 16 z); the last convolution is bare.

    With `skip`, each block but the first also reads the encoder's features of its resolution, before its own.
    """

    def __init__(self, *, batch_norm: bool = True, skip: bool = False):
        layers: list[nn.Module] = []
        *inner, (before, after) = pairwise(WIDTHS[::-1])
        for read, made in inner:
            width = 2 * read if skip and layers else read
            layers += block(nn.ConvTranspose3d(width, made, KERNEL, STRIDE, PADDING), made, batch_norm)
        width = 2 * before if skip else before
        super().__init__(*layers, nn.ConvTranspose3d(width, after, KERNEL, STRIDE, PADDING))
        self.skip = skip

    def forward(self, tokens: Tensor, features: Sequence[Tensor] = ()) -> Tensor:
        """`features` are the encoder's, in its order."""
        waiting = list(features)
        for number, layer in enumerate(self):
            if self.skip and number and isinstance(layer, nn.ConvTranspose3d):
                tokens = torch.cat([waiting.pop(), tokens], 1)
            tokens = layer(tokens)
        return tokens


def block(convolution: nn.Module, channels: int, batch_norm: bool) -> list[nn.Module]:
    """A convolution and what follows it, everywhere but at the end."""
    return [convolution, *([nn.BatchNorm3d(channels)] if batch_norm else []), nn.ReLU()]
