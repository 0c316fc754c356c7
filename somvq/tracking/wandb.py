"""W&B as a projection of a run's folder: followed while the run trains, or replayed later, by the same code.

A thread reads the ledger and tells W&B; it may be given up at any moment. The ledger is its queue: on disk, so that it
neither fills up memory nor holds up who writes to it, and nothing in it is lost. What the thread has told is in the
run's `tracking.json`, so that the next attempt goes on from there. What looks odd here answers to something that wandb
0.31 was seen to do: block at the end or at the start, ask for a key, refuse an id, send more than it was given.
"""

import atexit
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from somvq.errors import DefinitionError
from somvq.files import write_json
from somvq.runs import Run, State
from somvq.tracking import Tracker, has_credentials
from somvq.tracking.contents import Page, Step, config_of, head_of, step_of

if TYPE_CHECKING:
    import wandb

EXIT_CODES: dict[State, int] = {"complete": 0, "pruned": 0, "diverged": 0, "collapsed": 0, "failed": 1}
TERMINATED = 143  # exit code of what SIGTERM ended: every other state
COST = 0.05  # of a worker's time, at most, that it may wait for a sick server
LEAST_WAIT_S, FINISH_TIMEOUT_S = 5.0, 15.0  # at the end of an attempt: of a short one, of a long one
LOW_PRIORITY = 10  # of 19
PRIVATE = {  # without these wandb sends argv, paths, host, packages, console, git state and the machine's load
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "host": "redacted",
    "label_disable": True,
    "program": "somvq",
    "save_code": False,
    "silent": True,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}

HEARD = {  # of WANDB_*: who asks which server, and how; others would name runs anew, or tell of people
    *("API_KEY", "IDENTITY_TOKEN_FILE", "CREDENTIALS_FILE", "BASE_URL", "APP_URL", "MODE", "ERROR_REPORTING"),
    *("HTTP_PROXY", "HTTPS_PROXY", "X_PROXIES", "X_EXTRA_HTTP_HEADERS", "INSECURE_DISABLE_SSL"),
    *("CONFIG_DIR", "CACHE_DIR", "DATA_DIR", "HTTP_TIMEOUT"),
}

_turn = threading.Lock()  # wandb has one state a process: one run at a time


class NoCredentials(Exception):
    """W&B was to be online, and there is no API key: wandb would ask for one, and wait for the answer."""


class Refused(Exception):
    """W&B's server answered that it does not take the run's rows."""


class LeftAlone(Exception):
    """W&B made this worker wait in vain a moment ago."""


class Tracked(BaseModel):
    """What tracking.json says: how much of a run W&B was told."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    epoch: int = 0  # the last one told
    mode: Literal["online", "offline"] = "offline"
    behind: bool = False  # W&B has less than was asked for; the ledger has all
    pictures: int = 0  # that W&B said it has, when it was asked for them
    error: str | None = None  # why: a class, since a message may hold a path

    @classmethod
    def read(cls, run: Run) -> "Tracked":
        """How much of `run` W&B was told so far; nothing, where that cannot be read: a push asks the server itself."""
        try:
            return cls.model_validate_json((run.folder / "tracking.json").read_text())
        except (FileNotFoundError, ValueError):
            return cls()


@dataclass(frozen=True)
class Options:
    """How runs are told to W&B; one `left_alone` is not asked, and has less than was asked for."""

    mode: Literal["online", "offline"]
    upload_brain_images: bool
    poll_s: float
    init_timeout_s: float
    finish_timeout_s: float
    left_alone: bool = False


class WandbTracker(Tracker):
    """Tells W&B of one run after the other; neither method raises, or waits longer than it says.

    `init_timeout_s` and `finish_timeout_s` bound how long a sick server is waited for, in the thread that does the
    telling: before it goes on offline, and before it leaves the last rows to the ledger. Who waits in `finish` in vain
    leaves W&B alone until that wait is no more than COST of the time: the runs until then are offline.
    """

    def __init__(
        self,
        mode: Literal["online", "offline"],
        *,
        upload_brain_images: bool = False,
        poll_s: float = 1.0,
        init_timeout_s: float = 8.0,
        finish_timeout_s: float = 10.0,
    ):
        self.mode = mode
        self._options = Options(mode, upload_brain_images, poll_s, init_timeout_s, finish_timeout_s)
        self._projection: Projection | None = None
        self._asked_again = float("-inf")  # when W&B is, which was of no use

    def follow(self, run: Run) -> None:
        """Starts to tell W&B of `run`, at once and without waiting; a run that was not finished is interrupted."""
        self.finish("interrupted")
        left_alone = self.mode == "online" and time.monotonic() < self._asked_again
        self._projection = Projection(run, replace(self._options, left_alone=left_alone))

    def finish(self, state: State, *, timeout_s: float | None = None) -> None:
        """Tells W&B the rest of the run and how it ended; what takes longer than `timeout_s` is given up.

        By default as long as COST of the time since `follow`, within bounds.
        """
        projection, self._projection = self._projection, None
        if projection:
            began = time.monotonic()
            told = projection.finish(state, timeout_s=timeout_s)
            if not told:
                now = time.monotonic()
                self._asked_again = now + (now - began) / COST


class Said:
    """What wandb prints, if it were not silent: nowhere else does it say that rows were refused."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, line: str) -> None:
        """Of no interest."""

    def warning(self, line: str) -> None:
        """Keeps `line`."""
        self.lines.append(line)

    error = warning

    def refusal(self) -> bool:
        """Whether a server has refused rows of this page."""
        return any("Fatal error" in line for line in self.lines)


