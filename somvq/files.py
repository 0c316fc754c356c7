"""Files that are whole or not there, and locks that a killed process cannot keep."""

import fcntl
import json
import os
import secrets
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


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """`path`, written by `write` under a temporary name, synced to disk and renamed: never seen half-written."""
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(3)}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_json(path: Path, content: Any) -> None:
    """`content` as indented JSON at `path`, whole or not at all."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))


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
