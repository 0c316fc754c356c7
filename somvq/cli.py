"""The command line: parse, call, print. torch, optuna and wandb load only where a command needs them."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from somvq import __version__
from somvq.errors import DefinitionError, SomvqError

if TYPE_CHECKING:
    from somvq.config import CohortSettings
    from somvq.data.cache import OnScan
    from somvq.data.cohort import Cohort
    from somvq.definitions import Sweep
    from somvq.settings import Settings
    from somvq.study.record import OpenStudy
    from somvq.study.status import Status

EPILOG = "First steps: somvq sweep psom --trials 4, without data or account, trains on synthetic brains."
app = typer.Typer(no_args_is_help=True, add_completion=False, epilog=EPILOG, pretty_exceptions_enable=False)
cohort_app = typer.Typer(no_args_is_help=True, help="Make, prepare and look at cohorts of scans.")
app.add_typer(cohort_app, name="cohort")

CLICK_ERROR: Any = typer.BadParameter.__mro__[2]  # ClickException, whose home differs between versions of typer
DEMO_SUBJECTS, DEMO_VOXEL_MM = 24, 2.12
FILE_WIDTH = 150  # of tables that go into a file or a pipe
DATA, PLACE = "Cohort", "Where things are (or in somvq.yaml, or SOMVQ_*: see somvq settings)"


def option(*names: str, help: str, unset: str | bool = True, panel: str | None = None, **more: Any) -> Any:
    """An option; `unset` says what holds where it is not given."""
    return typer.Option(*names, help=help, show_default=unset, rich_help_panel=panel, **more)


CohortOption = Annotated[Path | None, option(help="Folder of T1 volumes.", unset="the demo cohort", panel=DATA)]
VoxelOption = Annotated[float | None, option(help="Resample to cubes of this side.", unset="as they are", panel=DATA)]
ShapeOption = Annotated[
    str | None, option(help="In voxels, multiples of 16: 144x176x144.", unset="all that every brain needs", panel=DATA)
]
SplitSeedOption = Annotated[int, option(help="Decides which subjects train, validate and test.", panel=DATA, min=0)]
SkipOption = Annotated[bool, option("--skip-bad-scans", help="Go on without scans that cannot be used.", panel=DATA)]
RunsOption = Annotated[Path | None, option(help="Folder of studies and their runs.", unset="runs", panel=PLACE)]
StorageOption = Annotated[
    str | None, option(help="Where Optuna keeps trials: sqlite:///PATH.", unset="study.db beside the runs", panel=PLACE)
]
WandbOption = Annotated[
    str | None, option(help="auto, online, offline or disabled.", unset="auto: online if there is a key", panel=PLACE)
]
SetOption = Annotated[
    list[str] | None, option("--set", help="Fix a parameter; may be repeated.", unset=False, metavar="KEY=VALUE")
]
TrialsOption = Annotated[
    int | None, option(help="Trials in all, those the study has included.", unset="the sweep's run_cap")
]
WorkersOption = Annotated[int | None, option(help="Workers at once; on GPUs, one for each.", unset="the job's")]
JsonOption = Annotated[bool, typer.Option("--json", help="For scripts.")]


def main() -> None:
    """The program `somvq`: every expected failure is one line on stderr and an exit status."""
    try:
        status = app(standalone_mode=False)
    except CLICK_ERROR as error:
        context = getattr(error, "ctx", None)
        advice = f" (see {context.command_path} --help)" if context else ""
        status = fail(error.format_message().strip() + advice, error.exit_code)
    except SomvqError as error:
        status = fail(str(error), error.exit_status)
    except OSError as error:
        status = fail(
            f"{error.filename or 'files'}: {error.strerror or error}; choose another place, or free space there", 1
        )
    except (KeyboardInterrupt, typer.Abort):
        status = fail("interrupted; the same command goes on", 130)
    sys.exit(status)


def plain_console() -> Console:
    """stdout, coloured only on a terminal; wide where nobody's window limits it."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else FILE_WIDTH)


