"""A study's page on W&B as code: which panels, of which numbers; saved under one name, so that it is there once."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from somvq.config import RunConfig
from somvq.definitions import LOGARITHMIC, ROW, Metric, Parameter, Sweep
from somvq.errors import SomvqError
from somvq.runs import LOSSES, MAP_METRICS, METRICS, why_not_measured
from somvq.tracking import has_credentials
from somvq.tracking.wandb import start_wandb

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

ANSWER_S = 8  # that the server has for each question; wandb's own are 19, several times over
MOST_RUNS = 100  # that a panel shows; W&B's own are 10
MOST_ROWS = 3  # of panels that a section shows at once
FIND = """
query View($entity: String, $project: String, $view: String) {
  project(name: $project, entityName: $entity) {
    allViews(viewType: "project-view", viewName: $view) { edges { node { id } } }
  }
}"""
PICTURES = {  # by name in gallery.py, brains left out: what a run needs to have them
    "tsne": "a codebook",
    "codebook_grid": "a codebook",
    "umatrix": "a map",
    "planes": "a map",
    "hits": "a codebook",
    "usage": "a codebook",
    "curves": "",
}
RECONSTRUCTION = ("val/ssim", "val/ssim_q", "val/psnr", "val/psnr_q", "val/mse", "val/mse_q")
CODES = (
    "codebook/used",
    "codebook/perplexity",
    "codebook/quantisation_error",
    "codebook/mixing",
    "codebook/norm_ratio",
    "codebook/entropy",
)


class NotSaved(SomvqError):
    """A dashboard that W&B does not have: it did not answer, or refused."""

    exit_status = 1


@dataclass(frozen=True)
class Subject:
    """The study that a page is about, as far as W&B may know it."""

    name: str
    uid: str
    sweep: Sweep
    cohort: str  # its fingerprint
    made_by: str  # version of somvq, and commit
    project: str
    entity: str | None = None
    best: str | None = None  # the best run's id on W&B

    @property
    def goal(self) -> Metric:
        """What is optimised, or the first of it."""
        return self.sweep.goals[0]

    @property
    def view(self) -> str:
        """The page's own name in its project's addresses: decided by the study, so that all machines save the same."""
        return hashlib.sha256(f"{self.name} {self.uid}".encode()).hexdigest()[:11]

    def configs(self) -> list[RunConfig]:
        """What runs are told, one for each combination of words."""
        return [RunConfig.model_validate(settings) for _, settings in self.sweep.choices()]

    def searched(self) -> dict[str, Parameter | None]:
        """Settings that differ between runs; those that only rows say have no parameter."""
        of_rows = dict.fromkeys(key for row in self.sweep.rows.values() for key in row)
        chosen = {name: p for name, p in self.sweep.parameters.items() if p.value is None and name != ROW}
        return {**of_rows, **chosen}


def save(subject: Subject) -> str:
    """Saves the page, new or as it is to be now; its address.

    Raises:
        SomvqError: there is no key, or no answer: waited for a few seconds, and never asked for.
    """
    if not has_credentials():
        raise SomvqError(
            "no W&B key: export WANDB_API_KEY=... (an in-house server: WANDB_BASE_URL too); "
            f"or look here, without: somvq dashboard --local {subject.name}"
        )
    os.environ.setdefault("WANDB_HTTP_TIMEOUT", str(ANSWER_S))  # read when wandb is imported
    start_wandb()
    import wandb

    try:
        return _save(subject)
    except (wandb.Error, _failed_request()) as error:
        raise NotSaved(f"W&B did not save the dashboard of '{subject.name}': {explain(error)}") from error


def _save(subject: Subject) -> str:
    """As save, of a server that answers."""
    import wandb

    entity = subject.entity or wandb.Api().default_entity
    if not entity:
        raise NotSaved("this W&B account has no user or team of its own; say whose: wandb_entity in somvq.yaml")
    page = build(subject, entity)
    page._internal_name = f"nw-{subject.view}-v"
    page._internal_id = _find(page)
    page.save()
    return str(page.url)


def _find(page: "ws.Workspace") -> str:
    """The id of the page that is saved under this one's name; empty if none is, or no more.

    Its contents are not read: wandb-workspaces refuses those of a page that the browser has brought up to date.
    """
    import wandb
    from wandb_workspaces._graphql import execute_graphql

    asked = {"entity": page.entity, "project": page.project, "view": page._internal_name}
    project = execute_graphql(wandb.Api(), FIND, asked).get("project") or {"allViews": {"edges": []}}
    edges = project["allViews"]["edges"]
    return str(edges[0]["node"]["id"]) if edges else ""


def explain(error: Exception) -> str:
    """Why W&B saved nothing, and what to do about it; wandb's own words where they say it."""
    from wandb.errors import AuthenticationError

    words = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if "did not respond in time" in words:  # wandb-core, which is asking for the second time or the third
        return f"no answer in {ANSWER_S} s; check WANDB_BASE_URL, or ask again later"
    if isinstance(error, AuthenticationError):
        return "it refuses the key; check WANDB_API_KEY, and WANDB_BASE_URL"
    return words


