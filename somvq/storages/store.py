"""What storages share: an open one, whether it answers, and its own words when it does not."""

import errno
import sqlite3
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, TimeoutError

from somvq.errors import StudyError
from somvq.settings import mask

DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS, errno.EFBIG, errno.ETIMEDOUT}
FOR_GOOD = {  # what waiting does not mend, in a server's words: what to type
    "password authentication failed": "put the right password into PGPASSWORD or ~/.pgpass",
    "no password supplied": "put the password into PGPASSWORD or ~/.pgpass",
    'role "': "ask for an account, or name another USER",
    'database "': "make it with createdb, or name another DATABASE",
}


class Store(ABC):
    """An open storage of trials, and a lock that all who see the storage see too."""

    storage: BaseStorage

    def __init__(self, url: str):
        self.url = url

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {mask(self.url)}>"

    @abstractmethod
    def exclusive(self, name: str) -> AbstractContextManager[None]:
        """Holds what is called `name`, a study, for this process alone; freed however the process ends.

        Whoever wants it meanwhile waits as long as it takes.
        """


def file_of(url: str, path: str) -> Path:
    """The file at `path` that the storage `url` is kept in.

    Raises:
        StudyError: it is none, or its folder is not there.
    """
    file = Path(path)
    if file.name in ("", "..", ":memory:") or path.endswith("/") or file.is_dir():
        raise StudyError(f"storage {mask(url)} names no file; give sqlite:///PATH or journal:///PATH")
    if not file.parent.is_dir():
        raise StudyError(f"storage {mask(url)} cannot be opened: there is no folder {file.parent}; make it first")
    return file


def open_database(url: str, **engine: Any) -> RDBStorage:
    """Optuna's storage in the database at `url`, made where there is none; its connections close with it."""
    literal = url.replace("{", "{{").replace("}", "}}")  # Optuna fills in what stands in braces
    storage = RDBStorage(literal, engine_kwargs=engine)
    weakref.finalize(storage, storage.engine.dispose)
    return storage


def is_away(error: BaseException) -> bool:
    """Whether `error` means that the storage does not answer now, and may again later."""
    return any(means_away(cause) for cause in causes(error))


def means_away(error: BaseException) -> bool:
    """As is_away, of one error without its causes."""
    if isinstance(error, StorageInternalError):
        return isinstance(error.__cause__, OSError)
    if isinstance(error, OSError):
        return error.errno in DISK
    if isinstance(error, OperationalError | InterfaceError):
        if getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR:  # its tables are not there
            return False
        return advice_on(str(error.orig)) is None
    return isinstance(error, TimeoutError) or (isinstance(error, DBAPIError) and error.connection_invalidated)


def explain(error: BaseException) -> str:
    """The storage's own words in one line, not SQLAlchemy's or Optuna's, and what to type where that would help."""
    *_, last = (cause for cause in causes(error) if cause is error or isinstance(cause, OSError | DBAPIError))
    if isinstance(last, OSError) and last.strerror:
        return f"{last.strerror}: {last.filename}" if last.filename else last.strerror
    words = str(getattr(last, "orig", None) or last)
    line = mask(next((line for line in words.splitlines() if line.strip()), type(last).__name__).strip())
    advice = advice_on(words)
    return f"{line}; {advice}" if advice else line


def advice_on(words: str) -> str | None:
    """What to type where a server says `words`; none if waiting may help."""
    refused = "does not exist" in words or "password" in words
    return next((advice for sign, advice in FOR_GOOD.items() if refused and sign in words), None)


def causes(error: BaseException) -> Iterator[BaseException]:
    """`error`, what caused it, and so on."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:  # whoever raises a cause again makes a ring of them
        seen.append(cause)
        yield cause
        cause = cause.__cause__
