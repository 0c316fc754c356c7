"""One contract for all storages, then what each must bear alone."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from databases import PASSWORD, PostgreSQL
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from somvq.errors import StudyError
from somvq.processes import machine, start_of
from somvq.storages import Store, explain, is_away, lockfile, open_store
from somvq.storages.journal import Journal
from somvq.storages.lockfile import holding, read_holder

SPACE = {"x": FloatDistribution(0, 1000)}
optuna.logging.set_verbosity(optuna.logging.ERROR)
context = multiprocessing.get_context("forkserver")  # children that import nothing again, and share nothing
context.set_forkserver_preload(
    ["pytest", "somvq.storages", "optuna.storages._rdb.models", "alembic.command", "psycopg", "optuna.samplers"]
)


def start(work: Callable[..., object], *arguments: Any) -> BaseProcess:
    process = context.Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


def finish(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


def wait_for(path: Path) -> None:
    until = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < until, f"{path} never came"
        time.sleep(0.005)


def new_study(store: Store, name: str = "study", direction: str = "minimize") -> optuna.Study:
    return optuna.create_study(study_name=name, storage=store.storage, direction=direction, load_if_exists=True)


def load(store: Store, name: str = "study") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=store.storage, sampler=optuna.samplers.RandomSampler())


@pytest.fixture(params=["sqlite", "journal", "postgresql"])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A storage that does not exist yet."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgresql_url"))
    return f"{request.param}:///{tmp_path / 'studies'}"


@pytest.fixture
def store(storage_url: str) -> Store:
    return open_store(storage_url)


# The contract


def test_a_trial_is_read_as_it_was_told(storage_url: str) -> None:
    study = new_study(open_store(storage_url), direction="maximize")
    study.set_user_attr("somvq", {"text": "é {braces} 'quotes'", "numbers": [1, 2.5, None]})
    trial = study.ask(SPACE)
    trial.set_user_attr("host", "here")
    trial.report(0.25, 1)
    study.tell(trial, 0.5)
    waiting = study.ask(SPACE)
    read = load(open_store(storage_url))
    assert read.user_attrs == {"somvq": {"text": "é {braces} 'quotes'", "numbers": [1, 2.5, None]}}
    assert [found.state for found in read.trials] == [TrialState.COMPLETE, TrialState.RUNNING]
    first = read.trials[0]
    assert (first.params, first.value, first.user_attrs) == (trial.params, 0.5, {"host": "here"})
    assert first.intermediate_values == {1: 0.25}
    assert read.trials[1].params == waiting.params
    assert read.best_trial.number == 0


def test_who_only_looks_sees_the_same_but_for_curves(storage_url: str) -> None:
    store = open_store(storage_url)
    study = optuna.create_study(study_name="study", storage=store.storage, directions=["minimize", "maximize"])
    other = new_study(store, "other")
    study.set_user_attr("target", 7)
    for number in range(3):
        trial = study.ask({**SPACE, "init": CategoricalDistribution(("ae", "random"))})
        trial.set_user_attr("reason", f"é {number}")
        trial.set_constraint("used >= 0.1", number - 1.0)
        if number:
            study.tell(trial, [float("inf"), -float(number)])
        other.tell(other.ask(SPACE), 1.0)
    seen = load(open_store(storage_url, looking=True))
    assert seen.user_attrs == {"target": 7}
    whole = load(open_store(storage_url))
    for found, expected in zip(seen.get_trials(), whole.get_trials(), strict=True):
        for name in ("number", "state", "values", "params", "distributions", "user_attrs", "constraints"):
            assert getattr(found, name) == getattr(expected, name), name
    study.tell(0, [0.5, 1.5])
    assert [trial.state for trial in seen.get_trials()] == [TrialState.COMPLETE] * 3
    assert seen.get_trials()[0].values == [0.5, 1.5]


def test_who_only_looks_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(optuna.exceptions.StorageInternalError):
        optuna.get_all_study_names(open_store(f"sqlite:///{tmp_path / 'none.db'}", looking=True).storage)
    assert not list(tmp_path.iterdir())


def pop_queued(url: str, results: "multiprocessing.Queue[list[float]]") -> None:
    """Takes queued trials from a study without our claim lock, as bare Optuna would."""
    study, mine = load(open_store(url)), []
    while True:
        trial = study.ask(SPACE)
        if "fixed_params" not in trial.storage.get_trial(trial._trial_id).system_attrs:
            break
        mine.append(trial.params["x"])
        study.tell(trial, 0.0)
    results.put(mine)


def test_queued_trials_are_taken_once_each_by_four_processes(storage_url: str) -> None:
    """Optuna's own SQLite storage hands some of them out twice."""
    study = new_study(open_store(storage_url))
    for number in range(12):
        study.enqueue_trial({"x": float(number)})
    results: multiprocessing.Queue[list[float]] = context.Queue()
    workers = [start(pop_queued, storage_url, results) for _ in range(4)]
    taken = [value for _ in workers for value in results.get(timeout=60)]
    finish(workers)
    assert sorted(taken) == [float(number) for number in range(12)]


