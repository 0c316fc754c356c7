"""What looking at a folder finds: scans, whose they are, and what is said of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from somvq.config import LayoutName, Split

Covariates = Mapping[str, float | str]


def counted(number: int, one: str, several: str) -> str:
    """How many there are of something: counted(2, 'scan is', 'scans are') is '2 scans are'."""
    return f"{number} {one if number == 1 else several}"


def some_of(names: Sequence[str], most: int = 3) -> str:
    """The first of `names`, and dots where there are more."""
    return ", ".join((*names[:most], *(["..."] if names[most:] else [])))


@dataclass(frozen=True)
class ScanFile:
    """A T1 volume on disk, not yet read."""

    path: Path  # what nibabel is given: of a pair, the .hdr
    file: str  # how people know it: its path below the cohort's folder
    subject: str  # all scans of one person are in one split
    session: str = ""  # tells the visits of a subject apart; the file itself where nothing names them
    mask: Path | None = None  # a volume on the scan's grid that is not 0 in the brain
    split: Split | None = None  # that its manifest demands
    sha256: str = ""  # that its manifest demands
    covariates: Covariates = field(default_factory=dict)  # of the subject at that visit: age, sex, cdr ...


@dataclass(frozen=True)
class Found:
    """The scans of a cohort, in order of subject and file."""

    layout: LayoutName
    scans: tuple[ScanFile, ...]
    left_out: tuple[str, ...] = ()  # a line for each scan that should be there and is not: "FILE: why; what to do"
    notes: tuple[str, ...] = ()  # what was chosen among what is there, with counts
