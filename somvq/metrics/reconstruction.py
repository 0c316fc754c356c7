"""How like the scan an image is: SSIM, MSE and PSNR of whole volumes, of a box, or of the brain."""

# Shapes: B scans of X x Y x Z voxels. On a CPU, SSIM is numpy's work, not torch's: flat over voxels and in one thread
# it takes 1/15 of the time of avg_pool3d, and waits for no busy core at the end of each operation.

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
SsimKind = Literal["paper", "skimage", "gaussian"]
Flat = TypeVar("Flat", NDArray[np.float32], Tensor)  # a volume as one long row of voxels

PLANES = 8  # of X at a time: their window means stay in a core's cache


class Window(NamedTuple):
    """What SSIM takes means over: a cube of `side` voxels, weights along an axis, sample or biased variances."""

    side: int
    weights: tuple[float, ...] | None = None  # None: all alike
    sample: bool = False


def gaussian_weights(sigma: float, radius: int) -> tuple[float, ...]:
    """A Gaussian's values at -radius..radius, summing to 1."""
    values = [math.exp(-0.5 * (place / sigma) ** 2) for place in range(-radius, radius + 1)]
    return tuple(value / sum(values) for value in values)


SSIM_KINDS: dict[SsimKind, Window] = {
    "paper": Window(9),
    "skimage": Window(7, sample=True),
    "gaussian": Window(11, gaussian_weights(1.5, 5)),
}


def ssim(scans: Tensor, images: Tensor, kind: SsimKind = "paper", mask: Tensor | None = None) -> Tensor:
    """Structural similarity of `images` to `scans`, both (B, 1, X, Y, Z): (B,), 1 where they are the same.

    The mean of Wang et al. 2004 (eq. 13) over the windows that fit whole, with c1 = (0.01 L)^2, c2 = (0.03 L)^2 and L
    the range of each scan (not of its image). `kind`:

    paper: uniform 9^3, biased variances, as the paper's code.
    skimage: uniform 7^3, sample variances, as structural_similarity does by default.
    gaussian: sigma 1.5 cut to 11^3, biased variances, as Wang et al.

    `mask` (B, 1, X, Y, Z) keeps the windows whose centre it holds. NaN for a scan of one value or an empty mask.

    Raises:
        ValueError: the window fits nowhere.
    """
    window = SSIM_KINDS[kind]
    if min(scans.shape[2:]) < window.side:
        raise ValueError(f"SSIM's windows of {window.side} voxels do not fit {tuple(scans.shape[2:])}")
    masks = [None] * len(scans) if mask is None else [of_scan[0].cpu().numpy() for of_scan in mask]
    values = []
    for scan, image, of_scan in zip(scans.detach(), images.detach(), masks, strict=True):
        weights = window_weights(scan.shape[1:], of_scan, window.side)
        values.append(ssim_of_scan(scan[0].float().contiguous(), image[0].float().contiguous(), weights, window))
    return torch.tensor(values, device=scans.device)


def ssim_of_scan(scan: Tensor, image: Tensor, weights: NDArray[np.float32], window: Window) -> float:
    """SSIM of one `image` to one `scan`, float32 (X, Y, Z): the mean over windows, by `weights` of their starts."""
    windows = float(weights.sum())
    steps = (scan.shape[1] * scan.shape[2], scan.shape[2], 1)
    if scan.device.type != "cpu":  # nothing to keep in a cache: all planes at once
        on_device = torch.from_numpy(weights).to(scan.device).view(-1)
        total = sum_of_map(scan.view(-1), image.view(-1), on_device, steps, window, len(scan))
    else:
        with np.errstate(all="ignore"):  # what is not finite gives NaN, as torch's arithmetic does
            total = sum_of_map(
                scan.numpy().reshape(-1), image.numpy().reshape(-1), weights.reshape(-1), steps, window, PLANES
            )
    return total / windows if windows else math.nan


def sum_of_map(a: Flat, b: Flat, weights: Flat, steps: tuple[int, int, int], window: Window, planes: int) -> float:
    """The sum of SSIM over windows by their weights, `planes` of `steps[0]` voxels at a time; NaN if `a` is flat."""
    size, margin = steps[0], window.side - 1
    extent = float(a.max() - a.min())
    if extent == 0:
        return math.nan
    total = 0.0
    for start in range(0, len(a) - margin * size, planes * size):
        stop = start + (planes + margin) * size
        values = similarity(a[start:stop], b[start:stop], steps, window, extent)
        total += float((values * weights[start : start + len(values)]).sum())
    return total


