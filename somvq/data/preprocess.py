"""One scan from its file to an array a model can read; every step refuses what it cannot do honestly."""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import OrientationError
from nibabel.spatialimages import HeaderDataError
from scipy import ndimage

from somvq.errors import DataError

Volume = npt.NDArray[np.float32]

LARGEST_SCAN = 1024**3  # voxels; a header that claims more is damaged, and would fill the memory
BRAIN_THRESHOLD = 0.05  # of the 99th percentile; noise fills the air of many scans, so 0 will not do
LOSS_TO_WARN, LOSS_TO_REFUSE = 0.005, 0.05  # share of brain voxels that a crop cuts off
UNREADABLE = (  # all that nibabel raises on a damaged file
    ImageFileError,
    HeaderDataError,
    OrientationError,
    EOFError,
    OSError,
    zlib.error,
    ValueError,
    MemoryError,
    TypeError,
    np.linalg.LinAlgError,
)


@dataclass(frozen=True)
class Scan:
    """A T1 volume in RAS order: `voxels` (X, Y, Z), `affine` (4, 4) from voxel to world in mm."""

    path: Path
    voxels: Volume
    affine: npt.NDArray[np.float64]
    warnings: tuple[str, ...] = ()

    @property
    def voxel_mm(self) -> tuple[float, float, float]:
        """Side lengths of a voxel, from the affine: headers' own zooms can disagree with it."""
        x, y, z = nib.affines.voxel_sizes(self.affine)
        return float(x), float(y), float(z)


def read_scan(path: Path) -> Scan:
    """The scan at `path`, in the closest RAS order, as float32.

    Raises:
        DataError: one line that names the file, what is wrong with it and what to do.
    """
    try:
        check_stream(path)
        image = nib.load(path)
        check_header(path, image)
        image = nib.as_closest_canonical(nib.funcs.squeeze_image(image))
        voxels = np.asarray(image.get_fdata(dtype=np.float32, caching="unchanged"), np.float32)
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be read ({damage(path, error)}); copy or convert it again") from error
    warnings = check_voxels(path, voxels)
    return Scan(path, np.nan_to_num(voxels, posinf=0, neginf=0), image.affine, warnings)


def check_stream(path: Path) -> None:
    """Reads a gzip stream to its end: nibabel never checks the sum there, and loads flipped bits silently."""
    if path.name.lower().endswith((".gz", ".mgz")):
        with gzip.open(path) as stream:
            while stream.read(1 << 22):
                pass


def damage(path: Path, error: BaseException) -> str:
    """What a file that cannot be read looks like, in a few words."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    head = path.read_bytes()[:128] if path.is_file() else b""
    if path.is_file() and not head:
        return "the file is empty"
    if b"git-lfs" in head or b"/annex/" in head:
        return "it is a pointer of git-lfs or git-annex: fetch the data itself"
    if isinstance(error, EOFError):
        return "the gzip stream ends too early: the copy is incomplete"
    if isinstance(error, zlib.error) or "CRC" in str(error) or "Incorrect length" in str(error):
        return "the gzip stream is damaged: its checksum does not fit"
    if isinstance(error, gzip.BadGzipFile):
        return "it ends in .gz but is not gzipped"
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__


def check_header(path: Path, image: Any) -> None:
    """Refuses, before any voxel is read, what is no single T1 volume in a known place."""
    shape = tuple(int(side) for side in image.shape)
    if min(shape, default=0) < 1 or int(np.prod(shape)) > LARGEST_SCAN:
        raise DataError(f"{path}: its header claims the shape {shape}, which no scan has; copy it again")
    single = tuple(side for side in shape[:3]) + tuple(side for side in shape[3:] if side > 1)
    if len(single) != 3 or min(single) < 2:
        raise DataError(
            f"{path}: its shape {shape} is not one 3-D volume; extract one T1 volume into a file of its own"
        )
    if np.dtype(image.get_data_dtype()).kind not in "iuf":
        raise DataError(f"{path}: its voxels are {image.get_data_dtype()}, not numbers on one scale; is it a T1 scan?")
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-6:
        raise DataError(f"{path}: its affine is not invertible, so nobody knows which way is up; set sform or qform")


def check_voxels(path: Path, voxels: Volume) -> tuple[str, ...]:
    """Refuses voxels that hold no brain; warns of what was mended."""
    broken = int(voxels.size - np.isfinite(voxels).sum())
    if broken > voxels.size // 1000:
        raise DataError(f"{path}: {broken:,} of {voxels.size:,} voxels are NaN or infinite; more than 0.1 % is refused")
    finite = voxels[np.isfinite(voxels)] if broken else voxels
    if finite.size == 0 or finite.min() == finite.max():
        value = f"{finite.flat[0]:g}" if finite.size else "NaN"
        raise DataError(f"{path}: every voxel is {value}; is it a mask, or an export that failed?")
    return (f"{broken} NaN or infinite voxels set to 0",) if broken else ()


def resample(scan: Scan, voxel_mm: float) -> Scan:
    """`scan` on a grid of cubes of side `voxel_mm` along the world's axes, linear; as it is when it is there."""
    square = np.allclose(scan.affine[:3, :3], np.diag(scan.voxel_mm), atol=1e-3 * voxel_mm)
    if square and np.allclose(scan.voxel_mm, voxel_mm, rtol=1e-3):
        return scan
    corners = np.array(np.meshgrid(*[(0, side - 1) for side in scan.voxels.shape], indexing="ij")).reshape(3, -1)
    world = scan.affine[:3, :3] @ corners + scan.affine[:3, 3:]
    low, high = world.min(1), world.max(1)
    affine = np.diag([voxel_mm, voxel_mm, voxel_mm, 1.0])
    affine[:3, 3] = low
    shape = tuple(int(side) for side in np.floor((high - low) / voxel_mm).astype(int) + 1)
    back = np.linalg.inv(scan.affine) @ affine
    smooth = blur_for(scan.voxels, [voxel_mm / side for side in scan.voxel_mm])
    voxels = ndimage.affine_transform(smooth, back[:3, :3], back[:3, 3], output_shape=shape, order=1)
    return Scan(scan.path, voxels, affine, scan.warnings)


