"""The command line: parse, call, print. torch, optuna and wandb load only where a command needs them."""

import errno
import json
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from somvq import __version__
from somvq.errors import DefinitionError, SomvqError
from somvq.options import (
    BrainImagesOption,
    CohortArgument,
    CohortOption,
    GpuHoursOption,
    HoursOption,
    JobOption,
    JsonOption,
    PerGpuOption,
    RunsOption,
    SetOption,
    StorageOption,
    TrialsOption,
    WandbOption,
    WorkersOption,
    option,
    takes_cohort,
)
from somvq.processes import leave

if TYPE_CHECKING:
    from somvq.config import CohortSettings, Split
    from somvq.definitions import JobDefinition, Sweep
    from somvq.settings import Settings
    from somvq.study.record import OpenStudy

EPILOG = "First steps: somvq sweep psom --trials 4, without data or account, trains on synthetic brains."
app = typer.Typer(no_args_is_help=True, add_completion=False, epilog=EPILOG, pretty_exceptions_enable=False)
cohort_app = typer.Typer(no_args_is_help=True, help="Make, prepare and look at cohorts of scans.")
app.add_typer(cohort_app, name="cohort")

CLICK_ERROR: Any = typer.BadParameter.__mro__[2]  # ClickException, whose home differs between versions of typer
ELSEWHERE = "; choose another place: --runs, or SOMVQ_RUNS and SOMVQ_COHORTS"
ADVICE = {
    errno.ENOSPC: f"{ELSEWHERE}; or free space there",
    errno.EDQUOT: f"{ELSEWHERE}; or free space there",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR), ELSEWHERE),
}
MOST_TRIALS = 60  # that status shows where it is not told to show --all
FILE_WIDTH = 150  # of tables that go into a file or a pipe


def main() -> None:
    """The program `somvq`: every expected failure is one line on stderr and an exit status."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # USR1: Slurm's warning
        signal.signal(number, interrupt)
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
        status = fail(f"{error.filename or 'files'}: {error.strerror or error}{ADVICE.get(error.errno or 0, '')}", 1)
    except MemoryError:
        status = fail("out of memory; ask the cluster for more, or give smaller scans: --voxel-mm, --shape", 1)
    except Stopped as stopped:
        status = fail("stopped; the same command goes on", stopped.status)
    except Exception as error:
        from somvq.storages import explain, is_away

        if not is_away(error):
            raise
        status = fail(f"the study's storage does not answer ({explain(error)}); nothing is lost, ask again later", 1)
    leave(status)


class Stopped(BaseException):
    """Ctrl-C or SIGTERM, before there are workers to stop; no KeyboardInterrupt, of which typer says nothing."""

    def __init__(self, number: int):
        self.status = 128 + number


def interrupt(number: int, frame: Any) -> None:
    """The signal handler."""
    raise Stopped(number)


def plain_console() -> Console:
    """stdout, coloured only on a terminal; wide where nobody's window limits it."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else FILE_WIDTH)


