"""OASIS-3 as it is downloaded from XNAT, or brought to BIDS by its own script."""

import re
from pathlib import Path

from somvq.config import CohortSettings
from somvq.sources.bids import NOT_RAW, T1W
from somvq.sources.found import Found, counted
from somvq.sources.layout import Layout
from somvq.sources.oasis import find_sessions
from somvq.sources.walk import glimpse

SCAN = re.compile(rf"(?=sub-OAS3\d{{4}}_ses-d\d+_){T1W.pattern}")
SKIP = {*NOT_RAW, "0AS_data_files"}  # the last is a subject to XNAT, and holds tables


def recognise(root: Path) -> bool:
    """T1 volumes in sessions' folders, or alone."""
    return any(SCAN.fullmatch(name) for _, names in glimpse(root, 3, SKIP) for name in names)


def find(root: Path, settings: CohortSettings) -> Found:
    """The T1 volumes of each session; many sessions have none, and their number is noted."""
    scans, _, without, others = find_sessions(root, "OAS3", lambda file: bool(SCAN.fullmatch(file.name)), SKIP)
    notes = ["scans of OASIS-3 are whole heads, not brains; FreeSurfer's or fmriprep's of them are stripped"]
    if without:
        notes.append(f"{counted(len(without), 'session has', 'sessions have')} no T1 volume, such as {without[0]}")
    return Found(LAYOUT.name, tuple(scans), notes=(*notes, *others))


LAYOUT = Layout("oasis3", "sub-OAS3XXXX_ses-dNNNN_T1w.nii.gz", recognise, find)
