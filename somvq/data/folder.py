"""A folder of T1 volumes as a source of scans."""

import os
import re
from pathlib import Path

from somvq.errors import DataError

SUFFIXES = (".nii.gz", ".nii", ".mgz", ".mgh")
SUBJECT = re.compile(r"(sub-[A-Za-z0-9]+|OAS\d_?\d+)")  # BIDS and OASIS: sessions of one person stay together


def find_scans(folder: Path) -> list[Path]:
    """The volumes in `folder` and below, sorted; links are followed, each file is found once.

    Raises:
        DataError: there is no such folder, or no volume in it.
    """
    if not folder.is_dir():
        raise DataError(f"cohort {folder} is not a folder; give one with T1 volumes ({', '.join(SUFFIXES)})")
    found: dict[str, Path] = {}
    for place, folders, files in os.walk(folder, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                path = Path(place, name)
                found.setdefault(os.path.realpath(path), path)
    if not found:
        raise DataError(f"cohort {folder} holds no T1 volume; files that end in {', '.join(SUFFIXES)} are read")
    return sorted(found.values())


def subject_of(path: Path) -> str:
    """Whose scan it is: the BIDS or OASIS name in the file's name, else the name without its suffixes."""
    named = SUBJECT.match(path.name)
    if named:
        return named.group(1)
    return re.sub(r"(\.nii|\.mgz|\.mgh)(\.gz)?$", "", path.name, flags=re.IGNORECASE)
