"""Whose scan a file is, and of which visit: what BIDS and OASIS names say."""

import re
from collections.abc import Iterable
from pathlib import Path

from somvq.errors import DataError

SUBJECT = re.compile(r"(?:sub-)?OAS(\d)_?(\d{4})|(?<![A-Za-z0-9])(sub-[A-Za-z0-9]+)")
SESSION = re.compile(r"(?:^|_)(?:(?:ses-)?(MR\d+|d\d{4,})|(ses-[A-Za-z0-9]+))(?![A-Za-z0-9])")


def subject_in(name: str) -> str:
    """The person that `name` names, always in one form ('sub-01', 'OAS1_0001', 'OAS30001'); empty if none."""
    found = SUBJECT.search(name)
    if not found:
        return ""
    study, number, bids = found.groups()
    return bids or (f"OAS{study}_{number}" if study in "12" else f"OAS{study}{number}")


def whose(name: str) -> str:
    """The person called `name`, in one form; as it is if it is no name of BIDS or OASIS."""
    return subject_in(name) or name


def session_in(name: str) -> str:
    """The visit that `name` names ('ses-2', and of OASIS 'MR1' or 'd0129'); empty if none."""
    found = SESSION.search(name)
    return (found[1] or found[2]) if found else ""


def subject_of(file: Path) -> str:
    """Whose scan `file` (below the cohort's folder) is: the BIDS or OASIS name in its path, else its stem."""
    return next((subject for part in reversed(file.parts) if (subject := subject_in(part))), stem_of(file.name))


def session_of(file: Path) -> str:
    """The visit that the path `file` (below the cohort's folder) names; empty if none."""
    return next((session for part in reversed(file.parts) if (session := session_in(part))), "")


def refuse_undecodable(names: Iterable[str]) -> None:
    """No index can hold names that are not UTF-8, which Python keeps as surrogates."""
    for name in names:
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise DataError(f"{name!a}: its name is not UTF-8, so no index can hold it; rename it")


def stem_of(name: str) -> str:
    """`name` less its suffixes: 'a.nii.gz' is 'a'."""
    return re.sub(r"(\.nii|\.mgz|\.mgh|\.hdr|\.img)(\.gz)?$", "", name, flags=re.IGNORECASE)
