"""FreeSurfer's SUBJECTS_DIR: a folder for each subject, with conformed volumes in mri/."""

import os
from collections import Counter
from pathlib import Path

from somvq.config import CohortSettings
from somvq.sources.found import Found, ScanFile
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
    """The stripped volume of each subject, of one kind where all have it; of longitudinal visits the .long. ones."""
    names = [folder.name for folder in folders_in(root) if os.path.isdir(folder / "mri")]
    names = [name for name in names if not name.startswith(TEMPLATES)]
    repeated = {part for name in names if LONG in name for part in name.split(LONG, 1)}
    kinds = {name: kinds_of(root / name) for name in names if name not in repeated}
    chosen = choose({name: own for name, own in kinds.items() if own})
    scans = [scan_of(root, name, kind) for name, kind in chosen.items()]
    why = f"its mri/ holds none of {', '.join(STRIPPED)}; run recon-all -autorecon1 and -autorecon2, or remove it"
    left_out = [f"{name}: {why}" for name, own in kinds.items() if not own]
    passed_over = len(repeated & set(names))
    return Found(LAYOUT.name, tuple(scans), tuple(left_out), tuple(notes_on(chosen, passed_over)))


def kinds_of(subject: Path) -> list[str]:
    """The stripped volumes that `subject` has, the best first."""
    return [kind for kind in STRIPPED if os.path.lexists(subject / "mri" / kind)]


def choose(kinds: dict[str, list[str]]) -> dict[str, str]:
    """The volume of each subject: the best that all have, else of each its best."""
    common = [kind for kind in STRIPPED if all(kind in own for own in kinds.values())]
    return {name: common[0] if common else own[0] for name, own in kinds.items()}


def scan_of(root: Path, name: str, kind: str) -> ScanFile:
    """The volume `kind` of the subject called `name`, as FreeSurfer calls visits too."""
    visit, _, base = name.partition(LONG)
    path = root / name / "mri" / kind
    session = session_in(visit) or (visit if base else "")
    return ScanFile(path, str(path.relative_to(root)), whose(base or visit), session)


def notes_on(chosen: dict[str, str], passed_over: int) -> list[str]:
    """What was taken of what there is."""
    counts = Counter(chosen.values())
    notes = [f"{' and '.join(f'mri/{kind} of {counts[kind]}' for kind in STRIPPED if kind in counts)} subjects"]
    if len(counts) > 1:
        notes[0] += ": not all have the same, so their brightness may differ"
    if passed_over:
        notes.append(
            f"{passed_over} cross-sectional and base folders of subjects that have .long. ones are passed over"
        )
    return notes


LAYOUT = Layout("freesurfer", f"SUBJECT/mri/{STRIPPED[0]} (or {', '.join(STRIPPED[1:])})", recognise, find)
