"""W&B's view of a run: everything that may leave, once, and never at the cost of the run."""

import base64
import getpass
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from fake_wandb import FakeWandb
from followers import POISON, ROOT, Worker
from labs import Lab
from PIL import Image

from somvq.audit import Device
from somvq.config import RunConfig
from somvq.data.cohort import Cohort
from somvq.files import write_json
from somvq.runs import METRICS, UNITS, Run, RunRecord
from somvq.tracking import ALIASES, DEFAULT_BASE_URL, Tracker, build_tracker, resolve
from somvq.tracking.contents import BRAIN_PICTURES, PICTURES, contents_table, pictures_of
from somvq.tracking.wandb import Tracked, patience_s

FIGURE_EPOCHS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # gallery.py's, which loads torch
KEY = "0123456789" * 4
REFUSALS = (403, 404, 429)
ENDS = b"\x89PNG", b"IEND\xaeB`\x82"  # of a picture's file
REAL = """
method: random
metric: {name: val/ssim, goal: maximize}
parameters: {model: {value: psom}, grid: {value: 4x4}, epochs: {value: 2}}
"""


@contextmanager
def worker(home: Path, **options: Any) -> Iterator[Worker]:
    """A worker that ends well, says nothing, and does not take long to end."""
    it = Worker(home, **options)
    try:
        yield it
        printed, errors = it.process.communicate(timeout=10)
        assert (it.process.returncode, printed, errors) == (0, "", "")
    finally:
        it.process.kill()
        it.process.communicate()


@dataclass
class Page:
    """What one offline folder holds, read from its log of records."""

    rows: dict[int, dict[str, Any]]  # by step
    exit_code: int | None
    summary: dict[str, Any]
    config: dict[str, Any]
    run: Any


def payloads(log: bytes) -> Iterator[bytes]:
    """The records of a `.wandb` file: LevelDB's log format after a header of 7 bytes; a torn end is left out."""
    position, parts = 7, b""
    while position + 7 <= len(log):
        if 32768 - position % 32768 < 7:  # a record's header never spans two blocks
            position += 32768 - position % 32768
            continue
        length, kind = int.from_bytes(log[position + 4 : position + 6], "little"), log[position + 6]
        parts += log[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4) and position <= len(log):  # a whole record, or the last part of one
            yield parts
            parts = b""


def values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def pages(run: Run) -> list[Page]:
    """The offline folders of `run`, oldest first."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for file in sorted(run.folder.glob(f"wandb/offline-run-*-{run.record.wandb_id}*/run-{run.record.wandb_id}.wandb")):
        page = Page({}, None, {}, {}, None)
        for record in map(Record.FromString, payloads(file.read_bytes())):
            if record.HasField("history"):
                page.rows[record.history.step.num] = values(record.history.item)
            elif record.HasField("exit"):
                page.exit_code = record.exit.exit_code
            elif record.HasField("summary"):
                page.summary |= values(record.summary.update)
            elif record.HasField("run"):
                page.run = record.run
                page.config |= values(record.run.config.update)
        found.append(page)
    return found


def make_run(folder: Path, epochs: int = 0, *, epochs_of_run: int = 40) -> Run:
    """A run in a folder that names a person, `epochs` into its training."""
    record = RunRecord(
        config=RunConfig(model="psom", epochs=epochs_of_run),
        cohort=folder / "cohort",
        cohort_fingerprint="c0ffee",
        study="psom",
        name="psom t0007",
        wandb_id="psom-abc123-t0007",
        versions={"somvq": "0.9", "torch": "2.6.0"},
        devices=(Device(name="a GPU", capability="9.0", threads=1),),
    )
    run = Run.create(folder / POISON, record)
    train(run, range(1, epochs + 1))
    return run


def train(run: Run, epochs: range) -> None:
    for epoch in epochs:
        for name in ("codebook_grid", "reconstruction"):
            Image.fromarray(drawing(epoch)).save(run.figure(name, epoch))
        run.append({"epoch": epoch, "val/ssim": epoch / 10, "train/loss": 1 / epoch})


def drawing(epoch: int) -> np.ndarray:
    return (np.arange(6 * 8 * 3).reshape(6, 8, 3) + epoch).astype(np.uint8)


def until(reached: Callable[[], bool], *, timeout_s: float = 20.0) -> None:
    """Waits until `reached`."""
    deadline = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def server() -> Iterator[FakeWandb]:
    with FakeWandb() as server:
        yield server


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was followed offline from before its first epoch to its end."""
    folder = tmp_path_factory.mktemp("followed")
    run = make_run(folder)
    with worker(folder) as tracking:
        assert tracking.follow(run) < 0.1
        train(run, range(1, 3))
        until(lambda: Tracked.read(run).epoch == 2)  # live: the run has not ended
        train(run, range(3, 6))
        assert tracking.finish("complete") < 15
    return run


