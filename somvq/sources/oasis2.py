"""OASIS-2 as it is downloaded: three or four whole-head volumes of each session."""

import re
from pathlib import Path

from somvq.config import CohortSettings
from somvq.sources.found import Found
from somvq.sources.layout import Layout
from somvq.sources.names import session_of
from somvq.sources.oasis import find_sessions
from somvq.sources.walk import glimpse

SCAN = re.compile(r"mpr-\d+(\.nifti)?(?i:\.hdr|\.img|\.nii|\.nii\.gz)")
SESSION = re.compile(r"OAS2_\d{4}_MR\d+")


def recognise(root: Path) -> bool:
    """Sessions with a folder RAW, in folders of parts or not."""
    return any(SESSION.fullmatch(folder.name) and "RAW" in names for folder, names in glimpse(root, 2))


def find(root: Path, settings: CohortSettings) -> Found:
    """The volumes of each session, mpr-1 first."""
    scans, halves, without, notes = find_sessions(root, "OAS2_", is_scan)
    why = "holds no RAW/mpr-1.nifti.hdr; unpack it again, or remove it"
    if scans:
        notes.insert(0, "scans of OASIS-2 are whole heads, not brains; strip them first to leave the skull out")
    return Found(LAYOUT.name, tuple(scans), (*halves, *(f"{folder}: {why}" for folder in without)), tuple(notes))


def is_scan(file: Path) -> bool:
    """Whether `file` is a volume, or half of one, in the folder RAW of a session."""
    return bool(SCAN.fullmatch(file.name)) and file.parent.name == "RAW" and bool(session_of(file))


LAYOUT = Layout("oasis2", "OAS2_XXXX_MRy/RAW/mpr-N.nifti.hdr, or .nii or .nii.gz", recognise, find)
