"""`somvq evaluate`: the numbers, the record of them, and that nothing else reads the test split."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from optuna.trial import create_trial
from rich.console import Console
from test_training import make_run, without_times

from somvq import cli
from somvq.config import CohortSettings
from somvq.data.cache import prepare_cohort
from somvq.data.cohort import Cohort
from somvq.definitions import read_sweep
from somvq.errors import DataError, DefinitionError, RunError, SomvqError, StudyError
from somvq.evaluation import Readings, count_readings, evaluate, measured_on_val, read_evaluations, table
from somvq.runs import METRICS, Run
from somvq.settings import Settings
from somvq.study import foreground
from somvq.study.record import load_study
from somvq.study.stages import stage_runs
from somvq.study.worker import work
from somvq.training import Interrupted, Scans, fit
from somvq.validation import mean_image_baseline

SWEEP = """
method: random
metric: {name: val/ssim, goal: maximize}
parameters:
  model: {value: psom}
  init: {value: ae-som}
  grid: {value: 4x4}
  revive: {value: 1}
  epochs: {value: 1}
  ae_epochs: {value: 1}
  gamma: {min: 0.1, max: 1.0}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_cohort: Cohort) -> Run:
    """A finished run that nobody evaluates: others take a copy."""
    run = make_run(tmp_path_factory.mktemp("runs") / "tiny" / "0000", tiny_cohort, init="random", epochs=2)
    fit(run)
    run.set_state("complete")
    return run


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    """A finished run in a study of its own."""
    return copy(trained, tmp_path / "runs" / "tiny" / "0000")


@pytest.fixture
def unfinished(tmp_path: Path, tiny_cohort: Cohort) -> Run:
    """A run that stopped in its second epoch of four."""
    run = make_run(tmp_path / "runs" / "tiny" / "0001", tiny_cohort, init="random")
    steps = iter(range(8))  # an epoch has six
    with pytest.raises(Interrupted):
        fit(run, lambda: next(steps, None) is None)
    return run


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory, tiny_scans: Path) -> Path:
    """A working folder where a worker has finished a study on a cohort whose test scans are no numbers."""
    place = tmp_path_factory.mktemp("poisoned")
    cohort = prepare_cohort(tiny_scans, CohortSettings(), place / "cohorts" / "prepared")
    volumes = np.lib.format.open_memmap(cohort.folder / "volumes.npy", mode="r+")
    volumes[cohort.rows["test"]] = np.nan
    volumes.flush()
    (place / "tiny.yaml").write_text(SWEEP)
    settings = Settings(cohort=tiny_scans, cohorts=place / "cohorts", runs=place / "runs", wandb="disabled")
    sweep = read_sweep(place / "tiny.yaml")
    opened = foreground.open_study(settings, sweep, "tiny", 0, CohortSettings(), Console(quiet=True))
    assert opened.record.cohort == cohort.folder
    opened.aim_for(1)
    (stage,) = stage_runs(opened.record, opened.record.run_config(0, {"gamma": 1.0})).values()
    fit(stage)  # here and not by the worker: a process less to wait for
    stage.set_state("complete")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert work(settings, "tiny") == 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return place


def copy(run: Run, folder: Path) -> Run:
    return Run(shutil.copytree(run.folder, folder))


def tell(run: Run, **changed: object) -> Run:
    """The same run, told something else."""
    path = run.folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    return Run(run.folder)


def test_a_finished_run_evaluated_on_val_gives_what_its_ledger_says(run: Run, tiny_cohort: Cohort) -> None:
    evaluation = evaluate(run, "val")
    assert evaluation.metrics == measured_on_val(run, 2)
    assert evaluation.mean_image["ssim"] == mean_image_baseline(tiny_cohort)["val/ssim"]
    assert not (tiny_cohort.folder / "baseline_val.json").exists()  # the one that training kept serves


def test_another_split_is_measured_as_val_is(run: Run, tiny_cohort: Cohort, tmp_path: Path) -> None:
    """A cohort whose val and test change places gives the same numbers under the other name."""
    mirror = tmp_path / "mirror"
    shutil.copytree(tiny_cohort.folder, mirror, ignore=shutil.ignore_patterns("baseline*"))
    index = json.loads((mirror / "index.json").read_text())
    for scan in index["scans"]:
        scan["split"] = {"train": "train", "val": "test", "test": "val"}[scan["split"]]
    (mirror / "index.json").write_text(json.dumps(index))
    mirrored = tell(copy(run, tmp_path / "runs" / "other" / "0000"), cohort=str(mirror))
    for split, other in (("val", "test"), ("test", "val")):
        one, same = evaluate(run, split), evaluate(mirrored, other)
        assert (one.metrics, one.mean_image) == (same.metrics, same.mean_image)
    assert evaluate(run, "val").metrics["ssim"] != evaluate(run, "test").metrics["ssim"]


def test_evaluating_again_gives_the_same_numbers(run: Run, tmp_path: Path, tiny_cohort: Cohort) -> None:
    """Also where the model samples in evaluation."""
    sampling = make_run(tmp_path / "vae", tiny_cohort, model="vae", reading="published", epochs=1)
    fit(sampling)
    for one in (run, sampling):
        first = evaluate(one, "test")
        torch.manual_seed(1)
        assert evaluate(one, "test").metrics == first.metrics