def count_up(url: str, file: Path, times: int) -> None:
    store = open_store(url)
    for _ in range(times):
        with store.exclusive("study"):
            number = int(file.read_text())
            time.sleep(0.002)
            file.write_text(str(number + 1))


def test_one_process_at_a_time_is_exclusive(storage_url: str, tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    finish([start(count_up, storage_url, tmp_path / "count", 6) for _ in range(4)])
    assert (tmp_path / "count").read_text() == "24"


def hold_for_ever(url: str, sign: Path) -> None:
    with open_store(url).exclusive("study"):
        sign.touch()
        time.sleep(600)


@pytest.fixture
def holder(storage_url: str, tmp_path: Path) -> Iterator[BaseProcess]:
    """A process that holds the study of the storage until it is killed."""
    process = start(hold_for_ever, storage_url, tmp_path / "held")
    wait_for(tmp_path / "held")
    yield process
    process.kill()
    process.join()


def test_a_killed_holder_is_followed_within_a_second(storage_url: str, holder: BaseProcess, tmp_path: Path) -> None:
    waiting = start(count_up, storage_url, tmp_path / "count", 1)
    (tmp_path / "count").write_text("0")
    waiting.join(0.5)
    assert waiting.is_alive(), "two hold it at once"
    holder.kill()
    killed = time.monotonic()
    waiting.join(30)
    assert waiting.exitcode == 0
    assert time.monotonic() - killed < 1


def test_two_studies_do_not_wait_for_each_other(storage_url: str, holder: BaseProcess) -> None:
    with open_store(storage_url).exclusive("other study"):
        assert holder.is_alive()


def test_what_fails_under_the_lock_frees_it_and_stays_what_it_is(storage_url: str) -> None:
    store = open_store(storage_url)
    with pytest.raises(IsADirectoryError), store.exclusive("study"):
        Path("/").read_text()
    with store.exclusive("study"):
        pass


def open_and_create(url: str, begin: float) -> None:
    time.sleep(max(0.0, begin - time.time()))
    study = new_study(open_store(url))
    study.ask()


def test_eight_processes_that_open_an_empty_storage_at_once_make_one_study(storage_url: str) -> None:
    begin = time.time() + 0.3
    finish([start(open_and_create, storage_url, begin) for _ in range(8)])
    store = open_store(storage_url)
    assert optuna.get_all_study_names(store.storage) == ["study"]
    assert [trial.number for trial in load(store).trials] == list(range(8))


def test_two_studies_of_one_storage_have_their_own_trials(store: Store) -> None:
    first, second = new_study(store, "first"), new_study(store, "second", "maximize")
    first.tell(first.ask(), 1.0)
    second.ask(SPACE)
    second.ask(SPACE)
    first.tell(first.ask(), 2.0)
    assert optuna.get_all_study_names(store.storage) == ["first", "second"]
    assert [trial.number for trial in load(store, "first").trials] == [0, 1]
    assert [trial.state for trial in load(store, "second").trials] == [TrialState.RUNNING] * 2
    assert load(store, "first").best_value == 1.0


def test_no_password_is_shown(store: Store) -> None:
    shown = f"{store!r} {store} {store.storage!r}"
    assert PASSWORD not in shown
    assert type(store).__name__ in repr(store)


# Addresses


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("mongodb://me:secret@host/db", r"storage mongodb://me:\*\*\*@host/db is not known; give sqlite:///PATH, jour"),
        ("study.db", "storage study.db is not known; give sqlite:///PATH"),
        ("sqlite://x.db", "storage sqlite://x.db names no file; give sqlite:///PATH"),
        ("sqlite:///", "storage sqlite:/// names no file"),
        ("sqlite:///:memory:", "storage sqlite:///:memory: names no file"),
        ("sqlite:////nowhere/x.db", "there is no folder /nowhere; make it first"),
        ("journal://x/y", "storage journal://x/y names no file; give journal:///PATH"),
        ("journal:", "storage journal: names no file"),
        ("journal:////tmp", "storage journal:////tmp names no file"),
        ("journal:///nowhere/x", "there is no folder /nowhere; make it first"),
        ("postgresql://me:secret@host", r"storage postgresql://me:\*\*\*@host names no database; give postgresql://US"),
        ("postgresql://me:sec:ret@host:port/db", r"storage postgresql://me:\*\*\*@host:port/db names no database"),
        (
            "postgresql://me:secret@127.0.0.1:1/db",
            r":\*\*\*@127.0.0.1:1/db cannot be opened: .*onnection refused",
        ),
        (
            "postgres://me:secret@nowhere.invalid/db",
            r":\*\*\*@nowhere.invalid/db cannot be opened: .*nowhere.invalid",
        ),
    ],
)
def test_an_impossible_storage_is_one_line_without_its_password(url: str, told: str) -> None:
    with pytest.raises(StudyError, match=told) as caught:
        open_store(url)
    assert "secret" not in str(caught.value)
    assert "sec:ret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    path.write_text("not a database, and long enough to look like one " * 100)
    with pytest.raises(StudyError, match=r"study\.db cannot be opened: file is not a database") as caught:
        open_store(f"sqlite:///{path}")
    assert not is_away(caught.value)


