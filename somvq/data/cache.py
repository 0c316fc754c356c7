"""Scans are preprocessed once: a cohort's cache is keyed by what was in its files and what was done to them.

    <name>-<fingerprint>/volumes.npy   float16 z-scores (scans, X, Y, Z)
    <name>-<fingerprint>/index.json    whose, from where, split, statistics, warnings

A cache is made under a temporary name and renamed when it is whole, under a lock: many workers share one.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from somvq.config import CohortSettings, Split, signature
from somvq.data.cohort import FORMAT, Cohort, CohortIndex, ScanEntry
from somvq.data.digests import Digests, sha256_of
from somvq.data.preprocess import Shape
from somvq.data.scan import LARGEST_SCAN
from somvq.data.splits import split_scans
from somvq.data.survey import OnScan, Source, below, common_shape, hash_scans, prepare_scan, refuse_mixed_voxels, survey
from somvq.errors import DataError
from somvq.files import locked, parts_of, sync_folder, write_json
from somvq.processes import share_out
from somvq.sources import find_scans
from somvq.sources.found import Found

DIGESTS = ".digests.json"


def prepare_cohort(
    folder: Path,
    settings: CohortSettings,
    caches: Path,
    on_scan: OnScan = lambda *_: None,
    found: Found | None = None,
) -> Cohort:
    """The cohort of the T1 volumes in `folder` (or its manifest), prepared now or earlier.

    Scans that cannot be used are left out, and named in its index; `found` is what looking there has found already.

    Raises:
        DataError: what the scans together lack; with `settings.strict`, each scan that cannot be used.
    """
    found = found or find_scans(folder, settings)
    split_scans(found.scans, settings)  # refuse too few before reading any
    sources = hash_scans(found.scans, Digests(caches / DIGESTS), on_scan)
    fingerprint = signature([FORMAT, settings.decisive(), sorted(json.dumps(source.content()) for source in sources)])
    target = caches / f"{cache_name(folder)}-{fingerprint}"
    with locked(caches / f".{target.name}.lock"):
        try:
            cohort = Cohort(target)
        except DataError:  # not there, or damaged
            make_cohort(target, folder, found, sources, settings, on_scan)
            cohort = Cohort(target)
    if settings.strict:
        refuse_any([*found.left_out, *cohort.index.left_out], len(sources) + len(found.left_out))
    return cohort


def list_prepared(caches: Path) -> list[Cohort]:
    """The prepared cohorts in `caches`, oldest first; what is no whole cohort is passed over: it is made again."""
    cohorts = []
    for index in sorted(caches.glob("*/index.json"), key=lambda path: path.stat().st_mtime):
        with suppress(DataError):
            cohorts.append(Cohort(index.parent))
    return cohorts


def find_prepared(caches: Path, name: str) -> Cohort:
    """The prepared cohort in the folder `name`, or called so in `caches`; the beginning of a name will do.

    Raises:
        DataError: there is none, or more than one; lists those there are.
    """
    if (Path(name) / "index.json").is_file():
        return Cohort(Path(name))
    known = list_prepared(caches)
    called = [cohort for cohort in known if cohort.folder.name.startswith(name)]
    exact = [cohort for cohort in called if cohort.folder.name == name]
    if len(exact or called) == 1:
        return (exact or called)[0]
    names = (
        ", ".join(cohort.folder.name for cohort in called or known) or "none; begin with somvq cohort prepare FOLDER"
    )
    fault = f"'{name}' is the beginning of {len(called)} names" if called else f"no prepared cohort is called '{name}'"
    raise DataError(f"{fault} in {caches}: {names}")


def cache_name(folder: Path) -> str:
    """What people know the cohort in `folder` (or a manifest) by."""
    place = folder.resolve()
    return re.sub(r"[^A-Za-z0-9_-]+", "-", place.stem if place.is_file() else place.name).strip("-")[:60] or "cohort"


def make_cohort(
    target: Path, folder: Path, found: Found, sources: Sequence[Source], settings: CohortSettings, on_scan: OnScan
) -> None:
    """Prepares the cohort of `sources` at `target`; the caller holds its lock.

    Raises:
        DataError: too few scans can be used, or they cannot be used together, or with `settings.strict` one cannot.
    """
    looks = survey(sources, settings, on_scan)
    refused = [look.refusal for look in looks if look.refusal]
    if settings.strict:
        refuse_any([*found.left_out, *refused], len(sources) + len(found.left_out))
    usable = [look for look in looks if not look.refusal]
    sources_used = [look.source for look in usable]
    try:
        splits = split_scans([source.scan for source in sources_used], settings)
    except DataError as error:
        raise DataError(f"{error}; left out {len(refused)} of {len(sources)} scans: {'; '.join(refused)}") from error
    refuse_mixed_voxels(usable, settings)
    shape = settings.shape or common_shape(usable)
    check_room(target.parent, shape, len(usable))
    with whole_folder(target) as folder_in_work:
        scans = write_volumes(folder_in_work / "volumes.npy", sources_used, splits, shape, settings, on_scan)
        index = CohortIndex(
            format=FORMAT,
            name=cache_name(folder),
            layout=found.layout,
            fingerprint=target.name.rsplit("-", 1)[-1],
            settings=CohortSettings(**settings.decisive()),
            shape=shape,
            scans=tuple(scans),
            left_out=tuple(below(folder, line) for line in refused),
            versions={package: version(package) for package in ("somvq", "numpy", "nibabel", "scipy")},
        )
        write_json(folder_in_work / "index.json", index.model_dump(mode="json"))


def refuse_any(refused: Sequence[str], scans: int) -> None:
    """What --strict asks for: one line if one scan is refused, else one more than there are."""
    if len(refused) == 1:
        raise DataError(f"{refused[0]}; without --strict it is left out")
    if refused:
        advice = "mend or remove them; without --strict they are left out"
        raise DataError("\n".join([f"{len(refused)} of {scans} scans cannot be used: {advice}", *refused]))


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
    path: Path,
    sources: Sequence[Source],
    splits: Mapping[str, Split],
    shape: Shape,
    settings: CohortSettings,
    on_scan: OnScan,
) -> list[ScanEntry]:
    """Writes the preprocessed scans as one array, several at a time; returns what the index says of each.

    Not through a memory map: a full disk then is an error with a name, not a bus error.
    """
    with path.open("wb") as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": (len(sources), *shape)}
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        first, size = file.tell(), 2 * math.prod(shape)
        file.truncate(first + size * len(sources))
        entries = share_out(
            partial(write_volume, path=path, shape=shape, settings=settings),
            [(source, splits[source.scan.subject], first + row * size) for row, source in enumerate(sources)],
            lambda done: on_scan("preprocessing", done, len(sources)),
        )
        os.fsync(file.fileno())
    return entries


def write_volume(what: tuple[Source, Split, int], *, path: Path, shape: Shape, settings: CohortSettings) -> ScanEntry:
    """Writes one preprocessed scan to its place in `path`; returns what the index says of it.

    Raises:
        DataError: it is no longer the scan that was hashed.
    """
    source, split, offset = what
    fitted = prepare_scan(source, shape, settings)
    if sha256_of(parts_of(source.scan.path)) != source.sha256:
        raise DataError(f"{source.scan.path}: it changed while it was being prepared; leave it alone and run again")
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(fitted.scan.voxels.astype("<f2").tobytes())
    return ScanEntry(
        subject=source.scan.subject,
        session=source.scan.session,
        file=source.scan.file,
        sha256=source.sha256,
        split=split,
        mean=fitted.mean,
        deviation=fitted.deviation,
        affine=tuple(tuple(float(number) for number in line) for line in fitted.scan.affine),
        box=fitted.box,
        lost=fitted.lost,
        covariates=dict(source.scan.covariates),
        warnings=tuple(map(str, fitted.scan.remarks)),
    )
