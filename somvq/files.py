"""Files that are whole or not there, and locks that a killed process cannot keep."""

import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def parts_of(path: Path) -> list[Path]:
    """The files that a volume at `path` is made of: a .hdr has its voxels in an .img, and may have a .mat."""
    if path.suffix.lower() != ".hdr":
        return [path]
    image, matrix = (path.with_suffix(end.upper() if path.suffix.isupper() else end) for end in (".img", ".mat"))
    return [path, image, matrix] if matrix.exists() else [path, image]


def write_whole(path: Path, write: Callable[[IO[bytes]], object], *, sync: bool = True) -> None:
    """`path`, written by `write` under a temporary name, synced to disk and renamed: never seen half-written.

    Without `sync` a power cut may lose it; a kill never does.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(3)}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    if sync:
        sync_folder(path.parent)


def write_json(path: Path, content: Any, *, sync: bool = True) -> None:
    """`content` as indented JSON at `path`, whole or not at all."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_whole(path, lambda file: file.write(text.encode()), sync=sync)


def append_line(path: Path, line: str, *, sync: bool = True) -> None:
    """Adds `line` to `path`, first cutting off what a kill or a full disk left of the last one."""
    with path.open("a+b") as file:
        if file.tell() and (file.seek(-1, os.SEEK_END), file.read())[1] != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line.encode() + b"\n")
        file.flush()
        if sync:
            os.fsync(file.fileno())


def clock(folder: Path) -> float:
    """The time now, in seconds, by the clock of whatever serves `folder`: those of two machines may differ."""
    path = folder / ".clock"
    try:
        path.touch()
        return path.stat().st_mtime
    except OSError:  # who may only look
        return time.time()


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, on_wait: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Holds the lock file `path`, which the kernel frees however its process ends; `on_wait` is told if it is taken."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
