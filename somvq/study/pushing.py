"""`somvq push`: has W&B told, online, all of a study that it lacks; and the study's own page, which sweeps tell too.

A run is told of by one process at a time, the one that holds its lease: its worker while there is one, so that it is
left alone, and else us. What a push that was killed did not send, the next one does.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from somvq.errors import RunError
from somvq.files import write_json
from somvq.runs import FINISHED, Run
from somvq.study.lease import Lease, is_alive
from somvq.study.record import OpenStudy, StudyRecord
from somvq.study.status import Status, read_status
from somvq.study.summary import FOLDER, summary_page
from somvq.tracking.contents import Page, page_of
from somvq.tracking.push import NOTHING, Server
from somvq.tracking.wandb import Tracked

LEASE_S = 120.0  # longer than wandb takes to give up on a page


@dataclass
class Source:
    """Where a page comes from, and what it says at this moment."""

    folder: Path
    read: Callable[[], Page]


@dataclass
class Outcome:
    """What a push came to."""

    rows: int = 0  # sent
    pages: int = 0  # sent, or brought up to date
    whole: int = 0  # were there already
    added: int = 0  # pictures of rows that were there without them
    address: str = ""  # where people see the study's pages
    left: list[str] = field(default_factory=list)  # to their workers
    damaged: list[str] = field(default_factory=list)  # runs that cannot be read: why
    lacking: list[Page] = field(default_factory=list)  # that the server does not have whole


def sources(opened: OpenStudy, *, upload_brain_images: bool) -> list[Source]:
    """All pages of a study: stages, trials, and its own."""
    folder = opened.record.folder
    runs = [Run(config.parent) for config in sorted(folder.glob("stages/*/config.json"))] + opened.record.runs()

    def read(at: Path) -> Page:
        run = Run(at)
        state = run.progress().state
        return page_of(run, state if state in FINISHED else "interrupted", upload_brain_images=upload_brain_images)

    found = [Source(run.folder, partial(read, run.folder)) for run in runs]
    return [*found, Source(folder / FOLDER, lambda: summary_page(opened, read_status(opened)))]


def push(opened: OpenStudy, console: Console, *, upload_brain_images: bool) -> Outcome:
    """Sends what W&B lacks of the study; what it came to.

    Raises:
        SomvqError: there is no key, or no answer.
    """
    record = opened.record
    (record.folder / FOLDER).mkdir(exist_ok=True)
    with Server(record.wandb_project, record.wandb_entity) as server:
        outcome = send_all(opened, server, console, upload_brain_images=upload_brain_images)
        outcome.address = server.address(record.name)
    write_json(address_file(record), {"address": outcome.address})
    return outcome


def send_all(opened: OpenStudy, server: Server, console: Console, *, upload_brain_images: bool) -> Outcome:
    """Sends each page that the server has not whole, and has the server say that it came, pictures too."""
    group, outcome, unsure = opened.record.name, Outcome(), list[Page]()
    known = server.ask(group)
    with progress_bar(console) as follow:
        for source in follow(sources(opened, upload_brain_images=upload_brain_images)):
            try:
                page = source.read()
            except RunError as error:
                outcome.damaged.append(str(error))
                continue
            if known.get(page.id, NOTHING).is_whole(page):
                outcome.whole += 1
                if len(page.pictures()) == Tracked.read(Run(page.folder)).pictures:  # it was asked for them before
                    note(page, behind=False)
                else:
                    unsure.append(page)
                continue
            with held(opened, source.folder) as ours:
                if not ours:
                    outcome.left.append(page.name)
                    continue
                page = source.read()  # a worker may have gone on with it meanwhile
                if page.steps or page.state != "interrupted":
                    follow.expect(len(page.steps) - known.get(page.id, NOTHING).rows)
                    outcome.rows += server.send(page, follow.step)
                    outcome.pages += 1
                    unsure.append(page)
                    if not console.is_terminal:
                        console.print(f"sent     {page.name}: {page.state}, {len(page.steps)} rows", soft_wrap=True)
    with console.status("asking W&B whether it has all"):
        checked = server.check(group, unsure)
    outcome.lacking, outcome.added = checked.lacking, checked.added
    for page in unsure:
        note(page, behind=page in outcome.lacking)
    return outcome


def report_lines(outcome: Outcome, study: str) -> list[str]:
    """What a push came to."""
    lines = [f"left     {name}: under way, its worker tells W&B; push again when it has ended" for name in outcome.left]
    lines += [f"damaged  {why}" for why in outcome.damaged]
    if outcome.lacking:
        which = ", ".join(page.name for page in outcome.lacking)
        advice = f"somvq push {study} tries again; rows before W&B's last it takes no more, metrics.jsonl has all"
        lines.append(f"lacking  W&B was sent all of these and has not: {which}; {advice}")
    sent = f"{outcome.rows} rows of {outcome.pages} runs sent" if outcome.pages else "nothing new to send"
    sent += f", {outcome.added} pictures added" if outcome.added else ""
    checked = f"{len(outcome.lacking)} of them not there" if outcome.lacking else f"{outcome.whole} there already"
    return [*lines, f"W&B      {sent}, {checked}: {outcome.address}"]


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """For scripts."""
    return {**vars(outcome), "lacking": [page.id for page in outcome.lacking]}


def note(page: Page, *, behind: bool) -> None:
    """Has tracking.json say what the server said; who tells of a run now says so itself."""
    if page.kind == "study" or is_alive(page.folder):
        return
    pictures = 0 if behind else len(page.pictures())
    error = "NotVerified" if behind else None
    told = Tracked(epoch=page.last, mode="online", behind=behind, pictures=pictures, error=error)
    path = page.folder / "tracking.json"
    if not (path.exists() and Tracked.read(Run(page.folder)) == told):
        write_json(path, told.model_dump())


@contextmanager
def held(opened: OpenStudy, folder: Path) -> Iterator[bool]:
    """Keeps workers and other pushes from `folder`; false where one that lives has it."""
    with opened.store.exclusive(opened.record.name):
        lease = None if is_alive(folder) else Lease.take(folder, LEASE_S)
    try:
        yield lease is not None
    finally:
        if lease:
            lease.release()


class Follow:
    """A bar for runs and one for the rows of them that are sent."""

    def __init__(self, progress: Progress):
        self.progress = progress
        self.rows = progress.add_task("rows", total=0)
        self.expected = 0

    def __call__(self, sources: list[Source]) -> Iterator[Source]:
        """`sources`, one after the other."""
        runs = self.progress.add_task("runs", total=len(sources))
        for source in sources:
            yield source
            self.progress.advance(runs)

    def expect(self, rows: int) -> None:
        """So many rows more are to be sent."""
        self.expected += max(rows, 0)
        self.progress.update(self.rows, total=self.expected)

    def step(self) -> None:
        """One row more."""
        self.progress.advance(self.rows)


@contextmanager
def progress_bar(console: Console) -> Iterator[Follow]:
    """A bar on a terminal, nothing elsewhere."""
    columns = (TextColumn("{task.description:8}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Follow(progress)


def list_pages(opened: OpenStudy, *, upload_brain_images: bool) -> list[Page]:
    """All that would leave if the server had nothing; asks nobody."""
    return [source.read() for source in sources(opened, upload_brain_images=upload_brain_images)]


def pages_table(pages: list[Page]) -> Table:
    """A line for each page."""
    table = Table(box=None, header_style="bold")
    for name in ("run", "id", "state", "settings", "rows", "numbers a row", "pictures", "kB", "stay"):
        table.add_column(name, justify="left" if name in ("run", "id", "state") else "right")
    for page in pages:
        keys = {key for step in page.steps for key in step.row}
        steps = f"{page.steps[0].number}-{page.last}" if page.steps else "none"
        size = f"{page.picture_bytes() / 1e3:.0f}"
        cells = (len(page.config), steps, len(keys), len(page.pictures()), size, page.withheld)
        table.add_row(page.name, page.id, page.state, *map(str, cells))
    return table


def total_lines(pages: list[Page], study: str) -> list[str]:
    """What leaves in all, and what stays."""
    rows, media = sum(len(page.steps) for page in pages), sum(len(page.pictures()) for page in pages)
    size, withheld = sum(page.picture_bytes() for page in pages) / 1e6, sum(page.withheld for page in pages)
    lines = [f"leaves   {rows} rows and {media} pictures ({size:.1f} MB) of {len(pages)} runs, less what W&B has"]
    if withheld:
        how = f"somvq push {study} --upload-brain-images sends them"
        lines.append(f"stays    {withheld} pictures that show brains; {how}")
    return [*lines, f"all      every key, value and picture: somvq push {study} --dry-run --json"]


def push_summary(opened: OpenStudy, status: Status) -> None:
    """Sends W&B the study's own page as it is now; unless another process is at it.

    Raises:
        SomvqError: there is no key, or no answer.
    """
    record = opened.record
    folder = record.folder / FOLDER
    folder.mkdir(exist_ok=True)
    with Server(record.wandb_project, record.wandb_entity) as server, held(opened, folder) as ours:
        if ours:
            server.send(summary_page(opened, status), lambda: None)
        write_json(address_file(record), {"address": server.address(record.name)})


def address_file(record: StudyRecord) -> Path:
    """Where the address of the study's pages is kept."""
    return record.folder / FOLDER / "address.json"
