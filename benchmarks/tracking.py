"""What tracking costs a trial of the demo: CPU beside its epochs, and its pace and its end with a sick server.

    python benchmarks/tracking.py [--light 0.5] [--epochs 12] [--rounds 3] [--long 40] [--only WORD]

Training is real, in a process of its own, as under a worker; the process that tracks is another, the server a third
(tests/fake_wandb.py). Conditions take turns, round after round, so that what else the machine does falls on all alike.
With --light, epochs sleep for so many seconds: what tracking computes meanwhile is all that it can take from training.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from fake_wandb import FakeWandb
from followers import Worker
from standin import Asleep

from somvq.config import CohortSettings, RunConfig
from somvq.data.cache import prepare_cohort
from somvq.data.cohort import Cohort
from somvq.data.demo import make_demo_cohort
from somvq.runs import Run, RunRecord

KEY = "0123456789" * 4
FALLS_SICK = 3  # the epoch after which what befalls in the middle befalls


@dataclass(frozen=True)
class Condition:
    """What befalls W&B."""

    name: str
    fault: str = ""  # attribute of the server
    so: int = 1
    at_start: bool = False
    core: signal.Signals | None = None  # what wandb-core gets
    tracked: bool = True
    key: str = KEY


CONDITIONS = [
    Condition("no tracking", tracked=False),
    Condition("offline: no key", key=""),
    Condition("online"),
    Condition("gone at the start", "gone", at_start=True),
    Condition("hangs at the start", "hangs", at_start=True),
    Condition("500 at the start", "down", at_start=True),
    Condition("429 at the start", "refuses", 429, at_start=True),
    Condition("403 at the start", "refuses", 403, at_start=True),
    Condition("gone in the middle", "gone"),
    Condition("hangs in the middle", "hangs"),
    Condition("500 in the middle", "down"),
    Condition("429 in the middle", "refuses", 429),
    Condition("404 in the middle", "refuses", 404),
    Condition("wandb-core killed", core=signal.SIGKILL),
    Condition("wandb-core stopped", core=signal.SIGSTOP),
]


@dataclass
class Seen:
    """What one run took, in seconds: its epochs, each; the wait at its end; CPU of tracking."""

    epochs: list[float]
    wait: float = 0.0
    cpu_begin: float = 0.0  # until the first epoch was told
    cpu_epoch: float = 0.0  # an epoch after that
    cpu_end: float = 0.0
    files: int = 0  # at the server
    megabytes: float = 0.0


def cpu_s(*pids: int) -> float:
    """Seconds that processes have computed, in all their threads."""
    files = [Path(f"/proc/{pid}/stat") for pid in pids]
    stats = [file.read_text().rpartition(")")[2].split() for file in files if file.exists()]
    return sum(int(stat[11]) + int(stat[12]) for stat in stats) / os.sysconf("SC_CLK_TCK")


def make_run(folder: Path, cohort: Cohort, epochs: int) -> Run:
    record = RunRecord(
        config=RunConfig(model="psom", epochs=epochs),
        cohort=cohort.folder,
        cohort_fingerprint=cohort.fingerprint,
        study="psom",
        name="psom t0000",
        wandb_id=f"psom-{folder.name}",
        versions={"somvq": "0"},
    )
    return Run.create(folder, record)


def start(folder: Path, epochs: int, light_s: float) -> "subprocess.Popen[bytes] | Asleep":
    """The training of the run at `folder`, by itself."""
    if light_s:
        Asleep.seconds = light_s * epochs
        return Asleep(folder, folder / "attempts.log")
    command = [sys.executable, "-m", "somvq.study.attempt", str(folder), str(os.getpid())]
    with (folder / "attempts.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ})


def wait_for(run: Run, epoch: int, child: "subprocess.Popen[bytes] | Asleep") -> None:
    while len(run.rows()) < epoch and child.poll() is None:
        time.sleep(0.02)


def train(folder: Path, cohort: Cohort, epochs: int, condition: Condition, light_s: float = 0.0) -> Seen:
    """One run from its start to the end of its tracking."""
    run, home = make_run(folder, cohort, epochs), folder.parent
    with FakeWandb() as server:
        if condition.at_start:
            setattr(server, condition.fault, condition.so)
        tracking = Worker(home, url=server.url, key=condition.key, poll_s=1.0) if condition.tracked else None
        if tracking:
            tracking.follow(run)
        child = start(folder, epochs, light_s)
        seen = follow(run, child, condition, server, tracking)
        if tracking:
            tracking.process.kill()
            tracking.process.communicate()
    assert [row["epoch"] for row in run.rows()] == list(range(1, epochs + 1)), condition.name
    seen.files, seen.megabytes = len(server.files), sum(map(len, server.files.values())) / 1e6
    seen.epochs = [row["time/epoch_s"] for row in run.rows()[FALLS_SICK:]]
    return seen


def follow(
    run: Run,
    child: "subprocess.Popen[bytes] | Asleep",
    condition: Condition,
    server: FakeWandb,
    tracking: Worker | None,
) -> Seen:
    """Has it befall, and measures."""
    seen = Seen([])
    wait_for(run, FALLS_SICK, child)
    if tracking:
        time.sleep(0.5)
        pids = tracking.process.pid, tracking.core()
        seen.cpu_begin = cpu_s(*pids)
        if condition.core:
            os.kill(pids[1], condition.core)
        elif condition.fault:
            setattr(server, condition.fault, condition.so)
    child.wait()
    if tracking:
        time.sleep(2.5)  # the last rows are read once a second
        before_end = cpu_s(*pids)
        seen.cpu_epoch = (before_end - seen.cpu_begin) / (run.record.config.epochs - FALLS_SICK)
        seen.wait = tracking.finish("complete", None)
        seen.cpu_end = cpu_s(*pids) - before_end
    return seen


def median(values: list[float]) -> float:
    return statistics.median(values)


def pace(seen: dict[str, list[Seen]]) -> Table:
    """Epochs and ends under each condition."""
    table = Table(title="Under failures", title_justify="left")
    for heading in ("W&B", "median epoch, s", "against none", "CPU of tracking, s an epoch", "wait at the end, s"):
        table.add_column(heading)
    base = seen["no tracking"]
    for name, runs in seen.items():
        epochs = [s for run in runs for s in run.epochs]
        ratios = [median(run.epochs) / median(other.epochs) for run, other in zip(runs, base, strict=True)]
        wait, cpu = median([run.wait for run in runs]), median([run.cpu_epoch for run in runs])
        table.add_row(name, f"{median(epochs):.3f}", f"{median(ratios):.3f}", f"{cpu:.4f}", f"{wait:.1f}")
    return table


def cost(name: str, runs: list[Seen]) -> Table:
    """CPU of tracking beside training."""
    table = Table(title=f"CPU of tracking and wandb-core, {name}", title_justify="left")
    for heading in ("of", "CPU s", "of an epoch's time"):
        table.add_column(heading)
    epoch_s = median([s for run in runs for s in run.epochs])
    each = median([run.cpu_epoch for run in runs])
    table.add_row(f"an epoch of {epoch_s:.2f} s", f"{each:.4f}", f"{each / epoch_s:.2%}")
    table.add_row(f"begin and first {FALLS_SICK} epochs, once", f"{median([run.cpu_begin for run in runs]):.2f}", "")
    table.add_row("end, once", f"{median([run.cpu_end for run in runs]):.2f}", "")
    table.add_row("files at the server", f"{runs[0].files}", f"{runs[0].megabytes:.2f} MB in all")
    return table


def main() -> None:
    """Measures and prints."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--epochs", type=int, default=12)
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--long", type=int, default=40, help="epochs of the runs whose CPU is measured")
    asked.add_argument("--light", type=float, default=0.0, help="seconds of epochs that only sleep")
    asked.add_argument("--only", default="", help="conditions that have this word, and no tracking")
    given = asked.parse_args()
    chosen = [c for c in CONDITIONS if given.only in c.name or not c.tracked]
    console = Console()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_demo_cohort(folder / "demo", subjects=24, voxel_mm=2.12)
        cohort = prepare_cohort(folder / "demo", CohortSettings(), folder / "prepared")
        new: Callable[[str], Path] = lambda word: folder / f"{word}-{time.monotonic_ns()}"  # noqa: E731
        for online in [c for c in CONDITIONS if c.name.startswith("o") and c in chosen and given.long]:
            runs = [train(new("long"), cohort, given.long, online) for _ in range(given.rounds)]
            console.print(cost(online.name, runs))
        seen: dict[str, list[Seen]] = {condition.name: [] for condition in chosen}
        for _ in range(given.rounds if given.epochs else 0):
            for condition in chosen:
                seen[condition.name].append(train(new("run"), cohort, given.epochs, condition, given.light))
        console.print(pace(seen) if given.epochs else "")


if __name__ == "__main__":
    main()
