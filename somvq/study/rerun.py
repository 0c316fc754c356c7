"""A finished trial trained again, beside its study, and whether its numbers come out the same."""

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from rich.console import Console
from rich.markup import escape

from somvq.audit import Audit, Device, read_audit
from somvq.errors import RunError, StudyError
from somvq.files import locked
from somvq.runs import Row, Run, RunRecord
from somvq.settings import Settings
from somvq.study.advice import shorten
from somvq.study.child import end, start_attempt
from somvq.study.claim import SAME_AS
from somvq.study.foreground import progress_bar
from somvq.study.record import load_study
from somvq.study.status import LABELS

POLL_S = 0.3
QUIET_SHOW_S = 30.0  # between two lines, where there is no terminal


def find_original(settings: Settings, study: str, number: int) -> Run:
    """The run of a finished trial.

    Raises:
        StudyError: there is no such trial, it did not finish, or its run is gone.
    """
    opened = load_study(settings, study)
    trials = opened.study.get_trials(deepcopy=False)
    if number >= len(trials):
        there = f"there: 0 to {len(trials) - 1}" if trials else "it has none yet"
        raise StudyError(f"study '{study}' has no trial {number} ({there})")
    state, run = trials[number].state, opened.record.run(number)
    if state != TrialState.COMPLETE:
        why = f"is {LABELS[state]}, so there is no end to compare"
        raise StudyError(f"trial {number} of {study} {why}; name one that is done: somvq status {study}")
    twin = trials[number].user_attrs.get(SAME_AS)
    if twin is not None:
        raise StudyError(
            f"trial {number} of {study} has the settings of trial {twin}, and was not trained; name that one"
        )
    if not (run.folder / "config.json").exists() or not run.rows():
        raise StudyError(f"trial {number} of {study} has nothing to compare with: {shorten(run.folder)} is gone")
    return run


def train_again(original: Run, console: Console, *, again: bool) -> tuple[Run, bool]:
    """A run that trained `original` again to its end, and whether there was anything left to train.

    Raises:
        RunError: it ended otherwise.
    """
    folder = original.folder.parent / "reruns" / original.folder.name
    where = escape(str(shorten(folder)))
    lock = folder.with_name(f".{folder.name}.lock")
    with locked(lock, lambda: console.print("waiting for another somvq rerun of this trial", soft_wrap=True)):
        if again and folder.exists():
            shutil.rmtree(folder)
        run = Run.create(folder, record_of(original, folder))
        if run.progress().state == "complete":
            console.print(f"rerun    {where}, trained before; --again trains it anew", soft_wrap=True)
            return run, False
        console.print(f"rerun    {where}", soft_wrap=True)
        if scans := original.progress().micro_batch:  # it ran out of memory, and batch norm tells passes apart
            run.set_micro_batch(scans)
        if original.record.devices:  # on a CPU their number decides how sums round
            os.environ.setdefault("OMP_NUM_THREADS", str(original.record.devices[-1].threads))
        attempt(run, console)
    refuse_unfinished(run)
    return run, True


def record_of(original: Run, folder: Path) -> RunRecord:
    """What the run in `folder` is told to train `original` again."""
    record, audit = original.record, read_audit()
    changed = {
        "stages": {kind: os.path.relpath(original.folder / stage, folder) for kind, stage in record.stages.items()},
        "name": f"{record.name} rerun",
        "wandb_id": f"{record.wandb_id}-rerun",  # never used: a rerun has no page
        "versions": {package: audit.versions[package] for package in record.versions},
        "audit": audit,
        "devices": (),
    }
    return record.model_copy(update=changed)


def refuse_unfinished(run: Run) -> None:
    """Raises a RunError that says how `run` ended, unless it is complete."""
    ended = run.progress()
    if ended.state == "running":
        raise RunError(f"the rerun was killed; the same command goes on. See {run.log}")
    if ended.state != "complete":
        why = f"{ended.state}, {ended.reason}" if ended.reason else ended.state
        raise RunError(f"the trial finished, but its rerun did not: {why}; see {run.log}")


def attempt(run: Run, console: Console) -> None:
    """One try at `run` in a child process, shown as it goes; the child ends with this."""
    epochs, said = run.record.config.epochs, time.monotonic()
    child = start_attempt(run.folder, run.log)
    try:
        with progress_bar(console) as show:
            while child.poll() is None:
                time.sleep(POLL_S)
                done = len(run.rows())
                show("epochs", done, epochs)
                if not console.is_terminal and time.monotonic() - said > QUIET_SHOW_S:
                    said = time.monotonic()
                    console.print(f"epoch {done}/{epochs}")
    finally:
        end(child)


@dataclass(frozen=True)
class Mismatch:
    """A number that came out otherwise; none where one of the two has it not."""

    epoch: int
    metric: str
    original: float | None
    rerun: float | None

    def relative(self) -> float:
        """Their difference as a share of the larger."""
        if self.original is None or self.rerun is None:
            return float("inf")
        return abs(self.original - self.rerun) / max(abs(self.original), abs(self.rerun), 5e-324)


