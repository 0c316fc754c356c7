"""Which subjects train, validate and test a model."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from somvq.config import CohortSettings, Split
from somvq.data.cohort import SPLITS
from somvq.errors import DataError
from somvq.sources.found import ScanFile, counted


def split_scans(scans: Sequence[ScanFile], settings: CohortSettings) -> dict[str, Split]:
    """The split of each subject: its manifest's, else drawn by subject.

    Raises:
        DataError: too few subjects, or a covariate that nobody has.
    """
    if any(scan.split for scan in scans):
        return given_splits(scans)
    if settings.stratify is None:
        return split_subjects([scan.subject for scan in scans], settings)
    values = {scan.subject: scan.covariates[settings.stratify] for scan in reversed(scans)
              if settings.stratify in scan.covariates}  # fmt: skip
    if not values:
        known = ", ".join(sorted({name for scan in scans for name in scan.covariates})) or "none"
        raise DataError(f"no scan has the covariate {settings.stratify} of --stratify; there are: {known}")
    return split_subjects([scan.subject for scan in scans], settings, values)


def given_splits(scans: Sequence[ScanFile]) -> dict[str, Split]:
    """The splits that a manifest demands: it gives one to each scan, and the same to all of a subject.

    Raises:
        DataError: of the scans that are wanted and can be used, there is nothing to train or to validate with.
    """
    splits = [scan.split for scan in scans]
    if not {"train", "val"} <= {*splits}:
        counts = ", ".join(f"{splits.count(split)} {split}" for split in SPLITS)
        raise DataError(f"the usable scans are {counts} by their manifest; give scans to train and to validate with")
    return {scan.subject: scan.split for scan in scans if scan.split}


def split_subjects(
    subjects: Sequence[str], settings: CohortSettings, values: Mapping[str, float | str] | None = None
) -> dict[str, Split]:
    """Which split each subject is in: seeded, in the shares asked for, at least one subject in each that has a share.

    With `values` of a covariate by subject, each split has them in the proportions of all.

    Raises:
        DataError: there are fewer than 3 subjects.
    """
    names = sorted(set(subjects))
    if len(names) < 3:
        found = f"{counted(len(names), 'subject', 'subjects')} ({', '.join(names) or 'none'})"
        raise DataError(f"{found} cannot be split into train, val and test; give scans of at least 3")
    random = np.random.default_rng(settings.split_seed)
    order = [names[place] for place in random.permutation(len(names))]
    _, val, test = shares = [float(share) for share in settings.split.split("/")]
    counts = [max(1, round(share / sum(shares) * len(names))) if share else 0 for share in (val, test)]
    counts = [min(counts[0], len(names) - 1), min(counts[1], len(names) - 1 - counts[0])]
    if values is not None:
        order = sorted(order, key=lambda name: rank(values.get(name)))
    held_out: dict[str, Split] = {}
    places: tuple[Split, Split] = ("val", "test")
    for split, count in zip(places, counts, strict=True):
        drawn = order[len(order) - count :] if values is None else draw_evenly(order, count, random)
        held_out |= dict.fromkeys(drawn, split)
        order = [name for name in order if name not in held_out]
    return {name: held_out.get(name, "train") for name in names}


def rank(value: float | str | None) -> tuple[int, float, str]:
    """Orders numbers, then words, then those who have no value."""
    if value is None:
        return 2, 0.0, ""
    return (1, 0.0, value) if isinstance(value, str) else (0, float(value), "")


def draw_evenly(order: Sequence[str], count: int, random: np.random.Generator) -> list[str]:
    """`count` of `order`, one at random from each of as many equal stretches of it."""
    ends = np.linspace(0, len(order), count + 1).round().astype(int)
    return [order[random.integers(first, end)] for first, end in pairwise(ends)]
