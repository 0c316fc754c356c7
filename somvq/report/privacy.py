"""What a report may not name, since labs mail it: people, machines, and where files are."""

import os
import re
import shlex
import socket
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ValidationError

from somvq.audit import working_folder
from somvq.data.cohort import CohortIndex
from somvq.errors import RunError
from somvq.study.record import OpenStudy
from somvq.study.status import Status

PLACES = ("--cohort", "--runs", "--storage", "--table", "--html")  # options whose values are places
ADDRESS = re.compile(r"\w[\w+.-]*://\S+")
QUOTED_PATH = re.compile(r"""(['"])(?:~?/|~\w*/|[A-Za-z]:\\).*?\1""")
PATH = re.compile(r"""(?<![\w.<])(?:~\w*/|/|[A-Za-z]:\\)[^\s:;,'")]+""")
SCAN = re.compile(r"\S+\.(?:nii|mgz|mgh|img|hdr|mat|dcm)(?:\.gz)?\b", re.IGNORECASE)
NUMBERED = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.])")  # a host's address
SUBJECT = re.compile(r"\bsub-\w+")


class Censor:
    """Takes private words out of sentences that a machine or a user wrote."""

    def __init__(self, words: dict[str, str], places: Sequence[str] = ()):
        self._words = words
        self._known = re.compile(any_of([word for word in words if is_telling(word)]) + r"(?!\w)")
        self._places = re.compile(any_of([place for place in places if len(place) > 1]) + r"""[^\s:;,'")]*""")

    def clean(self, text: str) -> str:
        """`text` with what is private in brackets of its kind."""
        text = NUMBERED.sub("[address]", ADDRESS.sub("[address]", text))
        for pattern in (QUOTED_PATH, self._places, PATH, SCAN):
            text = pattern.sub("[file]", text)
        return self._known.sub(lambda found: self._words[found[0]], SUBJECT.sub("[subject]", text))

    def clean_command(self, command: str) -> str:
        """A command as it was typed, its places by the names of their options: --cohort COHORT."""
        try:
            words = shlex.split(command)
        except ValueError:  # cut off within quotes
            words = command.split()
        told: list[str] = []
        for word in words:
            name, equals, _ = word.partition("=")
            if told and told[-1] in PLACES:
                told.append(told[-1].removeprefix("--").upper())
            elif equals and name in PLACES:
                told.append(f"{name}={name.removeprefix('--').upper()}")
            else:
                told.append(self.clean(Path(word).name if "/" in word and not equals else word))
        return " ".join(word if re.fullmatch(r"[\w@%+=:,./\[\]-]+", word) else shlex.quote(word) for word in told)


def any_of(words: Sequence[str]) -> str:
    """A pattern of any of the words, the longest first; of nothing, if there are none."""
    longest_first = sorted(words, key=len, reverse=True)
    return rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first)) or '(?!)'})"


def is_telling(word: str) -> bool:
    """Whether a word says who or where; a short number would be found in everything."""
    return len(word) >= (4 if word.isdecimal() else 2)


def censor_of(opened: OpenStudy, status: Status) -> Censor:
    """Who and where the study's own files know of: its subjects, hosts and folders."""
    record = opened.record
    words = {socket.gethostname(): "[host]"}
    server = urlsplit(opened.store.url).hostname  # which a database's own errors name
    words |= {server: "[host]"} if server else {}
    places = [
        str(place) for place in (record.folder, record.scans, record.cohort, os.path.expanduser("~"), working_folder())
    ]
    for trial in status.trials:
        words |= hosts_of(opened, trial.number)
    try:
        index = CohortIndex.model_validate_json((record.cohort / "index.json").read_text())
    except (OSError, ValidationError):  # cleaned away, or of another version: a path's form is known all the same
        return Censor(words, places)
    for scan in index.scans:
        words |= {scan.subject: "[subject]", scan.file: "[file]", Path(scan.file).name: "[file]"}
    return Censor(words, places)


def hosts_of(opened: OpenStudy, number: int) -> dict[str, str]:
    """The machines that trial `number` was on."""
    try:
        hosts = {attempt.host for attempt in opened.record.run(number).attempts()}
    except RunError:  # damaged
        hosts = set()
    return {name: "[host]" for host in hosts for name in (host, host.split(".")[0])}
