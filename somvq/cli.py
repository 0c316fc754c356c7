"""The command line: parse, call, print. torch, optuna and wandb load only where a command needs them."""

import json
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from somvq import __version__
from somvq.errors import DefinitionError, SomvqError

if TYPE_CHECKING:
    from somvq.config import CohortSettings
    from somvq.definitions import JobDefinition, Sweep
    from somvq.study.record import OpenStudy

EPILOG = "First steps: somvq sweep psom --trials 4, without data or account, trains on synthetic brains."
app = typer.Typer(no_args_is_help=True, add_completion=False, epilog=EPILOG, pretty_exceptions_enable=False)
cohort_app = typer.Typer(no_args_is_help=True, help="Make, prepare and look at cohorts of scans.")
app.add_typer(cohort_app, name="cohort")

CLICK_ERROR: Any = typer.BadParameter.__mro__[2]  # ClickException, whose home differs between versions of typer
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
SplitOption = Annotated[
    str | None, option(help="Subjects to train, validate and test with, in proportion.", unset="128/23/28", panel=DATA)
]
PaddingOption = Annotated[
    str | None,
    option(help="What fills up a scan: background, or mean as in the paper.", unset="background", panel=DATA),
]
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
JobOption = Annotated[str, option(help="Where workers run: a path, ./jobs/NAME.yaml, or a shipped one.")]
JsonOption = Annotated[bool, typer.Option("--json", help="For scripts.")]