def test_every_epoch_is_in_the_offline_folder_at_its_step(followed: Run) -> None:
    (page,) = pages(followed)
    assert {step: (row["epoch"], row["val/ssim"]) for step, row in page.rows.items()} == {
        epoch: (epoch, epoch / 10) for epoch in range(1, 6)
    }
    assert Tracked.read(followed) == Tracked(epoch=5)


def test_a_page_says_what_the_run_is_and_how_it_ended(followed: Run) -> None:
    (page,) = pages(followed)
    assert (page.run.run_id, page.run.run_group, page.run.job_type) == ("psom-abc123-t0007", "psom", "trial")
    assert (page.run.display_name, page.run.host) == ("psom t0007", "redacted")
    assert page.config.items() >= {"model": "psom", "grid": "16x16", "cohort": "c0ffee"}.items()
    assert (page.exit_code, page.summary["trial/state"]) == (0, "complete")


def test_a_picture_arrives_as_it_was_drawn(followed: Run) -> None:
    (page,) = pages(followed)
    for epoch, row in page.rows.items():
        (file,) = followed.folder.glob(f"wandb/offline-run-*/files/{row['media/codebook_grid/path']}")
        arrived = np.asarray(Image.open(file))
        assert arrived.max() > 100, "black"
        np.testing.assert_array_equal(arrived, drawing(epoch))
        assert file.read_bytes() == followed.figure("codebook_grid", epoch).read_bytes()


def test_a_brain_leaves_only_when_the_user_says_so(followed: Run, home: Path) -> None:
    run = make_run(home, epochs=1)
    with worker(home, upload_brain_images=True) as tracking:
        tracking.follow(run)
        tracking.finish("complete")
    assert "media/reconstruction/path" in pages(run)[0].rows[1]
    assert all("media/reconstruction/path" not in row for row in pages(followed)[0].rows.values())
    assert not list(followed.folder.glob("wandb/**/*reconstruction*"))


def test_a_second_attempt_repeats_no_epoch_and_leaves_none_out(home: Path) -> None:
    run = make_run(home, epochs=3)
    killed = Worker(home)
    killed.follow(run)
    until(lambda: Tracked.read(run).epoch == 3)
    time.sleep(0.8)  # wandb-core writes twice a second
    killed.process.kill()
    killed.process.communicate()
    train(run, range(4, 6))
    with worker(home) as tracking:
        tracking.follow(run)
        tracking.finish("complete")
    first, second = pages(run)
    assert (list(first.rows), list(second.rows)) == ([1, 2, 3], [4, 5])
    assert (first.exit_code, second.exit_code) == (None, 0)


