"""Optuna's tables for who only looks: nothing is made, checked or locked, and trials come without their curves.

Of `somvq status` on 1,000 trials, what Optuna does beyond that took two thirds of a second.
"""

import json
from collections.abc import Container, Iterator
from functools import cache
from typing import Any

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, Engine, select
from sqlalchemy.orm import scoped_session, sessionmaker

decode = cache(json_to_distribution)  # a study has a handful of them, each written once a trial


class Glance(RDBStorage):
    """Optuna's storage behind `engine`, to be read."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.scoped_session = scoped_session(sessionmaker(bind=engine))

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """All trials of a study, by number, in five statements; Optuna's own makes objects of each row."""
        with self.engine.connect() as connection:
            trials = {row.trial_id: blank(row) for row in connection.execute(trials_of(study_id))}
            for trial, row in each(connection, models.TrialParamModel, study_id, trials):
                kind: BaseDistribution = decode(row.distribution_json)
                trial.distributions[row.param_name] = kind
                trial.params[row.param_name] = kind.to_external_repr(row.param_value)
            for trial, row in each(connection, models.TrialValueModel, study_id, trials):
                values = trial._values or []
                trial._values = [*values, models.TrialValueModel.stored_repr_to_value(row.value, row.value_type)]
            for trial, row in each(connection, models.TrialUserAttributeModel, study_id, trials):
                trial.user_attrs[row.key] = json.loads(row.value_json)
            for trial, row in each(connection, models.TrialSystemAttributeModel, study_id, trials):
                trial.system_attrs[row.key] = json.loads(row.value_json)
        return [trial for trial in trials.values() if states is None or trial.state in states]


def trials_of(study_id: int) -> Any:
    """The rows of a study's trials."""
    columns = models.TrialModel.__table__.c
    asked = select(columns.trial_id, columns.number, columns.state, columns.datetime_start, columns.datetime_complete)
    return asked.where(columns.study_id == study_id).order_by(columns.number)


def blank(row: Any) -> FrozenTrial:
    """A trial without what other tables say of it."""
    empty: dict[str, Any] = {name: {} for name in ("params", "distributions", "user_attrs", "system_attrs")}
    times = {"datetime_start": row.datetime_start, "datetime_complete": row.datetime_complete}
    return FrozenTrial(
        number=row.number,
        state=row.state,
        value=None,
        intermediate_values={},
        trial_id=row.trial_id,
        **empty,
        **times,
    )


def each(
    connection: Connection, model: Any, study_id: int, trials: dict[int, FrozenTrial]
) -> Iterator[tuple[FrozenTrial, Any]]:
    """The rows of `model` that belong to `trials`, in the order in which they were written."""
    table, of = model.__table__, models.TrialModel.__table__
    asked = select(table).join(of, of.c.trial_id == table.c.trial_id).where(of.c.study_id == study_id)
    for row in connection.execute(asked.order_by(*table.primary_key)):
        if row.trial_id in trials:  # else it began between two statements
            yield trials[row.trial_id], row