def fail(message: str, status: int) -> int:
    """Prints `message` on stderr."""
    with suppress(OSError):  # a log on a full disk
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
@takes_cohort
def sweep(
    scans: "CohortSettings",
    name: Annotated[str, typer.Argument(help="A sweep: a path, ./sweeps/NAME.yaml, or a shipped one.")],
    trials: TrialsOption = None,
    study: Annotated[str | None, typer.Option(help="The study's name.", show_default="the sweep's")] = None,
    set_: SetOption = None,
    seed: Annotated[int, typer.Option(help="Decides every suggestion and every trial's own seed.", min=0)] = 0,
    hours: HoursOption = None,
    gpu_hours: GpuHoursOption = None,
    fork: Annotated[
        str | None,
        option(help="Begin the study of this name with the finished trials of --study that fit.", unset="no fork"),
    ] = None,
    stop: Annotated[bool, typer.Option("--stop", help="Stop the study, wherever it runs; as somvq stop.")] = False,
    job: JobOption = "local",
    workers: WorkersOption = None,
    per_gpu: PerGpuOption = None,
    cohort: CohortOption = None,
    runs: RunsOption = None,
    storage: StorageOption = None,
    wandb: WandbOption = None,
    upload_brain_images: BrainImagesOption = None,
) -> int:
    """Search a space: train trials until the study has all it should.

    The same command goes on after any interruption, and adds trials when --trials is raised.
    It may be given from many shells and machines at once: they share the trials out.
    """
    from somvq.definitions import find_definition, read_sweep
    from somvq.settings import read_settings
    from somvq.study import foreground
    from somvq.study.space import override

    console = plain_console()
    settings = read_settings(
        cohort=cohort, runs=runs, storage=storage, wandb=wandb, upload_brain_images=upload_brain_images
    )
    file = find_definition("sweeps", name)
    searched = override(read_sweep(file), parse_settings(set_ or []))
    if stop:
        return stop_work(settings, study or searched.name, None)
    total = count_trials(trials, searched)
    place = choose_place(job, workers, per_gpu)
    limits = choose_limits(hours, gpu_hours)
    names = ", ".join(name for name, parameter in searched.parameters.items() if parameter.value is None)
    console.print(f"sweep    {file}: {names or 'one choice of settings'}", soft_wrap=True)
    opened = foreground.open_study(settings, searched, study or searched.name, seed, scans, console, fork=fork)
    opened.aim_for(total)
    opened.limit(limits)
    return foreground.supervise(settings, opened, place, console)


