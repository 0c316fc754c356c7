"""OASIS-1 as it is downloaded: skull-stripped volumes in Talairach space, in Analyze pairs."""

import re
from pathlib import Path

from somvq.config import CohortSettings
from somvq.sources.found import Found
from somvq.sources.layout import Layout
from somvq.sources.oasis import find_sessions
from somvq.sources.walk import glimpse

STRIPPED = "_mpr_n?_anon_111_t88_masked_gfc"  # n is followed by how many volumes were averaged: 3 to 6
SCAN = re.compile(r"OAS1_\d{4}_MR\d+_mpr_n\d_anon_111_t88_masked_gfc(?i:\.hdr|\.img|\.nii|\.nii\.gz)")
SESSION = re.compile(r"OAS1_\d{4}_MR\d+")
IN_SESSION = {"PROCESSED", "RAW", "FSL_SEG"}


def recognise(root: Path) -> bool:
    """Sessions in folders of discs or not, or their volumes alone."""
    return any(
        (SESSION.fullmatch(folder.name) and IN_SESSION & set(names)) or any(map(SCAN.fullmatch, names))
        for folder, names in glimpse(root, 2)
    )


def find(root: Path, settings: CohortSettings) -> Found:
    """The stripped volume of each session."""
    scans, halves, without, notes = find_sessions(root, "OAS1_", lambda file: bool(SCAN.fullmatch(file.name)))
    why = f"holds no {STRIPPED} volume; unpack its disc again, or remove it"
    return Found(LAYOUT.name, tuple(scans), (*halves, *(f"{folder}: {why}" for folder in without)), tuple(notes))


LAYOUT = Layout("oasis1", f"OAS1_XXXX_MRy{STRIPPED}.hdr, or .nii or .nii.gz", recognise, find)
