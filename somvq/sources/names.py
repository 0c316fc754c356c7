"""Whose scan a file is, and of which visit: what BIDS and OASIS names say."""

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

SUBJECT = re.compile(r"(?i:(?:sub-)?OAS(\d)_?(\d{4}))|(?<![A-Za-z0-9])(sub-[A-Za-z0-9]+)")
SESSION = re.compile(r"(?:^|_)(?:(?i:(?:ses-)?(MR\d+|d\d{4,}))|(ses-[A-Za-z0-9]+))(?![A-Za-z0-9])")
OASIS_OR_BIDS = re.compile(r"(?i:.*OAS\d_?\d{4}(_.*)?)|sub-[A-Za-z0-9]+(_ses-[A-Za-z0-9]+)?")
VISIT = re.compile(r"[_-](visit|tp|ses|session|timepoint|time|scan|v|mr)[-_]?\d+$", re.IGNORECASE)
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # the last are bytes that are not UTF-8


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


def person_of(subject_id: str) -> str:
    """The person whom a table calls so: sessions of OASIS and BIDS are taken off, nothing else is."""
    return whose(subject_id) if OASIS_OR_BIDS.fullmatch(subject_id) else subject_id


def session_in(name: str) -> str:
    """The visit that `name` names ('ses-2', and of OASIS 'MR1' or 'd0129'); empty if none."""
    found = SESSION.search(name)
    if not found:
        return ""
    visit, bids = found.groups()
    return bids or (visit.upper() if visit[0] in "Mm" else visit.lower())


def subject_of(file: Path) -> str:
    """Whose scan `file` (below the cohort's folder) is: the BIDS or OASIS name in its path, else its stem."""
    return next((subject for part in reversed(file.parts) if (subject := subject_in(part))), stem_of(file.name))


def session_of(file: Path) -> str:
    """The visit that the path `file` (below the cohort's folder) names; empty if none."""
    return next((session for part in reversed(file.parts) if (session := session_in(part))), "")


def torn_people(subjects: Iterable[str]) -> list[list[str]]:
    """Those of `subjects` whose names look like visits of one person ('anna_visit1', 'anna_visit2'), by person."""
    visits: dict[str, list[str]] = defaultdict(list)
    for subject in sorted(set(subjects)):
        visits[VISIT.sub("", subject)].append(subject)
    return [names for names in visits.values() if len(names) > 1]


def fault_of(name: str) -> str:
    """Why no index can hold a file called `name`; empty if one can."""
    found = UNPRINTABLE.search(name)
    if not found:
        return ""
    return "its name is not UTF-8" if found[0] >= "\ud800" else "its name holds control characters"


def printable(text: str) -> str:
    """`text` with escapes for what no terminal prints and no index holds."""
    return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def stem_of(name: str) -> str:
    """`name` less its suffixes: 'a.nii.gz' is 'a'."""
    return re.sub(r"(\.nii|\.mgz|\.mgh|\.hdr|\.img)(\.gz)?$", "", name, flags=re.IGNORECASE)
