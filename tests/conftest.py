"""A cohort small enough for every test: synthetic brains at 4.24 mm, 48 voxels a side, 27 tokens."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch loads, also by children

from collections.abc import Iterator
from pathlib import Path

import pytest
from brains import brain, save
from databases import PostgreSQL, find_binaries

from somvq.config import CohortSettings
from somvq.data.cache import prepare_cohort
from somvq.data.cohort import Cohort
from somvq.data.demo import make_demo_cohort


@pytest.fixture(scope="session")
def tiny_scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 8 scans."""
    folder = tmp_path_factory.mktemp("scans") / "tiny"
    make_demo_cohort(folder, subjects=8, voxel_mm=4.24)
    return folder


@pytest.fixture(scope="session")
def tiny_cohort(tiny_scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """The 8 scans prepared: 6 train, 1 val, 1 test."""
    return prepare_cohort(tiny_scans, CohortSettings(), tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def folder(tmp_path):
    """Three subjects, one scan each."""
    for seed in range(3):
        save(tmp_path / "lab" / f"sub-{seed:02d}_T1w.nii.gz", brain(seed))
    return tmp_path / "lab"


@pytest.fixture
def caches(tmp_path):
    return tmp_path / "prepared"


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL server for this session's tests, running when each begins."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL's initdb and pg_ctl are not installed")
    server = PostgreSQL(binaries)
    yield server
    server.remove()


@pytest.fixture
def postgresql_url(postgresql: PostgreSQL) -> str:
    """A new, empty database."""
    return postgresql.create_database()
