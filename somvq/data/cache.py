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
from somvq.data.digests import Digests
from somvq.data.preprocess import Shape, prepare
from somvq.data.scan import LARGEST_SCAN, refusal_of
from somvq.data.splits import split_scans
from somvq.data.survey import (
    Look,
    OnScan,
    Source,
    below,
    common_shape,
    hash_scans,
    look_at,
    refuse_mixed_voxels,
    survey,
    try_out,
)
from somvq.errors import DataError, NotNow
from somvq.files import locked, sync_folder, write_json
from somvq.processes import share_out
from somvq.sources import find_scans
from somvq.sources.found import Found

DIGESTS = ".digests.json"
MOST_NAMED = 5  # scans in one line


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
    with locked(lock_of(target), lambda: on_scan("waiting for another command", 0, 1)):
        remove_leftovers(caches)
        cohort = reopen(target, sources, settings)
        if cohort is None:
            make_cohort(target, folder, found, sources, settings, on_scan)
            cohort = Cohort(target)
    if settings.strict:
        refuse_any([*found.left_out, *cohort.index.left_out], len(sources) + len(found.left_out))
    return cohort


def reopen(target: Path, sources: Sequence[Source], settings: CohortSettings) -> Cohort | None:
    """The cohort that is prepared at `target`; none if it is not there, damaged, or could have a scan more.

    What could not be read once is tried again: a disk may have been away.
    """
    try:
        cohort = Cohort(target)
    except DataError:
        return None
    again = [source for source in sources if source.scan.file in cohort.index.passing]
    looks = (try_out(look_at(source, settings), cohort.index.shape, settings) for source in again)
    return cohort if all(look.refusal for look in looks) else None


def lock_of(target: Path) -> Path:
    """What is held by who prepares `target`."""
    return target.with_name(f".{target.name}.lock")


def remove_leftovers(caches: Path) -> None:
    """Removes what preparations left that were killed; those under way hold their locks."""
    for partial_folder in caches.glob(".*.partial/"):
        with suppress(BlockingIOError), locked(partial_folder.with_suffix(".lock"), give_up):
            shutil.rmtree(partial_folder, ignore_errors=True)


def give_up() -> None:
    """Does not wait for a lock."""
    raise BlockingIOError


def list_prepared(caches: Path) -> list[Cohort]:
    """The prepared cohorts in `caches`, oldest first; what is no whole cohort is passed over: it is made again."""
    cohorts = []
    for index in caches.glob("[!.]*/index.json"):
        with suppress(DataError, OSError):  # another command may be making it again
            cohorts.append((index.stat().st_mtime, Cohort(index.parent)))
    return [cohort for _, cohort in sorted(cohorts, key=lambda made: made[0])]


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
    name = place.parent.name if place.stem == "manifest" else place.stem if place.is_file() else place.name
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60] or "cohort"


def make_cohort(
    target: Path, folder: Path, found: Found, sources: Sequence[Source], settings: CohortSettings, on_scan: OnScan
) -> None:
    """Prepares the cohort of `sources` at `target`; the caller holds its lock.

    Raises:
        DataError: too few scans can be used, or they cannot be used together, or with `settings.strict` one cannot.
    """
    looks = survey(sources, settings, on_scan)
    if settings.strict:
        refuse_any([*found.left_out, *refusals(looks)], len(sources) + len(found.left_out))
    with whole_folder(target) as folder_in_work:
        shape, looks, entries = write_cohort(folder_in_work / "volumes.npy", looks, settings, on_scan)
        index = CohortIndex(
            format=FORMAT,
            name=cache_name(folder),
            layout=found.layout,
            fingerprint=target.name.rsplit("-", 1)[-1],
            settings=CohortSettings(**settings.decisive()),
            shape=shape,
            scans=tuple(entries),
            left_out=tuple(below(folder, line) for line in refusals(looks)),
            missing=found.left_out,
            passing=tuple(look.source.scan.file for look in looks if look.passing),
            versions={package: version(package) for package in ("somvq", "numpy", "nibabel", "scipy")},
        )
        write_json(folder_in_work / "index.json", index.model_dump(mode="json"))


def refusals(looks: Sequence[Look]) -> list[str]:
    """A line for each scan that cannot be used."""
    return [look.refusal for look in looks if look.refusal]


def write_cohort(
    path: Path, looks: list[Look], settings: CohortSettings, on_scan: OnScan
) -> tuple[Shape, list[Look], list[ScanEntry]]:
    """Writes all scans that can be used to `path`; their shape, what was found of all, and the index's entries.

    A scan may turn out to be of no use only now; then the others are written once more, without it.

    Raises:
        DataError: too few can be used, or they cannot be used together.
    """
    while True:
        usable = [look for look in looks if not look.refusal]
        try:
            splits = split_scans([look.source.scan for look in usable], settings)
        except DataError as error:
            raise DataError(f"{error}{such_as(refusals(looks), len(looks))}") from error
        refuse_mixed_voxels(usable, settings)
        shape = settings.shape or common_shape(usable)
        check_room(path.parent, shape, len(usable))
        written = write_volumes(path, [look.source for look in usable], splits, shape, settings, on_scan)
        entries = [entry for entry in written if isinstance(entry, ScanEntry)]
        if len(entries) == len(usable):
            return shape, looks, entries
        late = {look.source.scan.path: error for look, error in zip(usable, written, strict=True)
                if isinstance(error, DataError)}  # fmt: skip
        looks = [look.refused(late[look.source.scan.path]) if look.source.scan.path in late else look for look in looks]


def such_as(refused: Sequence[str], scans: int) -> str:
    """Which scans are left out, where there are too few without them; not hundreds of lines of a disk that is away."""
    if not refused:
        return ""
    those = "; ".join(refused[:MOST_NAMED])
    more = f"; and {len(refused) - MOST_NAMED} more: somvq cohort check lists them" if refused[MOST_NAMED:] else ""
    return f"; left out {len(refused)} of {scans} scans: {those}{more}"


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
) -> list[ScanEntry | DataError]:
    """Writes the preprocessed scans as one array, several at a time; of each its entry, or why it cannot be used.

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


def write_volume(
    what: tuple[Source, Split, int], *, path: Path, shape: Shape, settings: CohortSettings
) -> ScanEntry | DataError:
    """Writes one preprocessed scan to its place in `path`; what the index says of it, or why it cannot be used."""
    source, split, offset = what
    scan = source.scan
    try:
        fitted = prepare(scan.path, scan.mask, shape, settings)
        if source.changed():
            return NotNow(f"{scan.path}: it changed while it was being prepared; leave it alone and run again")
    except DataError as error:
        return error
    except MemoryError as error:
        return refusal_of(scan.path, error)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(fitted.scan.voxels.astype("<f2").tobytes())
    return ScanEntry(
        subject=scan.subject,
        session=scan.session,
        file=scan.file,
        sha256=source.sha256,
        split=split,
        mean=fitted.mean,
        deviation=fitted.deviation,
        affine=tuple(tuple(float(number) for number in line) for line in fitted.scan.affine),
        box=fitted.box,
        lost=fitted.lost,
        covariates=dict(scan.covariates),
        warnings=tuple(map(str, fitted.scan.remarks)),
    )