def test_braces_in_a_path_are_a_path(tmp_path: Path) -> None:
    (tmp_path / "{SCHEMA_DIR}").mkdir()
    for scheme in ("sqlite", "journal"):
        new_study(open_store(f"{scheme}:///{tmp_path}/{{SCHEMA_DIR}}/{scheme}"))
        assert (tmp_path / "{SCHEMA_DIR}" / scheme).stat().st_size > 0


# SQLite


@pytest.fixture
def sqlite(tmp_path: Path) -> Store:
    return open_store(f"sqlite:///{tmp_path / 'study.db'}")


def statement(store: Store, sql: str) -> object:
    with store.storage._backend.engine.connect() as connection:  # type: ignore[attr-defined]
        result = connection.exec_driver_sql(sql)
        value = result.scalar() if result.returns_rows else None
        connection.commit()
        return value


def test_sqlite_is_opened_with_a_write_ahead_log(sqlite: Store) -> None:
    assert statement(sqlite, "PRAGMA journal_mode") == "wal"


def test_a_ring_of_causes_ends() -> None:
    outer, inner = StudyError("cannot be opened"), OSError(28, "No space left on device")
    outer.__cause__, inner.__cause__ = inner, outer
    assert is_away(outer)
    assert explain(outer) == "No space left on device"


