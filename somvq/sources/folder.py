"""A folder of T1 volumes, whatever their names."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from somvq.config import CohortSettings
from somvq.errors import DataError
from somvq.sources import derivatives, freesurfer, neurite, oasis1, oasis2
from somvq.sources.found import Found, ScanFile, some_of
from somvq.sources.layout import Layout
from somvq.sources.names import fault_of, stem_of, subject_in, subject_of
from somvq.sources.walk import find_volumes

SUFFIXES = (".nii.gz", ".nii", ".mgz", ".mgh", ".hdr", ".img")
NOT_T1 = re.compile(  # what BIDS calls the other images of a subject
    r"sub-.*_(T2w|T2star|T2starw|FLAIR|PDw|inplaneT[12]|bold|sbref|dwi|epi|asl|mask|dseg|probseg)$"
)


def recognise(root: Path) -> bool:
    """Any folder will do."""
    return root.is_dir()


def find(root: Path, settings: CohortSettings) -> Found:
    """The T1 volumes in `root` and below; each is a session of its own.

    Raises:
        DataError: a part of it that cannot be listed, names that leave open whose scans they are, or another layout.
    """
    volumes = find_volumes(root, is_t1)
    if settings.layout is None:
        refuse_other_layout(root, volumes.files)
    people = folders_of_people([file for file in volumes.files if not fault_of(str(file))])
    names = [folder.name for folder in people]
    scans = [ScanFile(root / file, str(file), whose_scan(file, people), str(file)) for file in volumes.files]
    notes = [f"subjects are called after their folders ({some_of(names, 2)})"] if people else []
    return Found(LAYOUT.name, tuple(scans), tuple(volumes.left_out), tuple(notes))


def is_t1(file: Path) -> bool:
    """Whether `file` is taken for a T1 volume, or for one half of it."""
    return file.name.lower().endswith(SUFFIXES) and not NOT_T1.match(stem_of(file.name))


def folders_of_people(files: Sequence[Path]) -> list[Path]:
    """The folders in the cohort's that hold files called alike, as in anna/T1.nii and ben/T1.nii: one a person.

    Raises:
        DataError: such files are not told apart by the names of their folders.
    """
    alike: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        if is_nameless(file):
            alike[stem_of(file.name)].append(file)
    people: set[Path] = set()
    for stem, those in alike.items():
        holders = sorted({file.parent for file in those})
        if holders[1:]:
            folders = folders_apart(holders)
            if not folders:
                other = next(file for file in those if file.parent != those[0].parent)
                raise DataError(
                    f"{those[0]} and {other} are both called '{stem}', so whose they are is not known; "
                    "name files or folders after subjects, as in sub-01_T1w.nii.gz, or give a manifest"
                )
            people.update(folders)
    return sorted(people)


def folders_apart(holders: Sequence[Path]) -> Sequence[Path]:
    """`holders`, or if all are called alike (anat/) those above, if each has a name of its own; else none.

    None either where one lies in another, or one name stands twice: visits and groups of people look the same.
    """
    while len({folder.name for folder in holders}) == 1 and holders[0].name:
        holders = [folder.parent for folder in holders]
    names = {folder.name for folder in holders}
    nested = any(one in other.parents for one in holders for other in holders)
    return [] if nested or "" in names or len(names) < len(holders) else holders


def is_nameless(file: Path) -> bool:
    """Whether nothing in the path `file` is a subject's name of BIDS or OASIS."""
    return not any(map(subject_in, file.parts))


def whose_scan(file: Path, people: Sequence[Path]) -> str:
    """The subject of `file`: the person after whom a folder of it is called, else what its path tells."""
    folder = next((folder for folder in file.parents if folder in people), None)
    return folder.name if folder and is_nameless(file) else subject_of(file)


def refuse_other_layout(root: Path, files: Sequence[Path]) -> None:
    """A data set some folders down is not a folder of T1 volumes: the rest of its volumes would be taken as well."""
    suspects: dict[tuple[Layout, Path], Path] = {}  # the outer folders first
    for file in files:
        for layout in (layout for layout, is_of in OTHERS.items() if is_of(file)):
            for place in reversed(file.parents[:-1]):
                suspects.setdefault((layout, place), file)
    for (layout, place), file in suspects.items():
        if layout.recognise(root / place):
            raise DataError(
                f"cohort {root} holds files of layout {layout.name} some folders down, as {file}: name the folder "
                f"that holds them, {root / place}, or --layout folder to take every volume"
            )


OTHERS: dict[Layout, Callable[[Path], bool]] = {  # layouts by files that no other has
    neurite.LAYOUT: lambda file: file.name == neurite.ALIGNED,
    oasis1.LAYOUT: lambda file: bool(oasis1.SCAN.fullmatch(file.name)),
    oasis2.LAYOUT: oasis2.is_scan,
    freesurfer.LAYOUT: lambda file: file.parent.name == "mri" and file.name in freesurfer.STRIPPED,
    derivatives.LAYOUT: lambda file: bool(derivatives.SCAN.fullmatch(file.name)),
}
LAYOUT = Layout("folder", "files that end in .nii, .nii.gz, .mgz, .mgh, or .hdr with .img", recognise, find)
