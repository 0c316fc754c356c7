"""A trial trained again: the same bits, or where they differ and why."""

import json
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from rich.console import Console

from somvq.audit import Audit, Checkout, Device
from somvq.config import RunConfig
from somvq.data.cohort import Cohort
from somvq.definitions import Sweep
from somvq.errors import RunError, StudyError
from somvq.runs import Row, Run, RunRecord
from somvq.settings import Settings
from somvq.study.claim import claim_trial
from somvq.study.record import OpenStudy, StudyRecord, create_or_resume
from somvq.study.rerun import compare, describe, find_original, refuse_unfinished, train_again
from somvq.study.status import read_status
from somvq.study.trial import Conductor
from somvq.tracking import Tracker

SOMVQ = [sys.executable, "-m", "somvq"]
CPU = Device(name="a CPU", capability="AVX2", threads=2, settings={"OMP_NUM_THREADS": "2"})
ROWS: list[Row] = [
    {"epoch": 1, "val/ssim": 0.5, "train/loss": 2.0, "time/epoch_s": 1.0},
    {"epoch": 2, "val/ssim": 0.75, "train/loss": 1.0, "time/epoch_s": 1.0},
]


def somvq(place: Path, *words: str, status: int = 0) -> str:
    """What a command prints; it must end with `status`."""
    command = [*SOMVQ, *words]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if "--json" in words else done.stdout + done.stderr


def tamper(run: Run, epoch: int, metric: str, value: float) -> None:
    """Changes one number of the ledger."""
    rows = run.rows()
    rows[epoch - 1][metric] = value
    run.ledger.write_text("".join(json.dumps(row) + "\n" for row in rows))


def begin(folder: Path, cohort: Cohort) -> OpenStudy:
    """A study without trials, in `folder`/runs/test."""
    metric = {"name": "val/ssim", "goal": "maximize"}
    told = {"name": "test", "metric": metric, "parameters": {"model": {"value": "ae"}, "epochs": {"value": 2}}}
    record = StudyRecord(
        name="test",
        uid="abcdef",
        seed=3,
        sweep=Sweep.model_validate(told),
        folder=folder / "runs" / "test",
        scans=cohort.folder,
        cohort_settings=cohort.index.settings,
        cohort=cohort.folder,
        cohort_fingerprint=cohort.fingerprint,
        cohort_summary="",
        wandb_project="test",
    )
    return create_or_resume(Settings(runs=folder / "runs"), record)[0]


