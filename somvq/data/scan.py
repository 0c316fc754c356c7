"""One scan, read from its file; what cannot be read honestly is refused in one line."""

import gzip
import math
import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.imageglobals import logger as nibabel_log
from nibabel.orientations import OrientationError
from nibabel.spatialimages import HeaderDataError
from scipy import ndimage

from somvq.errors import DataError, NotNow
from somvq.files import parts_of

Volume = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Affine = npt.NDArray[np.float64]

LARGEST_SCAN = 1024**3  # voxels; a header that claims more is damaged, and would fill the memory
VOXEL_LIMITS_MM = (0.05, 20)  # lengths of a side; outside are metres, micrometres and damage
BRAIN_THRESHOLD = 0.05  # from the 1st to the 99th percentile; noise fills the air of many scans, so 0 will not do
BROKEN_TO_REFUSE = 0.001  # share of the brain's voxels that are no numbers
MANY_VOXELS = 5_000_000
FEWEST_VALUES = 8  # a mask or a map of tissues has fewer different values, a scan has many more
GZIPPED = (".gz", ".mgz")
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


class Remark(NamedTuple):
    """Something odd about a scan that is used all the same."""

    problem: str
    done: str  # about it

    def __str__(self) -> str:
        return f"{self.problem}: {self.done}"


@dataclass(frozen=True)
class Scan:
    """A T1 volume in RAS order: `voxels` (X, Y, Z), `affine` (4, 4) from voxel to world in mm."""

    path: Path
    voxels: Volume
    affine: Affine
    remarks: tuple[Remark, ...] = ()

    @property
    def voxel_mm(self) -> tuple[float, float, float]:
        """Side lengths of a voxel, from the affine: headers' own zooms can disagree with it."""
        return sides_of(self.affine)

    @property
    def tilt(self) -> float:
        """The largest angle between an axis of the scan and the world's, in degrees."""
        cosines = np.abs(np.diag(self.affine)[:3]) / self.voxel_mm
        return math.degrees(math.acos(min(1.0, cosines.min())))


class Geometry(NamedTuple):
    """How a scan lies in its file: shape, side lengths of a voxel, and which way its axes point, as in LIA."""

    shape: tuple[int, ...] = ()
    voxel_mm: tuple[float, ...] = ()
    axes: str = ""


def read_scan(path: Path, *, mask: Path | None = None, orient: str | None = None) -> Scan:
    """The scan at `path`, in the closest RAS order, as float32; 0 outside `mask`, a volume on its grid.

    `orient` (as "LAS") says which way the axes point of a file whose header does not.

    Raises:
        DataError: one line that names the file, what is wrong with it and what to do.
    """
    image, remarks = open_image(path, orient)
    brain = None if mask is None else read_mask(mask, path, image)
    with readable(path):
        voxels = np.asarray(image.get_fdata(dtype=np.float32, caching="unchanged"))
        voxels = voxels.reshape(voxels.shape[:3])  # the shape was checked: what follows has length 1
    voxels, mended = check_voxels(path, voxels, brain)
    return Scan(path, *to_ras(voxels, image.affine), (*remarks, *mended))


def read_geometry(path: Path) -> Geometry:
    """What the header of `path` says of its voxels, as far as it can be read."""
    try:
        with quiet():
            image: Any = nib.load(path, mmap=False)
            shape = tuple(int(side) for side in image.shape)
            axes = "".join(letter or "?" for letter in nib.aff2axcodes(image.affine))
            return Geometry(shape, sides_of(image.affine), axes)
    except UNREADABLE:
        return Geometry()


def sides_of(affine: Affine) -> tuple[float, float, float]:
    """Side lengths of a voxel in mm."""
    x, y, z = nib.affines.voxel_sizes(affine)
    return float(x), float(y), float(z)


def open_image(path: Path, orient: str | None) -> tuple[Any, list[Remark]]:
    """The image at `path`, its header checked, no voxel read yet, and what is odd about where it lies.

    Raises:
        DataError: it is no single T1 volume in a known place.
    """
    with readable(path):
        for part in parts_of(path):
            check_stream(part)
        image: Any = nib.load(path, mmap=False)
        check_header(path, image)
        placed, remarks = place(image, orient)
    return placed, remarks


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Says in one line what nibabel finds wrong with the file `path`."""
    try:
        with quiet():
            yield
    except UNREADABLE as error:
        raise refusal_of(path, error) from error


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
    if path.name.lower().endswith(GZIPPED):
        with gzip.open(path) as stream:
            while stream.read(1 << 22):
                pass


def refusal_of(path: Path, error: BaseException) -> DataError:
    """What is said of a file that cannot be read; NotNow if that is no fault of the file's."""
    fault, advice = damage(path, error)
    passing = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno and path.exists())
    return (NotNow if passing else DataError)(f"{path}: cannot be read ({fault}); {advice}")


