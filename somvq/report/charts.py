"""Optuna's own figures of a study, and the learning curves of runs, as data that plotly.js draws in the page."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from somvq.definitions import ROW, Metric
from somvq.errors import RunError
from somvq.report.entries import Entry, Member, by_turns, finite
from somvq.runs import Row
from somvq.study.tables import COLUMNS

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MOST_CURVES = 50  # of the best runs
MOST_POINTS = 200  # of a curve
CURVES = ("val/loss", "train/loss", "val/mse", "codebook/used_share", "codebook/quantisation_error", "map/morans_i")


@dataclass(frozen=True)
class Chart:
    """One figure: what it shows, and what plotly.js needs to draw it."""

    title: str
    caption: str
    figure: dict[str, Any]
    panels: int = 1  # side by side


def draw_charts(member: Member) -> list[Chart]:
    """Optuna's figures of the finished trials; none of fewer than two."""
    goals = member.opened.record.sweep.goals
    study = copy_study(member, goals[:1])
    done = study.get_trials(states=(TrialState.COMPLETE,))
    if len(done) < 2:
        return []
    metric = goals[0].name
    searched = sorted({name for trial in done for name in trial.params if len(values_of(name, done)) > 1})
    history = optuna.visualization.plot_optimization_history(study, target_name=metric)
    charts = [Chart("History", f"{metric} of each trial, and the best so far.", pack(history))]
    if len(searched) > 1 and len({trial.values[0] for trial in done}) > 1:
        importance = optuna.visualization.plot_param_importances(study, params=searched, target_name=metric)
        charts.append(Chart("Importance", f"How much each setting decides of {metric}.", pack(importance)))
    if 1 < len(goals) <= 3:
        whole, names = copy_study(member, goals), [goal.name for goal in goals]
        front = optuna.visualization.plot_pareto_front(whole, target_names=names)
        charts.append(Chart("Pareto front", "Trials that no other beats in all goals.", pack(front)))
    if searched:
        lines = optuna.visualization.plot_parallel_coordinate(study, params=searched, target_name=metric)
        charts.append(Chart("Parallel coordinates", f"One line a trial, coloured by {metric}.", pack(lines)))
        slices = optuna.visualization.plot_slice(study, params=searched, target_name=metric)
        slices.for_each_xaxis(lambda axis: mark_few(axis, done))
        charts.append(Chart("Slices", f"{metric} against each setting.", pack(slices), len(searched)))
    return charts


def values_of(name: str, trials: Sequence[FrozenTrial]) -> set[str]:
    """The different values that setting `name` had."""
    return {repr(trial.params.get(name)) for trial in trials}


def mark_few(axis: Any, trials: Sequence[FrozenTrial]) -> None:
    """Three ticks on a logarithmic axis, whose own run into one another where it is narrow."""
    if axis.type == "log":
        values = [trial.params[axis.title.text] for trial in trials if axis.title.text in trial.params]
        low, high = min(values), max(values)
        ticks = [low, (low * high) ** 0.5, high]
        axis.update(tickvals=ticks, ticktext=[f"{tick:.2g}" for tick in ticks])


def copy_study(member: Member, goals: Sequence[Metric]) -> Study:
    """The study in memory, with the first or all of its goals, for Optuna to draw.

    What workers noted of trials is left out: some of Optuna's figures show it. Those that did not finish keep their
    places, so that the others keep their numbers.
    """
    study = optuna.create_study(directions=[goal.goal for goal in goals])
    sweep = member.opened.record.sweep
    rows = [as_text(row) for row in sweep.parameters[ROW].values or ()] if ROW in sweep.parameters else None
    for trial in member.opened.study.get_trials(deepcopy=False):
        if trial.state != TrialState.COMPLETE:
            study.add_trial(create_trial(state=TrialState.FAIL))
            continue
        kinds = {**trial.distributions, **({ROW: CategoricalDistribution(rows)} if rows else {})}
        named = sweep.named(trial.params)  # a grid's rows are numbers to Optuna
        named |= {ROW: as_text(named[ROW])} if ROW in named else {}
        values, constraints = trial.values[: len(goals)], trial.constraints or None
        study.add_trial(create_trial(values=values, params=named, distributions=kinds, constraints=constraints))
    return study


def as_text(name: Any) -> str:
    """A row's name, which may be anything, for plotly.js, to which tags are markup."""
    return str(name).replace("&", "&amp;").replace("<", "&lt;")


def pack(figure: "Figure") -> dict[str, Any]:
    """A figure without its title and its colours of paper and ink: the page has both, light and dark."""
    packed: dict[str, Any] = json.loads(figure.update_layout(title=None, template=None).to_json())
    layout = {name: told for name, told in packed["layout"].items() if name not in ("template", "plot_bgcolor")}
    for words in layout.get("annotations", []):
        words.get("font", {}).pop("color", None)
    return {"data": packed["data"], "layout": layout}


def draw_curves(entries: Sequence[Entry], metrics: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Learning curves of the best runs: metric, run, its epochs and values."""
    wanted = list(dict.fromkeys([*metrics, *COLUMNS, *CURVES]))
    curves: dict[str, dict[str, Any]] = {name: {} for name in wanted}
    trained = [entry for entry in entries if entry.trial.same_as is None and entry.trial.epoch]
    chosen = by_turns(trained)[:MOST_CURVES]
    for entry in sorted(chosen, key=trained.index):
        try:
            rows = thin(entry.run.rows())
        except RunError:  # its ledger is damaged, as the notes say
            continue
        for name in wanted:
            points = [(row["epoch"], significant(row[name])) for row in rows if name in row]
            if len(points) > 1:
                epochs, values = zip(*points, strict=True)
                curves[name][entry.label] = {"x": epochs, "y": values, "best": entry.best, "study": entry.study}
    return {name: runs for name, runs in curves.items() if runs}


def thin(rows: list[Row]) -> list[Row]:
    """At most MOST_POINTS of the rows, evenly, the last one among them."""
    if len(rows) <= MOST_POINTS:
        return rows
    return [rows[place * (len(rows) - 1) // (MOST_POINTS - 1)] for place in range(MOST_POINTS)]


def significant(value: float) -> float | None:
    """Five digits of a number; none if there is none."""
    known = finite(value)
    return None if known is None else float(f"{known:.5g}")
