"""A prepared cohort: the scans of a study as one float16 memory map with an index, split by subject."""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from somvq.config import ENCODER_STRIDE, CohortSettings, LayoutName, Split
from somvq.data.preprocess import Box
from somvq.data.scan import brighter_than_background
from somvq.errors import DataError

FORMAT = 3  # raise it when the same scans no longer give the same files: older caches are then made again
KNOWN_FACTORS = ("age", "atrophy")  # covariates that a codebook is asked about
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class ScanEntry(BaseModel):
    """One scan of a prepared cohort; `mean` and `deviation` lead from z-scores back to the file's own units."""

    model_config = ConfigDict(frozen=True)
    subject: str
    session: str = ""
    file: str  # below the cohort's folder
    sha256: str
    split: Split
    mean: float
    deviation: float
    affine: tuple[tuple[float, ...], ...]  # of the prepared volume
    box: Box  # first and last + 1 voxel along each axis that is the scan's own, not padding
    lost: float  # share of its brain that was cut off
    covariates: dict[str, float | str] = {}  # of the subject at that session
    warnings: tuple[str, ...] = ()


def without_numbers(sentence: str) -> str:
    """What `sentence` has in common with others of its kind."""
    return re.sub(r"\d[\d.,]*", "#", sentence)


class CohortIndex(BaseModel):
    """What index.json says."""

    model_config = ConfigDict(frozen=True)
    format: int
    name: str
    layout: LayoutName
    fingerprint: str
    settings: CohortSettings
    shape: tuple[int, int, int]
    scans: tuple[ScanEntry, ...]
    left_out: tuple[str, ...] = ()  # a line for each scan that could not be used
    missing: tuple[str, ...] = ()  # and for each that should have been there
    passing: tuple[str, ...] = ()  # files of those left out that may be usable another time
    versions: dict[str, str] = {}

    def warnings(self) -> list[tuple[str, list[str]]]:
        """Each warning, as the first scan has it, and the files of those that have it, whatever its numbers."""
        kinds: dict[str, tuple[str, list[str]]] = {}
        for scan in self.scans:
            for warning in scan.warnings:
                kinds.setdefault(without_numbers(warning), (warning, []))[1].append(scan.file)
        return list(kinds.values())


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
        return {split: [row for row, scan in enumerate(self.index.scans) if scan.split == split] for split in SPLITS}

    def read(self, rows: Sequence[int]) -> npt.NDArray[np.float32]:
        """Scans `rows` as z-scores, (B, 1, X, Y, Z)."""
        return np.asarray(self.volumes[list(rows)], np.float32)[:, None]

    def brain(self, row: int) -> npt.NDArray[np.bool_]:
        """Where scan `row` is brain, (X, Y, Z); never in its padding, whatever fills that."""
        own = tuple(slice(*side) for side in self.index.scans[row].box)
        inside = np.zeros(self.index.shape, np.bool_)
        inside[own] = brighter_than_background(np.asarray(self.volumes[row][own], np.float32))
        return inside

    def share_of_brain(self, rows: Sequence[int]) -> npt.NDArray[np.float32]:
        """How much of each token's block of voxels is brain, (B, x, y, z), 0 to 1."""
        x, y, z = (side // ENCODER_STRIDE for side in self.index.shape)
        blocks = (x, ENCODER_STRIDE, y, ENCODER_STRIDE, z, ENCODER_STRIDE)
        return np.stack([self.brain(row).reshape(blocks).mean((1, 3, 5), dtype=np.float32) for row in rows])

    def factors(self, rows: Sequence[int]) -> dict[str, list[float]]:
        """The ages, and the like, of the subjects of scans `rows`: those factors that are known of all of them."""
        known: dict[str, list[float]] = {}
        for name in KNOWN_FACTORS:
            values = [self.index.scans[row].covariates.get(name) for row in rows]
            if all(isinstance(value, float) for value in values):
                known[name] = [float(value) for value in values if value is not None]
        return known

    def summary(self) -> str:
        """One line: how many scans of what shape in which split."""
        counts = " / ".join(f"{len(rows)} {split}" for split, rows in self.rows.items())
        return f"{len(self.index.scans)} scans of {'x'.join(map(str, self.index.shape))} voxels, {counts}"