def test_an_evaluation_is_recorded_in_the_runs_folder_and_changes_nothing_else_there(
    run: Run, tiny_cohort: Cohort
) -> None:
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    made = [evaluate(run, split) for split in ("val", "test", "train")]
    assert read_evaluations(run) == made
    assert len(run.evaluations.read_text().splitlines()) == 3
    assert [(one.split, one.scans, one.epoch) for one in made] == [("val", 1, 2), ("test", 1, 2), ("train", 6, 2)]
    assert {one.cohort_fingerprint for one in made} == {tiny_cohort.fingerprint}
    assert made[0].versions["torch"] == torch.__version__
    left = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    assert {path.name for path in left.keys() - before.keys()} == {"evaluations.jsonl", ".evaluations.lock"}
    assert {path: left[path] for path in before} == before


def test_a_line_torn_by_a_crash_costs_that_line_alone(run: Run) -> None:
    first = evaluate(run, "test")
    with run.evaluations.open("a") as file:
        file.write(first.model_dump_json()[:100])
    assert read_evaluations(run) == [first]
    assert [one.split for one in (first, evaluate(run, "val"))] == [one.split for one in read_evaluations(run)]


def test_readings_of_the_test_split_are_counted_for_the_run_and_for_its_study(run: Run) -> None:
    others = [copy(run, run.folder.parent / name) for name in ("reruns/0000", "reruns/0001", "stages/ae-1a2b")]
    assert count_readings(run) == Readings(0, 0)
    for one, split in ((run, "test"), (run, "test"), (run, "val"), (others[0], "test"), (others[1], "val")):
        evaluate(one, split)
    assert count_readings(run) == Readings(2, 1)
    assert count_readings(others[1]) == count_readings(others[2]) == Readings(0, 2)
    assert str(Readings(2, 1)).startswith("read before: 2 times for this run, and for 1 other run of its study; ")
    assert str(Readings(0, 0)).startswith("read before: never for this run, and for 0 other runs of its study; ")


def test_an_unfinished_run_is_evaluated_on_val_alone(unfinished: Run) -> None:
    evaluation = evaluate(unfinished, "val")
    assert (evaluation.epoch, evaluation.epochs) == (1, 4)
    assert table(evaluation, {}).title == "val split: 1 scan, epoch 1 of 4, unfinished"
    with pytest.raises(RunError, match=r"at epoch 1 of 4, .* finish it first: somvq resume test$"):
        evaluate(unfinished, "test")
    unfinished.set_state("pruned", "too slow")
    with pytest.raises(RunError, match=r"it ended pruned: take another run, or --split val"):
        evaluate(unfinished, "test")
    assert count_readings(unfinished) == Readings(0, 0)


def without_checkpoint(run: Run, cohort: Cohort) -> Run:
    run.checkpoint.unlink()
    return run


def on_a_cohort_without_test_scans(run: Run, cohort: Cohort) -> Run:
    folder = run.folder.parent / "cohort"
    shutil.copytree(cohort.folder, folder)
    index = json.loads((folder / "index.json").read_text())
    for scan in index["scans"]:
        scan["split"] = scan["split"].replace("test", "train")
    (folder / "index.json").write_text(json.dumps(index))
    return tell(run, cohort=str(folder))


