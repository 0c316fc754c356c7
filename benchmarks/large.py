"""Studies as large as they get, made at once: 1,000 trials of sweeps/psom.yaml with their runs' folders."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from somvq.config import CohortSettings
from somvq.definitions import find_definition, read_sweep
from somvq.runs import METRICS, SURVEY, SURVEY_OF_CODES, SURVEY_OF_MAPS, Attempt, Progress, Run, why_not_measured
from somvq.settings import Settings
from somvq.study.claim import REASON
from somvq.study.record import OpenStudy, StudyRecord, create_or_resume
from somvq.study.space import distributions

NAME = "large"
EPOCHS = 40
ONCE = {*SURVEY, *SURVEY_OF_CODES, *SURVEY_OF_MAPS}  # measured at the last epoch
STATES = [TrialState.COMPLETE] * 95 + [TrialState.PRUNED] * 4 + [TrialState.FAIL]


@dataclass
class Place:
    """Where a study is made: `storage` none for the SQLite file in its folder."""

    folder: Path
    storage: str | None = None

    @property
    def settings(self) -> Settings:
        return Settings(runs=self.folder / "runs", storage=self.storage, wandb="disabled")


def begin(place: Place, target: int, sweep: str = "psom", name: str = NAME) -> OpenStudy:
    """A study without trials; its cohort is a name."""
    record = StudyRecord(
        name=name,
        uid="abcdef",
        seed=0,
        sweep=read_sweep(find_definition("sweeps", sweep)),
        folder=place.settings.runs.resolve() / name,
        scans=place.folder,
        cohort_settings=CohortSettings(),
        cohort=place.folder / "prepared",
        cohort_fingerprint="0" * 12,
        cohort_summary="24 scans",
        wandb_project="somvq",
    )
    opened, _ = create_or_resume(place.settings, record)
    opened.aim_for(target)
    return opened


def add_trials(opened: OpenStudy, trials: int, *, reports: int = EPOCHS) -> None:
    """Finished trials as somvq leaves them, at random places of the space."""
    chosen = random.Random(0)
    opened.study.add_trials([finished(opened, chosen, reports) for _ in range(trials)])


def finished(opened: OpenStudy, chosen: random.Random, reports: int) -> FrozenTrial:
    space = distributions(opened.record.sweep)
    params = {name: pick(kind, chosen) for name, kind in space.items()}
    state = chosen.choice(STATES)
    curve = {epoch: 0.5 + chosen.random() / 2 for epoch in range(1, reports + 1)}
    return create_trial(
        state=state,
        value=curve[reports] if state == TrialState.COMPLETE else None,
        params=params,
        distributions=space,
        intermediate_values=curve,
        user_attrs={} if state == TrialState.COMPLETE else {REASON: "val/ssim 0.5 lagged behind at epoch 9"},
    )


def pick(kind: Any, chosen: random.Random) -> Any:
    if hasattr(kind, "choices"):
        return chosen.choice(kind.choices)
    return chosen.uniform(kind.low, kind.high)


def write_runs(opened: OpenStudy) -> None:
    """The folder of each trial: config, ledger with all metrics, state, attempts."""
    chosen = random.Random(0)
    for trial in opened.study.get_trials(deepcopy=False):
        write_run(opened, trial, chosen)


def write_run(opened: OpenStudy, trial: FrozenTrial, chosen: random.Random) -> None:
    run = opened.record.run(trial.number)
    config = opened.record.run_config(trial.number, trial.params)
    record = opened.record.run_record(config, label=f"t{trial.number:04d}", stages={"ae": "../stages/ae-000000"})
    run.folder.mkdir(parents=True)
    (run.folder / "config.json").write_text(json.dumps(record.model_dump(mode="json"), indent=2))
    measured = [name for name in METRICS if not why_not_measured(name, config)]
    rows = [
        {"epoch": epoch, **{name: chosen.random() for name in measured if epoch == EPOCHS or name not in ONCE}}
        for epoch in range(1, EPOCHS + 1)
    ]
    run.ledger.write_text("".join(json.dumps(row) + "\n" for row in rows))
    state = Progress(state="complete", attempts=1)
    (run.folder / "state.json").write_text(state.model_dump_json(indent=2))
    run.attempts_ledger.write_text(attempts(run, trial.number))


def attempts(run: Run, number: int) -> str:
    """One attempt, or two for every tenth trial; each has a line for its begin and its end."""
    lines = []
    for attempt in range(1, 3 if number % 10 == 0 else 2):
        begun = Attempt(number=attempt, began=1.7e9 + 100 * number, host="node-1", gpus=1.0)
        ended = {"ended": begun.began + 90, "outcome": "complete", "epochs": EPOCHS}
        lines += [begun, begun.model_copy(update=ended)]
    return "".join(f"{line.model_dump_json()}\n" for line in lines)
