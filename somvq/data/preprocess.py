"""One scan from its file to an array a model can read; every step refuses what it cannot do honestly."""

import gzip
import math
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.imageglobals import logger as nibabel_log
from nibabel.orientations import OrientationError
from nibabel.spatialimages import HeaderDataError
from scipy import ndimage

from somvq.errors import DataError
from somvq.readings import Choice, Difference

Volume = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Affine = npt.NDArray[np.float64]
Shape = tuple[int, int, int]
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

LARGEST_SCAN = 1024**3  # voxels; a header that claims more is damaged, and would fill the memory
VOXEL_LIMITS_MM = (0.05, 20)  # lengths of a side; outside are metres, micrometres and damage
BRAIN_THRESHOLD = 0.05  # from the 1st to the 99th percentile; noise fills the air of many scans, so 0 will not do
BRAIN_LITRES = (0.8, 2.7)  # of what is brighter than that: stripped brains have 1.5 to 2.1, whole heads 3.3 to 4.8
LOSS_TO_WARN, LOSS_TO_REFUSE = 0.005, 0.05  # share of brain voxels that a crop cuts off
FEWEST_VALUES = 8  # a mask or a map of tissues has fewer different values, a scan has many more
TILT_TO_WARN = 5.0  # degrees between a scan's axes and the world's
PEAK_TO_WARN = 30.0  # deviations from the mean; the eyes and vessels of a head stay below 15
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
    OverflowError,
    KeyError,
    np.linalg.LinAlgError,
)


@dataclass(frozen=True)
class Scan:
    """A T1 volume in RAS order: `voxels` (X, Y, Z), `affine` (4, 4) from voxel to world in mm."""

    path: Path
    voxels: Volume
    affine: Affine
    warnings: tuple[str, ...] = ()

    @property
    def voxel_mm(self) -> tuple[float, float, float]:
        """Side lengths of a voxel, from the affine: headers' own zooms can disagree with it."""
        x, y, z = nib.affines.voxel_sizes(self.affine)
        return float(x), float(y), float(z)

    @property
    def tilt(self) -> float:
        """The largest angle between an axis of the scan and the world's, in degrees."""
        cosines = np.abs(np.diag(self.affine)[:3]) / self.voxel_mm
        return math.degrees(math.acos(min(1.0, cosines.min())))


@dataclass(frozen=True)
class Fitted:
    """A scan on the cohort's grid, as z-scores; `mean` and `deviation` lead back, `box` is where it is no padding."""

    scan: Scan
    mean: float
    deviation: float
    box: Box


