"""Asking for a trial, and looking at the study, where there are 1,000 trials already."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from large import NAME, Place, add_trials, begin, write_runs
from rich.table import Table

import somvq
from somvq.study.claim import ask, suggest
from somvq.study.record import load_study
from somvq.study.space import distributions
from somvq.study.status import read_status

TIMES = 9
SOURCE = Path(somvq.__file__).parent.parent


def timed(call: Callable[[], Any], times: int = 1) -> float:
    """Milliseconds, the median of several."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return 1000 * statistics.median(took)


def load() -> str:
    return f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}"


def ask_table(folder: Path, storages: list[str], server: Any, trials: int) -> Table:
    """Each storage: a handle that has read the trials, and one that has not."""
    urls = {"sqlite": lambda: None, "journal": lambda: f"journal://{folder}/large.journal"}
    urls["postgresql"] = lambda: server.create_database()
    rows = []
    for storage in storages:
        place = Place(folder / f"large-{storage}", urls[storage]())
        opened = begin(place, 2 * trials)
        add_trials(opened, trials)
        rows.append([storage, *map("{:.0f}".format, measure_ask(place))])
    table = Table(title=f"ask() with {trials} finished trials of sweeps/psom.yaml, ms; {load()}", title_justify="left")
    for heading in (
        "storage",
        "suggest",
        "ask, warm handle",
        "trials read, warm",
        "study opened",
        "trials read, fresh",
    ):
        table.add_column(heading, justify="left" if heading == "storage" else "right")
    for row in rows:
        table.add_row(*row)
    table.caption = "ask: suggest, find a twin, write the trial, read it back; asked: 50 at most"
    return table


def measure_ask(place: Place) -> list[float]:
    """Milliseconds, in the table's order."""
    opening = timed(lambda: load_study(place.settings, NAME), 3)
    opened = load_study(place.settings, NAME)
    fresh = timed(lambda: opened.study.get_trials(deepcopy=False))
    trials = opened.study.get_trials(deepcopy=False)
    space = distributions(opened.record.sweep)
    suggested = timed(lambda: suggest(opened, space, trials, again=0), TIMES)
    asked = timed(lambda: ask(opened, trials), TIMES)
    return [suggested, asked, timed(lambda: opened.study.get_trials(deepcopy=False), TIMES), opening, fresh]


def status_table(folder: Path, trials: int) -> Table:
    """The whole command, plain and as JSON, and what it spends."""
    place = Place(folder / "large-status")
    opened = begin(place, trials)
    add_trials(opened, trials)
    write_runs(opened)
    command = [sys.executable, "-m", "somvq", "status"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "SOMVQ_RUNS": str(place.settings.runs)}

    def run(*words: str) -> None:
        subprocess.run([*command, *words], env=environment, cwd=folder, stdout=subprocess.DEVNULL, check=True)

    empty = Place(folder / "small-status")
    begin(empty, trials)
    table = Table(title=f"somvq status, {trials} trials on SQLite, 40 epochs each; {load()}", title_justify="left")
    for heading in ("what", "ms", "asked"):
        table.add_column(heading, justify="right" if heading == "ms" else "left")
    table.add_row("somvq status STUDY", f"{timed(lambda: run(NAME), 3):.0f}", "1000")
    table.add_row("somvq status STUDY --json", f"{timed(lambda: run(NAME, '--json'), 3):.0f}", "1000")
    environment["SOMVQ_RUNS"] = str(empty.settings.runs)
    table.add_row("the same of a study without trials", f"{timed(lambda: run(NAME, '--json'), 3):.0f}", "")
    opened = load_study(place.settings, NAME)
    table.add_row("read_status, first look", f"{timed(lambda: read_status(opened)):.0f}", "")
    table.add_row("read_status, another look", f"{timed(lambda: read_status(opened), 3):.0f}", "")
    table.add_row("as_json", f"{timed(read_status(opened).as_json, 3):.0f}", "")
    return table
