"""The main job end to end: real commands in real processes, on real files, really killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from somvq.runs import Run
from somvq.study.lease import read_lease

SOMVQ = [sys.executable, "-m", "somvq"]
SWEEP = """
method: random
metric: {name: val/ssim, goal: maximize}
parameters:
  model: {value: psom}
  init: {value: INIT}
  grid: {value: 4x4}
  epochs: {value: EPOCHS}
  ae_epochs: {value: 3}
  gamma: {min: 0.1, max: 1.0}
"""


@pytest.fixture
def place(tmp_path: Path, tiny_scans: Path) -> Path:
    """A working folder, as a user has it: a somvq.yaml, a sweeps/ of their own."""
    (tmp_path / "somvq.yaml").write_text(f"cohort: {tiny_scans}\nwandb: disabled\n")
    (tmp_path / "sweeps").mkdir()
    write_sweep(tmp_path, init="random", epochs=3)
    return tmp_path


PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # as in an activated environment


def write_sweep(place: Path, *, init: str, epochs: int) -> None:
    (place / "sweeps" / "tiny.yaml").write_text(SWEEP.replace("INIT", init).replace("EPOCHS", str(epochs)))


def somvq(place: Path, *words: str, status: int = 0, **environment: str) -> str:
    """What a command prints; it must end with `status`."""
    env = {**os.environ, "PATH": PATH, **environment}
    done = subprocess.run(
        [*SOMVQ, *words], cwd=place, capture_output=True, text=True, timeout=240, env=env, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def start(place: Path, *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*SOMVQ, *words],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PATH": PATH},
    )


def trials(place: Path, study: str = "tiny") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(somvq(place, "status", study, "--json"))["trials"]
    return found


def wait_for_epoch(run: Run, epoch: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 90
    while len(run.rows()) < epoch:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def epochs_trained(run: Run) -> list[float]:
    return [row["epoch"] for row in run.rows()]


def test_a_sweep_leaves_what_it_promises_and_the_same_command_adds_nothing(place: Path) -> None:
    write_sweep(place, init="ae-som", epochs=2)
    told = somvq(place, "sweep", "tiny", "--trials", "2", "--wandb", "offline", WANDB_MODE="offline")
    study = place / "runs" / "tiny"
    assert "sweeps/tiny.yaml: gamma" in told
    assert "study    tiny, begun in runs/tiny" in told
    assert "tiny: 2 done, 0 to go of 2 trials" in told
    assert "mean of the training set" in told
    assert "auto-encoder alone" in told
    for advice in (
        "look     runs/tiny/000",
        "W&B      not on W&B yet: 2 trials (0, 1); ",
        "go on    somvq resume tiny --trials 4",
    ):
        assert advice in told
    for number in (0, 1):
        run = Run(study / f"{number:04d}")
        assert epochs_trained(run) == [1, 2]
        assert len(list(run.folder.glob("wandb/offline-run-*/*.wandb"))) == 1
        for figure in ("tsne", "codebook_grid", "usage", "hits", "reconstruction"):
            with Image.open(run.figure(figure, 2)) as picture:
                assert max(high for _, high in picture.convert("RGB").getextrema()) > 200  # not black
    stages = list(study.glob("stages/*"))
    assert len(stages) == 1
    assert epochs_trained(Run(stages[0])) == [1, 2, 3]

    before = {path: path.stat().st_mtime_ns for path in study.glob("*/metrics.jsonl")}
    assert "was begun with seed 0, not 7" in somvq(place, "sweep", "tiny", "--seed", "7", "--trials", "2", status=2)
    again = somvq(place, "sweep", "tiny", "--trials", "1")
    assert "study    tiny, found in runs/tiny" in again
    assert "tiny: 2 done, 0 to go of 2 trials" in again  # those that there are cannot be wished away
    assert {path: path.stat().st_mtime_ns for path in study.glob("*/metrics.jsonl")} == before

    more = somvq(place, "resume", "tiny", "--trials", "3")
    assert "tiny: 3 done, 0 to go of 3 trials" in more
    assert [trial["number"] for trial in trials(place)] == [0, 1, 2]
    assert len(list(study.glob("stages/*"))) == 1


@pytest.mark.slow
def test_a_killed_trial_resumes_once(place: Path) -> None:
    """kill -9 of the worker, then of the whole command, then the same command again."""
    write_sweep(place, init="random", epochs=15)
    command = ("sweep", "tiny", "--trials", "2")
    process = start(place, *command)
    run = Run(place / "runs" / "tiny" / "0000")
    wait_for_epoch(run, 3, process)
    os.kill(int(str(read_lease(run.folder)["pid"])), signal.SIGKILL)
    seen = len(run.rows())
    wait_for_epoch(run, seen + 2, process)  # the supervisor has replaced it
    os.killpg(process.pid, signal.SIGKILL)
    output = process.communicate()[0]
    assert "died (killed by signal 9); its trial goes on from its checkpoint" in output
    told = somvq(place, *command)
    assert "tiny: 2 done, 0 to go of 2 trials" in told
    found = trials(place)
    assert [(trial["number"], trial["state"]) for trial in found] == [(0, "done"), (1, "done")]
    assert [trial["attempts"] for trial in found] == [3, 1]
    assert epochs_trained(run) == list(range(1, 16))


@pytest.mark.slow
@pytest.mark.parametrize(("sign", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_sweep_says_how_to_resume_and_does(sign: signal.Signals, status: int, place: Path) -> None:
    write_sweep(place, init="random", epochs=15)
    process = start(place, "sweep", "tiny", "--trials", "1")
    run = Run(place / "runs" / "tiny" / "0000")
    wait_for_epoch(run, 2, process)
    process.send_signal(sign)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == status, output
    assert "resume   1 trial to finish: somvq resume tiny, or the same command again" in output
    assert run.progress().state == "interrupted"
    assert not (run.folder / "lease.json").exists()
    assert "1 waiting, 0 to go of 1 trials" in somvq(place, "status", "tiny")
    if sign == signal.SIGTERM:
        assert "tiny: 1 done" in somvq(place, "resume", "tiny")
        assert epochs_trained(run) == list(range(1, 16))


@pytest.mark.slow
def test_the_same_command_from_two_shells_at_once_trains_each_trial_once(place: Path) -> None:
    both = [start(place, "sweep", "tiny", "--trials", "3") for _ in range(2)]
    for process in both:
        output = process.communicate(timeout=240)[0]
        assert process.returncode == 0, output
    found = trials(place)
    assert [(trial["state"], trial["attempts"]) for trial in found] == [("done", 1)] * 3


@pytest.mark.slow
def test_trials_that_keep_failing_stop_the_sweep_and_say_why(place: Path) -> None:
    for number in range(3):
        (place / "runs" / "tiny" / f"{number:04d}").mkdir(parents=True)
        (place / "runs" / "tiny" / f"{number:04d}" / "checkpoint.pt").write_text("not a checkpoint")
    told = somvq(place, "sweep", "tiny", "--trials", "9", status=1)
    assert "error: worker 0 gave up: trial 2: failed" in told
    assert "0002/checkpoint.pt is damaged" in told
    assert [trial["state"] for trial in trials(place)] == ["failed"] * 3


def test_a_map_that_the_cohort_cannot_fill_is_refused_before_any_training(place: Path) -> None:
    told = somvq(place, "sweep", "tiny", "--trials", "9", "--set", "init=ae-som", "--set", "grid=20x20", status=2)
    assert "grid 20x20 has more nodes than the 162 tokens of this training set, where init ae-som starts" in told
    assert not (place / "runs" / "tiny").exists()


@pytest.mark.slow
def test_a_full_disk_costs_no_trial(place: Path) -> None:
    """The system refuses to write more than 400 kB to a file; a checkpoint has 1 MB."""
    somvq(place, "cohort", "prepare", yaml.safe_load((place / "somvq.yaml").read_text())["cohort"])
    small = ["prlimit", "--fsize=400000", *SOMVQ, "sweep", "tiny", "--trials", "1"]
    refused = subprocess.run(small, cwd=place, capture_output=True, text=True, timeout=240, check=False)
    assert refused.returncode == 1, refused.stdout + refused.stderr
    assert "File too large (4 attempts)" in refused.stderr
    assert [(trial["state"], trial["attempts"]) for trial in trials(place)] == [("waiting", 4)]
    assert "tiny: 1 done" in somvq(place, "sweep", "tiny", "--trials", "1")
    assert epochs_trained(Run(place / "runs" / "tiny" / "0000")) == [1, 2, 3]


@pytest.mark.slow
def test_a_study_may_be_moved_and_a_strangers_runs_are_not_adopted(place: Path) -> None:
    write_sweep(place, init="ae-som", epochs=15)
    process = start(place, "sweep", "tiny", "--trials", "1")
    wait_for_epoch(Run(place / "runs" / "tiny" / "0000"), 2, process)
    process.terminate()
    process.communicate(timeout=60)
    (place / "runs").rename(place / "moved")
    assert "tiny: 1 done" in somvq(place, "resume", "tiny", "--runs", "moved")
    assert epochs_trained(Run(place / "moved" / "tiny" / "0000")) == list(range(1, 16))
    assert not (place / "runs").exists()
    for file in (place / "moved" / "tiny").glob("study.db*"):
        file.unlink()
    told = somvq(place, "sweep", "tiny", "--trials", "1", "--runs", "moved", "--seed", "5", status=2)
    assert "moved/tiny holds runs of a study that its storage does not know; move it away" in told


def test_train_is_named_by_its_settings_and_resumes(place: Path) -> None:
    first = somvq(place, "train", "ae", "--set", "epochs=2")
    assert "begun in runs/train-ae-" in first
    again = somvq(place, "train", "ae", "--set", "epochs=2")
    assert "found in runs/train-ae-" in again
    runs = list((place / "runs").glob("train-ae-*/0000"))
    assert len(runs) == 1
    assert epochs_trained(Run(runs[0])) == [1, 2]


@pytest.mark.slow
def test_a_study_whose_prepared_cohort_was_cleaned_away_prepares_it_again(place: Path) -> None:
    somvq(place, "sweep", "tiny", "--trials", "1", "--set", "epochs=1")
    shutil.rmtree(place / "cohorts")
    told = somvq(place, "resume", "tiny", "--trials", "2")
    assert "8 scans of 48x48x48 voxels" in told
    assert "tiny: 2 done" in told


@pytest.mark.slow
def test_one_row_of_a_table_is_trained_by_its_name(place: Path) -> None:
    (place / "sweeps" / "rows.yaml").write_text(ROWS)
    told = somvq(place, "sweep", "rows", "--set", "row=second")
    assert "sweeps/rows.yaml: one choice of settings" in told
    assert [folder.name for folder in place.glob("runs/rows/0*")] == ["0000"]
    config = Run(place / "runs/rows/0000").record.config
    assert (config.model, config.reading, config.epochs) == ("som", "published", 1)


ROWS = """
method: grid
metric: {name: val/ssim, goal: maximize}
run_cap: 3
parameters: {epochs: {value: 1}}
rows:
  first: {model: ae}
  second: {model: som, reading: published, grid: 4x4}
  third: {model: som, init: ae-kmeans, grid: 40x40}
