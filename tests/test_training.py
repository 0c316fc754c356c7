import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from somvq.checkpoints import load_checkpoint, save_checkpoint
from somvq.config import CohortSettings, RunConfig, batch_size
from somvq.data.cache import prepare_cohort
from somvq.data.cohort import Cohort
from somvq.errors import RunError
from somvq.health import Collapsed, Diverged, check
from somvq.runs import METRICS, Run, RunRecord, why_not_measured
from somvq.study.attempt import FAILED, INFRASTRUCTURE, OUT_OF_MEMORY, STOPPED, classify
from somvq.training import Interrupted, fit, share_of_rate
from somvq.validation import mean_image_baseline


def make_run(folder: Path, cohort: Cohort, *, stage: Path | None = None, **settings: object) -> Run:
    small_map = {} if settings.get("model") in ("ae", "vae") else {"grid": "4x4"}
    config = RunConfig.model_validate({"model": "psom", **small_map, "epochs": 4, **settings})
    record = RunRecord(
        config=config,
        cohort=cohort.folder,
        cohort_fingerprint=cohort.fingerprint,
        stages={"ae": str(stage)} if stage else {},
        study="test",
        name="test t0000",
        wandb_id="test-t0000",
    )
    return Run.create(folder, record)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, tiny_cohort: Cohort) -> Path:
    """A trained auto-encoder."""
    run = make_run(tmp_path_factory.mktemp("stage") / "ae", tiny_cohort, model="ae", epochs=6)
    fit(run)
    return run.folder


def without_times(run: Run) -> list[dict[str, float]]:
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in run.rows()]


def states_are_equal(one: Run, other: Run) -> bool:
    a, b = load_checkpoint(one.checkpoint), load_checkpoint(other.checkpoint)
    assert a is not None
    assert b is not None
    return (
        a["epoch"] == b["epoch"]
        and all(torch.equal(a["model"][name], b["model"][name]) for name in a["model"])
        and all(
            torch.equal(
                torch.as_tensor(a["optimiser"]["state"][i][key]), torch.as_tensor(b["optimiser"]["state"][i][key])
            )
            for i in a["optimiser"]["state"]
            for key in ("exp_avg", "exp_avg_sq", "step")
        )
    )


RESUMED: dict[str, dict[str, object]] = {  # between them, all that a codebook or a schedule carries along
    "psom": {"init": "random"},
    "psom from a map": {
        "init": "ae-som",
        "gamma_q": 0.2,
        "beta_som": 0.1,
        "schedule": "cosine",
        "revive": 2,
        "swap": "each-epoch",
    },
    "vqvae": {"model": "vqvae", "revive": 3, "latent": "continuous"},
    "kohonen": {"model": "som", "update": "ema", "neighbours": 8, "swap": "each-epoch"},
    "soft som": {"model": "som", "neighbours": "gaussian", "estimator": "rotation", "skip": "concatenate"},
    "published vae": {"model": "vae", "reading": "published"},
    "published psom": {"model": "psom", "reading": "published"},
}


LONGEST = ("kohonen", "soft som")


@pytest.mark.parametrize("what", [pytest.param(w, marks=[pytest.mark.slow] * (w in LONGEST)) for w in RESUMED])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    what: str, tmp_path: Path, tiny_cohort: Cohort, stage: Path
) -> None:
    whole = make_run(tmp_path / "whole", tiny_cohort, stage=stage, **RESUMED[what])
    fit(whole)
    broken = make_run(tmp_path / "broken", tiny_cohort, stage=stage, **RESUMED[what])
    for steps in (5, 3, 1, 9):  # stops in the middle of epochs
        left = iter(range(steps))
        try:
            fit(broken, lambda left=left: next(left, None) is None)
        except Interrupted:
            continue
    fit(broken)
    assert without_times(broken) == without_times(whole)
    assert states_are_equal(broken, whole)


def test_a_run_killed_with_9_goes_on_with_the_same_bits(tmp_path: Path, tiny_cohort: Cohort) -> None:
    whole = make_run(tmp_path / "whole", tiny_cohort, init="random", epochs=6)
    killed = make_run(tmp_path / "killed", tiny_cohort, init="random", epochs=6)
    command = [sys.executable, "-m", "somvq.study.attempt"]
    assert subprocess.run([*command, str(whole.folder), str(os.getpid())], check=False).returncode == 0
    process = subprocess.Popen([*command, str(killed.folder), str(os.getpid())])
    while len(killed.rows()) < 2:
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert killed.progress().state == "running"
    done = len(killed.rows())
    assert done < 6
    assert subprocess.run([*command, str(killed.folder), str(os.getpid())], check=False).returncode == 0
    assert without_times(killed) == without_times(whole)
    assert states_are_equal(killed, whole)
    assert (killed.progress().attempts, killed.progress().state) == (2, "complete")