def main() -> None:
    """The program `somvq`: every expected failure is one line on stderr and an exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        status = app(standalone_mode=False)
    except CLICK_ERROR as error:
        context = getattr(error, "ctx", None)
        advice = f" (see {context.command_path} --help)" if context else ""
        message = error.format_message().strip()
        status = fail(message + advice, error.exit_code) if message else error.exit_code  # none: help was printed
    except SomvqError as error:
        status = fail(str(error), error.exit_status)
    except OSError as error:
        status = fail(
            f"{error.filename or 'files'}: {error.strerror or error}; choose another place, or free space there", 1
        )
    except Stopped as stopped:
        status = fail("stopped; the same command goes on", stopped.status)
    sys.exit(status)


class Stopped(BaseException):
    """Ctrl-C or SIGTERM, before there are workers to stop; no KeyboardInterrupt, of which typer says nothing."""

    def __init__(self, number: int):
        self.status = 128 + number


def stop(number: int, frame: Any) -> None:
    """The signal handler."""
    raise Stopped(number)


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
    job: JobOption = "local",
    workers: WorkersOption = None,
    cohort: CohortOption = None,
    voxel_mm: VoxelOption = None,
    shape: ShapeOption = None,
    padding: PaddingOption = None,
    split: SplitOption = None,
    split_seed: SplitSeedOption = 0,
    skip_bad_scans: SkipOption = False,
    runs: RunsOption = None,
    storage: StorageOption = None,
    wandb: WandbOption = None,
) -> int:
    """Search a space: train trials until the study has all it should.

    The same command goes on after any interruption, and adds trials when --trials is raised.
    """
    from somvq.definitions import find_definition, read_sweep
    from somvq.settings import read_settings
    from somvq.study import foreground
    from somvq.study.space import override

    console = plain_console()
    settings = read_settings(cohort=cohort, runs=runs, storage=storage, wandb=wandb)
    file = find_definition("sweeps", name)
    searched = override(read_sweep(file), parse_settings(set_ or []))
    total = count_trials(trials, searched)
    place = choose_place(job, workers)
    names = ", ".join(name for name, parameter in searched.parameters.items() if parameter.value is None)
    console.print(f"sweep    {file}: {names or 'one choice of settings'}", soft_wrap=True)
    scans = cohort_settings(voxel_mm, shape, padding, split, split_seed, skip_bad_scans)
    opened = foreground.open_study(settings, searched, study or searched.name, seed, scans, console)
    opened.aim_for(total)
    return foreground.supervise(settings, opened, place, console)


@app.command()
def train(
    model: Annotated[str, typer.Argument(help="ae, vae, vqvae, som or psom.")],
    set_: SetOption = None,
    seed: Annotated[int, typer.Option(help="Decides all that is random.", min=0)] = 0,
    cohort: CohortOption = None,
    voxel_mm: VoxelOption = None,
    shape: ShapeOption = None,
    padding: PaddingOption = None,
    split: SplitOption = None,
    split_seed: SplitSeedOption = 0,
    skip_bad_scans: SkipOption = False,
    runs: RunsOption = None,
    wandb: WandbOption = None,
) -> int:
    """Train one model: a study of a single trial, named by its settings, so that running it again resumes it."""
    from somvq.config import RunConfig, signature
    from somvq.definitions import JobDefinition, Metric, Parameter, Sweep, did_you_mean
    from somvq.settings import read_settings
    from somvq.study import foreground
    from somvq.study.space import override

    models = RunConfig.model_fields["model"].annotation.__args__  # type: ignore[union-attr]
    if model not in models:
        raise DefinitionError(f"no model is called '{model}'; {did_you_mean(model, models)}")
    console = plain_console()
    settings = read_settings(cohort=cohort, runs=runs, wandb=wandb)
    metric = Metric(name="val/ssim", goal="maximize")
    one = Sweep(name=model, method="random", metric=metric, parameters={"model": Parameter(value=model)})
    asked = parse_settings(set_ or [])
    if "model" in asked:
        raise DefinitionError(f"--set model={asked['model']}: say somvq train {asked['model']}")
    chosen = override(one, asked)
    scans = cohort_settings(voxel_mm, shape, padding, split, split_seed, skip_bad_scans)
    decisive = [RunConfig(**chosen.fixed(), seed=seed).model_dump(mode="json"), scans.model_dump(mode="json")]
    name = f"train-{model}-{signature(decisive)[:6]}"
    opened = foreground.open_study(settings, chosen, name, seed, scans, console)
    opened.aim_for(1)
    return foreground.supervise(settings, opened, JobDefinition(executor="local"), console)


@app.command()
def resume(
    study: Annotated[str, typer.Argument(help="The study's name: its folder in runs.")],
    trials: Annotated[int | None, option(help="Trials in all.", unset="as before")] = None,
    job: JobOption = "local",
    workers: WorkersOption = None,
    runs: RunsOption = None,
    storage: StorageOption = None,
    wandb: WandbOption = None,
) -> int:
    """Go on with a study, as it was begun."""
    from somvq.settings import read_settings
    from somvq.study import foreground

    settings = read_settings(runs=runs, storage=storage, wandb=wandb)
    place = choose_place(job, workers)
    total = None if trials is None else at_least_one("--trials", trials)
    opened = foreground.reopen_study(settings, study, plain_console())
    if total is not None:
        opened.aim_for(total)
    return foreground.supervise(settings, opened, place, plain_console())


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
    from somvq.study import foreground
    from somvq.study.record import list_studies, load_study
    from somvq.study.status import progress_table, read_status, silence_optuna, summary_line

    silence_optuna()
    console = plain_console()
    settings = read_settings(runs=runs, storage=storage)
    if study is None:
        known = []
        for name in list_studies(settings):
            try:
                known.append(read_status(load_study(settings, name)))
            except SomvqError as error:  # one that cannot be read hides no other
                fail(str(error), error.exit_status)
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
        console.print(foreground.advise(found), soft_wrap=True)


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


@app.command()
def metrics() -> None:
    """Print, as Markdown, each number that a run measures and what it is."""
    from somvq.runs import metrics_table

    print(metrics_table(), end="")


@app.command()
def readings() -> None:
    """Print, as Markdown, each place where the paper's code and its sources differ, and what --set reading=... does."""
    from somvq.published import table

    print(table(), end="")


