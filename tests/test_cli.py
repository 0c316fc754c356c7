"""What is printed: through the real program, since a user has no other way in."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

SOMVQ = [sys.executable, "-m", "somvq"]


def somvq(folder: Path, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, **environment}
    return subprocess.run(
        [*SOMVQ, *words], cwd=folder, capture_output=True, text=True, timeout=120, env=env, check=False
    )


def refusal(folder: Path, *words: str, status: int = 2, **environment: str) -> str:
    """The one line on stderr with which a command is refused; nothing else may be left behind."""
    before = set(folder.rglob("*"))
    done = somvq(folder, *words, **environment)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
    cached = (".lock", ".digests.json")  # of files that lay there for seconds: on a busy machine these do
    left = {path for path in set(folder.rglob("*")) - before if path.is_file() and not path.name.endswith(cached)}
    assert not left, left
    return done.stderr


def write_scan(path: Path, voxels: np.ndarray) -> None:  # type: ignore[type-arg]
    nib.save(nib.Nifti1Image(voxels.astype(np.float32), np.eye(4)), path)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Three small volumes that can be used."""
    folder = tmp_path / "scans"
    folder.mkdir()
    random = np.random.default_rng(0)
    for subject in (1, 2, 3):
        voxels = np.zeros((32, 32, 32))
        voxels[6:26, 6:26, 6:26] = 100 + 10 * random.standard_normal((20, 20, 20))
        write_scan(folder / f"sub-{subject}_T1w.nii.gz", voxels)
    return folder


