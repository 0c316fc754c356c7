"""Workers that lose nothing: real commands and processes, really killed; only the epochs are light (tests/light)."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from labs import SWEEP, Lab, descendants, kill, wait_until

from somvq.study.lease import read_lease


@pytest.fixture(scope="session")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cohorts")


@pytest.fixture
def lab(tmp_path: Path, tiny_scans: Path, cohorts: Path) -> Iterator[Lab]:
    made = Lab(tmp_path, tiny_scans, cohorts)
    yield made
    made.end()


@pytest.fixture(params=["sqlite", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("journal", "postgresql"))])
def stored_lab(request: pytest.FixtureRequest, lab: Lab) -> Lab:
    """A lab whose trials are kept in each of the storages."""
    return store(lab, request.param, request)


def store(lab: Lab, kind: str, request: pytest.FixtureRequest) -> Lab:
    if kind == "journal":
        lab.environment["SOMVQ_STORAGE"] = f"journal://{lab.folder}/study.journal"
    if kind == "postgresql":
        lab.environment["SOMVQ_STORAGE"] = request.getfixturevalue("postgresql_url")
        lab.write_sweep(SWEEP, lab.folder.name)  # a study of its own among those of other tests
    return lab


def name_of(lab: Lab) -> str:
    return "tiny" if "postgresql" not in lab.environment.get("SOMVQ_STORAGE", "") else lab.folder.name


def assert_exactly(lab: Lab, trials: int, study: str = "tiny", *, repeated: int = 0, epochs: int = 4) -> dict[str, Any]:
    """The study has `trials` trials, all done, each epoch trained once but for at most `repeated` begun twice."""
    status = lab.status(study)
    assert [(trial["number"], trial["state"]) for trial in status["trials"]] == [(n, "done") for n in range(trials)]
    begun = lab.begun(study)
    assert set(begun) == {(f"{number:04d}", epoch) for number in range(trials) for epoch in range(1, epochs + 1)}
    assert sum(begun.values()) - len(begun) <= repeated
    for number in range(trials):
        assert [row["epoch"] for row in lab.run_of(number, study).rows()] == list(range(1, epochs + 1))
        assert not (lab.run_of(number, study).folder / "lease.json").exists()
    return status


def test_workers_killed_at_random_lose_no_trial_and_repeat_at_most_an_epoch_each(stored_lab: Lab) -> None:
    study = name_of(stored_lab)
    stored_lab.plan(study, epoch_s=0.2)
    process = stored_lab.start("sweep", study, "--trials", "6", "--workers", "3")
    chosen = random.Random(study == "tiny")
    kills = 0
    for _ in range(4):
        time.sleep(1.2)
        victims = [pid for pid in descendants(process.pid) if Path(f"/proc/{pid}/exe").exists()]
        kills += bool(victims) and kill(chosen.choice(victims), signal.SIGKILL)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert kills > 1
    assert_exactly(stored_lab, 6, study, repeated=kills)


def test_a_dead_worker_is_noticed_within_a_second(lab: Lab) -> None:
    lab.plan(epoch_s=0.5)
    process = lab.start("sweep", "tiny", "--trials", "1")
    wait_until(lambda: len(lab.run_of(0).rows()) >= 1, process=process)
    began = time.monotonic()
    kill(int(read_lease(lab.run_of(0).folder)["pid"]), signal.SIGKILL)
    assert process.stdout is not None
    line = next(line for line in process.stdout if "died" in line)
    assert time.monotonic() - began < 1
    assert "died (killed by signal 9); its trial goes on from its checkpoint" in line
    assert process.wait(60) == 0
    process.stdout.close()
    status = assert_exactly(lab, 1, repeated=1)
    outcomes = [attempt.outcome for attempt in lab.run_of(0).attempts()]
    assert outcomes == ["abandoned", "complete"]
    assert status["trials"][0]["attempts"] == 2


def suspend(process: "subprocess.Popen[str]", database: Path) -> list[int]:
    """Suspends a sweep with all it started, in a moment when none of them is writing to `database`."""
    while True:
        pids = [process.pid, *descendants(process.pid)]
        for pid in pids:
            kill(pid, signal.SIGSTOP)
        with closing(sqlite3.connect(database, timeout=0.0)) as other, suppress(sqlite3.OperationalError):
            other.execute("BEGIN IMMEDIATE")
            return pids
        for pid in pids:
            kill(pid, signal.SIGCONT)
        time.sleep(0.05)


@pytest.mark.slow
def test_a_suspended_worker_that_wakes_after_its_trial_was_given_away_stops_quietly(lab: Lab) -> None:
    lab.plan(epoch_s=0.3)
    lab.environment["SOMVQ_LEASE_S"] = "2"
    first = lab.start("sweep", "tiny", "--trials", "1")
    wait_until(lambda: len(lab.run_of(0).rows()) >= 1, process=first)
    sleeping = suspend(first, lab.folder / "runs/tiny/study.db")
    assert "tiny: 1 done" in lab.run("sweep", "tiny", "--trials", "1")
    told = lab.run_of(0).rows()
    for pid in sleeping:
        kill(pid, signal.SIGCONT)
    output = first.communicate(timeout=60)[0]
    assert first.returncode == 0, output
    assert lab.run_of(0).rows() == told
    assert "this worker slept, and another has it now" in (lab.folder / "runs/tiny/workers/worker-0.log").read_text()
    assert_exactly(lab, 1, repeated=1)


@pytest.mark.slow
def test_a_worker_on_another_host_is_dead_when_its_lease_is_out_whatever_the_clocks_say(lab: Lab) -> None:
    """Hosts are UTS namespaces; the clock of the second one is ten minutes ahead."""
    lab.plan(epoch_s=0.3)
    lab.environment["SOMVQ_LEASE_S"] = "3"
    elsewhere = ("unshare", "--uts", "sh", "-c", 'hostname far-away; exec "$@"', "sh")
    process = lab.start("sweep", "tiny", "--trials", "1", before=elsewhere)
    wait_until(lambda: len(lab.run_of(0).rows()) >= 1, process=process)
    assert read_lease(lab.run_of(0).folder)["host"] == "far-away"
    for pid in [process.pid, *descendants(process.pid)]:
        kill(pid, signal.SIGKILL)
    process.communicate()
    killed = time.monotonic()
    rows = len(lab.run_of(0).rows())
    output = lab.run("resume", "tiny", LIGHT_SKEW_S="600")
    assert "waiting for trial 0 on far-away" in output
    assert time.monotonic() - killed > 2.5
    assert len(lab.run_of(0).rows()) == 4 > rows
    assert_exactly(lab, 1, repeated=1)


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGUSR1, 138),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_a_warned_sweep_leaves_things_in_order_and_goes_on_later(number: signal.Signals, status: int, lab: Lab) -> None:
    lab.plan(epoch_s=0.3)
    process = lab.start("sweep", "tiny", "--trials", "2", "--workers", "2")
    wait_until(lambda: all(lab.run_of(n).rows() for n in (0, 1)), process=process)
    for pid in [process.pid, *descendants(process.pid)]:  # as Slurm and a terminal do: to all of them
        kill(pid, number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == status, output
    assert "resume   2 trials to finish: somvq resume tiny, or the same command again" in output
    assert [lab.run_of(n).progress().state for n in (0, 1)] == ["interrupted", "interrupted"]
    assert not list(lab.folder.glob("runs/tiny/*/lease.json"))
    lab.run("resume", "tiny")
    assert_exactly(lab, 2, repeated=2)


@pytest.mark.parametrize(
    "kind", ["sqlite", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("journal", "postgresql"))]
)
def test_the_same_command_from_many_shells_at_once_trains_each_trial_once(
    kind: str, lab: Lab, request: pytest.FixtureRequest
) -> None:
    store(lab, kind, request)
    study = name_of(lab)
    shells = [lab.start("sweep", study, "--trials", "5", "--workers", "2") for _ in range(3)]
    for process in shells:
        output = process.communicate(timeout=120)[0]
        assert process.returncode == 0, output
        assert f"{study}: 5 done, 0 to go of 5 trials" in output
    assert_exactly(lab, 5, study)


@pytest.mark.slow
def test_eight_workers_that_start_in_the_same_second_share_an_empty_study(lab: Lab) -> None:
    process = lab.start("sweep", "tiny", "--trials", "10", "--workers", "8")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert_exactly(lab, 10)


@pytest.mark.slow
def test_a_database_that_is_stopped_and_started_again_interrupts_nobody(
    lab: Lab, postgresql: Any, request: pytest.FixtureRequest
) -> None:
    store(lab, "postgresql", request)
    study = name_of(lab)
    lab.plan(study, epoch_s=0.4)
    process = lab.start("sweep", study, "--trials", "4", "--workers", "2")
    wait_until(lambda: lab.run_of(0, study).rows(), process=process)
    postgresql.stop("immediate")
    before = len(lab.run_of(0, study).rows())
    time.sleep(3)
    assert len(lab.run_of(0, study).rows()) > before  # training goes on without it
    postgresql.start()
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert "the study's storage does not answer" in output
    status = assert_exactly(lab, 4, study)
    assert [trial["attempts"] for trial in status["trials"]] == [1, 1, 1, 1]


@pytest.mark.slow
def test_a_worker_that_starts_while_its_database_is_stopped_waits_for_it(
    lab: Lab, postgresql: Any, request: pytest.FixtureRequest
) -> None:
    store(lab, "postgresql", request)
    study = name_of(lab)
    lab.run("sweep", study, "--trials", "1")
    postgresql.stop("fast")
    worker = lab.start("worker", study)
    assert worker.stdout is not None
    assert "the study's storage does not answer" in worker.stdout.readline()
    refused = lab.run("status", study, status=2)
    assert refused.count("\n") == 1
    assert "cannot be opened" in refused
    postgresql.start()
    worker.communicate(timeout=60)
    assert worker.returncode == 0
    gave_up = lab.run(
        "worker", study, SOMVQ_OUTAGE_S="0.5", SOMVQ_STORAGE="postgresql://me@127.0.0.1:1/none", status=75
    )
    assert "the study's storage did not answer for 0.5 s" in gave_up


@pytest.mark.slow
def test_a_journal_with_a_torn_last_line_goes_on(lab: Lab, request: pytest.FixtureRequest) -> None:
    store(lab, "journal", request)
    lab.plan(epoch_s=0.3)
    process = lab.start("sweep", "tiny", "--trials", "3")
    wait_until(lambda: lab.run_of(1).rows(), process=process)
    for pid in [process.pid, *descendants(process.pid)]:
        kill(pid, signal.SIGKILL)
    process.communicate()
    journal = lab.folder / "study.journal"
    journal.write_bytes(journal.read_bytes()[:-20])  # as a power cut or a full disk leaves it
    assert not journal.read_bytes().endswith(b"\n")
    lab.run("sweep", "tiny", "--trials", "3")
    assert_exactly(lab, 3, repeated=1)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_costs_no_trial(lab: Lab) -> None:
    """A disk of 3 MB, really filled while trials train, and freed later."""
    disk = lab.folder / "runs"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], check=True)
    try:
        lab.plan(epoch_s=0.3)
        process = lab.start("sweep", "tiny", "--trials", "2", SOMVQ_OUTAGE_S="3")
        wait_until(lambda: lab.run_of(0).rows(), process=process)
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        output = process.communicate(timeout=120)[0]
        assert process.returncode == 1, output
        assert "No space left on device" in output or "is the disk full?" in output
        filler.unlink()
        lab.run("sweep", "tiny", "--trials", "2")
        assert_exactly(lab, 2, repeated=5)
    finally:
        lab.end()
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


# Classes of attempts


def outcomes(lab: Lab, number: int) -> list[str]:
    return [attempt.outcome for attempt in lab.run_of(number).attempts()]


def test_how_attempts_end_decides_whether_they_are_made_again(lab: Lab) -> None:
    befalls = {
        "0000": {"raise": "diverged", "at": 2},
        "0001": {"raise": "collapsed", "at": 3},
        "0002": {"raise": "memory", "at": 2, "fits": 0},
        "0003": {"raise": "bug", "at": 2},
        "0004": {"raise": "segfault", "at": 2},
    }
    lab.plan(epoch_s=0.01, trials=befalls)
    output = lab.run("sweep", "tiny", "--trials", "6", status=1)
    trials = lab.status()["trials"]
    assert [trial["state"] for trial in trials] == ["pruned", "pruned", "pruned", "failed", "failed", "done"]
    assert [outcomes(lab, number) for number in (0, 1, 3, 5)] == [["diverged"], ["collapsed"], ["failed"], ["complete"]]
    assert outcomes(lab, 2) == ["memory"]  # batches of this cohort are one scan: there is no less
    assert trials[2]["violated"] == ["memory"]
    assert trials[2]["reason"] == "out of memory with one scan at a time"
    assert outcomes(lab, 4) == ["killed"] * 3
    assert trials[4]["reason"].startswith("killed 3 times without finishing an epoch")
    assert trials[3]["reason"] == "ValueError: a bug"
    assert "failed   trial 3: ValueError: a bug; see runs/tiny/0003/attempts.log" in output


@pytest.mark.slow
def test_three_bugs_in_a_row_stop_the_sweep_and_those_of_before_do_not(lab: Lab) -> None:
    bug = {"raise": "bug", "at": 1}
    lab.plan(trials={f"{number:04d}": bug for number in range(3)})
    output = lab.run("sweep", "tiny", "--trials", "5", status=1)
    assert "gave up: trial 2: failed ValueError: a bug" in output
    assert len(lab.status()["trials"]) == 3
    assert "tiny: 2 done, 3 failed, 0 to go of 5 trials" in lab.run("sweep", "tiny", "--trials", "5", status=1)


@pytest.mark.slow
def test_what_the_machine_is_to_blame_for_waits_until_it_is_mended(lab: Lab) -> None:
    lab.plan(trials={"0000": {"raise": "infrastructure", "at": 2}})
    output = lab.run("sweep", "tiny", "--trials", "1", status=1)
    assert "Input/output error (4 attempts)" in output
    status = lab.status()
    assert (status["trials"][0]["state"], status["finished"]) == ("waiting", 0)
    assert outcomes(lab, 0) == ["infrastructure"] * 4
    assert "blocked  trial 0: [Errno 5] Input/output error; mend that, then go on" in lab.run("status", "tiny")
    lab.plan()
    lab.run("resume", "tiny")
    assert lab.status()["trials"][0]["state"] == "done"


# Limits and stops


@pytest.mark.slow
def test_hours_are_counted_over_resumes_and_stop_without_loss(lab: Lab) -> None:
    lab.plan(epoch_s=0.5)
    output = lab.run("sweep", "tiny", "--trials", "2", "--hours", "0.0002")
    assert "0.0002 hours are used up" in output
    status = lab.status()
    assert f"--hours {status['hours'] * 2:.3g} goes on" in output
    assert status["finished"] < 2
    assert status["hours"] >= 0.0002
    again = lab.run("resume", "tiny")
    assert "hours are used up" in again
    assert lab.status()["trials"] == status["trials"]
    lab.run("resume", "tiny", "--hours", "inf")
    assert_exactly(lab, 2, repeated=2)


@pytest.mark.slow
def test_gpu_hours_are_those_of_attempts_that_have_a_gpu(lab: Lab) -> None:
    lab.plan(epoch_s=0.3)
    lab.run("sweep", "tiny", "--trials", "1", CUDA_VISIBLE_DEVICES="0")
    status = lab.status()
    assert status["gpu_hours"] == pytest.approx(status["hours"])
    assert 1.2 < status["gpu_hours"] * 3600 < 30
    output = lab.run("resume", "tiny", "--trials", "2", "--gpu-hours", "0.0001", CUDA_VISIBLE_DEVICES="0")
    assert "of 0.0001 GPU-hours are used up" in output
    assert len(lab.status()["trials"]) == 1


@pytest.mark.slow
def test_a_stopped_study_ends_everywhere_and_is_resumed(lab: Lab) -> None:
    lab.plan(epoch_s=0.5)
    process = lab.start("sweep", "tiny", "--trials", "3", "--workers", "2")
    wait_until(lambda: all(lab.run_of(n).rows() for n in (0, 1)), process=process)
    told = lab.run("stop", "tiny")
    assert "study tiny is stopped: no worker takes its trials; somvq resume tiny goes on" in told
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    assert "stopped by somvq stop; somvq resume tiny goes on" in output
    assert "stops: somvq stop was said" in lab.run("worker", "tiny")
    assert "tiny was stopped by somvq stop, and goes on" in lab.run("sweep", "tiny", "--trials", "3")
    assert_exactly(lab, 3, repeated=2)


@pytest.mark.slow
def test_one_trial_can_be_ended_for_good(lab: Lab) -> None:
    lab.plan(epoch_s=0.5)
    process = lab.start("sweep", "tiny", "--trials", "2")
    wait_until(lambda: lab.run_of(0).rows(), process=process)
    assert "trial 0 is stopped after" in lab.run("stop", "tiny", "0")
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    trials = lab.status()["trials"]
    assert [trial["state"] for trial in trials] == ["pruned", "done"]
    assert trials[0]["reason"].startswith("stopped by a user after epoch")
    assert "trial 0 of 'tiny' is pruned already" in lab.run("stop", "tiny", "0", status=2)
    assert "has no trial 7 (there: 0 to 1)" in lab.run("stop", "tiny", "7", status=2)


@pytest.mark.slow
def test_a_trial_that_nobody_trains_can_be_ended_too(lab: Lab) -> None:
    lab.plan(epoch_s=0.5)
    process = lab.start("sweep", "tiny", "--trials", "1")
    wait_until(lambda: lab.run_of(0).rows(), process=process)
    process.terminate()
    process.communicate(timeout=60)
    lab.run("stop", "tiny", "0")
    assert lab.status()["trials"][0]["state"] == "pruned"


# What is suggested


def test_identical_suggestions_are_trained_once_and_say_so(lab: Lab) -> None:
    lab.write_sweep(SWEEP.replace("{min: 0.1, max: 1.0}", "{values: [0.2, 0.4]}"))
    lab.plan(epoch_s=0.01)
    lab.run("sweep", "tiny", "--trials", "5", "--workers", "2")
    trials = lab.status()["trials"]
    assert [trial["state"] for trial in trials] == ["done"] * 5
    assert len({name for name, _ in lab.begun()}) == 2
    copies = [trial for trial in trials if trial["same_as"] is not None]
    assert len(copies) == 3
    for copy in copies:
        twin = trials[copy["same_as"]]
        assert (copy["params"], copy["values"]) == (twin["params"], twin["values"])
        assert copy["reason"] == f"the same settings as trial {twin['number']}, so not trained again"


@pytest.mark.slow
def test_a_widened_range_goes_on_and_is_recorded_and_another_space_needs_a_fork(lab: Lab) -> None:
    lab.plan(epoch_s=0.01)
    lab.run("sweep", "tiny", "--trials", "2")
    lab.write_sweep(SWEEP.replace("max: 1.0", "max: 2.0"))
    output = lab.run("sweep", "tiny", "--trials", "3")
    assert "changed  gamma was 0.1 to 1, is 0.1 to 2" in output
    changes = lab.status()["changes"]
    assert [change["what"] for change in changes] == [["gamma was 0.1 to 1, is 0.1 to 2"]]
    assert changes[0]["trials"] == 2
    lab.write_sweep(SWEEP.replace("{min: 0.1, max: 1.0}", "{min: 0.1, max: 2.0, distribution: log_uniform_values}"))
    refused = lab.run("sweep", "tiny", "--trials", "4", status=2)
    assert "gamma was 0.1 to 2, is 0.1 to 2, log" in refused
    assert "--fork NEW copies its finished trials onto the new space" in refused
    forked = lab.run("sweep", "tiny", "--trials", "4", "--fork", "wide")
    assert "3 finished trials of tiny copied" in forked
    trials = lab.status("wide")["trials"]
    assert [trial["copied_from"] for trial in trials] == ["tiny/0000", "tiny/0001", "tiny/0002", ""]
    assert [trial["values"] for trial in trials[:3]] == [trial["values"] for trial in lab.status()["trials"]]
    assert lab.begun("wide").keys() == {("0003", epoch) for epoch in range(1, 5)}
    assert "wide: 4 done" in lab.run("sweep", "tiny", "--trials", "4", "--fork", "wide")


GRID = """
method: grid
metric: {name: val/ssim, goal: maximize}
parameters: {epochs: {value: 4}}
rows:
  a: {model: psom, grid: 4x4, gamma: 0.2}
  b: {model: psom, grid: 4x4, gamma: 0.3}
