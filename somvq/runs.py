"""A run's folder: what it was told, what it measured, how far it is.

    config.json     what decides the run, and the cohort and versions it was made with
    metrics.jsonl   the ledger: one line an epoch, synced to disk; the truth about what was measured
    checkpoint.pt   the run whole, at its last epoch (checkpoints.py)
    figures/        NAME_EPOCH.png
    state.json      running, complete, failed, diverged, pruned or interrupted, and why
    lease.json      which worker holds the run (study/claim.py)

Everything else (Optuna's values, W&B, reports) is a projection of these files and can be made again.
"""

import json
import os
import time
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from somvq.config import RunConfig
from somvq.errors import RunError
from somvq.files import write_json, write_whole

Row = dict[str, float]

METRICS = {
    "train/loss": "what was minimised: the terms below by their weights, mean over steps",
    "train/reconstruction": "mean squared error of x'_e per voxel (z-scores), training set",
    "train/reconstruction_q": "mean squared error of the reconstruction from codes that gamma_q asks for, training set",
    "train/commitment": "mean squared distance of tokens to their codes, per channel, training set",
    "train/hardening": "cluster hardening KL(t || s), mean over tokens, nats (paper eq. 5, first sum)",
    "train/neighbours": "neighbour term, mean over tokens, nats (paper eq. 5, second sum)",
    "val/loss": "as train/loss, validation set",
    "val/reconstruction": "as train/reconstruction, validation set",
    "val/reconstruction_q": "as train/reconstruction_q, validation set",
    "val/commitment": "as train/commitment, validation set",
    "val/hardening": "as train/hardening, validation set",
    "val/neighbours": "as train/neighbours, validation set",
    "val/ssim": "SSIM of x'_e: 9x9x9 uniform window, valid, biased variance, range of the scan; mean over scans",
    "val/ssim_q": "SSIM of x'_q, decoded from the nearest codes; as val/ssim",
    "val/psnr": "PSNR of x'_e in dB, peak = range of the scan; mean over scans",
    "val/psnr_max": "PSNR of x'_e in dB, peak = maximum of the z-scored scan (the paper's); mean over scans",
    "val/psnr_q": "PSNR of x'_q; as val/psnr",
    "codebook/used": "codes that are nearest to at least one token of the validation set",
    "codebook/used_share": "codebook/used as a share of all codes",
    "codebook/perplexity": "exp of the entropy of code use over the validation set: codes used, if evenly",
    "codebook/entropy": "entropy of s over ln K, mean over validation tokens: 0 one node each, 1 all alike (collapse)",
    "map/neighbour_r": "mean Pearson r of neighbouring codes, the codebook's mean removed",
    "map/neighbour_r_raw": "mean Pearson r of neighbouring codes as they are (the paper's; inflated by the mean)",
    "map/topographic_error": "share of validation tokens whose two nearest nodes are no neighbours; a torus has more",
    "time/epoch_s": "seconds of the epoch, validation included",
}

CODEBOOK_METRICS = frozenset(
    name
    for name in METRICS
    if name.endswith(("_q", "/commitment", "/hardening", "/neighbours")) or name.startswith(("codebook/", "map/"))
)

State = Literal["waiting", "running", "complete", "failed", "diverged", "pruned", "interrupted"]
FINISHED: frozenset[State] = frozenset({"complete", "failed", "diverged", "pruned"})


class Progress(BaseModel):
    """What state.json says."""

    model_config = ConfigDict(extra="ignore")
    state: State = "waiting"
    reason: str = ""
    attempts: int = 0
    updated: float = 0.0


class RunRecord(BaseModel):
    """What config.json says."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    config: RunConfig
    cohort: Path  # the prepared cohort: a folder of data/cache.py
    cohort_fingerprint: str
    stage: str | None = None  # the trained auto-encoder that init needs: its run's folder, as seen from this one
    study: str
    name: str  # "psom t0007"
    wandb_id: str
    wandb_project: str = "somvq"
    wandb_entity: str | None = None
    versions: dict[str, str] = {}

    def identity(self) -> dict[str, Any]:
        """What makes a run itself: all but where its cohort is, and what it was begun with."""
        return self.model_dump(exclude={"cohort", "versions"})


class Run:
    """The folder of one training, across all its attempts."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.ledger = folder / "metrics.jsonl"
        self.checkpoint = folder / "checkpoint.pt"
        self.figures = folder / "figures"
        self.log = folder / "attempts.log"

    @classmethod
    def create(cls, folder: Path, record: RunRecord) -> "Run":
        """A new run at `folder`, or the one that is there already; its cohort may have moved meanwhile.

        Raises:
            RunError: what is there is another run.
        """
        run = cls(folder)
        run.figures.mkdir(parents=True, exist_ok=True)
        config = folder / "config.json"
        if config.exists():
            if run.record.identity() != record.identity():
                raise RunError(f"{folder} holds {run.record.name} of another study; move it away")
            record = run.record.model_copy(update={"cohort": record.cohort})
        write_json(config, record.model_dump(mode="json"))
        return cls(folder)

    @cached_property
    def record(self) -> RunRecord:
        """What the run was told."""
        path = self.folder / "config.json"
        if not path.exists():
            raise RunError(f"{self.folder} is not a run: it has no config.json")
        return RunRecord.model_validate_json(path.read_text())

    def progress(self) -> Progress:
        """How far the run is."""
        path = self.folder / "state.json"
        try:
            return Progress.model_validate_json(path.read_text())
        except FileNotFoundError:
            return Progress()
        except ValueError as error:
            raise RunError(f"{path} is damaged; delete it, and its run goes on from its checkpoint") from error

    def set_state(self, state: State, reason: str = "", *, new_attempt: bool = False) -> None:
        """Writes state.json."""
        attempts = self.progress().attempts + new_attempt
        progress = Progress(state=state, reason=reason, attempts=attempts, updated=time.time())
        write_json(self.folder / "state.json", progress.model_dump())

    def rows(self) -> list[Row]:
        """The ledger's lines, oldest first; a last line torn by a crash is left out."""
        try:
            text = self.ledger.read_text()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind("\n") + 1]
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise RunError(f"{self.ledger} is damaged ({error}); restore it, or delete its run's folder") from error

    def append(self, row: Row) -> None:
        """One more line of the ledger, on disk when this returns."""
        with self.ledger.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def reconcile(self, last: Row) -> None:
        """Makes the ledger end with `last`, the row that the checkpoint carries.

        A kill between checkpoint and ledger leaves the ledger one row short (or one torn line long).
        """
        rows = [row for row in self.rows() if row["epoch"] < last["epoch"]]
        text = "".join(json.dumps(row) + "\n" for row in [*rows, last])
        write_whole(self.ledger, lambda file: file.write(text.encode()))

    def figures_of(self, epoch: int) -> dict[str, Path]:
        """The figures drawn after `epoch`, by name."""
        return {path.stem.rsplit("_", 1)[0]: path for path in sorted(self.figures.glob(f"*_{epoch:04d}.png"))}

    def figure(self, name: str, epoch: int) -> Path:
        """Where the figure `name` of `epoch` belongs."""
        return self.figures / f"{name}_{epoch:04d}.png"


def describe(value: Any) -> str:
    """A setting or a metric as people read it: four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