@app.command()
@takes_cohort
def train(
    scans: "CohortSettings",
    model: Annotated[str, typer.Argument(help="ae, vae, vqvae, som or psom.")],
    set_: SetOption = None,
    seed: Annotated[int, typer.Option(help="Decides all that is random.", min=0)] = 0,
    cohort: CohortOption = None,
    runs: RunsOption = None,
    wandb: WandbOption = None,
    upload_brain_images: BrainImagesOption = None,
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
    settings = read_settings(cohort=cohort, runs=runs, wandb=wandb, upload_brain_images=upload_brain_images)
    metric = Metric(name="val/ssim", goal="maximize")
    one = Sweep(name=model, method="random", metric=metric, parameters={"model": Parameter(value=model)})
    asked = parse_settings(set_ or [])
    if "model" in asked:
        raise DefinitionError(f"--set model={asked['model']}: say somvq train {asked['model']}")
    chosen = override(one, asked)
    if searched := [name for name, parameter in chosen.parameters.items() if parameter.value is None]:
        raise DefinitionError(f"--set {searched[0]}: give one value; somvq sweep tries several")
    decisive = [RunConfig(**chosen.fixed(), seed=seed).model_dump(mode="json"), scans.model_dump(mode="json")]
    name = f"train-{model}-{signature(decisive)[:6]}"
    opened = foreground.open_study(settings, chosen, name, seed, scans, console)
    opened.aim_for(1)
    return foreground.supervise(settings, opened, JobDefinition(executor="local"), console)


@app.command()
def resume(
    study: Annotated[str, typer.Argument(help="The study's name: its folder in runs.")],
    trials: Annotated[int | None, option(help="Trials in all.", unset="as before")] = None,
    hours: HoursOption = None,
    gpu_hours: GpuHoursOption = None,
    job: JobOption = "local",
    workers: WorkersOption = None,
    per_gpu: PerGpuOption = None,
    runs: RunsOption = None,
    storage: StorageOption = None,
    wandb: WandbOption = None,
    upload_brain_images: BrainImagesOption = None,
) -> int:
    """Go on with a study, as it was begun."""
    from somvq.settings import read_settings
    from somvq.study import foreground

    settings = read_settings(runs=runs, storage=storage, wandb=wandb, upload_brain_images=upload_brain_images)
    place = choose_place(job, workers, per_gpu)
    limits = choose_limits(hours, gpu_hours)
    total = None if trials is None else at_least_one("--trials", trials)
    opened = foreground.reopen_study(settings, study, plain_console())
    if total is not None:
        opened.aim_for(total)
    opened.limit(limits)
    return foreground.supervise(settings, opened, place, plain_console())


@app.command()
def stop(
    study: Annotated[str, typer.Argument(help="The study's name.")],
    trial: Annotated[int | None, typer.Argument(help="One trial's number.", show_default="all, to be resumed")] = None,
    runs: RunsOption = None,
    storage: StorageOption = None,
) -> int:
    """Stop a study's workers wherever they are, or end one trial for good.

    A stopped study loses nothing: somvq resume goes on with it.
    A stopped trial counts as pruned, and its numbers and figures stay.
    """
    from somvq.settings import read_settings

    return stop_work(read_settings(runs=runs, storage=storage), study, trial)


def stop_work(settings: "Settings", study: str, trial: int | None) -> int:
    """Stops a study or one trial."""
    from somvq.study.record import load_study
    from somvq.study.status import silence_optuna
    from somvq.study.stopping import stop_study, stop_trial

    silence_optuna()
    opened = load_study(settings, study)
    if trial is None:
        stop_study(opened, plain_console())
    else:
        stop_trial(opened, trial, settings, plain_console())
    return 0


@app.command()
def status(
    study: Annotated[str | None, typer.Argument(help="The study's name.", show_default="all studies")] = None,
    json_: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every two seconds.")] = False,
    all_: Annotated[bool, typer.Option("--all", help="Every trial, where a study has hundreds.")] = False,
    runs: RunsOption = None,
    storage: StorageOption = None,
) -> None:
    """Say how far studies are: trials done, under way, waiting, failed, and why; and what would mend what is wrong."""
    from somvq.settings import read_settings
    from somvq.study.advice import advise
    from somvq.study.record import list_studies, load_study
    from somvq.study.status import read_status, silence_optuna
    from somvq.study.tables import progress_table, summary_line

    silence_optuna()
    console = plain_console()
    settings = read_settings(runs=runs, storage=storage)
    if study is None and watch:
        raise DefinitionError("--watch needs a study: somvq status STUDY --watch")
    if study is None:
        known = []
        for name in list_studies(settings):
            try:
                known.append(read_status(load_study(settings, name, looking=True)))
            except SomvqError as error:  # one that cannot be read hides no other
                fail(str(error), error.exit_status)
        lines = [summary_line(found) for found in known] or [
            f"no study in {settings.runs} yet; begin with somvq sweep psom"
        ]
        print(json.dumps([found.as_json() for found in known]) if json_ else "\n".join(lines))
        return
    opened = load_study(settings, study, looking=True)
    if watch:
        with suppress(Stopped):  # Ctrl-C is how one leaves
            watch_status(opened, console, as_json=json_)
    elif json_:
        print(json.dumps(read_status(opened).as_json(), indent=2 if sys.stdout.isatty() else None))
    else:
        found = read_status(opened)
        console.print(progress_table(found, console.width, None if all_ else MOST_TRIALS))
        console.print(advise(found), soft_wrap=True)


@app.command()
def compare(
    studies: Annotated[list[str], typer.Argument(help="Names of studies.")],
    html: Annotated[
        Path | None, option(help="Write a report into this .html: one file, for any browser.", unset=False)
    ] = None,
    brain_images: Annotated[
        bool, typer.Option("--brain-images/--no-brain-images", help="Whether the report shows slices of scans.")
    ] = True,
    json_: JsonOption = False,
    runs: RunsOption = None,
    storage: StorageOption = None,
) -> None:
    """Print the leaderboard of each study: finished trials, best first, beside the mean image and the auto-encoder.

    With --html, everything that there is to see of the studies goes into one file instead.
    """
    from somvq.settings import read_settings
    from somvq.study.record import load_study
    from somvq.study.status import read_status, silence_optuna
    from somvq.study.tables import best_table, leaderboard

    silence_optuna()
    if html and json_:
        raise DefinitionError("--html and --json: give one of them")
    if not (brain_images or html):
        raise DefinitionError("--no-brain-images needs --html FILE: tables have no images")
    settings = read_settings(runs=runs, storage=storage)
    opened = [load_study(settings, name, looking=True) for name in dict.fromkeys(studies)]
    if html:
        return report_on(opened, html, brain_images=brain_images)
    found = [read_status(study) for study in opened]
    if json_:
        print(
            json.dumps([status.as_json() | {"ranked": [trial.number for trial in status.ranked()]} for status in found])
        )
        return
    for status in found:
        plain_console().print(leaderboard(status))
    if len(found) > 1:
        plain_console().print(best_table(found))


def report_on(studies: "list[OpenStudy]", path: Path, *, brain_images: bool) -> None:
    """Writes the report of `studies`, and says so."""
    from somvq.report.page import check_place, write_report
    from somvq.study.foreground import progress_bar

    check_place(path)
    console = plain_console()
    with progress_bar(console) as on_step:
        size = write_report(path, studies, brain_images=brain_images, on_step=on_step)
    console.print(escape(f"report   {path}: {size / 1e6:.1f} MB; open it in any browser"), soft_wrap=True)


@app.command()
def dashboard(
    study: Annotated[str, typer.Argument(help="The study's name.")],
    local: Annotated[
        bool, typer.Option("--local", help="On this machine, without W&B: in Optuna's dashboard.")
    ] = False,
    port: Annotated[
        int | None, option(help="With --local: where to serve it.", unset="8080, or the next free", min=1, max=65535)
    ] = None,
    json_: JsonOption = False,
    runs: RunsOption = None,
    storage: StorageOption = None,
) -> None:
    """Make, or bring up to date, a study's page on W&B, and print its address.

    All runs of the study side by side: settings, curves, pictures of codes, map quality, failures.
    With --local, serve the study here until Ctrl-C, for browsers of this machine alone, brain pictures included.
    """
    from somvq.settings import read_settings
    from somvq.study.record import load_study
    from somvq.study.status import silence_optuna

    silence_optuna()
    if port is not None and not local:
        raise DefinitionError("--port needs --local: W&B's page is served by W&B")
    opened = load_study(read_settings(runs=runs, storage=storage), study, looking=True)
    if local:
        serve_dashboard(opened, port, as_json=json_)
        return
    from somvq.study.dashboards import find_subject
    from somvq.tracking.dashboard import save

    url = save(find_subject(opened))
    print(json.dumps({"url": url}) if json_ else url)


def serve_dashboard(opened: "OpenStudy", port: int | None, *, as_json: bool) -> None:
    """Serves a study's dashboard until Ctrl-C."""
    from somvq.study.local import open_server

    server, url = open_server(opened, port)
    print(json.dumps({"url": url}) if as_json else f"{url}  (Ctrl-C ends it)", flush=True)
    with server, suppress(Stopped):
        server.serve_forever()


@app.command()
def push(
    study: Annotated[str, typer.Argument(help="The study's name.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would leave; asks no server.")] = False,
    summary: Annotated[bool, typer.Option("--summary", help="Only the study's own page.")] = False,
    json_: JsonOption = False,
    upload_brain_images: BrainImagesOption = None,
    runs: RunsOption = None,
    storage: StorageOption = None,
) -> int:
    """Send W&B what it lacks of a study: rows, pictures, how runs ended, and the study's own page.

    W&B is asked what it has, before and after, so the same command goes on after any failure.
    A trial under way is left to its worker.
    The exit status is 1 if W&B does not have all that was sent, or a run cannot be read.
    """
    from somvq.settings import read_settings
    from somvq.study import pushing
    from somvq.study.record import load_study
    from somvq.study.status import read_status, silence_optuna

    silence_optuna()
    if summary and (dry_run or json_):
        raise DefinitionError("--summary sends one page: give it without --dry-run and --json")
    settings = read_settings(runs=runs, storage=storage, upload_brain_images=upload_brain_images)
    opened = load_study(settings, study)
    brains = settings.upload_brain_images or opened.record.sweep.upload_brain_images
    console = plain_console()
    if summary:
        pushing.push_summary(opened, read_status(opened))
        return 0
    if not dry_run:
        notes = Console(stderr=True, highlight=False) if json_ else console  # stdout is for the script alone
        outcome = pushing.push(opened, notes, upload_brain_images=brains)
        for line in pushing.report_lines(outcome, study):
            notes.print(escape(line), soft_wrap=True)
        if json_:
            print(json.dumps(pushing.outcome_json(outcome)))
        return int(bool(outcome.lacking or outcome.damaged))
    pages = pushing.list_pages(opened, upload_brain_images=brains)
    if json_:
        print(json.dumps([page.as_json() for page in pages], indent=2 if sys.stdout.isatty() else None))
        return 0
    console.print(pushing.pages_table(pages))
    for line in pushing.total_lines(pages, study):
        console.print(escape(line), soft_wrap=True)
    return 0


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(help="A run's folder, STUDY/NUMBER, or a study: its best finished trial.")],
    split: Annotated[str, typer.Option(help="val, test or train.")] = "val",
    json_: JsonOption = False,
    runs: RunsOption = None,
    storage: StorageOption = None,
) -> None:
    """Measure a trained run on a split of its cohort, beside the mean image.

    Compare and choose runs on val, which sweeps measure too.
    Read test once, at the end, for the one run that was chosen on val:
    numbers that chose a run flatter it. No sweep ever reads test.
    The run keeps each evaluation in its evaluations.jsonl.
    """
    from somvq.settings import read_settings
    from somvq.study import foreground
    from somvq.study.advice import shorten
    from somvq.study.choice import find_run
    from somvq.study.status import silence_optuna

    silence_optuna()
    measured_on = choose_split(split)
    found, why = find_run(read_settings(runs=runs, storage=storage), run)
    from somvq import evaluation  # here, so that refusals do not wait for torch

    console = notes = plain_console()
    if json_:
        notes = Console(stderr=True, highlight=False)  # stdout is for the script alone
    taken = f"{shorten(found.folder)}{f', {why}' if why else ''}"
    notes.print(f"run      {escape(taken)}", soft_wrap=True)
    before = evaluation.count_readings(found) if measured_on == "test" else None
    with foreground.progress_bar(notes) as on_scan:
        done = evaluation.evaluate(found, measured_on, on_scan)
    if before is not None:
        notes.print(f"test     {before}", soft_wrap=True)
    on_val = {} if measured_on == "val" else evaluation.measured_on_val(found, done.epoch)
    if json_:
        told = {"run": str(found.folder), **done.model_dump(), "val": on_val}
        print(json.dumps(told | {"test_read_before": before and before._asdict()}, indent=2))
    else:
        console.print()
        console.print(evaluation.table(done, on_val))


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="A run's folder, STUDY/NUMBER, or a study: its best finished trial.")],
    target: Annotated[Path, typer.Argument(help="A folder; or a .nii.gz, for the first scan.")],
    split: Annotated[str, typer.Option(help="val, test or train.")] = "val",
    subject: Annotated[list[str] | None, option(help="Of these subjects alone; may be repeated.", unset="all")] = None,
    cohort: Annotated[Path | None, option(help="Where the scans are now.", unset="where they were")] = None,
    runs: RunsOption = None,
    storage: StorageOption = None,
) -> None:
    """Write which node stands for each voxel of a scan, on the scan's own grid, and tables of the nodes' colours.

    Each voxel has its token's node + 1, and 0 outside the brain.
    The tables are for FSLeyes (.lut) and FreeSurfer's freeview (_lut.txt).
    """
    from somvq.settings import read_settings
    from somvq.study import foreground
    from somvq.study.advice import shorten
    from somvq.study.choice import find_run
    from somvq.study.record import load_study
    from somvq.study.status import silence_optuna

    silence_optuna()
    console = plain_console()
    wanted, settings = choose_split(split), read_settings(runs=runs, storage=storage)
    found, why = find_run(settings, run)
    console.print(escape(f"run      {shorten(found.folder)}{f', {why}' if why else ''}"), soft_wrap=True)
    begun = load_study(settings, found.record.study, looking=True).record
    from somvq import export as node_maps  # here, so that refusals do not wait for torch

    scans = node_maps.Scans(cohort or begun.scans, begun.cohort_settings)
    with foreground.progress_bar(console) as on_scan:
        written = node_maps.export(found, target, scans, split=wanted, subjects=subject or (), on_scan=on_scan)
    for path in written:
        console.print(escape(f"wrote    {path}"), soft_wrap=True)


