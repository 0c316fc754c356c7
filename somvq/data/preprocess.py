"""One scan from its own grid to the cohort's: straightened, resampled, centred, cropped or padded, z-scored."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from somvq.config import CohortSettings
from somvq.data.scan import LARGEST_SCAN, Mask, Remark, Scan, Volume, brighter_than_background, read_scan
from somvq.errors import DataError
from somvq.readings import Choice, Difference

Shape = tuple[int, int, int]
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
Sides = tuple[float, float, float]
Window = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]  # two corners of a box

BRAIN_LITRES = (0.8, 2.7)  # of what is brighter than background: stripped brains have 1.5 to 2.1, heads 3.3 to 4.8
EVERYWHERE: Window = (np.full(3, -np.inf), np.full(3, np.inf))
LOSS_TO_WARN, LOSS_TO_REFUSE = 0.005, 0.05  # share of brain voxels that a crop cuts off
STRAIGHT_DEGREES = 1.0  # a scan tilted by less lies within about a voxel of the world's axes
MARGIN = 4  # voxels round what is resampled
PEAK_TO_WARN = 30.0  # deviations from the mean; the eyes and vessels of a head stay below 15
PEAK_TO_REFUSE = 60_000.0  # float16 ends at 65,504
CONTRAST_OF_OUTLIERS = 0.2  # share of the variance that voxels beyond PEAK_TO_WARN may have
LEAST_OF_A_SLICE = 1e-5  # share of the brain below which what is bright in a slice is a speck


@dataclass(frozen=True)
class Fitted:
    """A scan on the cohort's grid, as z-scores; `mean` and `deviation` lead back, `box` is where it is no padding."""

    scan: Scan
    mean: float
    deviation: float
    box: Box
    lost: float  # share of its brain that was cut off


def prepare(path: Path, mask: Path | None, shape: Shape, settings: CohortSettings) -> Fitted:
    """The scan at `path` as a model reads it: on the cohort's grid, in its `shape`, as z-scores.

    Of a scan that is resampled, what is too far from its brain to be seen in `shape` is not. Each step lets go of the
    volume before it: three are held at most.

    Raises:
        DataError: it cannot be read; its voxels would not fit in memory; too much brain is lost; an artefact.
    """
    scan = read_scan(path, mask=mask, orient=settings.orient)
    if sides := grid_of(scan, settings.voxel_mm):
        brain, fill = brain_of(scan), background(scan.voxels)
        seen = window_round(scan, brain, sides, shape) if scan.tilt > STRAIGHT_DEGREES else EVERYWHERE
        if settings.voxel_mm is None:
            tilted = Remark(f"its axes are tilted by {scan.tilt:.0f} degrees", "resampled along the world's axes")
            scan = replace(scan, remarks=(*scan.remarks, tilted))
        scan = trim(scan, brain, sides, shape)
        scan = resample(scan, sides, fill, seen)
    return fit(scan, shape, settings)


def grid_of(scan: Scan, voxel_mm: float | None) -> Sides | None:
    """The voxels that `scan` is to be brought to along the world's axes; none if it stays as it lies."""
    if voxel_mm is None:
        return scan.voxel_mm if scan.tilt > STRAIGHT_DEGREES else None
    sides = (voxel_mm, voxel_mm, voxel_mm)
    return None if lies_on(scan, sides) else sides


def window_round(scan: Scan, brain: Mask, voxel_mm: Sides, shape: Shape) -> Window:
    """Lowest and highest corner, in mm of the world, of what a volume of `shape` round the brain can show."""
    ends = scan.affine[:3, :3] @ ends_of(brain) + scan.affine[:3, 3:]
    low, high = ends.min(axis=1), ends.max(axis=1)
    reach = np.maximum(np.multiply(shape, voxel_mm) - (high - low), 0) / 2 + MARGIN * np.array(voxel_mm)
    return low - reach, high + reach


