"""Scans are preprocessed once: a cohort's cache is keyed by what was in its files and what was done to them.

    <name>-<fingerprint>/volumes.npy   float16 z-scores (scans, X, Y, Z)
    <name>-<fingerprint>/index.json    whose, from where, split, statistics, warnings

A cache is made under a temporary name and renamed when it is whole, under a lock: many workers share one.
"""

import hashlib
import math
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from somvq.config import ENCODER_STRIDE, CohortSettings, signature
from somvq.data.cohort import FORMAT, Cohort, CohortIndex, ScanEntry, split_subjects
from somvq.data.folder import find_scans, subject_of
from somvq.data.preprocess import Scan, brain_box, centre, normalise, read_scan, resample
from somvq.errors import DataError
from somvq.files import locked, sync_folder, write_json

OnScan = Callable[[str, int, int], None]  # what is being done, how many scans of how many
VOXEL_TOLERANCE = 0.01  # scans whose voxel sizes differ by more are not on one grid


@dataclass(frozen=True)
class Source:
    """A file of the cohort."""

    path: Path
    subject: str
    sha256: str


def prepare_cohort(folder: Path, settings: CohortSettings, caches: Path, on_scan: OnScan = lambda *_: None) -> Cohort:
    """The cohort of the T1 volumes in `folder`, prepared now or earlier.

    Raises:
        DataError: names each scan that cannot be used, or what the scans together lack.
    """
    paths = find_scans(folder)
    split_subjects([subject_of(path) for path in paths], settings.split_seed)  # refuse too few before reading any
    sources = []
    for done, path in enumerate(paths):
        on_scan("hashing", done, len(paths))
        sources.append(Source(path, subject_of(path), sha256_of(path)))
    refuse_twins(sources)
    content = sorted((source.subject, source.sha256) for source in sources)
    fingerprint = signature([FORMAT, settings.model_dump(mode="json"), content])
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", folder.resolve().name).strip("-") or "cohort"
    target = caches / f"{name}-{fingerprint}"
    with locked(caches / f".{target.name}.lock"):
        try:
            return Cohort(target)
        except DataError:
            shutil.rmtree(target, ignore_errors=True)
        make_cache(target, folder, name, fingerprint, sources, settings, on_scan)
    return Cohort(target)


def sha256_of(path: Path) -> str:
    """What is in the file `path`.

    Raises:
        DataError: it cannot be read at all.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); mend the link or the permission") from error


def refuse_twins(sources: Sequence[Source]) -> None:
    """The same bytes under two subjects' names would leak from one split into another."""
    seen: dict[str, Source] = {}
    for source in sources:
        twin = seen.setdefault(source.sha256, source)
        if twin.subject != source.subject:
            raise DataError(f"{source.path} is the same file as {twin.path}, of another subject; remove one of them")


def make_cache(
    target: Path,
    folder: Path,
    name: str,
    fingerprint: str,
    sources: Sequence[Source],
    settings: CohortSettings,
    on_scan: OnScan,
) -> None:
    """Preprocesses `sources` into `target`, which appears whole or not at all."""
    usable, left_out, shape = survey(sources, settings, on_scan)
    splits = split_subjects([source.subject for source in usable], settings.split_seed)
    partial = target.with_name(f".{target.name}.partial")  # ours alone: the caller holds the cohort's lock
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        volumes = np.lib.format.open_memmap(partial / "volumes.npy", "w+", np.float16, (len(usable), *shape))
        scans = []
        for row, source in enumerate(usable):
            on_scan("preprocessing", row, len(usable))
            scan = prepare_scan(source.path, settings)
            voxels, affine, warnings = centre(scan, shape)
            volumes[row], mean, deviation = normalise(voxels)
            scans.append(
                ScanEntry(
                    subject=source.subject,
                    file=str(source.path.relative_to(folder)),
                    sha256=source.sha256,
                    split=splits[source.subject],
                    mean=mean,
                    deviation=deviation,
                    affine=tuple(tuple(float(x) for x in line) for line in affine),
                    warnings=warnings,
                )
            )
        volumes.flush()
        index = CohortIndex(
            format=FORMAT,
            name=name,
            fingerprint=fingerprint,
            settings=settings,
            shape=shape,
            scans=tuple(scans),
            left_out=tuple(left_out),
            versions={package: version(package) for package in ("somvq", "numpy", "nibabel", "scipy")},
        )
        write_json(partial / "index.json", index.model_dump(mode="json"))
        partial.rename(target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def prepare_scan(path: Path, settings: CohortSettings) -> Scan:
    """The scan at `path` on the cohort's grid."""
    scan = read_scan(path)
    return resample(scan, settings.voxel_mm) if settings.voxel_mm else scan


def survey(
    sources: Sequence[Source], settings: CohortSettings, on_scan: OnScan
) -> tuple[list[Source], list[str], tuple[int, int, int]]:
    """Reads every scan once: those that can be used, a line for each that cannot, and the shape for all.

    Raises:
        DataError: scans that cannot be used, unless they may be skipped; scans on different grids.
    """
    usable, left_out, extents, spacings = [], [], [], []
    for done, source in enumerate(sources):
        on_scan("checking", done, len(sources))
        try:
            scan = read_scan(source.path)
        except DataError as error:
            left_out.append(str(error))
            continue
        usable.append(source)
        spacings.append(scan.voxel_mm)
        extents.append([side.stop - side.start for side in brain_box(scan.voxels)])
    if left_out and not settings.skip_bad_scans:
        advice = "mend or remove it, or leave it out with --skip-bad-scans"
        raise DataError("\n".join([*left_out, f"{len(left_out)} of {len(sources)} scans cannot be used: {advice}"]))
    if not usable:
        raise DataError("\n".join([*left_out, "no scan of this cohort can be used"]))
    return usable, left_out, settings.shape or common_shape(extents, spacings, settings.voxel_mm)


def common_shape(
    extents: Sequence[Sequence[int]], spacings: Sequence[Sequence[float]], voxel_mm: float | None
) -> tuple[int, int, int]:
    """The smallest shape that holds every brain and whole tokens: a multiple of 16 along each side."""
    spacing = np.array(spacings)
    if voxel_mm is None and np.ptp(spacing, axis=0).max() > VOXEL_TOLERANCE * spacing.min():
        low, high = spacing.min(), spacing.max()
        raise DataError(f"voxels of these scans are from {low:.3g} to {high:.3g} mm: bring them to one size, "
                        f"for example with --voxel-mm {np.median(spacing):.3g}")  # fmt: skip
    scale = spacing / voxel_mm if voxel_mm else np.ones_like(spacing)
    longest = np.ceil(np.array(extents) * scale).max(axis=0)
    x, y, z = (math.ceil(side / ENCODER_STRIDE) * ENCODER_STRIDE for side in longest)
    return int(x), int(y), int(z)
