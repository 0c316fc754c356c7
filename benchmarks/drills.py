"""What befalls studies, for real: kills, sleep, full disks, torn files, vanished databases, races. Epochs are light.

The long forms of tests/test_workers.py: real commands and processes, which train by tests/light.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from databases import PostgreSQL, find_binaries
from labs import SWEEP, Lab, descendants, kill, wait_until

from somvq.data.demo import make_demo_cohort

STORAGES = ("sqlite", "journal", "postgresql")
EPOCHS = 4
PATIENCE_S = 300


@dataclass
class Site:
    """What drills share: scans, their preparation, a server where it is wanted."""

    folder: Path
    server: PostgreSQL | None
    made: int = 0
    seed: int = 0
    quick: bool = False

    @contextmanager
    def lab(self, storage: str, disk: Path | None = None) -> Iterator[tuple[Lab, str]]:
        """A working folder whose trials are kept in `storage`, and its study's name."""
        self.made += 1
        folder = self.folder / f"lab-{self.made}"
        folder.mkdir()
        lab, study = Lab(folder, self.folder / "scans", self.folder / "cohorts"), f"drill-{self.made}"
        lab.write_sweep(SWEEP, study)
        if storage == "journal":
            lab.environment["SOMVQ_STORAGE"] = f"journal://{disk or folder}/study.journal"
        if storage == "postgresql":
            assert self.server is not None, "PostgreSQL's initdb and pg_ctl are not installed"
            lab.environment["SOMVQ_STORAGE"] = self.server.create_database()
        try:
            yield lab, study
        finally:
            lab.end()


@contextmanager
def site(storages: list[str], *, quick: bool = False, seed: int = 0) -> Iterator[Site]:
    """Scans to train on, and a server if one of `storages` needs it."""
    binaries = find_binaries() if "postgresql" in storages else None
    server = PostgreSQL(binaries) if binaries else None
    try:
        with tempfile.TemporaryDirectory() as folder:
            make_demo_cohort(Path(folder) / "scans", subjects=8, voxel_mm=4.24)
            yield Site(Path(folder), server, quick=quick, seed=seed)
    finally:
        if server:
            server.remove()


@dataclass
class Seen:
    """What a drill left behind."""

    trials: int
    done: int
    stuck: int  # RUNNING or WAITING, with nobody at work
    repeated: int  # epochs begun more than once
    twice: int  # epochs that a ledger has twice, or lacks; trials beyond those asked
    seconds: float
    harm: int = 0  # kills, or workers put to sleep
    notes: list[str] = field(default_factory=list)

    def words(self) -> str:
        told = f"{self.done} of {self.trials} done, {self.twice} twice or too many, {self.repeated} epochs repeated"
        told += f" after {self.harm} blows" if self.harm else ""
        return ", ".join([f"{told}, {self.stuck} stuck", *self.notes])


def look(lab: Lab, study: str, asked: int, began: float, harm: int = 0) -> Seen:
    """Counts what there is when all commands have ended."""
    seconds = time.monotonic() - began
    trials = lab.status(study)["trials"]
    begun = lab.begun(study)
    wrong = 0
    for trial in trials:
        epochs = [row["epoch"] for row in lab.run_of(trial["number"], study).rows()]
        whole = len(epochs) == EPOCHS or trial["state"] != "done"
        wrong += not (whole and epochs == sorted(set(epochs)))
    return Seen(
        trials=asked,
        done=sum(trial["state"] == "done" for trial in trials),
        stuck=sum(trial["state"] in ("running", "waiting") for trial in trials),
        repeated=sum(begun.values()) - len(begun),
        twice=wrong + max(0, len(trials) - asked),
        seconds=seconds,
        harm=harm,
    )


def finish(process: "subprocess.Popen[str]", *statuses: int) -> str:
    """What a command printed; it must end with one of `statuses`, 0 where none is given."""
    output = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode in (statuses or (0,)), f"exit status {process.returncode}: {output[-500:]}"
    return output