def test_help_comes_at_once_and_loads_nothing_heavy(tmp_path: Path) -> None:
    code = """
import sys
sys.argv = ["somvq", "--help"]
from somvq.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
heavy = {"torch", "optuna", "wandb", "numpy", "nibabel", "matplotlib", "sklearn"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    seconds = []
    for _ in range(5):
        began = time.monotonic()
        assert "somvq sweep psom --trials 4" in somvq(tmp_path, "--help").stdout
        seconds.append(time.monotonic() - began)
    assert min(seconds) < 0.4


@pytest.mark.parametrize(
    "command",
    ["sweep", "train", "resume", "status", "compare", "evaluate", "worker", "push", "settings", "cohort demo"],
)
def test_every_command_explains_itself(command: str, tmp_path: Path) -> None:
    done = somvq(tmp_path, *command.split(), "--help")
    assert done.returncode == 0
    assert "Usage: " in done.stdout


def test_no_words_at_all_are_answered_with_help(tmp_path: Path) -> None:
    assert "Usage: " in somvq(tmp_path).stdout + somvq(tmp_path).stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["sweep", "pson"], "no sweep is called 'pson'; there are ae, psom, som"),
        (["sweep", "psom", "--trials", "0"], "--trials 0 is too few: give 1 or more"),
        (["sweep", "psom", "--trials", "-3"], "--trials -3 is too few"),
        (["sweep", "psom", "--trials", "many"], "Invalid value for '--trials'"),
        (["sweep", "psom", "--workers", "0"], "--workers 0 is too few"),
        (
            ["sweep", "psom", "--set", "gama=1"],
            "--set gama: is not a setting that can be searched; did you mean 'gamma'?",
        ),
        (
            ["sweep", "psom", "--set", "gamma=-1"],
            "--set gamma: -1 is impossible: input should be greater than or equal",
        ),
        (["sweep", "psom", "--set", "gamma"], "--set gamma is not KEY=VALUE"),
        (["sweep", "psom", "--set", "alpha={a"], "--set alpha={a: {a is neither a number nor a word"),
        (["sweep", "psom", "--set", "alpha=[0, 2]"], "--set alpha: 0 is impossible: input should be greater than 0"),
        (["sweep", "psom", "--set", "epochs=true"], "--set epochs: give one value"),
        (["sweep", "psom", "--shape", "foo"], "--shape foo is not three numbers of voxels"),
        (["sweep", "psom", "--storage", "sqlite:///nowhere/x.db"], "there is no folder nowhere; make it first"),
        (["sweep", "psom", "--job", "cloud"], "no job is called 'cloud'; there are local"),
        (["sweep", "psom", "--study", "a/b"], "study name 'a/b' must be 1 to 64 letters"),
        (["sweep", "psom", "--shape", "100x100x100"], "shape 100x100x100 has a side that is not a multiple of 16"),
        (["sweep", "psom", "--voxel-mm", "-1"], "--voxel-mm -1.0: input should be greater than 0"),
        (["sweep", "psom", "--cohort", "nowhere"], "cohort nowhere does not exist"),
        (["sweep", "psom", "--wandb", "maybe"], "command line: wandb 'maybe' is impossible"),
        (["sweep", "psom", "--storage", "redis://h"], "storage redis://h is not known"),
        (["sweep"], "Missing argument 'name'"),
        (["swep"], "No such command 'swep'"),
        (["train", "gan"], "no model is called 'gan'"),
        (["train", "ae", "--set", "gamma=3"], "model ae has no codebook"),
        (["resume", "nothing"], "no study 'nothing' in runs (there: none yet)"),
        (["status", "nothing"], "no study 'nothing'"),
        (["worker", "nothing"], "no study 'nothing'"),
        (["evaluate", "nothing"], "no study 'nothing' in runs (there: none yet)"),
        (["evaluate", "psom/3"], "no run at psom/3: give a run's folder, STUDY/NUMBER or a study (there: none yet)"),
        (["evaluate", "psom", "--split", "tests"], "--split tests: did you mean 'test'?"),
        (["train", "psom", "--set", "model=vae"], "--set model=vae: say somvq train vae"),
        (["train", "psom", "--set", "seed=3"], "each trial has a seed of its own, from --seed 3"),
        (["train", "psom", "--set", "grid=16"], "grid '16' is not HEIGHTxWIDTH, two whole numbers"),
        (["sweep", "som", "--set", "update=ema"], "the sweep file says alpha: copy it, and take that line out"),
        (["train", "psom", "--set", "gamma=[1, 2]"], "--set gamma: give one value; somvq sweep tries several"),
        (["sweep", "table1", "--set", "row=somtoroid"], "no row is called 'somtoroid'; did you mean 'som-toroid'?"),
        (["sweep", "ae", "--trials", "3"], "--trials 3 is more than the 2 combinations of this grid"),
        (["sweep", "psom", "--split", "80/20"], "--split 80/20: split '80/20' is not TRAIN/VAL/TEST"),
        (["sweep", "psom", "--padding", "zero"], "--padding zero: input should be 'background' or 'mean'"),
        (["cohort", "demo", "x", "--subjects", "0"], "subjects"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_request_is_one_line(words: list[str], told: str, tmp_path: Path) -> None:
    line = refusal(tmp_path, *words)
    assert told in line
    assert line.count("\n") == 1


def test_a_cohort_of_too_few_subjects_is_refused(scans: Path) -> None:
    (scans / "sub-3_T1w.nii.gz").unlink()
    line = refusal(scans.parent, "sweep", "psom", "--cohort", "scans")
    assert "2 subjects (sub-1, sub-2) cannot be split into train, val and test; give scans of at least 3" in line


def test_an_empty_cohort_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "cohort empty holds no T1 volume" in refusal(tmp_path, "sweep", "psom", "--cohort", "empty")


@pytest.mark.parametrize("damage", ["cut", "flipped", "NaN", "constant"])
def test_a_scan_that_cannot_be_used_is_named_with_what_to_do(damage: str, scans: Path) -> None:
    bad = scans / "sub-4_T1w.nii.gz"
    whole = (scans / "sub-1_T1w.nii.gz").read_bytes()
    if damage == "cut":
        bad.write_bytes(whole[:-2000])
    elif damage == "flipped":
        middle = len(whole) // 2
        bad.write_bytes(whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :])
    else:
        write_scan(bad, np.full((32, 32, 32), np.nan if damage == "NaN" else 7.0))
    told = refusal(scans.parent, "sweep", "psom", "--cohort", "scans", "--strict")
    expected = {"cut": "ends too early", "flipped": "damaged", "NaN": "NaN or infinite", "constant": "every voxel is 7"}
    assert told.count("\n") == 1
    assert "scans/sub-4_T1w.nii.gz: " in told
    assert expected[damage] in told
    assert told.endswith("; without --strict it is left out\n")


def test_a_runs_folder_that_cannot_be_written_is_named(scans: Path) -> None:
    """/proc takes no files, even from root."""
    line = refusal(scans.parent, "sweep", "psom", "--cohort", "scans", "--runs", "/proc/runs", status=1)
    assert line.startswith("error: /proc/runs")
    assert "choose another place" in line


def test_a_mistyped_variable_is_refused(tmp_path: Path) -> None:
    assert "SOMVQ_RUN is not a setting; did you mean 'SOMVQ_RUNS'?" in refusal(tmp_path, "settings", SOMVQ_RUN="x")


def test_a_study_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    for name in ("empty", "broken"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "study.db").write_bytes(b"" if name == "empty" else b"no database" * 500)
    done = somvq(tmp_path, "status")
    assert "study.db cannot be opened: file is not a database" in done.stderr
    assert "no study 'empty'" in done.stderr


def test_settings_are_printed_with_their_source_and_without_secrets(tmp_path: Path) -> None:
    (tmp_path / "somvq.yaml").write_text("wandb_project: lab\n")
    done = somvq(tmp_path, "settings", "--json", SOMVQ_STORAGE="postgresql://me:secret@host/db")
    told = json.loads(done.stdout)
    assert told["wandb_project"] == {"value": "lab", "from": "somvq.yaml"}
    assert told["storage"] == {"value": "postgresql://me:***@host/db", "from": "SOMVQ_STORAGE"}
    assert told["runs"] == {"value": "runs", "from": "default"}
    table = somvq(tmp_path, "settings", SOMVQ_STORAGE="postgresql://me:secret@host/db").stdout
    assert "secret" not in table
    assert "SOMVQ_STORAGE" in table


def test_status_of_nothing_says_how_to_begin(tmp_path: Path) -> None:
    assert "no study in runs yet; begin with somvq sweep psom" in somvq(tmp_path, "status").stdout
    assert json.loads(somvq(tmp_path, "status", "--json").stdout) == []


def test_the_version_is_printed(tmp_path: Path) -> None:
    from somvq import __version__

    assert somvq(tmp_path, "--version").stdout == f"somvq {__version__}\n"


def test_a_demo_cohort_is_made_and_prepared_by_command(tmp_path: Path) -> None:
    made = somvq(tmp_path, "cohort", "demo", "brains", "--subjects", "3", "--voxel-mm", "6")
    assert "3 synthetic brains at 6 mm in brains; train on them with --cohort brains" in made.stdout
    prepared = somvq(tmp_path, "cohort", "prepare", "brains")
    assert prepared.returncode == 0, prepared.stderr
    assert "1 train / 1 val / 1 test" in prepared.stdout
    assert len(list(tmp_path.glob("cohorts/prepared/brains-*/volumes.npy"))) == 1


@pytest.mark.parametrize(("sign", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_stopped_while_it_prepares_says_so(sign: signal.Signals, status: int, tmp_path: Path) -> None:
    process = subprocess.Popen([*SOMVQ, "sweep", "psom"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "cohorts" / "demo" / "demo.json").exists():
        time.sleep(0.05)
    process.send_signal(sign)
    assert process.communicate()[1] == "error: stopped; the same command goes on\n"
    assert process.returncode == status
    assert not (tmp_path / "runs" / "psom").exists()
