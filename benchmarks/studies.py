"""What studies withstand and what they cost, beside bare Optuna and Ray Tune; a table for each question.

python benchmarks/studies.py                          all tables (half an hour on two cores that others use too)
python benchmarks/studies.py drills --drill chaos --storage sqlite
python benchmarks/studies.py overhead --ray RAY/bin/python
"""

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from asks import ask_table, status_table
from bare import run_bare
from drills import DRILLS, STORAGES, drill, finish, load, site, table_of
from overhead import fsync_ms, overhead
from rich.console import Console
from rich.table import Table
from throughput import throughput

from somvq.study.status import silence_optuna

WIDTH = 150


def drills(console: Console, folder: Path, chosen: argparse.Namespace) -> None:
    """Blows, one table; the chaos of bare Optuna last."""
    rows = []
    with site(chosen.storage, quick=chosen.quick, seed=chosen.seed) as here:
        for name in chosen.drill:
            for storage in [kind for kind in DRILLS[name].storages if kind in chosen.storage]:
                rows.append(drill(here, name, storage))
                console.print(f"{name}, {storage}: {rows[-1][3]} ({load()})", markup=False)
    if "chaos" in chosen.drill:
        asked, kills = (8, 3) if chosen.quick else (24, 10)
        seen = run_bare(folder / "bare-chaos", 4, asked, 0.25, kills=kills, seed=chosen.seed)
        rows.append(("chaos", "bare Optuna, sqlite", "the same", seen.words(), f"{seen.seconds:.0f}", ""))
    console.print(table_of(rows))


def budget(console: Console, folder: Path, chosen: argparse.Namespace) -> None:
    """Trials that 8 workers train where 20 are asked."""
    table = Table(title=f"Exact budget: 8 workers, 20 trials asked; {load()}", title_justify="left")
    for heading in ("what", "trials trained", "s"):
        table.add_column(heading)
    with site(["sqlite"]) as here, here.lab("sqlite") as (lab, study):
        lab.plan(study, epoch_s=0.1)
        finish(lab.start("sweep", study, "--trials", "20", "--workers", "8"))
        table.add_row("somvq, --trials 20", str(len({name for name, _ in lab.begun(study)})), "")
    seen = run_bare(folder / "bare-budget", 8, 20, 0.1)
    table.add_row("bare Optuna, MaxTrialsCallback(20)", str(seen.done), f"{seen.seconds:.0f}")
    console.print(table)


def costs(console: Console, folder: Path, chosen: argparse.Namespace) -> None:
    """A trial's overhead."""
    console.print(f"fsync here: {fsync_ms(folder):.1f} ms; {load()}")
    for table in overhead(folder, 4 if chosen.quick else 12, chosen.ray):
        console.print(table)


def many(console: Console, folder: Path, chosen: argparse.Namespace) -> None:
    """Throughput of 16 workers."""
    with site(["postgresql"]) as here:
        for table in throughput(folder / "throughput", here.server, 16, 6 if chosen.quick else 20):
            console.print(table)


def asks(console: Console, folder: Path, chosen: argparse.Namespace) -> None:
    """Asking and looking, with 1,000 trials."""
    trials = 100 if chosen.quick else 1000
    with site(chosen.storage) as here:
        console.print(ask_table(folder, chosen.storage, here.server, trials))
        console.print(status_table(folder, trials))


TABLES: dict[str, Any] = {
    "asks": asks,
    "overhead": costs,
    "throughput": many,
    "drills": drills,
    "budget": budget,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"all, or some of {', '.join(TABLES)}")
    parser.add_argument("--drill", action="append", choices=list(DRILLS), help="only this one; may be repeated")
    parser.add_argument("--storage", action="append", choices=STORAGES, help="only this one; may be repeated")
    parser.add_argument("--ray", metavar="PYTHON", help="the python of an environment that has ray[tune]")
    parser.add_argument("--seed", type=int, default=0, help="decides whom blows hit, and when")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    chosen = parser.parse_args()
    if unknown := [name for name in chosen.tables if name not in TABLES]:
        parser.error(f"no table '{unknown[0]}'; there are {', '.join(TABLES)}")
    chosen.drill, chosen.storage = chosen.drill or list(DRILLS), chosen.storage or list(STORAGES)
    silence_optuna()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers and disks are taken down
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.tables or TABLES:
            TABLES[name](Console(width=WIDTH, highlight=False), Path(folder), chosen)


if __name__ == "__main__":
    main()