def blur_for(voxels: Volume, shrinkage: list[float]) -> Volume:
    """`voxels` without the detail that a grid `shrinkage` times coarser along each axis cannot hold (aliasing)."""
    sigma = [0.42 * max(factor - 1, 0) for factor in shrinkage]
    return ndimage.gaussian_filter(voxels, sigma) if max(sigma) > 0.05 else voxels


def brain_box(voxels: Volume) -> tuple[slice, slice, slice]:
    """The smallest box that holds every voxel of the brain."""
    inside = voxels > BRAIN_THRESHOLD * np.percentile(voxels, 99)
    x, y, z = ndimage.find_objects(inside.astype(np.uint8))[0]
    return x, y, z


def centre(scan: Scan, shape: tuple[int, int, int]) -> tuple[Volume, npt.NDArray[np.float64], tuple[str, ...]]:
    """The scan cropped or padded to `shape` round its brain's box: voxels, affine, warnings.

    Padding repeats the scan's own background (its lowest value), not 0: a frame of another value would be walls
    that the codebook learns.

    Raises:
        DataError: the crop would cut off more than 5 % of the brain.
    """
    box = brain_box(scan.voxels)
    inside = scan.voxels[box] > BRAIN_THRESHOLD * np.percentile(scan.voxels, 99)
    start = [(side.start + side.stop - length) // 2 for side, length in zip(box, shape, strict=True)]
    out = np.full(shape, scan.voxels.min(), np.float32)
    source, target = overlap(start, scan.voxels.shape, shape)
    out[target] = scan.voxels[source]
    kept = overlap([s - side.start for s, side in zip(start, box, strict=True)], inside.shape, shape)[0]
    lost = 1 - inside[kept].sum() / inside.sum()
    cut = f"{lost:.1%} of its brain lies outside {'x'.join(map(str, shape))} voxels"
    if lost > LOSS_TO_REFUSE:
        raise DataError(f"{scan.path}: {cut}; more than {LOSS_TO_REFUSE:.0%} is refused: ask for a larger --shape")
    affine = scan.affine.copy()
    affine[:3, 3] = scan.affine[:3, :3] @ np.array(start, float) + scan.affine[:3, 3]
    return out, affine, (*scan.warnings, *([cut] if lost > LOSS_TO_WARN else []))


def overlap(
    start: list[int], have: tuple[int, ...], want: tuple[int, ...]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a window of size `want` that begins at `start` meets an array of size `have`: in it, and in the window."""
    low = [max(s, 0) for s in start]
    high = [max(min(s + w, h), lo) for s, w, h, lo in zip(start, want, have, low, strict=True)]
    source = tuple(slice(lo, hi) for lo, hi in zip(low, high, strict=True))
    target = tuple(slice(lo - s, hi - s) for lo, hi, s in zip(low, high, start, strict=True))
    return source, target


def normalise(voxels: Volume) -> tuple[Volume, float, float]:
    """z-scores of the whole padded volume (the paper's text: pad, then normalise), with its mean and deviation."""
    mean, deviation = float(voxels.mean(dtype=np.float64)), float(voxels.std(dtype=np.float64, ddof=1))
    return ((voxels - mean) / deviation).astype(np.float32), mean, deviation
