"""What W&B is told of a run beside its ledger's rows. No part of it names a file, a folder, a person or a machine."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from somvq.config import RunConfig
from somvq.runs import METRICS, Row, Run, RunRecord, State, rows_of

MEDIA = "media/"
PICTURES = {  # by the names of gallery.py
    "reconstruction": "the first validation scan, its reconstructions and their errors",
    "codebook_grid": "each code summed over its channels, on the map",
    "hits": "how many validation tokens each node won",
    "usage": "the nodes' shares of the tokens, most used first",
    "curves": "losses, SSIM, PSNR, use of the codebook, quality of the map, by epoch",
    "tsne": "tokens and codes in two dimensions, tokens in the colours of their nodes",
    "umatrix": "mean distance of each code to those of its neighbours on the map",
    "planes": "the codes' first principal components on the map",
    "projection": "a validation scan's middle slices in the colours of its tokens' nodes",
    "decoded_nodes": "what nodes decode to",
}
# Those that show slices of a scan; and what nodes decode to, which of a small cohort may be one person's tissue
BRAIN_PICTURES = frozenset({"reconstruction", "projection", "decoded_nodes"})
LAST_BYTES, EARLIER_BYTES = 0.9e6, 1.0e6  # of a run's pictures: of its last epoch, of all before; 2 MB with the rest
SUMMARY = {
    "trial/state": "complete, pruned, diverged, collapsed, failed, or interrupted: it goes on from its checkpoint",
    "trial/attempts": "tries at the trial so far",
    "trial/error": "of a failed trial: the class of its error; the message stays, it may name a file",
}
DERIVED = {
    "gamma_e": "1 - gamma_q: share of the reconstruction that is decoded from the tokens",
    "cohort": "fingerprint of the scans, their preparation and their split: equal where trials can be compared",
    "device": "model of the GPU or CPU that trained last",
    "commit": "of somvq, where it was run from a checkout",
    "versions/*": "of somvq, torch, optuna, wandb and numpy",
}


@dataclass(frozen=True)
class Step:
    """A row of a page's history, and its pictures by their keys."""

    number: int
    row: dict[str, Any]
    pictures: dict[str, Path] = field(default_factory=dict)

    def files(self) -> dict[str, Path]:
        """The pictures by the names that wandb gives to their files: those of a page's first row have a 0."""
        number = self.number if self.number > 1 else 0
        return {f"media/images/{key}_{number}_{digest(path)}.png": path for key, path in self.pictures.items()}


@dataclass(frozen=True)
class Page:
    """All that W&B should have of a run; `folder` is where wandb may work, and stays."""

    id: str
    name: str
    group: str
    kind: str
    project: str
    entity: str | None
    folder: Path
    config: dict[str, Any]
    tags: tuple[str, ...]
    summary: dict[str, Any]
    steps: list[Step] = field(default_factory=list)
    axis: str = "epoch"  # what steps count
    state: State = "complete"
    withheld: int = 0  # pictures that show brains

    @property
    def last(self) -> int:
        """The number of the last step; 0 for none."""
        return self.steps[-1].number if self.steps else 0

    def pictures(self) -> list[tuple[int, str, Path]]:
        """All of them: step, key, file."""
        return [(step.number, key, path) for step in self.steps for key, path in step.pictures.items()]

    def files(self) -> dict[str, Path]:
        """All of them, by the names that wandb gives to their files."""
        return {name: path for step in self.steps for name, path in step.files().items()}

    def picture_bytes(self) -> int:
        """Of all of them."""
        return sum(path.stat().st_size for _, _, path in self.pictures())

    def as_json(self) -> dict[str, Any]:
        """Everything that would leave, for scripts."""
        media = [{"step": n, "key": key, "bytes": path.stat().st_size} for n, key, path in self.pictures()]
        said = ("id", "name", "group", "kind", "project", "entity", "config", "tags", "state", "summary", "withheld")
        rows = [step.row for step in self.steps]
        return {name: getattr(self, name) for name in said} | {"rows": rows, "media": media}


def page_of(run: Run, state: State, *, upload_brain_images: bool) -> Page:
    """What W&B should have of `run`, which is now `state`."""
    steps = [step_of(run, row, upload_brain_images=upload_brain_images) for row in run.rows()]
    withheld = 0 if upload_brain_images else len(drawn(run, BRAIN_PICTURES, run.record.config.epochs))
    return replace(head_of(run, state), steps=steps, withheld=withheld)


def head_of(run: Run, state: State) -> Page:
    """The page of `run` without its history."""
    record = run.record
    return Page(
        id=record.wandb_id,
        name=record.name,
        group=record.study,
        kind=kind_of(run),
        project=record.wandb_project,
        entity=record.wandb_entity,
        folder=run.folder,
        config=config_of(record),
        tags=tags_of(record, state),
        summary=summary_of(run, state),
        state=state,
    )


