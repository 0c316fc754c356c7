"""The paper's encoder and decoder: four convolutions of kernel 4 and stride 2, and their mirror."""

from itertools import pairwise

from torch import nn

WIDTHS = (1, 4, 8, 16, 32)  # channels, from scan to token
CHANNELS = WIDTHS[-1]  # of a token, and so of a code
KERNEL, STRIDE, PADDING = 4, 2, 1  # voxels: every side is exactly halved, or doubled


def build_encoder() -> nn.Sequential:
    """Scans (B, 1, X, Y, Z) to tokens (B, 32, X/16, Y/16, Z/16); the last convolution is bare, tokens are signed."""
    layers: list[nn.Module] = []
    for before, after in pairwise(WIDTHS):
        layers += [nn.Conv3d(before, after, KERNEL, STRIDE, PADDING), nn.BatchNorm3d(after), nn.ReLU()]
    return nn.Sequential(*layers[:-2])


def build_decoder() -> nn.Sequential:
    """Tokens (B, 32, x, y, z) to scans (B, 1, 16 x, 16 y, 16 z); the last convolution is bare."""
    layers: list[nn.Module] = []
    for before, after in pairwise(WIDTHS[::-1]):
        layers += [nn.ConvTranspose3d(before, after, KERNEL, STRIDE, PADDING), nn.BatchNorm3d(after), nn.ReLU()]
    return nn.Sequential(*layers[:-2])
