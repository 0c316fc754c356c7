"""`somvq push`: W&B online gets all of a study that it lacks, once, and says itself that it has it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_wandb import FakeWandb
from labs import SOMVQ, SOURCE, Lab, descendants, kill, wait_until
from PIL import Image

from somvq.data.cohort import Cohort
from somvq.runs import Run
from somvq.study.lease import Lease
from somvq.tracking.wandb import Tracked

KEY = "0123456789" * 4
TRIALS, EPOCHS = 6, 4
DIVERGED, FAILED = 1, 2  # trials, after two epochs
PICTURES = ("tsne", "codebook_grid", "reconstruction")


def draw(run: Run, epoch: int) -> None:
    for number, name in enumerate(PICTURES):
        noise = np.random.default_rng(epoch + 100 * number + int(run.folder.name)).integers(0, 255, (12, 12, 3))
        Image.fromarray(noise.astype(np.uint8)).save(run.figure(name, epoch))


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory, tiny_scans: Path, tiny_cohort: Cohort) -> Path:
    """A lab with a study that W&B knows nothing of: one trial diverged, one failed, pictures at two epochs."""
    folder = tmp_path_factory.mktemp("lab")
    lab = Lab(folder, tiny_scans, folder / "cohorts")
    lab.plan(epoch_s=0.0, trials={"0001": {"raise": "diverged", "at": 3}, "0002": {"raise": "bug", "at": 3}})
    lab.run("sweep", "tiny", "--trials", str(TRIALS), "--workers", "1", status=1)
    for number in range(TRIALS):
        for epoch in (1, 2):
            draw(lab.run_of(number), epoch)
    return folder


class Pusher:
    """A user's shell in a lab's folder, with a home of its own."""

    def __init__(self, folder: Path, home: Path, url: str, key: str = KEY):
        self.folder = folder
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "SOMVQ_"))}
        told = {"HOME": str(home), "PYTHONPATH": str(SOURCE), "WANDB_BASE_URL": url, "COLUMNS": "200"}
        self.environment = environment | told | ({"WANDB_API_KEY": key} if key else {})

    def start(self, *words: str, **environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*SOMVQ, *words],
            cwd=self.folder,
            env=self.environment | environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def __call__(self, *words: str, status: int = 0, **environment: str) -> str:
        process = self.start(*words, **environment)
        try:
            output = process.communicate(timeout=60)[0]
        finally:
            process.kill()
        assert process.returncode == status, output
        return output

    def run_of(self, number: int) -> Run:
        return Run(self.folder / "runs" / "tiny" / f"{number:04d}")


@pytest.fixture
def server() -> Iterator[FakeWandb]:
    with FakeWandb() as server:
        yield server


def copied(studied: Path, folder: Path, server: FakeWandb, **options: Any) -> Pusher:
    """A shell in a copy of the lab."""
    shutil.copytree(studied, folder / "lab", symlinks=True)
    (folder / "home").mkdir()
    return Pusher(folder / "lab", folder / "home", server.url, **options)


@pytest.fixture
def pusher(studied: Path, tmp_path: Path, server: FakeWandb) -> Pusher:
    return copied(studied, tmp_path, server)


@dataclass
class Pushed:
    """A study that was listed, then pushed."""

    server: FakeWandb
    pusher: Pusher
    listed: list[dict[str, Any]]
    told: str


@pytest.fixture(scope="module")
def pushed(studied: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pushed]:
    with FakeWandb() as server:
        pusher = copied(studied, tmp_path_factory.mktemp("pushed"), server)
        listed = json.loads(pusher("push", "tiny", "--dry-run", "--json"))
        assert server.bodies == []
        yield Pushed(server, pusher, listed, pusher("push", "tiny"))


def requests(server: FakeWandb, what: str) -> int:
    return sum(what.encode() in body for body in server.bodies)


def page_of(server: FakeWandb, label: str) -> dict[str, Any]:
    (found,) = [run for name, run in server.runs.items() if name.endswith(f"-{label}")]
    return found


def steps(page: dict[str, Any]) -> list[int]:
    return [row["_step"] for row in page["history"]]


def assert_whole(server: FakeWandb) -> None:
    """Every row once, every picture that may leave, every ending."""
    for number in range(TRIALS):
        last = 2 if number in (DIVERGED, FAILED) else EPOCHS
        assert steps(page_of(server, f"t{number:04d}")) == list(range(1, last + 1))
        assert page_of(server, f"t{number:04d}")["exit_code"] == int(number == FAILED)
    pictures = [name for name in server.files if "/media/images/" in name]
    assert len(pictures) == TRIALS * 2 * (len(PICTURES) - 1)
    assert not any("reconstruction" in name for name in pictures)
    assert steps(page_of(server, "summary")) == list(range(1, TRIALS + 1))


def test_what_is_listed_is_what_arrives(pushed: Pushed) -> None:
    assert_whole(pushed.server)
    assert {page["id"] for page in pushed.listed} == pushed.server.runs.keys()
    for page in pushed.listed:
        there = pushed.server.runs[page["id"]]
        assert [{key: row[key] for key in row if not key.startswith(("_", "media/"))} for row in there["history"]] == (
            page["rows"]
        )
        cells = [(row["_step"], key, row[key]) for row in there["history"] for key in row if key.startswith("media/")]
        arrived = {(step, key): len(pushed.server.files[f"{page['id']}/{value['path']}"]) for step, key, value in cells}
        assert {(each["step"], each["key"]): each["bytes"] for each in page["media"]} == arrived
        config = {key: value["value"] for key, value in there["config"].items() if key != "_wandb"}
        assert (config, there["displayName"], there["groupName"]) == (page["config"], page["name"], "tiny")
        assert (there["jobType"], there.get("tags") or []) == (page["kind"], page["tags"])
        assert there["summary"].items() >= page["summary"].items()


def test_a_push_says_what_it_did_and_status_where_to_look(pushed: Pushed) -> None:
    address = f"{pushed.server.url}/tester/somvq/groups/tiny"
    assert pushed.told.endswith(f"26 rows of {TRIALS + 1} runs sent, 0 there already: {address}\n")
    assert Tracked.read(pushed.pusher.run_of(0)) == Tracked(epoch=EPOCHS, mode="online", pictures=4)
    advice = pushed.pusher("status", "tiny")
    assert f"W&B      {address}" in advice
    assert "not on W&B" not in advice
    note = pushed.pusher.run_of(3).folder / "tracking.json"
    note.rename(note.with_suffix(".away"))  # as after a fork: its page is another study's
    advice = pushed.pusher("status", "tiny")
    note.with_suffix(".away").rename(note)
    assert "not on W&B yet: trial 3; " in advice


def test_a_push_tells_no_names_of_places(pushed: Pushed, tiny_scans: Path) -> None:
    places = (pushed.pusher.folder, tiny_scans, pushed.pusher.environment["HOME"], SOURCE)
    for private in (*map(str, places), socket.gethostname(), "output.log", "--dry-run"):
        assert requests(pushed.server, private) == 0, private


def test_a_second_push_sends_nothing(pushed: Pushed) -> None:
    pushed.server.bodies.clear()
    assert f"nothing new to send, {TRIALS + 1} there already" in pushed.pusher("push", "tiny")
    sending = [
        requests(pushed.server, what) for what in ("/file_stream", "UpsertBucket", "CreateRunFiles", "/storage/")
    ]
    assert (sending, len(pushed.server.bodies)) == ([0, 0, 0, 0], 3)


def test_the_study_has_a_page_of_its_own(pushed: Pushed) -> None:
    page = page_of(pushed.server, "summary")
    assert (page["displayName"], page["groupName"], page["jobType"], page["exit_code"]) == (
        "tiny summary",
        "tiny",
        "study",
        0,
    )
    rows = [pushed.pusher.run_of(number).rows()[-1] for number in range(TRIALS)]
    done = [None if n in (DIVERGED, FAILED) else rows[n]["val/ssim"] for n in range(TRIALS)]
    best = [max(value for value in done[: n + 1] if value is not None) for n in range(TRIALS)]
    assert [row["best/val/ssim"] for row in page["history"]] == best
    assert [row["study/finished"] for row in page["history"]] == [1, 2, 3, 4, 5, 6]
    assert [(row["study/done"], row["study/pruned"], row["study/failed"]) for row in page["history"]][-1] == (4, 1, 1)
    hours = [row["study/hours"] for row in page["history"]]
    assert 0 < hours[0] < hours[-1] == max(hours) < 0.05
    summary = page["summary"]
    assert summary["best/trial"] == done.index(best[-1])
    assert summary["best/gamma"] == pushed.pusher.run_of(summary["best/trial"]).record.config.gamma
    assert (summary["importance/gamma"], summary["study/target"], summary["study/running"]) == (1, TRIALS, 0)


def test_without_a_key_a_push_says_how_to_give_one(pusher: Pusher) -> None:
    del pusher.environment["WANDB_API_KEY"]
    told = pusher("push", "tiny", status=2)
    assert told.startswith("error: W&B has no API key here: export WANDB_API_KEY=..., or wandb login")
    assert told.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["refuses", "hangs", "away"])
def test_a_sick_server_costs_a_bounded_wait_and_one_line(pusher: Pusher, server: FakeWandb, fault: str) -> None:
    if fault == "away":
        pusher.environment["WANDB_BASE_URL"] = "http://127.0.0.1:9"
    else:
        setattr(server, fault, 403 if fault == "refuses" else True)
    began = time.monotonic()
    told = pusher("push", "tiny", status=1)
    assert time.monotonic() - began < 20
    assert ("it answers 403" if fault == "refuses" else "no answer within 8 seconds") in told
    assert told.count("\n") == 1
    server.refuses, server.hangs = 0, False
    pusher("push", "tiny", WANDB_BASE_URL=server.url, WANDB_MODE="offline")  # to push is to be online
    assert_whole(server)


@pytest.mark.slow
def test_a_server_that_goes_away_in_the_middle_costs_a_bounded_wait(pusher: Pusher, server: FakeWandb) -> None:
    server.slow_s = 0.1
    process = pusher.start("push", "tiny")
    wait_until(lambda: sum("exit_code" in run for run in list(server.runs.values())) >= 2)
    server.hangs, began = True, time.monotonic()
    told = process.communicate(timeout=40)[0]
    assert (process.returncode, time.monotonic() - began < 20) == (1, True), told
    assert "no answer within" in told
    server.hangs, server.slow_s = False, 0.0
    pusher("push", "tiny")
    assert_whole(server)


@pytest.mark.slow
@pytest.mark.parametrize("finished", [1, 4])
def test_a_push_that_was_killed_is_gone_on_with(pusher: Pusher, server: FakeWandb, finished: int) -> None:
    server.slow_s = 0.1
    process = pusher.start("push", "tiny")
    wait_until(lambda: sum("exit_code" in run for run in list(server.runs.values())) >= finished and server.runs)
    children = descendants(process.pid)
    process.kill()
    process.communicate()
    server.slow_s = 0.0
    for pid in children if finished == 4 else []:  # of the others wandb-core goes on for a moment
        kill(pid, signal.SIGKILL)
    assert len(server.runs) < TRIALS + 1
    pusher("push", "tiny")
    assert_whole(server)
    assert "nothing new to send" in pusher("push", "tiny")


@pytest.mark.slow
def test_what_the_server_does_not_keep_is_not_called_sent(pusher: Pusher, server: FakeWandb) -> None:
    server.swallows = True
    told = pusher("push", "tiny", status=1)
    assert "lacking  W&B was sent all of these and has not: tiny t0000, tiny t0001" in told
    assert f"{TRIALS + 1} of them not there" in told
    assert Tracked.read(pusher.run_of(0)).behind
    assert "not on W&B yet: 6 trials (0, 1, 2, 3, 4, 5)" in pusher("status", "tiny")
    server.swallows = False
    pusher("push", "tiny")
    assert_whole(server)


@pytest.mark.slow
def test_pictures_that_a_server_lost_are_added_where_its_rows_look_for_them(pusher: Pusher, server: FakeWandb) -> None:
    server.loses_pictures = True
    told = pusher("push", "tiny", status=1)
    assert "lacking  W&B was sent all of these and has not: tiny t0000" in told
    assert not [name for name in server.files if "/media/" in name]
    server.loses_pictures = False
    assert f"{TRIALS * 4} pictures added" in pusher("push", "tiny")
    assert_whole(server)
    for name, run in server.runs.items():
        named = {row[key]["path"] for row in run["history"] for key in row if key.startswith("media/")}
        assert named == {file for file in server.files_of(name) if file.startswith("media/")}
    assert "nothing new to send, 7 there already" in pusher("push", "tiny")
    assert f"{TRIALS * 2} pictures added" in pusher("push", "tiny", "--upload-brain-images")


@pytest.mark.slow
def test_a_run_that_cannot_be_read_keeps_no_other_from_being_sent(pusher: Pusher, server: FakeWandb) -> None:
    ledger = pusher.run_of(3).ledger
    ledger.write_text("{\n" + ledger.read_text())
    told = pusher("push", "tiny", status=1)
    assert f"damaged  {ledger} is damaged" in told
    assert f"{TRIALS} runs sent" in told
    assert not [name for name in server.runs if name.endswith("t0003")]


def test_a_setting_of_wandb_that_it_would_not_take_is_named(pusher: Pusher) -> None:
    told = pusher("push", "tiny", status=2, WANDB_BASE_URL="127.0.0.1:8080")
    assert told.startswith("error: WANDB_BASE_URL '127.0.0.1:8080' is impossible: ")
    assert told.count("\n") == 1


@pytest.mark.slow
def test_a_trial_under_way_is_left_to_its_worker(pusher: Pusher, server: FakeWandb) -> None:
    run = pusher.run_of(3)
    run.set_state("running")
    lease = Lease.take(run.folder)
    assert "left     tiny t0003: under way" in pusher("push", "tiny")
    assert not [name for name in server.runs if name.endswith("t0003")]
    lease.release()  # its worker is gone, and it waits for another
    pusher("push", "tiny")
    page = page_of(server, "t0003")
    assert (steps(page), page["exit_code"], page["preempting"]) == ([1, 2, 3, 4], 143, True)
    run.append({"epoch": 5, "val/ssim": 0.5})
    run.set_state("complete")
    pusher("push", "tiny")
    assert (steps(page), page["exit_code"]) == ([1, 2, 3, 4, 5], 0)


@pytest.mark.slow
def test_two_pushes_at_once_send_each_row_once(pusher: Pusher, server: FakeWandb) -> None:
    processes = [pusher.start("push", "tiny") for _ in range(2)]
    for process in processes:
        told = process.communicate(timeout=60)[0]
        assert process.returncode == 0, told
    assert_whole(server)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_what_a_sweep_could_not_send_a_push_does(
    tmp_path: Path, tiny_scans: Path, server: FakeWandb, mode: str
) -> None:
    """Offline, nothing; online, what came before the server broke down."""
    lab = Lab(tmp_path, tiny_scans, tmp_path / "cohorts")
    lab.plan(epoch_s=0.3)
    (tmp_path / "home").mkdir()
    home = {"HOME": str(tmp_path / "home"), "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
    sweep = lab.start("sweep", "tiny", "--trials", "2", "--workers", "1", "--wandb", mode, **home)
    wait_until(lambda: len(lab.run_of(0).rows()) == 2)
    server.down = True
    told = sweep.communicate(timeout=120)[0]
    assert sweep.returncode == 0, told
    assert "not on W&B yet: 2 trials (0, 1); " in told
    server.down = False
    lab.run("push", "tiny", **home)
    assert [steps(page_of(server, label)) for label in ("t0000", "t0001", "summary")] == [[1, 2, 3, 4]] * 2 + [[1, 2]]
    assert "not on W&B" not in lab.run("status", "tiny")


@pytest.mark.slow
def test_a_sweep_that_is_online_ends_with_the_study_on_its_page(
    tmp_path: Path, tiny_scans: Path, server: FakeWandb
) -> None:
    lab = Lab(tmp_path, tiny_scans, tmp_path / "cohorts")
    (tmp_path / "home").mkdir()
    home = {"HOME": str(tmp_path / "home"), "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
    for trials, entity in ((2, "team"), (3, "another")):  # the first decides
        told = lab.run("sweep", "tiny", "--trials", str(trials), "--wandb", "online", **home, WANDB_ENTITY=entity)
        assert steps(page_of(server, "summary")) == list(range(1, trials + 1))
        assert f"W&B      {server.url}/team/somvq/groups/tiny" in told
    assert (requests(server, "another"), requests(server, '"entity":"team"') > 5) == (0, True)
    assert "nothing new to send, 4 there already" in lab.run("push", "tiny", **home)


@pytest.mark.slow
def test_while_a_sweep_goes_on_its_own_page_says_how_it_stands(
    tmp_path: Path, tiny_scans: Path, server: FakeWandb
) -> None:
    lab = Lab(tmp_path, tiny_scans, tmp_path / "cohorts")
    lab.plan(epoch_s=0.5)
    (tmp_path / "home").mkdir()
    environment = {**os.environ, **lab.environment, "HOME": str(tmp_path / "home"), "WANDB_API_KEY": KEY}
    eager = "from somvq.study import herald; herald.PAUSE_S = 0.0; from somvq.cli import main; main()"
    sweep = subprocess.Popen(
        [sys.executable, "-c", eager, "sweep", "tiny", "--trials", "4", "--workers", "1", "--wandb", "online"],
        cwd=tmp_path,
        env=environment | {"WANDB_BASE_URL": server.url},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    lab.started.append(sweep)

    def told() -> int:
        return max([len(run["history"]) for name, run in list(server.runs.items()) if name.endswith("-summary")] + [0])

    wait_until(lambda: told() >= 1, process=sweep)
    assert sweep.poll() is None
    assert "was not sent" not in sweep.communicate(timeout=60)[0]
    assert (sweep.returncode, steps(page_of(server, "summary"))) == (0, [1, 2, 3, 4])
    lab.end()
