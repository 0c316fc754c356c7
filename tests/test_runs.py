import json
from pathlib import Path

import pytest

from somvq.config import CohortSettings, RunConfig, derive_seed
from somvq.errors import RunError
from somvq.runs import Run, RunRecord


@pytest.fixture
def run(tmp_path: Path) -> Run:
    record = RunRecord(
        config=RunConfig(model="psom", epochs=5),
        cohort=tmp_path / "cohort",
        cohort_fingerprint="abc",
        study="s",
        name="s t0000",
        wandb_id="s-1-t0000",
    )
    return Run.create(tmp_path / "run", record)


def test_a_run_remembers_what_it_was_told_and_creating_it_again_changes_nothing(run: Run) -> None:
    again = Run.create(run.folder, run.record.model_copy(update={"versions": {"somvq": "9"}}))
    assert again.record == run.record


def test_a_run_whose_cohort_moved_is_told_where_it_is(run: Run, tmp_path: Path) -> None:
    again = Run.create(run.folder, run.record.model_copy(update={"cohort": tmp_path / "moved"}))
    assert again.record.cohort == tmp_path / "moved"
    assert again.record.identity() == run.record.identity()


def test_a_folder_that_holds_another_run_is_refused(run: Run) -> None:
    other = run.record.model_copy(update={"wandb_id": "s-2-t0000"})
    with pytest.raises(RunError, match="holds s t0000 of another study; move it away"):
        Run.create(run.folder, other)


@pytest.mark.parametrize("name", ["config.json", "state.json", "metrics.jsonl", "attempts.jsonl"])
def test_a_damaged_file_of_a_run_is_named(name: str, run: Run) -> None:
    (run.folder / name).write_text("{torn\n")
    with pytest.raises(RunError, match=f"{name} is damaged"):
        (run.lengths(), run.progress(), run.rows(), run.attempts())


def test_a_line_torn_by_a_crash_is_no_row(run: Run) -> None:
    run.append({"epoch": 1, "val/ssim": 0.5})
    with run.ledger.open("a") as file:
        file.write('{"epoch": 2, "val/ss')
    assert run.rows() == [{"epoch": 1, "val/ssim": 0.5}]


def test_a_ledger_that_fell_behind_its_checkpoint_is_mended(run: Run) -> None:
    run.append({"epoch": 1})
    with run.ledger.open("a") as file:
        file.write('{"epo')
    run.reconcile({"epoch": 2, "val/ssim": 0.7})
    assert [json.loads(line) for line in run.ledger.read_text().splitlines()] == [
        {"epoch": 1},
        {"epoch": 2, "val/ssim": 0.7},
    ]


def test_a_ledger_ahead_of_its_checkpoint_goes_back_to_it(run: Run) -> None:
    for epoch in (1, 2, 3):
        run.append({"epoch": epoch})
    run.reconcile({"epoch": 2})
    assert [row["epoch"] for row in run.rows()] == [1, 2]


def test_attempts_are_counted_and_the_reason_is_kept(run: Run) -> None:
    run.set_state("running", new_attempt=True)
    run.set_state("interrupted")
    run.set_state("running", new_attempt=True)
    run.set_state("failed", "no memory")
    assert (run.progress().attempts, run.progress().state, run.progress().reason) == (2, "failed", "no memory")


def test_how_many_scans_fit_is_kept_across_attempts(run: Run) -> None:
    assert run.progress().micro_batch is None
    run.set_state("running", new_attempt=True)
    run.set_micro_batch(8)
    run.set_state("interrupted", "out of memory")
    run.set_state("running", new_attempt=True)
    progress = run.progress()
    assert (progress.micro_batch, progress.state, progress.reason, progress.attempts) == (8, "running", "", 2)


def test_a_folder_without_a_config_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a run: it has no config\.json"):
        _ = Run(tmp_path).record


def test_a_record_survives_its_json(run: Run) -> None:
    assert RunRecord.model_validate_json((run.folder / "config.json").read_text()) == run.record


@pytest.mark.parametrize("grid", ["16", "0x4", "1x1", "axb", "4x4x4", "100x100"])
def test_a_grid_that_is_no_map_is_refused(grid: str) -> None:
    with pytest.raises(ValueError, match="is not HEIGHTxWIDTH"):
        RunConfig(model="psom", grid=grid)


def test_a_codebook_setting_of_a_model_without_one_is_refused() -> None:
    with pytest.raises(ValueError, match="model ae has no codebook, so gamma says nothing"):
        RunConfig(model="ae", gamma=3.0)
    with pytest.raises(ValueError, match="model ae has no codebook, so init ae-som says nothing"):
        RunConfig(model="ae", init="ae-som")


def test_the_shared_autoencoder_does_not_depend_on_what_is_searched() -> None:
    first = RunConfig(model="psom", gamma=1.0, seed=1, init="ae").stages(7)
    second = RunConfig(model="psom", reading="published", seed=2, init="ae-som", grid="8x8").stages(7)
    assert first == second
    assert first != RunConfig(model="psom", init="ae", ae_epochs=3).stages(7)
    assert first != RunConfig(model="psom", init="ae", skip="concatenate").stages(7)


def test_only_the_published_vae_centres_need_an_ae_too() -> None:
    def kinds(**settings: str) -> set[str]:
        return set(RunConfig.model_validate({"model": "som", "latent": "continuous", **settings}).stages(0))

    assert kinds(init="random") == set()
    assert kinds(init="ae-kmeans") == {"ae"}
    assert kinds(init="vae-kmeans") == {"vae"}
    assert kinds(init="vae-kmeans", reading="published") == {"vae", "ae"}


def test_a_shared_vae_is_of_the_trials_reading_and_weight() -> None:
    told = {"model": "som", "latent": "continuous", "init": "vae", "kl": 0.5, "reading": "published"}
    stage = RunConfig.model_validate(told).stages(0)["vae"]
    assert (stage.model, stage.reading, stage.kl, stage.epochs) == ("vae", "published", 0.5, 80)


def test_seeds_are_the_same_everywhere_and_differ_by_part() -> None:
    assert derive_seed(0, 1) == 1_226_522_975
    assert derive_seed(0, 1) != derive_seed(1, 0)
    assert 0 <= derive_seed("any", "thing") < 2**31


def test_a_shape_without_whole_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="shape 144x170x144 has a side that is not a multiple of 16"):
        CohortSettings(shape=(144, 170, 144))
