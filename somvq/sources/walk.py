"""Looking at folders: what is hidden is skipped, links are followed, loops of links are not."""

import os
from collections.abc import Callable, Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple, NoReturn

from somvq.errors import DataError
from somvq.sources.names import subject_of

LOOKS = 200  # folders of a level that are looked into to recognise a layout: a disk is not walked for that
HALVES = {".hdr": ".img", ".img": ".hdr"}  # of a volume in two files, Analyze or NIfTI


class Volumes(NamedTuple):
    """The volumes, halves of volumes and folders below a folder, as paths from there."""

    files: list[Path]
    halves: list[Path]
    folders: list[Path]

    @property
    def left_out(self) -> list[str]:
        """A line for each half."""
        missing = ((half, HALVES[half.suffix.lower()]) for half in self.halves)
        return [f"{half}: its {other} is missing; copy it here as well, or remove this one" for half, other in missing]


def find_volumes(root: Path, is_wanted: Callable[[Path], bool], skip: Collection[str] = ()) -> Volumes:
    """The files in `root` and below that are wanted, of pairs the .hdr; no folder called as in `skip` is entered.

    Raises:
        DataError: a part of it cannot be listed.
    """
    files: dict[tuple[str, str], Path] = {}  # one file under two subjects' names is two: refused later, as twins
    halves, folders = [], []
    for place, names in walk(root, skip):
        folder, beside = place.relative_to(root), {name.lower() for name in names}
        folders.append(folder)
        for file in filter(is_wanted, (folder / name for name in names)):
            if lacks_half(file.name.lower(), beside):
                halves.append(file)
            elif file.suffix.lower() != ".img":
                files.setdefault((os.path.realpath(root / file), subject_of(file)), file)
    return Volumes(sorted(files.values()), halves, folders)


def walk(root: Path, skip: Collection[str] = ()) -> Iterator[tuple[Path, list[str]]]:
    """Each folder at `root` and below with the names of its files, sorted.

    Raises:
        DataError: one of them cannot be listed.
    """
    entered: set[str] = set()
    for place, folders, files in os.walk(root, followlinks=True, onerror=refuse_to_list):
        real = os.path.realpath(place)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if name[0] != "." and name not in skip)
        yield Path(place), sorted(name for name in files if name[0] != ".")


def refuse_to_list(error: OSError) -> NoReturn:
    """Called by os.walk, which would pass over a folder that it may not read, and its subjects, in silence."""
    raise DataError(f"{error.filename}: cannot be listed ({error.strerror}); mend its permissions") from error


def lacks_half(name: str, beside: Collection[str]) -> bool:
    """Whether `name` is half of a volume in two files, and the other is not among the names `beside`; in lower case."""
    stem, suffix = os.path.splitext(name)
    return suffix in HALVES and stem + HALVES[suffix] not in beside


def names_in(folder: Path) -> list[str]:
    """What is in `folder`, sorted.

    Raises:
        DataError: it cannot be listed.
    """
    try:
        return sorted(name for name in os.listdir(folder) if name[0] != ".")
    except OSError as error:
        refuse_to_list(error)


def folders_in(folder: Path, beginning: str = "") -> list[Path]:
    """The folders in `folder` whose names begin so, sorted."""
    return [folder / name for name in names_in(folder) if name.startswith(beginning) and os.path.isdir(folder / name)]


def glimpse(root: Path, depth: int, skip: Collection[str] = ()) -> Iterator[tuple[Path, list[str]]]:
    """`root` and some folders of each level down to `depth`, with the names in each; what cannot be listed is not."""
    level = [root]
    for remaining in range(depth, -1, -1):
        below: list[Path] = []
        for folder in level:
            try:
                names = names_in(folder)
            except DataError:  # finding will refuse it, if the layout has a place for it
                continue
            yield folder, names
            inner = (folder / name for name in names if name not in skip)
            below += islice(filter(os.path.isdir, inner), LOOKS - len(below) if remaining else 0)
        level = below
