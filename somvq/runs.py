"""A run's folder: what it was told, what it measured, how far it is.

    config.json     what decides the run, the cohort and versions it was made with, and its audit (audit.py)
    metrics.jsonl   the ledger: one line an epoch, synced to disk; the truth about what was measured
    checkpoint.pt   the run whole, at its last epoch (checkpoints.py)
    figures/        NAME_EPOCH.png
    state.json      running, complete, failed, diverged, collapsed, pruned or interrupted, and why
    evaluations.jsonl   each later measurement of a split, the test split's above all (evaluation.py)
    attempts.jsonl  each try at it: when, where, how it ended, the GPUs that it had
    lease.json      which worker holds the run (study/lease.py)

Everything else (Optuna's values, W&B, reports) is a projection of these files and can be made again.
"""

import json
import os
import time
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from somvq.audit import Audit, Device
from somvq.config import RunConfig
from somvq.errors import RunError
from somvq.files import append_line, write_json, write_whole

Row = dict[str, float]
TAIL_BYTES = 16_384  # of a ledger: a few lines


def beside_chance(definitions: dict[str, str]) -> dict[str, str]:
    """Each metric, its mean over permutations, and the share of them as good."""
    named: dict[str, str] = {}
    for name, words in definitions.items():
        named |= {name: words, f"{name}_null": f"mean of {name} over 199 permutations: what chance gives",
                  f"{name}_p": f"share of permutations whose {name} is as good"}  # fmt: skip
    return named


