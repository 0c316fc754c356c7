"""A study's page on W&B, saved at a server on 127.0.0.1; and Optuna's dashboard of it, served to this machine alone."""

import copy
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_wandb import FakeWandb
from labs import Lab, wait_until
from PIL import Image

from somvq.cli import dashboard
from somvq.definitions import Sweep, find_definition, read_sweep
from somvq.errors import DefinitionError, SomvqError, StudyError
from somvq.runs import METRICS, why_not_measured
from somvq.settings import read_settings
from somvq.study.dashboards import find_subject
from somvq.study.local import Shown, build_application, guarded
from somvq.study.record import OpenStudy, load_study
from somvq.tracking.contents import BRAIN_PICTURES
from somvq.tracking.dashboard import PICTURES, Subject, build, describe, save

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style")  # wandb-workspaces 0.4, when it is imported

ROOT = Path(__file__).parents[1]
POISON = "sub-0666-Doe"  # in every path that a study knows
KEY = "0123456789" * 4
SHIPPED = sorted(path.stem for path in (ROOT / "sweeps").glob("*.yaml"))
HEADINGS = [
    "Read me",
    "Study",
    "Reconstruction",
    "Codes and pictures",
    "Map quality",
    "Losses and cost",
    "Compare",
    "Failures",
]


@pytest.fixture(scope="session")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cohorts")


def make_lab(folder: Path, scans: Path, cohorts: Path) -> Lab:
    (folder / POISON).mkdir()
    made = Lab(folder / POISON, scans, cohorts)
    made.environment |= {"HOME": str(made.folder), "WANDB_API_KEY": "", "SOMVQ_WANDB": "disabled"}
    return made


@pytest.fixture
def lab(tmp_path: Path, tiny_scans: Path, cohorts: Path) -> Iterator[Lab]:
    made = make_lab(tmp_path, tiny_scans, cohorts)
    yield made
    made.end()


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory, tiny_scans: Path, cohorts: Path) -> Iterator[Lab]:
    """A study of two trials that W&B knows nothing of; only to be looked at."""
    made = make_lab(tmp_path_factory.mktemp("studied"), tiny_scans, cohorts)
    made.run("sweep", "tiny", "--trials", "2")
    yield made
    made.end()


TRACK = """
import sys
from pathlib import Path
from somvq.runs import Run
from somvq.tracking.wandb import WandbTracker

tracker = WandbTracker("online", poll_s=0.1)
for folder in sys.argv[1:]:
    tracker.follow(Run(Path(folder)))
    tracker.finish("complete")
"""


@pytest.fixture(scope="module")
def server() -> Iterator[FakeWandb]:
    with FakeWandb() as made:
        yield made


