"""The one training loop."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from somvq import figures, gallery
from somvq.audit import read_device
from somvq.checkpoints import load_checkpoint, save_checkpoint
from somvq.config import Split, batch_size, derive_seed
from somvq.data.cohort import Cohort
from somvq.errors import RunError
from somvq.health import check, finite
from somvq.initialisers import initialise
from somvq.initialisers.start import Kind, Start, Tokens
from somvq.models import Model, body_of, build_model
from somvq.models.discrete import flatten
from somvq.runs import Row, Run
from somvq.validation import Validation, blank_error, mean_image_baseline, objective, survey, validate


class Interrupted(Exception):
    """Training was asked to stop; its checkpoint goes on."""


class Scans:
    """A cohort's volumes as batches on `device`: held whole on a GPU if they fit, else read from the map as needed."""

    def __init__(self, cohort: Cohort, device: torch.device):
        self.cohort, self.device = cohort, device
        self.on_read: Callable[[int], None] = lambda scans: None  # told how many, for who shows progress
        self.held: Tensor | None = None
        size = cohort.volumes.nbytes
        if device.type == "cuda" and size < 0.5 * torch.cuda.mem_get_info(device)[0]:
            self.held = torch.from_numpy(np.array(cohort.volumes)).to(device)

    def read(self, rows: Sequence[int]) -> Tensor:
        """Scans `rows`, float32 (B, 1, X, Y, Z)."""
        self.on_read(len(rows))
        if self.held is not None:
            return self.held[list(rows)].float()[:, None]
        shape, on_gpu = (len(rows), *self.cohort.index.shape), self.device.type == "cuda"
        scans = torch.empty(shape, dtype=torch.float16, pin_memory=on_gpu)  # torch re-uses it only after its copy
        scans.numpy()[:] = self.cohort.volumes[list(rows)]
        return scans.to(self.device, non_blocking=True).float()[:, None]

    def batches(self, rows: Sequence[int], size: int) -> Iterator[Tensor]:
        """Scans `rows` in order, `size` at a time."""
        for first in range(0, len(rows), size):
            yield self.read(rows[first : first + size])


def fit(
    run: Run, should_stop: Callable[[], bool] = lambda: False, still_ours: Callable[[], bool] = lambda: True
) -> None:
    """Trains `run` from its checkpoint, or from its start, to its last epoch.

    The same settings and seed on the same CPU give the same bits, interrupted or not: everything random in an epoch
    is seeded by the run's seed and the epoch's number.

    Raises:
        Diverged, Collapsed: it has come to nothing (health.py); what it had before is kept.
        Interrupted: `should_stop` said so, or the run is not `still_ours` to write to; the epoch in progress is lost,
            nothing else.
    """
    training = Training(run)
    run.note_device(read_device())
    mean_image_baseline(training.cohort)
    trained, blank = training.restore(), blank_error(training.cohort)
    if trained:  # killed before it could say so, perhaps
        check(run.rows(), training.config, blank)
    for epoch in range(trained + 1, training.config.epochs + 1):
        began = time.monotonic()
        row = training.train(epoch, should_stop)
        validation = training.validate("val", epoch)
        row = {"epoch": epoch, **row, **validation.row}
        if epoch == training.config.epochs:
            row |= training.survey("val", validation)
        row["time/epoch_s"] = time.monotonic() - began
        if not still_ours():
            raise Interrupted(f"given to another in epoch {epoch}")
        training.save(epoch, row)  # the checkpoint first: a kill after it repeats no epoch
        training.draw(epoch, row, validation)
        run.append(row)  # last: whoever follows the ledger finds the epoch's figures there
        check(run.rows(), training.config, blank)