def fail(message: str, status: int) -> int:
    """Prints `message` on stderr."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error:[/] {escape(message)}")
    return status


def escape(text: str) -> str:
    """`text` as it is, whatever rich would read into its brackets."""
    from rich.markup import escape as escape_markup

    return escape_markup(text)


@app.callback(invoke_without_command=True)
def somvq(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Which discrete auto-encoder embeds a brain best? Studies of 3-D models on T1 MRI that lose nothing."""
    if version:
        print(f"somvq {__version__}")
        raise typer.Exit


@app.command()
def sweep(
    name: Annotated[str, typer.Argument(help="A sweep: a path, ./sweeps/NAME.yaml, or a shipped one.")],
    trials: TrialsOption = None,
    study: Annotated[str | None, typer.Option(help="The study's name.", show_default="the sweep's")] = None,
    set_: SetOption = None,
    seed: Annotated[int, typer.Option(help="Decides every suggestion and every trial's own seed.", min=0)] = 0,
    job: Annotated[str, typer.Option(help="Where workers run: a path, ./jobs/NAME.yaml, or a shipped one.")] = "local",
    workers: WorkersOption = None,
    cohort: CohortOption = None,
    voxel_mm: VoxelOption = None,
    shape: ShapeOption = None,
    split_seed: SplitSeedOption = 0,
    skip_bad_scans: SkipOption = False,
    runs: RunsOption = None,
    storage: StorageOption = None,
    wandb: WandbOption = None,
) -> int:
    """Search a space: train trials until the study has all it should.

    The same command goes on after any interruption, and adds trials when --trials is raised.
    """
    from somvq.definitions import find_definition, read_job, read_sweep
    from somvq.settings import read_settings
    from somvq.study.space import override

    console = plain_console()
    settings = read_settings(cohort=cohort, runs=runs, storage=storage, wandb=wandb)
    file = find_definition("sweeps", name)
    searched = override(read_sweep(file), parse_settings(set_ or []))
    total = count_trials(trials, searched)
    place = read_job(find_definition("jobs", job))
    slots = at_least_one("--workers", workers if workers is not None else place.workers)
    console.print(
        f"sweep    {file}: {', '.join(n for n, p in searched.parameters.items() if p.value is None)}", soft_wrap=True
    )
    scans = cohort_settings(voxel_mm, shape, split_seed, skip_bad_scans)
    opened = open_study(settings, searched, study or searched.name, seed, scans, console)
    opened.target = total
    return supervise(settings, opened, place.executor, slots, console)


@app.command()
def train(
    model: Annotated[str, typer.Argument(help="ae or psom.")],
    set_: SetOption = None,
    seed: Annotated[int, typer.Option(help="Decides all that is random.", min=0)] = 0,
    cohort: CohortOption = None,
    voxel_mm: VoxelOption = None,
    shape: ShapeOption = None,
    split_seed: SplitSeedOption = 0,
    skip_bad_scans: SkipOption = False,
    runs: RunsOption = None,
    wandb: WandbOption = None,
) -> int:
    """Train one model: a study of a single trial, named by its settings, so that running it again resumes it."""
    from somvq.config import RunConfig, signature
    from somvq.definitions import Metric, Parameter, Sweep, did_you_mean
    from somvq.settings import read_settings
    from somvq.study.space import override

    models = RunConfig.model_fields["model"].annotation.__args__  # type: ignore[union-attr]
    if model not in models:
        raise DefinitionError(f"no model is called '{model}'; {did_you_mean(model, models)}")
    console = plain_console()
    settings = read_settings(cohort=cohort, runs=runs, wandb=wandb)
    metric = Metric(name="val/ssim", goal="maximize")
    one = Sweep(name=model, method="random", metric=metric, parameters={"model": Parameter(value=model)})
    chosen = override(one, parse_settings(set_ or []))
    name = f"train-{model}-{signature([chosen.fixed(), seed])[:6]}"
    opened = open_study(
        settings, chosen, name, seed, cohort_settings(voxel_mm, shape, split_seed, skip_bad_scans), console
    )
    opened.target = 1
    return supervise(settings, opened, "local", 1, console)