@pytest.fixture(scope="module")
def tracked(studied: Lab, server: FakeWandb, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The same study, moved, and its runs on W&B."""
    made = copy.copy(studied)
    made.folder, made.started = tmp_path_factory.mktemp("tracked") / POISON, []
    shutil.copytree(studied.folder, made.folder)
    made.environment = {**studied.environment, "HOME": str(made.folder)}
    made.environment |= {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
    folders = [str(made.run_of(number).folder) for number in range(2)]
    subprocess.run([sys.executable, "-c", TRACK, *folders], env={**os.environ, **made.environment}, check=True)
    yield made
    made.end()


def subject(sweep: Sweep, **changes: Any) -> Subject:
    return Subject(sweep.name, "1a2b3c", sweep, "f00f00f00f00", "somvq 0.1.0", "somvq", **changes)


def strings(node: Any) -> Iterator[str]:
    """All strings in what JSON holds."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        yield from (found for child in node.values() for found in strings(child))
    elif isinstance(node, list):
        yield from (found for child in node for found in strings(child))


def shown(page: Any) -> set[str]:
    """The metrics that panels of `page` show."""
    words = {word.split(":", 1)[-1] for panel in panels(page) for word in strings(panel._to_model().model_dump())}
    return words & set(METRICS)


def panels(page: Any) -> list[Any]:
    return [panel for section in page.sections for panel in section.panels]


@pytest.mark.parametrize("name", SHIPPED)
def test_the_page_of_a_shipped_sweep_shows_what_its_runs_measure_and_nothing_else(name: str) -> None:
    sweep = read_sweep(find_definition("sweeps", name))
    page = build(subject(sweep), "tester")
    configs = subject(sweep).configs()
    unmeasured = {key for key in METRICS if all(why_not_measured(key, config) for config in configs)}
    assert shown(page) & unmeasured == set()
    assert {sweep.goals[0].name, "val/ssim", "train/loss", "time/epoch_s"} <= shown(page)
    has_map = any(config.has_map for config in configs)
    assert ("map/morans_i" in shown(page), "codebook/used" in shown(page)) == (
        has_map,
        any(config.has_codebook for config in configs),
    )
    assert [s.name for s in page.sections] == [
        h for h in HEADINGS if h != "Map quality" or "codebook/used" in shown(page)
    ]
    assert all(f"`{key}`" in describe(subject(sweep)) for key in subject(sweep).searched())


def test_the_page_of_a_study_without_codes_has_no_panel_of_codes() -> None:
    page = build(subject(read_sweep(find_definition("sweeps", "ae"))), "tester")
    words = {word for panel in panels(page) for word in strings(panel._to_model().model_dump())}
    assert not [word for word in words if re.search(r"codebook|tsne|umatrix|map/|locality|_q\b", word)]
    assert "media/curves" in words


def test_settings_are_on_logarithmic_axes_where_the_search_is_and_rows_count_as_settings() -> None:
    psom = panels(build(subject(read_sweep(find_definition("sweeps", "psom"))), "tester"))
    axes = next(panel for panel in psom if type(panel).__name__ == "ParallelCoordinatesPlot").columns
    logarithmic = {axis.display_name: bool(axis.log) for axis in axes}
    assert logarithmic == {
        "init": False,
        "topology": False,
        "alpha": True,
        "beta": True,
        "gamma": True,
        "gamma_q": False,
        "val/ssim": False,
    }
    table = panels(build(subject(read_sweep(find_definition("sweeps", "table1"))), "tester"))
    axes = next(panel for panel in table if type(panel).__name__ == "ParallelCoordinatesPlot").columns
    assert {"model", "reading", "gamma_q", "skip"} <= {axis.display_name for axis in axes}
    assert "row" not in {axis.display_name for axis in axes}


def test_every_figure_that_is_drawn_is_a_picture_of_the_page_or_one_of_a_brain() -> None:
    code = (ROOT / "somvq" / "gallery.py").read_text()
    drawn = set(re.findall(r'"(\w+)": ?\w+[.(]|drawn\["(\w+)"\]|drawn = \{"(\w+)"', code))
    assert {name for names in drawn for name in names if name} == set(PICTURES) | BRAIN_PICTURES


def test_a_page_is_saved_once_and_again_to_the_same_address_and_names_no_place(tracked: Lab, server: FakeWandb) -> None:
    server.views.clear()
    assert len(server.runs) == 2
    before = len(server.bodies)
    url = tracked.run("dashboard", "tiny").strip()
    assert re.fullmatch(re.escape(server.url) + r"/tester/somvq\?nw=[0-9a-f]{11}", url)
    assert json.loads(tracked.run("dashboard", "tiny", "--json")) == {"url": url}
    sent = b"\n".join(server.bodies[before:]).decode()
    assert len(server.views) == 1
    (saved,) = server.views.values()
    assert (saved["displayName"], saved["entityName"], saved["projectName"]) == ("tiny", "tester", "somvq")
    best = max(server.runs, key=lambda name: server.runs[name]["history"][-1]["val/ssim"])
    back = read_back(url, tracked)
    assert back["sections"] == HEADINGS
    assert {"ParallelCoordinatesPlot", "ParameterImportancePlot", "ScatterPlot", "MediaBrowser", "LinePlot", "BarPlot",
            "RunComparer", "MarkdownPanel"} == set(back["panels"])  # fmt: skip
    assert (back["best"], back["max_runs"], back["x_axis"]) == (best, 100, "epoch")
    assert back["filters"] == "Metric(\"Group\") == 'tiny' and Metric(\"JobType\") == 'trial'"
    assert back["columns"] == ["run:displayName", "summary:val/ssim", "summary:codebook/used", "summary:trial/state"]
    assert "somvq resume tiny" in sent
    for secret in (POISON, str(ROOT), str(tracked.folder.parent), socket.gethostname(), sys.executable):
        assert not re.search(rf"(?<!\w){re.escape(secret)}(?!\w)", sent), secret


READ_BACK = """
import json, sys
import wandb_workspaces.workspaces as ws
page = ws.Workspace.from_url(sys.argv[1])
rows = page.runset_settings
panels = [type(panel).__name__ for section in page.sections for panel in section.panels]
print(json.dumps({"sections": [s.name for s in page.sections], "panels": panels, "filters": rows.filters,
                  "columns": rows.pinned_columns, "best": rows.baseline_run, "max_runs": page.settings.max_runs,
                  "x_axis": page.settings.x_axis}))
"""


def read_back(url: str, lab: Lab) -> dict[str, Any]:
    """What wandb-workspaces itself finds at `url`."""
    environment = {**os.environ, **lab.environment}
    output = subprocess.run([sys.executable, "-c", READ_BACK, url], env=environment, capture_output=True, check=True)
    found: dict[str, Any] = json.loads(output.stdout)
    return found


class Refusal(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


def look_at(lab: Lab) -> OpenStudy:
    return load_study(read_settings(runs=lab.folder / "runs"), "tiny", looking=True)


def test_a_study_that_is_not_on_wandb_gets_no_empty_page(studied: Lab) -> None:
    with pytest.raises(StudyError, match=r"^nothing of study 'tiny' is on W&B yet; send it: somvq push tiny; "):
        find_subject(look_at(studied))


def test_without_a_key_none_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HOME": str(tmp_path), "WANDB_API_KEY": "", "NETRC": str(tmp_path / "none")}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SomvqError, match=r"^no W&B key: export WANDB_API_KEY=") as raised:
        save(subject(read_sweep(find_definition("sweeps", "ae"))))
    assert raised.value.exit_status == 2


@pytest.mark.slow
def test_an_address_that_is_none_is_named(tracked: Lab) -> None:
    said = tracked.run("dashboard", "tiny", status=2, WANDB_BASE_URL="nonsense")
    assert said.startswith("error: WANDB_BASE_URL 'nonsense' is impossible: ")
    assert said.count("\n") == 1


@pytest.mark.slow
def test_a_server_that_is_away_or_hangs_or_refuses_is_said_in_one_line_and_soon(
    tracked: Lab, server: FakeWandb
) -> None:
    before = len(server.bodies)
    assert_refused(tracked, "http://127.0.0.1:9", "no answer in 8 s; ")
    server.hangs = True
    assert_refused(tracked, server.url, "no answer in 8 s; ")
    server.hangs = False
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusal) as strict:
        threading.Thread(target=strict.serve_forever, args=(0.05,), daemon=True).start()
        assert_refused(tracked, f"http://127.0.0.1:{strict.server_port}", "it refuses the key; ")
        strict.shutdown()
    assert not [body for body in server.bodies[before:] if b"UpsertView" in body]


def assert_refused(lab: Lab, url: str, words: str) -> None:
    began = time.monotonic()
    said = lab.run("dashboard", "tiny", status=1, WANDB_BASE_URL=url)
    assert time.monotonic() - began < 20
    assert said.count("\n") == 1
    assert f"W&B did not save the dashboard of 'tiny': {words}" in said


@pytest.mark.slow
def test_a_page_that_was_deleted_is_made_again_at_its_address(tracked: Lab, server: FakeWandb) -> None:
    url = tracked.run("dashboard", "tiny")
    server.views.clear()
    assert tracked.run("dashboard", "tiny") == url
    assert len(server.views) == 1


class Served:
    """`somvq dashboard --local tiny`, and what it answers."""

    def __init__(self, lab: Lab, *words: str):
        self.process = lab.start("dashboard", "--local", "tiny", "--json", *words)
        assert self.process.stdout
        line = self.process.stdout.readline()
        self.page = json.loads(line)["url"]
        self.root, self.path = re.fullmatch(r"(http://127\.0\.0\.1:\d+)/dashboard(/studies/\d+)", self.page).groups()  # type: ignore[union-attr]

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, Any]:
        request = urllib.request.Request(self.root + path, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(), error.headers

    def study(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ask(f"/api{self.path}")[1])
        return found

    def interrupt(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(20), self.process.communicate()[0]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def draw(path: Path, shade: int) -> bytes:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((4, 4), shade, np.uint8)).save(path)
    return path.read_bytes()


@pytest.mark.slow
def test_a_study_is_served_with_its_runs_figures_to_this_machine_alone(studied: Lab) -> None:
    run = studied.run_of(1)
    draw(run.figure("tsne", 1), 10)
    latest, brain = draw(run.figure("tsne", 4), 20), draw(run.figure("reconstruction", 4), 30)
    before = {
        path: path.read_bytes() for path in studied.folder.rglob("*") if path.is_file() and "-shm" not in path.name
    }
    port = free_port()
    served = Served(studied, "--port", str(port))
    assert served.root == f"http://127.0.0.1:{port}"
    assert b"<html" in served.ask(f"/dashboard{served.path}")[1]
    (listed,) = json.loads(served.ask("/api/studies")[1])["study_summaries"]
    assert listed["study_name"] == "tiny"
    trials = served.study()["trials"]
    assert [(trial["number"], trial["state"]) for trial in trials] == [(0, "Complete"), (1, "Complete")]
    curve = {row["step"]: row["value"] for row in trials[1]["intermediate_values"]}
    assert curve == {row["epoch"]: row["val/ssim"] for row in run.rows()}
    assert {"key": "val/ssim", "value": str(run.last_row()["val/ssim"])} in trials[1]["user_attrs"]
    figures = {each["filename"]: each["artifact_id"] for each in trials[1]["artifacts"]}
    assert sorted(figures) == ["reconstruction_0004.png", "tsne_0004.png"]
    place = f"/artifacts{served.path.removeprefix('/studies')}/{trials[1]['trial_id']}"
    for name, content in {"tsne_0004.png": latest, "reconstruction_0004.png": brain}.items():
        status, body, headers = served.ask(f"{place}/{figures[name]}")
        assert (status, body, headers["Content-Type"]) == (200, content, "image/png")
        assert headers["Access-Control-Allow-Origin"] is None  # no other site's page may read a brain
    assert served.ask(f"{place}/{b'../../somvq.yaml'.hex()}")[0] == 404
    assert served.ask("/api/studies", Host=f"elsewhere.example:{port}")[0] == 403
    assert served.ask(f"/api{served.path}", "DELETE")[0] == 405
    assert served.ask(f"/api{served.path}/note", "PUT")[0] == 405
    addresses = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if " 0A " in line]
    assert [address for address in addresses if address.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]
    taken = studied.run("dashboard", "--local", "tiny", "--port", str(port), status=2)
    assert taken.count("\n") == 1
    assert f"port {port} is not free" in taken
    assert served.interrupt() == (0, "")
    after = {
        path: path.read_bytes() for path in studied.folder.rglob("*") if path.is_file() and "-shm" not in path.name
    }
    assert {path for path in after if before.get(path) != after[path] and "-wal" not in path.name} == set()