def read_scan(path: Path) -> Scan:
    """The scan at `path`, in the closest RAS order, as float32.

    Raises:
        DataError: one line that names the file, what is wrong with it and what to do.
    """
    with quiet():
        try:
            check_stream(path)
            image: Any = nib.load(path, mmap=False)
            check_header(path, image)
            doubts = orientation_doubts(image)
            voxels, affine = to_ras(image)
        except UNREADABLE as error:
            raise DataError(f"{path}: cannot be read ({damage(path, error)}); copy or convert it again") from error
    voxels, mended = check_voxels(path, voxels)
    return Scan(path, voxels, affine, (*doubts, *mended))


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps nibabel's and numpy's remarks from the screen: what matters of them is said in our own words."""
    disabled, nibabel_log.disabled = nibabel_log.disabled, True
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    finally:
        nibabel_log.disabled = disabled


def check_stream(path: Path) -> None:
    """Reads a gzip stream to its end: nibabel never checks the sum there, and loads flipped bits silently."""
    if not path.is_file():
        raise FileNotFoundError(path)  # opening a pipe would wait for ever
    if path.name.lower().endswith((".gz", ".mgz")):
        with gzip.open(path) as stream:
            while stream.read(1 << 22):
                pass


def damage(path: Path, error: BaseException) -> str:
    """What a file that cannot be read looks like, in a few words."""
    try:
        if not path.exists():
            return f"it is a link to {path.readlink()}, which is not there" if path.is_symlink() else "no such file"
        if not path.is_file():
            return "it is not a file"
        with path.open("rb") as file:
            head = file.read(132)
    except OSError as reason:
        return str(reason.strerror)
    if not head:
        return "the file is empty"
    if b"git-lfs" in head or b"/annex/" in head:
        return "it is a pointer of git-lfs or git-annex: fetch the data itself"
    if head[128:] == b"DICM":
        return "it is a DICOM file: convert it to NIfTI"
    if isinstance(error, EOFError):
        return "the gzip stream ends too early: the copy is incomplete"
    if isinstance(error, zlib.error) or "CRC" in str(error) or "Incorrect length" in str(error):
        return "the gzip stream is damaged: its checksum does not fit"
    if head[:2] == b"\x1f\x8b" and not path.name.lower().endswith((".gz", ".mgz")):
        return "it is gzipped, but its name does not end in .gz: rename it"
    if isinstance(error, gzip.BadGzipFile):
        return "it is not gzipped, or is damaged, though its name says it is"
    if isinstance(error, KeyError):
        return f"its header names a type of voxels that there is not, {error}"
    if isinstance(error, ImageFileError):
        return "it does not begin like a NIfTI or MGH file"
    return str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__


def check_header(path: Path, image: Any) -> None:
    """Refuses, before any voxel is read, what is no single T1 volume in a known place."""
    shape = tuple(int(side) for side in image.shape)
    if min(shape, default=0) < 1 or math.prod(shape) > LARGEST_SCAN:
        raise DataError(f"{path}: its header claims the shape {shape}, which no scan has; copy it again")
    if len(shape) < 3 or min(shape[:3]) < 2 or max(shape[3:], default=1) > 1:
        raise DataError(
            f"{path}: its shape {shape} is not one 3-D volume; extract one T1 volume into a file of its own"
        )
    kind = np.dtype(image.get_data_dtype())
    if kind.kind not in "iuf":
        sort = "complex" if kind.kind == "c" else "colours"
        raise DataError(f"{path}: its voxels are {sort}, not numbers on one scale; export the magnitude, in grey")
    axes = image.affine[:3, :3]
    sides = np.linalg.norm(axes, axis=0)
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(axes)) <= 1e-3 * sides.prod():
        raise DataError(f"{path}: its affine is not invertible, so nobody knows which way is up; set sform or qform")
    if min(sides) < VOXEL_LIMITS_MM[0] or max(sides) > VOXEL_LIMITS_MM[1]:
        size = " x ".join(f"{side:.3g}" for side in sides)
        raise DataError(
            f"{path}: its affine claims voxels of {size} mm, which no scan has; mend its units or copy it again"
        )


def orientation_doubts(image: Any) -> list[str]:
    """Why left might be right in `image`, which is used all the same."""
    header = image.header
    if isinstance(image, nib.MGHImage):
        return [] if header["goodRASFlag"] else ["no orientation in its header: left and right are a guess"]
    sform, qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    if not sform and not qform:
        return ["no orientation in its header: left and right are a guess"]
    if not (sform and qform):
        return []
    try:
        agree = np.allclose(header.get_qform()[:3, :3], image.affine[:3, :3], atol=0.02)
    except (ValueError, HeaderDataError):
        agree = False
    return [] if agree else ["its sform and qform disagree: the sform is used"]


def to_ras(image: Any) -> tuple[Volume, Affine]:
    """Voxels (X, Y, Z) and affine of `image` with its axes swapped and flipped to the closest RAS order.

    nib.as_closest_canonical does the same by way of a float64 copy: twice the memory.
    """
    voxels = image.get_fdata(dtype=np.float32, caching="unchanged")
    voxels = voxels.reshape(voxels.shape[:3])  # the shape was checked: what follows has length 1
    order = nib.io_orientation(image.affine)
    affine = image.affine @ nib.orientations.inv_ornt_aff(order, voxels.shape)
    return nib.apply_orientation(voxels, order), affine


def check_voxels(path: Path, voxels: Volume) -> tuple[Volume, list[str]]:
    """Refuses voxels that hold no brain; mends a few broken ones, and warns of it."""
    broken = int(voxels.size - np.isfinite(voxels).sum())
    if broken > voxels.size // 1000:
        raise DataError(
            f"{path}: {broken:,} of {voxels.size:,} voxels are NaN or infinite, more than 0.1 %; "
            "export it again, with 0 outside the brain"
        )
    if broken:
        voxels = np.nan_to_num(voxels, posinf=0, neginf=0)
    if voxels.min() == voxels.max():
        raise DataError(f"{path}: every voxel is {voxels.flat[0]:g}, so there is no brain in it; export it again")
    x, y, z = (max(1, side // 32) for side in voxels.shape)
    values = len(np.unique(voxels[::x, ::y, ::z]))
    if values < FEWEST_VALUES:
        raise DataError(f"{path}: it holds {values} different values, as a mask or a map of tissues does; remove it")
    return voxels, [f"{broken:,} NaN or infinite voxels set to 0"] if broken else []


def on_grid(scan: Scan, voxel_mm: float) -> bool:
    """Whether `scan` lies on cubes of side `voxel_mm` along the world's axes already."""
    return np.allclose(scan.affine[:3, :3], voxel_mm * np.eye(3), atol=1e-3 * voxel_mm)


