"""Scans are preprocessed once: a cohort's cache is keyed by what was in its files and what was done to them.

    <name>-<fingerprint>/volumes.npy   float16 z-scores (scans, X, Y, Z)
    <name>-<fingerprint>/index.json    whose, from where, split, statistics, warnings

A cache is made under a temporary name and renamed when it is whole, under a lock: many workers share one.
"""

import hashlib
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO

import numpy as np

from somvq.config import ENCODER_STRIDE, CohortSettings, signature
from somvq.data.cohort import FORMAT, Cohort, CohortIndex, ScanEntry, Split, split_subjects
from somvq.data.demo import known_factors
from somvq.data.folder import check_names, find_scans, subject_of
from somvq.data.preprocess import LARGEST_SCAN, PADDING, brain_extent, prepare_scan, read_scan
from somvq.errors import DataError
from somvq.files import locked, sync_folder, write_json

OnScan = Callable[[str, int, int], None]  # what is being done, how many scans of how many
Shape = tuple[int, int, int]
VOXEL_TOLERANCE = 0.01  # scans whose voxel sizes differ by more are not on one grid


@dataclass(frozen=True)
class Source:
    """A file of the cohort."""

    path: Path
    file: str  # its path below the cohort's folder
    subject: str
    sha256: str  # empty if it cannot be read: the check that follows says why

    @property
    def folder(self) -> Path:
        """The cohort's."""
        return self.path.parents[len(Path(self.file).parents) - 1]


@dataclass(frozen=True)
class Usable:
    """What a first look at a scan found."""

    source: Source
    voxel_mm: tuple[float, float, float]
    brain: Shape  # length of its brain in voxels of the cohort's grid
    content: str  # hash of its voxels, whatever their order and compression in the file


def prepare_cohort(folder: Path, settings: CohortSettings, caches: Path, on_scan: OnScan = lambda *_: None) -> Cohort:
    """The cohort of the T1 volumes in `folder`, prepared now or earlier.

    Raises:
        DataError: names each scan that cannot be used, or what the scans together lack.
    """
    sources = find_sources(folder, on_scan)
    split_subjects([source.subject for source in sources], settings)  # refuse too few before reading any
    content = sorted((source.subject, source.sha256) for source in sources)
    decisive = settings.model_dump(mode="json", exclude={"skip_bad_scans"})  # consent, not content
    fingerprint = signature([FORMAT, decisive, content])
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", folder.resolve().name).strip("-")[:60] or "cohort"
    target = caches / f"{name}-{fingerprint}"
    with locked(caches / f".{target.name}.lock"):
        try:
            cohort = Cohort(target)
        except DataError:  # not there, or damaged
            usable, refused = survey(sources, settings, on_scan)
            shape = settings.shape or common_shape(usable)
            check_room(caches, shape, len(usable))
            with whole_folder(target) as partial:
                scans = write_volumes(partial / "volumes.npy", usable, shape, settings, on_scan)
                index = CohortIndex(
                    format=FORMAT,
                    name=name,
                    fingerprint=fingerprint,
                    settings=settings,
                    shape=shape,
                    scans=tuple(scans),
                    left_out=tuple(line.removeprefix(f"{folder}{os.sep}") for line in refused),
                    versions={package: version(package) for package in ("somvq", "numpy", "nibabel", "scipy")},
                )
                write_json(partial / "index.json", index.model_dump(mode="json"))
            cohort = Cohort(target)
    if cohort.index.left_out and not settings.skip_bad_scans:  # prepared when the user had agreed to it
        raise DataError(complaint(cohort.index.left_out, len(sources)))
    return cohort


def find_sources(folder: Path, on_scan: OnScan) -> list[Source]:
    """The files of the cohort in `folder`, hashed."""
    paths = find_scans(folder)
    files = [path.relative_to(folder) for path in paths]
    check_names(files)
    sources = []
    for done, (path, file) in enumerate(zip(paths, files, strict=True)):
        on_scan("hashing", done, len(paths))
        sources.append(Source(path, str(file), subject_of(file), sha256_of(path)))
    return sources


