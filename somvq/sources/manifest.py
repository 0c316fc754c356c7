"""A table that lists scans: their files, subjects and, where wanted, splits, masks and covariates."""

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from somvq.config import CohortSettings, Split
from somvq.errors import DataError
from somvq.sources.found import Covariates, Found, ScanFile, counted, some_of
from somvq.sources.layout import Layout
from somvq.sources.names import person_of, session_in
from somvq.sources.tables import Row, Table, columns_of, is_absent, is_table, read_table, value_of

REQUIRED = ("path", "subject_id")
OWN = (*REQUIRED, "session", "split", "mask_path", "sha256")  # all other columns are covariates
SPLITS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


def recognise(root: Path) -> bool:
    """A table, or a folder with a manifest.csv that has one of a manifest's columns."""
    return is_table(root) or not {*REQUIRED}.isdisjoint(columns_of(root / "manifest.csv"))


def find(root: Path, settings: CohortSettings) -> Found:
    """The scans that the table at `root`, or manifest.csv in it, lists; whether they are there is not looked at.

    Raises:
        DataError: names the line and what is wrong with it.
    """
    table = read_table(root / "manifest.csv" if root.is_dir() else root)
    missing = [name for name in REQUIRED if name not in table.columns]
    if missing:
        has = ", ".join(table.columns) or "none"
        raise DataError(f"{table.path}: line 1: no column {missing[0]} (there are {has}); a manifest has {said(OWN)}")
    if not table.rows:
        raise DataError(f"{table.path}: no line after line 1; a manifest has a line for each scan")
    refuse_blanks(table)
    scans = in_one_form([scan_of(row, table.path) for row in table.rows])
    refuse_duplicates(table, scans)
    refuse_torn_splits(table, scans)
    if any(scan.split for scan in scans):
        refuse_other_splits(settings)
    return Found(LAYOUT.name, tuple(scans), notes=tuple(note_on_people(table, scans)))


def said(columns: tuple[str, ...]) -> str:
    """The columns of a manifest, those that may be missing last."""
    optional = ", ".join(name for name in columns if name not in REQUIRED)
    return f"{' and '.join(REQUIRED)}, and where wanted {optional} and covariates"


def refuse_blanks(table: Table) -> None:
    """Each line must say what it is of."""
    for row in table.rows:
        for name in REQUIRED:
            cell = row.cells[name]
            if is_absent(cell):
                empty = f"'{cell}', which stands for nothing" if cell else "empty"
                raise DataError(f"{table.path}: line {row.line}: {name} is {empty}; fill it in or remove the line")


def scan_of(row: Row, manifest: Path) -> ScanFile:
    """The scan of one line."""
    cells = {name: "" if is_absent(cell) else cell for name, cell in row.cells.items()}
    path, file = place_of(cells["path"], manifest, row.line)
    mask = cells.get("mask_path", "")
    return ScanFile(
        path,
        file,
        person_of(cells["subject_id"]),
        session=cells.get("session") or session_in(cells["subject_id"]) or file,
        mask=place_of(mask, manifest, row.line)[0] if mask else None,
        split=split_of(row, manifest),
        sha256=cells.get("sha256", "").lower(),
        covariates=covariates_of(row),
    )


def in_one_form(scans: Sequence[ScanFile]) -> list[ScanFile]:
    """`scans` with '01' called 'sub-01' where a line calls it so."""
    subjects = {scan.subject for scan in scans}
    return [
        replace(scan, subject=f"sub-{scan.subject}") if f"sub-{scan.subject}" in subjects else scan for scan in scans
    ]


def note_on_people(table: Table, scans: Sequence[ScanFile]) -> list[str]:
    """A note where several names are taken for one person's."""
    names: dict[str, dict[str, None]] = {}  # keeps the order of lines
    for row, scan in zip(table.rows, scans, strict=True):
        names.setdefault(scan.subject, {})[row.cells["subject_id"]] = None
    several = {subject: list(those) for subject, those in names.items() if len(those) > 1}
    if not several:
        return []
    subject, those = next(iter(several.items()))
    people = counted(len(several), "person has", "people have")
    return [f"{people} more than one subject_id, such as {subject}: {some_of(those)}"]


def place_of(text: str, manifest: Path, line: int) -> tuple[Path, str]:
    """The file that a line of `manifest` calls `text`, and what it is called from there.

    Raises:
        DataError: no file can be called so.
    """
    folder = manifest.parent
    if "\0" in text:
        raise DataError(f"{manifest}: line {line}: a path holds a NUL byte; write the table again")
    try:
        written = folder / Path(text).expanduser()
    except RuntimeError as error:
        raise DataError(f"{manifest}: line {line}: {text}: whose ~ that is, is not known; write it out") from error
    path = as_on_disk(written)
    for place in (folder, folder.resolve()):
        if path.is_relative_to(place):
            return path, str(path.relative_to(place))
    return path, str(path)


def as_on_disk(path: Path) -> Path:
    """`path`, or the file there whose name has the same letters in another form of Unicode, composed or not."""
    forms = (path, *(Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD")))
    return next((form for form in forms if os.path.lexists(form)), path)


def split_of(row: Row, manifest: Path) -> Split | None:
    """The split that a line asks for."""
    word = row.cells.get("split", "")
    if is_absent(word):
        return None
    if word.lower() not in SPLITS:
        raise DataError(f"{manifest}: line {row.line}: split '{word}' is none; write train, val or test")
    return SPLITS[word.lower()]


def covariates_of(row: Row) -> Covariates:
    """What a line says of its subject."""
    values = {name: value_of(cell) for name, cell in row.cells.items() if name not in OWN}
    return {name: value for name, value in values.items() if value is not None}


def refuse_duplicates(table: Table, scans: list[ScanFile]) -> None:
    """A file that is listed twice would count twice."""
    lines: dict[str, int] = {}
    for row, scan in zip(table.rows, scans, strict=True):
        first = lines.setdefault(os.path.realpath(scan.path), row.line)
        if first != row.line:
            raise DataError(f"{table.path}: line {row.line}: {scan.file} is that of line {first} again; remove one")


def refuse_torn_splits(table: Table, scans: list[ScanFile]) -> None:
    """Splits are of all scans or of none, and each subject is in one."""
    given = [scan.split is not None for scan in scans]
    if any(given) and not all(given):
        line = table.rows[given.index(False)].line
        raise DataError(
            f"{table.path}: line {line}: split is empty, and given for {sum(given)} of {len(given)} scans; "
            "give it for all or for none"
        )
    seen: dict[str, tuple[Split | None, int]] = {}
    for row, scan in zip(table.rows, scans, strict=True):
        split, line = seen.setdefault(scan.subject, (scan.split, row.line))
        if split != scan.split:
            raise DataError(
                f"{table.path}: line {row.line}: subject {scan.subject} is in {scan.split}, and in {split} on line "
                f"{line}; put all scans of a subject in one split"
            )


def refuse_other_splits(settings: CohortSettings) -> None:
    """Settings of splits would do nothing where a manifest gives them."""
    asked = {
        f"--split {settings.split}": settings.split != CohortSettings.model_fields["split"].default,
        f"--split-seed {settings.split_seed}": settings.split_seed != 0,
        f"--stratify {settings.stratify}": settings.stratify is not None,
    }
    for option in filter(asked.get, asked):
        raise DataError(f"{option}: the manifest gives splits of its own; take its column split out, or the option")


LAYOUT = Layout(
    "manifest", "manifest.csv (or any .csv, .tsv, .xlsx file) with columns path and subject_id", recognise, find
)
