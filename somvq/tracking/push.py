"""Tells W&B online what it lacks. A Page is all that W&B should have of a run: what is listed is what is sent.

The server alone knows what it has, so it is asked before, to send no more, and after, since it may say yes and keep
nothing. wandb's own `sync` is told of neither.
"""

import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from somvq.errors import SomvqError
from somvq.runs import FINISHED, Run, State
from somvq.tracking import has_credentials
from somvq.tracking.contents import config_of, kind_of, pictures_of, summary_of, tags_of
from somvq.tracking.wandb import EXIT_CODES, TERMINATED, Options, start_page, start_wandb, stop_wandb

if TYPE_CHECKING:
    import wandb

ANSWER_S = 8  # that the server has for a question
OPTIONS = Options("online", upload_brain_images=False, poll_s=0.0, init_timeout_s=8.0, finish_timeout_s=10.0)
SETTLE_S = 6.0  # that the server has to show what it was sent
NO_ANSWER = ("did not respond in time", "deadline exceeded", "timed out")  # as wandb says it
AT_ONCE = 100  # runs in an answer


class NoKey(SomvqError):
    """W&B is to be told, and would ask who we are."""


class Refused(SomvqError):
    """W&B does not answer, or not as it should."""

    exit_status = 1


@dataclass(frozen=True)
class Step:
    """A row of a page's history, and its pictures by their keys."""

    number: int
    row: dict[str, Any]
    pictures: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Page:
    """All that W&B should have of a run; `folder` is where wandb may work, and stays."""

    id: str
    name: str
    group: str
    kind: str
    project: str
    entity: str | None
    folder: Path
    config: dict[str, Any]
    tags: tuple[str, ...]
    summary: dict[str, Any]
    steps: list[Step]
    axis: str = "epoch"  # what steps count
    state: State = "complete"
    withheld: int = 0  # pictures that show brains

    @property
    def last(self) -> int:
        """The number of the last step; 0 for none."""
        return self.steps[-1].number if self.steps else 0

    @property
    def exit_code(self) -> int:
        """How its process ended, as W&B sees it."""
        return EXIT_CODES.get(self.state, TERMINATED)

    def pictures(self) -> list[tuple[int, str, Path]]:
        """All of them: step, key, file."""
        return [(step.number, key, path) for step in self.steps for key, path in step.pictures.items()]

    def picture_bytes(self) -> int:
        """Of all of them."""
        return sum(path.stat().st_size for _, _, path in self.pictures())

    def as_json(self) -> dict[str, Any]:
        """Everything that would leave, for scripts."""
        media = [{"step": n, "key": key, "bytes": path.stat().st_size} for n, key, path in self.pictures()]
        said = ("id", "name", "group", "kind", "project", "entity", "config", "tags", "state", "summary", "withheld")
        rows = [step.row for step in self.steps]
        return {name: getattr(self, name) for name in said} | {"rows": rows, "media": media}


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


def page_of(run: Run, *, upload_brain_images: bool) -> Page:
    """What W&B should have of `run`, which nobody trains now."""
    record, state = run.record, run.progress().state
    ended: State = state if state in FINISHED else "interrupted"
    steps, withheld = [], 0
    for row in run.rows():
        epoch = int(row["epoch"])
        pictures = pictures_of(run, epoch, upload_brain_images=upload_brain_images)
        withheld += 0 if upload_brain_images else len(pictures_of(run, epoch, upload_brain_images=True)) - len(pictures)
        steps.append(Step(epoch, row, pictures))
    return Page(
        id=record.wandb_id,
        name=record.name,
        group=record.study,
        kind=kind_of(run),
        project=record.wandb_project,
        entity=record.wandb_entity,
        folder=run.folder,
        config=config_of(record),
        tags=tags_of(record, ended),
        summary=summary_of(run, ended),
        steps=steps,
        state=ended,
        withheld=withheld,
    )


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
        return int(self._try(lambda: send(page, on_step)))

    def check(self, group: str, pages: Iterable[Page]) -> list[Page]:
        """Those of `pages` that the server, some seconds later at most, does not have whole."""
        lacking, deadline = list(pages), time.monotonic() + SETTLE_S
        while lacking:
            known = self.ask(group)
            lacking = [page for page in lacking if not known.get(page.id, NOTHING).is_whole(page)]
            if not lacking or time.monotonic() > deadline:
                break
            time.sleep(1.0)
        return lacking

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


def send(page: Page, on_step: Callable[[], object] = lambda: None) -> int:
    """Sends what the server lacks of `page`, and how it ended; how many rows. Raises what wandb does."""
    import wandb

    there = start_page(
        "online",
        OPTIONS,
        entity=page.entity,
        project=page.project,
        id=page.id,
        name=page.name,
        group=page.group,
        job_type=page.kind,
        config=page.config,
        dir=page.folder,
    )
    there.define_metric("*", step_metric=page.axis)
    missing = [step for step in page.steps if step.number >= there.starting_step]
    for step in missing:
        pictures = {key: wandb.Image(str(path)) for key, path in step.pictures.items()}
        there.log({**step.row, **pictures}, step=step.number, commit=True)
        on_step()
    end(there, page)
    return len(missing)


def end(there: "wandb.Run", page: Page) -> None:
    """Tells the page how its run ended."""
    there.summary.update(page.summary)
    there.tags = page.tags
    if page.exit_code == TERMINATED:
        there.mark_preempting()
    there.finish(exit_code=page.exit_code)