def step_of(run: Run, row: Row, *, upload_brain_images: bool) -> Step:
    """An epoch: its row of the ledger, and its pictures."""
    epoch = int(row["epoch"])
    return Step(epoch, row, pictures_of(run, epoch, upload_brain_images=upload_brain_images))


def config_of(record: RunRecord) -> dict[str, str | int | float]:
    """What made the run, flat: its settings (not those that its model makes no use of), cohort, device, versions."""
    told = record.config.model_dump(mode="json", exclude_none=True)
    if "gamma_q" in told:
        told["gamma_e"] = round(1 - told["gamma_q"], 12)
    told["cohort"] = record.cohort_fingerprint
    if record.devices:
        told["device"] = record.devices[-1].name
    if record.audit and "source" in record.audit.git:
        told["commit"] = record.audit.git["source"].sha
    return {**told, **{f"versions/{name}": version for name, version in record.versions.items()}}


def kind_of(run: Run) -> str:
    """W&B's job type: an auto-encoder that the trials of a study share is no trial."""
    return "stage" if run.folder.parent.name == "stages" else "trial"


def tags_of(record: RunRecord, state: State = "running") -> tuple[str, ...]:
    """Words to filter runs by."""
    early = (state,) if state in ("pruned", "diverged", "collapsed") else ()
    version = (f"v{record.versions['somvq']}",) if "somvq" in record.versions else ()
    return (record.config.model, record.config.reading, *version, *early)


def summary_of(run: Run, state: State) -> dict[str, str | int]:
    """How the run ended, or for now."""
    progress = run.progress()
    error = {"trial/error": progress.error or "unknown"} if state == "failed" else {}
    return {"trial/state": state, "trial/attempts": progress.attempts, **error}


def pictures_of(run: Run, epoch: int, *, upload_brain_images: bool) -> dict[str, Path]:
    """The figures of `epoch` that leave, by their keys: none of a brain unless that was said, and no more than fit.

    Decided by the run's folder alone, so that a replay sends the same.
    """
    names = PICTURES.keys() - (frozenset() if upload_brain_images else BRAIN_PICTURES)
    found = [path for name, path in run.figures_of(epoch).items() if name in names and is_whole(path)]
    if found and epoch == run.record.config.epochs:
        found = fitting(found, LAST_BYTES)
    elif found:
        fit = fitting(filter(is_whole, drawn(run, names, epoch)), EARLIER_BYTES)
        found = [path for path in found if path in fit]
    return {MEDIA + name_of(path): path for path in found}


def drawn(run: Run, names: Collection[str], until: int) -> list[Path]:
    """The figures `names` of all epochs until one, oldest first; what else lies beside them is not ours to send."""
    figures = [path for name in names for path in run.figures.glob(f"{name}_[0-9]*.png")]
    return sorted((path for path in figures if epoch_of(path) <= until), key=lambda path: (epoch_of(path), path.name))


def is_whole(path: Path) -> bool:
    """Whether `path` is a PNG from its begin to its end: wandb would not take the row of another."""
    content = path.read_bytes() if path.is_file() else b""
    return content.startswith(b"\x89PNG") and content.endswith(b"IEND\xaeB`\x82")


def fitting(paths: Iterable[Path], room: float) -> list[Path]:
    """The first of `paths` that have room, and later ones that still have."""
    fit = []
    for path in paths:
        size = path.stat().st_size
        if size <= room:
            room -= size
            fit.append(path)
    return fit


def digest(path: Path) -> str:
    """What wandb adds to the name of a picture's file."""
    return sha256(path.read_bytes()).hexdigest()[:20]


def name_of(path: Path) -> str:
    """A figure's name."""
    return path.stem.rpartition("_")[0]


def epoch_of(path: Path) -> int:
    """A figure's epoch."""
    return int(path.stem.rpartition("_")[2])


def contents_table() -> str:
    """All keys that a run's page has, in Markdown."""
    settings = {name: field.description or "" for name, field in RunConfig.model_fields.items()}
    pictures = {MEDIA + name: f"{words}{BRAIN if name in BRAIN_PICTURES else ''}" for name, words in PICTURES.items()}
    parts = {
        "Config": rows_of({**settings, **DERIVED}, units=False),
        "History: a row an epoch, at the step of its number": rows_of({"epoch": "number of the epoch", **METRICS}),
        "Media, in the rows of epochs that are drawn": rows_of(pictures, units=False),
        "Summary, beside the last value of each metric": rows_of(SUMMARY, units=False),
    }
    return "\n".join(f"## {title}\n\n" + "\n".join(rows) + "\n" for title, rows in parts.items())


BRAIN = "; only with `--upload-brain-images`"