REFUSED: dict[str, tuple[Callable[[Run, Cohort], Run], type[SomvqError], str]] = {
    "no checkpoint": (without_checkpoint, RunError, "has no checkpoint: .* somvq resume test goes on with it"),
    "no test scans": (on_a_cohort_without_test_scans, DataError, "has no test scan: .* 7 train / 1 val / 0 test; "),
    "cohort gone": (
        lambda run, _: tell(run, cohort="/nowhere/tiny"),
        DataError,
        "/nowhere/tiny, the prepared cohort of .*0000, is gone; somvq resume test prepares it again",
    ),
    "another cohort": (
        lambda run, _: tell(run, cohort_fingerprint="another"),
        RunError,
        "was begun on cohort another, but",
    ),
    "no run's config": (
        lambda run, _: tell(run, config={}),
        RunError,
        "config.json is damaged, or of another version of somvq",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_evaluated_is_refused_and_not_recorded(what: str, run: Run, tiny_cohort: Cohort) -> None:
    change, error, told = REFUSED[what]
    with pytest.raises(error, match=told) as refused:
        evaluate(change(run, tiny_cohort), "test")
    assert "\n" not in str(refused.value)
    assert not run.evaluations.exists()


def test_progress_counts_each_scan_once_in_each_pass(run: Run) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    evaluate(run, "train", lambda what, done, of: seen.setdefault(what, []).append((done, of)))
    assert {what: last for what, (*_, last) in seen.items()} == {
        "mean image": (1, 1),
        "measuring": (6, 6),
        "surveying": (6, 6),
    }


def test_scans_are_read_as_the_cohort_has_them(tiny_cohort: Cohort) -> None:
    """By way of float16, of which there are half as many bytes to send to a GPU."""
    rows = [5, 0, 3]
    read = Scans(tiny_cohort, torch.device("cpu")).read(rows)
    assert read.dtype == torch.float32
    assert torch.equal(read, torch.from_numpy(tiny_cohort.read(rows)))


# The command


@pytest.fixture
def place(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a run in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def test_a_test_evaluation_is_printed_beside_val_the_mean_image_and_chance(
    place: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.evaluate("tiny/0", split="test")
    first = capsys.readouterr().out
    cli.evaluate(str(run.folder), split="test")
    told = capsys.readouterr().out
    assert "read before: never for this run" in first
    assert "read before: once for this run" in told
    assert told.index("read before") < told.index("metric")
    assert "run      runs/tiny/0000\n" in told
    assert "test split: 1 scan, epoch 2 of 2" in told
    assert max(map(len, told[told.index("test split") :].splitlines())) <= 80
    cells = {words[0]: words[1:] for words in map(str.split, told.splitlines()) if words}
    found, row = read_evaluations(run)[0], run.rows()[-1]
    assert cells["metric"] == ["test", "val", "or", "chance", "p"]
    shown = [f"{value:.4g}" for value in (found.metrics["ssim"], row["val/ssim"], found.mean_image["ssim"])]
    assert cells["ssim"] == shown
    chance = [found.metrics[f"map/morans_i{suffix}"] for suffix in ("", "_null", "_p")]
    assert cells["map/morans_i"] == [f"{value:.4g}" for value in (chance[0], row["map/morans_i"], *chance[1:])]
    names = {name.removeprefix("val/") for name in row if not name.startswith(("train/", "time/", "epoch"))}
    assert {name for name in names if not name.endswith(("_null", "_p"))} <= set(cells)


def test_json_is_alone_on_stdout(place: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(run, "test")
    cli.evaluate("tiny/0000", split="test", json_=True)
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told["metrics"] == read_evaluations(run)[0].metrics
    assert told["metrics"].keys() <= {name.removeprefix("val/") for name in METRICS}
    assert told["val"] == measured_on_val(run, 2)
    assert told["test_read_before"] == {"of_run": 1, "other_runs": 0}
    assert "read before: once for this run" in err
    cli.evaluate("tiny/0000", json_=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["split"], told["val"], told["test_read_before"]) == ("val", {}, None)


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("tiny/7", r"no run 0007 in runs/tiny \(there: 0000\)"),
        ("runs/tiny/0007", r"no run 0007 in runs/tiny \(there: 0000\)"),
        ("nothing", r"no study 'nothing' in runs \(there: none yet\)"),
        ("runs/nothing", r"no study 'nothing' in runs \(there: none yet\)"),
        ("no/such/run", r"no run at no/such/run: give a run's folder, STUDY/NUMBER or a study \(there: none yet\)"),
    ],
)
def test_a_run_that_is_not_there_is_refused_with_those_that_are(named: str, told: str, place: Path) -> None:
    with pytest.raises(StudyError, match=told):
        cli.evaluate(named)


def test_an_unknown_split_is_refused(place: Path) -> None:
    with pytest.raises(DefinitionError, match="--split tests: did you mean 'test'"):
        cli.evaluate("tiny/0", split="tests")


# Nothing else reads the test split


def test_a_sweep_measures_the_same_whatever_is_in_the_test_split(
    poisoned: Path, tmp_path: Path, tiny_cohort: Cohort
) -> None:
    """Auto-encoder, initialiser, training, validation, survey and baseline, as a sweep's worker has them done."""
    swept = poisoned / "runs" / "tiny"
    runs = [swept / "stages" / os.listdir(swept / "stages")[0], swept / "0000"]
    for folder in runs:
        clean = Run(tmp_path / folder.relative_to(swept))
        Run.create(clean.folder, Run(folder).record.model_copy(update={"cohort": tiny_cohort.folder}))
        fit(clean)
        assert without_times(Run(folder)) == without_times(clean)
        assert Run(folder).progress().state == "complete"
    poison = Run(runs[1]).record.cohort
    assert [path.name for path in poison.glob("baseline*")] == ["baseline.json"]
    assert mean_image_baseline(Cohort(poison)) == mean_image_baseline(tiny_cohort)
    with pytest.raises(RunError, match=r"0000, measured on the test split: val/\w+ became nan"):  # so there was poison
        evaluate(Run(runs[1]), "test")


def test_a_study_is_evaluated_by_its_best_finished_trial(
    poisoned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(poisoned)
    cli.evaluate("tiny")
    assert "runs/tiny/0000, the best of 1 finished trial of tiny, val/ssim 0" in capsys.readouterr().out
    shutil.copytree("runs/tiny/0000", "runs/tiny/0001")
    load_study(Settings(), "tiny").study.add_trial(create_trial(value=0.9))
    for named in ("tiny", "runs/tiny"):
        cli.evaluate(named)
        told = capsys.readouterr().out
        assert "runs/tiny/0001, the best of 2 finished trials of tiny, val/ssim 0.9" in told