def sha256_of(path: Path) -> str:
    """What is in the file `path`; empty if it cannot be read."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return ""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def survey(sources: Sequence[Source], settings: CohortSettings, on_scan: OnScan) -> tuple[list[Usable], list[str]]:
    """Reads every scan once: those that can be used, and a line for each that cannot.

    Raises:
        DataError: scans that cannot be used, unless they may be skipped; scans that cannot be used together.
    """
    usable, refused = [], []
    for done, source in enumerate(sources):
        on_scan("checking", done, len(sources))
        try:
            usable.append(look_at(source, settings))
        except DataError as error:
            refused.append(str(error))
    if refused and not settings.skip_bad_scans:
        raise DataError(complaint(refused, len(sources)))
    try:
        split_subjects([scan.source.subject for scan in usable], settings)
    except DataError as error:
        raise DataError(f"{error}; left out {len(refused)} of {len(sources)} scans: {'; '.join(refused)}") from error
    refuse_twins(usable)
    if settings.voxel_mm is None:
        refuse_mixed_voxels(usable)
    return usable, refused


def complaint(refused: Sequence[str], scans: int) -> str:
    """One line if one scan is refused, else one more than there are."""
    if len(refused) == 1:
        return f"{refused[0]}; or leave it out with --skip-bad-scans"
    advice = "mend or remove them, or leave them out with --skip-bad-scans"
    return "\n".join([f"{len(refused)} of {scans} scans cannot be used: {advice}", *refused])


def look_at(source: Source, settings: CohortSettings) -> Usable:
    """What the survey needs to know of one scan.

    Raises:
        DataError: it cannot be used.
    """
    scan = read_scan(source.path)
    brain = brain_extent(scan, settings.voxel_mm)
    if settings.shape and any(side > length for side, length in zip(brain, settings.shape, strict=True)):
        PADDING[settings.padding](
            prepare_scan(source.path, settings.voxel_mm), settings.shape
        )  # refuses a crop that cuts off too much
    content = hashlib.sha256(np.ascontiguousarray(scan.voxels).data).hexdigest()
    return Usable(source, scan.voxel_mm, brain, content)


def refuse_twins(usable: Sequence[Usable]) -> None:
    """The same scan under two names would count twice, and could leak from one split into another."""
    seen: dict[str, Source] = {}
    for scan in usable:
        source, twin = scan.source, seen.setdefault(scan.content, scan.source)
        if twin is not source:
            whose = "of another subject" if twin.subject != source.subject else "of the same subject"
            raise DataError(f"{source.path} is the same scan as {twin.path}, {whose}; remove one of them")


def refuse_mixed_voxels(usable: Sequence[Usable]) -> None:
    """Without resampling, one grid needs voxels of one size."""
    sizes = np.array([scan.voxel_mm for scan in usable])
    if np.ptp(sizes, axis=0).max() > VOXEL_TOLERANCE * sizes.min():
        small, large = (usable[int(row)].source.file for row in (sizes.min(1).argmin(), sizes.max(1).argmax()))
        raise DataError(
            f"voxels of these scans are from {sizes.min():.3g} mm ({small}) to {sizes.max():.3g} mm ({large}): "
            f"bring them to one size, for example with --voxel-mm {np.median(sizes):.3g}"
        )


def common_shape(usable: Sequence[Usable]) -> Shape:
    """The smallest shape that holds every brain and whole tokens: a multiple of 16 along each side."""
    longest = np.array([scan.brain for scan in usable]).max(axis=0)
    x, y, z = (math.ceil(side / ENCODER_STRIDE) * ENCODER_STRIDE for side in longest)
    return x, y, z


def check_room(caches: Path, shape: Shape, scans: int) -> None:
    """Refuses, before minutes of work, volumes that no memory or the disk cannot hold."""
    size = "x".join(map(str, shape))
    if math.prod(shape) > LARGEST_SCAN:
        raise DataError(f"shape {size} is more than any scan has; ask for a smaller --shape or a larger --voxel-mm")
    needed, free = 2 * math.prod(shape) * scans, shutil.disk_usage(caches).free
    if needed > free:
        raise DataError(
            f"{caches}: {scans} scans of {size} voxels need {needed / 1e9:.2g} GB and {free / 1e9:.2g} GB are free; "
            "free space there, or choose another place"
        )


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to fill that takes the place of `target` when it is whole, or vanishes; the caller holds its lock."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir()
    try:
        yield partial
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_volumes(
    path: Path, usable: Sequence[Usable], shape: Shape, settings: CohortSettings, on_scan: OnScan
) -> list[ScanEntry]:
    """Writes the preprocessed scans one after the other, as one array; returns what the index says of each.

    A plain file, not a memory map: a full disk then is an error with a name, not a bus error.
    """
    splits = split_subjects([scan.source.subject for scan in usable], settings)
    factors = known_factors(usable[0].source.folder)
    entries = []
    with path.open("wb") as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": (len(usable), *shape)}
        np.lib.format.write_array_header_1_0(file, header)
        for row, scan in enumerate(usable):
            on_scan("preprocessing", row, len(usable))
            entry = write_volume(file, scan.source, splits[scan.source.subject], shape, settings)
            entries.append(entry.model_copy(update={"factors": factors.get(scan.source.file, {})}))
        file.flush()
        os.fsync(file.fileno())
    return entries


def write_volume(file: IO[bytes], source: Source, split: Split, shape: Shape, settings: CohortSettings) -> ScanEntry:
    """Appends one preprocessed scan to `file`; returns what the index says of it.

    Raises:
        DataError: it is no longer the scan that was hashed.
    """
    fitted = PADDING[settings.padding](prepare_scan(source.path, settings.voxel_mm), shape)
    if sha256_of(source.path) != source.sha256:
        raise DataError(f"{source.path}: it changed while it was being prepared; leave it alone and run again")
    # A z-score of n voxels is below the root of n, so float16 (to 65504) holds any of LARGEST_SCAN.
    file.write(fitted.scan.voxels.astype("<f2").tobytes())
    return ScanEntry(
        subject=source.subject,
        file=source.file,
        sha256=source.sha256,
        split=split,
        mean=fitted.mean,
        deviation=fitted.deviation,
        affine=tuple(tuple(float(number) for number in line) for line in fitted.scan.affine),
        box=fitted.box,
        warnings=fitted.scan.warnings,
    )