def damage(path: Path, error: BaseException) -> tuple[str, str]:
    """What a file that cannot be read looks like, in a few words, and what to do; never a word of its header."""
    again = "copy it again"
    try:
        for part in parts_of(path):
            if part.is_symlink() and not part.exists():
                annexed = "annex" in str(part.readlink())
                fetch = "fetch it, as with git annex get" if annexed else "mend the link or remove it"
                return f"it is a link to {part.readlink()}, which is not there", fetch
            if not part.exists():
                return "no such file" if part == path else f"its {part.suffix}, {part.name}, is missing", again
            if not part.is_file():
                return "it is not a file", "remove it, or name the file that is meant"
        with path.open("rb") as file:
            head = file.read(132)
    except OSError as reason:
        return str(reason.strerror), again
    if not head:
        return "the file is empty", again
    if b"git-lfs" in head or b"/annex/" in head:
        return "it is a pointer of git-lfs or git-annex", "fetch the data itself, as with git lfs pull"
    if head[128:] == b"DICM":
        return "it is a DICOM file", "convert it to NIfTI, as with dcm2niix"
    if isinstance(error, EOFError):
        return "the gzip stream ends too early: the copy is incomplete", again
    if isinstance(error, zlib.error) or "CRC" in str(error) or "Incorrect length" in str(error):
        return "the gzip stream is damaged: its checksum does not fit", again
    if head[:2] == b"\x1f\x8b" and not path.name.lower().endswith(GZIPPED):
        return "it is gzipped, but its name does not end in .gz", "rename it"
    if isinstance(error, gzip.BadGzipFile):
        return "it is not gzipped, or is damaged, though its name says it is", "rename it or copy it again"
    if isinstance(error, KeyError):
        return f"its header names a type of voxels that there is not, {error}", again
    if short := re.match(r"Expected (\d+) bytes, got (\d+)", str(error)):
        needed, there = map(int, short.groups())
        return f"its voxels need {needed:,} bytes and there are {there:,}: the copy is incomplete", again
    if isinstance(error, ImageFileError):
        return "it does not begin like a NIfTI, Analyze or MGH file", "convert it to NIfTI"
    if isinstance(error, MemoryError):
        return "there is not enough memory", "ask for more, or for fewer processes at once"
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error).strip()
    return said.splitlines()[0][:120] if said else type(error).__name__, again


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


def place(image: Any, orient: str | None) -> tuple[Any, list[Remark]]:
    """`image` where its header, or else `orient`, says that it lies; and why left might be right in it."""
    if not says_where(image.header):
        axes = orient or "".join(nib.aff2axcodes(image.affine))
        done = f"its axes are taken for {axes}" + ("" if orient else ", a guess; --orient says otherwise")
        if orient:
            affine = affine_of(orient, sides_of(image.affine), image.shape[:3])
            image = nib.spatialimages.SpatialImage(image.dataobj, affine)
        return image, [Remark("its header does not say which way its axes point", done)]
    header = image.header
    if not isinstance(header, nib.Nifti1Header) or not (int(header["sform_code"]) > 0 < int(header["qform_code"])):
        return image, []
    try:
        agree = np.allclose(header.get_qform()[:3, :3], image.affine[:3, :3], atol=0.02)
    except (ValueError, HeaderDataError):
        agree = False
    return image, [] if agree else [Remark("its sform and qform disagree", "the sform is used")]


def says_where(header: Any) -> bool:
    """Whether `header` says which way the volume lies; Analyze headers cannot."""
    if isinstance(header, nib.freesurfer.mghformat.MGHHeader):
        return bool(header["goodRASFlag"])
    return isinstance(header, nib.Nifti1Header) and (int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0)


