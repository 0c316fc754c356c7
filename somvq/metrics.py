"""Reconstruction, codebook and map metrics: one definition each; runs.METRICS says them in words."""

# Shapes: B scans, K nodes, C channels.

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from somvq.codebooks.grid import Grid

SSIM_WINDOW = 9  # voxels; the paper's code (science: not 7)


def window_mean(images: Tensor, size: int) -> Tensor:
    """The mean over every whole cube of side `size`, (B, 1, X - size + 1, ...): one axis after the other."""
    for kernel in ((size, 1, 1), (1, size, 1), (1, 1, size)):
        images = F.avg_pool3d(images, kernel, stride=1)
    return images


def ssim(scans: Tensor, images: Tensor, window: int = SSIM_WINDOW) -> Tensor:
    """Structural similarity of `images` to `scans` (B, 1, X, Y, Z), one value a scan (B,).

    Uniform cubic window, only where it fits whole, biased variances, c1 = (0.01 L)^2 and c2 = (0.03 L)^2 with L the
    range of each scan (Wang et al. 2004; the paper's choices).
    """
    scans, images = scans.float(), images.float()
    extent = scan_range(scans).view(-1, 1, 1, 1, 1)
    c1, c2 = (0.01 * extent) ** 2, (0.03 * extent) ** 2
    mean_a, mean_b = window_mean(scans, window), window_mean(images, window)
    variance_a = window_mean(scans * scans, window) - mean_a**2
    variance_b = window_mean(images * images, window) - mean_b**2
    covariance = window_mean(scans * images, window) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return (luminance * structure).mean((1, 2, 3, 4))


def psnr(scans: Tensor, images: Tensor, peak: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, one value a scan (B,), for `peak` (B,); infinite where nothing differs."""
    error = (scans.float() - images.float()).square().mean((1, 2, 3, 4)).double()
    return 20 * torch.log10(peak.double()) - 10 * torch.log10(error)


def scan_range(scans: Tensor) -> Tensor:
    """Largest minus smallest voxel of each scan, (B,)."""
    return scans.amax((1, 2, 3, 4)) - scans.amin((1, 2, 3, 4))


def scan_maximum(scans: Tensor) -> Tensor:
    """Largest voxel of each scan, (B,): the paper's peak for PSNR."""
    return scans.amax((1, 2, 3, 4))


def perplexity(hits_K: Tensor) -> float:
    """exp of the entropy of code use: K if all codes win evenly, 1 if one wins all."""
    share = hits_K.double() / hits_K.sum()
    return float(torch.exp(torch.special.entr(share).sum()))


def assignment_entropy(s_NK: Tensor) -> float:
    """Entropy of each token's assignment over ln K, the mean over tokens: 0 to 1."""
    return float(torch.special.entr(s_NK.detach().double()).sum(1).mean() / math.log(s_NK.shape[1]))


def neighbour_correlation(codes_KC: Tensor, grid: Grid, *, centred: bool) -> float:
    """Mean Pearson r over channels of each pair of neighbouring codes; NaN if any code does not vary over channels.

    `centred` removes the codebook's mean first: a mean that all codes share makes any two codes alike. A codebook
    collapsed to one point then has no r (NaN).
    """
    codes = codes_KC.detach().double()
    codes = codes - codes.mean(0) if centred else codes
    codes = codes - codes.mean(1, keepdim=True)
    a, b = codes[grid.edges.T.to(codes.device)]
    return float(((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).mean())


def topographic_error(distances_NK: Tensor, grid: Grid) -> float:
    """Share of tokens whose two nearest nodes are not among each other's four neighbours (Kiviluoto 1996)."""
    first, second = distances_NK.topk(2, dim=1, largest=False).indices.T
    return float((grid.adjacency.to(first.device)[first, second] == 0).double().mean())
