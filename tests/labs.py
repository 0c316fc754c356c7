"""A working folder as a user has it, in which real commands train by `light/`: epochs without work."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import somvq
from somvq.runs import Run

LIGHT = Path(__file__).with_name("light")
SOURCE = Path(somvq.__file__).parent.parent
SOMVQ = [sys.executable, "-m", "somvq"]
SWEEP = """
method: random
metric: {name: val/ssim, goal: maximize}
parameters:
  model: {value: psom}
  init: {value: random}
  grid: {value: 4x4}
  epochs: {value: 4}
  gamma: {min: 0.1, max: 1.0}
"""


class Lab:
    """Commands in `folder`, and what they leave there."""

    def __init__(self, folder: Path, scans: Path, cohorts: Path):
        self.folder = folder
        (folder / "somvq.yaml").write_text(f"cohort: {scans}\ncohorts: {cohorts}\nwandb: disabled\n")
        (folder / "sweeps").mkdir()
        self.write_sweep(SWEEP)
        sources = f"{LIGHT}:{SOURCE}"  # the somvq of these tests, whichever is installed
        self.environment = {"PYTHONPATH": sources, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        self.started: list[subprocess.Popen[str]] = []

    def write_sweep(self, text: str, name: str = "tiny") -> None:
        (self.folder / "sweeps" / f"{name}.yaml").write_text(text)

    def plan(self, study: str = "tiny", **plan: Any) -> None:
        """What befalls whom: see light/light_training.py."""
        path = self.folder / "runs" / study / "plan.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(plan))

    def start(self, *words: str, before: tuple[str, ...] = (), **environment: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [*before, *SOMVQ, *words],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, **self.environment, **environment},
        )
        self.started.append(process)
        return process

    def run(self, *words: str, status: int = 0, **environment: str) -> str:
        """What a command prints; it must end with `status`."""
        process = self.start(*words, **environment)
        output = process.communicate(timeout=180)[0]
        assert process.returncode == status, f"{process.returncode}: {output}"
        return output

    def status(self, study: str = "tiny") -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("status", study, "--json"))
        return found

    def run_of(self, number: int, study: str = "tiny") -> Run:
        return Run(self.folder / "runs" / study / f"{number:04d}")

    def begun(self, study: str = "tiny") -> Counter[tuple[str, int]]:
        """How often each epoch of each run was begun."""
        lines = (self.folder / "runs" / study / "begun.log").read_text().splitlines()
        return Counter((name, int(epoch)) for name, epoch in map(str.split, lines))

    def end(self) -> None:
        """Leaves no process behind."""
        for process in self.started:
            for pid in descendants(process.pid):
                kill(pid, signal.SIGKILL)
            if process.poll() is None:
                kill(process.pid, signal.SIGKILL)
                process.communicate()


def descendants(pid: int) -> list[int]:
    """The processes that `pid` started, and theirs."""
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [each for child in children for each in (child, *descendants(child))]


def kill(pid: int, number: signal.Signals) -> bool:
    """Whether there was such a process."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def wait_until(so: Callable[[], Any], seconds: float = 60, process: "subprocess.Popen[str] | None" = None) -> None:
    deadline = time.monotonic() + seconds
    while not so():
        assert process is None or process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)