def test_a_full_sqlite_is_away_and_one_without_tables_is_not(sqlite: Store) -> None:
    study = new_study(sqlite)
    statement(sqlite, "PRAGMA max_page_count = 1")
    with pytest.raises(optuna.exceptions.StorageInternalError) as caught:
        study.set_user_attr("long", "x" * 1_000_000)
    assert is_away(caught.value)
    assert explain(caught.value) == "database or disk is full"
    statement(sqlite, "PRAGMA max_page_count = 100000")
    study.set_user_attr("long", "x" * 1_000_000)
    statement(sqlite, "DROP TABLE trials")
    with pytest.raises(optuna.exceptions.StorageInternalError) as caught:
        study.ask()
    assert not is_away(caught.value)
    assert explain(caught.value) == "no such table: trials"


# PostgreSQL


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_study_survives_a_restart_of_its_database(postgresql: PostgreSQL, postgresql_url: str, mode: str) -> None:
    store = open_store(postgresql_url)
    study = new_study(store)
    trial = study.ask(SPACE)
    postgresql.stop(mode)
    try:
        failing: list[Callable[[], object]] = [
            lambda: trial.report(1.0, 1),
            lambda: study.tell(trial, 1.0),
            lambda: study.ask(),
            lambda: load(store),
            lambda: store.exclusive("study").__enter__(),
            lambda: open_store(postgresql_url),
        ]
        for call in failing:
            with pytest.raises(Exception, match=r".") as caught:
                call()
            assert is_away(caught.value), call
            assert "No such file or directory" in explain(caught.value)
            assert "\n" not in explain(caught.value)
            assert PASSWORD not in explain(caught.value) + str(caught.value)
    finally:
        postgresql.start()
    trial.report(1.0, 1)
    study.tell(trial, 2.0)
    with store.exclusive("study"):
        assert [found.value for found in load(store).trials] == [2.0]


def test_a_lock_that_a_restart_freed_does_no_harm(postgresql: PostgreSQL, postgresql_url: str) -> None:
    store = open_store(postgresql_url)
    with store.exclusive("study"):
        postgresql.stop()
        postgresql.start()
    with store.exclusive("study"):
        pass


@pytest.mark.parametrize(
    ("changes", "told", "away"),
    [
        ({"database": "nothing"}, 'database "nothing" does not exist; make it with createdb', False),
        (
            {"password": "secret"},
            "password authentication failed for user .*; put the right password into PG",
            False,
        ),
        ({"password": None}, "no password supplied; put the password into PGPASSWORD or ~/.pgpass", False),
        ({"user": "nobody"}, "password authentication failed", False),
    ],
)
def test_what_a_server_refuses_is_one_line(
    postgresql: PostgreSQL, changes: dict[str, Any], told: str, away: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSFILE", "/nowhere")
    with pytest.raises(StudyError, match=told) as caught:
        open_store(postgresql.url_of(**{"database": "postgres", **changes}))
    assert is_away(caught.value) == away
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_the_password_may_come_from_outside(
    postgresql: PostgreSQL, postgresql_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bare = postgresql_url.replace(f":{PASSWORD}", "").replace("postgresql:", "postgresql+psycopg:")
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    open_store(bare)
    monkeypatch.delenv("PGPASSWORD")
    (tmp_path / "pgpass").write_text(f"*:*:*:somvq:{PASSWORD}\n")
    (tmp_path / "pgpass").chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "pgpass"))
    open_store(bare)


def test_waiting_for_a_lock_has_no_end(postgresql: PostgreSQL, postgresql_url: str, tmp_path: Path) -> None:
    """Whatever limits the database sets its users."""
    name = postgresql_url.partition("@/")[2].partition("?")[0]
    for limit in ("lock_timeout", "statement_timeout"):
        postgresql.execute(f"ALTER DATABASE {name} SET {limit} = '100ms'")
    store = open_store(postgresql_url)
    (tmp_path / "count").write_text("0")
    with store.exclusive("study"):
        waiting = start(count_up, postgresql_url, tmp_path / "count", 1)
        waiting.join(0.5)
        assert waiting.is_alive()
    finish([waiting])


