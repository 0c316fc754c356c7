"""A journal on a disk that machines share: one line for each thing that was done, in Optuna's format.

Optuna's own file would lose the record that follows one which a killed writer or a full disk left unfinished, and could
not be read from the next one on; and its lock stops everybody for 30 s when its holder is killed.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from optuna.exceptions import StorageInternalError
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend

from somvq.errors import StudyError
from somvq.files import write_whole
from somvq.settings import mask
from somvq.storages.lockfile import beating, holding, is_held, sweep
from somvq.storages.store import Store, file_of

START = b'{"op_code"'  # how each record begins


class Journal(Store):
    """journal:///PATH; every process reads it from its beginning once."""

    def __init__(self, url: str, *, looking: bool = False):
        super().__init__(url)
        path = url.removeprefix("journal:")
        if path.startswith("//") and not path.startswith("///"):
            raise StudyError(f"storage {mask(url)} names no file; give journal:///PATH")
        if path.startswith("/"):
            path = f"/{path.lstrip('/')}"
        self.file = JournalFile(file_of(url, path).absolute())
        self.storage = JournalStorage(self.file)

    @contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """See Store; a holder that was killed is noticed at once on its machine, after half a minute elsewhere."""
        lock = self.file.beside(f"{quote(name, safe='')}.lock")
        with ExitStack() as stack:
            with answering(lock):
                token = stack.enter_context(holding(lock))
            stack.enter_context(beating(lock, token))
            yield


class JournalFile(BaseJournalBackend):
    """The file, and where in it each record begins."""

    def __init__(self, path: Path):
        self.path = path
        self.lock = self.beside("lock")  # Optuna's name for it: its dashboard waits for us, and we for it
        self.starts = [0]  # by number of the record; the last one begins where all that was read ends
        path.open("ab").close()
        sweep(self.lock)

    def beside(self, end: str) -> Path:
        """A file beside the journal."""
        return self.path.with_name(f"{self.path.name}.{end}")

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The records from `log_number_from` on; one that is not finished yet is left for later."""
        number = log_number_from
        while lines := self.lines(self.starts[number]):
            for line in lines:
                record = decode(line)
                if record is None:
                    self.mend()  # and look again
                    break
                number += 1
                if number == len(self.starts):
                    self.starts.append(self.starts[-1] + len(line))
                yield record
            else:
                return

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Writes records at the end, all or none of them, and onto the disk."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with answering(self.path), holding(self.lock) as token, self.opened(os.O_RDWR | os.O_APPEND) as file:
            self.cut_unfinished(file, token)
            end = file.seek(0, os.SEEK_END)
            try:
                write_all(file, lines)
            except OSError:
                file.truncate(end)
                raise
            os.fsync(file.fileno())

    def opened(self, flags: int) -> IO[bytes]:
        """The file as it is now."""
        file = os.fdopen(os.open(self.path, flags), "rb" if flags == os.O_RDONLY else "r+b", buffering=0)
        if os.fstat(file.fileno()).st_size < self.starts[-1]:
            file.close()
            raise StudyError(f"journal {self.path} is shorter than it was: was it replaced? Start again with it")
        return file

    def lines(self, start: int) -> list[bytes]:
        """The finished lines from byte `start` on, read at once: another process may cut off the unfinished one."""
        with answering(self.path), self.opened(os.O_RDONLY) as file:
            file.seek(start)
            content = file.read()
        return [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]

    def cut_unfinished(self, file: IO[bytes], token: str) -> None:
        """Moves a last line that its writer did not finish to the side; the next one would be glued to it."""
        file.seek(self.starts[-1])
        unfinished = file.read().rpartition(b"\n")[2]
        if unfinished and is_held(self.lock, token):
            self.put_aside(unfinished)
            file.truncate(file.seek(0, os.SEEK_END) - len(unfinished))

    def mend(self) -> None:
        """Takes records apart from unfinished ones that they were glued to, if there still are any.

        Raises:
            StudyError: a line holds no record.
        """
        with answering(self.path), holding(self.lock) as token:
            lines = self.path.read_bytes().splitlines(keepends=True)
            starts = [0 if decode(line) or not line.endswith(b"\n") else start_of_record(line) for line in lines]
            if -1 in starts:
                where = f"line {starts.index(-1) + 1} is no record; keep a copy, delete the line"
                raise StudyError(f"journal {self.path}: {where}")
            if any(starts) and is_held(self.lock, token):
                self.put_aside(b"\n".join(line[:start] for line, start in zip(lines, starts, strict=True) if start))
                self.replace(b"".join(line[start:] for line, start in zip(lines, starts, strict=True)))

    def replace(self, content: bytes) -> None:
        """Makes a new file of `content`, which other users may write as before; those who read keep the old one."""

        def write(file: IO[bytes]) -> None:
            shutil.copymode(self.path, file.name)
            file.write(content)

        write_whole(self.path, write)

    def put_aside(self, unfinished: bytes) -> None:
        """Keeps what was cut off, in PATH.torn."""
        with self.beside("torn").open("ab") as file:
            file.write(unfinished + b"\n")
            file.flush()
            os.fsync(file.fileno())


def decode(line: bytes) -> dict[str, Any] | None:
    """The record in `line`, if it is one."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "op_code" in record else None


def start_of_record(line: bytes) -> int:
    """Where in `line` the record begins that an unfinished one was glued to; -1 if there is none."""
    start = line.rfind(START)
    return start if decode(line[start:]) else -1


def write_all(file: IO[bytes], content: bytes) -> None:
    """Writes `content` though the system takes it in parts, as it does on a disk that is nearly full."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


@contextmanager
def answering(path: Path) -> Iterator[None]:
    """Says of a disk's errors that the storage failed, as Optuna says of a database's."""
    try:
        yield
    except OSError as error:
        raise StorageInternalError(f"{path} cannot be read or written") from error