def _failed_request() -> type[Exception]:
    """What wandb raises where the server refuses a request; no wandb.Error."""
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    return WandbApiFailedError


def build(subject: Subject, entity: str) -> "ws.Workspace":
    """The page; panels are only of what the study's runs measure."""
    import wandb_workspaces.workspaces as ws

    goal, measured = subject.goal, find_measured(subject)
    pinned = dict.fromkeys([*(goal.name for goal in subject.sweep.goals), "val/ssim", "codebook/used"])
    columns = [*(name for name in pinned if name in measured), "trial/state"]
    return ws.Workspace(
        entity=entity,
        project=subject.project,
        name=subject.name,
        sections=list(build_sections(subject, measured)),
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=MOST_RUNS, group_by_prefix="first"),
        runset_settings=ws.RunsetSettings(
            filters=ws.And(ws.Metric("Group") == subject.name, ws.Metric("JobType") == "trial"),
            order=[ws.Ordering(ws.Summary(goal.name), ascending=goal.goal == "minimize")],
            pinned_columns=["run:displayName", *(f"summary:{name}" for name in columns)],
            baseline_run=subject.best,
        ),
    )


def find_measured(subject: Subject) -> list[str]:
    """The metrics that at least one run of the study has."""
    configs = subject.configs()
    return [name for name in METRICS if not all(why_not_measured(name, config) for config in configs)]


