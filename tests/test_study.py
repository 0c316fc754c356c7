import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.trial import TrialState

from somvq.data.cohort import Cohort
from somvq.definitions import Sweep
from somvq.errors import StudyError
from somvq.processes import machine, start_of
from somvq.settings import Settings
from somvq.study import child
from somvq.study import claim as claim_module
from somvq.study.claim import Claim, claim_trial
from somvq.study.lease import Lease, is_alive
from somvq.study.record import OpenStudy, StudyRecord, create_or_resume, load_study
from somvq.study.status import read_status
from somvq.study.trial import Conductor
from somvq.tracking import Tracker

SPACE = {
    "model": {"value": "psom"},
    "init": {"value": "random"},
    "grid": {"value": "4x4"},
    "epochs": {"value": 3},
    "gamma": {"min": 0.1, "max": 1.0},
    "topology": {"values": ["toroidal", "rectangular"]},
}


def make_sweep(**changes: object) -> Sweep:
    told = {"metric": {"name": "val/ssim", "goal": "maximize"}, "parameters": SPACE, "name": "test", **changes}
    return Sweep.model_validate(told)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(runs=tmp_path / "runs", cohorts=tmp_path / "cohorts", wandb="disabled")


def begin(settings: Settings, cohort: Cohort, sweep: Sweep, *, trials: int, name: str = "test") -> OpenStudy:
    record = StudyRecord(
        name=name,
        uid="abcdef",
        seed=0,
        sweep=sweep,
        folder=settings.runs.resolve() / name,
        scans=cohort.folder,
        cohort_settings=cohort.index.settings,
        cohort=cohort.folder,
        cohort_fingerprint=cohort.fingerprint,
        cohort_summary=cohort.summary(),
        wandb_project="test",
    )
    opened, _ = create_or_resume(settings, record)
    opened.aim_for(trials)
    return opened


# Names


def test_a_study_refuses_another_cohort(settings: Settings, tiny_cohort: Cohort) -> None:
    opened = begin(settings, tiny_cohort, make_sweep(), trials=1)
    other = opened.record.model_copy(update={"cohort_fingerprint": "another"})
    with pytest.raises(StudyError, match=r"study 'test' is on another cohort: .* --study NAME"):
        create_or_resume(settings, other)


def test_an_unknown_study_is_answered_with_those_there_are(settings: Settings, tiny_cohort: Cohort) -> None:
    begin(settings, tiny_cohort, make_sweep(), trials=1)
    with pytest.raises(StudyError, match=r"no study 'tset' in .* \(there: test\)"):
        load_study(settings, "tset")


@pytest.mark.parametrize("name", ["../up", "", "a/b", "-x", "x" * 65])
def test_a_name_that_is_no_folder_is_refused(name: str, settings: Settings) -> None:
    with pytest.raises(StudyError, match="must be 1 to 64 letters"):
        load_study(settings, name)


# Claims

CLAIM = """
import os, sys
from pathlib import Path
from somvq.processes import machine, start_of
from somvq.settings import Settings
from somvq.study.claim import claim_trial
from somvq.study.record import load_study
import somvq.study.status as status
status.silence_optuna()
opened = load_study(Settings(runs=Path(sys.argv[1])), "test")
while claim := claim_trial(opened):
    print(claim.trial.number, int(claim.taken_over), flush=True)
    if sys.argv[2] == "hold":
        sys.stdin.read()
    if sys.argv[2] == "die":
        os.kill(os.getpid(), 9)
    opened.study.tell(claim.trial.number, 0.0)
    claim.lease.release()
"""


def claim_elsewhere(settings: Settings, manner: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", CLAIM, str(settings.runs), manner]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_workers_that_start_together_share_out_exactly_the_trials_asked_for(
    settings: Settings, tiny_cohort: Cohort
) -> None:
    opened = begin(settings, tiny_cohort, make_sweep(), trials=10)
    workers = [claim_elsewhere(settings, "tell") for _ in range(4)]
    taken = [line.split()[0] for process in workers for line in process.communicate()[0].splitlines()]
    assert sorted(map(int, taken)) == list(range(10))
    assert [trial.state for trial in opened.study.get_trials()] == [TrialState.COMPLETE] * 10


def test_a_dead_workers_trial_is_taken_over_and_a_living_ones_is_not(settings: Settings, tiny_cohort: Cohort) -> None:
    opened = begin(settings, tiny_cohort, make_sweep(), trials=2)
    living = claim_elsewhere(settings, "hold")
    assert living.stdout is not None
    assert living.stdout.readline() == "0 0\n"
    dead = claim_elsewhere(settings, "die")
    assert dead.communicate()[0] == "1 0\n"
    before = opened.study.get_trials()[1].params
    claim = claim_trial(opened)
    assert claim is not None
    assert (claim.trial.number, claim.taken_over) == (1, True)
    assert claim.trial.params == before
    assert claim_trial(opened) is None
    living.kill()
    living.communicate()
    claim = claim_trial(opened)
    assert claim is not None
    assert (claim.trial.number, claim.taken_over) == (0, True)


