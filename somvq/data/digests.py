"""What is in the files of a cohort, without reading them all again at each command."""

import hashlib
import json
import time
from contextlib import suppress
from pathlib import Path

from somvq.files import parts_of, write_json

STILL_WARM_S = 2.0  # a file that changed so lately may change again within the tick of its clock


class Digests:
    """sha256 of files, remembered in `record` while the file system says that they have not changed."""

    def __init__(self, record: Path):
        self.record = record
        self.known: dict[str, list[object]] = {}  # by path: the digest, then what the file system said
        self.changed = False
        with suppress(OSError, ValueError, AttributeError):  # it is only a record of what can be found again
            self.known = {path: kept for path, kept in json.loads(record.read_text()).items() if isinstance(kept, list)}

    def of(self, path: Path) -> str:
        """Digest of the volume at `path`, a pair's files one after the other; empty if it cannot be read."""
        try:
            parts = [part.resolve() for part in parts_of(path)]
            if not all(part.is_file() for part in parts):  # a pipe would be waited for
                return ""
            stats = [part.stat() for part in parts]
            state = [number for s in stats for number in (s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino)]
            digest, *before = self.known.get(str(parts[0]), [""])
            if before == state:
                return str(digest)
            digest = sha256_of(parts)
        except (OSError, RuntimeError):  # RuntimeError: a link to itself
            return ""
        if time.time() - max(s.st_ctime for s in stats) > STILL_WARM_S:
            self.known[str(parts[0])] = [digest, *state]
            self.changed = True
        return digest

    def save(self) -> None:
        """Keeps what was learned; another command's lesson may be lost, and is learned again."""
        if self.changed:
            self.record.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.record, self.known)


def sha256_of(parts: list[Path]) -> str:
    """Digest of files, one after the other, as `cat a b | sha256sum` gives it."""
    digest = hashlib.sha256()
    for part in parts:
        with part.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
