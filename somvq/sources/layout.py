"""A layout: one way in which data sets name their files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from somvq.config import CohortSettings, LayoutName
from somvq.sources.found import Found


@dataclass(frozen=True)
class Layout:
    """What is needed to look for scans in one layout."""

    name: LayoutName
    looks_for: str  # the files, as a user would write them
    recognise: Callable[[Path], bool]  # a few looks at names: no file is opened but a manifest, no disk walked
    find: Callable[[Path, CohortSettings], Found]