def test_one_worker_says_of_each_run_how_it_ended(tmp_path: Path, home: Path) -> None:
    endings = {"failed": 1, "pruned": 0, "diverged": 0, "collapsed": 0, "interrupted": 143}
    folders = {state: tmp_path / ("stages" if state == "collapsed" else state) for state in endings}
    runs = {state: make_run(folders[state], epochs=1) for state in endings}
    for run in runs.values():
        run.set_state("running", new_attempt=True)
    runs["failed"].set_state("failed", f"ValueError: {POISON} is odd", error="ValueError", new_attempt=True)
    with worker(home) as tracking:
        for state, run in runs.items():
            assert tracking.follow(run) < 0.1
            tracking.finish(state)
    for state, run in runs.items():
        (page,) = pages(run)
        assert (list(page.rows), page.exit_code, page.summary["trial/state"]) == ([1], endings[state], state)
        early = [state] if state in ("pruned", "diverged", "collapsed") else []
        assert list(page.run.tags) == ["psom", "corrected", "v0.9", *early]
        assert page.summary["trial/attempts"] == (2 if state == "failed" else 1)
        assert page.summary.get("trial/error") == ("ValueError" if state == "failed" else None)
        assert page.run.job_type == ("stage" if state == "collapsed" else "trial")


def test_an_online_page_has_every_epoch_and_nothing_private(home: Path, server: FakeWandb) -> None:
    run = make_run(home, epochs=3)
    with worker(home, url=server.url, key=KEY) as tracking:
        assert tracking.follow(run) < 0.1
        tracking.finish("pruned")
    (page,) = server.runs.values()
    assert [(row["_step"], row["epoch"], row["val/ssim"]) for row in page["history"]] == [
        (1, 1, 0.1),
        (2, 2, 0.2),
        (3, 3, 0.3),
    ]
    assert (page["groupName"], page["jobType"], page["exit_code"]) == ("psom", "trial", 0)
    assert page["tags"] == ["psom", "corrected", "v0.9", "pruned"]
    told = {key: value["value"] for key, value in page["config"].items() if key != "_wandb"}
    settings = {name: value for name, value in run.record.config.model_dump().items() if value is not None}
    others = {"gamma_e": 1.0, "cohort": "c0ffee", "device": "a GPU", "versions/somvq": "0.9", "versions/torch": "2.6.0"}
    assert told == {**settings, **others}
    files = server.files_of(run.record.wandb_id)
    assert json.loads(files["wandb-summary.json"])["trial/state"] == "pruned"
    pictures = [name for name in files if name.startswith("media/images/media/codebook_grid_")]
    assert (len(pictures), files.keys() - pictures) == (3, {"config.yaml", "wandb-summary.json"})
    assert Tracked.read(run) == Tracked(epoch=3, mode="online")
    for private in ("reconstruction", "poll_s", "output.log"):
        assert not any(private.encode() in body for body in server.bodies), private


def test_no_name_of_a_person_file_or_machine_leaves_nor_the_key_but_to_say_who_asks(
    tmp_path: Path, server: FakeWandb
) -> None:
    home = tmp_path / f"home of {POISON}"
    home.mkdir()
    run = make_run(home, epochs=2)
    run.set_state("failed", f"FileNotFoundError: {POISON}.nii.gz", error="FileNotFoundError")
    names = dict.fromkeys(("USER", "LOGNAME", "HOSTNAME", "SCAN", "SLURM_JOB_NAME", "PWD"), POISON)
    meant = ("RUN_ID", "SWEEP_ID", "PROJECT", "ENTITY", "RUN_GROUP", "NOTES", "TAGS", "USERNAME", "CONFIG_PATHS")
    names |= {f"WANDB_{name}": POISON for name in meant}  # for other runs of the same shell
    with worker(home, url=server.url, key=KEY, poison=names) as tracking:
        tracking.follow(run)
        tracking.finish("failed")
    assert Tracked.read(run) == Tracked(epoch=2, mode="online")
    assert server.runs.keys() == {run.record.wandb_id}
    private = [POISON, str(home), str(ROOT), str(tmp_path), socket.gethostname(), sys.executable, KEY]
    for word in [*private, POISON.lower(), getpass.getuser() + "@"]:
        assert not any(word.encode() in body for body in server.bodies), word
    secret = base64.b64encode(f"api:{KEY}".encode())
    assert all(body.count(secret) <= body.count(b"Authorization: Basic " + secret) for body in server.bodies)
    assert any(secret in body for body in server.bodies)
    kept = [file for file in home.rglob("*") if file.is_file() and not file.is_symlink()]
    assert len(kept) > 5
    for file in kept:
        assert KEY.encode() not in file.read_bytes(), file
        assert secret not in file.read_bytes(), file


