"""A study in Optuna's own dashboard, for this machine alone: its trials, and what their runs' folders know of them.

Nothing is written: the storage is looked at, figures are read where they are, and who asks to change something is told
that this only shows.
"""

import copy
import errno
import json
import threading
import time
from collections.abc import Callable, Container, Iterable
from io import BufferedReader
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from somvq.definitions import ROW
from somvq.errors import RunError, StudyError
from somvq.runs import Run
from somvq.storages import is_away
from somvq.study.record import OpenStudy, StudyRecord

HOST = "127.0.0.1"
PORT, MOST_PORTS = 8080, 20  # where none is asked for, the first that is free
FRESH_S = 1.0  # for which what was read is good; the page asks several times at once
NUMBERS = (
    "epoch",
    "val/ssim",
    "val/ssim_q",
    "val/psnr",
    "codebook/used",
    "codebook/perplexity",
    "map/neighbour_r",
    "map/topographic_error",
    "time/epoch_s",
)
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Shown(BaseStorage):
    """One study of a storage, to be looked at: to each trial are added its run's figures, curve and last numbers."""

    def __init__(self, opened: OpenStudy):
        self.record, self.below = opened.record, opened.store.storage
        self.study_id = opened.study._study_id
        self.directions = opened.study.directions
        self.study_attrs = describe_study(opened)
        self._turn = threading.Lock()  # the server has a thread for each question
        self._trials: list[FrozenTrial] = []
        self._over: dict[int, FrozenTrial] = {}  # by number; they change no more
        self._read = -FRESH_S

    def get_all_studies(self) -> list[FrozenStudy]:
        """This one, whatever else is in the storage."""
        name, attrs = self.record.name, self.get_study_system_attrs(self.study_id)
        return [FrozenStudy(name, None, dict(self.study_attrs), attrs, self.study_id, directions=self.directions)]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Its trials by number; where the storage does not answer now, as they were."""
        with self._turn:
            if time.monotonic() - self._read > FRESH_S:
                try:
                    found = self.below.get_all_trials(study_id, deepcopy=False)
                    self._trials = [self._with_run(trial) for trial in found]
                except Exception as error:
                    if not self._trials or not is_away(error):
                        raise
                self._read = time.monotonic()
            return [trial for trial in self._trials if states is None or trial.state in states]

    def _with_run(self, trial: FrozenTrial) -> FrozenTrial:
        """`trial` and what its run's folder knows."""
        if trial.number not in self._over:
            told = show_run(trial, self.record)
            if not trial.state.is_finished():
                return told
            self._over[trial.number] = told
        return self._over[trial.number]

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """One of them."""
        for trial in self.get_all_trials(self.study_id):
            if trial._trial_id == trial_id:
                return trial
        raise KeyError(trial_id)

    def get_study_id_from_name(self, study_name: str) -> int:
        """See BaseStorage."""
        if study_name != self.record.name:
            raise KeyError(study_name)
        return self.study_id

    def get_study_name_from_id(self, study_id: int) -> str:
        """See BaseStorage."""
        if study_id != self.study_id:
            raise KeyError(study_id)
        return self.record.name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """See BaseStorage."""
        return self.directions

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """What the study is, for people."""
        return dict(self.study_attrs)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """The names of its aims, where the dashboard looks for them."""
        return {"study:metric_names": [goal.name for goal in self.record.sweep.goals]}

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("it is only shown")

    create_new_study: Any = _refuse
    create_new_trial: Any = _refuse
    delete_study: Any = _refuse
    set_study_system_attr: Any = _refuse
    set_study_user_attr: Any = _refuse
    set_trial_intermediate_value: Any = _refuse
    set_trial_param: Any = _refuse
    set_trial_state_values: Any = _refuse
    set_trial_system_attr: Any = _refuse
    set_trial_user_attr: Any = _refuse


class Figures:
    """An artifact store of Optuna's whose artifacts are the figures of a study's runs, where they are.

    An artifact's id is its place, in the hexadecimal letters that the dashboard allows.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def open_reader(self, artifact_id: str) -> BufferedReader:
        """The figure's bytes."""
        run, slash, name = bytes.fromhex(artifact_id).decode().partition("/")
        path = self.folder / run / "figures" / name
        if not slash or "/" in name or not run.isdecimal() or not path.is_file():
            raise ArtifactNotFound(artifact_id)
        return path.open("rb")

    def write(self, artifact_id: str, content_body: Any) -> None:
        """Never: figures are their runs'."""
        raise NotImplementedError("it is only shown")

    def remove(self, artifact_id: str) -> None:
        """Never."""
        raise NotImplementedError("it is only shown")


