"""Tells W&B online what it lacks of pages.

The server alone knows what it has, so it is asked before, to send no more, and after, since it may say yes and keep
nothing. wandb's own `sync` is told of neither. Rows can only be added at a page's end, and each is sent with its
pictures; those that did not arrive, since a push was killed, are added under the names that the rows give them.
"""

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from shutil import copyfile
from typing import Any, Self

from somvq.errors import SomvqError
from somvq.tracking import has_credentials
from somvq.tracking.contents import Page
from somvq.tracking.wandb import Options, close_page, open_page, start_wandb, stop_wandb, tell

ANSWER_S = 8  # that the server has for a question
OPTIONS = Options("online", upload_brain_images=False, poll_s=0.0, init_timeout_s=8.0, finish_timeout_s=10.0)
SETTLE_S, PAUSE_S = 6.0, 1.0  # that the server has to show what it was sent; between two looks
NO_ANSWER = ("did not respond in time", "deadline exceeded", "timed out")  # as wandb says it
AT_ONCE = 100  # runs in an answer


class NoKey(SomvqError):
    """W&B is to be told, and would ask who we are."""


class Refused(SomvqError):
    """W&B does not answer, or not as it should."""

    exit_status = 1


@dataclass(frozen=True)
class Known:
    """What the server has of a page."""

    rows: int
    summary: dict[str, Any]

    def is_whole(self, page: Page) -> bool:
        """Whether that is all."""
        wanted = {**page.summary, **({page.axis: page.last} if page.steps else {})}
        return self.rows >= len(page.steps) and all(self.summary.get(key) == value for key, value in wanted.items())


NOTHING = Known(0, {})


@dataclass(frozen=True)
class Checked:
    """What the server said of pages that it was sent."""

    lacking: list[Page]
    added: int  # pictures that had not arrived


class Server:
    """W&B's server as this user reaches it. Use as a context: wandb's processes end with it.

    Raises:
        NoKey: there is no API key.
        Refused: no answer, or not a good one, within seconds.
    """

    def __init__(self, project: str, entity: str | None):
        self.project, self.entity = project, entity

    def __enter__(self) -> Self:
        if not has_credentials():
            raise NoKey(
                "W&B has no API key here: export WANDB_API_KEY=..., or wandb login; "
                "a server of your own: export WANDB_BASE_URL=https://..."
            )
        os.environ["WANDB_MODE"] = "online"  # to push is to be online
        start_wandb()
        import wandb

        self.url = str(wandb.setup().settings.base_url)
        try:
            self.api = self._try(lambda: wandb.Api(timeout=ANSWER_S))
            self.entity = self.entity or self._try(lambda: self.api.default_entity)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        stop_wandb(at_once=True)  # what was sent is there; what was not, wandb would try for minutes

    def ask(self, group: str) -> dict[str, Known]:
        """What the server has of the runs of `group`, by their ids."""
        self.api.flush()  # it would answer for the server with what that said before
        path = f"{self.entity}/{self.project}"
        options: dict[str, Any] = {"filters": {"group": group}, "per_page": AT_ONCE, "include_sweeps": False}
        try:
            runs = self._try(lambda: list(self.api.runs(path, lazy=False, **options)))
        except ValueError:  # no such project yet
            return {}
        return {run.id: Known(int(run._attrs.get("historyLineCount") or 0), dict(run.summary_metrics)) for run in runs}

    def address(self, group: str) -> str:
        """Where the runs of `group` can be seen."""
        app = str(self.api._service_api.app_url)
        return f"{app.rstrip('/')}/{self.entity}/{self.project}/groups/{group}"

    def send(self, page: Page, on_step: Callable[[], object]) -> int:
        """Sends what the server lacks of `page`; how many rows."""
        return int(self._try(lambda: send(replace(page, entity=self.entity), on_step)))  # where it is asked for, too

    def check(self, group: str, pages: Iterable[Page]) -> Checked:
        """Whether the server, some seconds later at most, has all of `pages`; gives it pictures that it lost."""
        lacking, added, deadline = list(pages), 0, time.monotonic() + SETTLE_S
        for look in count() if lacking else ():
            known = self.ask(group)
            behind = [page for page in lacking if not known.get(page.id, NOTHING).is_whole(page)]
            lost = {page.id: self.lost_pictures(page) for page in lacking if page not in behind and page.files()}
            lacking = [page for page in lacking if page in behind or lost.get(page.id)]
            if not lacking or time.monotonic() > deadline:
                break
            time.sleep(PAUSE_S)
            if look == 1:  # they had their time to arrive
                added = sum(self.add(page, lost.get(page.id, {})) for page in lacking)
        return Checked(lacking, added)

    def lost_pictures(self, page: Page) -> dict[str, Path]:
        """The pictures of `page` that the server does not have, by the names of their files."""
        files = self._try(lambda: list(self._run(page).files(pattern="media/%", per_page=AT_ONCE)))
        there = {without_step(file.name) for file in files}
        return {name: path for name, path in page.files().items() if without_step(name) not in there}

    def add(self, page: Page, pictures: dict[str, Path]) -> int:
        """Adds `pictures` to the page's files; how many."""
        with tempfile.TemporaryDirectory() as root:
            for name, path in pictures.items():
                copy = Path(root, name)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copyfile(path, copy)
                self._try(partial(upload, self._run(page), copy, root))
        return len(pictures)

    def _run(self, page: Page) -> Any:
        """The page as wandb's Api has it."""
        return self.api.run(f"{self.entity}/{self.project}/{page.id}")

    def _try(self, request: Callable[[], Any]) -> Any:
        """What the server answers."""
        import wandb
        from wandb.sdk.lib.service.service_connection import WandbApiFailedError

        try:
            return request()
        except (wandb.Error, WandbApiFailedError, TimeoutError) as error:
            advice = "check the key and WANDB_BASE_URL, or ask again later: the same command goes on"
            raise Refused(f"W&B at {self.url}: {why(error)}; {advice}") from error


def why(error: Exception) -> str:
    """What is wrong with the server, shorter than wandb says it."""
    if status := re.search(r"(?:error|status|HTTP)\D{0,8}(\d{3})\b", str(error)):
        return f"it answers {status[1]}"
    if isinstance(error, TimeoutError) or any(words in str(error) for words in NO_ANSWER):
        return f"no answer within {ANSWER_S} seconds"
    return (str(error).splitlines() or [type(error).__name__])[0]


def upload(there: Any, path: Path, root: str) -> None:
    """Adds a file to a page of wandb's Api, which then asks for it at once, though it may not be listed yet."""
    from wandb.errors import CommError

    try:
        there.upload_file(str(path), root)
    except CommError as error:
        if not isinstance(error.exc, IndexError):
            raise


def without_step(name: str) -> str:
    """A picture's file by its key and its contents alone: the step in its name is wandb's affair."""
    return re.sub(r"_\d+_(?=[0-9a-f]{20}\.png$)", "_", name)


def send(page: Page, on_step: Callable[[], object] = lambda: None) -> int:
    """Sends what the server lacks of `page`, and how it ended; how many rows. Raises what wandb does."""
    there = open_page(page, "online", OPTIONS)
    missing = [step for step in page.steps if step.number >= there.starting_step]
    for step in missing:
        tell(there, step)
        on_step()
    close_page(there, page)
    return len(missing)