@pytest.mark.parametrize(
    ("host", "method", "status"),
    [
        ("127.0.0.1:8080", "GET", "200 OK"),
        ("LocalHost:9000", "HEAD", "200 OK"),
        ("127.0.0.1.elsewhere.example", "GET", "403 Forbidden"),
        ("", "GET", "403 Forbidden"),
        ("localhost", "POST", "405 Method Not Allowed"),
    ],
)
def test_the_local_dashboard_answers_this_machine_and_changes_nothing(host: str, method: str, status: str) -> None:
    said: list[Any] = []

    def application(environ: dict[str, Any], start: Any) -> list[bytes]:
        start("200 OK", [("Access-Control-Allow-Origin", "*"), ("Content-Type", "text/html")])
        return []

    list(guarded(application)({"HTTP_HOST": host, "REQUEST_METHOD": method}, lambda *told: said.append(told)))
    ((told, headers),) = said
    assert told == status
    assert "Access-Control-Allow-Origin" not in dict(headers)


def test_a_damaged_ledger_hides_no_other_trial_from_the_local_dashboard(studied: Lab) -> None:
    ledger = studied.run_of(0).ledger
    whole = ledger.read_text()
    ledger.write_text("{torn\n{torn\n")
    shown = Shown(look_at(studied))
    first, second = shown.get_all_trials(shown.study_id)
    ledger.write_text(whole)
    assert f"{ledger} is damaged" in first.user_attrs["damaged"]
    assert second.intermediate_values
    assert "damaged" not in second.user_attrs


