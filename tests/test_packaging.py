"""What a user installs: sweeps/ and jobs/ come along, and the main job runs where no checkout is near."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*words: object, folder: Path) -> str:
    """What a command prints; it must succeed. Nothing of the checkout or the user may reach it."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [str(word) for word in words], cwd=folder, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and a wheel made from that sdist."""
    folder = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, folder=ROOT)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder / "source", filter="data")
    source = next((folder / "source").iterdir())
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, folder=source)
    return folder


def test_the_wheel_holds_code_and_definitions_and_claims_no_name_but_ours(built: Path) -> None:
    names = zipfile.ZipFile(next(built.glob("*.whl"))).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"somvq"}
    for file in [*(ROOT / "sweeps").iterdir(), *(ROOT / "jobs").iterdir()]:
        assert f"somvq/{file.parent.name}/{file.name}" in names
    assert {f"somvq/report/report.{kind}" for kind in ("html", "css", "js")} <= set(names)
    assert "somvq/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_sdist_holds_what_tests_need(built: Path) -> None:
    source = next((built / "source").iterdir())
    for name in ("tests/test_packaging.py", "constraints.txt", "Makefile", "sweeps/psom.yaml", "LICENSE"):
        assert (source / name).exists(), name


def sweep_once(environment: Path, scans: Path, folder: Path) -> None:
    """`somvq sweep psom --trials 1` from the wheel in `environment`, far from any checkout."""
    python = environment / "bin" / "python"
    where = run(python, "-c", "import somvq; print(somvq.__file__)", folder=folder)
    assert Path(where.strip()).is_relative_to(environment)
    short = ("--set", "epochs=1", "--set", "ae_epochs=1", "--set", "grid=4x4")
    told = run(environment / "bin" / "somvq", "sweep", "psom", "--trials", 1, "--cohort", scans, *short, folder=folder)
    assert "somvq/sweeps/psom.yaml: init, topology" in told
    assert "psom: 1 done, 0 to go of 1 trials" in told
    assert len((folder / "runs" / "psom" / "0000" / "metrics.jsonl").read_text().splitlines()) == 1


@pytest.mark.slow
def test_the_wheel_runs_the_main_job_outside_the_checkout(built: Path, tiny_scans: Path, tmp_path: Path) -> None:
    """In a new environment that sees the packages we depend on, but not this checkout's somvq."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": environment, "platbase": environment}))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its own .pth files are not read
    wheel = next(built.glob("*.whl"))
    run(environment / "bin" / "pip", "install", "--no-deps", "--no-index", "--force-reinstall", wheel, folder=tmp_path)
    sweep_once(environment, tiny_scans, tmp_path)


@pytest.mark.slow
def test_the_wheel_installed_in_an_empty_environment_runs_the_main_job(
    built: Path, tiny_scans: Path, tmp_path: Path
) -> None:
    """With everything that it says it needs, and nothing else."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    wheel, constraints = next(built.glob("*.whl")), ROOT / "constraints.txt"
    run(environment / "bin" / "pip", "install", "--quiet", "--constraint", constraints, wheel, folder=tmp_path)
    run(environment / "bin" / "pip", "check", folder=tmp_path)
    sweep_once(environment, tiny_scans, tmp_path)
