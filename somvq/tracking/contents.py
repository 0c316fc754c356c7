"""What W&B is told of a run beside its ledger's rows. No part of it names a file, a folder, a person or a machine."""

from pathlib import Path
from typing import Any

from somvq.runs import Run, RunRecord, State

MEDIA = "media/"
# Figures that show slices of a scan; and what nodes decode to, which of a small cohort may be one person's tissue
BRAIN_PICTURES = frozenset({"reconstruction", "projection", "decoded_nodes"})


def config_of(record: RunRecord) -> dict[str, Any]:
    """What the page says of the run's making: settings, cohort and versions, no names of files or people."""
    versions = {f"versions/{name}": version for name, version in record.versions.items()}
    return {**record.config.model_dump(mode="json"), "cohort": record.cohort_fingerprint, **versions}


def kind_of(run: Run) -> str:
    """W&B's job type: an auto-encoder that the trials of a study share is no trial."""
    return "stage" if run.folder.parent.name == "stages" else "trial"


def tags_of(record: RunRecord, state: State = "running") -> tuple[str, ...]:
    """Words to filter runs by."""
    return (state,) if state in ("pruned", "diverged", "collapsed") else ()


def summary_of(run: Run, state: State) -> dict[str, str | int]:
    """How the run ended, or for now."""
    return {"trial/state": state}


def pictures_of(run: Run, epoch: int, *, upload_brain_images: bool) -> dict[str, Path]:
    """The figures of `epoch` that may leave this machine, by their keys."""
    found = run.figures_of(epoch).items()
    return {MEDIA + name: path for name, path in found if upload_brain_images or name not in BRAIN_PICTURES}