def build_sections(subject: Subject, measured: list[str]) -> "Iterable[ws.Section]":
    """What is on the page, from above; sections without panels are left out."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    pages: dict[str, tuple[bool, int, list[Any]]] = {  # by heading: whether it is open, panels in a row, its panels
        "Read me": (True, 1, [wr.MarkdownPanel(markdown=describe(subject))]),
        "Study": (True, 2, study_panels(subject, measured)),
        "Reconstruction": (True, 3, lines(name for name in RECONSTRUCTION if name in measured)),
        "Codes and pictures": (True, 3, [*picture_panels(measured), *code_panels(measured)]),
        "Map quality": (True, 3, map_panels(measured)),
        "Losses and cost": (False, 3, loss_panels(measured)),
        "Compare": (False, 1, [wr.RunComparer(diff_only="split")]),
        "Failures": (False, 3, failure_panels(subject)),
    }
    for name, (is_open, columns, panels) in pages.items():
        if panels:
            rows = min(MOST_ROWS, -(-len(panels) // columns))
            layout = ws.SectionLayoutSettings(columns=columns, rows=rows)
            yield ws.Section(name=name, panels=panels, is_open=is_open, layout_settings=layout)


def describe(subject: Subject) -> str:
    """The study in Markdown: what is searched and how, on what, and what to type."""
    sweep = subject.sweep
    rows = [f"| `{name}` | {describe_parameter(name, p, sweep)} |" for name, p in subject.searched().items()]
    fixed = ", ".join(f"{name} {value}" for name, value in sweep.fixed().items())
    goals = " and ".join(f"{goal.goal} `{goal.name}`" for goal in sweep.goals)
    bounds = "; ".join(f"`{name}` {describe_bounds(b.min, b.max)}" for name, b in sweep.constraints.items())
    stops = f"ASHA on `{sweep.monitor_goal.name}`" if sweep.early_terminate else "none"
    facts = {
        "Aim": goals + (f", where {bounds}" if bounds else ""),
        "Sampler": f"{sweep.method}; early stops: {stops}",
        "Fixed": fixed,
        "Cohort": f"`{subject.cohort}`",
        "Made by": subject.made_by,
    }
    name = subject.name
    return "\n".join([
        f"# {name}",
        *(f"**{word}:** {said}  " for word, said in facts.items() if said),
        *(["", "| searched | values |", "|---|---|", *rows] if rows else []),
        "",
        f"Go on with it: `somvq resume {name}` · how far it is: `somvq status {name}` · send what W&B lacks: "
        f"`somvq push {name}` · save this page anew, own changes to it lost: `somvq dashboard {name}`",
    ])  # fmt: skip


def describe_parameter(name: str, parameter: Parameter | None, sweep: Sweep) -> str:
    """Where a setting may lie."""
    if parameter is None:
        return ", ".join(dict.fromkeys(str(row[name]) for row in sweep.rows.values() if name in row))
    if parameter.values is not None:
        return ", ".join(map(str, parameter.values))
    return f"{parameter.min} to {parameter.max}{', log' if parameter.distribution in LOGARITHMIC else ''}"


def describe_bounds(low: float | None, high: float | None) -> str:
    """A constraint."""
    said = [*([f"at least {low}"] if low is not None else []), *([f"at most {high}"] if high is not None else [])]
    return " and ".join(said)


def study_panels(subject: Subject, measured: list[str]) -> list[Any]:
    """How settings and aims hang together, over all runs."""
    import wandb_workspaces.reports.v2 as wr

    searched, goals = subject.searched(), subject.sweep.goals
    logarithmic = {name for name, p in searched.items() if p is not None and p.distribution in LOGARITHMIC}
    columns = [wr.ParallelCoordinatesPlotColumn(wr.Config(name), name, log=name in logarithmic) for name in searched]
    columns += [wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(goal.name), goal.name) for goal in goals]
    panels: list[Any] = []
    if searched:
        panels.append(wr.ParallelCoordinatesPlot(columns=columns, title="Settings"))
        panels += [wr.ParameterImportancePlot(with_respect_to=goal.name) for goal in goals]
    if "codebook/used" in measured:
        panels.append(scatter(wr.SummaryMetric("codebook/used"), "val/ssim", "SSIM by codes used"))
    panels += [scatter(wr.SummaryMetric(goal.name), goals[0].name, f"Front: {goal.name}") for goal in goals[1:]]
    for name, parameter in searched.items():
        if parameter is not None and parameter.min is not None:
            panels.append(scatter(wr.Config(name), subject.goal.name, name, log_x=name in logarithmic or None))
        elif parameter is not None or any(isinstance(row.get(name), str) for row in subject.sweep.rows.values()):
            panels.append(bars([subject.goal.name], f"Best by {name}", groupby=wr.Config(name), best=subject.goal))
    return panels


def picture_panels(measured: list[str]) -> list[Any]:
    """Figures of all runs side by side, with a slider of epochs."""
    import wandb_workspaces.reports.v2 as wr

    there = {"": True, "a codebook": "codebook/used" in measured, "a map": "map/morans_i" in measured}
    return [
        wr.MediaBrowser(title=name, media_keys=[f"media/{name}"], gallery_axis="run")
        for name, needed in PICTURES.items()
        if there[needed]
    ]


def code_panels(measured: list[str]) -> list[Any]:
    """How codes are used, by epoch."""
    return lines(name for name in CODES if name in measured)


def map_panels(measured: list[str]) -> list[Any]:
    """Order on the map by epoch; and at the end, with places in the brain, beside what chance gives."""
    return [
        *lines(name for name in MAP_METRICS if name in measured),
        *(bars([name, f"{name}_null"], f"{name} and by chance") for name in measured if f"{name}_null" in measured),
    ]


def loss_panels(measured: list[str]) -> list[Any]:
    """Each term of the loss in training and validation, and what an epoch costs."""
    terms = [term for term in LOSSES if f"train/{term}" in measured]
    return [*(line([f"train/{term}", f"val/{term}"], term) for term in terms), *lines(["time/epoch_s"])]


def failure_panels(subject: Subject) -> list[Any]:
    """How runs ended, and when."""
    import wandb_workspaces.reports.v2 as wr

    words = (
        "`trial/state` says how a run ended, and its tags: pruned, diverged, collapsed. Why, and what to do about it, "
        f"is what `somvq status {subject.name}` says."
    )
    return [
        wr.MarkdownPanel(markdown=words),
        bars(["epoch"], "Runs by state on W&B", groupby=wr.Metric("State"), groupby_aggfunc="samples"),
        scatter(wr.SummaryMetric("epoch"), subject.goal.name, "Last epoch of each run"),
    ]


def lines(metrics: Iterable[str]) -> list[Any]:
    """A panel for each metric, with a line for each run."""
    return [line([metric], metric) for metric in metrics]


def line(metrics: list[str], title: str) -> "wr.LinePlot":
    """Metrics by epoch."""
    import wandb_workspaces.reports.v2 as wr

    return wr.LinePlot(x="epoch", y=list(metrics), title=title, max_runs_to_show=MOST_RUNS)


def bars(metrics: list[str], title: str, *, best: Metric | None = None, **grouped: Any) -> "wr.BarPlot":
    """Last values of runs; or of groups of runs the `best`."""
    import wandb_workspaces.reports.v2 as wr

    if best is not None:
        grouped["groupby_aggfunc"] = "max" if best.goal == "maximize" else "min"
    return wr.BarPlot(
        metrics=list(metrics), title=title, max_runs_to_show=MOST_RUNS, max_bars_to_show=MOST_RUNS, **grouped
    )


def scatter(x: "wr.SummaryMetric | wr.Config", y: str, title: str, *, log_x: bool | None = None) -> "wr.ScatterPlot":
    """A point for each run."""
    import wandb_workspaces.reports.v2 as wr

    return wr.ScatterPlot(x=x, y=wr.SummaryMetric(y), title=title, log_x=log_x)