"""


@pytest.mark.slow
def test_rows_added_while_workers_run_are_trained_by_them_too(lab: Lab) -> None:
    lab.write_sweep(GRID)
    lab.plan(epoch_s=0.5)
    first = lab.start("sweep", "tiny")
    wait_until(lambda: lab.run_of(0).rows(), process=first)
    lab.write_sweep(GRID + "  c: {model: psom, grid: 4x4, gamma: 0.4}\n  d: {model: psom, grid: 4x4, gamma: 0.5}\n")
    output = lab.run("sweep", "tiny")
    assert "changed  row c was absent" in output
    told = first.communicate(timeout=60)[0]
    assert first.returncode == 0, told
    status = assert_exactly(lab, 4)
    assert [trial["params"]["row"] for trial in status["trials"]] == ["a", "b", "c", "d"]
    assert {trial["same_as"] for trial in status["trials"]} == {None}


@pytest.mark.slow
def test_a_refused_fork_leaves_everything_as_it_was(lab: Lab, tiny_scans: Path) -> None:
    lab.plan(epoch_s=0.01)
    lab.run("sweep", "tiny", "--trials", "1")
    lab.plan("other", epoch_s=0.01)
    lab.run("sweep", "tiny", "--trials", "1", "--study", "other")
    wider = ("sweep", "tiny", "--trials", "1", "--set", "gamma={min: 0.05, max: 2.0}", "--study", "tiny")
    assert "--fork other: there is such a study, and no fork of tiny" in lab.run(*wider, "--fork", "other", status=2)
    assert "--fork tiny: a study is no fork of itself" in lab.run(*wider, "--fork", "tiny", status=2)
    assert lab.status("other")["changes"] == lab.status()["changes"] == []
    told = lab.run(*wider, "--fork", "new", "--split", "3/1/1", status=2)
    assert "study 'tiny' is on another cohort" in told
    assert not (lab.folder / "runs" / "new").exists()
    assert "1 finished trial of tiny copied" in lab.run(*wider, "--fork", "new")


OBJECTIVES = (
    SWEEP.replace("metric: {name: val/ssim, goal: maximize}", "")
    .replace("epochs: {value: 4}", "epochs: {value: 6}")
    .replace("{min: 0.1, max: 1.0}", "{values: [0.1, 0.9, 0.5, 0.3]}")
    .replace("method: random", "method: grid")
    + """