def similarity(a: Flat, b: Flat, steps: tuple[int, int, int], window: Window, extent: float) -> Flat:
    """SSIM of the windows that start at each voxel; of those that run over an edge, no use."""
    c1, c2 = (0.01 * extent) ** 2, (0.03 * extent) ** 2
    voxels = window.side**3
    correction = voxels / (voxels - 1) if window.sample else 1.0
    mean_a, mean_b = window_mean(a, steps, window), window_mean(b, steps, window)
    covariance, variance = window_mean(a * b, steps, window), window_mean(a * a + b * b, steps, window)
    product, squares = mean_a * mean_b, mean_a * mean_a + mean_b * mean_b
    covariance -= product
    variance -= squares  # of a and b together: they are only ever added
    covariance *= 2 * correction
    variance *= correction
    covariance += c2
    variance += c2
    product *= 2
    product += c1
    squares += c1
    product *= covariance
    squares *= variance
    product /= squares
    return product


def window_mean(values: Flat, steps: tuple[int, int, int], window: Window) -> Flat:
    """The mean over the window that starts at each voxel, `steps` apart along X, Y and Z: one axis after the other.

    Flat: a step along any axis is a shift of the whole row. What runs over an edge is a mean of other voxels.
    """
    for step in steps:
        if window.weights is None:
            values = run_sum(values, step, window.side)
        else:
            values = convolve(values, step, window.weights)
    return values * window.side**-3 if window.weights is None else values


def run_sum(values: Flat, step: int, side: int) -> Flat:
    """The sum of `side` values `step` apart, from each value on: 9 = 8 + 1 takes four additions, not eight."""
    length = len(values) - (side - 1) * step
    total, offset, run = None, 0, 1
    while run <= side:
        if side & run:
            part = values[offset * step : offset * step + length]
            total = part if total is None else total + part
            offset += run
        values = values[: len(values) - run * step] + values[run * step :] if 2 * run <= side else values
        run *= 2
    assert total is not None
    return total


def convolve(values: Flat, step: int, weights: tuple[float, ...]) -> Flat:
    """The sum by `weights` of values `step` apart, from each value on."""
    length = len(values) - (len(weights) - 1) * step
    total = values[:length] * weights[0]
    for place, weight in enumerate(weights[1:], start=1):
        total += values[place * step : place * step + length] * weight
    return total


def window_weights(shape: Sequence[int], mask: NDArray[np.bool_] | None, side: int) -> NDArray[np.float32]:
    """1 where a window starts that fits whole into `shape` and has its centre in `mask`, else 0, (X, Y, Z)."""
    weights = np.zeros(shape, dtype=np.float32)
    whole = tuple(slice(0, length - side + 1) for length in shape)
    centres = tuple(slice(side // 2, length - side // 2) for length in shape)
    weights[whole] = 1 if mask is None else mask[centres]
    return weights


def mse(scans: Tensor, images: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of each scan's voxels, those in `mask` alone if there is one; all (B, 1, X, Y, Z): (B,).

    NaN where the mask is empty.
    """
    squares = (scans.detach().float() - images.detach().float()).square()
    if mask is None:
        return squares.mean((1, 2, 3, 4))
    return (squares * mask).sum((1, 2, 3, 4)) / mask.sum((1, 2, 3, 4))


def psnr(scans: Tensor, images: Tensor, peak: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB, (B,), for `peak` (B,), of all voxels or of those in `mask`.

    Infinite where nothing differs, NaN where the mask is empty.
    """
    return 20 * torch.log10(peak.double()) - 10 * torch.log10(mse(scans, images, mask).double())


def scan_range(scans: Tensor) -> Tensor:
    """Largest minus smallest voxel of each scan, (B,): the usual peak for PSNR."""
    return scans.amax((1, 2, 3, 4)) - scans.amin((1, 2, 3, 4))


def scan_maximum(scans: Tensor) -> Tensor:
    """Largest voxel of each scan, (B,): the paper's peak for PSNR."""
    return scans.amax((1, 2, 3, 4))


def crop(images: Tensor, box: Box) -> Tensor:
    """What lies in `box`, ((first, end), ...) in voxels along X, Y and Z: without its padding, for one, (B, 1, ...)."""
    return images[:, :, *(slice(first, end) for first, end in box)]