# The journal


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    store = open_store(f"journal:///{tmp_path / 'log'}")
    assert isinstance(store, Journal)
    return store


def tear(path: Path, content: bytes = b'{"op_code":4,"worker_id":"killed","stu') -> None:
    with path.open("ab") as file:
        file.write(content)


def test_a_journal_is_optunas_own(journal: Journal, tmp_path: Path) -> None:
    """Its dashboard can read it."""
    study = new_study(journal)
    study.tell(study.ask(SPACE), 1.0)
    theirs = JournalStorage(JournalFileBackend(str(tmp_path / "log")))
    assert optuna.load_study(study_name="study", storage=theirs).trials == study.trials


def test_a_relative_journal_is_found_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    study = new_study(open_store("journal:log"))
    monkeypatch.chdir("/")
    study.ask()
    assert len(load(open_store(f"journal:{tmp_path}/log")).trials) == 1


def test_an_unfinished_record_is_put_aside_and_the_next_one_kept(journal: Journal, tmp_path: Path) -> None:
    study = new_study(journal)
    study.ask(SPACE)
    for times in (1, 2):
        tear(tmp_path / "log")
        assert len(study.trials) == 2 * times - 1
        assert len(load(open_store(journal.url)).trials) == 2 * times - 1
        assert [study.ask(SPACE).number, study.ask(SPACE).number] == [2 * times - 1, 2 * times]
    assert [trial.params.keys() for trial in load(open_store(journal.url)).trials] == [{"x"}] * 5
    assert (tmp_path / "log.torn").read_bytes() == b'{"op_code":4,"worker_id":"killed","stu\n' * 2
    for line in (tmp_path / "log").read_text().splitlines():
        json.loads(line)


def test_a_record_that_was_glued_to_an_unfinished_one_is_read(journal: Journal, tmp_path: Path) -> None:
    """As Optuna's own file leaves it: there, the first is lost, and nothing can be read after the second."""
    study = new_study(journal)
    study.ask(SPACE)
    (tmp_path / "log").chmod(0o664)
    tear(tmp_path / "log")
    theirs = JournalFileBackend(str(tmp_path / "log"))
    for number in (1, 2):
        theirs.append_logs([{"op_code": 4, "worker_id": f"{number}", "study_id": 0, "datetime_start": None}])
    assert [trial.number for trial in study.trials] == [0, 1, 2]
    assert len(load(open_store(journal.url)).trials) == 3
    assert study.ask().number == 3
    assert (tmp_path / "log.torn").read_bytes() == b'{"op_code":4,"worker_id":"killed","stu\n'
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o664
    assert optuna.load_study(study_name="study", storage=JournalStorage(theirs)).trials == study.trials


@pytest.mark.parametrize("line", [b"a diary\n", b"17\n", b'{"op_code":4,"study_id"\n', b'{"a": 1}\n'])
def test_a_line_that_is_no_record_is_named_and_left(journal: Journal, tmp_path: Path, line: bytes) -> None:
    study = new_study(journal)
    before = (tmp_path / "log").read_bytes()
    tear(tmp_path / "log", line)
    for call in (lambda: study.trials, lambda: open_store(journal.url)):
        with pytest.raises(StudyError, match=r"log: line 2 is no record; keep a copy, delete the line") as caught:
            call()
        assert not is_away(caught.value)
    assert (tmp_path / "log").read_bytes() == before + line


def test_a_journal_that_was_replaced_is_not_written_to(journal: Journal, tmp_path: Path) -> None:
    study = new_study(journal)
    study.ask()
    (tmp_path / "log").write_bytes(b"")
    for call in (study.ask, lambda: study.trials):
        with pytest.raises(StudyError, match="log is shorter than it was: was it replaced"):
            call()
    assert (tmp_path / "log").read_bytes() == b""


