"""Bare Optuna under the same blows: study.optimize with heartbeats, in processes that are killed and started again."""

import json
import multiprocessing
import os
import random
import time
import warnings
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path

import optuna
from drills import EPOCHS, Seen, wait_until
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import MaxTrialsCallback
from optuna.trial import FrozenTrial, TrialState

STUDY = "bare"
PATIENCE_S = 180.0


def open_storage(folder: Path, *, heartbeat: bool) -> RDBStorage:
    url, patience = f"sqlite:///{folder / 'bare.db'}", {"connect_args": {"timeout": 60}}
    if not heartbeat:
        return RDBStorage(url, engine_kwargs=patience)
    retry = RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)
    return RDBStorage(
        url, engine_kwargs=patience, heartbeat_interval=1, grace_period=2, heartbeat_stale_trial_callback=retry
    )


def logical(trial: FrozenTrial) -> int:
    """The number of the first attempt at a trial."""
    first = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
    return trial.number if first is None else first


def take_trials(folder: Path, asked: int, epoch_s: float, heartbeat: bool) -> None:
    """One worker: trials go on from a checkpoint, as in Optuna's example of it."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")

    def objective(trial: optuna.Trial) -> float:
        gamma = trial.suggest_float("gamma", 0.1, 1.0)
        number = logical(study._storage.get_trial(trial._trial_id))
        checkpoint = folder / f"{number:04d}.json"
        last = json.loads(checkpoint.read_text())["epoch"] if checkpoint.exists() else 0
        for epoch in range(last + 1, EPOCHS + 1):
            with (folder / "begun.log").open("a") as log:
                log.write(f"{number:04d} {epoch}\n")
            time.sleep(epoch_s)
            partial = checkpoint.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps({"epoch": epoch}))
            partial.replace(checkpoint)
            trial.report(gamma / epoch, epoch)
        return gamma

    study = optuna.load_study(study_name=STUDY, storage=open_storage(folder, heartbeat=heartbeat))
    study.optimize(objective, callbacks=[MaxTrialsCallback(asked)])


def run_bare(folder: Path, workers: int, asked: int, epoch_s: float, *, kills: int = 0, seed: int = 0) -> Seen:
    """Until every worker says that it is done; the killed are started again. Counts are of logical trials."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir(parents=True)
    warnings.simplefilter("ignore")
    storage = open_storage(folder, heartbeat=kills > 0)
    study = optuna.create_study(study_name=STUDY, storage=storage)
    start, chosen, done = multiprocessing.get_context("spawn"), random.Random(seed), 0

    def begin() -> BaseProcess:
        process = start.Process(target=take_trials, args=(folder, asked, epoch_s, kills > 0))
        process.start()
        return process

    began, running, crashes = time.monotonic(), [begin() for _ in range(workers)], 0
    wait_until(lambda: (folder / "begun.log").exists())
    due = time.monotonic() + chosen.uniform(0.3, 1.5)
    while any(process.exitcode != 0 for process in running) and time.monotonic() - began < PATIENCE_S:
        time.sleep(0.05)
        alive = [process for process in running if process.is_alive()]
        if done < kills and time.monotonic() > due and alive:
            chosen.choice(alive).kill()
            done, due = done + 1, time.monotonic() + chosen.uniform(0.3, 1.5)
        crashes += sum(process.exitcode not in (None, 0, -9) for process in running)
        running = [begin() if process.exitcode not in (None, 0) else process for process in running]
    for process in running:
        process.kill()
    return count(study, folder, asked, time.monotonic() - began, done, crashes)


def count(study: optuna.Study, folder: Path, asked: int, seconds: float, kills: int, crashes: int) -> Seen:
    trials = study.get_trials(deepcopy=False)
    ended = Counter(logical(trial) for trial in trials if trial.state == TrialState.COMPLETE)
    begun = Counter((folder / "begun.log").read_text().splitlines())
    stuck = sum(trial.state in (TrialState.RUNNING, TrialState.WAITING) for trial in trials)
    begun_trials = len({logical(trial) for trial in trials})
    notes = [f"{begun_trials} logical trials begun"] + ([f"{crashes} workers crashed by themselves"] if crashes else [])
    twice = sum(times - 1 for times in ended.values()) + max(0, len(ended) - asked)
    return Seen(asked, len(ended), stuck, sum(begun.values()) - len(begun), twice, seconds, kills, notes)
