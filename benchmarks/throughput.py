"""How many trials of a second many workers end on one PostgreSQL server, and what holds them up."""

import contextlib
import multiprocessing
import os
import time
from collections import Counter
from datetime import datetime
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from large import Place, begin
from rich.table import Table
from standin import asleep, clock_worker, work_quietly, write_sweep

from somvq.study.record import load_study
from somvq.study.status import silence_optuna
from somvq.study.stops import ask_to_stop

EPOCHS = 1
WARM_S = 4.0
TICKS = os.sysconf("SC_CLK_TCK")


def take_trials(place: Place, ready: Barrier, told: Any) -> None:
    """One worker, in a process of its own."""
    silence_optuna()
    opened = load_study(place.settings, "short")
    with asleep(1.0) as attempts:
        steps = clock_worker("postgresql")
        ready.wait()
        began, used = time.perf_counter(), time.process_time()
        work_quietly(opened, place.settings)
    parts = Counter(steps.seconds)
    parts["end of the attempt noticed"] = sum(attempt.noticed - attempt.ended for attempt in attempts)
    own = sum(attempt.ended - attempt.began for attempt in attempts)
    told.put((len(attempts), time.process_time() - used, time.perf_counter() - began - own, dict(parts)))


def cpu_of_server(folder: Path) -> float:
    """CPU seconds of PostgreSQL so far, those of connections that were closed included."""
    postmaster = int((folder / "data" / "postmaster.pid").read_text().split()[0])
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    ticks = sum(map(int, Path(f"/proc/{postmaster}/stat").read_text().rsplit(")")[1].split()[11:15]))
    for child in children:
        with contextlib.suppress(OSError):
            ticks += sum(map(int, Path(f"/proc/{child}/stat").read_text().rsplit(")")[1].split()[11:13]))
    return ticks / TICKS


def throughput(folder: Path, server: Any, workers: int, seconds: float) -> list[Table]:
    """Trials a second in a window after all workers are warm, and a trial's steps."""
    place = Place(folder, server.create_database())
    opened = begin(place, 100_000, write_sweep(folder, EPOCHS), "short")
    start = multiprocessing.get_context("spawn")
    ready, told = start.Barrier(workers + 1), start.Queue()
    processes = [start.Process(target=take_trials, args=(place, ready, told)) for _ in range(workers)]
    for process in processes:
        process.start()
    ready.wait()
    time.sleep(WARM_S)
    since, server_before = datetime.now(), cpu_of_server(server.folder)
    time.sleep(seconds)
    until, server_cpu = datetime.now(), cpu_of_server(server.folder) - server_before
    load = os.getloadavg()[0]
    ask_to_stop(opened.record.folder)
    found = [told.get() for _ in processes]
    for process in processes:
        process.join()
    ended = [trial.datetime_complete for trial in opened.study.get_trials(deepcopy=False)]
    rate = sum(since < moment <= until for moment in ended if moment) / (until - since).total_seconds()
    trials = sum(count for count, *_ in found)
    return tables(found, trials, rate, server_cpu / (rate * seconds), workers, load)


def tables(
    found: list[tuple[int, float, float, dict[str, float]]],
    trials: int,
    rate: float,
    server_cpu: float,
    workers: int,
    load: float,
) -> list[Table]:
    own_cpu = sum(used for _, used, _, _ in found) / trials
    cores = len(os.sched_getaffinity(0))
    table = Table(
        title=f"{workers} workers on PostgreSQL (fsync off), trials that sleep 1 s in a thread; load {load:.1f} in all",
        title_justify="left",
    )
    for heading in ("what", "seen", "of what"):
        table.add_column(heading)
    table.add_row("trials a second", f"{rate:.2f}", f"ideal {workers}: {100 * rate / workers:.0f} %; asked 90 %")
    table.add_row("CPU of workers, ms a trial", f"{1000 * own_cpu:.0f}", "their threads and writes included")
    table.add_row("CPU of the server, ms a trial", f"{1000 * server_cpu:.0f}", "all its processes")
    most = min(workers, cores / (own_cpu + server_cpu))
    table.add_row(
        "what the cores allow", f"{most:.1f}", f"trials a second on {cores} quiet cores; {100 * rate / most:.0f} %"
    )
    beyond = sum(spent for _, _, spent, _ in found) / trials
    table.add_row("beyond its own second", f"{1000 * beyond:.0f}", "ms a trial, all workers' mean; asked 111 at most")
    parts = Table(title="steps, ms a trial (exclusive of each other)", title_justify="left")
    parts.add_column("step")
    parts.add_column("ms", justify="right")
    sums: Counter[str] = Counter()
    for _, _, _, told in found:
        sums.update(told)
    for name, part in sums.most_common():
        parts.add_row(name, f"{1000 * part / trials:.1f}")
    return [table, parts]
