"""The demo cohort: a folder of synthetic brains with a manifest of what made each of them."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from somvq.data.synthetic import Factors, Grid, make_subject
from somvq.errors import DataError
from somvq.files import write_json, write_whole

RECIPE = 1  # raise it when the same arguments no longer make the same bytes
VOXEL_LIMITS_MM = (1.0, 8.0)


def nifti(volume: npt.NDArray[np.int16], grid: Grid) -> bytes:
    """`volume` as a .nii.gz file, with no date or name in it."""
    image = nib.Nifti1Image(volume, grid.affine)
    image.set_qform(grid.affine, code="mni")
    image.set_sform(grid.affine, code="mni")
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"synthetic T1 brain, somvq demo cohort"
    return gzip.compress(image.to_bytes(), compresslevel=4, mtime=0)


def brain_ml(volume: npt.NDArray[np.int16], grid: Grid) -> float:
    """How much of a scan is brain, in millilitres."""
    return round(float(np.count_nonzero(volume) * grid.voxel_mm**3 / 1000), 1)


def finished_subject(path: Path, grid: Grid) -> float | None:
    """The brain's millilitres in a scan made before, None unless its file is there and whole."""
    try:
        content = gzip.decompress(path.read_bytes())  # unlike nibabel, this checks the sum at the end of the file
    except (FileNotFoundError, gzip.BadGzipFile, EOFError, zlib.error):
        return None
    return brain_ml(np.asanyarray(nib.Nifti1Image.from_bytes(content).dataobj), grid)


def write_subject(path: Path, grid: Grid, factors: Factors) -> float:
    """Makes one scan and its file; returns the brain's millilitres."""
    volume = make_subject(grid, factors)
    content = nifti(volume, grid)
    write_whole(path, lambda file: file.write(content))
    return brain_ml(volume, grid)


def write_manifest(path: Path, rows: list[dict[str, object]]) -> None:
    """One line a subject: its file, its name and the factors that made it."""
    text = io.StringIO()
    table = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_whole(path, lambda file: file.write(text.getvalue().encode()))


def check_arguments(subjects: int, voxel_mm: float, seed: int) -> None:
    """Refuses what no cohort can be made with."""
    lowest, highest = VOXEL_LIMITS_MM
    if subjects < 1:
        raise DataError(f"subjects is {subjects}: a demo cohort has 1 subject or more")
    if not lowest <= voxel_mm <= highest:
        raise DataError(f"voxel_mm is {voxel_mm:g}: a demo cohort has voxels of {lowest:g} to {highest:g} mm")
    if seed < 0:
        raise DataError(f"seed is {seed}: a demo cohort has a seed of 0 or more")


def claim(folder: Path, arguments: dict[str, int | float]) -> None:
    """Makes `folder` this cohort's, or refuses it if it holds anything else."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file: name a new or empty folder for the demo cohort")
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "demo.json"
    present = sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))
    if record.name not in present:
        if present:
            raise DataError(f"{folder} holds {present[0]}, but no demo.json: name a new or empty folder")
        write_json(record, arguments)
    try:
        made_with = dict(json.loads(record.read_text()))
    except (ValueError, TypeError) as error:
        raise DataError(f"{record} cannot be read ({error}): delete the folder or name another") from error
    pairs = ((name, made_with.get(name), value) for name, value in arguments.items())
    differing = "; ".join(f"{name} {old}, not {new}" for name, old, new in pairs if old != new)
    if differing:
        raise DataError(f"{folder} holds a demo cohort of {differing}: name another folder or delete this one")


def make_demo_cohort(
    folder: Path,
    *,
    subjects: int = 24,
    voxel_mm: float = 2.12,
    seed: int = 0,
    on_subject: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes synthetic scans and, last, `manifest.csv` with what made each of them; returns the manifest's path.

    The same arguments make the same bytes, subject by subject; a making that was interrupted goes on where it stopped.
    `on_subject` is told how many of the subjects are done and how many there are. Raises DataError if `folder` holds
    anything else.
    """
    check_arguments(subjects, voxel_mm, seed)
    claim(folder, {"subjects": subjects, "voxel_mm": float(voxel_mm), "seed": seed, "recipe": RECIPE})
    names = [f"sub-{number:03d}" for number in range(1, subjects + 1)]
    scans = [folder / f"{name}_synthetic_T1w.nii.gz" for name in names]
    manifest = folder / "manifest.csv"
    if manifest.exists() and all(path.exists() for path in scans):
        return manifest
    grid = Grid(float(voxel_mm))
    rows: list[dict[str, object]] = []
    for index, (name, path) in enumerate(zip(names, scans, strict=True)):
        factors = Factors.draw(seed, index)
        volume_ml = finished_subject(path, grid) or write_subject(path, grid, factors)
        rows.append({"path": path.name, "subject_id": name, **asdict(factors), "brain_ml": volume_ml})
        if on_subject:
            on_subject(index + 1, subjects)
    write_manifest(manifest, rows)
    return manifest
