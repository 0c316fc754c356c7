"""BIDS derivatives, as fmriprep and smriprep write them: T1 volumes, and masks of the brain beside them."""

import os
import re
from collections import Counter, defaultdict
from pathlib import Path

from somvq.config import CohortSettings
from somvq.errors import DataError
from somvq.sources.bids import anatomical, scan_of
from somvq.sources.found import Found, counted
from somvq.sources.layout import Layout
from somvq.sources.names import session_in, subject_in
from somvq.sources.walk import LOOKS, folders_in

SCAN = re.compile(r"sub-.*_desc-preproc_T1w(?i:\.nii|\.nii\.gz)")
SPACE = re.compile(r"_space-([A-Za-z0-9]+(?:_cohort-[A-Za-z0-9]+)?)")
RESOLUTION = re.compile(r"_res-([A-Za-z0-9]+)")
NATIVE = "T1w"

Grid = tuple[str, str]  # space and resolution, the latter empty where a name has none


def recognise(root: Path) -> bool:
    """Subjects' folders with preprocessed T1 volumes, in `root` or one level below."""
    return bool(pipelines(root))


def pipelines(root: Path) -> list[Path]:
    """The folders of derivatives at `root`: itself, or if it has no subjects those in it."""
    places = [root] if folders_in(root, "sub-") else folders_in(root)[:LOOKS]
    return [place for place in places if any(SCAN.fullmatch(file.name) for file in anatomical(place, LOOKS))]


def find(root: Path, settings: CohortSettings) -> Found:
    """The preprocessed T1 volumes of one space and resolution, each with its mask.

    Raises:
        DataError: there are derivatives of two pipelines, or none in the space that is asked for.
    """
    places = pipelines(root)
    if len(places) > 1:
        names = ", ".join(place.name for place in places)
        raise DataError(f"{root} holds derivatives of {len(places)} pipelines ({names}); name the folder of one")
    files = [file for place in places for file in anatomical(place) if SCAN.fullmatch(file.name)]
    grid, note = choose(root, files, settings.space)
    masked = [(file, mask_of(file)) for file in files if grid_of(file) == grid]
    scans = [scan_of(root, file, mask) for file, mask in masked if os.path.lexists(mask)]
    bare = [f"{file.relative_to(root)}: its mask {mask.name} is missing; run the pipeline again"
            for file, mask in masked if not os.path.lexists(mask)]  # fmt: skip
    without = {visit_of(file) for file in files} - {visit_of(file) for file, _ in masked}
    elsewhere = [f"{visit}: has no scan in {said(grid)}; run the pipeline again" for visit in sorted(without)]
    return Found(LAYOUT.name, tuple(scans), (*bare, *elsewhere), (note,))


def choose(root: Path, files: list[Path], space: str | None) -> tuple[Grid, str]:
    """The grid to take, and a note on it: that of most subjects, a template's before the scanner's own."""
    subjects: dict[Grid, set[str]] = defaultdict(set)
    for file in files:
        subjects[grid_of(file)].add(subject_in(file.name))
    counts = Counter({grid: len(those) for grid, those in subjects.items()})
    spaces = sorted({grid[0] for grid in counts})
    if space and space not in spaces:
        raise DataError(f"{root} holds no scan in space {space}; give --space {' or --space '.join(spaces)}")
    wanted = [grid for grid in sorted(counts) if not space or grid[0] == space]
    grid = min(wanted, key=lambda grid: (-counts[grid], grid[0] == NATIVE))
    others = ", ".join(f"{said(other)} of {counts[other]}" for other in sorted(counts) if other != grid)
    there_is = f"; there is also {others}{': --space chooses' if len(spaces) > 1 else ''}" if others else ""
    return grid, f"{said(grid)} of {counted(counts[grid], 'subject', 'subjects')}{there_is}"


def visit_of(file: Path) -> str:
    """The subject and session of a preprocessed volume, in words."""
    return f"{subject_in(file.name)} {session_in(file.name)}".rstrip()


def grid_of(file: Path) -> Grid:
    """The space and resolution that the name of a preprocessed volume tells."""
    space, resolution = SPACE.search(file.name), RESOLUTION.search(file.name)
    return space[1] if space else NATIVE, resolution[1] if resolution else ""


def said(grid: Grid) -> str:
    """A grid in words."""
    space, resolution = grid
    return f"space {space}" + (f" res-{resolution}" if resolution else "")


def mask_of(file: Path) -> Path:
    """The mask of a preprocessed volume: the file of the same name but for desc and suffix, zipped or not."""
    name = file.name.replace("_desc-preproc_T1w", "_desc-brain_mask")
    stem = name[: name.lower().rindex(".nii")]
    other = file.with_name(stem + (".nii" if name.lower().endswith(".gz") else ".nii.gz"))
    same = file.with_name(name)
    return other if os.path.lexists(other) and not os.path.lexists(same) else same


LAYOUT = Layout(
    "derivatives", "sub-*/[ses-*/]anat/*_desc-preproc_T1w.nii.gz with *_desc-brain_mask.nii.gz", recognise, find
)