def test_a_trial_told_while_another_worker_looks_is_not_taken_again(
    settings: Settings, tiny_cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = begin(settings, tiny_cohort, make_sweep(), trials=1)
    claim = claim_trial(opened)
    assert claim is not None
    look = claim_module.is_alive

    def tell_just_before(path: Path) -> bool:
        opened.study.tell(claim.trial.number, 0.5)
        claim.lease.release()
        return look(path)

    monkeypatch.setattr(claim_module, "is_alive", tell_just_before)
    assert claim_trial(opened) is None


def test_a_worker_killed_while_it_asks_leaves_a_trial_that_gets_its_parameters_later(
    settings: Settings, tiny_cohort: Cohort
) -> None:
    opened = begin(settings, tiny_cohort, make_sweep(), trials=1)
    opened.study.ask()  # created, nothing suggested yet, no lease
    claim = claim_trial(opened)
    assert claim is not None
    assert (claim.trial.number, set(claim.trial.params)) == (0, {"gamma", "topology"})


def test_what_a_user_queued_with_optuna_is_trained_with_the_rest_suggested(
    settings: Settings, tiny_cohort: Cohort
) -> None:
    opened = begin(settings, tiny_cohort, make_sweep(), trials=1)
    opened.study.enqueue_trial({"gamma": 0.25})
    claim = claim_trial(opened)
    assert claim is not None
    assert (claim.trial.number, claim.taken_over) == (0, False)
    assert claim.trial.params["gamma"] == 0.25
    assert claim.trial.params["topology"] in ("toroidal", "rectangular")
    assert opened.study.get_trials()[0].state == TrialState.RUNNING
    assert claim_trial(opened) is None


def write_lease(folder: Path, **said: object) -> Path:
    holder = {"token": "t", "host": "elsewhere", "machine": "elsewhere@x/1", "pid": os.getpid(), "started": "before"}
    (folder / "lease.json").write_text(json.dumps({**holder, **said}))
    return folder / "lease.json"


def test_a_lease_on_another_host_dies_of_silence_by_the_file_servers_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = write_lease(tmp_path, seconds=50)
    monkeypatch.setattr(time, "time", lambda: 4e9)  # this machine's clock is wrong
    assert is_alive(tmp_path)
    now = lease.stat().st_mtime
    os.utime(lease, (now - 49, now - 49))
    assert is_alive(tmp_path)
    os.utime(lease, (now - 51, now - 51))
    assert not is_alive(tmp_path)


def test_another_process_with_the_same_number_is_not_the_holder(tmp_path: Path) -> None:
    write_lease(tmp_path, machine=machine())
    assert not is_alive(tmp_path)
    write_lease(tmp_path, machine=machine(), started=start_of(os.getpid()))
    assert is_alive(tmp_path)


def test_a_holder_that_lives_but_says_nothing_loses_its_run(tmp_path: Path) -> None:
    lease = Lease.take(tmp_path, seconds=0.3)
    assert is_alive(tmp_path)
    time.sleep(0.4)
    assert not is_alive(tmp_path)
    lease.beat()
    assert is_alive(tmp_path)
    successor = Lease.take(tmp_path)
    assert (lease.held(), successor.held()) == (False, True)
    lease.release()
    assert successor.held()


# Trials, with a child that stands in for training


def stand_in(folder: Path, log: Path, lease: Lease | None = None) -> "subprocess.Popen[bytes]":
    """Writes a ledger like an attempt's, in no time: SSIM as tests put it into plan.json."""
    code = """
import json, sys, time
from pathlib import Path
from somvq.runs import Run
run = Run(Path(sys.argv[1]))
plan = json.loads((run.folder.parent / "plan.json").read_text())[run.folder.name]
run.set_state("running", new_attempt=True)
for epoch, value in enumerate(plan["values"], 1):
    run.append({"epoch": epoch, **({"val/ssim": value} if value is not None else {})})
    time.sleep(plan.get("pause", 0))
if plan["state"] == "killed":
    import os
    os.kill(os.getpid(), 9)
run.set_state(plan["state"], plan.get("reason", ""))
"""
    return subprocess.Popen([sys.executable, "-c", code, str(folder)])


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "start_attempt", stand_in)


def conductor(opened: OpenStudy, claim: Claim, stopping: Callable[[], str] = lambda: "") -> Conductor:
    return Conductor(opened, claim, Tracker(), stopping, Settings())


def conduct_all(opened: OpenStudy, plan: dict[str, object]) -> list[str]:
    opened.record.folder.mkdir(parents=True, exist_ok=True)
    (opened.record.folder / "plan.json").write_text(json.dumps(plan))
    endings = []
    while claim := claim_trial(opened):
        endings.append(str(conductor(opened, claim).conduct()))
    return endings


