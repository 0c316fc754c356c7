"""Clinical tables: what is known of the people scanned."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from somvq.errors import DataError
from somvq.sources.found import Covariates, ScanFile, counted
from somvq.sources.names import session_in, session_of, whose
from somvq.sources.tables import Row, Table, columns_of, read_table, value_of
from somvq.sources.walk import glimpse

Lookup = Callable[[ScanFile], Covariates]  # what a table says of a scan; nothing if it is not in it

OASIS1 = {name: name for name in ("age", "hand", "ses", "mmse", "cdr", "etiv", "nwbv", "asf")} | {
    "m/f": "sex",
    "educ": "education_level",  # 1 to 5; the other data sets count years
}
OASIS2 = OASIS1 | {"educ": "education", "group": "group"}
RANGES = {  # what a person can have: tables lose their decimal points on the way through programs
    "age": (0, 120),
    "mmse": (0, 30),
    "etiv": (500, 3000),  # ml
    "nwbv": (0.3, 1),
    "asf": (0.4, 2.5),
}
RATINGS = (0, 0.5, 1, 2, 3)  # of the clinical dementia rating
MOST_DAYS = 365  # between a scan and the visit whose rating it is given
DAYS_A_YEAR = 365.25
SEXES = {"1": "M", "2": "F"}  # in OASIS-3
DATA_FILES = ("0AS_data_files", "OASIS3_data_files")  # what OASIS-3 calls the folder of its tables
DEEPEST = 6  # levels of folders that XNAT puts them in


@dataclass(frozen=True)
class Kind:
    """A sort of table: how its file is called, the columns that tell it, whom it is of, how it is read."""

    file: str  # a pattern
    columns: tuple[str, ...]
    subjects: str  # how they begin
    read: Callable[[Table], Lookup]

    def may_be(self, file: Path) -> bool:
        """Whether `file` may be such a table by its name and columns, as far as it has any."""
        return bool(re.fullmatch(self.file, file.name)) and self.is_of(columns_of(file) or self.columns)

    def is_of(self, columns: Iterable[str]) -> bool:
        """Whether a table with `columns` is of this sort."""
        return {*self.columns} <= {*columns}


def attach_tables(
    scans: Sequence[ScanFile], root: Path, named: Path | None
) -> tuple[tuple[ScanFile, ...], tuple[str, ...]]:
    """`scans` with what the tables at `root` and the `named` one say of them, and notes on it.

    Raises:
        DataError: a named table that cannot be read or says nothing of any scan; of others that is a note.
    """
    attached = tuple(scans)
    notes: list[str] = []
    own = kind_of(named) if named else None
    if named and own:
        attached, notes = attach(attached, named, own.read(read_table(named)))
        if not notes:
            raise DataError(f"table {named} says nothing of any scan, such as {scans[0].file}")
    files = list(files_near(root, named))
    for kind in KINDS:
        if kind is not own and any(whose(scan.subject).startswith(kind.subjects) for scan in scans):
            attached, said = attach_first(attached, kind, files)
            notes += said
    return attached, tuple(notes)


def attach_first(
    scans: tuple[ScanFile, ...], kind: Kind, files: Sequence[Path]
) -> tuple[tuple[ScanFile, ...], list[str]]:
    """`scans` with what the first whole table of this kind says of them; nobody asked for it, so none is refused."""
    notes: list[str] = []
    for path in filter(kind.may_be, files):
        try:
            table = read_table(path)
            attached, said = attach(scans, path, kind.read(table)) if kind.is_of(table.columns) else (scans, [])
        except DataError as error:
            why = str(error).removeprefix(f"{path}: ").rpartition("; ")[0]
            notes.append(f"{path.name} is passed over: {why}; mend it or name another with --table")
            continue
        if said:
            return attached, [*notes, *said]
    return scans, notes


def kind_of(table: Path) -> Kind:
    """The sort of table that a user names, by its columns.

    Raises:
        DataError: it is not there, or none of them.
    """
    if not table.is_file():
        raise DataError(f"table {table} does not exist; give a .csv, .tsv or .xlsx file")
    columns = read_table(table).columns
    for kind in KINDS:
        if kind.is_of(columns):
            return kind
    raise DataError(
        f"table {table} has columns {', '.join(columns)}; give a table of OASIS, or one with a column subject_id"
    )


def files_near(root: Path, named: Path | None) -> Iterator[Path]:
    """The files in the cohort's folder, above it, beside a named table and in the raw data set it is derived from."""
    folder = root.resolve() if root.is_dir() else root.resolve().parent
    raw = (place.parent for place in (folder, *folder.parents) if place.name in ("derivatives", "sourcedata"))
    beside = (named.parent,) if named else ()
    for place in dict.fromkeys((*beside, folder, folder.parent, *raw)):
        for _, names in glimpse(place, 0):
            yield from (place / name for name in names)
            for data_files in filter(names.__contains__, DATA_FILES):
                yield from (below / name for below, inner in glimpse(place / data_files, DEEPEST) for name in inner)


