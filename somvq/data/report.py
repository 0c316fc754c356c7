"""Cohorts as people and scripts read them: tables and JSON."""

import shlex
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from somvq.data.check import Checked
from somvq.data.cohort import SPLITS, Cohort, ScanEntry, without_numbers
from somvq.data.scan import GZIPPED, Geometry, Remark
from somvq.data.survey import Look, below, who_needs_more
from somvq.sources.found import ScanFile, counted

USED, LEFT_OUT = "used", "left out"
NARROW, WIDE = 75, 110  # columns of terminals that have room for more than names, and for sentences in a table


def check_table(checked: Checked, width: int) -> Table:
    """Every scan: whose, which file, how it lies, what is wrong with it, and what is done about that.

    What is odd about most scans alike is no news of each: check_lines says it once. Long names lose their middle; on
    a narrow terminal, problems stand below the table.
    """
    wide = width >= WIDE
    rows = check_rows(checked, without=common_remarks(checked.usable))
    visits = ["session"] * any(row["session"] for row in rows)
    lie = ["shape", "mm", "axes"] * (width >= NARROW)
    headings = ["subject", *visits, "file", *lie, *["problem"] * wide, "what is done"]
    table = plain_table(*headings)
    for row in rows:
        style = "red" if row["done"] == LEFT_OUT else "yellow" if row["problem"] else None
        cells = {
            **row,
            "file": shorten(row["file"], width // 4),
            "shape": by(row["shape"]),
            "mm": voxel(row["voxel_mm"]),
            "what is done": row["done"] if wide or row["done"] == LEFT_OUT else USED,
        }
        table.add_row(*(escape(cells[heading]) for heading in headings), style=style)
    return table


def check_rows(checked: Checked, without: Collection[Remark] = ()) -> list[dict[str, Any]]:
    """What a check has found of each scan, those first that are not there; `without` some remarks."""
    lost = [line.partition(": ") for line in checked.found.left_out]
    return [
        *({"subject": "", "session": "", "file": file, **as_json(Geometry()), **left_out(problem)}
          for file, _, problem in lost),
        *(check_row(look, geometry, without) for look, geometry in zip(checked.looks, checked.geometries, strict=True)),
    ]  # fmt: skip


def check_row(look: Look, geometry: Geometry, without: Collection[Remark]) -> dict[str, Any]:
    """One scan."""
    scan = look.source.scan
    known = {"subject": scan.subject, "session": visit(scan), "file": scan.file, **as_json(geometry)}
    if look.refusal:
        return known | left_out(look.refusal.removeprefix(f"{scan.path}: "))
    remarks = [remark for remark in look.remarks if remark not in without]
    problems = "\n".join(remark.problem for remark in remarks)
    return {**known, "problem": problems, "done": "\n".join(remark.done for remark in remarks) or USED}


def left_out(refusal: str) -> dict[str, str]:
    """What is said of a scan that cannot be used; what to do about it is said below the table."""
    return {"problem": refusal.split("; ")[0], "done": LEFT_OUT}


def common_remarks(usable: Sequence[Look]) -> list[Remark]:
    """What is odd about more than half of the scans, if there are enough of them to say so."""
    counts = Counter(remark for look in usable for remark in look.remarks)
    return [remark for remark, count in counts.items() if is_common(count, len(usable))]


def is_common(count: int, scans: int) -> bool:
    """Whether what is odd about `count` of so many scans is said once, instead of once for each."""
    return count > max(scans / 2, 3)


def check_lines(checked: Checked, width: int) -> list[str]:
    """What the table comes to: how many scans can be used, what is wrong with the others, what to do next."""
    usable, refused = checked.usable, checked.refused
    odd = sum(bool(look.remarks) for look in usable)
    lines = ["", f"{len(usable)} of {len(checked.looks) + len(checked.found.left_out)} scans can be used"
                 + (f", {odd} of them with a warning" if odd else "")]  # fmt: skip
    known_of_most = common_remarks(usable)
    for remark in known_of_most:
        lines.append(f"warning  {sum(remark in look.remarks for look in usable)} scans: {remark}")
    if checked.shape:
        counts = [[checked.splits[look.source.scan.subject] for look in usable].count(split) for split in SPLITS]
        shares = " / ".join(f"{count} {split}" for count, split in zip(counts, SPLITS, strict=True))
        lines.append(f"prepared they have {by(checked.shape)} voxels: {shares}")
    if checked.shape and (alone := who_needs_more(usable)):
        scan, others = alone
        lines.append(f"warning  without {scan} they would have {by(others)}: look at it, or give --shape {by(others)}")
    for look in usable if width < WIDE else []:
        lines += [
            f"warning  {look.source.scan.file}: {remark}" for remark in look.remarks if remark not in known_of_most
        ]
    lines += [f"left out {below(checked.folder, line)}" for line in refused]
    if bare := sum(not str(look.source.scan.path).lower().endswith(GZIPPED) for look in usable):
        lines.append(f"note     {counted(bare, 'scan has', 'scans have')} no checksum: check --manifest FILE keeps one")
    if checked.complaint:
        lines.append(f"no cohort: {checked.complaint}")
    else:
        lines.append(f"next     with the same options: somvq cohort prepare {shlex.quote(str(checked.folder))}")
    return lines


def check_report(checked: Checked) -> dict[str, Any]:
    """All of a check, for scripts."""
    return {
        "layout": checked.found.layout,
        "notes": checked.found.notes,
        "usable": len(checked.usable),
        "left_out": [below(checked.folder, line) for line in checked.refused],
        "shape": checked.shape,
        "complaint": checked.complaint,
        "scans": check_rows(checked),
    }


def list_table(cohorts: Sequence[Cohort], width: int) -> Table:
    """Prepared cohorts, one a line."""
    headings = ["cohort", "scans", "train/val/test", "MB"]
    if width >= WIDE:
        headings = ["cohort", "layout", "scans", "subjects", "voxels", "train/val/test", "warned", "left out", "MB"]
    table = plain_table(*headings)
    for cohort in cohorts:
        known = describe_cohort(cohort)
        cells = {
            **known,
            "cohort": known["name"],
            "voxels": by(known["shape"]),
            "train/val/test": "/".join(map(str, known["splits"].values())),
            "left out": known["left_out"],
            "MB": f"{known['bytes'] / 1e6:,.0f}",
        }
        table.add_row(*(str(cells[heading]) for heading in headings))
    return table


def describe_cohort(cohort: Cohort) -> dict[str, Any]:
    """A prepared cohort in numbers."""
    index = cohort.index
    return {
        "name": cohort.folder.name,
        "folder": str(cohort.folder),
        "layout": index.layout,
        "fingerprint": index.fingerprint,
        "scans": len(index.scans),
        "subjects": len({scan.subject for scan in index.scans}),
        "shape": index.shape,
        "splits": {split: len(rows) for split, rows in cohort.rows.items()},
        "warned": sum(bool(scan.warnings) for scan in index.scans),
        "left_out": len(index.left_out) + len(index.missing),
        "bytes": sum(path.stat().st_size for path in cohort.folder.iterdir()),
    }


def summary_lines(cohort: Cohort) -> list[str]:
    """How a prepared cohort was made."""
    index, known = cohort.index, describe_cohort(cohort)
    chosen = {name: value for name, value in index.settings.decisive().items() if value is not None}
    covariates = sorted({name for scan in index.scans for name in scan.covariates})
    return [
        f"cohort     {known['name']}: {cohort.summary()}, {known['bytes'] / 1e6:,.0f} MB, laid out as {index.layout}",
        f"settings   {', '.join(f'{name} {value}' for name, value in chosen.items())}",
        f"covariates {', '.join(covariates) or 'none'}",
        f"made with  {', '.join(f'{name} {number}' for name, number in index.versions.items())}",
        *(f"left out   {line}" for line in (*index.missing, *index.left_out)),
        *(f"warning    {len(files)} scans: {warning}" for warning, files in index.warnings() if of_most(files, cohort)),
    ]


def of_most(files: Sequence[str], cohort: Cohort) -> bool:
    """Whether a warning of `files` is one of most scans of `cohort`."""
    return is_common(len(files), len(cohort.index.scans))


def show_table(cohort: Cohort, width: int) -> Table:
    """The scans of a prepared cohort."""
    numbers = ["mean", "deviation", "brain lost"] if width >= WIDE else []
    table = plain_table("subject", "session", "split", "file", *numbers, "warnings")
    said_once = {without_numbers(warning) for warning, files in cohort.index.warnings() if of_most(files, cohort)}
    for scan in cohort.index.scans:
        odd = [warning for warning in scan.warnings if without_numbers(warning) not in said_once]
        measured = [f"{scan.mean:.4g}", f"{scan.deviation:.4g}", f"{scan.lost:.1%}" if scan.lost else ""]
        words = [scan.subject, visit(scan), scan.split, shorten(scan.file, width // 4), *measured[: len(numbers)]]
        words.append("\n".join(odd))
        table.add_row(*map(escape, words), style="yellow" if odd else None)
    return table


def label(scan: ScanEntry) -> str:
    """What a scan is called above its picture."""
    return " ".join(filter(None, [scan.subject, visit(scan), scan.split]))


def plain_table(*headings: str) -> Table:
    """A table without a frame, in which only sentences are wrapped."""
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=heading not in ("problem", "what is done", "warnings"))
    return table


def as_json(geometry: Geometry) -> dict[str, Any]:
    """How a scan lies in its file."""
    return {"shape": geometry.shape, "voxel_mm": geometry.voxel_mm, "axes": geometry.axes}


def by(sides: Sequence[int]) -> str:
    """Sides as people write them: 144x176x144."""
    return "x".join(map(str, sides))


def voxel(sides: Sequence[float]) -> str:
    """Voxel sides in mm; one number where they are alike."""
    numbers = [f"{side:.3g}" for side in sides]
    return numbers[0] if len(set(numbers)) == 1 else "x".join(numbers)


def visit(scan: ScanFile | ScanEntry) -> str:
    """The session of a scan, where it is more than its file."""
    return "" if scan.session == scan.file else scan.session


def shorten(name: str, width: int) -> str:
    """`name` without its middle where it is longer than `width`: whose it is stands in front, what it is at the end."""
    if len(name) <= width:
        return name
    return f"{name[: width // 2 - 1]}…{name[-(width - width // 2) :]}"