@app.command()
def resume(
    study: Annotated[str, typer.Argument(help="The study's name: its folder in runs.")],
    trials: Annotated[int | None, typer.Option(help="Trials in all.", show_default="as before")] = None,
    workers: Annotated[int, typer.Option(help="Workers at once.", min=1)] = 1,
    runs: RunsOption = None,
    storage: StorageOption = None,
    wandb: WandbOption = None,
) -> int:
    """Go on with a study, as it was begun."""
    from somvq.data.cohort import Cohort
    from somvq.settings import read_settings
    from somvq.study.record import load_study
    from somvq.study.status import silence_optuna

    silence_optuna()
    settings = read_settings(runs=runs, storage=storage, wandb=wandb)
    opened = load_study(settings, study)
    if trials is not None:
        opened.target = at_least_one("--trials", trials)
    Cohort(opened.record.cohort)  # says now, not in every trial, that it is gone
    return supervise(settings, opened, "local", workers, plain_console())


@app.command()
def status(
    study: Annotated[str | None, typer.Argument(help="The study's name.", show_default="all studies")] = None,
    json_: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every two seconds.")] = False,
    runs: RunsOption = None,
    storage: StorageOption = None,
) -> None:
    """Say how far studies are: trials done, under way, waiting, failed, and why."""
    from somvq.settings import read_settings
    from somvq.study.record import list_studies, load_study
    from somvq.study.status import progress_table, read_status, silence_optuna, summary_line

    silence_optuna()
    console = plain_console()
    settings = read_settings(runs=runs, storage=storage)
    if study is None:
        known = [read_status(load_study(settings, name)) for name in list_studies(settings)]
        lines = [summary_line(found) for found in known] or [
            f"no study in {settings.runs} yet; begin with somvq sweep psom"
        ]
        print(json.dumps([found.as_json() for found in known]) if json_ else "\n".join(lines))
        return
    opened = load_study(settings, study)
    if json_:
        print(json.dumps(read_status(opened).as_json(), indent=2))
    elif watch:
        watch_status(opened, console)
    else:
        found = read_status(opened)
        console.print(progress_table(found))
        console.print(advice(found), soft_wrap=True)


@app.command()
def compare(
    studies: Annotated[list[str], typer.Argument(help="Names of studies.")],
    runs: RunsOption = None,
    storage: StorageOption = None,
) -> None:
    """Print the leaderboard of each study: finished trials, best first, beside the mean image and the auto-encoder."""
    from somvq.settings import read_settings
    from somvq.study.record import load_study
    from somvq.study.status import leaderboard, read_status, silence_optuna

    silence_optuna()
    settings = read_settings(runs=runs, storage=storage)
    for opened in [load_study(settings, name) for name in studies]:
        plain_console().print(leaderboard(read_status(opened)))


@app.command()
def worker(
    study: Annotated[str, typer.Argument(help="The study's name.")],
    parent: Annotated[int | None, typer.Option(hidden=True)] = None,
    runs: RunsOption = None,
    storage: StorageOption = None,
    wandb: WandbOption = None,
) -> int:
    """Take trials of a study until none is left; start one for each GPU, from any shell that sees its folder."""
    from somvq.settings import read_settings
    from somvq.study.worker import work

    return work(read_settings(runs=runs, storage=storage, wandb=wandb), study, parent)


@app.command()
def settings(json_: JsonOption = False) -> None:
    """Print each setting of this folder, its value, and where that came from."""
    from rich.table import Table

    from somvq.settings import Settings, mask, origin, read_settings

    found = read_settings()
    if json_:
        values = {name: mask(value) if value is not None else None for name, value in found}
        print(
            json.dumps({name: {"value": value, "from": origin(name, {})} for name, value in values.items()}, indent=2)
        )
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("setting", "value", "from", "what it is"):
        table.add_column(heading)
    for name, value in found:
        shown = "" if value is None else mask(value)
        table.add_row(name, escape(shown), origin(name, {}), Settings.model_fields[name].description or "", style=None)
    plain_console().print(table)