@app.command()
def rerun(
    study: Annotated[str, typer.Argument(help="The study's name.")],
    trial: Annotated[int, typer.Argument(help="The number of a finished trial.", min=0)],
    again: Annotated[bool, typer.Option("--again", help="Train anew what was trained again before.")] = False,
    json_: JsonOption = False,
    runs: RunsOption = None,
    storage: StorageOption = None,
) -> int:
    """Train a trial again, with its settings, seed and auto-encoder, and say whether the same numbers come out.

    The exit status is 0 if all are the same, bit for bit, and 1 if not. After an interruption the same command goes on.
    """
    from somvq.settings import read_settings
    from somvq.study import foreground
    from somvq.study import rerun as second
    from somvq.study.status import silence_optuna

    silence_optuna()
    settings = read_settings(runs=runs, storage=storage)
    console = plain_console()
    notes = Console(stderr=True, highlight=False) if json_ else console  # stdout is for the script alone
    original = second.find_original(settings, study, trial)
    foreground.reopen_study(settings, study, notes)  # prepares a cohort that was cleaned away
    run, trained = second.train_again(original, notes, again=again)
    found = second.compare(original, run)
    if json_:
        told = {"study": study, "trial": trial, "run": str(run.folder), "trained": trained}
        print(json.dumps(told | found.as_json(), indent=2))
    else:
        for line in second.describe(found):
            console.print(escape(line), soft_wrap=True)
    return int(not found.same)


