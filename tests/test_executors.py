import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from somvq.definitions import JobDefinition
from somvq.executors import EXECUTORS, local
from somvq.executors.job import Executor, Job
from somvq.executors.local import LocalExecutor, threads
from somvq.processes import GPU_SHARE, gpus_in_use

Submit = Callable[[str], Job]


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> Executor:
    return EXECUTORS[request.param](JobDefinition(executor=request.param, workers=2))


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


def test_workers_share_the_cores_unless_the_user_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(local, "usable_cores", lambda: 8)
    shares = [threads(workers)["OMP_NUM_THREADS"] for workers in (1, 3, 16)]
    assert shares == ["8", "2", "1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert threads(3) == {}


def visible(place: JobDefinition, monkeypatch: pytest.MonkeyPatch, gpus: str, slots: int) -> list[str]:
    """What each slot's worker sees of `gpus`, and its share."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    executor = LocalExecutor(place)
    told = [executor.gpu(slot) for slot in range(slots)]
    return [f"{each['CUDA_VISIBLE_DEVICES']}:{each[GPU_SHARE]}" for each in told if each]


def test_each_gpu_gets_a_worker_or_as_many_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    one = JobDefinition(executor="local")
    assert visible(one, monkeypatch, "3,5", 2) == ["3:1", "5:1"]
    assert LocalExecutor(one).workers == 2
    two = JobDefinition(executor="local", workers_per_gpu=2)
    assert visible(two, monkeypatch, "GPU-1a,GPU-2b", 4) == ["GPU-1a:0.5", "GPU-2b:0.5", "GPU-1a:0.5", "GPU-2b:0.5"]
    assert LocalExecutor(two).workers == 4
    three = JobDefinition(executor="local", workers=3)
    assert visible(three, monkeypatch, "0", 3) == ["0:0.3333"] * 3
    assert visible(one, monkeypatch, "", 1) == visible(one, monkeypatch, "-1", 1) == []
    assert LocalExecutor(one).workers == 1


def test_the_hours_of_a_gpu_are_shared_like_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert gpus_in_use() == 1
    monkeypatch.setenv(GPU_SHARE, "0.5")
    assert gpus_in_use() == 0.5
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus_in_use() == 0


def test_a_replacement_gets_the_gpu_of_the_job_that_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    executor = LocalExecutor(JobDefinition(executor="local"))
    code = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); import time; time.sleep(60)"

    def start(name: str) -> Job:
        job = executor.submit([sys.executable, "-c", code], log=tmp_path / name, environment={})
        while not job.log.read_text():
            time.sleep(0.02)
        return job

    first, second = start("first"), start("second")
    second.kill()
    wait(second)
    third = start("third")
    assert [job.log.read_text().strip() for job in (first, second, third)] == ["0", "1", "1"]
    for job in (first, third):
        job.kill()
        wait(job)
