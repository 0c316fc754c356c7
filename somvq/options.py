"""Options that commands share, each said once."""

import re
from collections.abc import Callable
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from somvq.errors import DefinitionError

if TYPE_CHECKING:
    from somvq.config import CohortSettings

WHICH, HOW = "Cohort: which scans", "Cohort: what is done to them"
PLACE = "Where things are (or in somvq.yaml, or SOMVQ_*: see somvq settings)"


def option(*names: str, help: str, unset: str | bool = True, panel: str | None = None, **more: Any) -> Any:
    """An option; `unset` says what holds where it is not given."""
    return typer.Option(*names, help=help, show_default=unset, rich_help_panel=panel, **more)


CohortOption = Annotated[
    Path | None, option(help="Folder of T1 volumes, or a manifest (.csv).", unset="the demo cohort", panel=WHICH)
]
CohortArgument = Annotated[Path, typer.Argument(help="Folder of T1 volumes, or a manifest (.csv).")]
RunsOption = Annotated[Path | None, option(help="Folder of studies and their runs.", unset="runs", panel=PLACE)]
StorageOption = Annotated[
    str | None,
    option(
        help="Where Optuna keeps trials: sqlite:///PATH, journal:///PATH (shared disks) or "
        "postgresql://USER@HOST/DATABASE.",
        unset="study.db beside the runs",
        panel=PLACE,
    ),
]
WandbOption = Annotated[
    str | None, option(help="auto, online, offline or disabled.", unset="auto: online if there is a key", panel=PLACE)
]
BrainImagesOption = Annotated[
    bool | None,
    option(
        "--upload-brain-images",
        help="Send W&B the pictures that show brains, too: slices, and what nodes decode to.",
        unset="they stay",
        panel=PLACE,
    ),
]
SetOption = Annotated[
    list[str] | None,
    option(
        "--set",
        help="Fix a parameter, or give it a list or a range of values; may be repeated.",
        unset=False,
        metavar="KEY=VALUE",
    ),
]
TrialsOption = Annotated[
    int | None, option(help="Trials in all, those the study has included.", unset="the sweep's run_cap")
]
WorkersOption = Annotated[int | None, option(help="Workers at once.", unset="the job's, else one for each GPU, or one")]
PerGpuOption = Annotated[int | None, option(help="Workers that share a GPU.", unset="the job's, else 1")]
HoursOption = Annotated[
    float | None,
    option(
        help="Stop when the study has been worked on for this long in all; inf: no limit any more.", unset="no limit"
    ),
]
GpuHoursOption = Annotated[
    float | None,
    option(
        "--gpu-hours",
        help="Stop when its attempts have used this much of GPUs; inf: no limit any more.",
        unset="no limit",
    ),
]
JobOption = Annotated[str, option(help="Where workers run: a path, ./jobs/NAME.yaml, or a shipped one.")]
JsonOption = Annotated[bool, typer.Option("--json", help="For scripts.")]

COHORT_OPTIONS: dict[str, Any] = {  # by setting of CohortSettings: type and option
    "layout": (
        str | None,
        option(
            help="manifest, neurite, oasis1, oasis2, freesurfer, oasis3, derivatives, bids or folder.",
            unset="found by looking",
            panel=WHICH,
        ),
    ),
    "table": (
        Path | None,
        option(help="Clinical table of OASIS (.csv, .xlsx).", unset="the one in the folder", panel=WHICH),
    ),
    "cdr": (
        str | None,
        option(help="Only people with these clinical dementia ratings: 0, or 0,0.5.", unset="all", panel=WHICH),
    ),
    "include_blank_cdr": (bool, option("--include-blank-cdr", help="With --cdr: also those never rated.", panel=WHICH)),
    "space": (
        str | None,
        option(
            help="Of BIDS derivatives: T1w, or a template's, as MNI152NLin2009cAsym.",
            unset="what most have",
            panel=WHICH,
        ),
    ),
    "take": (
        str | None,
        option(help="The first scan of each session, of each subject, or every.", unset="session", panel=WHICH),
    ),
    "strict": (bool, option("--strict", help="Stop where a scan cannot be used; else it is left out.", panel=WHICH)),
    "orient": (
        str | None,
        option(help="Axes of files whose headers do not say, as LAS.", unset="a guess, and a warning", panel=HOW),
    ),
    "voxel_mm": (float | None, option(help="Resample to cubes of this side.", unset="as they are", panel=HOW)),
    "shape": (
        str | None,
        option(help="In voxels, multiples of 16: 144x176x144.", unset="all that every brain needs", panel=HOW),
    ),
    "normalise": (
        str | None,
        option(help="z-scores by the mean and deviation of the volume, or of the brain.", unset="volume", panel=HOW),
    ),
    "padding": (
        str | None,
        option(help="What fills up a scan: background, or mean as in the paper.", unset="background", panel=HOW),
    ),
    "split": (
        str | None,
        option(help="Subjects to train, validate and test with, in proportion.", unset="128/23/28", panel=HOW),
    ),
    "split_seed": (
        int | None,
        option(help="Decides which subjects train, validate and test.", unset="0", panel=HOW, min=0),
    ),
    "stratify": (
        str | None,
        option(help="Covariate that each split has in proportion, as age.", unset="none", panel=HOW),
    ),
}


def takes_cohort(command: Callable[..., Any]) -> Callable[..., Any]:
    """`command`, whose parameter `scans` is a CohortSettings, with an option for each of the settings instead."""
    own = [parameter for parameter in signature(command).parameters.values() if parameter.name != "scans"]
    options = [
        Parameter(
            name, Parameter.KEYWORD_ONLY, default=False if kind is bool else None, annotation=Annotated[kind, chosen]
        )
        for name, (kind, chosen) in COHORT_OPTIONS.items()
    ]

    @wraps(command)
    def call(**given: Any) -> Any:
        scans = cohort_settings({name: given.pop(name) for name in COHORT_OPTIONS})
        return command(**given, scans=scans)

    parameters = [*[parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in own], *options]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    call.__signature__ = signature(command).replace(parameters=parameters)  # type: ignore[attr-defined]
    return call


def cohort_settings(given: dict[str, Any]) -> "CohortSettings":
    """What the cohort options say, checked; those not given are None or False.

    Raises:
        DefinitionError: names the option, its value and what is allowed.
    """
    from pydantic import ValidationError

    from somvq.config import CohortSettings
    from somvq.definitions import plain

    spoken = {name: value for name, value in given.items() if value is not None and value is not False}
    if shape := spoken.get("shape"):
        if not re.fullmatch(r"\d+x\d+x\d+", shape):
            raise DefinitionError(f"--shape {shape} is not three numbers of voxels, as in 144x176x144")
        spoken["shape"] = tuple(int(side) for side in shape.split("x"))
    if table := spoken.get("table"):
        spoken["table"] = table.resolve()  # a worker may stand elsewhere
    try:
        return CohortSettings.model_validate(spoken)
    except ValidationError as error:
        problem: Any = error.errors()[0]
        name = problem["loc"][0] if problem["loc"] else ""
        said = f"--{name.replace('_', '-')} {given[name]}: " if name else "--"
        raise DefinitionError(f"{said}{plain(problem)}") from error