_said = Said()


class Projection:
    """One run on its way to W&B, in a thread of its own."""

    def __init__(self, run: Run, options: Options):
        self._run = run
        self._options = options
        self._tracked = Tracked()
        self._abandoned = False
        self._noting = threading.Lock()
        self._state: State = "running"
        self._began = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"wandb {run.folder.name}", daemon=True)
        self._thread.start()

    def finish(self, state: State, *, timeout_s: float | None = None) -> bool:
        """Waits until W&B was told everything, at most `timeout_s`; whether it was, if anybody asked it."""
        atexit.unregister(self.finish)
        self._state = state
        self._ended.set()
        self._thread.join(patience_s(time.monotonic() - self._began) if timeout_s is None else timeout_s)
        if self._thread.is_alive():
            self._give_up(TimeoutError())
            self._abandoned = True
            if core := _find_core():
                core.kill()  # frees the thread, which waits for it: at exit Python would wait as well
                self._thread.join(1.0)
        return self._options.left_alone or not self._tracked.behind

    def _work(self) -> None:
        """Tells W&B of the run until it ends; what goes wrong ends the telling, and nothing else."""
        with suppress(OSError):  # Linux: this thread, and wandb-core which it starts, take what training leaves idle
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOW_PRIORITY)
        try:
            self._tracked = Tracked.read(self._run)
            if not _turn.acquire(timeout=self._options.init_timeout_s):
                raise TimeoutError
        except Exception as error:
            return self._give_up(error)
        try:
            there = self._open()
            atexit.register(self.finish, "interrupted")  # before wandb's own, which waits for ever and says "finished"
            self._follow(there)
            self._close(there)
        except Exception as error:
            self._give_up(error)
            stop_wandb()
        finally:
            _turn.release()

    def _open(self) -> "wandb.Run":
        """The run's page, new or continued; offline where W&B cannot be reached."""
        if self._options.mode == "online":
            try:
                if self._options.left_alone:
                    raise LeftAlone
                there = open_page(head_of(self._run, "running"), "online", self._options)
                # Rows that a killed attempt could not send are in tracking.json, but only the server knows which
                self._tracked = Tracked(epoch=max(there.starting_step - 1, 0), mode="online")
                return there
            except Exception as error:
                self._note(mode="offline", behind=True, error=type(error).__name__)
                stop_wandb()  # it holds the run's id, and would refuse it to the offline page
        else:
            self._tracked = Tracked(epoch=self._tracked.epoch)
        return open_page(head_of(self._run, "running"), "offline", self._options)

    def _follow(self, there: "wandb.Run") -> None:
        """Tells the page each row of the ledger as it comes, until the run has ended and none is left."""
        described = False
        while True:
            if self._abandoned:
                raise TimeoutError("given up")
            ended = self._ended.is_set()  # asked before reading: nothing that came before the end is left out
            rows = [row for row in self._run.rows() if int(row["epoch"]) > self._tracked.epoch]
            if rows and not described:  # since there is a row, its attempt has noted the device
                told = config_of(Run(self._run.folder).record)
                there.config.update(told, allow_val_change=True)  # type: ignore[no-untyped-call]
                described = True
            for row in rows:
                step = step_of(self._run, row, upload_brain_images=self._options.upload_brain_images)
                tell(there, step)
                self._note(epoch=step.number)
            if ended:
                return
            self._ended.wait(self._options.poll_s)

    def _close(self, there: "wandb.Run") -> None:
        """Tells the page how the run ended."""
        close_page(there, head_of(self._run, self._state))
        self._note()  # no longer behind, even where there was no row left to tell

    def _give_up(self, error: Exception) -> None:
        """Notes that W&B is behind from here on."""
        with suppress(Exception):  # a full disk, say: training will say so itself
            self._note(behind=True, error=type(error).__name__)

    def _note(self, **changes: Any) -> None:
        """Brings tracking.json up to date."""
        with self._noting:
            if self._abandoned:
                raise TimeoutError("given up")
            self._tracked = self._tracked.model_copy(update=changes)
            write_json(self._run.folder / "tracking.json", self._tracked.model_dump(), sync=False)


