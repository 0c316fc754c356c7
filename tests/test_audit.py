"""What a run says of its making: true, quick, whole in its folder, and nowhere else."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from somvq import audit as audit_module
from somvq.audit import COMMAND, Audit, Checkout, Device, read_audit, read_checkout, read_checkouts, read_device
from somvq.config import RunConfig
from somvq.runs import Run, RunRecord
from somvq.tracking.contents import config_of

ROOT = Path(__file__).parents[1]
MARKER = "marker-0666"
CPU = Device(name="a CPU", capability="AVX2", threads=2)
GPU = Device(name="a GPU", capability="9.0", threads=2, driver="570.1", cuda="12.8", cudnn="91002")


def git(folder: Path, *words: str) -> str:
    named = ("-c", "user.name=me", "-c", "user.email=me@here", "-c", "init.defaultBranch=main")
    done = subprocess.run(["git", "-C", str(folder), *named, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with one commit of two files."""
    folder = tmp_path / "a repository"
    (folder / "inner").mkdir(parents=True)
    git(folder, "init")
    (folder / "code.py").write_text("x = 1\n")
    (folder / "inner" / "more.py").write_text("y = 1\n")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "first")
    return folder


def an_audit(**changes: object) -> Audit:
    return Audit.model_validate({"command": "", "cwd": "", "host": "", "versions": {}, "platform": {}, **changes})


def a_record(folder: Path, audit: Audit | None) -> RunRecord:
    return RunRecord(
        config=RunConfig(model="psom"),
        cohort=folder / "cohort",
        cohort_fingerprint="c0ffee",
        study="s",
        name="s t0000",
        wandb_id="s-1-t0000",
        versions={"torch": "2.6.0"},
        audit=audit,
    )


def test_a_clean_checkout_is_its_commit(repository: Path) -> None:
    found = read_checkout(str(repository / "inner"))
    assert found == Checkout(folder=str(repository), sha=git(repository, "rev-parse", "HEAD"), dirty=False)


def test_a_patch_has_no_password(repository: Path, tmp_path: Path) -> None:
    (repository / "code.py").write_text("storage: postgresql://me:secret-0666@host/db?sslpassword=secret-0667\n")
    found = read_checkout(str(repository))
    assert found is not None
    an_audit(git={"folder": found}).keep_patches(tmp_path)
    patch = (tmp_path / "folder.patch").read_text()
    assert "storage: postgresql://me:***@host/db" in patch
    assert "secret" not in patch


def test_uncommitted_changes_make_a_patch_that_makes_them_again(repository: Path, tmp_path: Path) -> None:
    (repository / "code.py").write_text("x = 2\n")
    (repository / "inner" / "more.py").write_text("y = 2\n")
    git(repository, "add", "inner/more.py")  # staged or not
    (repository / "néw file").write_text("")
    before = set(repository.rglob("*"))
    found = read_checkout(str(repository / "inner"))
    assert found is not None
    assert (found.dirty, found.untracked) == (True, ("néw file",))
    assert set(repository.rglob("*")) == before
    git(repository, "reset", "--hard")
    an_audit(git={"source": found}).keep_patches(tmp_path)
    git(repository, "apply", str(tmp_path / "source.patch"))
    assert [(repository / name).read_text() for name in ("code.py", "inner/more.py")] == ["x = 2\n", "y = 2\n"]
    again = read_checkout(str(repository))
    assert again is not None
    assert again.diff_sha256 == found.diff_sha256
    (repository / "code.py").write_text("x = 3\n")
    other = read_checkout(str(repository))
    assert other is not None
    assert other.diff_sha256 != found.diff_sha256


def test_a_large_patch_is_told_and_not_kept(repository: Path, tmp_path: Path) -> None:
    (repository / "code.py").write_text("x = 2  # and so on\n" * 100_000)
    found = read_checkout(str(repository))
    assert found is not None
    assert (found.dirty, len(found.diff_sha256), found.patch) == (True, 64, b"")
    an_audit(git={"source": found}).keep_patches(tmp_path)
    assert not (tmp_path / "source.patch").exists()


def test_somvq_that_is_installed_below_a_checkout_is_not_of_it(repository: Path, tmp_path: Path) -> None:
    installed = repository / ".venv" / "audit.py"
    installed.parent.mkdir()
    installed.write_text("")
    assert read_checkouts(installed, str(tmp_path)) == {}
    assert list(read_checkouts(installed, str(repository))) == ["folder"]
    assert list(read_checkouts(repository / "code.py", str(repository / "inner"))) == ["source"]  # one is enough