def write_until_full(url: str) -> None:
    """Writes a record that the disk takes half of; then there is room again."""
    study = new_study(open_store(url))
    file = Path(url.removeprefix("journal://"))
    before = file.read_bytes()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5000, hard))
    with pytest.raises(optuna.exceptions.StorageInternalError) as caught:
        study.set_user_attr("long", "x" * 10_000)
    assert is_away(caught.value)
    assert explain(caught.value) == "File too large"
    assert file.read_bytes() == before
    study.set_user_attr("short", "x")
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    study.set_user_attr("long", "x" * 10_000)


def test_a_record_that_the_disk_took_half_of_leaves_nothing(journal: Journal, tmp_path: Path) -> None:
    finish([start(write_until_full, journal.url)])
    assert load(journal).user_attrs == {"short": "x", "long": "x" * 10_000}
    assert not (tmp_path / "log.torn").exists()


def test_a_vanished_disk_is_away(journal: Journal, tmp_path: Path) -> None:
    study = new_study(journal)
    (tmp_path / "log").rename(tmp_path / "elsewhere")
    for call in (study.ask, lambda: study.trials):
        with pytest.raises(optuna.exceptions.StorageInternalError) as caught:
            call()
        assert is_away(caught.value)
        assert explain(caught.value) == f"No such file or directory: {tmp_path / 'log'}"
    (tmp_path / "elsewhere").rename(tmp_path / "log")
    assert study.ask().number == 0


def ask_for_ever(url: str) -> None:
    study = load(open_store(url))
    while True:
        study.tell(study.ask(SPACE), 1.0)


def test_killed_writers_stop_nobody(journal: Journal, tmp_path: Path) -> None:
    new_study(journal)
    writers = [start(ask_for_ever, journal.url) for _ in range(3)]
    longest, trials = 0.0, 0
    for number in range(12):
        time.sleep(0.05)
        os.kill(writers[number % 3].pid or 0, signal.SIGKILL)
        begun = time.monotonic()
        trials = load(journal).ask(SPACE).number
        longest = max(longest, time.monotonic() - begun)
        writers[number % 3].join()
        writers[number % 3] = start(ask_for_ever, journal.url)
    for writer in writers:
        writer.kill()
        writer.join()
    numbers = [trial.number for trial in load(open_store(journal.url)).trials]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > trials > 12
    assert longest < 5  # Optuna's lock: 30


def read_for_ever(url: str, sign: Path) -> None:
    study, seen = load(open_store(url)), 0
    while not sign.exists():
        assert len(study.trials) >= seen
        seen = len(study.trials)
        assert len(load(open_store(url)).trials) >= seen


def test_readers_go_on_while_a_journal_is_repaired(journal: Journal, tmp_path: Path) -> None:
    study = new_study(journal)
    readers = [start(read_for_ever, journal.url, tmp_path / "stop") for _ in range(2)]
    theirs = JournalFileBackend(str(tmp_path / "log"))
    for number in range(60):
        tear(tmp_path / "log")
        if number % 3 == 0:
            theirs.append_logs([{"op_code": 4, "worker_id": "", "study_id": 0, "datetime_start": None}])
        study.ask(SPACE)
    (tmp_path / "stop").touch()
    finish(readers)
    assert len(study.trials) == 80


# The lock of shared disks


