import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from somvq.executors import EXECUTORS
from somvq.executors.job import Executor, Job
from somvq.executors.local import LocalExecutor, gpu, threads

Submit = Callable[[str], Job]


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> Executor:
    return EXECUTORS[request.param](2)


@pytest.fixture
def submit(executor: Executor, tmp_path: Path) -> Submit:
    def submit_python(code: str) -> Job:
        return executor.submit(
            [sys.executable, "-c", code], log=tmp_path / "logs" / "job.log", environment={"FOO": "bar"}
        )

    return submit_python


def wait(job: Job) -> int:
    deadline = time.monotonic() + 30
    while (status := job.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return status


def test_a_finished_job_says_so_and_keeps_what_it_printed(submit: Submit) -> None:
    job = submit("import os; print('trained', os.environ['FOO'])")
    assert wait(job) == 0
    assert job.log.read_text() == "trained bar\n"


def test_a_failed_job_gives_its_exit_status(submit: Submit) -> None:
    assert wait(submit("raise SystemExit(3)")) == 3


def test_a_job_can_be_asked_to_stop_and_made_to(submit: Submit) -> None:
    asked = submit("import time; time.sleep(60)")
    assert asked.poll() is None
    asked.terminate()
    assert wait(asked) == -15
    deaf = submit("import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)")
    while "deaf" not in deaf.log.read_text():
        time.sleep(0.02)
    deaf.terminate()
    time.sleep(0.2)
    assert deaf.poll() is None
    deaf.kill()
    assert wait(deaf) == -9


def test_jobs_append_to_the_same_log(submit: Submit) -> None:
    wait(submit("print(1)"))
    job = submit("print(2)")
    wait(job)
    assert job.log.read_text() == "1\n2\n"


def test_workers_share_the_cores_and_take_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert [threads(workers) for workers in (1, 3, 16)] == [
        {"OMP_NUM_THREADS": "8"},
        {"OMP_NUM_THREADS": "2"},
        {"OMP_NUM_THREADS": "1"},
    ]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [gpu(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["3", "5", "3"]
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert threads(3) == {}


def test_local_jobs_see_their_own_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    executor = LocalExecutor(2)
    code = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    jobs = [
        executor.submit([sys.executable, "-c", code], log=tmp_path / f"{slot}.log", environment={}) for slot in range(2)
    ]
    assert [wait(job) for job in jobs] == [0, 0]
    assert [job.log.read_text().strip() for job in jobs] == ["0", "1"]