def trim(scan: Scan, brain: Mask, voxel_mm: Sides, shape: Shape) -> Scan:
    """`scan` without what lies further from its brain than a volume of `shape` round it reaches."""
    window_mm = np.multiply(shape, voxel_mm)
    if scan.tilt > STRAIGHT_DEGREES:
        window_mm[:] = np.linalg.norm(window_mm)  # its corners are anywhere
    near = []
    for side, have, mm, length_mm in zip(box_of(brain), scan.voxels.shape, scan.voxel_mm, window_mm, strict=True):
        reach = max(math.ceil((length_mm / mm - (side.stop - side.start)) / 2), 0) + MARGIN
        near.append(slice(max(side.start - reach, 0), min(side.stop + reach, have)))
    affine = scan.affine.copy()
    affine[:3, 3] += scan.affine[:3, :3] @ [side.start for side in near]
    return replace(scan, voxels=np.ascontiguousarray(scan.voxels[tuple(near)]), affine=affine)


def fit(scan: Scan, shape: Shape, settings: CohortSettings) -> Fitted:
    """`scan`, on the cohort's grid already, in the cohort's `shape` and as z-scores.

    Raises:
        DataError: it loses too much brain, or its numbers cannot be z-scores.
    """
    brain = brain_of(scan)
    fitted = PADDING[settings.padding](scan, brain, shape, settings.normalise)
    litres = float(brain.sum()) * math.prod(scan.voxel_mm) / 1e6
    return replace(fitted, scan=replace(fitted.scan, remarks=(*fitted.scan.remarks, *judge_size(litres))))


def judge_size(litres: float) -> list[Remark]:
    """What is said of a scan of which so much is brighter than its background."""
    smallest, largest = BRAIN_LITRES
    if litres > largest:
        return [Remark(f"{litres:.2g} litres are brighter than its background", "kept; a whole head? strip its skull")]
    if litres < smallest:
        return [Remark(f"only {litres:.2g} litres are brighter than its background", "kept; is it a whole brain?")]
    return []


def lies_on(scan: Scan, voxel_mm: Sides) -> bool:
    """Whether `scan` has voxels of these sides along the world's axes already."""
    return np.allclose(scan.affine[:3, :3], np.diag(voxel_mm), atol=1e-3 * min(voxel_mm))


def resample(scan: Scan, voxel_mm: Sides, fill: float, window: Window = EVERYWHERE) -> Scan:
    """`scan` on a grid with voxels of these sides along the world's axes, linear, `fill` where it was not.

    Only what lies within `window` is made. The grid passes through the world's origin, so that one brain stored in
    two ways comes out alike.

    Raises:
        DataError: the voxels are so small that the scan would not fit in memory.
    """
    sides = np.array(voxel_mm)
    corners = np.array(np.meshgrid(*[(0, side - 1) for side in scan.voxels.shape], indexing="ij")).reshape(3, -1)
    world = scan.affine[:3, :3] @ corners + scan.affine[:3, 3:]
    first = np.floor(np.maximum(world.min(1), window[0]) / sides + 1e-6)
    last = np.ceil(np.minimum(world.max(1), window[1]) / sides - 1e-6)
    shape = tuple(int(length) + 1 for length in last - first)
    if math.prod(shape) > LARGEST_SCAN:
        size = "x".join(map(str, shape))
        raise DataError(f"{scan.path}: with voxels of {voxel_mm[0]:g} mm it has {size}; ask for a larger --voxel-mm")
    affine = np.diag([*voxel_mm, 1.0])
    affine[:3, 3] = first * voxel_mm
    back = np.linalg.inv(scan.affine) @ affine
    voxels = ndimage.affine_transform(
        antialias(scan, voxel_mm),
        back[:3, :3],
        back[:3, 3],
        output_shape=shape,
        order=1,
        mode="grid-constant",
        cval=fill,
    )
    return replace(scan, voxels=voxels, affine=affine)