def patience_s(trained_s: float) -> float:
    """How long the end of an attempt of `trained_s` seconds may wait for W&B."""
    return min(max(LEAST_WAIT_S, COST * trained_s), FINISH_TIMEOUT_S)


def open_page(page: Page, mode: Literal["online", "offline"], options: Options) -> "wandb.Run":
    """Starts the page, or goes on with it; raises rather than asks or waits."""
    if mode == "online" and not has_credentials():
        raise NoCredentials
    start_wandb()
    import wandb

    there = wandb.init(
        entity=page.entity,
        project=page.project,
        id=page.id,
        name=page.name,
        group=page.group,
        job_type=page.kind,
        tags=page.tags,
        config=page.config,
        allow_val_change=True,  # versions, from one attempt to the next
        dir=page.folder,
        mode=mode,
        resume="allow",
        reinit="create_new",
        settings=_settings(**PRIVATE, **_bounds(options)),
    )
    there.define_metric("*", step_metric=page.axis)
    _said.lines.clear()
    wandb.termsetup(_settings(silent=True), _said)
    return there


def tell(there: "wandb.Run", step: Step) -> None:
    """Adds a row; pictures as files, which arrive as they are: of floats wandb.Image makes black ones."""
    import wandb

    pictures = {key: wandb.Image(str(path)) for key, path in step.pictures.items()}
    there.log({**step.row, **pictures}, step=step.number, commit=True)  # else it is held back


def close_page(there: "wandb.Run", page: Page) -> None:
    """Says how the run of `page` ended, or for now; raises where W&B did not take all."""
    there.summary.update(page.summary)
    there.tags = page.tags
    exit_code = EXIT_CODES.get(page.state, TERMINATED)
    if exit_code == TERMINATED and not there.offline:
        there.mark_preempting()
    there.finish(exit_code=exit_code)
    if _said.refusal():
        raise Refused  # finish is silent about it


def start_wandb() -> None:
    """wandb ready in this process: it prints nothing, asks for no key, and reports no errors of its own.

    Raises:
        DefinitionError: a variable, or W&B's settings file, says what wandb would not take.
    """
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        if name.removeprefix("WANDB_") not in HEARD:  # nor a parent's wandb-core, which may end before we do
            del os.environ[name]
    os.environ["WANDB_ERROR_REPORTING"] = "false"  # read when wandb is imported
    import wandb

    silent = _settings(silent=True)  # so that nothing is printed, and no key asked for
    wandb.termsetup(silent, None)  # already while it reads its settings
    try:
        wandb.setup(silent)
    except ValidationError as error:
        problem = error.errors()[0]
        name, value = "WANDB_" + str(problem["loc"][0]).upper(), problem["input"]
        raise DefinitionError(f"{name} {value!r} is impossible: {problem['msg']}; mend or unset it") from error


def _bounds(options: Options) -> dict[str, Any]:
    """The settings that keep W&B from blocking, stopping or losing anything."""
    return {
        "init_timeout": options.init_timeout_s,  # seconds; wandb's own are 90
        "finish_timeout": options.finish_timeout_s,  # seconds; wandb itself would wait for ever
        "finish_timeout_raises": True,
        "stop_fn": lambda: None,  # W&B's stop button would interrupt this whole process, a worker
        "x_transaction_log_flush_interval": 0.5,  # seconds of rows that a kill may lose; wandb's own are 15
    }


def _settings(**wanted: Any) -> "wandb.Settings":
    """wandb's settings as wanted, without those that it does not know: private ones come and go."""
    import wandb

    return wandb.Settings(**{name: value for name, value in wanted.items() if name in wandb.Settings.model_fields})


def stop_wandb(*, at_once: bool = False) -> None:
    """Ends wandb in this process, so that the next run starts with a fresh one; `at_once`: whatever it waits for."""
    core = _find_core()
    if core and at_once:
        core.kill()
    with suppress(Exception, SystemExit):  # teardown exits with wandb-core's status where that is not 0
        import wandb

        wandb.teardown(exit_code=1)
    if core:
        core.kill()
        core.wait()


def _find_core() -> subprocess.Popen[bytes] | None:
    """wandb-core, the process that wandb talks to: under private names, so perhaps not found."""
    with suppress(KeyError, AttributeError):
        core = sys.modules["wandb.sdk.wandb_setup"]._singleton._connection._proc._process
        return core if isinstance(core, subprocess.Popen) else None
    return None