def attach(scans: Sequence[ScanFile], path: Path, lookup: Lookup) -> tuple[tuple[ScanFile, ...], list[str]]:
    """`scans` with what one table says of them, as far as a person can have it, and notes; what they have stays."""
    known: set[str] = set()
    impossible: dict[str, list[float | str]] = defaultdict(list)
    attached, spoken_of = [], 0
    for scan in scans:
        values = lookup(scan)
        wrong = {name: value for name, value in values.items() if not is_possible(name, value)}
        for name, value in wrong.items():
            impossible[name].append(value)
        good = {name: value for name, value in values.items() if name not in wrong}
        if "cdr" in wrong:  # as text it is no rating, nor is it the blank of those who were never rated
            good["cdr"] = in_words(wrong["cdr"])
        known |= set(good)
        spoken_of += bool(values)
        attached.append(replace(scan, covariates={**good, **scan.covariates}))
    if not spoken_of:
        return tuple(attached), []
    of = f"{spoken_of} of {counted(len(scans), 'scan', 'scans')}"
    notes = [f"{path.name} tells {', '.join(sorted(known)) or 'nothing'} of {of}"]
    for name, those in sorted(impossible.items()):
        left_out = f"{counted(len(those), 'value', 'values')} of {name} {'is' if len(those) == 1 else 'are'} left out"
        notes.append(f"{path.name}: {left_out}, which nobody can have, such as {in_words(those[0])}")
    return tuple(attached), notes


def in_words(value: float | str) -> str:
    """A value as a table has it."""
    return value if isinstance(value, str) else f"{value:g}"


def is_possible(name: str, value: float | str) -> bool:
    """Whether a person can have `value`."""
    if name == "cdr":
        return value in RATINGS
    if name not in RANGES:
        return True
    low, high = RANGES[name]
    return not isinstance(value, str) and low <= value <= high


def values_of(cells: Mapping[str, str], names: Mapping[str, str]) -> Covariates:
    """What the cells of a row say, under our names for its columns."""
    values = {new: value_of(cells[old]) for old, new in names.items() if old in cells}
    return {name: value for name, value in values.items() if value is not None}


def by_key(table: Table, column: str, key: Callable[[Row], str]) -> dict[str, dict[str, str]]:
    """The rows of a table by one form of what `column` says they are of."""
    rows: dict[str, dict[str, str]] = {}
    lines: dict[str, int] = {}
    for row in table.rows:
        name = key(row)
        first = lines.setdefault(name, row.line)
        if name and first != row.line:
            said = row.cells[column]
            raise DataError(f"{table.path}: line {row.line}: {said} stands on line {first} too; remove one of them")
        rows[name] = row.cells
    return rows


def by_session(column: str, names: Mapping[str, str]) -> Callable[[Table], Lookup]:
    """Reads tables with a row for each session, as OAS1_0001_MR1."""

    def read(table: Table) -> Lookup:
        rows = by_key(table, column, lambda row: person(row.cells[column]))
        return lambda scan: values_of(rows.get(person(scan.subject, visit_of(scan)), {}), names)

    return read