def affine_of(axes: str, voxel_mm: tuple[float, float, float], shape: tuple[int, ...]) -> Affine:
    """From voxel to world of a volume round the world's origin whose axes point as `axes` says."""
    affine = np.eye(4)
    order = nib.orientations.axcodes2ornt(axes)
    for axis, ((towards, sign), side) in enumerate(zip(order, voxel_mm, strict=True)):
        affine[:3, axis] = 0
        affine[int(towards), axis] = sign * side
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine


def read_mask(mask: Path, path: Path, image: Any) -> Mask:
    """Where `mask` is not 0, in the order in which the voxels of `image` (at `path`) lie in their file.

    Raises:
        DataError: it cannot be read, is empty, or lies on another grid.
    """
    found, _ = open_image(mask, None)
    same_place = not says_where(found.header) or np.allclose(found.affine, image.affine, atol=0.01)
    if found.shape[:3] != image.shape[:3] or not same_place:
        raise DataError(f"{path}: its mask {mask} is on another grid; give the mask of the same space and resolution")
    with readable(mask):
        brain: Mask = np.asanyarray(found.dataobj).reshape(found.shape[:3]) > 0
    if not brain.any():
        raise DataError(f"{path}: its mask {mask} is 0 everywhere; make it again, or give none")
    return brain


def check_voxels(path: Path, voxels: Volume, brain: Mask | None) -> tuple[Volume, list[Remark]]:
    """`voxels` without what is no number and, where there is a mask, without what is not `brain`.

    Raises:
        DataError: they hold no brain, or too much of it is no number.
    """
    finite = np.isfinite(voxels)
    remarks = []
    if not finite.all():
        infinite = int(np.isinf(voxels).sum())
        voxels[~finite] = 0  # in place: it is a copy of the file's, and memory is dear
        remarks.append(judge_broken(path, voxels, ~finite, infinite, brain))
    if brain is not None:
        voxels[~brain] = min(np.float32(0), voxels[brain].min())
    if voxels.min() == voxels.max():
        raise DataError(f"{path}: every voxel is {voxels.flat[0]:g}, so there is no brain in it; export it again")
    x, y, z = (max(1, side // 32) for side in voxels.shape)
    values = len(np.unique(voxels[::x, ::y, ::z]))
    if values < FEWEST_VALUES:
        raise DataError(f"{path}: it holds {values} different values, as a mask or a map of tissues does; remove it")
    return voxels, remarks


def judge_broken(path: Path, voxels: Volume, broken: Mask, infinite: int, brain: Mask | None) -> Remark:
    """What is said of `broken` voxels, which are 0 now: many programs write NaN all round the brain, but none Inf.

    Raises:
        DataError: too many of them are in the brain.
    """
    if brain is None:
        brain = ndimage.binary_fill_holes(ndimage.binary_closing(brighter_than_background(voxels), iterations=2))
    count, inside, size = int(broken.sum()), int((broken & brain).sum()), int(brain.sum())
    if infinite > BROKEN_TO_REFUSE * broken.size or count == broken.size:
        raise DataError(f"{path}: {count:,} of {broken.size:,} voxels are NaN or infinite; export it again")
    if inside > BROKEN_TO_REFUSE * size:
        share = f"{inside:,} of {size:,} voxels of the brain are NaN or infinite, more than {BROKEN_TO_REFUSE:.1%}"
        raise DataError(f"{path}: {share}; export it again")
    where = f", {inside:,} of them in the brain" if inside else ""
    return Remark(f"{count:,} voxels are NaN or infinite{where}", "set to 0")


def brighter_than_background(voxels: Volume) -> Mask:
    """Where a skull-stripped volume (X, Y, Z), in any units, is not background."""
    few = voxels[::2, ::2, ::2] if voxels.size > MANY_VOXELS else voxels  # an eighth of many says the same, sooner
    low, high = np.percentile(few, (1, 99))
    inside: Mask = voxels > low + BRAIN_THRESHOLD * (high - low)
    return inside


def to_ras(voxels: Volume, affine: Affine) -> tuple[Volume, Affine]:
    """`voxels` and `affine` with axes swapped and flipped to the closest RAS order.

    nib.as_closest_canonical does the same by way of a float64 copy: twice the memory.
    """
    order = nib.io_orientation(affine)
    turned = affine @ nib.orientations.inv_ornt_aff(order, voxels.shape)
    return nib.apply_orientation(voxels, order), turned