def antialias(scan: Scan, voxel_mm: Sides) -> Volume:
    """The scan's voxels without the detail that a grid of `voxel_mm` cannot hold.

    A Gaussian that makes the full width at half maximum of the old voxels that of the new (Cardoso et al. 2015).
    """
    ratios = [new / old for new, old in zip(voxel_mm, scan.voxel_mm, strict=True)]
    sigma = [math.sqrt(max(ratio**2 - 1, 0)) / 2.355 for ratio in ratios]
    return ndimage.gaussian_filter(scan.voxels, sigma) if max(sigma) > 0.25 else scan.voxels  # less does nothing


def background(voxels: Volume) -> float:
    """What surrounds the brain: the median of the volume's six faces. The lowest value may be an artefact's."""
    faces = [voxels[[0, -1]], voxels[:, [0, -1]], voxels[:, :, [0, -1]]]
    return float(np.median(np.concatenate([face.ravel() for face in faces])))


def brain_of(scan: Scan) -> Mask:
    """Where `scan` is brighter than its background, (X, Y, Z).

    Raises:
        DataError: nowhere.
    """
    inside = brighter_than_background(scan.voxels)
    if not inside.any():
        raise DataError(f"{scan.path}: nothing in it is brighter than its background; export it again as a T1 scan")
    return inside


def box_of(inside: Mask) -> tuple[slice, slice, slice]:
    """The smallest box that holds the brain; a slice with a few bright voxels is outside it."""
    least = max(1, int(LEAST_OF_A_SLICE * inside.sum()))
    sides = []
    for axes in ((1, 2), (0, 2), (0, 1)):
        (bright,) = np.nonzero(inside.sum(axis=axes) >= least)
        sides.append(slice(int(bright[0]), int(bright[-1]) + 1))
    x, y, z = sides
    return x, y, z


def extent_of(scan: Scan, inside: Mask, voxel_mm: float | None) -> tuple[int, int, int]:
    """Length of what is `inside` along each axis, in voxels of the grid that `scan` is brought to."""
    sides = grid_of(scan, voxel_mm)
    if sides is None:
        x, y, z = (side.stop - side.start for side in box_of(inside))
        return x, y, z
    length_mm = np.ptp(scan.affine[:3, :3] @ ends_of(inside), axis=1)
    x, y, z = (math.ceil(length / side) + 1 for length, side in zip(length_mm, sides, strict=True))
    return x, y, z


def ends_of(inside: Mask) -> npt.NDArray[np.intp]:
    """First and last voxel of each column of what is `inside`, (3, N): none of it is further out in any direction."""
    columns = inside.any(axis=2)
    low = inside.argmax(axis=2)[columns]
    high = inside.shape[2] - 1 - inside[:, :, ::-1].argmax(axis=2)[columns]
    return np.hstack([[*np.nonzero(columns), low], [*np.nonzero(columns), high]])