class Training:
    """A run in memory: model, optimiser, cohort.

    Where the run's micro_batch says so, the convolutions of a batch run in passes of fewer scans (models/passes.py).
    """

    def __init__(self, run: Run):
        self.run, self.config = run, run.record.config
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        cohort = Cohort(run.record.cohort)
        if cohort.fingerprint != run.record.cohort_fingerprint:
            raise RunError(f"{run.folder} was begun on cohort {run.record.cohort_fingerprint}, "
                           f"but {cohort.folder} is {cohort.fingerprint}")  # fmt: skip
        self.cohort, self.scans = cohort, Scans(cohort, self.device)
        self.batch = batch_size(self.config.batch_size, len(cohort.rows["train"]))
        torch.manual_seed(self.config.seed)
        self.model: Model = build_model(self.config).to(self.device)
        self.at_once = min(run.progress().micro_batch or self.batch, self.batch)
        body_of(self.model).scans_at_once = self.at_once if self.at_once < self.batch else None
        self.optimiser = torch.optim.Adam(self.model.parameters(), self.config.learning_rate)

    def restore(self) -> int:
        """Puts the run where its checkpoint left it, or its initialiser starts it; the epochs already trained."""
        row = self.load()
        if row is None:
            self.initialise()
            return 0
        epoch = int(row["epoch"])
        if len(self.run.rows()) < epoch:  # killed between its checkpoint and its last figure
            self.draw(epoch, row, self.validate("val"))
        self.run.reconcile(row)
        return epoch

    def load(self) -> Row | None:
        """Makes model and optimiser what the checkpoint holds, and changes no file; its row, none without one."""
        saved = load_checkpoint(self.run.checkpoint, str(self.device))
        if saved is None:
            return None
        self.model.load_state_dict(saved["model"])
        self.optimiser.load_state_dict(saved["optimiser"])
        row: Row = saved["row"]
        return row

    def initialise(self) -> None:
        """Starts weights and codes as the settings say."""
        seed = derive_seed(self.config.seed, "init")
        initialise(self.model, self.config, Start(seed, self.training_tokens, self.batch, self.stage_weights()))

    def stage_weights(self) -> dict[Kind, dict[str, Tensor]]:
        """The weights of the study's trained auto-encoders, where the initialiser needs them."""
        weights = {}
        for kind, stage in self.run.record.stages.items():
            saved = load_checkpoint(self.run.folder / stage / "checkpoint.pt", str(self.device))
            if saved is None:
                where = self.run.folder / stage
                raise RunError(f"{where} holds no trained auto-encoder; delete it and it is trained again")
            weights[cast(Kind, kind)] = saved["model"]
        return weights

    @torch.no_grad()
    def training_tokens(self, encoder: nn.Module, scans: int | None = None) -> Tokens:
        """Tokens of the training set, or of its first `scans`, in eval mode, and how much of each is brain."""
        encoder.to(self.device).eval()
        rows = self.cohort.rows["train"][:scans]
        values = torch.cat([flatten(encoder(part)).float() for part in self.scans.batches(rows, self.at_once)])
        return Tokens(values, torch.from_numpy(self.cohort.share_of_brain(rows)).flatten().to(self.device))

    def train_batches(self) -> Iterator[Tensor]:
        """The training set in order."""
        return self.scans.batches(self.cohort.rows["train"], self.batch)

    def autocast(self) -> torch.autocast:
        """bfloat16 where it helps: on a GPU, unless told otherwise."""
        wanted = {"auto": self.device.type == "cuda", "float32": False, "bfloat16": True}[self.config.precision]
        return torch.autocast(self.device.type, torch.bfloat16, enabled=wanted)

    def train(self, epoch: int, should_stop: Callable[[], bool]) -> Row:
        """One epoch over the training set in a seeded order; the mean of each term over its steps."""
        torch.manual_seed(derive_seed(self.config.seed, epoch))
        self.set_rate(epoch)
        rows = self.cohort.rows["train"]
        order = torch.randperm(len(rows))
        self.model.train()
        with self.autocast():
            self.model.start_epoch(self.train_batches(), (epoch - 1) / max(self.config.epochs - 1, 1))
        terms = []
        for places in order.split(self.batch):
            if should_stop():
                raise Interrupted(f"stopped in epoch {epoch}")
            terms.append(self.step([rows[place] for place in places], places.to(self.device)))
        means = {name: float(torch.stack([term[name] for term in terms]).mean()) for name in terms[0]}
        return finite({f"train/{name}": value for name, value in means.items()}, epoch)

    def set_rate(self, epoch: int) -> None:
        """The learning rate of `epoch`, by the schedule: decided by its number, so that a resumed run has it too."""
        rate = self.config.learning_rate * share_of_rate(epoch, self.config.epochs, self.config.schedule)
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    def step(self, rows: Sequence[int], places: Tensor) -> dict[str, Tensor]:
        """One step of the optimiser on scans `rows`, the training set's `places`."""
        with self.autocast():
            losses = self.model(self.scans.read(rows), places).losses
        loss = objective(self.model, losses)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return {name: term.detach() for name, term in {"loss": loss, **losses}.items()}

    def validate(self, split: Split, epoch: int | None = None) -> Validation:
        """Every metric over the whole of `split`, in eval mode; training asks for "val" alone."""
        validation = validate(self.model, self.scans.batches(self.cohort.rows[split], self.batch), self.autocast)
        return validation._replace(row=finite(validation.row, epoch))

    def survey(self, split: Split, validation: Validation) -> Row:
        """What is measured once, of the trained model; `validation` is of the same `split`."""
        rows = self.cohort.rows[split]
        return survey(self.model, self.cohort, rows, self.scans.read, self.autocast, validation)

    def save(self, epoch: int, row: Row) -> None:
        """The run whole, after `epoch`."""
        content: dict[str, Any] = {
            "epoch": epoch,
            "row": row,
            "config": self.config.model_dump(mode="json"),
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        save_checkpoint(self.run.checkpoint, content)

    def draw(self, epoch: int, row: Row, validation: Validation) -> None:
        """The figures of `epoch`, if it is one of those that are drawn."""
        if not gallery.figures_due(epoch, self.config.epochs):
            return
        drawn = gallery.draw_epoch(self.model, validation)
        if epoch == self.config.epochs:
            brain = self.cohort.brain(self.cohort.rows["val"][0])
            drawn |= gallery.draw_last(self.model, validation, brain, [*self.run.rows(), row])
        for name, figure in drawn.items():
            figures.save(figure, self.run.figure(name, epoch))


def share_of_rate(epoch: int, epochs: int, schedule: str) -> float:
    """How much of the learning rate `epoch` (from 1) has; "cosine" rises for an eighth of the run, then falls to 0.

    It rises because Adam knows nothing yet: at the full rate, the first epoch took a trained auto-encoder's tokens
    further from a codebook that had just been placed among them than the run could mend.
    """
    if schedule == "constant":
        return 1.0
    rising = epochs // 8
    if epoch <= rising:
        return epoch / (rising + 1)
    return (1 + math.cos(math.pi * (epoch - 1 - rising) / (epochs - rising))) / 2