def test_every_number_of_a_run_has_a_definition_and_every_definition_a_number(tmp_path: Path, tiny_scans: Path) -> None:
    """Between them, these runs measure all that METRICS defines, and nothing that it does not."""
    cohort = prepare_cohort(tiny_scans, CohortSettings(split="4/4/0"), tmp_path / "prepared")
    told: list[dict[str, object]] = [
        {"model": "vae"},
        {"model": "vqvae", "skip": "concatenate"},
        {"model": "som", "latent": "continuous"},
        {"model": "psom", "gamma_q": 0.2, "beta_som": 0.1},
    ]
    measured = set()
    for number, settings in enumerate(told):
        run = make_run(tmp_path / str(number), cohort, epochs=1, **settings)
        fit(run)
        found = set(run.rows()[0]) - {"epoch"}
        config = run.record.config
        assert not [name for name in found if why_not_measured(name, config)]
        missing = [name for name in set(METRICS) - found if not why_not_measured(name, config)]
        assert not [name for name in missing if not name.startswith("locality/")], (settings, missing)
        measured |= found
    assert measured == set(METRICS)


def test_figures_are_there_before_the_row_that_tells_of_them(tmp_path: Path, tiny_cohort: Cohort) -> None:
    run = make_run(tmp_path / "run", tiny_cohort, init="random", epochs=2)
    fit(run)
    assert set(run.figures_of(1)) == {"reconstruction", "codebook_grid", "hits", "usage"}
    of_the_last = {"tsne", "curves", "umatrix", "planes", "projection", "decoded_nodes"}
    assert set(run.figures_of(2)) == {"reconstruction", "codebook_grid", "hits", "usage"} | of_the_last
    newest = max(path.stat().st_mtime_ns for path in run.figures.glob("*_0002.png"))
    assert newest <= run.ledger.stat().st_mtime_ns


def test_figures_lost_to_a_kill_after_the_checkpoint_are_drawn_again(tmp_path: Path, tiny_cohort: Cohort) -> None:
    run = make_run(tmp_path / "run", tiny_cohort, init="random", epochs=2)
    fit(run)
    drawn = {name: path.read_bytes() for name, path in run.figures_of(2).items()}
    rows = run.ledger.read_text().splitlines()
    run.ledger.write_text(rows[0] + "\n")  # killed between checkpoint and figures
    for path in run.figures.glob("*_0002.png"):
        path.unlink()
    fit(run)
    assert {name: path.read_bytes() for name, path in run.figures_of(2).items()} == drawn
    assert run.ledger.read_text().splitlines() == rows


def test_training_teaches_an_autoencoder_more_than_the_mean_image(tiny_cohort: Cohort, stage: Path) -> None:
    rows = Run(stage).rows()
    assert rows[-1]["train/reconstruction"] < 0.6 * rows[0]["train/reconstruction"]


def test_a_loss_that_is_no_number_ends_the_run_with_its_name(tmp_path: Path, tiny_cohort: Cohort) -> None:
    run = make_run(tmp_path / "run", tiny_cohort, init="random", learning_rate=1e30, epochs=30)
    with pytest.raises(Diverged, match=r"(train|val)/\w+ became (nan|inf)"):
        fit(run)


# runs that have come to nothing


def test_a_loss_that_explodes_ends_the_run_within_ten_epochs(tmp_path: Path, tiny_cohort: Cohort) -> None:
    run = make_run(tmp_path / "run", tiny_cohort, model="ae", learning_rate=1e3, epochs=30)
    why = r"train/reconstruction was \S+ in epoch 3, above [\d.]+ \(10 times what a blank image scores, for 3 epochs\)"
    with pytest.raises(Diverged, match=why):
        fit(run)
    saved = load_checkpoint(run.checkpoint)
    assert saved is not None
    assert saved["epoch"] == len(run.rows()) == 3
    assert set(run.figures_of(2)) == {"reconstruction"}
    with pytest.raises(Diverged, match=why):  # as after a kill before it could say so
        fit(run)
    assert len(run.rows()) == 3


