"""A study that begins with the finished trials of another: what no study may change on its way, a copy may."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import ValidationError

from somvq.config import RunConfig
from somvq.definitions import ROW, Sweep, plain
from somvq.errors import StudyError
from somvq.files import write_json
from somvq.runs import Row, Run
from somvq.study import outcome
from somvq.study.claim import SAME_AS
from somvq.study.record import OpenStudy, StudyRecord, refuse_another_cohort
from somvq.study.space import describe_parameter, describe_value, distributions

COPIED_FROM = "copied_from"  # of a trial: psom/0007
FORK = "somvq_fork"  # of a study: which it is a fork of, and whether all copies are there
OF_ANOTHER = ("wandb", "tracking.json", "lease.json", ".*")  # in a run's folder: of its worker and of its W&B page


class Unfit(Exception):
    """Why a trial has no place in another space."""


@dataclass
class Copies:
    """What became of a study's finished trials."""

    of: str
    copied: int = 0
    left_out: dict[int, str] = field(default_factory=dict)

    def describe(self) -> str:
        """One line, and one for each trial that was left out."""
        trials = f"{self.copied} finished trial{'' if self.copied == 1 else 's'} of {self.of}"
        lines = [f"{trials} copied" + (f", {len(self.left_out)} left out" if self.left_out else "")]
        return "\n".join(lines + [f"left out trial {number}: {why}" for number, why in self.left_out.items()])


def fork_study(old: OpenStudy, new: OpenStudy) -> Copies:
    """Copies the finished trials of `old` that fit into the space of `new`, a study that has just begun.

    Values and constraints are made again from the ledgers, for what `new` aims at. Killed in the middle and repeated,
    it goes on; once done, it copies nothing more. Give `new` its target afterwards, so that copies are its first.

    Raises:
        StudyError: `new` is on another cohort, or has trials of its own.
    """
    refuse_another_cohort(old.record, new.record.cohort_fingerprint, new.record.cohort_summary)
    with new.store.exclusive(new.record.name):
        if begin_copies(old, new):
            copy_stages(old.record, new.record)
            copies = copy_trials(old, new)
            new.study.set_user_attr(FORK, {"of": old.record.name, "done": True})
            return copies
    return Copies(old.record.name, len(copied(new)))


def begin_copies(old: OpenStudy, new: OpenStudy) -> bool:
    """Whether there is something to copy: not if that was done before.

    Raises:
        StudyError: `new` is no fork of `old`.
    """
    refuse_no_fork(old, new.record.name, new)
    said = new.study.user_attrs.get(FORK)
    if said is None:
        new.study.set_user_attr(FORK, {"of": old.record.name, "done": False})
    return said is None or not said["done"]


def refuse_no_fork(old: OpenStudy, name: str, there: OpenStudy | None) -> None:
    """Raises a StudyError if the study `name` that is `there` already cannot be the fork of `old` that is asked for."""
    if name == old.record.name:
        raise StudyError(f"--fork {name}: a study is no fork of itself; give another name")
    if there is None:
        return
    said = there.study.user_attrs.get(FORK)
    begun = said["of"] == old.record.name if said else not there.study.get_trials(deepcopy=False)
    if not begun:
        raise StudyError(f"--fork {name}: there is such a study, and no fork of {old.record.name}; give another name")


def copied(new: OpenStudy) -> dict[str, int]:
    """The trials that were copied before: where from, and their number here."""
    trials = new.study.get_trials(deepcopy=False)
    return {trial.user_attrs[COPIED_FROM]: trial.number for trial in trials if COPIED_FROM in trial.user_attrs}


def copy_stages(old: StudyRecord, new: StudyRecord) -> None:
    """Copies the trained auto-encoders: trials name theirs by a path, and new trials can start from it."""
    for folder in sorted(old.folder.glob("stages/*ae-*")):
        stage, target = Run(folder), new.folder / "stages" / folder.name
        if stage.progress().state == "complete" and not target.exists():
            kind, _, key = folder.name.partition("-")
            target.parent.mkdir(exist_ok=True)
            copy_folder(stage, new, f"{kind}-{key[:6]}").rename(target)


def copy_trials(old: OpenStudy, new: OpenStudy) -> Copies:
    """Copies, in their order, the trials that are finished, fit and not there yet."""
    copies, there = Copies(old.record.name), copied(new)
    for trial in old.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
        source = f"{old.record.name}/{trial.number:04d}"
        try:
            copy_trial(old.record, new, trial, source, there.get(source))
            copies.copied += 1
        except Unfit as why:
            copies.left_out[trial.number] = str(why)
    return copies


