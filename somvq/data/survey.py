"""A look at every scan of a cohort before any is prepared: which can be used, and what is wrong with the others."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from somvq.config import ENCODER_STRIDE, CohortSettings
from somvq.data.digests import Digests, sha256_of
from somvq.data.preprocess import Shape, box_of, brain_of, extent_of, moments, normalise, prepare
from somvq.data.scan import Remark, read_scan, refusal_of
from somvq.errors import DataError, NotNow
from somvq.files import parts_of
from somvq.processes import share_out
from somvq.sources.found import ScanFile

OnScan = Callable[[str, int, int], None]  # what is being done, how many scans are done, of how many
VOXEL_TOLERANCE = 0.01  # scans whose voxel sizes differ by more are not on one grid


@dataclass(frozen=True)
class Source:
    """A scan's file and what is in it now."""

    scan: ScanFile
    sha256: str  # empty if it cannot be read: a look at it says why
    mask_sha256: str = ""

    def changed(self) -> bool:
        """Whether its files are no longer what they were, or no longer there."""
        scan = self.scan
        try:
            mask = sha256_of(parts_of(scan.mask)) if scan.mask else ""
            return (sha256_of(parts_of(scan.path)), mask) != (self.sha256, self.mask_sha256)
        except OSError:
            return True

    def content(self) -> list[object]:
        """What of it decides a prepared cohort."""
        scan = self.scan
        as_promised = scan.sha256 in ("", self.sha256)
        return [scan.subject, self.sha256, self.mask_sha256, as_promised, scan.split, dict(scan.covariates)]


@dataclass(frozen=True)
class Look:
    """What a look at a scan found; what follows `refusal` only if there is none."""

    source: Source
    refusal: str = ""  # why it cannot be used: one line that names it
    passing: bool = False  # another time it may be usable
    remarks: tuple[Remark, ...] = ()
    voxel_mm: tuple[float, float, float] = (0, 0, 0)  # in RAS order
    extent: Shape = (0, 0, 0)  # lengths of what must fit into the cohort's shape, in voxels of its grid
    content: str = ""  # hash of its brain's voxels, whatever their order and compression in the file

    def refused(self, error: DataError) -> "Look":
        """The same, of a scan that cannot be used."""
        return replace(self, refusal=str(error), passing=isinstance(error, NotNow))


def hash_scans(scans: Sequence[ScanFile], digests: Digests, on_scan: OnScan) -> list[Source]:
    """The scans with what is in their files."""
    sources = []
    for done, scan in enumerate(scans, 1):
        sources.append(Source(scan, digests.of(scan.path), digests.of(scan.mask) if scan.mask else ""))
        on_scan("hashing", done, len(scans))
    digests.save()
    return sources


def survey(sources: Sequence[Source], settings: CohortSettings, on_scan: OnScan) -> list[Look]:
    """A look at each scan, in their order."""
    looks = share_out(
        partial(look_at, settings=settings), sources, lambda done: on_scan("checking", done, len(sources))
    )
    return refuse_twins(looks)


def look_at(source: Source, settings: CohortSettings) -> Look:
    """What the survey needs to know of one scan; tries on it what could fail when it is prepared."""
    path, mask, promised = source.scan.path, source.scan.mask, source.scan.sha256
    try:
        scan = read_scan(path, mask=mask, orient=settings.orient)
        found = sha256_of(parts_of(path)) if promised else ""
        if promised != found:
            fault = f"its sha256 is {found[:12]}..., not {promised[:12]}... as its manifest says"
            raise DataError(f"{path}: {fault}; copy it again")
        inside = brain_of(scan)
        if settings.normalise == "brain":
            normalise(scan, *moments(scan.voxels[inside]))  # refuses an artefact
        whole = settings.padding == "mean"  # which pads whole volumes, as the paper's code did
        extent = extent_of(scan, np.ones_like(inside) if whole else inside, settings.voxel_mm)
        content = hashlib.sha256(np.ascontiguousarray(scan.voxels[box_of(inside)]).data).hexdigest()
    except DataError as error:
        return Look(source).refused(error)
    except (OSError, MemoryError) as error:  # of its checksum; of a machine that has too little for it
        return Look(source).refused(refusal_of(path, error))
    look = Look(source, "", False, scan.remarks, scan.voxel_mm, extent, content)
    if settings.shape is None or all(side <= length for side, length in zip(extent, settings.shape, strict=True)):
        return look
    del scan, inside  # to try the crop, it is read once more
    return try_out(look, settings.shape, settings)


