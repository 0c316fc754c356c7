"""A run measured on a split of its cohort after its training, and the only place where the test split is measured.

Each evaluation is a line of the run's evaluations.jsonl, on disk before anyone sees a number of it.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import compress, groupby
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from rich.box import SIMPLE_HEAD
from rich.table import Table

from somvq.config import Split, derive_seed
from somvq.data.survey import OnScan
from somvq.errors import DataError, RunError
from somvq.files import locked, write_whole
from somvq.health import Diverged
from somvq.runs import FINISHED, LOSSES, METRICS, Row, Run, describe, whole_lines
from somvq.training import Training
from somvq.validation import mean_image_baseline

SECTIONS = ("", "codebook", "map", "locality", "loss")  # of the table, by what stands before a metric's /


class Evaluation(BaseModel):
    """One line of evaluations.jsonl; its numbers are named as METRICS names them, without the split: ssim."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    split: Split
    epoch: int
    epochs: int  # what the run was told; at fewer, it is unfinished
    time: str  # UTC
    cohort_fingerprint: str
    scans: int
    metrics: Row
    mean_image: Row
    device: str
    versions: dict[str, str]


class Readings(NamedTuple):
    """How often the test split has been read: for a run, and for how many others of its study."""

    of_run: int
    other_runs: int

    def __str__(self) -> str:
        often = {0: "never", 1: "once"}.get(self.of_run, f"{self.of_run} times")
        others = f"{self.other_runs} other run{'' if self.other_runs == 1 else 's'}"
        return (
            f"read before: {often} for this run, and for {others} of its study; "
            "choosing among runs by the test split is choosing on it"
        )


def evaluate(run: Run, split: Split, on_scan: OnScan = lambda *_: None) -> Evaluation:
    """Every metric of `run`, as its checkpoint has it, on `split`, beside the mean image's; recorded in its folder.

    Raises:
        DataError: its cohort is gone, or has no scan in `split`.
        RunError: it has no checkpoint, is too young for the test split, or gives no numbers.
    """
    training, epoch = load_trained(run, split)
    cohort, config = training.cohort, training.config
    scans = len(cohort.rows[split])
    on_scan("mean image", 0, 1)
    mean_image = mean_image_baseline(cohort, split)
    on_scan("mean image", 1, 1)
    torch.manual_seed(derive_seed(config.seed, "evaluation"))  # the published VAE samples in evaluation too
    try:
        training.scans.on_read = counter("measuring", scans, on_scan)
        validation = training.validate(split)
        training.scans.on_read = counter("surveying", scans, on_scan)
        row = {**validation.row, **training.survey(split, validation)}
    except Diverged as divergence:
        raise RunError(f"{run.folder}, measured on the {split} split: {divergence}") from divergence
    evaluation = Evaluation(
        split=split,
        epoch=epoch,
        epochs=config.epochs,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        cohort_fingerprint=cohort.fingerprint,
        scans=scans,
        metrics=without_split(row),
        mean_image=without_split(mean_image),
        device=training.device.type,
        versions={package: version(package) for package in ("somvq", "torch", "numpy")},
    )
    record(run, evaluation)
    return evaluation


def load_trained(run: Run, split: Split) -> tuple[Training, int]:
    """`run` in memory as its checkpoint has it, if it may be measured on `split`; the epochs that it has trained."""
    told = run.record
    resume = f"somvq resume {told.study}"
    if not (told.cohort / "index.json").exists():
        raise DataError(f"{told.cohort}, the prepared cohort of {run.folder}, is gone; {resume} prepares it again")
    training = Training(run)
    if not training.cohort.rows[split]:
        has = training.cohort.summary()
        raise DataError(f"the cohort of {run.folder} has no {split} scan: {has}; begin a study with another --split")
    row = training.load()
    if row is None:
        raise RunError(f"{run.folder} has no checkpoint: it has not finished an epoch; {resume} goes on with it")
    epoch, state = int(row["epoch"]), run.progress().state
    if split == "test" and epoch < training.config.epochs:
        at = f"{run.folder} is at epoch {epoch} of {training.config.epochs}, and only finished runs read the test split"
        if state in FINISHED:
            raise RunError(f"{at}; it ended {state}: take another run, or --split val")
        raise RunError(f"{at}; finish it first: {resume}")
    return training, epoch


