"""Which node stands for each voxel of a scan, as a volume on the scan's own grid, for any viewer of brain images.

A voxel's value is its token's node + 1, and 0 outside the brain. The prepared cohort keeps where its volumes lie in the
world; how a file lies there is read again from the file's header, which must be the very file that was prepared.
"""

import gzip
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from somvq.config import CohortSettings, Split, derive_seed
from somvq.data.cohort import Cohort, ScanEntry
from somvq.data.digests import sha256_of
from somvq.data.scan import open_image, readable
from somvq.data.survey import OnScan
from somvq.errors import DataError, DefinitionError, RunError
from somvq.evaluation import load_trained
from somvq.figures import spread
from somvq.figures.colours import node_colours
from somvq.files import parts_of, write_whole
from somvq.models.discrete import DiscreteAE
from somvq.runs import Run
from somvq.sources import find_scans
from somvq.training import Training

VOLUMES = (".nii.gz", ".nii")
LABELS = 1002  # NIfTI's intent code of volumes whose values are names


class Scans(NamedTuple):
    """Where the files of a cohort are, and how they were found."""

    folder: Path  # or a manifest
    settings: CohortSettings


def export(
    run: Run,
    target: Path,
    scans: Scans,
    *,
    split: Split = "val",
    subjects: Sequence[str] = (),
    on_scan: OnScan = lambda *_: None,
) -> list[Path]:
    """Writes a node map for each scan of `split`, or of its `subjects`, and tables of the nodes' colours; all paths.

    `target` is a folder, or a .nii.gz for the first of these scans.

    Raises:
        DefinitionError: a `target` or `subjects` that cannot be.
        DataError: the scans' files are not there any more, or not what was prepared.
        RunError: the run has no codebook, or no checkpoint.
    """
    alone = check_target(target)
    training, _ = load_trained(run, split)
    model = training.model
    if not isinstance(model, DiscreteAE):
        raise RunError(f"{run.folder} is of model {training.config.model}, which has no codebook; "
                       "export a run of vqvae, som or psom")  # fmt: skip
    rows = choose_rows(training.cohort, split, subjects)[: 1 if alone else None]
    files = find_files(training.cohort, rows, scans)
    target.parent.mkdir(parents=True, exist_ok=True) if alone else target.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(derive_seed(training.config.seed, "export"))  # the published VAE samples in evaluation too
    entries = [training.cohort.index.scans[row] for row in rows]
    written = [target] if alone else [target / f"{name}_nodes.nii.gz" for name in name_scans(entries)]
    for done, (row, file, path) in enumerate(zip(rows, files, written, strict=True)):
        on_scan("exporting", done, len(rows))
        write_map(path, label_voxels(training, row), training.cohort.index.scans[row], file, scans.settings.orient)
    on_scan("exporting", len(rows), len(rows))
    stem = target.with_name(re.sub(r"\.nii(\.gz)?$", "", target.name)) if alone else target / "nodes"
    grid = model.codebook.grid
    return [*written, *write_tables(stem, grid.height, grid.width, toroidal=grid.topology == "toroidal")]


def check_target(target: Path) -> bool:
    """Whether `target` is one volume, and not a folder."""
    if target.name.endswith(VOLUMES):
        return True
    if target.suffix in (".gz", ".mgz", ".mgh", ".img", ".hdr") or target.is_file():
        raise DefinitionError(f"{target} is neither a .nii.gz nor a folder: give one of these")
    return False


def choose_rows(cohort: Cohort, split: Split, subjects: Sequence[str]) -> list[int]:
    """The rows of the scans of `split`, or of these `subjects` of it."""
    of_split = {row: cohort.index.scans[row].subject for row in cohort.rows[split]}
    for subject in subjects:
        if subject not in of_split.values():
            elsewhere = next((scan.split for scan in cohort.index.scans if scan.subject == subject), None)
            known = sorted(set(of_split.values()))
            those = f"{', '.join(known[:5])}{', ...' if known[5:] else ''}"
            advice = f"give --split {elsewhere}" if elsewhere else f"there are {those}"
            raise DefinitionError(f"--subject {subject} is not in the {split} split; {advice}")
    return [row for row, subject in of_split.items() if not subjects or subject in subjects]