@app.command()
def worker(
    study: Annotated[str, typer.Argument(help="The study's name.")],
    parent: Annotated[int | None, typer.Option(hidden=True)] = None,
    runs: RunsOption = None,
    storage: StorageOption = None,
    wandb: WandbOption = None,
    upload_brain_images: BrainImagesOption = None,
) -> int:
    """Take trials of a study until none is left; start one for each GPU, from any shell that sees its folder."""
    from somvq.settings import read_settings
    from somvq.study.worker import work

    settings = read_settings(runs=runs, storage=storage, wandb=wandb, upload_brain_images=upload_brain_images)
    return work(settings, study, parent)


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
    seed: Annotated[int, typer.Option(help="Decides who they are.", min=0)] = 0,
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
@takes_cohort
def cohort_prepare(scans: "CohortSettings", folder: CohortArgument) -> int:
    """Check and preprocess a cohort now, as the first sweep on it would; exit status 1 if a scan was left out."""
    from somvq.settings import read_settings
    from somvq.study import foreground

    console = plain_console()
    found = foreground.find(folder, scans, console)
    caches = foreground.prepared_folder(read_settings())
    prepared = foreground.prepare_found(folder, found, scans, caches, console)
    console.print(f"prepared in {prepared.folder}", soft_wrap=True)
    console.print(f"look     somvq cohort show {prepared.folder.name} --montage montage.png", soft_wrap=True)
    return int(bool(found.left_out or prepared.index.left_out))


