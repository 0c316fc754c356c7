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
from somvq.data.preprocess import Fitted, Shape, brain_extent, brain_of, fit, normalise, on_cohort_grid
from somvq.data.scan import Geometry, Remark, read_geometry, read_scan
from somvq.errors import DataError
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

    def content(self) -> list[object]:
        """What of it decides a prepared cohort."""
        scan = self.scan
        return [scan.subject, self.sha256, self.mask_sha256, scan.split, dict(scan.covariates)]


@dataclass(frozen=True)
class Look:
    """What a look at a scan found; what follows `refusal` only if there is none."""

    source: Source
    geometry: Geometry
    refusal: str = ""  # why it cannot be used: one line that names it
    remarks: tuple[Remark, ...] = ()
    voxel_mm: tuple[float, float, float] = (0, 0, 0)  # in RAS order
    brain: Shape = (0, 0, 0)  # lengths of its brain in voxels of the cohort's grid
    content: str = ""  # hash of its voxels, whatever their order and compression in the file

    def refused(self, why: str) -> "Look":
        """The same, not to be used."""
        return replace(self, refusal=f"{self.source.scan.path}: {why}")


def hash_scans(scans: Sequence[ScanFile], digests: Digests, on_scan: OnScan) -> list[Source]:
    """The scans with what is in their files."""
    sources = []
    for done, scan in enumerate(scans):
        on_scan("hashing", done, len(scans))
        sources.append(Source(scan, digests.of(scan.path), digests.of(scan.mask) if scan.mask else ""))
    digests.save()
    return sources


def survey(sources: Sequence[Source], settings: CohortSettings, on_scan: OnScan) -> list[Look]:
    """A look at each scan, in their order."""
    looks = share_out(
        partial(look_at, settings=settings), sources, lambda done: on_scan("checking", done, len(sources))
    )
    return refuse_twins(looks)


def look_at(source: Source, settings: CohortSettings) -> Look:
    """What the survey needs to know of one scan; tries on it whatever could fail when it is prepared."""
    scan_file = source.scan
    try:
        scan = read_scan(scan_file.path, mask=scan_file.mask, orient=settings.orient)
        if scan_file.sha256 and scan_file.sha256 != (found := sha256_of(parts_of(scan_file.path))):
            refusal = f"its sha256 is {found[:12]}..., not {scan_file.sha256[:12]}... as its manifest says"
            raise DataError(f"{scan_file.path}: {refusal}; copy it again")
        content = hashlib.sha256(np.ascontiguousarray(scan.voxels).data).hexdigest()
        brain = brain_extent(scan, settings.voxel_mm)
        if settings.shape and any(side > length for side, length in zip(brain, settings.shape, strict=True)):
            on_grid = on_cohort_grid(scan, settings.voxel_mm, settings.shape)
            fit(on_grid, settings.shape, settings)  # refuses a crop that cuts too much
        elif settings.normalise == "brain":
            normalise(scan, scan.voxels[brain_of(scan)])  # refuses an artefact
    except DataError as error:
        return Look(source, read_geometry(scan_file.path), str(error))
    return Look(source, read_geometry(scan_file.path), "", scan.remarks, scan.voxel_mm, brain, content)


def refuse_twins(looks: Sequence[Look]) -> list[Look]:
    """`looks` in which no scan counts twice: of one subject the first stays, of two subjects none.

    Under two subjects' names it could leak from one split into another, and whose it is is not known.
    """
    copies: dict[str, list[Look]] = {}
    for look in looks:
        if not look.refusal:
            copies.setdefault(look.content, []).append(look)
    judged = []
    for look in looks:
        first, *others = copies.get(look.content, [look])
        twin = first if look is not first else next(iter(others), None)
        if look.refusal or twin is None:
            judged.append(look)
        elif len({copy.source.scan.subject for copy in (first, *others)}) > 1:
            judged.append(look.refused(f"it is the same scan as {twin.source.scan.file}, of another subject; "
                                       "find out whose it is, and remove the other"))  # fmt: skip
        else:
            judged.append(look if look is first else look.refused(f"it is the same scan as {twin.source.scan.file}; "
                                                                  "remove one of them"))  # fmt: skip
    return judged


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
    longest = np.array([look.brain for look in usable]).max(axis=0)
    x, y, z = (math.ceil(side / ENCODER_STRIDE) * ENCODER_STRIDE for side in longest)
    return x, y, z


def prepare_scan(source: Source, shape: Shape, settings: CohortSettings) -> Fitted:
    """One scan as a model reads it.

    Raises:
        DataError: it cannot be used.
    """
    path, mask = source.scan.path, source.scan.mask
    return fit(
        on_cohort_grid(read_scan(path, mask=mask, orient=settings.orient), settings.voxel_mm, shape), shape, settings
    )


def rehearse(looks: Sequence[Look], shape: Shape, settings: CohortSettings, on_scan: OnScan) -> list[Look]:
    """`looks` with all that preparing their scans in `shape` would say."""
    usable = [look for look in looks if not look.refusal]
    judged = share_out(
        partial(rehearse_one, shape=shape, settings=settings),
        usable,
        lambda done: on_scan("preprocessing", done, len(usable)),
    )
    by_file = {look.source.scan.path: look for look in judged}
    return [look if look.refusal else by_file[look.source.scan.path] for look in looks]


def rehearse_one(look: Look, shape: Shape, settings: CohortSettings) -> Look:
    """`look` with all that preparing its scan would say."""
    try:
        return replace(look, remarks=prepare_scan(look.source, shape, settings).scan.remarks)
    except DataError as error:
        return replace(look, refusal=str(error))


def below(folder: Path, line: str) -> str:
    """`line` about a scan, with its path as it is below the cohort's folder."""
    return line.removeprefix(f"{folder if folder.is_dir() else folder.parent}/")
