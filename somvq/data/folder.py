"""A folder of T1 volumes as a source of scans."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from somvq.errors import DataError

SUFFIXES = (".nii.gz", ".nii", ".mgz", ".mgh")
SUBJECT = re.compile(r"(?<![A-Za-z0-9])sub-[A-Za-z0-9]+|OAS\d_?\d{4}")  # BIDS and OASIS: sessions stay together
NOT_T1 = re.compile(  # what BIDS calls the other images of a subject
    r"sub-.*_(T2w|T2star|T2starw|FLAIR|PDw|inplaneT[12]|bold|sbref|dwi|epi|asl|mask|dseg|probseg)$"
)


def find_scans(folder: Path) -> list[Path]:
    """The T1 volumes in `folder` and below, sorted; links are followed, loops of links are not.

    Raises:
        DataError: there is no such folder, no volume in it, or a part of it that cannot be listed.
    """
    if not folder.is_dir():
        fault = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"cohort {folder} {fault}; give a folder of T1 volumes ({', '.join(SUFFIXES)})")
    found: dict[tuple[str, str], Path] = {}  # one file under two subjects' names is two: refused later, as twins
    entered: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=refuse_to_list):
        real = os.path.realpath(place)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if real not in entered else []
        for name in sorted(files) if real not in entered else []:
            path = Path(place, name)
            if is_t1(name):
                found.setdefault((os.path.realpath(path), subject_of(path.relative_to(folder))), path)
        entered.add(real)
    if not found:
        raise DataError(f"cohort {folder} holds no T1 volume; put files there that end in {', '.join(SUFFIXES)}")
    return sorted(found.values())


def refuse_to_list(error: OSError) -> NoReturn:
    """Called by os.walk, which would pass over a folder that it may not read, and its subjects, in silence."""
    raise DataError(f"{error.filename}: cannot be listed ({error.strerror}); mend its permissions") from error


def is_t1(name: str) -> bool:
    """Whether a file called `name` is taken for a T1 volume; hidden files are macOS's, or git-annex's."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".") and not NOT_T1.match(stem_of(name))


def stem_of(name: str) -> str:
    """`name` less its suffixes: 'a.nii.gz' is 'a'."""
    return re.sub(r"(\.nii|\.mgz|\.mgh)(\.gz)?$", "", name, flags=re.IGNORECASE)


def subject_of(file: Path) -> str:
    """Whose scan `file` (below the cohort's folder) is: the BIDS or OASIS name in its path, else its stem."""
    for part in reversed(file.parts):
        if named := SUBJECT.search(part):
            return named.group()
    return stem_of(file.name)


def check_names(files: Sequence[Path]) -> None:
    """Refuses files (below the cohort's folder) whose names leave open whose scans they are."""
    seen: dict[str, Path] = {}
    for file in files:
        if any("\ud800" <= letter <= "\udfff" for letter in str(file)):  # how Python holds bytes that are no UTF-8
            raise DataError(f"{str(file)!a}: its name is not UTF-8, so no index can hold it; rename it")
        stem = subject_of(file)
        if not SUBJECT.search(str(file)) and (other := seen.setdefault(stem, file)) != file:
            raise DataError(
                f"{file} and {other} are both called '{stem}', so whose they are is not known; "
                "name files or folders after subjects, as in sub-01_T1w.nii.gz"
            )