def by_entry(table: Table) -> Lookup:
    """Reads the demographics of OASIS-3: a row for each person; scans are dated in days from entry."""
    rows = by_key(table, "oasisid", lambda row: whose(row.cells["oasisid"]))

    def lookup(scan: ScanFile) -> Covariates:
        cells = rows.get(whose(scan.subject), {})
        values = dict(values_of(cells, {"gender": "sex", "educ": "education"}))
        if "sex" in values:
            values["sex"] = SEXES.get(cells["gender"], cells["gender"])
        age, day = value_of(cells.get("ageatentry", "")), day_of(scan)
        if isinstance(age, float) and day is not None:
            values["age"] = round(age + day / DAYS_A_YEAR, 2)
        return values

    return lookup


def by_nearest_visit(table: Table) -> Lookup:
    """Reads the ratings of OASIS-3: rows for visits to the clinic, each with its days from entry."""
    visits: dict[str, list[tuple[float, dict[str, str]]]] = defaultdict(list)
    for row in table.rows:
        day = value_of(row.cells["days_to_visit"])
        if isinstance(day, float) and value_of(row.cells["cdrtot"]) is not None:
            visits[whose(row.cells["oasisid"])].append((day, row.cells))

    def lookup(scan: ScanFile) -> Covariates:
        day = day_of(scan)
        if day is None or not visits[whose(scan.subject)]:
            return {}
        visited, cells = min(visits[whose(scan.subject)], key=lambda visit: abs(visit[0] - day))
        return values_of(cells, {"cdrtot": "cdr", "mmse": "mmse"}) if abs(visited - day) <= MOST_DAYS else {}

    return lookup


def by_person(column: str) -> Callable[[Table], Lookup]:
    """Reads tables with a row for each person, or for each of their sessions: all other columns are covariates."""

    def read(table: Table) -> Lookup:
        session = next((name for name in ("session_id", "session") if name in table.columns), "")
        rows = by_key(table, column, lambda row: person(row.cells[column], row.cells.get(session, "")))
        names = {name: name for name in table.columns if name not in (column, session)}

        def lookup(scan: ScanFile) -> Covariates:
            of_visit = rows.get(person(scan.subject, visit_of(scan)))
            return values_of(of_visit or rows.get(person(scan.subject), {}), names)

        return lookup

    return read


def person(subject: str, session: str = "") -> str:
    """One form of all the ways to write a subject, and a session of theirs, which may be part of the former."""
    visit = session or session_in(subject)
    return f"{whose(subject).removeprefix('sub-')} {visit.removeprefix('ses-')}".rstrip()


def visit_of(scan: ScanFile) -> str:
    """The visit at which a scan was made: its session's name, or what its path says."""
    return session_in(scan.session) or session_of(Path(scan.file)) or scan.session


def day_of(scan: ScanFile) -> int | None:
    """Days from entry to a scan of OASIS-3, none if its name does not tell."""
    day = re.fullmatch(r"d(\d+)", visit_of(scan))
    return int(day[1]) if day else None


KINDS = (
    Kind(r"oasis_cross-sectional.*\.(csv|xlsx)", ("id", "m/f", "cdr"), "OAS1_", by_session("id", OASIS1)),
    Kind(r"oasis_longitudinal.*\.(csv|xlsx)", ("mri id", "cdr"), "OAS2_", by_session("mri id", OASIS2)),
    Kind(r".*demographics.*\.csv", ("oasisid", "ageatentry"), "OAS3", by_entry),
    Kind(r".*cdr.*\.csv", ("oasisid", "days_to_visit", "cdrtot"), "OAS3", by_nearest_visit),
    Kind(r"participants\.tsv", ("participant_id",), "", by_person("participant_id")),
    Kind(r"subjects\.(csv|tsv|xlsx)", ("subject_id",), "", by_person("subject_id")),
)
