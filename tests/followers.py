"""A process that tracks runs as a worker does, for tests and benchmarks of tracking."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from somvq.runs import Run

ROOT = Path(__file__).parents[1]
POISON = "sub-0666-Doe"  # names a person: in every path that a run knows
CLEAN: dict[str, str] = {}
WORKER = """
import json, sys, time
from pathlib import Path
from somvq.runs import Run
from somvq.tracking import resolve
from somvq.tracking.wandb import WandbTracker

tracker = WandbTracker(resolve("auto"), **json.loads(sys.argv[1]))
for line in sys.stdin:
    command, argument, *timeout = json.loads(line)
    start = time.monotonic()
    if command == "follow":
        tracker.follow(Run(Path(argument)))
    else:
        tracker.finish(argument, timeout_s=timeout[0] if timeout else 15.0)
    print(time.monotonic() - start, flush=True)
"""


def can_rename_host() -> bool:
    """Whether a process here may have a host name of its own."""
    return subprocess.run(["unshare", "--uts", "true"], capture_output=True, check=False).returncode == 0


class Worker:
    """A process that tracks runs, as a worker does; it is told what to do, and answers with the seconds it took."""

    def __init__(
        self,
        home: Path,
        *,
        url: str = "http://127.0.0.1:9",
        key: str = "",
        poison: dict[str, str] = CLEAN,
        **options: Any,
    ):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        environment |= {"HOME": str(home), "PYTHONPATH": str(ROOT), "WANDB_BASE_URL": url, "WANDB_API_KEY": key}
        command = [sys.executable, "-W", "error", "-c", WORKER, json.dumps({"poll_s": 0.1} | options), *poison.values()]
        if poison and can_rename_host():
            command = ["unshare", "--uts", "sh", "-c", f'hostname {POISON} && exec "$0" "$@"', *command]
        self.process = subprocess.Popen(
            command,
            env=environment | poison,
            cwd=home,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def follow(self, run: Run) -> float:
        return self._tell("follow", str(run.folder))

    def finish(self, *arguments: Any) -> float:
        return self._tell("finish", *arguments)

    def _tell(self, *command: Any) -> float:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline() or "nan")

    def core(self) -> int:
        """The process id of wandb-core."""
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return next(int(child) for file in children for child in file.read_text().split())