@dataclass(frozen=True)
class Comparison:
    """Two ledgers and two audits, side by side."""

    epochs: int
    numbers: int  # in all epochs, times left out
    first: Mismatch | None  # in the order of the ledgers
    largest: Mismatch | None  # of the last epoch
    circumstances: tuple[str, ...]  # "torch 2.6.0, now 2.7.0"

    @property
    def same(self) -> bool:
        """Whether every number is the same, bit for bit."""
        return self.first is None

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        relative = self.largest.relative() if self.largest else 0.0
        return {"same": self.same, **asdict(self), "relative": relative if isfinite(relative) else None}


def compare(original: Run, rerun: Run) -> Comparison:
    """What came out otherwise, and what was otherwise that could explain it."""
    was, now = numbers_of(original), numbers_of(rerun)
    mismatches = list(find_mismatches(was, now))
    last = [mismatch for mismatch in mismatches if mismatch.epoch == original.record.config.epochs]
    return Comparison(
        epochs=len(was),
        numbers=sum(map(len, was.values())),
        first=mismatches[0] if mismatches else None,
        largest=max(last, key=Mismatch.relative, default=None),
        circumstances=tuple(changed_circumstances(original.record, rerun.record)),
    )


def numbers_of(run: Run) -> dict[int, Row]:
    """What `run` measured, by epoch, without times."""
    own = {int(row["epoch"]): row for row in run.rows()}
    return {
        epoch: {name: value for name, value in row.items() if name != "epoch" and not name.startswith("time/")}
        for epoch, row in own.items()
    }


def find_mismatches(was: dict[int, Row], now: dict[int, Row]) -> Iterator[Mismatch]:
    """Every number that is not the same bit for bit, epoch after epoch."""
    for epoch in sorted({*was, *now}):
        before, after = was.get(epoch, {}), now.get(epoch, {})
        for metric in {**before, **after}:
            pair = before.get(metric), after.get(metric)
            if bits(pair[0]) != bits(pair[1]):
                yield Mismatch(epoch, metric, *pair)


def bits(value: float | None) -> str:
    """What two numbers share if they are the same: -0.0 is not 0.0, and not a number is itself."""
    return "" if value is None else float(value).hex()


def changed_circumstances(original: RunRecord, rerun: RunRecord) -> Iterator[str]:
    """What could explain other numbers, in words; only what is known of both runs."""
    if original.audit and rerun.audit:
        yield from changes(facts_of(original.audit), facts_of(rerun.audit))
    else:
        yield from changes(original.versions, rerun.versions)
    if original.devices and rerun.devices:
        yield from changes(facts_of_device(original.devices[-1]), facts_of_device(rerun.devices[-1]))
    for record, which in ((original, "the original"), (rerun, "the rerun")):
        if len(record.devices) > 1:
            yield f"{which} changed devices: {', then '.join(device.name for device in record.devices)}"


def facts_of(audit: Audit) -> dict[str, str]:
    """Code, versions and machine."""
    source = audit.git.get("source")
    code = {"commit": source.sha[:12], "uncommitted changes": source.diff_sha256[:12]} if source else {}
    packages = {("hash of all packages" if name == "all" else name): text for name, text in audit.versions.items()}
    return {**code, **packages, "kernel": audit.platform.get("kernel", ""), "cpu": audit.platform.get("cpu", "")}


def facts_of_device(device: Device) -> dict[str, str]:
    """Device, threads and what else decides how sums round."""
    parts = {"device": device.name, "capability": device.capability, "driver": device.driver, "cuda": device.cuda}
    settings = {name: value for name, value in device.settings.items() if name != "OMP_NUM_THREADS"}  # in threads
    return {**parts, "cudnn": device.cudnn, "threads": str(device.threads), **settings, **device.flags}


def changes(was: dict[str, str], now: dict[str, str]) -> list[str]:
    """What differs, in words."""
    names = [name for name in {**was, **now} if was.get(name, "") != now.get(name, "")]
    return [f"{name} {was.get(name) or 'none'}, now {now.get(name) or 'none'}" for name in names]


def describe(found: Comparison) -> list[str]:
    """The comparison as people read it."""
    otherwise = "; ".join(found.circumstances)
    if found.first is None:
        told = [f"the same: {found.epochs} epochs, {found.numbers} numbers, bit for bit"]
        return [*told, f"although {otherwise}"] if otherwise else told
    told = [f"not the same, first in epoch {found.first.epoch}: {in_words(found.first)}"]
    if found.largest:
        told.append(f"largest  in the last epoch, relative {found.largest.relative():.2g}: {in_words(found.largest)}")
    else:
        told.append("largest  none in the last epoch")
    return [*told, f"because? {otherwise or 'code, versions, device and threads are the same, as far as is known'}"]


def in_words(mismatch: Mismatch) -> str:
    """One number that came out otherwise."""
    was, now = ("none" if value is None else repr(value) for value in (mismatch.original, mismatch.rerun))
    return f"{mismatch.metric} {was}, now {now}"
