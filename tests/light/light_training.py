"""Epochs of no work, on disk as real ones are: what surrounds training is tested with it, in real processes.

A study's plan.json says how long an epoch takes and what befalls whom:
{"epoch_s": 0.05, "trials": {"0003": {"values": [0.1, 0.2], "raise": "diverged", "at": 2}}}
Each epoch begun is a line of the study's begun.log, so that none can be repeated unnoticed.
"""

import json
import os
import time
from collections.abc import Callable
from typing import Any

from somvq.files import write_whole
from somvq.health import Collapsed, Diverged
from somvq.runs import Run

ERRORS: dict[str, Exception] = {
    "diverged": Diverged("train/loss became nan"),
    "collapsed": Collapsed("one code has every token"),
    "memory": MemoryError("allocate 3 GiB"),
    "infrastructure": OSError(5, "Input/output error"),
    "bug": ValueError("a bug"),
}


class Interrupted(Exception):
    pass


def fit(run: Run, should_stop: Callable[[], bool], still_ours: Callable[[], bool]) -> None:
    study = run.folder.parent.parent if run.folder.parent.name == "stages" else run.folder.parent
    plan = read_plan(study / "plan.json")
    own = plan.get("trials", {}).get(run.folder.name, {})
    last = json.loads(run.checkpoint.read_text()) if run.checkpoint.exists() else None
    if last is not None:
        run.reconcile(last)
    for epoch in range(int(last["epoch"]) + 1 if last else 1, run.record.config.epochs + 1):
        note(study, f"{run.folder.name} {epoch}")
        if own.get("at", 0) == epoch and not fits(run, own):
            befall(own)
        began = time.monotonic()
        while time.monotonic() - began < own.get("epoch_s", plan.get("epoch_s", 0.05)):
            if should_stop():
                raise Interrupted(f"stopped in epoch {epoch}")
            time.sleep(0.01)
        row = {"epoch": epoch, **measure(run, own, epoch), "time/epoch_s": time.monotonic() - began}
        if not still_ours():
            raise Interrupted(f"given to another in epoch {epoch}")
        write_whole(run.checkpoint, lambda file, row=row: file.write(json.dumps(row).encode()))  # type: ignore[misc]
        run.append(row)


def fits(run: Run, own: dict[str, Any]) -> bool:
    """Whether memory suffices for so many scans at once."""
    return own["raise"] == "memory" and run.progress().micro_batch == own["fits"]


def read_plan(path: Any) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return plan


def measure(run: Run, own: dict[str, Any], epoch: int) -> dict[str, float]:
    config = run.record.config
    value = own["values"][epoch - 1] if "values" in own else 1 - 0.5 * (config.gamma or 0.5) - 0.3 / epoch
    return {"val/ssim": value, "val/mse": 1 - value, "codebook/used_share": config.gamma or 0.5}


def befall(own: dict[str, Any]) -> None:
    if own["raise"] == "segfault":
        os.kill(os.getpid(), 11)
    raise ERRORS[own["raise"]]


def note(study: Any, line: str) -> None:
    descriptor = os.open(study / "begun.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)