@pytest.mark.slow
def test_workers_begin_and_end_trials_while_their_study_is_looked_at(lab: Lab) -> None:
    lab.plan(epoch_s=0.8)  # a trial outlasts the dashboard's own memory of 2 s
    sweep = lab.start("sweep", "tiny", "--trials", "3")
    wait_until(lambda: lab.run_of(0).rows(), process=sweep)
    served = Served(lab)
    asked, slowest, seen = 0, 0.0, set()
    while sweep.poll() is None:
        began = time.monotonic()
        seen |= {(trial["number"], trial["state"]) for trial in served.study()["trials"]}
        slowest, asked = max(slowest, time.monotonic() - began), asked + 1
    assert sweep.communicate()[0]
    assert sweep.returncode == 0
    assert asked > 5
    assert slowest < 5
    time.sleep(2.5)
    assert [trial["state"] for trial in served.study()["trials"]] == ["Complete"] * 3
    assert (2, "Running") in seen  # it was new to a dashboard that was there before
    assert served.interrupt() == (0, "")
    assert all(count == 1 for count in lab.begun().values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["journal", "postgresql"])
def test_other_storages_are_shown_too_and_only_the_one_study(
    kind: str, lab: Lab, request: pytest.FixtureRequest
) -> None:
    urls = {"journal": lambda: f"journal://{lab.folder}/study.journal"}
    lab.environment["SOMVQ_STORAGE"] = urls.get(kind, lambda: request.getfixturevalue("postgresql_url"))()
    lab.run("sweep", "tiny", "--trials", "1", "--study", "other")
    lab.run("sweep", "tiny", "--trials", "2")
    figure = draw(lab.run_of(0).figure("usage", 4), 40)
    served = Served(lab)
    assert [each["study_name"] for each in json.loads(served.ask("/api/studies")[1])["study_summaries"]] == ["tiny"]
    trial, _ = served.study()["trials"]
    place = (
        f"/artifacts{served.path.removeprefix('/studies')}/{trial['trial_id']}/{trial['artifacts'][0]['artifact_id']}"
    )
    assert served.ask(place)[1] == figure
    assert len(trial["intermediate_values"]) == 4
    assert served.interrupt() == (0, "")


def test_without_optuna_dashboard_a_line_says_what_to_install(studied: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    with pytest.raises(StudyError, match=r"^optuna-dashboard is not installed; pip install 'somvq\[local\]'$"):
        build_application(look_at(studied))


def test_a_port_is_for_the_local_dashboard() -> None:
    with pytest.raises(DefinitionError, match=r"^--port needs --local"):
        dashboard("tiny", port=8080)
