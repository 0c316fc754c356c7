"""A folder of T1 volumes, whatever their names."""

import re
from collections.abc import Sequence
from pathlib import Path

from somvq.config import CohortSettings
from somvq.errors import DataError
from somvq.sources.found import Found, ScanFile
from somvq.sources.layout import Layout
from somvq.sources.names import refuse_undecodable, stem_of, subject_in, subject_of
from somvq.sources.walk import find_volumes

SUFFIXES = (".nii.gz", ".nii", ".mgz", ".mgh", ".hdr", ".img")
NOT_T1 = re.compile(  # what BIDS calls the other images of a subject
    r"sub-.*_(T2w|T2star|T2starw|FLAIR|PDw|inplaneT[12]|bold|sbref|dwi|epi|asl|mask|dseg|probseg)$"
)


def recognise(root: Path) -> bool:
    """Any folder will do."""
    return root.is_dir()


def find(root: Path, settings: CohortSettings) -> Found:
    """The T1 volumes in `root` and below; each is a session of its own.

    Raises:
        DataError: a part of it that cannot be listed, or names that leave open whose scans they are.
    """
    volumes = find_volumes(root, is_t1)
    check_names(volumes.files)
    scans = [ScanFile(root / file, str(file), subject_of(file), session=str(file)) for file in volumes.files]
    return Found(LAYOUT.name, tuple(scans), tuple(volumes.left_out))


def is_t1(file: Path) -> bool:
    """Whether `file` is taken for a T1 volume, or for one half of it."""
    return file.name.lower().endswith(SUFFIXES) and not NOT_T1.match(stem_of(file.name))


def check_names(files: Sequence[Path]) -> None:
    """Refuses files (below the cohort's folder) whose names leave open whose scans they are."""
    refuse_undecodable(map(str, files))
    seen: dict[str, Path] = {}
    for file in files:
        stem = stem_of(file.name)
        if not any(map(subject_in, file.parts)) and (other := seen.setdefault(stem, file)) != file:
            raise DataError(
                f"{file} and {other} are both called '{stem}', so whose they are is not known; "
                "name files or folders after subjects, as in sub-01_T1w.nii.gz"
            )


LAYOUT = Layout("folder", "files that end in .nii, .nii.gz, .mgz, .mgh, or .hdr with .img", recognise, find)
