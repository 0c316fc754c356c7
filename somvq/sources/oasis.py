"""What the three OASIS data sets share: a folder for each session, named after its subject and visit."""

from collections.abc import Callable, Collection
from pathlib import Path

from somvq.sources.found import ScanFile
from somvq.sources.names import session_of, subject_of
from somvq.sources.walk import find_volumes

Visit = tuple[str, str]  # subject, session


def find_sessions(
    root: Path, is_scan: Callable[[Path], bool], skip: Collection[str] = ()
) -> tuple[list[ScanFile], list[str], list[Path]]:
    """The scans below `root`, lines for halves of scans, and the folders of sessions that have no scan."""
    volumes = find_volumes(root, is_scan, skip)
    scans = [ScanFile(root / file, str(file), *visit_of(file)) for file in volumes.files]
    folders: dict[Visit, Path] = {}
    for folder in sorted(volumes.folders, key=lambda folder: len(folder.parts)):
        if session_of(folder):
            folders.setdefault(visit_of(folder), folder)
    for file in (*volumes.files, *volumes.halves):
        folders.pop(visit_of(file), None)
    return scans, volumes.left_out, sorted(folders.values())


def visit_of(file: Path) -> Visit:
    """The subject and session that a path names."""
    return subject_of(file), session_of(file)
