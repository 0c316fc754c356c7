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


def stage_run(record: StudyRecord, config: RunConfig) -> Run:
    """The run of the auto-encoder that trials like `config` start from; named by all that decides its weights."""
    autoencoder = config.autoencoder(record.seed)
    key = signature([autoencoder.model_dump(mode="json"), record.cohort_fingerprint])
    told = record.run_record(autoencoder, label=f"ae-{key[:6]}", stage=None)
    return Run.create(record.folder / "stages" / f"ae-{key}", told)


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