def test_every_key_of_a_page_is_in_its_document_as_the_code_has_it() -> None:
    document = (ROOT / "docs" / "tracking.md").read_text()
    table = contents_table()
    assert document.endswith("\n\n" + table), "docs/tracking.md ends with contents_table(), which changed"
    assert UNITS.keys() - {"epoch"} <= METRICS.keys()
    for key in ("model", "reading", "alpha", "beta", "gamma", "gamma_e", "gamma_q", "topology", "grid", "init", "seed",
                "cohort", *METRICS, *(f"media/{name}" for name in PICTURES), "trial/state", "trial/error"):  # fmt: skip
        assert f"| `{key}` |" in table, key


@pytest.mark.parametrize("epochs", [3, 250, 5000])
def test_a_run_sends_at_most_2_mb_of_pictures_and_its_last_ones_in_any_case(tmp_path: Path, epochs: int) -> None:
    run = make_run(tmp_path, epochs_of_run=epochs)
    drawn = [epoch for epoch in FIGURE_EPOCHS if epoch < epochs] + [epochs]
    for epoch in drawn:
        for name in PICTURES if epoch == epochs else ("codebook_grid", "hits", "reconstruction", "usage"):
            run.figure(name, epoch).write_bytes(ENDS[0] + bytes(90_000 - 12) + ENDS[1])
    for brains in (False, True):
        sent = {epoch: pictures_of(run, epoch, upload_brain_images=brains) for epoch in drawn}
        files = [path for found in sent.values() for path in found.values()]
        assert len(files) <= 58  # and config.yaml and wandb-summary.json
        assert sum(path.stat().st_size for path in files) <= 1.9e6
        names = PICTURES if brains else PICTURES.keys() - BRAIN_PICTURES
        assert sent[epochs].keys() == {f"media/{name}" for name in names}
        assert len(sent[drawn[0]]) == 3 + brains  # the first, too