@pytest.mark.slow
def test_a_codebook_of_which_one_code_is_left_ends_the_run(tmp_path: Path, tiny_cohort: Cohort) -> None:
    run = make_run(tmp_path / "run", tiny_cohort, learning_rate=1.0, epochs=40)
    why = r"codebook/perplexity was 1 in epoch \d+, below 1\.05 \(all tokens have one code, for 10 epochs\)"
    with pytest.raises(Collapsed, match=why):
        fit(run)
    assert 10 <= len(run.rows()) < 30


@pytest.mark.slow
def test_a_fast_run_whose_batch_statistics_lag_is_no_diverged_one(tmp_path: Path, tiny_cohort: Cohort) -> None:
    run = make_run(tmp_path / "run", tiny_cohort, model="ae", learning_rate=0.1, epochs=12)
    fit(run)
    rows = run.rows()
    assert all(row["val/mse"] > 10 for row in rows[:3])
    assert rows[-1]["val/mse"] < 1


CONFIG = RunConfig.model_validate({"model": "som", "grid": "4x4"})


def rows_of(count: int, **numbers: float) -> list[dict[str, float]]:
    usual = {"train/loss": 1.0, "train/reconstruction": 0.5, "train/reconstruction_q": 0.5, "codebook/perplexity": 8.0}
    changed = {name.replace("__", "/"): value for name, value in numbers.items()}
    return [{"epoch": epoch, **usual, **changed} for epoch in range(1, count + 1)]


def test_a_run_has_diverged_when_all_that_it_decodes_is_far_worse_than_nothing() -> None:
    both = rows_of(3, train__reconstruction=11, train__reconstruction_q=11)
    check(both[:2], CONFIG, blank=1)
    check([*both[:2], *rows_of(1), *both[:2]], CONFIG, blank=1)
    check(rows_of(9, train__reconstruction=11), CONFIG, blank=1)
    check(both, CONFIG, blank=1.2)
    with pytest.raises(Diverged, match="train/reconstruction was 11 in epoch 3, above 10"):
        check(both, CONFIG, blank=1)


def test_a_run_has_diverged_when_its_loss_is_a_hundred_times_its_least() -> None:
    check([*rows_of(5), *rows_of(3, train__loss=99)], CONFIG, blank=1)
    check([*rows_of(5), *rows_of(2, train__loss=101)], CONFIG, blank=1)
    check([*rows_of(1, train__loss=500), *rows_of(3)], CONFIG, blank=1)
    with pytest.raises(Diverged, match=r"train/loss was 101 in epoch 3, above 100 \(100 times its least, for 3 epochs"):
        check([*rows_of(5), *rows_of(3, train__loss=101)], CONFIG, blank=1)


def test_a_run_has_collapsed_after_ten_epochs_with_one_code_unless_it_is_a_published_one() -> None:
    dead = rows_of(10, codebook__perplexity=1.04)
    check(dead[:9], CONFIG, blank=1)
    check([*dead[:9], *rows_of(1), *dead[:9]], CONFIG, blank=1)
    check(rows_of(40, codebook__perplexity=1.06), CONFIG, blank=1)
    check(dead, RunConfig.model_validate({"model": "som", "grid": "4x4", "reading": "published"}), blank=1)
    with pytest.raises(Collapsed):
        check(dead, CONFIG, blank=1)


# fewer scans at once