objectives: [{name: val/mse, goal: minimize}, {name: codebook/used_share, goal: maximize}]
monitor: {name: val/ssim, goal: maximize}
early_terminate: {type: hyperband, min_iter: 2, eta: 2}
constraints: {codebook/used_share: {min: 0.2}}
"""
)


def test_several_objectives_are_pruned_by_the_monitor_and_constraints_decide_who_is_best(lab: Lab) -> None:
    lab.write_sweep(OBJECTIVES)
    lab.plan(epoch_s=0.01, trials={"0002": {"epoch_s": 1.0}})
    output = lab.run("sweep", "tiny", "--trials", "3")
    status = lab.status()
    assert [trial["state"] for trial in status["trials"]] == ["done", "pruned", "pruned"]
    assert "val/ssim" in status["trials"][2]["reason"]
    assert "lagged behind at epoch 2" in status["trials"][2]["reason"]
    assert len(lab.run_of(2).rows()) < 6
    assert status["trials"][0]["violated"] == ["codebook/used_share >= 0.2"]
    assert (status["best"], status["best_overall"]) == (None, 0)
    assert "but not codebook/used_share >= 0.2" in output
    assert [goal[0] for goal in status["goals"]] == ["val/mse", "codebook/used_share"]


@pytest.mark.slow
def test_watching_as_json_is_a_line_each_time(lab: Lab) -> None:
    lab.run("sweep", "tiny", "--trials", "1")
    process = lab.start("status", "tiny", "--watch", "--json")
    assert process.stdout is not None
    lines = [json.loads(process.stdout.readline()) for _ in range(2)]
    process.terminate()
    process.communicate()
    assert [line["finished"] for line in lines] == [1, 1]
