"""Choosing people by their clinical dementia rating (CDR)."""

from collections import Counter
from collections.abc import Sequence

from somvq.errors import DataError
from somvq.sources.found import ScanFile, counted
from somvq.sources.names import whose


def select_by_rating(scans: Sequence[ScanFile], wanted: str, include_blank: bool) -> tuple[tuple[ScanFile, ...], str]:
    """The scans of people whose clinical dementia rating is `wanted` ('0,0.5'), and a note with counts.

    Raises:
        DataError: no scan has a rating, or none a wanted one.
    """
    if not any("cdr" in scan.covariates for scan in scans):
        raise DataError(f"--cdr {wanted}: no scan has a rating; {where_ratings_are(scans)}")
    ratings: set[float | None] = {float(rating) for rating in wanted.split(",")}
    if include_blank:
        ratings.add(None)
    kept = tuple(scan for scan in scans if scan.covariates.get("cdr") in ratings)
    asked = f"--cdr {wanted}{' --include-blank-cdr' if include_blank else ''}"
    if not kept:
        raise DataError(f"{asked} keeps none of {counts_of(scans)}; ask for other ratings")
    return kept, f"{asked} keeps {sessions_of(kept)}, of {counts_of(scans)}"


def where_ratings_are(scans: Sequence[ScanFile]) -> str:
    """What to do for ratings."""
    tables = {"OAS1_": "oasis_cross-sectional.csv", "OAS2_": "oasis_longitudinal.csv", "OAS3": "OASIS3_UDSb4_cdr.csv"}
    needed = [table for start, table in tables.items() if any(whose(scan.subject).startswith(start) for scan in scans)]
    if needed:
        return f"put {' and '.join(needed)} beside the scans, or name it with --table FILE"
    return "name a table with columns subject_id and cdr with --table FILE"


def sessions_of(scans: Sequence[ScanFile]) -> str:
    """How many sessions of how many people."""
    sessions = {(scan.subject, scan.session) for scan in scans}
    people = len({subject for subject, _ in sessions})
    return f"{counted(len(sessions), 'session', 'sessions')} of {counted(people, 'person', 'people')}"


def counts_of(scans: Sequence[ScanFile]) -> str:
    """How many sessions and people there are, and with which ratings."""
    sessions = {(scan.subject, scan.session): rating_of(scan) for scan in scans}
    again = len(sessions) - len({subject for subject, _ in sessions})
    ratings = ", ".join(f"{rating}: {count}" for rating, count in sorted(Counter(sessions.values()).items()))
    return f"{sessions_of(scans)} (of them later visits: {again}; CDR {ratings})"


def rating_of(scan: ScanFile) -> str:
    """A clinical dementia rating in words; those who were never rated have a blank."""
    rating = scan.covariates.get("cdr", "blank")
    return rating if isinstance(rating, str) else f"{rating:g}"