def resample(scan: Scan, voxel_mm: float) -> Scan:
    """`scan` on a grid of cubes of side `voxel_mm` along the world's axes, linear; as it is when it is there.

    Raises:
        DataError: the cubes are so small that the scan would not fit in memory.
    """
    if on_grid(scan, voxel_mm):
        return scan
    corners = np.array(np.meshgrid(*[(0, side - 1) for side in scan.voxels.shape], indexing="ij")).reshape(3, -1)
    world = scan.affine[:3, :3] @ corners + scan.affine[:3, 3:]
    low, high = world.min(1), world.max(1)
    shape = tuple(math.ceil(length / voxel_mm - 1e-6) + 1 for length in high - low)
    if math.prod(shape) > LARGEST_SCAN:
        size = "x".join(map(str, shape))
        raise DataError(f"{scan.path}: with voxels of {voxel_mm:g} mm it has {size}; ask for a larger --voxel-mm")
    affine = np.diag([voxel_mm, voxel_mm, voxel_mm, 1.0])
    affine[:3, 3] = low
    back = np.linalg.inv(scan.affine) @ affine
    voxels = ndimage.affine_transform(
        antialias(scan, voxel_mm),
        back[:3, :3],
        back[:3, 3],
        output_shape=shape,
        order=1,
        mode="grid-constant",
        cval=background(scan.voxels),
    )
    return replace(scan, voxels=voxels, affine=affine)


def antialias(scan: Scan, voxel_mm: float) -> Volume:
    """The scan's voxels without the detail that a grid of `voxel_mm` cannot hold.

    A Gaussian that makes the full width at half maximum of the old voxels that of the new (Cardoso et al. 2015).
    """
    sigma = [math.sqrt(max((voxel_mm / side) ** 2 - 1, 0)) / 2.355 for side in scan.voxel_mm]
    return ndimage.gaussian_filter(scan.voxels, sigma) if max(sigma) > 0.1 else scan.voxels


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


def brighter_than_background(voxels: Volume) -> Mask:
    """Where a skull-stripped volume (X, Y, Z), in any units, is not background."""
    low, high = np.percentile(voxels, (1, 99))
    inside: Mask = voxels > low + BRAIN_THRESHOLD * (high - low)
    return inside


def box_of(inside: Mask) -> tuple[slice, slice, slice]:
    """The smallest box that holds every voxel of the brain."""
    x, y, z = ndimage.find_objects(inside.view(np.uint8))[0]
    return x, y, z


def brain_extent(scan: Scan, voxel_mm: float | None) -> tuple[int, int, int]:
    """Length of the brain along each axis in voxels, once resampled to `voxel_mm` (none: as it is)."""
    inside = brain_of(scan)
    if voxel_mm is None or on_grid(scan, voxel_mm):
        x, y, z = (side.stop - side.start for side in box_of(inside))
        return x, y, z
    columns = inside.any(axis=2)  # the ends of columns reach as far in any direction as all voxels do
    low = inside.argmax(axis=2)[columns]
    high = inside.shape[2] - 1 - inside[:, :, ::-1].argmax(axis=2)[columns]
    ends = np.hstack([[*np.nonzero(columns), low], [*np.nonzero(columns), high]])
    length_mm = np.ptp(scan.affine[:3, :3] @ ends, axis=1)
    x, y, z = (math.ceil(length / voxel_mm) + 1 for length in length_mm)
    return x, y, z


def prepare_scan(path: Path, voxel_mm: float | None) -> Scan:
    """The scan at `path` on the cohort's grid."""
    scan = read_scan(path)
    if voxel_mm:
        return resample(scan, voxel_mm)
    tilted = f"its axes are tilted by {scan.tilt:.0f} degrees: --voxel-mm {min(scan.voxel_mm):.3g} straightens them"
    return replace(scan, warnings=(*scan.warnings, tilted)) if scan.tilt > TILT_TO_WARN else scan


