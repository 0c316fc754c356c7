"""A prepared cohort: the scans of a study as one float16 memory map with an index, split by subject."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from somvq.config import CohortSettings
from somvq.errors import DataError

FORMAT = 1  # raise it when the same scans no longer give the same files: older caches are then made again
Split = Literal["train", "val", "test"]
SHARES: dict[Split, float] = {"val": 23 / 179, "test": 28 / 179}  # the paper's 128 / 23 / 28


class ScanEntry(BaseModel):
    """One scan of a prepared cohort; `mean` and `deviation` lead from z-scores back to the file's own units."""

    model_config = ConfigDict(frozen=True)
    subject: str
    file: str  # below the cohort's folder
    sha256: str
    split: Split
    mean: float
    deviation: float
    affine: tuple[tuple[float, ...], ...]  # of the prepared volume
    warnings: tuple[str, ...] = ()


class CohortIndex(BaseModel):
    """What index.json says."""

    model_config = ConfigDict(frozen=True)
    format: int
    name: str
    fingerprint: str
    settings: CohortSettings
    shape: tuple[int, int, int]
    scans: tuple[ScanEntry, ...]
    left_out: tuple[str, ...] = ()
    versions: dict[str, str] = {}


class Cohort:
    """A prepared cohort, read lazily from its folder."""

    def __init__(self, folder: Path):
        """Opens `folder`.

        Raises:
            DataError: it holds no whole prepared cohort of this format.
        """
        self.folder = folder
        try:
            self.index = CohortIndex.model_validate_json((folder / "index.json").read_text())
            self.volumes = np.lib.format.open_memmap(folder / "volumes.npy", mode="r")
        except (OSError, ValueError) as error:  # pydantic's ValidationError is a ValueError
            raise DataError(f"{folder} is no prepared cohort; delete it and it is made again") from error
        shape = (len(self.index.scans), *self.index.shape)
        if self.index.format != FORMAT or self.volumes.shape != shape or self.volumes.dtype != np.float16:
            raise DataError(f"{folder} was prepared by another version of somvq; delete it and it is made again")

    @property
    def fingerprint(self) -> str:
        """What makes this cohort itself: subjects, the scans' contents, preprocessing, split."""
        return self.index.fingerprint

    @cached_property
    def rows(self) -> dict[Split, list[int]]:
        """The rows of `volumes` in each split."""
        splits: tuple[Split, ...] = ("train", "val", "test")
        return {split: [row for row, scan in enumerate(self.index.scans) if scan.split == split] for split in splits}

    def read(self, rows: Sequence[int]) -> npt.NDArray[np.float32]:
        """Scans `rows` as z-scores, (B, 1, X, Y, Z)."""
        return np.asarray(self.volumes[list(rows)], np.float32)[:, None]

    def summary(self) -> str:
        """One line: how many scans of what shape in which split."""
        counts = " / ".join(f"{len(rows)} {split}" for split, rows in self.rows.items())
        return f"{len(self.index.scans)} scans of {'x'.join(map(str, self.index.shape))} voxels, {counts}"


def split_subjects(subjects: Sequence[str], seed: int) -> dict[str, Split]:
    """Which split each subject is in: seeded, in the paper's shares, at least one subject in each.

    Raises:
        DataError: there are fewer than 3 subjects.
    """
    names = sorted(set(subjects))
    if len(names) < 3:
        found = ", ".join(names) or "none"
        subjects_found = f"{len(names)} subject{'' if len(names) == 1 else 's'} ({found})"
        raise DataError(f"{subjects_found} cannot be split into train, val and test; give scans of at least 3")
    order = list(np.random.default_rng(seed).permutation(len(names)))
    assigned: dict[str, Split] = {}
    for split, share in SHARES.items():
        for _ in range(max(1, round(share * len(names)))):
            assigned[names[order.pop()]] = split
    return {name: assigned.get(name, "train") for name in names}