LOSSES = {
    "loss": "what is minimised: the terms below by their weights",
    "reconstruction": "mean squared error of x'_e per voxel (z-scores), where it is trained",
    "reconstruction_q": "mean squared error of x'_q per voxel, where it is trained (gamma_q)",
    "kl": "KL of a continuous latent in nats, mean over latent elements; published: its wrong form",
    "codebook": "squared distance of codes to their tokens per channel, mean over tokens; moves codes",
    "commitment": "squared distance of tokens to their codes per channel, mean over tokens; published SOM: moves both",
    "hardening": "cluster hardening KL(t || s), nats (eq. 5, first sum): mean over tokens; published: sum over a batch",
    "order": "psom with beta_som: eq. 3, squared distance of tokens to codes near their node, moves codes",
    "neighbours": "psom: eq. 5, second sum, nats, token mean; som: eq. 3, squared distance to codes near the node",
}
IMAGES = {
    "val/mse": "mean squared error of x'_e per voxel (z-scores)",
    "val/ssim": "SSIM of x'_e: 9x9x9 uniform window, valid, biased variance, range of the scan; mean over scans",
    "val/psnr": "PSNR of x'_e in dB, peak = range of the scan; mean over scans",
    "val/psnr_max": "PSNR of x'_e in dB, peak = maximum of the z-scored scan (the paper's); mean over scans",
}
CODEBOOK_METRICS = {
    **{f"{name}_q": f"as {name}, of x'_q: decoded from the nearest codes" for name in IMAGES},
    "codebook/used": "codes that are nearest to at least one token of the validation set",
    "codebook/used_share": "codebook/used as a share of all codes",
    "codebook/dead": "codes that are nearest to no token of the validation set",
    "codebook/used_per_scan": "codes that are nearest to at least one token of a scan, mean over scans",
    "codebook/perplexity": "exp of the entropy of code use over the validation set: codes used, if evenly",
    "codebook/quantisation_error": "squared distance of tokens to codes over that to their mean: 0 exact, 1 useless",
    "codebook/mixing": "of each code's 5 nearest neighbours among tokens and codes, the share that are tokens",
    "codebook/norm_ratio": "largest norm of a code over largest norm of a token; far above 1, a code has flown off",
}
PSOM_METRICS = {
    "codebook/entropy": "entropy of s over ln K, mean over validation tokens: 0 one node each, 1 all alike (collapse)",
}
MAP_METRICS = {
    "map/neighbour_r": "mean Pearson r of neighbouring codes, the codebook's mean removed",
    "map/neighbour_r_raw": "mean Pearson r of neighbouring codes as they are (the paper's; inflated by the mean)",
    "map/morans_i": "Moran's I of codes on the map, 4 neighbours, no self-pairs: 0 no order, towards 1 smooth",
    "map/topographic_error": "share of validation tokens whose two nearest nodes are no neighbours; a torus has more",
    "map/topographic_error_8": "as map/topographic_error, diagonal neighbours counted",
}
SURVEY = {  # once, at the last epoch
    "val/ssim_skimage": "SSIM of x'_e as scikit-image's default: 7x7x7 uniform window, sample covariance",
    "val/ssim_gaussian": "SSIM of x'_e by a Gaussian window of sigma 1.5, 11 voxels wide (Wang et al. 2004)",
    "val/ssim_brain": "val/ssim, mean over windows whose centre is brain",
    "val/ssim_unpadded": "val/ssim of the part of the volume that is no padding",
}
SURVEY_OF_SKIPS = {
    "val/ssim_without_tokens": "SSIM of what skip connections decode, tokens set to 0; near val/ssim, tokens are idle",
}
SURVEY_OF_CODES = {
    **{f"{name}_q": f"as {name}, of x'_q" for name in SURVEY},
    "codebook/used_brain": "codes that are nearest to at least one token that is mostly brain",
    "codebook/used_brain_per_scan": "the same in one scan, mean over scans",
    "codebook/overlap": "of each token's 5 nearest neighbours, the share that are codes, over chance: 1 mixed, 0 apart",
    "locality/tissue_by_place": "locality/tissue, of the node that the other scans have most often at the place",
    "locality/same_node": "of two scans' tokens at one place of the brain, the share that have the same node",
    **beside_chance({
        "locality/tissue": "what nodes tell of tissue (CSF, GM, WM by Otsu's thresholds), a share of its entropy",
        "locality/age": "what nodes tell of age (thirds; where the cohort knows it), a share of its entropy",
        "locality/atrophy": "what nodes tell of atrophy (thirds; where the cohort knows it), a share of its entropy",
    }),
}  # fmt: skip
SURVEY_OF_MAPS = {
    **{name: words for name, words in beside_chance(MAP_METRICS).items() if name not in MAP_METRICS},
    **beside_chance({
        "map/morans_i_published": "Moran's I of the paper's code: exp(-steps), self-pairs too; above 0.2 by chance",
        "map/trustworthiness": "of 5 nearest nodes on the map, how near their codes rank: 1 all right, 0.5 chance",
        "map/topographic_product": "log ratio of distances on map and between codes: 0 fits, below 0 map too small",
        "map/topographic_violation": "the same without cancelling: 0 where the order of distances agrees everywhere",
        "locality/place": "Spearman r of distance in the scan and on the map, token pairs of the brain; null: tokens",
        "locality/order": "the same value; its null shuffles nodes over the map, so that only a map passes",
        "locality/agreement": "1 - steps between two scans' nodes at one place over those at random places",
    }),
}  # fmt: skip
METRICS = {
    **{f"train/{name}": f"{words}; mean over steps" for name, words in LOSSES.items()},
    **{f"val/{name}": f"as train/{name}, validation set" for name in LOSSES},
    **IMAGES,
    **CODEBOOK_METRICS,
    **PSOM_METRICS,
    **MAP_METRICS,
    **SURVEY,
    **SURVEY_OF_SKIPS,
    **SURVEY_OF_CODES,
    **SURVEY_OF_MAPS,
    "time/epoch_s": "seconds of the epoch, validation included",
}
UNITS = {  # of those keys that have one; a null has its metric's, all others are plain numbers
    **{f"{split}/{name}": "nat" for split in ("train", "val") for name in ("kl", "hardening")},
    "val/psnr": "dB",
    "val/psnr_max": "dB",
    **{f"codebook/{name}": "codes" for name in ("used", "dead", "used_per_scan", "perplexity")},
    **{f"codebook/{name}": "codes" for name in ("used_brain", "used_brain_per_scan")},
    "time/epoch_s": "s",
    "epoch": "epoch",
}


def unit_of(key: str) -> str:
    """The unit of a metric; 1 if it has none."""
    return UNITS.get(key.removesuffix("_null").removesuffix("_q"), "1")


def metrics_table() -> str:
    """Every metric and its definition, in Markdown."""
    at_the_end = {**SURVEY, **SURVEY_OF_SKIPS, **SURVEY_OF_CODES, **SURVEY_OF_MAPS}
    every_epoch = {name: words for name, words in METRICS.items() if name not in at_the_end}
    lines = ["Each epoch:", "", *rows_of(every_epoch), "", "Once, of the trained model:", "", *rows_of(at_the_end)]
    return "\n".join(lines) + "\n"