def pad_with_background(scan: Scan, shape: Shape) -> Fitted:
    """The scan in `shape` round its brain, then z-scored: the paper's text.

    Padding repeats the scan's own background: a frame of another value would be walls that the codebook learns.
    """
    box = box_of(brain_of(scan))
    start = [(side.start + side.stop - length) // 2 for side, length in zip(box, shape, strict=True)]
    scan, box_of_scan = fit_to(scan, shape, start, background(scan.voxels))
    scan, mean, deviation = normalise(scan)
    return Fitted(scan, mean, deviation, box_of_scan)


def pad_with_mean(scan: Scan, shape: Shape) -> Fitted:
    """z-scores of the scan, then padded with 0 round its middle: a frame as bright as the mean, as in the paper's code.

    Of 7 missing voxels 4 go before and 3 behind.
    """
    scan, mean, deviation = normalise(scan)
    start = [(have - want) // 2 for have, want in zip(scan.voxels.shape, shape, strict=True)]
    scan, box_of_scan = fit_to(scan, shape, start, 0.0)
    return Fitted(scan, mean, deviation, box_of_scan)


PADDING: dict[str, Callable[[Scan, Shape], Fitted]] = {"background": pad_with_background, "mean": pad_with_mean}
PADDING_OF: Difference[str] = Difference(
    "Padding and z-scores (the cohort's; not of a run)",
    "padded, then z-normalised",
    Choice(
        "z-scores first, then padded with 0: the frame is brighter than the background (only with --padding mean)",
        "mean",
    ),
    Choice("padded with the scan's own background round its brain, then z-scores (--padding background)", "background"),
)


def fit_to(scan: Scan, shape: Shape, start: list[int], fill: float) -> tuple[Scan, Box]:
    """The scan cropped or padded to `shape`, whose first voxel is `start` in the scan; and where it lies in it.

    Raises:
        DataError: the crop would cut off more than 5 % of the brain.
    """
    inside = brain_of(scan)
    source, target = overlap(start, scan.voxels.shape, shape)
    brain, kept = int(inside.sum()), int(inside[source].sum())
    lost = 1 - kept / brain
    cut = f"{lost:.1%} of its brain lies outside {'x'.join(map(str, shape))} voxels"
    if lost > LOSS_TO_REFUSE:
        raise DataError(f"{scan.path}: {cut}, more than {LOSS_TO_REFUSE:.0%}; ask for a larger --shape")
    doubts = [cut] if lost > LOSS_TO_WARN else []
    litres = brain * math.prod(scan.voxel_mm) / 1e6
    if not BRAIN_LITRES[0] <= litres <= BRAIN_LITRES[1]:
        doubts.append(f"{litres:.2g} litres are brighter than its background: is it a whole brain without its skull?")
    voxels = np.full(shape, fill, np.float32)
    voxels[target] = scan.voxels[source]
    affine = scan.affine.copy()
    affine[:3, 3] += scan.affine[:3, :3] @ np.array(start, float)
    x, y, z = ((side.start, side.stop) for side in target)
    return Scan(scan.path, voxels, affine, (*scan.warnings, *doubts)), (x, y, z)


def overlap(
    start: list[int], have: tuple[int, ...], want: tuple[int, ...]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a window of size `want` that begins at `start` meets an array of size `have`: in it, and in the window."""
    low = [max(s, 0) for s in start]
    high = [min(s + w, h) for s, w, h in zip(start, want, have, strict=True)]
    source = tuple(slice(lo, hi) for lo, hi in zip(low, high, strict=True))
    target = tuple(slice(lo - s, hi - s) for lo, hi, s in zip(low, high, start, strict=True))
    return source, target


def normalise(scan: Scan) -> tuple[Scan, float, float]:
    """z-scores of the whole volume, with its mean and deviation."""
    mean = float(scan.voxels.mean(dtype=np.float64))
    voxels = scan.voxels - np.float32(mean)
    deviation = math.sqrt(sum(float(np.square(plane, dtype=np.float64).sum()) for plane in voxels) / (voxels.size - 1))
    voxels /= deviation
    peak = max(float(voxels.max()), -float(voxels.min()))
    artefact = f"one of its voxels is {peak:.0f} deviations from the mean: an artefact that flattens the brain?"
    doubts = (artefact,) if peak > PEAK_TO_WARN else ()
    return replace(scan, voxels=voxels, warnings=scan.warnings + doubts), mean, deviation