def counter(what: str, total: int, on_scan: OnScan) -> Callable[[int], None]:
    """Adds up scans for a progress bar."""
    done = 0

    def count(scans: int) -> None:
        nonlocal done
        done += scans
        on_scan(what, done, total)

    return count


def without_split(row: Row) -> Row:
    """The numbers of `row` under names that fit any split."""
    return {name.removeprefix("val/"): value for name, value in row.items()}


def record(run: Run, evaluation: Evaluation) -> None:
    """Adds a line to the run's evaluations.jsonl."""
    with locked(run.folder / ".evaluations.lock"):
        lines = [*whole_lines(run.evaluations), evaluation.model_dump_json()]
        write_whole(run.evaluations, lambda file: file.write("".join(f"{line}\n" for line in lines).encode()))


def read_evaluations(run: Run) -> list[Evaluation]:
    """The evaluations of `run`, oldest first."""
    try:
        return [Evaluation.model_validate_json(line) for line in whole_lines(run.evaluations)]
    except ValueError as error:
        raise RunError(f"{run.evaluations} is damaged; restore it, or move it away") from error


def count_readings(run: Run) -> Readings:
    """How often the test split has been read so far."""
    own = run.folder.resolve()
    study = own.parents[1] if own.parent.name in ("stages", "reruns") else own.parent
    patterns = ("*", "stages/*", "reruns/*")
    folders = [path.parent for pattern in patterns for path in study.glob(f"{pattern}/evaluations.jsonl")]
    counts = {folder: sum(one.split == "test" for one in read_evaluations(Run(folder))) for folder in folders}
    of_run = counts.pop(own, 0)
    return Readings(of_run, sum(count > 0 for count in counts.values()))


def measured_on_val(run: Run, epoch: int) -> Row:
    """What the ledger says of the validation set after `epoch`, under names that fit any split."""
    found: Row = next((row for row in run.rows() if row["epoch"] == epoch), {})
    elsewhere = ("epoch", "train/", "time/")
    return without_split({name: value for name, value in found.items() if not name.startswith(elsewhere)})


def table(evaluation: Evaluation, on_val: Row) -> Table:
    """Every metric, what it is `on_val`, of the mean image or by chance, and how likely by chance; no empty column."""
    found, mean_image = evaluation.metrics, evaluation.mean_image
    names = [name for name in without_split(dict.fromkeys(METRICS, 0.0)) if name in found]
    lines = {
        name: (
            found[name],
            on_val.get(name),
            found.get(f"{name}_null", mean_image.get(name.removesuffix("_q"))),
            found.get(f"{name}_p"),
        )
        for name in sorted(names, key=section)
        if not name.endswith(("_null", "_p"))  # they have columns
    }
    shown = [any(value is not None for value in column) for column in zip(*lines.values(), strict=True)]
    headings = (evaluation.split, "val", "mean image\nor chance" if shown[-1] else "mean image", "p")
    scans = f"{evaluation.scans} scan{'' if evaluation.scans == 1 else 's'}"
    unfinished = ", unfinished" if evaluation.epoch < evaluation.epochs else ""
    title = f"{evaluation.split} split: {scans}, epoch {evaluation.epoch} of {evaluation.epochs}{unfinished}"
    printed = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False,
                    caption="each is defined by somvq metrics", caption_justify="left")  # fmt: skip
    printed.add_column("metric", style="cyan", no_wrap=True)
    for heading in compress(headings, shown):
        printed.add_column(heading, justify="right", no_wrap=True)
    for _, together in groupby(lines, section):
        for name in together:
            cells = ("" if value is None else describe(value) for value in lines[name])
            printed.add_row(name, *compress(cells, shown))
        printed.add_section()
    return printed


def section(name: str) -> int:
    """Which part of the table a metric belongs to."""
    return SECTIONS.index("loss" if name in LOSSES else name.rpartition("/")[0])