@cohort_app.command("check")
@takes_cohort
def cohort_check(
    scans: "CohortSettings",
    folder: CohortArgument,
    manifest: Annotated[
        Path | None, option(help="Write what can be used into this .csv, to edit, share and check later.", unset=False)
    ] = None,
    json_: JsonOption = False,
) -> int:
    """Try every scan of a cohort and say what is wrong with it; nothing is prepared. Exit status 1 if one is bad."""
    from somvq.data.check import write_manifest
    from somvq.data.report import check_lines, check_report, check_table
    from somvq.study import foreground

    console = plain_console()
    checked = foreground.check(folder, scans, Console(quiet=True) if json_ else console)
    if json_:
        print(json.dumps(check_report(checked), indent=2))
    else:
        console.print(check_table(checked, console.width))
        for line in check_lines(checked, console.width):
            console.print(escape(line), soft_wrap=True)
    if manifest:
        write_manifest(manifest, checked)
        Console(stderr=True).print(f"manifest {manifest}: prepare or sweep it as a cohort", soft_wrap=True)
    return int(bool(checked.refused or checked.complaint))


@cohort_app.command("list")
def cohort_list(json_: JsonOption = False) -> None:
    """List the prepared cohorts: scans, shape, splits, warnings, size on disk, folder."""
    from somvq.data.cache import list_prepared
    from somvq.data.report import describe_cohort, list_table
    from somvq.settings import read_settings
    from somvq.study.foreground import prepared_folder

    prepared = list_prepared(prepared_folder(read_settings()))
    if json_:
        print(json.dumps([describe_cohort(cohort) for cohort in prepared], indent=2))
    elif prepared:
        console = plain_console()
        console.print(list_table(prepared, console.width))
    else:
        print("no cohort is prepared yet; begin with somvq cohort prepare FOLDER")


