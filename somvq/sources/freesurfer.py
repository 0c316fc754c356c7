"""FreeSurfer's SUBJECTS_DIR: a folder for each subject, with conformed volumes in mri/."""

import os
from collections import Counter
from pathlib import Path

from somvq.config import CohortSettings
from somvq.sources.found import Found, ScanFile, counted, some_of
from somvq.sources.layout import Layout
from somvq.sources.names import session_in, whose
from somvq.sources.walk import folders_in, glimpse, names_in

STRIPPED = ("norm.mgz", "brain.mgz", "brainmask.mgz")  # the first is the best: its white matter is even
TEMPLATES = ("fsaverage", "cvs_avg35")  # that FreeSurfer puts beside subjects
LONG = ".long."  # between the names of a visit and of its subject's base


def recognise(root: Path) -> bool:
    """Folders with mri/*.mgz."""
    places = (folder / "mri" for folder, _ in glimpse(root, 1) if folder != root)
    return any(name.endswith(".mgz") for place in places if os.path.isdir(place) for name in names_in(place))


def find(root: Path, settings: CohortSettings) -> Found:
    """The best stripped volume that each subject has; of longitudinal visits the .long. ones."""
    folders = [folder for folder in folders_in(root) if not folder.name.startswith(TEMPLATES)]
    names = [folder.name for folder in folders if os.path.isdir(folder / "mri")]
    strangers = [folder.name for folder in folders if folder.name not in names]
    repeated = {part for name in names if LONG in name for part in name.split(LONG, 1)}
    kinds = {name: kinds_of(root / name) for name in names if name not in repeated}
    chosen = {name: own[0] for name, own in kinds.items() if own}
    scans = [scan_of(root, name, kind) for name, kind in chosen.items()]
    why = f"its mri/ holds none of {', '.join(STRIPPED)}; run recon-all -autorecon1 and -autorecon2, or remove it"
    left_out = [f"{name}: {why}" for name, own in kinds.items() if not own]
    notes = [*notes_on(chosen), *passed_over(len(repeated & set(names)), strangers)]
    return Found(LAYOUT.name, tuple(scans), tuple(left_out), tuple(notes))


def kinds_of(subject: Path) -> list[str]:
    """The stripped volumes that `subject` has, the best first."""
    return [kind for kind in STRIPPED if os.path.lexists(subject / "mri" / kind)]


def scan_of(root: Path, name: str, kind: str) -> ScanFile:
    """The volume `kind` of the subject called `name`, as FreeSurfer calls visits too."""
    visit, _, base = name.partition(LONG)
    path = root / name / "mri" / kind
    session = session_in(visit) or (visit if base else "")
    return ScanFile(path, str(path.relative_to(root)), whose(base or visit), session)


def notes_on(chosen: dict[str, str]) -> list[str]:
    """How many subjects have which volume, and who lacks the best where not all do."""
    counts = Counter(chosen.values())
    kinds = [kind for kind in STRIPPED if kind in counts]
    if not kinds:
        return []
    note = " and ".join(f"mri/{kind} of {counted(counts[kind], 'subject', 'subjects')}" for kind in kinds)
    lacking = [name for name, kind in chosen.items() if kind != kinds[0]]
    if lacking:
        note += f": no {kinds[0]} of {some_of(lacking)}, so brightness may differ"
    return [note]


def passed_over(repeated: int, strangers: list[str]) -> list[str]:
    """Notes on folders that are not looked into."""
    notes = []
    if repeated:
        folders = counted(repeated, "cross-sectional or base folder", "cross-sectional and base folders")
        notes.append(f"{folders} of subjects that have .long. ones {'is' if repeated == 1 else 'are'} passed over")
    if strangers:
        without = counted(len(strangers), "folder without mri/ is", "folders without mri/ are")
        notes.append(f"{without} passed over: {some_of(strangers)}")
    return notes


LAYOUT = Layout("freesurfer", f"SUBJECT/mri/{STRIPPED[0]} (or {', '.join(STRIPPED[1:])})", recognise, find)