def copy_trial(old: StudyRecord, new: OpenStudy, trial: FrozenTrial, source: str, number: int | None) -> None:
    """One trial and its run's folder; `number` is the copy's, if an earlier fork was killed after making it.

    A folder comes after its trial, so that none is left in the place of a trial that a worker may begin.

    Raises:
        Unfit: it has no place in the new space.
    """
    run = old.run(trial.number)
    if trial.user_attrs.get(SAME_AS) is not None:
        raise Unfit(f"it has the settings of trial {trial.user_attrs[SAME_AS]}, and was not trained")
    if not (run.folder / "config.json").exists():
        raise Unfit(f"{run.folder} has no run")
    sweep = new.record.sweep
    copy = project(trial, run, translate(old.sweep, trial.params, run.record.config, sweep), sweep)
    own = len(new.study.get_trials(deepcopy=False)) if number is None else number
    target = new.record.run(own).folder
    made = None if (target / "config.json").exists() else copy_folder(run, new.record, f"t{own:04d}")
    if number is None:
        copy.set_user_attr(COPIED_FROM, source)
        new.study.add_trial(copy)
    if made:
        made.rename(target)


def copy_folder(run: Run, record: StudyRecord, label: str) -> Path:
    """A copy of the run's folder as one of the study's, under a temporary name."""
    partial = record.folder / ".fork.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(run.folder, partial, ignore=shutil.ignore_patterns(*OF_ANOTHER))
    told = record.run_record(run.record.config, label=label, stages=run.record.stages)
    own = {"cohort", "study", "name", "wandb_id", "wandb_project", "wandb_entity"}
    there = run.record.model_copy(update={name: getattr(told, name) for name in own})
    write_json(partial / "config.json", there.model_dump(mode="json"))
    return partial


def project(trial: FrozenTrial, run: Run, params: dict[str, Any], sweep: Sweep) -> FrozenTrial:
    """What Optuna is to know of the run as a trial of `sweep`, in the state that `trial` has.

    Raises:
        Unfit: it is complete, and a goal was not measured.
    """
    rows = run.rows()
    last: Row = rows[-1] if rows else {}
    values = outcome.values(sweep, last)
    if trial.state == TrialState.COMPLETE and values is None:
        raise Unfit(f"{outcome.missing(sweep, last)} was not measured")
    goal = sweep.goals[0].name
    steps = {int(row["epoch"]): row[goal] for row in rows if outcome.is_measured(row, goal)}
    return create_trial(
        state=trial.state,
        params=params,
        distributions=distributions(sweep),
        values=values if trial.state == TrialState.COMPLETE else None,
        intermediate_values=steps if len(sweep.goals) == 1 else {},  # Optuna has none of several goals
        constraints=outcome.violations(sweep, last),
        user_attrs={key: said for key, said in trial.user_attrs.items() if key == "reason"},
    )


def translate(had: Sweep, params: dict[str, Any], config: RunConfig, has: Sweep) -> dict[str, Any]:
    """The parameters with which `has` makes the run `config` that `had` made of `params`.

    Raises:
        Unfit: there are none; says what differs.
    """
    asked = {**config.model_dump(), **had.fixed(), **had.named(params)}
    rows = has.parameters[ROW].values if ROW in has.parameters else None
    if rows is None:
        return place(asked, config, has)
    why = Unfit(f"row {asked[ROW]} is not there" if ROW in asked else "no row says what it was told")
    for index, row in enumerate(rows):
        if asked.get(ROW, row) == row:
            try:
                return place({**asked, ROW: index if has.method == "grid" else row}, config, has)
            except Unfit as found:
                why = found if ROW in asked else why
    raise why


def place(asked: dict[str, Any], config: RunConfig, sweep: Sweep) -> dict[str, Any]:
    """Of what a run was told, the parameters of `sweep`, if they make the run again.

    Raises:
        Unfit: they do not.
    """
    params = {name: fit(name, asked.get(name), kind, sweep) for name, kind in distributions(sweep).items()}
    try:
        made = RunConfig(**{**sweep.settings(params), "seed": config.seed})
    except ValidationError as error:
        raise Unfit(plain(error.errors()[0])) from None
    for name, value in made:
        if value != getattr(config, name):
            raise Unfit(f"{name} was {describe_value(getattr(config, name))}, is {describe_value(value)}")
    return params


def fit(name: str, value: Any, kind: BaseDistribution, sweep: Sweep) -> Any:
    """`value`, as Optuna has it.

    Raises:
        Unfit: it is none of those that are searched.
    """
    try:
        internal = kind.to_internal_repr(value)
        if kind._contains(internal):
            return kind.to_external_repr(internal)
    except (ValueError, TypeError):
        pass
    raise Unfit(f"{name} {describe_value(value)} is not in {describe_parameter(sweep.parameters[name])}")