def rows_of(definitions: dict[str, str], *, units: bool = True) -> list[str]:
    """A Markdown table."""
    cells = [(f"`{key}`", *([unit_of(key)] if units else []), words) for key, words in definitions.items()]
    head = ("key", *(["unit"] if units else []), "what it is")
    rows = ["| " + " | ".join(cell.replace("|", "&#124;") for cell in row) + " |" for row in (head, *cells)]
    return [rows[0], "|" + "---|" * len(head), *rows[1:]]


def why_not_measured(metric: str, config: RunConfig) -> str:
    """Why a run of `config` does not measure `metric`; empty if it does."""
    part, _, term = metric.partition("/")
    if part in ("train", "val") and term in LOSSES and term not in ("loss", *config.terms):
        return f"this {config.model} has no term {term}"
    if metric in {**CODEBOOK_METRICS, **SURVEY_OF_CODES} and not config.has_codebook:
        return f"model {config.model} has no codebook"
    if metric in {**MAP_METRICS, **SURVEY_OF_MAPS} and not config.has_map:
        return f"model {config.model} has no map"
    if metric in SURVEY_OF_SKIPS and config.skip == "none":
        return "there are no skip connections"
    if metric in PSOM_METRICS and config.model != "psom":
        return f"model {config.model} assigns no token to more than one code"
    return ""


State = Literal["waiting", "running", "complete", "failed", "diverged", "collapsed", "pruned", "interrupted"]
FINISHED: frozenset[State] = frozenset({"complete", "failed", "diverged", "collapsed", "pruned"})


class Progress(BaseModel):
    """What state.json says."""

    model_config = ConfigDict(extra="ignore")
    state: State = "waiting"
    reason: str = ""
    error: str = ""  # class of what a failed run failed of: its reason may name a file
    attempts: int = 0
    updated: float = 0.0
    micro_batch: Annotated[int, Field(ge=1)] | None = None  # scans in memory at once; none: the whole batch


Outcome = Literal[
    State, "stopped", "killed", "abandoned", "infrastructure", "memory"
]  # abandoned: its worker was killed, or lost it while it was suspended


class Attempt(BaseModel):
    """A line of attempts.jsonl; times are the file server's, in seconds."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    number: int  # from 1
    began: float
    ended: float | None = None
    outcome: Outcome = "running"
    reason: str = ""
    epochs: int = 0  # finished in it
    host: str = ""
    gpus: float = 0.0  # of which it had the use: 0.5 if two workers share one
    micro_batch: int | None = None


class RunRecord(BaseModel):
    """What config.json says."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    config: RunConfig
    cohort: Path  # the prepared cohort: a folder of data/cache.py
    cohort_fingerprint: str
    stages: dict[str, str] = {}  # the trained auto-encoders that init needs, by kind: their folders, seen from this one
    study: str
    name: str  # "psom t0007"
    wandb_id: str
    wandb_project: str = "somvq"
    wandb_entity: str | None = None
    versions: dict[str, str] = {}
    study_seed: int | None = None  # which, with the trial's number, decided config.seed
    audit: Audit | None = None
    devices: tuple[Device, ...] = ()  # one, unless the run was gone on with on another

    def identity(self) -> dict[str, Any]:
        """What makes a run itself: all but where its cohort is, and what it was begun with."""
        return self.model_dump(exclude={"cohort", "versions", "study_seed", "audit", "devices"})