def find_files(cohort: Cohort, rows: Sequence[int], scans: Scans) -> list[Path]:
    """The files that the scans `rows` were prepared from.

    Raises:
        DataError: one is not in the cohort's folder, or has changed.
    """
    paths = {scan.file: scan.path for scan in find_scans(scans.folder, scans.settings).scans}
    moved = "; if the scans have moved, --cohort says where they are"
    files = []
    for row in rows:
        entry = cohort.index.scans[row]
        if entry.file not in paths:
            raise DataError(f"{scans.folder} has no {entry.file} any more, whose grid is needed{moved}")
        path = paths[entry.file]
        with readable(path):
            if sha256_of(parts_of(path)) != entry.sha256:
                raise DataError(f"{path} is not the file that was prepared: its sha256 has changed{moved}")
        files.append(path)
    return files


def name_scans(entries: Sequence[ScanEntry]) -> list[str]:
    """A file's name for each scan: its subject, its session where it has one, and a number where these are not enough.

    The session of a scan that nothing names is its file.
    """
    said = [f"{entry.subject} {'' if entry.session == entry.file else entry.session}" for entry in entries]
    plain = [re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.") for name in said]
    return [
        name if plain.count(name) == 1 else f"{name}-{plain[:place].count(name) + 1}"
        for place, name in enumerate(plain)
    ]


@torch.no_grad()
def label_voxels(training: Training, row: int) -> npt.NDArray[np.int32]:
    """The node + 1 of each voxel of the prepared scan `row`, (X, Y, Z), 0 outside its brain."""
    training.model.eval()
    with training.autocast():
        nodes = training.model(training.scans.read([row])).nodes
    assert nodes is not None
    brain = training.cohort.brain(row)
    return np.where(brain, spread(nodes[0].cpu().numpy(), brain.shape) + 1, 0).astype(np.int32)


def place_on_file(
    values: npt.NDArray[Any], affine: npt.ArrayLike, shape: tuple[int, ...], file_affine: npt.ArrayLike
) -> npt.NDArray[Any]:
    """`values` of a volume that lies in the world by `affine` on another grid, the nearest for each voxel, else 0."""
    back = np.linalg.inv(np.asarray(affine, float)) @ np.asarray(file_affine, float)
    placed: npt.NDArray[Any] = ndimage.affine_transform(
        values, back[:3, :3], back[:3, 3], output_shape=shape, order=0, mode="grid-constant", cval=0
    )
    return placed


def write_map(path: Path, labels: npt.NDArray[np.int32], entry: ScanEntry, file: Path, orient: str | None) -> None:
    """Writes `labels` of a prepared scan on the grid of its `file`; no word of the file's header but its geometry."""
    image, _ = open_image(file, orient)
    placed = place_on_file(labels, entry.affine, image.shape[:3], image.affine)
    kind = np.int16 if labels.max() <= np.iinfo(np.int16).max else np.int32
    made = nib.Nifti1Image(placed.astype(kind), image.affine)
    sform, qform = codes_of(image.header)
    made.set_sform(image.affine, code=sform)
    made.set_qform(image.affine, code=qform)  # the closest without shear: viewers prefer the sform
    made.header.set_xyzt_units("mm")
    made.header["intent_code"] = LABELS
    content = made.to_bytes()
    if path.suffix == ".gz":
        content = gzip.compress(content, mtime=0)
    write_whole(path, lambda stream: stream.write(content))


def codes_of(header: Any) -> tuple[int, int]:
    """NIfTI's codes of a file's space, for sform and qform; scanner space where it does not say."""
    if not isinstance(header, nib.Nifti1Header):
        return 1, 1
    code = int(header["sform_code"]) or int(header["qform_code"]) or 1
    return code, code


def write_tables(stem: Path, height: int, width: int, *, toroidal: bool) -> list[Path]:
    """Names and colours of the values 1 to K: STEM_lut.txt for FreeSurfer's viewers, STEM.lut for FSLeyes."""
    colours = node_colours(height, width, toroidal=toroidal)
    names = [f"node-{node}_row-{node // width}_column-{node % width}" for node in range(len(colours))]
    freeview = ["#No. Label R G B A", "0 outside 0 0 0 0"]
    fsleyes = []
    for value, (name, (red, green, blue)) in enumerate(zip(names, colours.tolist(), strict=True), 1):
        freeview.append(f"{value} {name} {red} {green} {blue} 0")
        fsleyes.append(f"{value} {red / 255:.5f} {green / 255:.5f} {blue / 255:.5f} {name}")
    tables = {stem.with_name(f"{stem.name}_lut.txt"): freeview, stem.with_name(f"{stem.name}.lut"): fsleyes}
    for path, lines in tables.items():
        write_whole(path, lambda stream, lines=lines: stream.write(("\n".join(lines) + "\n").encode()))  # type: ignore[misc]
    return list(tables)
