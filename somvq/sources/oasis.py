"""What the three OASIS data sets share: a folder for each session, named after its subject and visit."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from somvq.sources.found import ScanFile, counted
from somvq.sources.names import session_of, subject_of
from somvq.sources.walk import find_volumes

Visit = tuple[str, str]  # subject, session


class Sessions(NamedTuple):
    """What there is of one OASIS data set."""

    scans: list[ScanFile]
    halves: list[str]  # a line for each half of a scan
    without: list[Path]  # folders of sessions that have no scan
    notes: list[str]  # on sessions of the other data sets


def find_sessions(root: Path, study: str, is_scan: Callable[[Path], bool], skip: Collection[str] = ()) -> Sessions:
    """The sessions below `root` of the data set whose subjects' names begin with `study`."""
    volumes = find_volumes(root, is_scan, skip)
    scans = [ScanFile(root / file, str(file), *visit_of(file)) for file in volumes.files]
    folders: dict[Visit, Path] = {}
    for folder in sorted(volumes.folders, key=lambda folder: len(folder.parts)):
        if session_of(folder):
            folders.setdefault(visit_of(folder), folder)
    for file in (*volumes.files, *volumes.halves):
        folders.pop(visit_of(file), None)
    without = sorted(folder for (subject, _), folder in folders.items() if subject.startswith(study))
    others = sorted(folder for (subject, _), folder in folders.items() if is_of_another(subject, study))
    are = counted(len(others), "session of another OASIS data set is", "sessions of other OASIS data sets are")
    notes = [f"{are} passed over, such as {others[0]}"] if others else []
    return Sessions(scans, volumes.left_out, without, notes)


def is_of_another(subject: str, study: str) -> bool:
    """Whether `subject` is of OASIS, but not of this study."""
    return subject.startswith("OAS") and not subject.startswith(study)


def visit_of(file: Path) -> Visit:
    """The subject and session that a path names."""
    return subject_of(file), session_of(file)