def chaos(here: Site, storage: str) -> Seen:
    """24 trials, 4 workers, 10 kills -9 of workers and attempts at random moments."""
    chosen, kills, asked = random.Random(here.seed), 0, 8 if here.quick else 24
    with here.lab(storage) as (lab, study):
        lab.plan(study, epoch_s=0.25)
        began = time.monotonic()
        process = lab.start("sweep", study, "--trials", str(asked), "--workers", "4")
        wait_until(lambda: (lab.folder / "runs" / study / "begun.log").exists(), process=process)
        while kills < (3 if here.quick else 10) and process.poll() is None:
            time.sleep(chosen.uniform(0.3, 1.5))
            victims = [pid for pid in descendants(process.pid) if is_ours(pid)]
            kills += bool(victims) and kill(chosen.choice(victims), signal.SIGKILL)
        finish(process)
        return look(lab, study, asked, began, kills)


def is_ours(pid: int) -> bool:
    """Whether `pid` is a worker or an attempt; not git, which a worker asks for the audit."""
    with contextlib.suppress(OSError):
        return b"somvq" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def suspend(here: Site, storage: str) -> Seen:
    """Two shells of 2 workers; each in turn sleeps for 5 s, its lease being 2 s, and wakes."""
    slept, asked = 0, 6 if here.quick else 12
    with here.lab(storage) as (lab, study):
        lab.plan(study, epoch_s=0.4)
        lab.environment["SOMVQ_LEASE_S"] = "2"
        began = time.monotonic()
        shells = [lab.start("sweep", study, "--trials", str(asked), "--workers", "2") for _ in range(2)]
        wait_until(lambda: (lab.folder / "runs" / study / "begun.log").exists())
        for turn in range(2 if here.quick else 4):
            time.sleep(2)
            shell = shells[turn % 2]
            if shell.poll() is None:
                sleeping = [shell.pid, *descendants(shell.pid)]
                slept += 2  # workers
                for pid in sleeping:
                    kill(pid, signal.SIGSTOP)
                time.sleep(5)
                for pid in sleeping:
                    kill(pid, signal.SIGCONT)
        for shell in shells:
            finish(shell)
        return look(lab, study, asked, began, slept)


def disk_full(here: Site, storage: str) -> Seen:
    """The disk of the runs (3 MB; a journal is on it too) is filled while 2 workers train, and freed; twice."""
    rounds, asked = 1 if here.quick else 2, 6
    with here.lab(storage, disk=here.folder / f"lab-{here.made + 1}" / "runs") as (lab, study), small_disk(lab) as disk:
        lab.plan(study, epoch_s=0.3)
        began, said = time.monotonic(), 0
        for turn in range(rounds):
            process = lab.start("sweep", study, "--trials", str(asked), "--workers", "2", SOMVQ_OUTAGE_S="3")
            wait_until(lambda turn=turn: lab.run_of(2 * turn, study).rows(), process=process)  # type: ignore[misc]
            fill(disk / "filler")
            said += "No space left on device" in finish(process, 1)
            (disk / "filler").unlink()
        finish(lab.start("sweep", study, "--trials", str(asked), "--workers", "2"), 0, 1)  # 1: a trial has failed
        seen = look(lab, study, asked, began, 2 * 4 * rounds)  # 4 attempts of each worker, in vain
        seen.notes += [
            trial["reason"].split(";")[0] for trial in lab.status(study)["trials"] if trial["state"] == "failed"
        ]
        seen.notes.append(f"said so {said} of {rounds} times")
        return seen


@contextmanager
def small_disk(lab: Lab) -> Iterator[Path]:
    """The lab's runs on a disk of their own; root may mount one."""
    disk = lab.folder / "runs"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], check=True)
    try:
        yield disk
    finally:
        lab.end()
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def torn_journal(here: Site, storage: str) -> Seen:
    """All processes are killed and the journal loses its last bytes, again and again."""
    chosen, rounds, asked = random.Random(here.seed), 2 if here.quick else 5, 12
    with here.lab(storage) as (lab, study):
        lab.plan(study, epoch_s=0.25)
        began, journal = time.monotonic(), lab.folder / "study.journal"
        for turn in range(rounds):
            process = lab.start("sweep", study, "--trials", str(asked), "--workers", "2")
            wait_until(lambda turn=turn: lab.run_of(turn + 1, study).rows(), process=process)  # type: ignore[misc]
            time.sleep(chosen.uniform(0, 0.5))
            for pid in [process.pid, *descendants(process.pid)]:
                kill(pid, signal.SIGKILL)
            process.communicate()
            journal.write_bytes(journal.read_bytes()[: -chosen.randint(2, 40)])
        finish(lab.start("sweep", study, "--trials", str(asked), "--workers", "2"))
        return look(lab, study, asked, began, 2 * rounds)