@pytest.mark.slow
@pytest.mark.parametrize("said", ["", "option", "file"])
def test_the_pictures_of_a_real_trial_arrive_those_of_brains_where_that_was_said(
    said: str, tmp_path: Path, home: Path, tiny_scans: Path, server: FakeWandb
) -> None:
    (home / "real.yaml").write_text(REAL + "upload_brain_images: true\n" * (said == "file"))
    words = ["sweep", "real.yaml", "--trials", "1", "--cohort", str(tiny_scans)]
    words += ["--upload-brain-images"] * (said == "option")
    environment = {"HOME": str(home), "PYTHONPATH": str(ROOT), "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
    command = [sys.executable, "-m", "somvq", *words]
    done = subprocess.run(command, cwd=home, env=os.environ | environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = [Run(path.parent) for path in home.glob("runs/real/0000/config.json")]
    page, files = server.runs[run.record.wandb_id], server.files_of(run.record.wandb_id)
    assert {path.stem.rpartition("_")[0] for path in run.figures.iterdir()} == PICTURES.keys()
    told = {key.removeprefix("media/") for row in page["history"] for key in row if key.startswith("media/")}
    assert told == (PICTURES.keys() if said else PICTURES.keys() - BRAIN_PICTURES)
    assert [row["_step"] for row in page["history"]] == [1, 2]
    assert {key for row in page["history"] for key in row if "/" in key} <= METRICS.keys() | {
        f"media/{name}" for name in PICTURES
    }
    assert sum(name.startswith("media/") for name in files) == (14 if said else 10)
    assert len(files) <= 60
    assert sum(map(len, files.values())) < 2e6
    assert page["config"]["device"]["value"] == run.record.devices[-1].name
    assert (page["exit_code"], Tracked.read(run)) == (0, Tracked(epoch=2, mode="online"))


def test_an_online_page_goes_on_where_the_server_is(home: Path, server: FakeWandb) -> None:
    run = make_run(home, epochs=4)
    (home / ".netrc").write_text(f"machine {urlsplit(server.url).netloc} login user password {KEY}")
    with worker(home, url=server.url) as tracking:
        tracking.follow(run)
        tracking.finish("interrupted")
        (page,) = server.runs.values()
        assert (page["preempting"], page["exit_code"]) == (True, 143)
        del page["history"][2:], page["summary"]["_step"]  # as if the last rows had not been sent before a kill
        train(run, range(5, 6))
        tracking.follow(run)
        tracking.finish("complete")
    assert [row["epoch"] for row in page["history"]] == [1, 2, 3, 4, 5]
    assert page["exit_code"] == 0


def test_a_run_killed_on_one_machine_goes_on_at_another_with_each_epoch_once(
    tmp_path: Path, home: Path, server: FakeWandb
) -> None:
    run, elsewhere = make_run(tmp_path, epochs=3), tmp_path / "elsewhere"
    elsewhere.mkdir()
    killed = Worker(home, url=server.url, key=KEY)
    killed.follow(run)
    until(lambda: Tracked.read(run).epoch == 3)
    killed.process.kill()
    killed.process.communicate()
    train(run, range(4, 6))
    with worker(elsewhere, url=server.url, key=KEY) as tracking:
        tracking.follow(run)
        tracking.finish("complete")
    (page,) = server.runs.values()
    assert [(row["_step"], row["epoch"]) for row in page["history"]] == [(epoch, epoch) for epoch in range(1, 6)]
    assert (page["exit_code"], Tracked.read(run)) == (0, Tracked(epoch=5, mode="online"))


FAULTS = [
    ("down", True),
    ("hangs", True),
    *[pytest.param(*fault, marks=pytest.mark.slow) for fault in (("gone", True), *[("refuses", n) for n in REFUSALS])],
]


@pytest.mark.parametrize(("fault", "so"), FAULTS)
def test_a_sick_server_at_the_start_means_offline_until_it_is_well(
    home: Path, server: FakeWandb, fault: str, so: int
) -> None:
    run = make_run(home, epochs=1)
    setattr(server, fault, so)
    with worker(home, url=server.url, key=KEY, init_timeout_s=1.5) as tracking:
        assert tracking.follow(run) < 0.1
        until(lambda: Tracked.read(run).epoch == 1)  # an epoch is told offline, and so are later ones
        train(run, range(2, 4))
        assert tracking.finish("complete", None) < 1
    assert Tracked.read(run) == Tracked(epoch=3, behind=True, error="CommError")
    assert list(pages(run)[0].rows) == [1, 2, 3]
    setattr(server, fault, 0)
    with worker(home, url=server.url, key=KEY) as tracking:
        for _ in range(2):  # what `somvq push` does, and again, with nothing left to tell
            write_json(run.folder / "tracking.json", Tracked(epoch=3, behind=True, error="CommError").model_dump())
            tracking.follow(run)
            tracking.finish("complete")
            assert [row["epoch"] for row in server.runs["psom-abc123-t0007"]["history"]] == [1, 2, 3]
            assert Tracked.read(run) == Tracked(epoch=3, mode="online")


@pytest.mark.parametrize(("fault", "so"), FAULTS)
def test_a_server_that_falls_sick_costs_a_bounded_wait_and_the_next_run_none(
    tmp_path: Path, home: Path, server: FakeWandb, fault: str, so: int
) -> None:
    run, following = make_run(tmp_path / "a", epochs=2), make_run(tmp_path / "b", epochs=2)
    with worker(home, url=server.url, key=KEY) as tracking:
        tracking.follow(run)
        until(lambda: Tracked.read(run).epoch == 2)
        setattr(server, fault, so)
        train(run, range(3, 6))
        until(lambda: Tracked.read(run).epoch == 5)  # wandb-core takes what the server does not
        assert tracking.finish("complete", 1.5) < 3
        assert tracking.follow(following) < 0.1
        assert tracking.finish("complete") < 1
    why = "Refused" if so in (403, 404) else "TimeoutError"
    assert Tracked.read(run) == Tracked(epoch=5, mode="online", behind=True, error=why)
    assert Tracked.read(following) == Tracked(epoch=2, behind=True, error="LeftAlone")
    assert list(pages(following)[0].rows) == [1, 2]


def test_the_end_of_a_run_waits_for_a_twentieth_of_its_time_within_bounds() -> None:
    assert [patience_s(trained_s) for trained_s in (0, 100, 200, 1e5)] == [5, 5, 10, 15]


def test_no_key_means_offline_and_no_question(home: Path) -> None:
    run = make_run(home, epochs=1)
    (home / ".config/wandb").mkdir(parents=True)
    (home / ".config/wandb/settings").write_text("[default]\nmode = online\n")
    with worker(home) as tracking:
        tracking.follow(run)
        tracking.finish("complete")
    assert list(pages(run)[0].rows) == [1]
    assert Tracked.read(run) == Tracked(epoch=1, behind=True, error="NoCredentials")


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_a_lost_wandb_core_costs_its_run_the_rest_and_the_next_run_nothing(
    tmp_path: Path, home: Path, how: signal.Signals
) -> None:
    run, following = make_run(tmp_path / "a", epochs=2), make_run(tmp_path / "b", epochs=2)
    with worker(home) as tracking:
        tracking.follow(run)
        until(lambda: Tracked.read(run).epoch == 2)
        assert os.getpriority(os.PRIO_PROCESS, tracking.core()) == 10  # it yields to training
        os.kill(tracking.core(), how)
        train(run, range(3, 4))
        assert tracking.finish("complete", 1.0) < 4
        assert Tracked.read(run).behind
        assert tracking.follow(following) < 0.1
        tracking.finish("complete")
    assert list(pages(following)[0].rows) == [1, 2]
    assert Tracked.read(following) == Tracked(epoch=2)


def test_a_worker_that_just_ends_leaves_an_interrupted_page(home: Path) -> None:
    run = make_run(home, epochs=2)
    with worker(home) as tracking:
        tracking.follow(run)
        until(lambda: Tracked.read(run).epoch == 2)
    (page,) = pages(run)
    assert (list(page.rows), page.exit_code, page.summary["trial/state"]) == ([1, 2], 143, "interrupted")


def test_a_figure_that_cannot_be_read_stays_and_so_does_what_is_no_figure(home: Path) -> None:
    run = make_run(home, epochs=2)
    whole = run.figure("codebook_grid", 2).read_bytes()
    for torn, content in (("hits", whole[:-9]), ("usage", b"not a picture")):
        run.figure(torn, 2).write_bytes(content)
    for other in ("my_0002", "my_figure", "hits_of_mine"):
        (run.figures / f"{other}.png").write_bytes(whole)
    with worker(home, upload_brain_images=True) as tracking:
        tracking.follow(run)
        tracking.finish("complete")
    names = {key.split("/")[1] for key in pages(run)[0].rows[2] if key.startswith("media/")}
    assert names == {"codebook_grid", "reconstruction"}
    assert Tracked.read(run) == Tracked(epoch=2)


def test_a_damaged_note_of_what_was_told_says_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run.folder / "tracking.json").write_text('{"epoch": 3, "mo')
    assert Tracked.read(run) == Tracked()


@pytest.mark.parametrize(
    ("variables", "netrc", "mode"),
    [
        ({}, "", "offline"),
        ({"WANDB_API_KEY": KEY}, "", "online"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "dryrun"}, "", "offline"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "disabled"}, "", "disabled"),
        ({}, f"machine api.wandb.ai login user password {KEY}", "online"),
        ({"WANDB_BASE_URL": "http://box:8080"}, f"machine api.wandb.ai login user password {KEY}", "offline"),
        ({"WANDB_BASE_URL": "http://box:8080"}, f"machine box:8080 login user password {KEY}", "online"),
        ({}, "machine", "offline"),
    ],
)
def test_auto_is_what_wandb_was_told_and_else_online_where_there_is_a_key(
    variables: dict[str, str], netrc: str, mode: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name, value in ({"HOME": str(home), "NETRC": str(home / "netrc")} | variables).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(home)
    (home / "netrc").write_text(netrc)
    assert resolve("auto") == mode
    assert resolve("offline") == "offline"


def test_the_server_is_known_as_wandb_knows_it() -> None:
    from wandb.sdk.lib import urls

    assert urls.DEFAULT_BASE_URL == DEFAULT_BASE_URL
    for name, alias in ALIASES.items():
        assert urls.forge_upstream_url(f"https://{name}") == f"https://{alias}"


def test_disabled_keeps_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path, epochs=1)
    tracker = build_tracker("disabled")
    tracker.follow(run)
    tracker.finish("complete")
    assert type(tracker) is Tracker
    assert not list(run.folder.glob("wandb*")) + list(run.folder.glob("tracking*"))