@pytest.mark.parametrize("git_program", ["none", "hangs", "refuses"])
def test_git_fails_and_holds_up_no_run(
    git_program: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_module, "GIT_S", 0.3)
    programs = tmp_path / "programs"
    programs.mkdir()
    if git_program != "none":
        says = {"hangs": "/bin/sleep 30", "refuses": "echo dubious ownership >&2; exit 128"}[git_program]
        (programs / "git").write_text(f"#!/bin/sh\n{says}\n")
        (programs / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    began = time.monotonic()
    assert read_checkouts(repository / "code.py", str(repository)) == {}
    assert time.monotonic() - began < 2


def test_a_folder_without_a_commit_or_that_is_gone_is_no_checkout(tmp_path: Path) -> None:
    git(tmp_path, "init")
    assert read_checkout(str(tmp_path)) is None
    assert read_checkout(str(tmp_path / "gone")) is None


AUDIT = "from somvq.audit import read_audit; print(read_audit().model_dump_json())"


def audit_of(folder: Path, *words: str, **environment: str) -> Audit:
    """What a process in `folder` with these arguments says of itself."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", AUDIT, *words],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    return Audit.model_validate_json(done.stdout)


def test_an_audit_says_where_and_by_what_a_run_was_begun_and_no_secret(repository: Path) -> None:
    secrets = {"WANDB_API_KEY": "secret", "SLURM_JWT": "secret"}
    found = audit_of(
        repository, "--storage", "postgresql://me:secret@h/db", "two words", SLURM_ARRAY_TASK_ID="7", **secrets
    )
    assert found.command == "-c --storage 'postgresql://me:***@h/db' 'two words'"
    assert (found.cwd, found.git["folder"].folder) == (str(repository), str(repository))
    assert found.slurm == {"SLURM_ARRAY_TASK_ID": "7"}
    assert found.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found.versions.keys() >= {"somvq", "torch", "optuna", "wandb", "numpy", "nibabel", "scikit-learn", "all"}
    assert int(found.platform["cores"]) >= 1
    assert found.platform["cpu"]
    assert "secret" not in found.model_dump_json()


def test_workers_keep_the_command_that_the_user_typed(tmp_path: Path) -> None:
    assert audit_of(tmp_path, "worker", **{COMMAND: "somvq sweep psom"}).command == "somvq sweep psom"


@pytest.mark.parametrize(
    ("program", "words"), [("/venv/bin/somvq", "somvq"), ("/lib/somvq/__main__.py", "python -m somvq")]
)
def test_a_command_is_told_as_it_can_be_typed_again(program: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [program, "sweep", "psom", "--set", "init=ae som"])
    assert audit_module.typed_command() == f"{words} sweep psom --set 'init=ae som'"


def test_the_device_is_told_as_torch_has_it() -> None:
    import torch

    found = read_device()
    assert found.threads == torch.get_num_threads()
    assert found.settings["OMP_WAIT_POLICY"] == "PASSIVE"  # of conftest.py
    assert found.flags["deterministic"] == "False"
    assert found.name
    assert Device.model_validate_json(found.model_dump_json()) == found


def test_a_run_keeps_its_audit_and_patch_and_the_devices_that_it_was_on(tmp_path: Path) -> None:
    dirty = Checkout(folder="/code", sha="abc", dirty=True, diff_sha256="def", patch=b"--- a\n+++ b\n")
    run = Run.create(tmp_path / "run", a_record(tmp_path, an_audit(command="somvq sweep", git={"source": dirty})))
    assert (run.folder / "source.patch").read_bytes() == b"--- a\n+++ b\n"
    for device in (CPU, CPU, GPU, CPU):
        Run(run.folder).note_device(device)
    again = Run.create(run.folder, a_record(tmp_path, an_audit(command="somvq resume")))
    assert again.record.audit is not None
    assert again.record.audit.command == "somvq sweep"
    assert again.record.devices == (CPU, GPU, CPU)
    assert again.record.identity() == a_record(tmp_path, None).identity()


def test_a_run_that_is_found_is_not_written(tmp_path: Path) -> None:
    """Another worker's attempt may be noting its device meanwhile."""
    run = Run.create(tmp_path / "run", a_record(tmp_path, None))
    before = (run.folder / "config.json").stat()
    Run.create(run.folder, a_record(tmp_path, an_audit()))
    assert (run.folder / "config.json").stat().st_mtime_ns == before.st_mtime_ns


def test_nothing_of_an_audit_leaves_but_the_commit_and_the_name_of_the_device(tmp_path: Path) -> None:
    """The page of a run on W&B is made of what `config_of` gives, the ledger and the figures."""
    told = an_audit(
        command=MARKER,
        cwd=f"/{MARKER}",
        host=MARKER,
        git={"source": Checkout(folder=MARKER, sha=MARKER, dirty=True, untracked=(MARKER,))},
        versions={"all": MARKER},
        platform={"cpu": MARKER},
        slurm={"SLURM_JOB_ID": MARKER},
    )
    run = Run.create(tmp_path / "run", a_record(tmp_path, told))
    run.note_device(CPU.model_copy(update={"name": MARKER}))
    assert (run.folder / "config.json").read_text().count(MARKER) == 10
    leaves = config_of(run.record)
    assert [key for key, value in leaves.items() if MARKER in str(value)] == ["device", "commit"]
    assert json.dumps(leaves).count(MARKER) == 2


def test_an_audit_is_read_once_by_a_process() -> None:
    assert read_audit() is read_audit()
