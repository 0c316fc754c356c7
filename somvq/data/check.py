"""A cohort checked: every scan is tried as it would be prepared, and nothing is kept."""

import csv
import io
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from somvq.config import CohortSettings, Split
from somvq.data.digests import sha256_of
from somvq.data.preprocess import Shape
from somvq.data.scan import Geometry, read_geometry
from somvq.data.splits import split_scans
from somvq.data.survey import Look, OnScan, Source, common_shape, refuse_mixed_voxels, survey, try_out
from somvq.errors import DataError
from somvq.files import parts_of, write_whole
from somvq.processes import share_out
from somvq.sources.found import Found


@dataclass(frozen=True)
class Checked:
    """What trying every scan has shown."""

    folder: Path
    found: Found
    looks: tuple[Look, ...]
    geometries: tuple[Geometry, ...]  # of the files, as far as their headers can be read
    shape: Shape | None  # of the prepared scans; none: they are no cohort
    splits: dict[str, Split]  # by subject
    complaint: str = ""  # why the scans that can be used are no cohort

    @property
    def usable(self) -> list[Look]:
        """The scans that can be used."""
        return [look for look in self.looks if not look.refusal]

    @property
    def refused(self) -> list[str]:
        """A line for each scan that cannot."""
        return [*self.found.left_out, *(look.refusal for look in self.looks if look.refusal)]


def check_cohort(folder: Path, found: Found, settings: CohortSettings, on_scan: OnScan) -> Checked:
    """Tries every scan that was found in `folder`."""
    looks = survey([Source(scan, "") for scan in found.scans], settings, on_scan)
    shape, splits, complaint = None, {}, ""
    try:
        usable = [look for look in looks if not look.refusal]
        splits = split_scans([look.source.scan for look in usable], settings)
        refuse_mixed_voxels(usable, settings)
        shape = settings.shape or common_shape(usable)
    except DataError as error:
        complaint = str(error)
    if shape:
        tried = partial(try_out, shape=shape, settings=settings)
        looks = share_out(tried, looks, lambda done: on_scan("preprocessing", done, len(looks)))
    paths = [scan.path for scan in found.scans]
    geometries = share_out(read_geometry, paths, lambda done: on_scan("headers", done, len(paths)))
    return Checked(folder, found, tuple(looks), tuple(geometries), shape, splits, complaint)


def write_manifest(path: Path, checked: Checked) -> None:
    """Writes what can be used, with splits and checksums, as a manifest: a cohort that stays what it is.

    Raises:
        DataError: the file is there already, or there is nothing to write.
    """
    if path.exists():
        raise DataError(f"{path} is there already, perhaps edited by you; name another file for the manifest")
    if not path.parent.is_dir():
        raise DataError(f"{path}: there is no folder {path.parent}; make it first")
    if not checked.splits:
        raise DataError(f"{path}: not written, because {checked.complaint}")
    base = path.resolve().parent
    names = sorted({name for look in checked.usable for name in look.source.scan.covariates})
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["path", "subject_id", "session", "split", "mask_path", "sha256", *names])
    for look in checked.usable:
        scan = look.source.scan
        mask = os.path.relpath(scan.mask.resolve(), base) if scan.mask else ""
        place = [os.path.relpath(scan.path.resolve(), base), scan.subject, scan.session, checked.splits[scan.subject]]
        covariates = [scan.covariates.get(name, "") for name in names]
        table.writerow([*place, mask, sha256_of(parts_of(scan.path)), *covariates])
    write_whole(path, lambda file: file.write(text.getvalue().encode()))
