"""Who trains what: trials are taken one at a time under a lock, and held by a lease that outlives nobody.

A trial whose worker died stays RUNNING in Optuna and is taken over by the next worker that looks: the same trial, the
same folder, from its checkpoint. So a study's trials are numbered without gaps, and their count is its budget.
"""

import json
import os
import secrets
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import FrozenTrial, Trial, TrialState

from somvq.config import derive_seed
from somvq.files import locked, write_json
from somvq.processes import start_of
from somvq.runs import Run
from somvq.study.record import OpenStudy, StudyRecord
from somvq.study.samplers import build_sampler
from somvq.study.space import distributions

BEAT_S = 10.0  # how often a worker says that it lives
LEASE_S = 120.0  # silence after which a worker on another machine is taken for dead


class Lease:
    """A worker's hold on a run: lease.json, with a token that tells its holder from all others."""

    def __init__(self, path: Path, token: str):
        self.path, self.token = path, token
        self.last_beat = time.monotonic()

    @classmethod
    def take(cls, folder: Path) -> "Lease":
        """Takes the run at `folder` for this process, from whoever had it; call under the claim lock."""
        lease = cls(folder / "lease.json", secrets.token_hex(8))
        pid = os.getpid()
        content = {"token": lease.token, "host": socket.gethostname(), "pid": pid, "started": start_of(pid)}
        write_json(lease.path, content)
        return lease

    def beat(self) -> None:
        """Says that its holder lives, if it is time to say so again."""
        if time.monotonic() - self.last_beat > BEAT_S and self.held():
            self.last_beat = time.monotonic()
            os.utime(self.path)

    def held(self) -> bool:
        """Whether the run is still ours: a worker that was suspended may wake to find it given away."""
        return read_lease(self.path).get("token") == self.token

    def release(self) -> None:
        """Lets the run go."""
        if self.held():
            self.path.unlink(missing_ok=True)


def read_lease(path: Path) -> dict[str, object]:
    """What the lease says; nothing if there is none."""
    try:
        content: dict[str, object] = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return content


def is_alive(path: Path) -> bool:
    """Whether the holder of the lease at `path` lives: by its process on this machine, by its beats on another."""
    lease = read_lease(path)
    if not lease:
        return False
    if lease["host"] == socket.gethostname():
        return start_of(int(str(lease["pid"]))) == lease["started"] and lease["started"] is not None
    clock = path.with_name(".clock")  # the file server's time, not ours: clocks of two machines differ
    clock.touch()
    return clock.stat().st_mtime - path.stat().st_mtime < LEASE_S


@dataclass(frozen=True)
class Claim:
    """A trial that this worker holds."""

    trial: Trial
    run: Run
    lease: Lease
    taken_over: bool


def claim_trial(opened: OpenStudy) -> Claim | None:
    """A trial to train: one whose worker died, else a new one; none when the study has all its trials."""
    with locked(opened.record.folder / ".claim.lock"):
        study, record = opened.study, opened.record
        trials = study.get_trials(deepcopy=False)
        study.sampler = build_sampler(record.sweep, derive_seed(record.seed, "ask", len(trials)))
        for trial in trials:
            if trial.state == TrialState.RUNNING and is_abandoned(opened, trial):
                return hold(record, Trial(study, trial._trial_id), taken_over=True)
        if len(trials) >= opened.target:
            return None
        return hold(record, study.ask(), taken_over=False)


def is_abandoned(opened: OpenStudy, trial: FrozenTrial) -> bool:
    """Whether nobody trains `trial` any more.

    Its state is read again after its lease: a worker that has just told its end lets go of the lease next.
    """
    if is_alive(opened.record.run(trial.number).folder / "lease.json"):
        return False
    return opened.study._storage.get_trial(trial._trial_id).state == TrialState.RUNNING


def hold(record: StudyRecord, trial: Trial, *, taken_over: bool) -> Claim:
    """Takes the lease of `trial`'s run, and has the parameters suggested that it has not got yet."""
    for name, distribution in distributions(record.sweep).items():
        trial._suggest(name, distribution)  # as Study.ask does; a worker may be killed in the middle of it
    run = record.run(trial.number)
    run.folder.mkdir(parents=True, exist_ok=True)
    return Claim(trial, run, Lease.take(run.folder), taken_over)
