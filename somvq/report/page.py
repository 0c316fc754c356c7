"""The report: what its parts found, in one page."""

import base64
import gzip
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from somvq.audit import read_audit
from somvq.errors import DefinitionError
from somvq.files import write_whole
from somvq.report.charts import MOST_CURVES, draw_charts, draw_curves
from somvq.report.entries import (
    Entry,
    Member,
    control_cells,
    differing,
    list_entries,
    shared,
    table_cells,
    table_columns,
)
from somvq.report.origins import trace
from somvq.report.pictures import draw_gallery
from somvq.report.privacy import censor_of
from somvq.report.summary import summarise
from somvq.runs import METRICS, describe
from somvq.study.record import OpenStudy
from somvq.study.status import read_status
from somvq.study.tables import Columns, columns_of, duration

HERE = Path(__file__).parent
OnStep = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Control:
    """A row of the leaderboard that is no trial: the mean image, or an auto-encoder."""

    name: str
    study: str
    cells: dict[str, Any]
    epochs: str = ""


def check_place(path: Path) -> None:
    """Raises a DefinitionError if no report can be written at `path`."""
    if path.is_dir():
        raise DefinitionError(f"--html {path} is a folder; give a file in it: {path / 'report.html'}")
    if path.suffix.lower() not in (".html", ".htm"):  # browsers would not open it; and it may be a study's name
        raise DefinitionError(f"--html {path}: the file's name must end in .html")
    if not path.parent.is_dir():
        raise DefinitionError(f"--html {path}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK):
        raise DefinitionError(f"--html {path}: the folder {path.parent.resolve()} is read-only; choose another")


def write_report(path: Path, studies: Sequence[OpenStudy], *, brain_images: bool, on_step: OnStep) -> int:
    """Writes the report of `studies` to `path`, whole or not at all; its size in bytes."""
    page = draw_page(studies, brain_images=brain_images, on_step=on_step).encode()
    write_whole(path, lambda file: file.write(page))
    return len(page)


def draw_page(studies: Sequence[OpenStudy], *, brain_images: bool, on_step: OnStep) -> str:
    """The page as text."""
    members = []
    for opened in studies:
        status = read_status(opened)
        members.append(Member(opened, status, censor_of(opened, status)))
    entries = list_entries(members)
    settings = differing(entries)
    summaries = [summarise(member, entries) for member in members]
    compared = [row.metric for summary in summaries for row in summary.comparisons]
    charts = {}
    for done, member in enumerate(members, 1):
        on_step("charts", done, len(members))
        charts[member.name] = draw_charts(member)
    gallery = draw_gallery(entries, brain_images=brain_images, on_step=on_step)
    metrics = columns_of([member.status for member in members])
    curves = draw_curves(entries, list(metrics))
    figures = {f"{name} {i}": chart.figure for name, drawn in charts.items() for i, chart in enumerate(drawn)}
    return template().render(
        members=members,
        entries=entries,
        columns=table_columns(members, metrics, settings),
        cells=partial(table_cells, metrics=metrics, settings=settings),
        controls=list_controls(members, metrics),
        settings=describe_settings(members, entries, settings),
        shared=shared(entries),
        summaries=summaries,
        origins=[trace(summary.member, entries, summary.best) for summary in summaries],
        charts=charts,
        gallery=gallery,
        brain_images=brain_images,
        curves=list(curves),
        most_curves=MOST_CURVES,
        ended_badly=[entry for entry in entries if entry.trial.reason or entry.trial.state in ("failed", "pruned")],
        definitions={name: METRICS[name] for name in sorted({*metrics, *curves, *compared}) if name in METRICS},
        drawings=pack(json.dumps({"charts": figures, "curves": curves}, allow_nan=False)),
        plotly=packed_plotly() if figures or curves else "",
        cohorts=len({member.opened.record.cohort_fingerprint for member in members}),
        now=datetime.now(UTC),
        version=read_audit().versions["somvq"],
        commit=commit(),
        describe=describe,
        duration=duration,
    )


def template() -> Template:
    """The page's frame, in which everything is text unless it says otherwise."""
    frames = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    frames.filters["decoded"] = name_decoded
    frames.globals.update(
        style=Markup((HERE / "report.css").read_text()), script=Markup((HERE / "report.js").read_text())
    )
    return frames.get_template("report.html")


def name_decoded(text: str) -> Markup:
    """`text`, what is decoded written as in the paper: x'_e and x'_q with their indices below."""
    return Markup(re.sub(r"x&#39;_([eq])", r"<i>x</i>′<sub>\1</sub>", str(escape(text))))


def list_controls(members: Sequence[Member], metrics: Columns) -> list[Control]:
    """The mean image of each cohort, and the auto-encoders."""
    controls: dict[str, Control] = {}
    for member in members:
        for name, stage in member.status.stages.items():
            if stage.state == "complete":
                kind = f"{name.split('-')[0].upper()} alone"
                told = control_cells(stage.row, metrics)
                controls[f"{member.name} {name}"] = Control(kind, member.name, told, str(stage.epochs))
        if member.status.baseline:
            cohort = member.opened.record.cohort_fingerprint
            names = [other.name for other in members if other.opened.record.cohort_fingerprint == cohort]
            told = control_cells(member.status.baseline, metrics)
            controls[cohort] = Control("mean image", ", ".join(names), told)
    return list(controls.values())


def describe_settings(
    members: Sequence[Member], entries: Sequence[Entry], names: Sequence[str]
) -> dict[str, dict[str, str]]:
    """What each setting that differs was in each study."""
    return {
        name: {
            member.name: span([entry.settings.get(name) for entry in entries if entry.study == member.name])
            for member in members
        }
        for name in names
    }


def span(values: Sequence[Any]) -> str:
    """Values in a few words: 0.1 to 0.9 (12 values), or a list of them."""
    known = list(dict.fromkeys(value for value in values if value is not None))
    numbers = [value for value in known if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) == len(known) > 4:
        return f"{describe(min(numbers))} to {describe(max(numbers))} ({len(numbers)} values)"
    ordered = sorted(numbers) if len(numbers) == len(known) else sorted(known, key=str)
    return ", ".join(map(describe, ordered))


def pack(text: str) -> str:
    """`text`, compressed for the page to unpack: plotly.js is then 2 MB, not 5."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


@cache
def packed_plotly() -> str:
    """plotly.js, as it comes with plotly, packed."""
    from plotly.offline import get_plotlyjs

    return pack(get_plotlyjs())


def commit() -> str:
    """That of the somvq that writes the report, if it is known."""
    source = read_audit().git.get("source")
    return f"{source.sha[:12]}{', changed' if source.dirty else ''}" if source else ""
