"""What `somvq sweep`, `train` and `resume` do in the foreground: prepare, begin or find, supervise, report."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from somvq.config import CODES, ENCODER_STRIDE, CohortSettings, RunConfig, batch_size
from somvq.data.cache import prepare_cohort
from somvq.data.check import Checked, check_cohort
from somvq.data.cohort import Cohort
from somvq.data.demo import make_demo_cohort
from somvq.data.survey import OnScan
from somvq.definitions import JobDefinition, Sweep
from somvq.errors import DataError, DefinitionError
from somvq.executors import EXECUTORS
from somvq.processes import visible_gpus
from somvq.settings import PREFIX, Settings
from somvq.sources import find_scans
from somvq.sources.found import Found
from somvq.study.advice import advise, shorten
from somvq.study.fork import fork_study, refuse_no_fork
from somvq.study.herald import Herald, Silence
from somvq.study.record import (
    OpenStudy,
    StudyRecord,
    create_or_resume,
    find_study,
    load_study,
    new_uid,
    refuse_another_cohort,
    refuse_another_search,
    study_folder,
)
from somvq.study.status import silence_optuna
from somvq.study.stops import go_on
from somvq.study.supervisor import Supervisor
from somvq.study.tables import leaderboard, summary_line
from somvq.tracking import read_setting, resolve

DEMO_SUBJECTS, DEMO_VOXEL_MM = 24, 2.12


def open_study(
    settings: Settings,
    sweep: Sweep,
    name: str,
    seed: int,
    scans: CohortSettings,
    console: Console,
    *,
    fork: str | None = None,
) -> OpenStudy:
    """The study `name`, begun or found, on its prepared cohort; or its fork, with its trials that fit `sweep`."""
    silence_optuna()
    old = None if fork is None else load_study(settings, name)
    name = name if fork is None else fork
    folder = study_folder(settings, name)
    found = find_study(settings, name)  # what is wrong with the request is said before anything is prepared
    if old:
        refuse_no_fork(old, name, found)
    if found:
        refuse_another_search(found.record, sweep, seed)
    folder.mkdir(parents=True, exist_ok=True)  # before minutes of work: it may not be writable
    try:
        prepared = prepare(settings, scans, console)
        refuse_too_large_maps(sweep, prepared)
        if old:
            refuse_another_cohort(old.record, prepared.fingerprint, prepared.summary())
    except BaseException:
        with suppress(OSError):
            folder.rmdir()  # if nothing is in it
        raise
    record = StudyRecord(
        name=name,
        uid=new_uid(),
        seed=seed,
        sweep=sweep,
        folder=folder,
        scans=(settings.cohort or demo_folder(settings)).resolve(),
        cohort_settings=scans,
        cohort=prepared.folder,
        cohort_fingerprint=prepared.fingerprint,
        cohort_summary=prepared.summary(),
        wandb_project=settings.wandb_project,
        wandb_entity=settings.wandb_entity or read_setting("entity"),  # one for all machines
    )
    opened, resumed = create_or_resume(settings, record)
    console.print(f"study    {name}, {'found' if resumed else 'begun'} in {shorten(folder)}", soft_wrap=True)
    if opened.changed:
        console.print(escape(f"changed  {'; '.join(opened.changed)}"), soft_wrap=True)
    if old:
        console.print(escape(f"fork     {fork_study(old, opened).describe()}"), soft_wrap=True)
    return opened


def refuse_too_large_maps(sweep: Sweep, cohort: Cohort) -> None:
    """Codes that start from tokens need at least as many tokens as nodes."""
    tokens_of_scan = math.prod(side // ENCODER_STRIDE for side in cohort.index.shape)
    train = len(cohort.rows["train"])
    for _, settings in sweep.choices():
        config = RunConfig(**settings)
        if not CODES.search(config.init):
            continue
        one_batch = "kmeans" in config.init and config.reading == "published"
        tokens = tokens_of_scan * (batch_size(config.batch_size, train) if one_batch else train)
        if math.prod(config.grid_shape) > tokens:
            have = f"the {tokens} tokens of {'one batch' if one_batch else 'this training set'}"
            raise DefinitionError(
                f"grid {config.grid} has more nodes than {have}, where init {config.init} starts; take a smaller one"
            )


def reopen_study(settings: Settings, name: str, console: Console) -> OpenStudy:
    """The study `name` as it was begun; its cohort is prepared again if that was cleaned away since."""
    silence_optuna()
    opened = load_study(settings, name)
    record = opened.record
    try:
        Cohort(record.cohort)
    except DataError:  # cleaned away, or damaged
        prepared = prepare_scans(record.scans, record.cohort_settings, record.cohort.parent, console)
        refuse_another_cohort(record, prepared.fingerprint, prepared.summary())
    return opened


def demo_folder(settings: Settings) -> Path:
    """Where the demo cohort is."""
    return settings.cohorts / "demo"


def prepare(settings: Settings, wanted: CohortSettings, console: Console) -> Cohort:
    """The cohort of the settings, prepared; the demo cohort, made first, where they name none."""
    folder = settings.cohort
    if folder is None:
        folder = demo_folder(settings)
        synthetic = f"{DEMO_SUBJECTS} synthetic brains at {DEMO_VOXEL_MM:g} mm"
        console.print(f"cohort   none given, so {synthetic}, in {folder}", soft_wrap=True)
        with progress_bar(console) as on_scan:
            make_demo_cohort(
                folder,
                subjects=DEMO_SUBJECTS,
                voxel_mm=DEMO_VOXEL_MM,
                on_subject=lambda done, of: on_scan("making brains", done, of),
            )
    return prepare_scans(folder, wanted, prepared_folder(settings), console)


def prepared_folder(settings: Settings) -> Path:
    """Where prepared cohorts are kept."""
    return settings.cohorts.resolve() / "prepared"


def check(folder: Path, wanted: CohortSettings, console: Console) -> Checked:
    """Every scan in `folder` tried; says what was found before it is read."""
    found = find(folder, wanted, console)
    with progress_bar(console) as on_scan:
        return check_cohort(folder, found, wanted, on_scan)


def prepare_scans(folder: Path, wanted: CohortSettings, caches: Path, console: Console) -> Cohort:
    """The scans in `folder` prepared below `caches`."""
    return prepare_found(folder, find(folder, wanted, console), wanted, caches, console)


def prepare_found(folder: Path, found: Found, wanted: CohortSettings, caches: Path, console: Console) -> Cohort:
    """What was found in `folder`, prepared below `caches`; says what it is, and what is odd about it."""
    with progress_bar(console) as on_scan:
        prepared = prepare_cohort(folder, wanted, caches, on_scan, found)
    console.print(f"cohort   {folder}: {prepared.summary()}", soft_wrap=True)
    for line in (*found.left_out, *prepared.index.left_out):
        console.print(f"[yellow]left out[/] {escape(line)}", soft_wrap=True)
    for warning, files in prepared.index.warnings():
        whose = files[0] if len(files) == 1 else f"{len(files)} scans, such as {files[0]}"
        console.print(f"[yellow]warning[/]  {escape(f'{whose}: {warning}')}", soft_wrap=True)
    return prepared


def find(folder: Path, wanted: CohortSettings, console: Console) -> Found:
    """What there is in `folder`, said before it is read."""
    found = find_scans(folder, wanted)
    console.print(f"cohort   {folder}: {len(found.scans)} scans, laid out as {found.layout}", soft_wrap=True)
    for note in found.notes:
        console.print(f"         {escape(note)}", soft_wrap=True)
    return found


@contextmanager
def progress_bar(console: Console) -> Iterator[OnScan]:
    """A bar on a terminal, nothing elsewhere."""
    columns = (TextColumn("{task.description:15}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks: dict[str, Any] = {}

        def on_scan(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield on_scan


def supervise(settings: Settings, opened: OpenStudy, place: JobDefinition, console: Console) -> int:
    """Runs workers until the study is done, then says what came of it; the exit status."""
    environment = {PREFIX + name.upper(): str(value) for name, value in settings if value is not None}
    environment["SOMVQ_RUNS"] = str(settings.runs.resolve())
    if go_on(opened.record.folder):
        console.print(f"study    {opened.record.name} was stopped by somvq stop, and goes on")
    if opened.limits.gpu_hours and not visible_gpus():
        console.print("limits   no GPU is here: workers of this machine use up no GPU-hours")
    herald = Herald(opened, environment) if resolve(settings.wandb) == "online" else Silence()
    supervisor = Supervisor(opened, EXECUTORS[place.executor](place), environment, console, herald)
    try:
        ended = supervisor.run()
        supervisor.look()
    finally:
        herald.leave()
    status = supervisor.status
    if not ended and (told := herald.finish(status)):
        console.print(escape(told), soft_wrap=True)
    if status.ranked():
        console.print()
        console.print(leaderboard(status))
    console.print()
    console.print(escape(summary_line(status)), style="bold", soft_wrap=True)
    console.print(advise(status), soft_wrap=True)
    return ended or int(status.count("failed") > 0)