def test_wandb_is_not_imported_before_a_run_is_followed() -> None:
    code = (
        "import sys; from somvq.tracking import build_tracker; build_tracker('online'); print('wandb' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True).stdout
    assert printed == "False\n"


@pytest.fixture
def lab(tmp_path: Path, tiny_scans: Path, tiny_cohort: Cohort, server: FakeWandb) -> Iterator[Lab]:
    folder = tmp_path / "lab"
    folder.mkdir()
    lab = Lab(folder, tiny_scans, tiny_cohort.folder.parent.parent)
    lab.environment |= {
        "HOME": str(folder),
        "WANDB_BASE_URL": server.url,
        "WANDB_API_KEY": KEY,
        "SOMVQ_WANDB": "online",
    }
    yield lab
    lab.end()


@pytest.mark.slow
def test_a_page_says_how_its_trial_ended_also_where_that_was_decided_after_its_last_attempt(
    lab: Lab, server: FakeWandb
) -> None:
    fates = {"0000": {"raise": "bug", "at": 2}, "0001": {"raise": "segfault", "at": 1}}
    lab.plan(epoch_s=0.2, trials=fates)
    lab.run("sweep", "tiny", "--trials", "3", status=1)
    pages = [server.runs[lab.run_of(number).record.wandb_id] for number in range(3)]
    assert [page["exit_code"] for page in pages] == [1, 1, 0]
    assert [len(page["history"]) for page in pages] == [1, 0, 4]
    assert [page["config"]["model"]["value"] for page in pages] == ["psom"] * 3
    summaries = [b'"trial/error":"ValueError"', b'"trial/error":"Killed"', b'"trial/attempts":3']
    for words in summaries:
        assert any(words in body.replace(b": ", b":") for body in server.bodies), words
    assert not any(b"a bug" in body for body in server.bodies)
    assert "not on W&B" not in lab.run("status", "tiny")


@pytest.mark.slow
def test_trials_reach_their_last_epochs_in_time_with_a_server_that_hangs(lab: Lab, server: FakeWandb) -> None:
    lab.plan(epoch_s=0.5)
    server.hangs = True
    began = time.monotonic()
    lab.run("sweep", "tiny", "--trials", "2")
    assert time.monotonic() - began < 2 * 4 * 0.5 + 5 + 10 + 15  # a trial's wait, the study's, and what processes need
    for number in range(2):
        rows = lab.run_of(number).rows()
        assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
        assert all(row["time/epoch_s"] < 0.55 for row in rows)
        assert Tracked.read(lab.run_of(number)).behind
    assert "not on W&B yet: 2 trials (0, 1); " in lab.run("status", "tiny")