def refuse_twins(looks: Sequence[Look]) -> list[Look]:
    """`looks` in which no scan counts twice: of one subject the first stays, of two subjects none.

    Under two subjects' names it could leak from one split into another, and whose it is is not known.
    """
    copies: dict[str, list[Look]] = {}
    for look in looks:
        if not look.refusal:
            copies.setdefault(look.content, []).append(look)
    return [replace(look, refusal=twin_of(look, copies.get(look.content, []))) for look in looks]


def twin_of(look: Look, copies: Sequence[Look]) -> str:
    """Why the scan cannot be used beside `copies` of the same voxels, itself among them; empty if it can."""
    others = [copy for copy in copies if copy is not look]
    if look.refusal or not others:
        return look.refusal
    scan, twin = look.source.scan, others[0].source.scan
    if any(copy.source.scan.subject != scan.subject for copy in others):
        advice = "of another subject; find out whose it is, and remove the other"
        return f"{scan.path}: it is the same scan as {twin.file}, {advice}"
    return "" if look is copies[0] else f"{scan.path}: it is the same scan as {twin.file}; remove one of them"


def refuse_mixed_voxels(usable: Sequence[Look], settings: CohortSettings) -> None:
    """Without resampling, one grid needs voxels of one size."""
    if settings.voxel_mm is not None:
        return
    sizes = np.array([look.voxel_mm for look in usable])
    if np.ptp(sizes, axis=0).max() > VOXEL_TOLERANCE * sizes.min():
        small, large = (usable[int(row)].source.scan.file for row in (sizes.min(1).argmin(), sizes.max(1).argmax()))
        raise DataError(
            f"voxels of these scans are from {sizes.min():.3g} mm ({small}) to {sizes.max():.3g} mm ({large}): "
            f"bring them to one size, for example with --voxel-mm {np.median(sizes):.3g}"
        )


def common_shape(usable: Sequence[Look]) -> Shape:
    """The smallest shape that holds every brain and whole tokens: a multiple of 16 along each side."""
    longest = np.array([look.extent for look in usable]).max(axis=0)
    x, y, z = (math.ceil(side / ENCODER_STRIDE) * ENCODER_STRIDE for side in longest)
    return x, y, z


def who_needs_more(usable: Sequence[Look]) -> tuple[str, Shape] | None:
    """The scan that alone makes the common shape a quarter larger or more, and the shape of the others."""
    shape = common_shape(usable)
    for side in range(3):
        longest = max(usable, key=lambda look: look.extent[side])
        others = common_shape([look for look in usable if look is not longest])
        if math.prod(shape) >= 1.25 * math.prod(others):
            return longest.source.scan.file, others
    return None


def try_out(look: Look, shape: Shape, settings: CohortSettings) -> Look:
    """`look` with all that preparing its scan would say of it."""
    if look.refusal:
        return look
    path = look.source.scan.path
    try:
        fitted = prepare(path, look.source.scan.mask, shape, settings)
    except DataError as error:
        return look.refused(error)
    except (OSError, MemoryError) as error:
        return look.refused(refusal_of(path, error))
    return replace(look, remarks=fitted.scan.remarks)


def below(folder: Path, line: str) -> str:
    """`line` about a scan, with its path as it is below the cohort's folder."""
    return line.removeprefix(f"{folder if folder.is_dir() else folder.parent}/")
