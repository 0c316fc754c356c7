"""BIDS: the T1 volumes of a raw data set."""

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from somvq.config import CohortSettings
from somvq.sources.found import Found, ScanFile, counted, some_of
from somvq.sources.layout import Layout
from somvq.sources.names import session_in, subject_in
from somvq.sources.walk import LOOKS, folders_in, names_in

T1W = re.compile(r"sub-[A-Za-z0-9]+(_(?!desc-|space-)[a-z]+-[A-Za-z0-9]+)*_T1w(?i:\.nii|\.nii\.gz)")
NEARLY = re.compile(r"(sub-.*)_(?!T1w\.)(?i:T1w?)(?i:\.nii|\.nii\.gz)")  # a T1 volume, by a name that is not BIDS's
MASK = re.compile(r"sub-.*_desc-brain_mask(?i:\.nii|\.nii\.gz)")
NOT_RAW = ("derivatives", "sourcedata", "code")


def recognise(root: Path) -> bool:
    """Subjects' folders with T1 volumes."""
    return any(T1W.fullmatch(file.name) for file in anatomical(root, LOOKS))


def find(root: Path, settings: CohortSettings) -> Found:
    """The T1 volumes of each subject and session."""
    every = list(anatomical(root))
    files = [file for file in every if T1W.fullmatch(file.name)]
    nearly = [file for file in every if NEARLY.fullmatch(file.name)]
    subjects = {file.relative_to(root).parts[0] for file in (*files, *nearly)}
    without = [folder.name for folder in folders_in(root, "sub-") if folder.name not in subjects]
    said = f"{counted(len(without), 'subject has', 'subjects have')} no T1 volume: {some_of(without)}"
    return Found(
        LAYOUT.name,
        tuple(scan_of(root, file) for file in files),
        tuple(f"{file.relative_to(root)}: {renaming(file.name)}" for file in nearly),
        (*([said] if without else []), *advice(root)),
    )


def renaming(name: str) -> str:
    """What to do with a volume that is nearly called as BIDS has it."""
    stem, suffix = name[: name.lower().rindex(".nii")], name[name.lower().rindex(".nii") :]
    return f"its name is no BIDS name of a T1 volume; rename it to {stem.rpartition('_')[0]}_T1w{suffix}"


def anatomical(root: Path, most: int | None = None) -> Iterator[Path]:
    """What is in sub-*/anat and sub-*/ses-*/anat, of the first subjects or of all."""
    for subject in islice(folders_in(root, "sub-"), most):
        for place in (subject, *folders_in(subject, "ses-")):
            if os.path.isdir(place / "anat"):
                yield from (place / "anat" / name for name in names_in(place / "anat"))


def scan_of(root: Path, file: Path, mask: Path | None = None) -> ScanFile:
    """The scan that `file` below `root` is."""
    return ScanFile(file, str(file.relative_to(root)), subject_in(file.name), session_in(file.name), mask)


def advice(root: Path) -> list[str]:
    """Where brains without skulls are, if there are any."""
    if not os.path.isdir(root / "derivatives"):
        return []
    masked = [place for place in folders_in(root / "derivatives")
              if any(MASK.fullmatch(file.name) for file in anatomical(place, LOOKS))]  # fmt: skip
    return [f"its T1w are whole heads; {place} has masks of the brain: name that folder" for place in masked]


LAYOUT = Layout("bids", "sub-*/[ses-*/]anat/*_T1w.nii.gz, or .nii", recognise, find)