@cohort_app.command("show")
def cohort_show(
    cohort: Annotated[str, typer.Argument(help="A prepared cohort: its name in somvq cohort list, or its folder.")],
    montage: Annotated[Path | None, option(help="Draw the middle of each scan into this .png.", unset=False)] = None,
    at_most: Annotated[int, typer.Option("--scans", help="Of that many scans, evenly chosen.", min=1)] = 48,
    json_: JsonOption = False,
) -> None:
    """Show a prepared cohort: how it was made, its splits, and each scan with its warnings."""
    from somvq.data.cache import find_prepared
    from somvq.data.report import describe_cohort, label, show_table, summary_lines
    from somvq.settings import read_settings
    from somvq.study.foreground import prepared_folder

    console = plain_console()
    found = find_prepared(prepared_folder(read_settings()), cohort)
    if json_:
        print(json.dumps({**describe_cohort(found), **found.index.model_dump(mode="json")}, indent=2))
    else:
        for line in summary_lines(found):
            console.print(escape(line), soft_wrap=True)
        console.print(show_table(found, console.width))
    if montage:
        from somvq.figures import save
        from somvq.figures.montage import draw_montage

        if montage.suffix.lower() != ".png" or not montage.parent.is_dir():
            raise DefinitionError(f"--montage {montage}: give a file that ends in .png, in a folder that is there")
        total = len(found.index.scans)
        rows = [row * total // min(at_most, total) for row in range(min(at_most, total))]
        save(draw_montage((label(found.index.scans[row]), found.volumes[row]) for row in rows), montage)
        Console(stderr=True).print(f"montage  {len(rows)} of {total} scans: {montage}", soft_wrap=True)


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


def choose_place(job: str, workers: int | None, per_gpu: int | None) -> "JobDefinition":
    """Where workers run, and how many."""
    from somvq.definitions import find_definition, read_job

    place = read_job(find_definition("jobs", job))
    said = {"workers": ("--workers", workers), "workers_per_gpu": ("--per-gpu", per_gpu)}
    told = {key: at_least_one(name, count) for key, (name, count) in said.items() if count is not None}
    return place.model_copy(update=told)


def choose_limits(hours: float | None, gpu_hours: float | None) -> dict[str, float]:
    """What was said of what the study may use up."""
    said = {"hours": ("--hours", hours), "gpu_hours": ("--gpu-hours", gpu_hours)}
    for option_, value in said.values():
        if value is not None and not value > 0:
            raise DefinitionError(f"{option_} {value:g} is no limit: give a number above 0, or inf for none")
    return {name: value for name, (_, value) in said.items() if value is not None}


def choose_split(split: str) -> "Split":
    """The split that was asked for."""
    from typing import get_args

    from somvq.config import Split
    from somvq.definitions import did_you_mean

    known: dict[str, Split] = {name: name for name in get_args(Split)}
    if split not in known:
        raise DefinitionError(f"--split {split}: {did_you_mean(split, known)}")
    return known[split]


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


def watch_status(opened: "OpenStudy", console: Console, *, as_json: bool) -> None:
    """A study again and again until Ctrl-C: as a table, or as a line of JSON each time."""
    import time

    from rich.console import Group
    from rich.live import Live

    from somvq.study.advice import advise
    from somvq.study.status import read_status
    from somvq.study.tables import progress_table

    if as_json:
        while True:
            print(json.dumps(read_status(opened).as_json()), flush=True)
            time.sleep(2)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            found = read_status(opened)
            lines = advise(found)
            room = max(5, console.height - lines.count("\n") - len(found.stages) - 5) if console.is_terminal else None
            live.update(Group(progress_table(found, console.width, room), "", lines), refresh=True)
            time.sleep(2)


if __name__ == "__main__":
    main()