@pytest.mark.usefixtures("planned")
def test_how_a_trial_ended_is_what_optuna_is_told(settings: Settings, tiny_cohort: Cohort) -> None:
    opened = begin(settings, tiny_cohort, make_sweep(), trials=4)
    plan = {
        "0000": {"values": [0.1, 0.2, 0.5], "state": "complete"},
        "0001": {"values": [0.1], "state": "diverged", "reason": "train/loss became nan"},
        "0002": {"values": [], "state": "failed", "reason": "ValueError: a bug"},
        "0003": {"values": [None, None, None], "state": "complete"},
    }
    assert conduct_all(opened, plan) == ["complete", "diverged", "failed", "complete"]
    trials = opened.study.get_trials()
    assert [t.state for t in trials] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.FAIL]
    assert trials[0].value == 0.5
    assert trials[0].intermediate_values == {1: 0.1, 2: 0.2, 3: 0.5}
    assert trials[1].user_attrs["reason"] == "train/loss became nan"
    status = read_status(opened)
    assert [t.state for t in status.trials] == ["done", "pruned", "failed", "failed"]
    assert status.trials[3].reason == "val/ssim was not measured"
    assert (status.finished, status.to_go) == (4, 0)


@pytest.mark.usefixtures("planned")
def test_an_attempt_that_is_always_killed_before_an_epoch_fails_instead_of_trying_for_ever(
    settings: Settings, tiny_cohort: Cohort
) -> None:
    opened = begin(settings, tiny_cohort, make_sweep(), trials=1)
    assert conduct_all(opened, {"0000": {"values": [], "state": "killed"}}) == ["failed"]
    status = read_status(opened).trials[0]
    assert status.attempts == 3
    assert status.reason.startswith("killed 3 times without finishing an epoch; see ")


@pytest.mark.usefixtures("planned")
def test_a_trial_that_lags_behind_is_stopped_and_pruned(settings: Settings, tiny_cohort: Cohort) -> None:
    rule = {"type": "hyperband", "min_iter": 1, "eta": 2}
    parameters = {**SPACE, "epochs": {"value": 50}}
    opened = begin(settings, tiny_cohort, make_sweep(early_terminate=rule, parameters=parameters), trials=3)
    good = {"values": [0.9] * 50, "state": "complete"}
    bad = {"values": [0.1] * 50, "state": "complete", "pause": 0.2}
    assert conduct_all(opened, {"0000": good, "0001": good, "0002": bad}) == ["complete", "complete", "pruned"]
    assert opened.study.get_trials()[2].state == TrialState.PRUNED
    assert "val/ssim 0.1 lagged behind at epoch" in read_status(opened).trials[2].reason
    assert len(opened.record.run(2).rows()) < 50


@pytest.mark.usefixtures("planned")
def test_a_worker_that_wakes_after_its_trial_was_given_away_stops_quietly(
    settings: Settings, tiny_cohort: Cohort
) -> None:
    opened = begin(settings, tiny_cohort, make_sweep(), trials=1)
    opened.record.folder.mkdir(parents=True, exist_ok=True)
    plan = {"0000": {"values": [0.1] * 3, "state": "complete", "pause": 1}}
    (opened.record.folder / "plan.json").write_text(json.dumps(plan))
    claim = claim_trial(opened)
    assert claim is not None
    looks = iter(range(3))

    def give_away_on_the_third_look() -> str:
        if next(looks, None) is None:
            (claim.run.folder / "lease.json").write_text(json.dumps({"token": "another", "host": "h", "pid": 1}))
        return ""

    ending = conductor(opened, claim, give_away_on_the_third_look).conduct()
    assert ending == "lost"
    assert opened.study.get_trials()[0].state == TrialState.RUNNING
    assert json.loads((claim.run.folder / "lease.json").read_text())["token"] == "another"


@pytest.mark.usefixtures("planned")
def test_a_trial_whose_worker_died_before_telling_is_told_without_training_again(
    settings: Settings, tiny_cohort: Cohort
) -> None:
    opened = begin(settings, tiny_cohort, make_sweep(), trials=1)
    claim = claim_trial(opened)
    assert claim is not None
    run = conductor(opened, claim).prepare()
    run.append({"epoch": 3, "val/ssim": 0.4})
    run.set_state("complete", new_attempt=True)
    (run.folder / "lease.json").unlink()
    assert conduct_all(opened, {}) == ["complete"]
    assert opened.study.get_trials()[0].value == 0.4
    assert run.progress().attempts == 1


def test_each_trial_has_its_own_seed_and_the_studys_fixed_settings(settings: Settings, tiny_cohort: Cohort) -> None:
    record = begin(settings, tiny_cohort, make_sweep(), trials=1).record
    first, second = (record.run_config(number, {"gamma": 0.3}) for number in (0, 1))
    assert first.seed != second.seed
    assert (first.gamma, first.grid, first.topology) == (0.3, "4x4", "toroidal")


def test_a_claim_belongs_to_the_process_that_made_it(settings: Settings, tiny_cohort: Cohort) -> None:
    claim = claim_trial(begin(settings, tiny_cohort, make_sweep(), trials=1))
    assert isinstance(claim, Claim)
    assert is_alive(claim.run.folder)
    assert claim.lease.held()
    claim.lease.release()
    assert not claim.lease.held()