@cohort_app.command("demo")
def cohort_demo(
    folder: Annotated[Path, typer.Argument(help="Where the scans go.")],
    subjects: Annotated[int, typer.Option(help="How many synthetic brains.")] = 24,
    voxel_mm: Annotated[float, typer.Option(help="Voxel side; 1.06 gives the paper's 137x176x137.")] = 2.12,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Make synthetic T1 brains with known age and atrophy (manifest.csv): to try things, not to study anatomy."""
    from somvq.data.demo import make_demo_cohort
    from somvq.study import foreground

    console = plain_console()
    with foreground.progress_bar(console) as on_scan:
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
    padding: PaddingOption = None,
    split: SplitOption = None,
    split_seed: SplitSeedOption = 0,
    skip_bad_scans: SkipOption = False,
) -> None:
    """Check and preprocess a cohort now, as the first sweep on it would."""
    from somvq.settings import read_settings
    from somvq.study import foreground

    console = plain_console()
    wanted = cohort_settings(voxel_mm, shape, padding, split, split_seed, skip_bad_scans)
    prepared = foreground.prepare(read_settings(cohort=folder), wanted, console)
    console.print(f"prepared in {prepared.folder}")


def cohort_settings(
    voxel_mm: float | None,
    shape: str | None,
    padding: str | None,
    split: str | None,
    split_seed: int,
    skip_bad_scans: bool,
) -> "CohortSettings":
    """The cohort options, checked."""
    from pydantic import ValidationError

    from somvq.config import CohortSettings
    from somvq.definitions import plain

    if shape and not re.fullmatch(r"\d+x\d+x\d+", shape):
        raise DefinitionError(f"--shape {shape} is not three numbers of voxels, as in 144x176x144")
    sides = tuple(int(side) for side in shape.split("x")) if shape else None
    given = {"voxel_mm": voxel_mm, "shape": sides, "padding": padding, "split": split, "split_seed": split_seed}
    try:
        return CohortSettings.model_validate(
            {name: value for name, value in given.items() if value is not None} | {"skip_bad_scans": skip_bad_scans}
        )
    except ValidationError as error:
        problem: Any = error.errors()[0]
        name = problem["loc"][0] if problem["loc"] else ""
        option = f"--{name.replace('_', '-')} {shape if name == 'shape' else given.get(name)}: " if name else "--"
        raise DefinitionError(f"{option}{plain(problem)}") from error


def parse_settings(given: list[str]) -> dict[str, Any]:
    """KEY=VALUE pairs; values as YAML reads them."""
    import yaml

    from somvq.definitions import parse_yaml

    parsed = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals or not key or not value:
            raise DefinitionError(f"--set {pair} is not KEY=VALUE, as in --set epochs=100")
        try:
            parsed[key] = parse_yaml(value)
        except yaml.YAMLError:
            raise DefinitionError(f"--set {pair}: {value} is neither a number nor a word") from None
    return parsed


def choose_place(job: str, workers: int | None) -> "JobDefinition":
    """Where workers run, and how many."""
    from somvq.definitions import find_definition, read_job

    place = read_job(find_definition("jobs", job))
    return place if workers is None else place.model_copy(update={"workers": at_least_one("--workers", workers)})


def count_trials(asked: int | None, searched: "Sweep") -> int:
    """How many trials a study of this sweep should have."""
    combinations = searched.combinations()
    if asked is not None and combinations is not None and asked > combinations:
        raise DefinitionError(f"--trials {asked} is more than the {combinations} combinations of this grid")
    if asked is not None:
        return at_least_one("--trials", asked)
    known = [number for number in (searched.run_cap, combinations) if number is not None]
    if not known:
        raise DefinitionError(f"sweep {searched.name} has no run_cap, so say how many trials: --trials 50")
    return min(known)


def at_least_one(option: str, value: int) -> int:
    """`value`, if it is a count."""
    if value < 1:
        raise DefinitionError(f"{option} {value} is too few: give 1 or more")
    return value


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
