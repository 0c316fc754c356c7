"""What the trials of a study share: an auto-encoder trained once, by whoever needs it first."""

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from somvq.config import RunConfig, signature
from somvq.runs import Run
from somvq.study.record import StudyRecord

Train = Callable[[Run], None]


def stage_runs(record: StudyRecord, config: RunConfig) -> dict[str, Run]:
    """The runs of the auto-encoders that trials like `config` start from, "ae" or "vae"."""
    return {kind: stage_run(record, kind, stage) for kind, stage in config.stages(record.seed).items()}


def stage_run(record: StudyRecord, kind: str, config: RunConfig) -> Run:
    """The run of one shared auto-encoder; named by all that decides its weights."""
    key = signature([config.model_dump(mode="json"), record.cohort_fingerprint])
    told = record.run_record(config, label=f"{kind}-{key[:6]}", stages={})
    return Run.create(record.folder / "stages" / f"{kind}-{key}", told)


def ensure_stage(run: Run, train: Train, while_waiting: Callable[[], None]) -> None:
    """Has `run` trained, here or by another worker; one killed in the middle is gone on with."""
    if run.progress().state == "complete":
        return
    with turn(run.folder / ".stage.lock", while_waiting):
        if run.progress().state != "complete":
            train(run)


@contextmanager
def turn(path: Path, while_waiting: Callable[[], None]) -> Iterator[None]:
    """Holds the lock file `path`, calling `while_waiting` until it is ours; that may raise to give up."""
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                while_waiting()
                time.sleep(0.5)
        yield