def describe_study(opened: OpenStudy) -> dict[str, Any]:
    """The study as its page lists it."""
    record = opened.record
    searched = {"sampler": record.sweep.method, "fixed": record.sweep.fixed(), "seed": record.seed}
    facts = {"trials": opened.target, **searched}
    return {**facts, "cohort": f"{record.cohort_fingerprint} ({record.cohort_summary})", "runs": str(record.folder)}


def show_run(trial: FrozenTrial, record: StudyRecord) -> FrozenTrial:
    """A copy of `trial` with its run's figures as artifacts, its curve, and its last numbers as attributes."""
    run, shown, told = record.run(trial.number), copy.copy(trial), {}
    try:
        rows = run.rows()
    except RunError as error:  # the other trials are shown all the same
        rows, told = [], {"damaged": str(error)}
    goal, named = record.sweep.monitor_goal.name, record.sweep.named(trial.params)
    last = rows[-1] if rows else {}
    numbers = {name: last[name] for name in dict.fromkeys((*NUMBERS, *record.sweep.measured())) if name in last}
    row = {ROW: named[ROW]} if ROW in named else {}  # by its name; a grid's is a number to Optuna
    shown.user_attrs = {**row, **numbers, **told, **trial.user_attrs}
    artifacts = {f"artifacts:{figure['artifact_id']}": json.dumps(figure) for figure in list_figures(run)}
    shown._system_attrs = {**trial._system_attrs, **artifacts}
    if rows:  # a copied trial has its run elsewhere
        shown.intermediate_values = {int(row["epoch"]): row[goal] for row in rows if goal in row}
    return shown


def list_figures(run: Run) -> list[dict[str, str]]:
    """The latest figure of each name, as Optuna describes artifacts."""
    latest = {path.stem.rpartition("_")[0]: path for path in sorted(run.figures.glob("*_*.png"))}
    return [
        {
            "artifact_id": f"{run.folder.name}/{path.name}".encode().hex(),
            "filename": path.name,
            "mimetype": "image/png",
        }
        for path in latest.values()
    ]


def build_application(opened: OpenStudy) -> Application:
    """The dashboard of one study.

    Raises:
        StudyError: optuna-dashboard is not installed.
    """
    try:
        from optuna_dashboard import wsgi
    except ModuleNotFoundError as error:
        if error.name != "optuna_dashboard":
            raise
        raise StudyError("optuna-dashboard is not installed; pip install 'somvq[local]'") from error
    return guarded(wsgi(Shown(opened), artifact_store=Figures(opened.record.folder)))


def guarded(application: Application) -> Application:
    """`application` for a browser on this machine: no other site's page may read it, and nobody change anything."""

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        def start_for_us(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            return start(status, [pair for pair in headers if pair[0] != "Access-Control-Allow-Origin"], *error)

        host = environ.get("HTTP_HOST", "").partition(":")[0].lower()
        if host not in (HOST, "localhost"):  # a name that someone made mean this machine
            return refuse(start, "403 Forbidden", f"ask for http://{HOST}")
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return refuse(start, "405 Method Not Allowed", "somvq dashboard --local only shows")
        return application(environ, start_for_us)

    return answer


def refuse(start: Callable[..., Any], status: str, reason: str) -> Iterable[bytes]:
    """An answer that says no, as the dashboard's pages read it."""
    start(status, [("Content-Type", "application/json")])
    return [json.dumps({"reason": reason}).encode()]


class Server(ThreadingMixIn, WSGIServer):
    """Answers several questions at once; its threads end with it."""

    daemon_threads = True


class Quiet(WSGIRequestHandler):
    """Says nothing of what was asked."""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def open_server(opened: OpenStudy, port: int | None) -> tuple[Server, str]:
    """A server of the study's dashboard, not yet serving, and the study's address.

    Raises:
        StudyError: another program has the port.
    """
    application = build_application(opened)
    for candidate in [port] if port else range(PORT, PORT + MOST_PORTS):
        try:
            server = Server((HOST, candidate), Quiet)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            continue
        server.set_app(application)
        return server, f"http://{HOST}:{candidate}/dashboard/studies/{opened.study._study_id}"
    taken = f"port {port} is" if port else f"ports {PORT} to {PORT + MOST_PORTS - 1} are"
    raise StudyError(f"{taken} not free; choose another: --port {PORT + MOST_PORTS}")
