"""Workers without training: a thread in place of each attempt's process, and a clock on each step of the worker's own.

What is measured so is the worker's work alone. The start of a training process (seconds: it loads torch) is left out.
"""

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.study import Study

from somvq.runs import Run
from somvq.settings import Settings
from somvq.storages import STORAGES
from somvq.study import child, claim, trial, worker
from somvq.study.lease import Lease
from somvq.study.record import OpenStudy

SWEEP = """
method: bayes
metric: {name: val/ssim, goal: maximize}
parameters:
  model: {value: psom}
  init: {value: random}
  grid: {value: 4x4}
  epochs: {value: EPOCHS}
  topology: {values: [toroidal, rectangular]}
  alpha: {min: 5.0, max: 15.0, distribution: log_uniform_values}
  beta: {min: 2.0e-3, max: 3.0e-2, distribution: log_uniform_values}
  gamma: {min: 0.3, max: 1.2, distribution: log_uniform_values}
  gamma_q: {min: 0.15, max: 0.45}
"""


def write_sweep(folder: Path, epochs: int) -> str:
    """A sweep of five parameters; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "short.yaml"
    path.write_text(SWEEP.replace("EPOCHS", str(epochs)))
    return str(path)


class Asleep:
    """In place of the process of an attempt: appends the epochs' rows at even times, then says that it is complete."""

    seconds = 1.0
    made: list["Asleep"] = []  # noqa: RUF012

    def __init__(self, folder: Path, log: Path, lease: Lease | None = None):
        self.run, self.began, self.ended, self.noticed = Run(folder), time.perf_counter(), 0.0, 0.0
        self.pid, self.returncode = os.getpid(), None
        self.thread = threading.Thread(target=self.train)
        self.thread.start()
        self.made.append(self)

    def train(self) -> None:
        self.run.set_state("running", new_attempt=True)
        epochs = self.run.record.config.epochs
        for epoch in range(1, epochs + 1):
            time.sleep(self.seconds / epochs)
            self.run.append({"epoch": epoch, "val/ssim": 1 - 1 / (epoch + 1), "time/epoch_s": self.seconds / epochs})
        self.run.set_state("complete")
        self.ended = time.perf_counter()

    def poll(self) -> int | None:
        if not self.ended:
            return None
        self.noticed, self.returncode = self.noticed or time.perf_counter(), 0
        return 0

    def wait(self, timeout: float | None = None) -> int | None:
        self.thread.join(timeout)
        return self.poll()

    def terminate(self) -> None:
        """Sleeps on: it is nearly over."""

    kill = terminate


class Steps:
    """Seconds spent in each step, without those of the steps within it."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.within: list[float] = []
        self.undo: list[Callable[[], None]] = []

    def clock(self, label: str, owner: Any, name: str) -> None:
        """Clocks calls of `owner.name` from now on."""
        self.put(owner, name, lambda call: lambda *args, **named: self.timed(label, lambda: call(*args, **named)))

    def clock_waiting(self, label: str, owner: Any, name: str) -> None:
        """Clocks what the context `owner.name` needs to be entered and left."""

        def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
            @contextmanager
            def entered(*args: Any) -> Iterator[None]:
                context = call(*args)
                self.timed(label, context.__enter__)
                try:
                    yield
                finally:
                    self.timed(label, lambda: context.__exit__(None, None, None))

            return entered

        self.put(owner, name, wrap)

    def put(self, owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
        was = owner.__dict__[name]
        plain = getattr(owner, name)
        self.undo.append(lambda: setattr(owner, name, was))
        setattr(owner, name, staticmethod(wrap(plain)) if isinstance(was, classmethod) else wrap(plain))

    def timed(self, label: str, call: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        self.within.append(0.0)
        try:
            return call()
        finally:
            took = time.perf_counter() - began
            self.seconds[label] += took - self.within.pop()
            if self.within:
                self.within[-1] += took


def clock_worker(scheme: str) -> Steps:
    """Clocks on all that a worker does for a trial, in this process."""
    steps = Steps()
    steps.clock_waiting("wait for the claim lock", STORAGES[scheme], "exclusive")
    for label, owner, name in (
        ("claim: trials read, twins settled", worker, "claim_trial"),
        ("claim: suggest (TPE)", claim, "suggest"),
        ("claim: twin sought", claim, "find_twin"),
        ("claim: trial written and read back", claim, "ask"),
        ("claim: lease taken", Lease, "take"),
        ("before: stopped? hours used?", worker.Worker, "why_stop"),
        ("before: failed thrice in a row?", worker.Worker, "keeps_failing"),
        ("run's folder and config.json", trial.Conductor, "prepare"),
        ("attempt noted, twice", Run, "note_attempt"),
        ("ledger looked at, lease held", trial.Conductor, "attend"),
        ("epochs reported", trial.Conductor, "report"),
        ("end told: reasons, leases", trial.Conductor, "tell"),
        ("end told: constraints known and set", trial.Conductor, "constrain"),
        ("end told: Study.tell", Study, "tell"),
        ("lease released", Lease, "release"),
    ):
        steps.clock(label, owner, name)
    return steps


@contextmanager
def asleep(seconds: float) -> Iterator[list[Asleep]]:
    """Attempts are threads that sleep so long; gives those that were made."""
    start, Asleep.seconds, Asleep.made = child.start_attempt, seconds, []
    child.start_attempt = Asleep  # type: ignore[assignment, misc]
    try:
        yield Asleep.made
    finally:
        child.start_attempt = start


def work_quietly(opened: OpenStudy, settings: Settings) -> None:
    """One worker, in this process, until the study has all its trials."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        worker.Worker(opened, settings, worker.Stop()).work()
