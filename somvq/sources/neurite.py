"""OASIS-1 as the neurite project gives it away: stripped, affinely aligned, brightness from 0 to 1."""

import os
from pathlib import Path

from somvq.config import CohortSettings
from somvq.sources.found import Found, ScanFile
from somvq.sources.layout import Layout
from somvq.sources.names import session_in, whose
from somvq.sources.walk import folders_in, glimpse

ALIGNED = "aligned_norm.nii.gz"


def recognise(root: Path) -> bool:
    """Folders with an aligned volume."""
    return any(ALIGNED in names for folder, names in glimpse(root, 1) if folder != root)


def find(root: Path, settings: CohortSettings) -> Found:
    """The aligned volume of each session; its slices and label maps are passed over."""
    scans, left_out = [], []
    for folder in folders_in(root):
        session = session_in(folder.name)
        path = folder / ALIGNED
        if os.path.lexists(path):
            scans.append(ScanFile(path, str(path.relative_to(root)), whose(folder.name), session))
        elif session:
            left_out.append(f"{folder.name}: holds no {ALIGNED}; unpack it again, or remove it")
    return Found(LAYOUT.name, tuple(scans), tuple(left_out))


LAYOUT = Layout("neurite", f"OASIS_OAS1_XXXX_MRy/{ALIGNED}", recognise, find)