def database_restart(here: Site, storage: str) -> Seen:
    """The server crashes for 3 s, three times, while 2 workers train."""
    assert here.server is not None
    rounds, asked = 1 if here.quick else 3, 10
    with here.lab(storage) as (lab, study):
        lab.plan(study, epoch_s=0.4)
        began = time.monotonic()
        process = lab.start("sweep", study, "--trials", str(asked), "--workers", "2")
        for turn in range(rounds):
            wait_until(lambda turn=turn: lab.run_of(2 * turn, study).rows(), process=process)  # type: ignore[misc]
            here.server.stop("immediate")
            time.sleep(3)
            here.server.start()
        finish(process)
        seen = look(lab, study, asked, began)
        attempts = sum(trial["attempts"] for trial in lab.status(study)["trials"])
        seen.notes.append(f"{attempts} attempts at {asked} trials")
        return seen


def double_submit(here: Site, storage: str) -> Seen:
    """The same command from 4 shells at once, 2 workers each; and once more when all is done."""
    asked = 6 if here.quick else 12
    with here.lab(storage) as (lab, study):
        lab.plan(study, epoch_s=0.1)
        began = time.monotonic()
        command = ("sweep", study, "--trials", str(asked), "--workers", "2")
        for shell in [lab.start(*command) for _ in range(4)]:
            finish(shell)
        finish(lab.start(*command))
        return look(lab, study, asked, began)


def start_race(here: Site, storage: str) -> Seen:
    """A supervisor starts 8 workers in the same second on an empty study."""
    with here.lab(storage) as (lab, study):
        lab.plan(study, epoch_s=0.1)
        began = time.monotonic()
        finish(lab.start("sweep", study, "--trials", "16", "--workers", "8"))
        return look(lab, study, 16, began)


@dataclass(frozen=True)
class Drill:
    """What is done, on which storages, and what is asked of it."""

    run: Callable[[Site, str], Seen]
    storages: tuple[str, ...]
    asked: str
    allows: Callable[[Seen], int]  # epochs that may be repeated


NONE = (lambda seen: 0, "all done, 0 twice, 0 repeated, 0 stuck")
EACH = (lambda seen: seen.harm, "all done, 0 twice, at most an epoch a blow, 0 stuck")
DRILLS = {
    "chaos": Drill(chaos, STORAGES, EACH[1], EACH[0]),
    "suspend": Drill(suspend, STORAGES, EACH[1], EACH[0]),
    "disk-full": Drill(disk_full, STORAGES, EACH[1], EACH[0]),
    "torn-journal": Drill(torn_journal, ("journal",), EACH[1], EACH[0]),
    "database-restart": Drill(database_restart, ("postgresql",), NONE[1], NONE[0]),
    "double-submit": Drill(double_submit, STORAGES, NONE[1], NONE[0]),
    "start-race": Drill(start_race, STORAGES, NONE[1], NONE[0]),
}


def table_of(rows: list[tuple[str, str, str, str, str, str]]) -> Table:
    table = Table(title="Drills: commands and processes are real, epochs are light", title_justify="left")
    for heading in ("drill", "storage", "asked", "seen", "s", ""):
        table.add_column(heading)
    for row in rows:
        table.add_row(*row)
    return table


def drill(here: Site, name: str, storage: str) -> tuple[str, str, str, str, str, str]:
    """One row of the table; a drill that breaks is a row too."""
    chosen = DRILLS[name]
    try:
        seen = chosen.run(here, storage)
    except (AssertionError, subprocess.SubprocessError) as error:
        return name, storage, chosen.asked, f"broke: {error}"[:600], "", "no"
    good = seen.done == seen.trials and not (seen.stuck or seen.twice) and seen.repeated <= chosen.allows(seen)
    return name, storage, chosen.asked, seen.words(), f"{seen.seconds:.0f}", "yes" if good else "no"


def load() -> str:
    return f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}"