def pad_with_background(scan: Scan, brain: Mask, shape: Shape, normalised: str) -> Fitted:
    """The scan in `shape` round its brain, then z-scored: the paper's text.

    Padding repeats the scan's own background: a frame of another value would be walls that the codebook learns.
    """
    start = [(side.start + side.stop - length) // 2 for side, length in zip(box_of(brain), shape, strict=True)]
    padded, box, lost = fit_to(scan, brain, shape, start, background(scan.voxels))
    mean, deviation = moments(padded.voxels if normalised == "volume" else scan.voxels[brain])
    return Fitted(normalise(padded, mean, deviation), mean, deviation, box, lost)


def pad_with_mean(scan: Scan, brain: Mask, shape: Shape, normalised: str) -> Fitted:
    """z-scores of the scan, then padded with 0 round its middle: a frame as bright as the mean, as in the paper's code.

    Of 7 missing voxels 4 go before and 3 behind.
    """
    mean, deviation = moments(scan.voxels if normalised == "volume" else scan.voxels[brain])
    start = [(have - want) // 2 for have, want in zip(scan.voxels.shape, shape, strict=True)]
    padded, box, lost = fit_to(normalise(scan, mean, deviation), brain, shape, start, 0.0)
    return Fitted(padded, mean, deviation, box, lost)


PADDING: dict[str, Callable[[Scan, Mask, Shape, str], Fitted]] = {
    "background": pad_with_background,
    "mean": pad_with_mean,
}
PADDING_OF: Difference[str] = Difference(
    "Padding and z-scores (the cohort's; not of a run)",
    "padded, then z-normalised",
    Choice(
        "z-scores first, then padded with 0: the frame is brighter than the background (only with --padding mean)",
        "mean",
    ),
    Choice("padded with the scan's own background round its brain, then z-scores (--padding background)", "background"),
)


def fit_to(scan: Scan, brain: Mask, shape: Shape, start: list[int], fill: float) -> tuple[Scan, Box, float]:
    """The scan cropped or padded to `shape`, whose first voxel is `start` in it; where it lies there; what is lost.

    Raises:
        DataError: the crop would cut off more than 5 % of the brain.
    """
    source, target = overlap(start, scan.voxels.shape, shape)
    lost = 1 - int(brain[source].sum()) / int(brain.sum())
    cut = f"{lost:.1%} of its brain lies outside {'x'.join(map(str, shape))} voxels"
    if lost > LOSS_TO_REFUSE:
        raise DataError(f"{scan.path}: {cut}, more than {LOSS_TO_REFUSE:.0%}; ask for a larger --shape")
    remarks = [Remark(cut, "cut off; a larger --shape keeps it")] if lost > LOSS_TO_WARN else []
    voxels = np.full(shape, fill, np.float32)
    voxels[target] = scan.voxels[source]
    affine = scan.affine.copy()
    affine[:3, 3] += scan.affine[:3, :3] @ np.array(start, float)
    x, y, z = ((side.start, side.stop) for side in target)
    return Scan(scan.path, voxels, affine, (*scan.remarks, *remarks)), (x, y, z), lost


def overlap(
    start: list[int], have: tuple[int, ...], want: tuple[int, ...]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a window of size `want` that begins at `start` meets an array of size `have`: in it, and in the window."""
    low = [max(s, 0) for s in start]
    high = [min(s + w, h) for s, w, h in zip(start, want, have, strict=True)]
    source = tuple(slice(lo, hi) for lo, hi in zip(low, high, strict=True))
    target = tuple(slice(lo - s, hi - s) for lo, hi, s in zip(low, high, start, strict=True))
    return source, target


def moments(measured: Volume) -> tuple[float, float]:
    """Mean and deviation of `measured`: a whole volume, or what is brain in it."""
    mean = float(measured.mean(dtype=np.float64))
    with np.errstate(all="ignore"):  # numbers without bounds are refused by who uses them
        parts = measured if measured.ndim > 1 else [measured]
        squares = sum(float(np.square(part - np.float32(mean), dtype=np.float64).sum()) for part in parts)
    return mean, math.sqrt(squares / (measured.size - 1))


def normalise(scan: Scan, mean: float, deviation: float) -> Scan:
    """z-scores of `scan`.

    Raises:
        DataError: a few voxels are so far from the mean that nothing is left of the brain.
    """
    with np.errstate(all="ignore"):  # what comes of it is judged below
        voxels = scan.voxels - np.float32(mean)
        voxels /= np.float32(deviation)
    peak = max(float(voxels.max()), -float(voxels.min()))
    if peak <= PEAK_TO_WARN:
        return replace(scan, voxels=voxels)
    far = f"one of its voxels is {peak:.0f} deviations from the mean"
    outliers = voxels[np.abs(voxels) > PEAK_TO_WARN].astype(np.float64)
    if not peak < PEAK_TO_REFUSE or np.square(outliers).sum() > CONTRAST_OF_OUTLIERS * voxels.size:
        raise DataError(f"{scan.path}: {far}, an artefact that leaves nothing of the brain; export it again")
    artefact = Remark(far, "kept; an artefact that flattens the brain?")
    return replace(scan, voxels=voxels, remarks=(*scan.remarks, artefact))