@pytest.mark.slow
def test_a_trial_comes_out_the_same_and_one_whose_ledger_was_tampered_with_does_not(
    tmp_path: Path, tiny_cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = begin(tmp_path, tiny_cohort)
    opened.aim_for(1)
    claim = claim_trial(opened)
    assert claim is not None
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert Conductor(opened, claim, Tracker(), lambda: "", Settings()).conduct() == "complete"
    before = read_status(opened)
    monkeypatch.delenv("OMP_NUM_THREADS")
    original = find_original(Settings(runs=tmp_path / "runs"), "test", 0)
    second, trained = train_again(original, Console(file=StringIO()), again=False)
    found = compare(original, second)
    assert (found.same, trained) == (True, True), describe(found)
    assert (found.epochs, found.numbers) == (2, sum(len(row) - 2 for row in original.rows()))
    assert second.folder == tmp_path / "runs" / "test" / "reruns" / "0000"
    for run in (original, second):
        assert [device.threads for device in Run(run.folder).record.devices] == [2]  # whatever the machine has
        assert run.record.audit is not None
        assert run.record.study_seed == 3
    assert read_status(opened) == before

    tamper(original, 2, "val/ssim", original.rows()[1]["val/ssim"] + 1e-15)
    told = json.loads(somvq(tmp_path, "rerun", "test", "0", "--json", status=1))
    assert (told["same"], told["trained"]) == (False, False)
    assert (told["first"]["epoch"], told["first"]["metric"]) == (2, "val/ssim")
    assert 0 < told["relative"] < 1e-11


@pytest.mark.slow
def test_an_interrupted_rerun_goes_on_and_is_trained_anew_when_asked(tmp_path: Path, tiny_scans: Path) -> None:
    """With a shared auto-encoder; Ctrl-C, the same command, the same command with --again."""
    (tmp_path / "somvq.yaml").write_text(f"cohort: {tiny_scans}\nwandb: disabled\n")
    settings = ("init=ae-som", "grid=4x4", "epochs=15", "ae_epochs=2")
    somvq(tmp_path, "train", "psom", *(word for setting in settings for word in ("--set", setting)))
    (folder,) = (tmp_path / "runs").iterdir()
    audit = Run(folder / "0000").record.audit
    assert audit is not None
    assert audit.command.startswith("python -m somvq train psom --set init=ae-som ")
    process = subprocess.Popen(
        [*SOMVQ, "rerun", folder.name, "0"], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    run = Run(folder / "reruns" / "0000")
    deadline = time.monotonic() + 90
    while len(run.rows()) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert "stopped; the same command goes on" in process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert (run.progress().state, len(run.rows()) < 15) == ("interrupted", True)
    assert "the same: 15 epochs" in somvq(tmp_path, "rerun", folder.name, "0")
    assert Run(run.folder).progress().attempts == 2
    tamper(run, 1, "val/ssim", 0.5)
    told = somvq(tmp_path, "rerun", folder.name, "0", status=1)
    assert "trained before; --again trains it anew" in told
    assert "the same: 15 epochs" in somvq(tmp_path, "rerun", folder.name, "0", "--again")


def a_run(folder: Path, rows: list[Row], **changes: Any) -> Run:
    record = RunRecord(
        config=RunConfig(model="ae", epochs=2),
        cohort=folder / "cohort",
        cohort_fingerprint="c0ffee",
        study="s",
        name="s t0000",
        wandb_id="s-1-t0000",
    )
    run = Run.create(folder, record.model_copy(update=changes))
    for row in rows:
        run.append(row)
    return run


def an_audit(sha: str, **versions: str) -> Audit:
    source = Checkout(folder="/code", sha=sha, dirty=False)
    return Audit(command="", cwd="", host="", git={"source": source}, versions=versions, platform={})


def changed(**values: float) -> list[Row]:
    """ROWS with other numbers in the last epoch."""
    return [ROWS[0], ROWS[1] | {name.replace("_", "/", 1): value for name, value in values.items()}]


def test_times_are_not_compared_and_what_was_otherwise_is_told_all_the_same(tmp_path: Path) -> None:
    first = a_run(tmp_path / "1", ROWS, audit=an_audit("a", torch="2.6.0"), devices=(CPU,))
    device = CPU.model_copy(update={"threads": 4, "settings": {}})
    second = a_run(tmp_path / "2", changed(time_epoch_s=9.0), audit=an_audit("b", torch="2.7.0"), devices=(device,))
    found = compare(first, second)
    assert (found.same, found.epochs, found.numbers) == (True, 2, 4)
    assert describe(found) == [
        "the same: 2 epochs, 4 numbers, bit for bit",
        "although commit a, now b; torch 2.6.0, now 2.7.0; threads 2, now 4",
    ]


def test_where_two_runs_part_is_told_with_both_values_and_the_largest_difference_of_the_end(tmp_path: Path) -> None:
    rows = changed(val_ssim=0.6, train_loss=1.0000000000000002)
    rows[0] = rows[0] | {"train/loss": 2.0000000000000004}
    found = compare(a_run(tmp_path / "1", ROWS), a_run(tmp_path / "2", rows))
    assert describe(found) == [
        "not the same, first in epoch 1: train/loss 2.0, now 2.0000000000000004",
        "largest  in the last epoch, relative 0.2: val/ssim 0.75, now 0.6",
        "because? code, versions, device and threads are the same, as far as is known",
    ]
    assert found.as_json()["relative"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("was", "now", "same"), [(0.0, -0.0, False), (1.0, 1.0, True), (float("nan"), float("nan"), True)]
)
def test_numbers_are_the_same_if_their_bits_are(was: float, now: float, same: bool, tmp_path: Path) -> None:
    runs = (a_run(tmp_path / str(n), changed(val_ssim=value)) for n, value in enumerate((was, now)))
    assert compare(*runs).same is same


def test_an_epoch_or_a_metric_that_only_one_has_is_a_difference(tmp_path: Path) -> None:
    short, more = a_run(tmp_path / "1", ROWS[:1]), a_run(tmp_path / "2", changed(val_psnr=1.0))
    found = compare(a_run(tmp_path / "0", ROWS), short)
    assert describe(found)[0] == "not the same, first in epoch 2: val/ssim 0.75, now none"
    assert found.as_json()["relative"] is None
    assert describe(compare(a_run(tmp_path / "3", ROWS), more))[0].endswith("epoch 2: val/psnr none, now 1.0")


def test_a_rerun_that_ended_otherwise_says_how(tmp_path: Path) -> None:
    run = a_run(tmp_path / "0", ROWS)
    for state, words in (("running", "was killed; the same command"), ("diverged", "did not: diverged, nan; see")):
        run.set_state(state, "nan" if state == "diverged" else "")  # type: ignore[arg-type]
        with pytest.raises(RunError, match=words):
            refuse_unfinished(run)


@pytest.fixture
def opened(tmp_path: Path, tiny_cohort: Cohort) -> OpenStudy:
    """A study with a trial that failed, one that is done and whose folder is gone, and one under way."""
    begun = begin(tmp_path, tiny_cohort)
    begun.study.tell(begun.study.ask(), state=TrialState.FAIL)
    begun.study.tell(begun.study.ask(), 0.5)
    begun.study.ask()
    return begun


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "trial 0 of test is failed, so there is no end to compare"),
        (1, "trial 1 of test has nothing to compare with: .*0001 is gone"),
        (2, "trial 2 of test is running, so there is no end to compare"),
        (3, r"study 'test' has no trial 3 \(there: 0 to 2\)"),
    ],
)
def test_a_trial_that_cannot_be_compared_is_refused(number: int, words: str, opened: OpenStudy) -> None:
    with pytest.raises(StudyError, match=words):
        find_original(Settings(runs=opened.record.folder.parent), "test", number)