"""


@pytest.mark.slow
@pytest.mark.parametrize("model", ["ae", "vae", "vqvae", "som", "psom"])
def test_train_trains_every_model_by_its_name(model: str, place: Path) -> None:
    small_map = [] if model in ("ae", "vae") else ["--set", "grid=4x4"]
    told = somvq(place, "train", model, "--set", "epochs=2", *small_map)
    assert "nothing is left to do" in told
    (run,) = (Run(folder) for folder in place.glob(f"runs/train-{model}-*/0000"))
    assert [row["epoch"] for row in run.rows()] == [1, 2]
    assert run.record.config.model == model
    assert {path.suffix for path in run.figures_of(2).values()} == {".png"}


@pytest.mark.slow
def test_every_row_of_table_1_trains_by_its_name(place: Path) -> None:
    """All 34, an epoch each, on a map that the tiny cohort fills."""
    quick = ["epochs=1", "ae_epochs=1"]
    sweep = yaml.safe_load((Path(__file__).parents[1] / "sweeps" / "table1.yaml").read_text())
    for row in sweep["rows"].values():
        row |= {} if row["model"] in ("ae", "vae") else {"grid": "4x4"}
    (place / "sweeps" / "table1.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    words = [word for setting in quick for word in ("--set", setting)]
    told = somvq(place, "sweep", "table1", "--workers", "2", *words)
    assert "nothing is left to do" in told
    assert len([run for run in place.glob("runs/table1/00*") if Run(run).progress().state == "complete"]) == 34