@pytest.mark.parametrize(
    "told",
    [{"model": "vae"}, pytest.param({"model": "psom", "latent": "continuous"}, marks=pytest.mark.slow)],
    ids=["vae", "psom"],
)
def test_a_run_with_fewer_scans_at_once_is_the_same_run(
    told: dict[str, object], tmp_path: Path, tiny_cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without batch norm, up to rounding, which Adam magnifies; its samples and its published targets included."""
    monkeypatch.setattr("somvq.config.STEPS_AN_EPOCH", 1)  # so that six scans are batches of four and two
    rows = []
    for scans in (None, 1, 3):
        run = make_run(tmp_path / str(scans), tiny_cohort, reading="published", batch_size=4, epochs=9, **told)
        if scans:
            run.set_micro_batch(scans)
        steps = iter(range(4))  # two epochs
        with pytest.raises(Interrupted):
            fit(run, lambda steps=steps: next(steps, None) is None)
        rows.append(without_times(run))
    whole, *others = rows
    for other in others:
        for one, two in zip(whole, other, strict=True):
            assert one.keys() == two.keys()
            trained = [name for name in one if name.split("/")[0] in ("train", "val")]
            assert {name: two[name] for name in trained} == pytest.approx({n: one[n] for n in trained}, rel=1e-3)


def test_a_run_in_passes_equals_itself_bit_for_bit_when_resumed(
    tmp_path: Path, tiny_cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("somvq.config.STEPS_AN_EPOCH", 1)
    whole, broken = (make_run(tmp_path / name, tiny_cohort, model="ae", batch_size=4) for name in ("whole", "broken"))
    for run, stops in ((whole, [4]), (broken, [3, 2])):  # steps, of which an epoch has two
        run.set_micro_batch(3)
        for steps in stops:
            left = iter(range(steps))
            with pytest.raises(Interrupted):
                fit(run, lambda left=left: next(left, None) is None)
    assert len(whole.rows()) == 2
    assert without_times(broken) == without_times(whole)
    assert states_are_equal(broken, whole)


# what an attempt says of its end


def fail_with(error: str) -> Exception:
    """The error that `error`, a line of Python, raises."""
    with pytest.raises(Exception) as raised:  # noqa: PT011
        exec(error, {"torch": torch, "np": np})
    return raised.value


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("torch.empty(1 << 50)", r"asked for 4194304\.0 GiB; [\d.]+ GiB are available"),
        ("np.empty(1 << 50)", r"asked for 8\.00 PiB; [\d.]+ GiB are available"),
        ("bytearray(1 << 60)", r"MemoryError: ; [\d.]+ GiB are available"),
        (
            "raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity "
            "of 79.10 GiB of which 5.94 MiB is free. Including')",
            r"asked for 20\.00 MiB; the device has 79\.10 GiB, 5\.94 MiB of it free",
        ),
        ("raise torch.AcceleratorError('CUDA error: out of memory')", "AcceleratorError: CUDA error: out of memory"),
        (
            "raise RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling')",
            "RuntimeError: CUDA error: CUBLAS",
        ),
        (
            "raise OSError(12, 'Cannot allocate memory')",
            r"OSError: \[Errno 12\] Cannot allocate memory; [\d.]+ GiB are",
        ),
    ],
)
def test_memory_that_ran_out_is_told_from_all_else_with_what_was_asked(error: str, reason: str) -> None:
    ending = classify(fail_with(error))
    assert (ending.status, ending.state) == (OUT_OF_MEMORY, "interrupted")
    assert re.match("out of memory: " + reason, ending.reason), ending.reason
    assert "\n" not in ending.reason


@pytest.mark.parametrize(
    "error",
    [
        "open('/nowhere/at/all')",
        "torch.AcceleratorError",
        "raise torch.AcceleratorError('CUDA error: uncorrectable ECC error encountered')",
        "raise RuntimeError('cuDNN error: CUDNN_STATUS_EXECUTION_FAILED')",
        "raise RuntimeError('NCCL Error 2: unhandled system error')",
        "raise RuntimeError('No CUDA GPUs are available')",
    ],
)
def test_a_broken_machine_is_no_fault_of_the_run(error: str) -> None:
    raised = torch.AcceleratorError("unspecified launch failure") if error.startswith("torch.") else fail_with(error)
    ending = classify(raised)
    assert (ending.status, ending.state) == (INFRASTRUCTURE, "interrupted")
    assert ending.reason


@pytest.mark.parametrize(
    "error",
    [
        "torch.zeros(2) @ torch.zeros(3)",
        "raise torch.AcceleratorError('CUDA error: device-side assert triggered')",
        "raise RunError('another cohort')",
    ],
)
def test_a_bug_is_a_bug(error: str, capfd: pytest.CaptureFixture[str]) -> None:
    raised = RunError("another cohort") if "RunError" in error else fail_with(error)
    assert classify(raised)[:2] == (FAILED, "failed")
    assert ("Traceback" in capfd.readouterr().err) == (not isinstance(raised, RunError))


NARROW = """
import resource, sys, torch
from pathlib import Path
from somvq.study.attempt import main
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**28, -1))
sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
"""


def test_an_attempt_whose_memory_runs_out_says_so(tmp_path: Path, tiny_cohort: Cohort) -> None:
    run = make_run(tmp_path / "run", tiny_cohort, grid="99x99")  # distances on the map alone take 384 MB
    done = subprocess.run([sys.executable, "-c", NARROW, str(run.folder), str(os.getpid())], check=False)
    assert done.returncode == OUT_OF_MEMORY
    assert run.progress().state == "interrupted"
    assert re.match(r"out of memory: asked for [\d.]+ \w+; ", run.progress().reason), run.progress().reason


def test_an_attempt_that_slurm_warns_stops_and_can_go_on(tmp_path: Path, tiny_cohort: Cohort) -> None:
    run = make_run(tmp_path / "run", tiny_cohort, model="ae", epochs=1000)
    process = subprocess.Popen([sys.executable, "-m", "somvq.study.attempt", str(run.folder), str(os.getpid())])
    while not run.rows():
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGUSR1)
    assert process.wait() == STOPPED == 143
    assert run.progress().state == "interrupted"
    assert re.match(r"stopped in epoch \d+", run.progress().reason)


def test_a_run_refuses_to_go_on_with_another_cohort(tmp_path: Path, tiny_cohort: Cohort) -> None:
    run = make_run(tmp_path / "run", tiny_cohort)
    told = json.loads((run.folder / "config.json").read_text())
    (run.folder / "config.json").write_text(json.dumps({**told, "cohort_fingerprint": "another"}))
    with pytest.raises(RunError, match="was begun on cohort another"):
        fit(Run(run.folder))


def test_a_damaged_checkpoint_is_named_and_not_trained_over(tmp_path: Path, tiny_cohort: Cohort) -> None:
    run = make_run(tmp_path / "run", tiny_cohort, init="random", epochs=1)
    fit(run)
    whole = run.checkpoint.read_bytes()
    run.checkpoint.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match=r"checkpoint\.pt is damaged .* delete it and its run starts again"):
        fit(run)


def test_a_checkpoint_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"epoch": 1})

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # as a full disk does, the system refuses half-way
    try:
        with pytest.raises(OSError, match="File too large"):
            save_checkpoint(path, {"epoch": 2, "weights": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    saved = load_checkpoint(path)
    assert saved is not None
    assert saved["epoch"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"format": 1, "evil": os.system}, path)
    with pytest.raises(RunError, match="is damaged"):
        load_checkpoint(path)


def test_a_cosine_schedule_rises_for_an_eighth_of_the_run_and_falls_to_nothing() -> None:
    shares = [share_of_rate(epoch, 40, "cosine") for epoch in range(1, 41)]
    assert shares[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    assert all(a > b for a, b in pairwise(shares[5:]))
    assert 0 < shares[-1] < 0.01
    assert shares[5 + 17] == pytest.approx((1 + np.cos(np.pi * 17 / 35)) / 2)
    assert share_of_rate(1, 1, "cosine") == 1
    assert {share_of_rate(epoch, 9, "constant") for epoch in range(1, 10)} == {1.0}


def test_the_optimiser_has_the_schedules_rate_in_each_epoch(tmp_path: Path, tiny_cohort: Cohort) -> None:
    run = make_run(tmp_path / "run", tiny_cohort, epochs=8, schedule="cosine", learning_rate=0.01)
    steps = iter(range(8))  # the first epoch has six, so it stops in the second
    with pytest.raises(Interrupted):
        fit(run, lambda: next(steps, None) is None)
    saved = load_checkpoint(run.checkpoint)
    assert saved is not None
    assert saved["optimiser"]["param_groups"][0]["lr"] == pytest.approx(0.01 / 2)


@pytest.mark.parametrize(("scans", "size"), [(128, 32), (17, 4), (3, 1), (1, 1), (1000, 32)])
def test_a_batch_leaves_an_epoch_the_papers_four_steps(scans: int, size: int) -> None:
    assert batch_size(32, scans) == size


def test_the_mean_image_is_scored_once_a_cohort(tiny_cohort: Cohort) -> None:
    first = mean_image_baseline(tiny_cohort)
    kept = tiny_cohort.folder / "baseline.json"
    before = kept.stat().st_mtime_ns
    assert mean_image_baseline(tiny_cohort) == first
    assert kept.stat().st_mtime_ns == before
    train, val = (tiny_cohort.read(tiny_cohort.rows[split])[:, 0] for split in ("train", "val"))
    peak = np.ptp(val[0])
    expected = 20 * np.log10(peak) - 10 * np.log10(np.mean((val[0] - train.mean(0)) ** 2))
    assert len(val) == 1
    assert first["val/psnr"] == pytest.approx(expected, abs=1e-3)