def dead_process() -> dict[str, object]:
    """What a process that was killed wrote into its lock."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    said = {"token": "dead", "machine": machine(), "pid": process.pid, "started": start_of(process.pid)}
    process.kill()
    process.communicate()
    return said


def take_over_and_die(lock: Path, inside: Path, times: int) -> None:
    """Holds the lock alone, and leaves it as a killed process would."""
    dead = dead_process()
    for number in range(times):
        with holding(lock):
            inside.touch(exist_ok=False)  # fails where two hold it
            time.sleep(0.001)
            inside.unlink()
            left = lock.with_name(f"left-{os.getpid()}")
            left.write_text(json.dumps({**dead, "token": f"{os.getpid()}-{number}"}))
            left.replace(lock)


def test_many_who_find_a_holder_dead_do_not_remove_their_successors_lock(tmp_path: Path) -> None:
    finish([start(take_over_and_die, tmp_path / "lock", tmp_path / "inside", 40) for _ in range(4)])
    assert sorted(path.name.partition("-")[0] for path in tmp_path.iterdir()) == ["lock"]


def test_a_remover_that_pauses_removes_no_lock_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, paused = tmp_path / "lock", threading.Event()
    lock.write_text(json.dumps(dead_process()))

    def read_and_pause(path: Path) -> lockfile.Holder | None:
        holder = read_holder(path)
        if path == lock and threading.current_thread() is remover:
            paused.set()
            time.sleep(0.2)
        return holder

    remover = threading.Thread(target=lockfile.evict, args=(lock, read_holder(lock)))
    monkeypatch.setattr(lockfile, "read_holder", read_and_pause)
    remover.start()
    assert paused.wait(5)
    with holding(lock) as token:
        remover.join()
        assert lockfile.is_held(lock, token)


def test_a_killed_remover_is_followed_too(tmp_path: Path) -> None:
    dead = dead_process()
    for name, token in (("lock", "first"), ("lock.first.evict", "second"), ("lock.first.evict.second.evict", "third")):
        (tmp_path / name).write_text(json.dumps({**dead, "token": token}))
    begun = time.monotonic()
    with holding(tmp_path / "lock"):
        assert time.monotonic() - begun < 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("made_by", ["another machine", "optuna's open lock", "optuna's link"])
def test_a_holder_elsewhere_is_dead_after_a_long_silence(tmp_path: Path, made_by: str) -> None:
    lock = tmp_path / "lock"
    if made_by == "another machine":
        lock.write_text(json.dumps({**dead_process(), "machine": "elsewhere"}))
    elif made_by == "optuna's open lock":
        lock.touch()
    else:
        lock.symlink_to(tmp_path / "log")
    taken = threading.Event()
    waiting = threading.Thread(target=lambda: hold_and_tell(lock, taken))
    waiting.start()
    assert not taken.wait(0.3)
    long_ago = time.time() - lockfile.GRACE_S - 1
    os.utime(lock, (long_ago, long_ago), follow_symlinks=False)
    assert taken.wait(5)
    waiting.join()
    assert list(tmp_path.iterdir()) == []


def hold_and_tell(lock: Path, taken: threading.Event) -> None:
    with holding(lock):
        taken.set()


def test_a_long_holder_is_heard_of(journal: Journal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another machine must not take it for dead."""
    monkeypatch.setattr(lockfile, "GRACE_S", 0.12)
    with journal.exclusive("study"):
        first = read_holder(tmp_path / "log.study.lock")
        time.sleep(0.2)
        later = read_holder(tmp_path / "log.study.lock")
    assert first is not None
    assert later is not None
    assert later.token == first.token
    assert later.heard > first.heard + 0.05
    assert read_holder(tmp_path / "log.study.lock") is None


def test_a_holder_that_woke_too_late_removes_no_lock_of_another(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with holding(lock):
        lock.write_text(json.dumps({**dead_process(), "token": "successor"}))
    holder = read_holder(lock)
    assert holder is not None
    assert holder.token == "successor"


def test_what_killed_processes_left_is_swept(journal: Journal, tmp_path: Path) -> None:
    old, new = tmp_path / "log.lock.0123456789abcdef", tmp_path / "log.lock.fedcba9876543210"
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    open_store(journal.url)
    assert [old.exists(), new.exists()] == [False, True]


def test_an_error_of_our_own_is_not_the_storages(journal: Journal) -> None:
    assert not is_away(ValueError("Cannot tell a COMPLETE trial."))
    assert not is_away(FileNotFoundError(2, "No such file"))
    assert is_away(OSError(28, "No space left on device"))
    assert not is_away(sqlalchemy.exc.IntegrityError("INSERT", {}, ValueError()))