@cohort_app.command("demo")
def cohort_demo(
    folder: Annotated[Path, typer.Argument(help="Where the scans go.")],
    subjects: Annotated[int, typer.Option(help="How many synthetic brains.")] = DEMO_SUBJECTS,
    voxel_mm: Annotated[float, typer.Option(help="Voxel side; 1.06 gives the paper's 137x176x137.")] = DEMO_VOXEL_MM,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Make synthetic T1 brains with known age and atrophy (manifest.csv): to try things, not to study anatomy."""
    from somvq.data.demo import make_demo_cohort

    console = plain_console()
    with progress_bar(console) as on_scan:
        make_demo_cohort(
            folder,
            subjects=subjects,
            voxel_mm=voxel_mm,
            seed=seed,
            on_subject=lambda done, of: on_scan("making", done, of),
        )
    console.print(f"{subjects} synthetic brains at {voxel_mm:g} mm in {folder}; train on them with --cohort {folder}")


@cohort_app.command("prepare")
def cohort_prepare(
    folder: Annotated[Path, typer.Argument(help="Folder of T1 volumes.")],
    voxel_mm: VoxelOption = None,
    shape: ShapeOption = None,
    split_seed: SplitSeedOption = 0,
    skip_bad_scans: SkipOption = False,
) -> None:
    """Check and preprocess a cohort now, as the first sweep on it would."""
    from somvq.settings import read_settings

    console = plain_console()
    wanted = cohort_settings(voxel_mm, shape, split_seed, skip_bad_scans)
    prepared = prepare(read_settings(cohort=folder), wanted, console)
    console.print(f"prepared in {prepared.folder}")


def cohort_settings(
    voxel_mm: float | None, shape: str | None, split_seed: int, skip_bad_scans: bool
) -> "CohortSettings":
    """The cohort options, checked."""
    from pydantic import ValidationError

    from somvq.config import CohortSettings
    from somvq.definitions import plain

    sides = tuple(int(side) if side.isdigit() else 0 for side in shape.split("x")) if shape else None
    try:
        return CohortSettings.model_validate(
            {"voxel_mm": voxel_mm, "shape": sides, "split_seed": split_seed, "skip_bad_scans": skip_bad_scans}
        )
    except ValidationError as error:
        problem: Any = error.errors()[0]
        option = f"--{problem['loc'][0].replace('_', '-')} {shape or voxel_mm}: " if problem["loc"] else "--"
        raise DefinitionError(f"{option}{plain(problem)}") from error


def parse_settings(given: list[str]) -> dict[str, Any]:
    """KEY=VALUE pairs; values as YAML reads them."""
    import yaml

    parsed = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals or not key or not value:
            raise DefinitionError(f"--set {pair} is not KEY=VALUE, as in --set epochs=100")
        parsed[key] = yaml.safe_load(value)
    return parsed


def count_trials(asked: int | None, searched: "Sweep") -> int:
    """How many trials a study of this sweep should have."""
    combinations = searched.combinations()
    total = next((number for number in (asked, searched.run_cap, combinations) if number is not None), None)
    if total is None:
        raise DefinitionError(f"sweep {searched.name} has no run_cap, so say how many trials: --trials 50")
    if combinations is not None and total > combinations:
        raise DefinitionError(f"--trials {total} is more than the {combinations} combinations of this grid")
    return at_least_one("--trials", total)


def at_least_one(option: str, value: int) -> int:
    """`value`, if it is a count."""
    if value < 1:
        raise DefinitionError(f"{option} {value} is too few: give 1 or more")
    return value


@contextmanager
def progress_bar(console: Console) -> "Iterator[OnScan]":
    """A bar on a terminal, nothing elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:15}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks: dict[str, Any] = {}

        def on_scan(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield on_scan


def prepare(settings: "Settings", wanted: "CohortSettings", console: Console) -> "Cohort":
    """The cohort of the settings, prepared; the demo cohort, made first, where they name none."""
    from somvq.data.cache import prepare_cohort
    from somvq.data.demo import make_demo_cohort

    folder = settings.cohort
    with progress_bar(console) as on_scan:
        if folder is None:
            folder = settings.cohorts / "demo"
            console.print(
                f"cohort   none given, so {DEMO_SUBJECTS} synthetic brains at {DEMO_VOXEL_MM:g} mm, in {folder}"
            )
            make_demo_cohort(
                folder,
                subjects=DEMO_SUBJECTS,
                voxel_mm=DEMO_VOXEL_MM,
                on_subject=lambda done, of: on_scan("making brains", done, of),
            )
        prepared = prepare_cohort(folder, wanted, settings.cohorts.resolve() / "prepared", on_scan)
    console.print(f"cohort   {folder}: {prepared.summary()}", soft_wrap=True)
    for line in prepared.index.left_out:
        console.print(f"[yellow]left out[/] {escape(line)}", soft_wrap=True)
    for scan in prepared.index.scans:
        for warning in scan.warnings:
            console.print(f"[yellow]warning[/]  {escape(f'{scan.file}: {warning}')}", soft_wrap=True)
    return prepared


def open_study(
    settings: "Settings", searched: "Sweep", name: str, seed: int, scans: "CohortSettings", console: Console
) -> "OpenStudy":
    """The study, begun or found, on its prepared cohort."""
    from somvq.study.record import StudyRecord, create_or_resume, find_study, new_uid, study_folder
    from somvq.study.space import refuse_another_space
    from somvq.study.status import silence_optuna

    silence_optuna()
    folder = study_folder(settings, name)
    if found := find_study(settings, name):  # what is wrong with the request is said before anything is prepared
        refuse_another_space(name, found.record.sweep, searched)
    folder.mkdir(parents=True, exist_ok=True)
    prepared = prepare(settings, scans, console)
    record = StudyRecord(
        name=name,
        uid=new_uid(),
        seed=seed,
        sweep=searched,
        folder=folder,
        cohort=prepared.folder,
        cohort_fingerprint=prepared.fingerprint,
        cohort_summary=prepared.summary(),
        wandb_project=settings.wandb_project,
        wandb_entity=settings.wandb_entity,
    )
    opened, resumed = create_or_resume(settings, record)
    console.print(f"study    {name}, {'found' if resumed else 'begun'} in {shorten(folder)}", soft_wrap=True)
    return opened


def supervise(settings: "Settings", opened: "OpenStudy", executor: str, workers: int, console: Console) -> int:
    """Runs workers until the study is done, then says what came of it."""
    from somvq.executors import EXECUTORS
    from somvq.study.status import leaderboard, read_status, summary_line
    from somvq.study.supervisor import Supervisor

    environment = {f"SOMVQ_{name.upper()}": str(value) for name, value in settings if value is not None}
    environment["SOMVQ_RUNS"] = str(settings.runs.resolve())
    ended = Supervisor(opened, EXECUTORS[executor](workers), workers, environment, console).run()
    found = read_status(opened)
    if found.ranked():
        console.print()
        console.print(leaderboard(found))
    console.print()
    console.print(summary_line(found), style="bold")
    console.print(advice(found), soft_wrap=True)
    return ended


def advice(found: "Status") -> str:
    """What to do next: look, put on W&B, resume, go on."""
    folder = shorten(Path(found.folder))
    lines = []
    if found.ranked():
        lines.append(
            f"look     {folder}/{found.ranked()[0].number:04d}/figures (the best trial; the others are beside it)"
        )
    if any(Path(found.folder).glob("*/wandb/offline-run-*")):
        lines.append(f"W&B      offline so far; with an account: wandb sync {folder}/*/wandb/offline-run-*")
    unfinished = found.target - found.finished
    if unfinished > 0:
        lines.append(f"resume   {unfinished} trials to finish: somvq resume {found.study}, or the same command again")
    else:
        lines.append(f"go on    somvq resume {found.study} --trials {found.target * 2}")
    failed = [trial for trial in found.trials if trial.state == "failed"]
    lines += [f"failed   trial {trial.number}: {trial.reason or 'see its attempts.log'}" for trial in failed[:3]]
    return "\n".join(escape(line) for line in lines)


def shorten(path: Path) -> Path:
    """`path` from here, if it is below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def watch_status(opened: "OpenStudy", console: Console) -> None:
    """The table of a study, again and again until Ctrl-C."""
    import time

    from rich.live import Live

    from somvq.study.status import progress_table, read_status

    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(progress_table(read_status(opened)), refresh=True)
            time.sleep(2)


if __name__ == "__main__":
    main()