class Run:
    """The folder of one training, across all its attempts."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.ledger = folder / "metrics.jsonl"
        self.checkpoint = folder / "checkpoint.pt"
        self.evaluations = folder / "evaluations.jsonl"
        self.attempts_ledger = folder / "attempts.jsonl"
        self.figures = folder / "figures"
        self.log = folder / "attempts.log"
        self._version: tuple[int, int, int] | None = None  # of the ledger that _rows are of
        self._rows: list[Row] = []

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
            if run.record.cohort == record.cohort:
                return run  # nothing to write: another worker's attempt may be noting its device
            record = run.record.model_copy(update={"cohort": record.cohort})
        elif record.audit:
            record.audit.keep_patches(folder)
        write_json(config, record.model_dump(mode="json"))
        return cls(folder)

    @cached_property
    def record(self) -> RunRecord:
        """What the run was told."""
        path = self.folder / "config.json"
        if not path.exists():
            raise RunError(f"{self.folder} is not a run: it has no config.json")
        try:
            return RunRecord.model_validate_json(path.read_text())
        except ValueError as error:
            raise unreadable(path) from error

    def note_device(self, device: Device) -> None:
        """Adds `device` to config.json, unless the run was on it last; for who holds the run."""
        if self.record.devices[-1:] == (device,):
            return
        record = self.record.model_copy(update={"devices": (*self.record.devices, device)})
        write_json(self.folder / "config.json", record.model_dump(mode="json"))
        self.record = record

    def progress(self) -> Progress:
        """How far the run is."""
        path = self.folder / "state.json"
        try:
            return Progress.model_validate_json(path.read_text())
        except FileNotFoundError:
            return Progress()
        except ValueError as error:
            raise RunError(f"{path} is damaged; delete it, and its run goes on from its checkpoint") from error

    def set_state(self, state: State, reason: str = "", *, error: str = "", new_attempt: bool = False) -> None:
        """Writes state.json."""
        before = self.progress()
        now: dict[str, Any] = {"state": state, "reason": reason, "error": error, "updated": time.time()}
        now["attempts"] = before.attempts + new_attempt
        write_json(self.folder / "state.json", before.model_copy(update=now).model_dump())

    def set_micro_batch(self, scans: int) -> None:
        """Writes how many scans an attempt may have in memory at once, for this and all later ones."""
        write_json(self.folder / "state.json", self.progress().model_copy(update={"micro_batch": scans}).model_dump())

    def rows(self) -> list[Row]:
        """The ledger's lines, oldest first; a last line torn by a crash is left out."""
        try:
            found = self.ledger.stat()
        except FileNotFoundError:
            return []
        version = (found.st_ino, found.st_size, found.st_mtime_ns)
        if version != self._version:  # who follows a run looks several times a second
            try:
                self._rows = [json.loads(line) for line in whole_lines(self.ledger)]
            except ValueError as error:
                raise self.damaged(error) from error
            self._version = version
        return list(self._rows)

    def last_row(self) -> Row:
        """The ledger's last whole line, read from its end; nothing if there is none."""
        try:
            with self.ledger.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - TAIL_BYTES))
                lines = file.read().split(b"\n")[:-1]
        except FileNotFoundError:
            return {}
        if len(lines) < 2 or not lines[-1]:  # the tail may begin within the only line
            return (self.rows() or [{}])[-1]
        try:
            last: Row = json.loads(lines[-1])
        except ValueError as error:
            raise self.damaged(error) from error
        return last

    def damaged(self, error: ValueError) -> RunError:
        """What is to be said of a ledger that cannot be read."""
        return RunError(f"{self.ledger} is damaged ({error}); restore it, or delete its run's folder")

    def lengths(self) -> tuple[int, int]:
        """Epochs of the run, and of the auto-encoder that it starts from; cheaper than its whole record."""
        path = self.folder / "config.json"
        try:
            told = json.loads(path.read_text())
            return told["config"]["epochs"], told["config"]["ae_epochs"] if told["stages"] else 0
        except (ValueError, KeyError, TypeError) as error:
            raise unreadable(path) from error

    def append(self, row: Row) -> None:
        """One more line of the ledger, on disk when this returns."""
        append_line(self.ledger, json.dumps(row))

    def attempts(self) -> list[Attempt]:
        """Every try at the run, oldest first; the last one may be under way."""
        try:
            read = [Attempt.model_validate_json(line) for line in whole_lines(self.attempts_ledger)]
        except ValueError as error:
            raise RunError(f"{self.attempts_ledger} is damaged; restore it, or delete it") from error
        return list({attempt.number: attempt for attempt in read}.values())  # each has a line for its begin and its end

    def note_attempt(self, attempt: Attempt) -> None:
        """Adds what is now known of `attempt`."""
        append_line(self.attempts_ledger, attempt.model_dump_json(), sync=False)

    def last_sign_of_training(self) -> float:
        """When an attempt last wrote something, by the file server's clock, in seconds; 0 if never."""
        files = (self.ledger, self.checkpoint, self.folder / "state.json")
        return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)

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


def unreadable(path: Path) -> RunError:
    """What is to be said of a config.json that does not say what the run was told."""
    return RunError(f"{path} is damaged, or of another version of somvq")


def whole_lines(path: Path) -> list[str]:
    """The lines of `path`, oldest first; none if there is no such file, and no last one torn by a crash."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    return text[: text.rfind("\n") + 1].splitlines()


def describe(value: Any) -> str:
    """A setting or a metric as people read it: four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
