"""What is searched: ranges as Optuna has them, suggestions, pruning, what may change, and what a fork carries over."""

import math
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from somvq.config import CohortSettings, RunConfig
from somvq.definitions import Metric, Parameter, Sweep
from somvq.errors import DefinitionError, StudyError
from somvq.runs import Run
from somvq.settings import Settings
from somvq.storages import Store
from somvq.study import outcome
from somvq.study import record as record_module
from somvq.study.fork import COPIED_FROM, fork_study
from somvq.study.pruners import is_rung, lags, rungs
from somvq.study.record import OpenStudy, StudyRecord, create_or_resume, load_study
from somvq.study.samplers import build_sampler
from somvq.study.space import Changes, compare, describe_space, distributions, find_twin, override

SPACE: dict[str, dict[str, object]] = {
    "model": {"value": "psom"},
    "grid": {"value": "4x4"},
    "epochs": {"value": 9},
    "gamma": {"min": 0.1, "max": 1.0},
    "topology": {"values": ["toroidal", "rectangular"]},
}
SSIM, ERROR = {"name": "val/ssim", "goal": "maximize"}, {"name": "map/topographic_error", "goal": "minimize"}
ROWS = {"first": {"model": "som"}, "second": {"model": "psom", "gamma": 0.3}}


def make_sweep(parameters: dict[str, object] | None = None, **changes: object) -> Sweep:
    """SPACE with some parameters changed, or taken out by None."""
    space = {name: said for name, said in {**SPACE, **(parameters or {})}.items() if said is not None}
    aim = {} if "objectives" in changes else {"metric": SSIM}
    return Sweep.model_validate({"name": "test", "parameters": space, **aim, **changes})


def rows_sweep(rows: dict[str, object], method: str = "grid") -> Sweep:
    told = {"name": "test", "method": method, "metric": SSIM, "parameters": {"epochs": {"value": 9}}, "rows": rows}
    return Sweep.model_validate(told)


@pytest.fixture
def disk(tmp_path: Path) -> Settings:
    return Settings(runs=tmp_path / "runs", wandb="disabled")


class Memory(Store):
    """A storage that is gone with its process."""

    def __init__(self, url: str):
        super().__init__(url)
        self.storage = optuna.storages.InMemoryStorage()

    @contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        yield


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Studies in memory, for tests that would only wait for a disk."""
    memory = Memory("memory")
    monkeypatch.setattr(record_module, "open_store", lambda url: memory)
    return Settings(runs=tmp_path / "runs", wandb="disabled", storage="sqlite:////memory")


def begin(settings: Settings, sweep: Sweep, name: str = "old", cohort: str = "c0ffee") -> OpenStudy:
    """A study on a cohort that nobody looks at."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    record = StudyRecord(
        name=name,
        uid=f"uid-{name}",
        seed=0,
        sweep=sweep,
        folder=settings.runs.resolve() / name,
        scans=Path("/scans"),
        cohort_settings=CohortSettings(),
        cohort=Path("/cohort"),
        cohort_fingerprint=cohort,
        cohort_summary=f"cohort {cohort}",
        wandb_project="test",
    )
    return create_or_resume(settings, record)[0]


def add(opened: OpenStudy, params: dict[str, object], *rows: dict[str, float], state: str = "complete") -> Run:
    """A finished trial with its folder, as workers leave them; each row is an epoch's."""
    number = len(opened.study.get_trials())
    config = opened.record.run_config(number, params)
    stages = {"ae": "../stages/ae-0123456789ab"} if config.init == "ae" else {}
    record = opened.record.run_record(config, label=f"t{number:04d}", stages=stages)
    run = Run.create(opened.record.run(number).folder, record)
    for epoch, row in enumerate(rows, 1):
        run.append({"epoch": epoch, **row})
    run.set_state(state)  # type: ignore[arg-type]
    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    values = outcome.values(opened.record.sweep, run.rows()[-1]) if state == "complete" else None
    kinds = distributions(opened.record.sweep)
    opened.study.add_trial(create_trial(state=states[state], values=values, params=params, distributions=kinds))
    return run


# Forms of parameters


def test_parameters_become_optunas_distributions() -> None:
    sweep = make_sweep(
        {
            "gamma": {"min": 0.1, "max": 1.0, "distribution": "log_uniform_values"},
            "alpha": {"min": 1, "max": 9, "distribution": "uniform"},
            "epochs": {"min": 2, "max": 9},
            "ae_epochs": {"min": 3, "max": 50, "distribution": "q_uniform", "q": 10},
            "beta": {"min": 0.12, "max": 0.5, "distribution": "q_uniform", "q": 0.1},
            "batch_size": {"min": 3, "max": 70, "distribution": "q_log_uniform_values", "q": 4},
            "init": {"values": ["ae", "random"], "distribution": "categorical"},
            "topology": {"value": "toroidal", "distribution": "constant"},
        }
    )
    assert distributions(sweep) == {
        "gamma": FloatDistribution(0.1, 1.0, log=True),
        "alpha": FloatDistribution(1, 9),
        "epochs": IntDistribution(2, 9),
        "ae_epochs": IntDistribution(10, 50, step=10),
        "beta": FloatDistribution(0.2, 0.5, step=0.1),
        "batch_size": FloatDistribution(3, 70, log=True),
        "init": CategoricalDistribution(("ae", "random")),
    }


def test_a_quantised_value_is_the_multiple_of_q_that_wandb_would_take() -> None:
    log = {"min": 1.0e-3, "max": 0.9, "distribution": "q_log_uniform_values", "q": 0.0005}
    sweep = make_sweep({"gamma": log, "epochs": {"min": 1, "max": 90, "distribution": "q_log_uniform_values"}})
    for seed in range(300):
        value = math.exp(random.Random(seed).uniform(math.log(1e-3), math.log(0.9)))
        told = sweep.settings({"gamma": value, "epochs": 100 * value})
        assert told["gamma"] == pytest.approx(round(value / 0.0005) * 0.0005, rel=1e-12)
        assert len(str(told["gamma"])) <= len("0.0005")  # no 0.30000000000000004
        assert (told["epochs"], type(told["epochs"])) == (round(100 * value), int)


def test_all_multiples_between_the_bounds_are_suggested_and_no_others() -> None:
    sweep = make_sweep({"gamma": {"min": 0.12, "max": 0.65, "distribution": "q_uniform", "q": 0.1}}, method="random")
    study = optuna.create_study(sampler=build_sampler(sweep, 0))
    seen = {sweep.settings(study.ask(distributions(sweep)).params)["gamma"] for _ in range(60)}
    assert seen == {0.2, 0.3, 0.4, 0.5, 0.6}


def test_a_monitor_is_an_objective_by_its_name_or_a_metric_of_its_own() -> None:
    assert make_sweep(objectives=[SSIM, ERROR]).monitor_goal == Metric.model_validate(SSIM)
    assert make_sweep(objectives=[SSIM, ERROR], monitor="map/topographic_error").monitor_goal.goal == "minimize"
    loss = {"name": "val/loss", "goal": "minimize"}
    assert make_sweep(monitor=loss).monitor_goal == Metric.model_validate(loss)
    assert make_sweep(monitor="val/ssim").goals == (Metric.model_validate(SSIM),)


def test_a_sweep_survives_being_written_down() -> None:
    sweep = make_sweep(objectives=[SSIM, ERROR], monitor="val/ssim", constraints={"codebook/used_share": {"min": 0.1}})
    assert Sweep.model_validate_json(sweep.model_dump_json()) == sweep


# Outcomes

AIMED = make_sweep(
    objectives=[SSIM, ERROR],
    constraints={"codebook/used_share": {"min": 0.1}, "map/topographic_error": {"min": 0.05, "max": 0.2}},
)


def test_values_come_in_the_order_of_the_goals_or_not_at_all() -> None:
    assert outcome.values(AIMED, {"map/topographic_error": 0.3, "val/ssim": 0.9}) == [0.9, 0.3]
    assert outcome.values(AIMED, {"val/ssim": 0.9}) is None
    assert outcome.values(AIMED, {"val/ssim": 0.9, "map/topographic_error": math.nan}) is None
    assert outcome.missing(AIMED, {"val/ssim": 0.9}) == "map/topographic_error"
    assert outcome.missing(AIMED, {"map/topographic_error": 0.3, "val/ssim": 0.9}) == ""


def test_a_constraint_is_violated_by_how_much_it_is_missed() -> None:
    found = outcome.violations(AIMED, {"codebook/used_share": 0.04, "map/topographic_error": 0.15})
    assert found == pytest.approx(
        {
            "codebook/used_share >= 0.1": 0.06,
            "map/topographic_error >= 0.05": -0.1,
            "map/topographic_error <= 0.2": -0.05,
        }
    )
    assert outcome.violations(AIMED, {"map/topographic_error": 0.1})["codebook/used_share >= 0.1"] == 1.0
    assert outcome.feasible(AIMED, {"codebook/used_share": 0.1, "map/topographic_error": 0.2})
    assert not outcome.feasible(AIMED, {"codebook/used_share": 0.04, "map/topographic_error": 0.15})
    assert outcome.feasible(make_sweep(), {})


def test_optuna_takes_a_trial_for_feasible_where_we_do() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    rows = [{"val/ssim": 0.9, "map/topographic_error": 0.15, "codebook/used_share": share} for share in (0.04, 0.5)]
    for row in rows:
        trial = study.ask()
        for key, excess in outcome.violations(AIMED, row).items():
            trial.set_constraint(key, excess)
        study.tell(trial, outcome.values(AIMED, row))
    assert [trial.number for trial in study.best_trials] == [1]
    assert [outcome.feasible(AIMED, row) for row in rows] == [False, True]


# Pruning


def test_rungs_are_powers_of_eta_before_the_last_epoch() -> None:
    sweep = make_sweep(early_terminate={"type": "hyperband", "min_iter": 2, "eta": 3})
    assert rungs(sweep, 54) == [2, 6, 18]
    assert [epoch for epoch in range(60) if is_rung(sweep, epoch)] == [2, 6, 18, 54]
    assert rungs(make_sweep(), 54) == []
    assert not lags(make_sweep(), 2, 0.0, [1.0, 2.0])


@pytest.mark.parametrize("goal", ["maximize", "minimize"])
@pytest.mark.parametrize(("eta", "seed"), [(2, 0), (3, 1), (4, 2)])
def test_what_lags_is_what_optunas_pruner_prunes(goal: str, eta: int, seed: int) -> None:
    """Twelve trials at a time, each a step further in a random order; values often tie, and some are no number."""
    draw = random.Random(seed)
    sweep = make_sweep(
        metric={"name": "val/ssim", "goal": goal}, early_terminate={"type": "hyperband", "min_iter": 2, "eta": eta}
    )
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=eta)
    study = optuna.create_study(direction=goal, pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=0))
    ledgers: dict[int, dict[int, float]] = {}
    decisions = []
    going = [study.ask() for _ in range(12)]
    while going:
        trial = draw.choice(going)
        ledger = ledgers.setdefault(trial.number, {})
        epoch = len(ledger) + 1
        value = math.nan if draw.random() < 0.01 else round(draw.gauss(trial.number % 5, 2))
        trial.report(value, epoch)
        rivals = [other[epoch] for number, other in ledgers.items() if number != trial.number and epoch in other]
        ledger[epoch] = value
        stops = trial.should_prune()
        decisions.append(stops)
        assert lags(sweep, epoch, value, rivals) == stops, (trial.number, epoch)
        if stops or epoch == 40:
            study.tell(trial, state=TrialState.PRUNED)
            going.remove(trial)
            if len(ledgers) < 60:
                going.append(study.ask())
    assert sum(decisions) > 20
    assert any(40 in ledger for ledger in ledgers.values())


# Suggestions


@pytest.mark.parametrize("method", ["bayes", "random"])
def test_suggestions_are_decided_by_the_seed(method: str) -> None:
    sweep = make_sweep(method=method)
    asked = [optuna.create_study(sampler=build_sampler(sweep, 3)).ask(distributions(sweep)).params for _ in range(2)]
    assert asked[0] == asked[1]
    assert asked[0] != optuna.create_study(sampler=build_sampler(sweep, 4)).ask(distributions(sweep)).params


def ask(opened: OpenStudy, sweep: Sweep, seed: int = 0) -> optuna.Trial:
    """A trial with what `sweep` suggests, as workers ask for it."""
    opened.study.sampler = build_sampler(sweep, seed)
    trial = opened.study.ask()
    for name, kind in distributions(sweep).items():
        trial._suggest(name, kind)
    return trial


def test_a_widened_range_is_sampled_together_with_the_others_and_nothing_is_warned_of(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    narrow, wide = make_sweep(), make_sweep({"gamma": {"min": 0.1, "max": 9.0}})
    opened = begin(settings, narrow)
    for seed in range(12):
        trial = ask(opened, narrow, seed)
        opened.study.tell(trial, trial.params["gamma"])
    opened.study.tell(ask(opened, wide), 0.5)
    optuna.logging.enable_propagation()
    trials = [ask(opened, wide, seed) for seed in range(8)]
    optuna.logging.disable_propagation()
    assert caplog.records == []
    assert all(trial.relative_params == trial.params for trial in trials)
    assert max(trial.params["gamma"] for trial in trials) > 1.0
    opened.study.sampler = optuna.samplers.TPESampler(seed=0)
    assert opened.study.ask().relative_params.keys() == {"topology"}  # what Optuna's own would sample together


def test_several_goals_are_searched_without_a_joint_space_as_optuna_has_it(settings: Settings) -> None:
    sweep = make_sweep(objectives=[SSIM, ERROR])
    opened = begin(settings, sweep)
    for seed in range(12):
        opened.study.tell(ask(opened, sweep, seed), [0.5, 0.5])
    assert opened.study.directions == [optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE]
    assert ask(opened, sweep).relative_params == {}


def grid_sweep() -> Sweep:
    return make_sweep({"gamma": {"values": [0.3, 0.1, 0.2]}}, method="grid")


def test_a_grid_visits_every_combination_once_in_the_files_order(settings: Settings) -> None:
    opened = begin(settings, grid_sweep())
    seen = [tuple(ask(opened, grid_sweep()).params.values()) for _ in range(6)]
    assert seen == [(gamma, shape) for gamma in (0.3, 0.1, 0.2) for shape in ("toroidal", "rectangular")]


def test_a_grid_fills_gaps_whatever_the_trials_numbers_are(settings: Settings) -> None:
    opened = begin(settings, grid_sweep())
    opened.study.add_trial(
        create_trial(
            value=0.5, params={"gamma": 0.3, "topology": "rectangular"}, distributions=distributions(grid_sweep())
        )
    )
    halfway = opened.study.ask()
    halfway._suggest("gamma", distributions(grid_sweep())["gamma"])  # its worker is killed here
    opened.study.sampler = build_sampler(grid_sweep(), 0)
    resumed = optuna.Trial(opened.study, halfway._trial_id)
    gamma = halfway.params["gamma"]
    assert resumed._suggest("topology", distributions(grid_sweep())["topology"]) == "toroidal"
    taken = {(0.3, "rectangular"), (gamma, "toroidal")}
    rest = {tuple(ask(opened, grid_sweep()).params.values()) for _ in range(4)}
    assert len(rest | taken) == 6


def test_rows_can_be_added_to_a_grid_that_has_begun(disk: Settings) -> None:
    few, more = rows_sweep(ROWS), rows_sweep({**ROWS, "third": {"model": "vqvae"}})
    opened = begin(disk, few)
    for _ in range(2):
        ask(opened, few)
    assert compare(few, more) == Changes(accepted=["row third was absent, is model vqvae"])
    trial = ask(opened, more)
    assert more.named(trial.params) == {"row": "third"}
    assert more.settings(trial.params) == {"epochs": 9, "model": "vqvae"}


# Twins


def trial_of(sweep: Sweep, params: dict[str, object], state: TrialState = TrialState.RUNNING) -> FrozenTrial:
    kinds = {name: kind for name, kind in distributions(sweep).items() if name in params}
    return create_trial(state=state, params=params, distributions=kinds)


def test_a_twin_is_a_trial_whose_run_is_told_the_same() -> None:
    rounded = {"min": 0.1, "max": 1.0, "distribution": "q_log_uniform_values", "q": 0.1}
    sweep = make_sweep({"gamma": rounded})
    trials = [
        trial_of(sweep, {"gamma": 0.31}),  # its worker died while it asked
        trial_of(sweep, {"gamma": 0.31, "topology": "rectangular"}),
        trial_of(sweep, {"gamma": 0.31, "topology": "toroidal"}),
        trial_of(sweep, {"gamma": 0.29, "topology": "toroidal"}),
    ]
    assert find_twin(sweep, {"gamma": 0.27, "topology": "toroidal"}, trials) is trials[2]
    assert find_twin(sweep, {"gamma": 0.37, "topology": "toroidal"}, trials) is None


def test_two_rows_that_say_the_same_in_other_words_are_twins() -> None:
    sweep = rows_sweep({"said": {"model": "psom", "grid": "16x16", "gamma": 0.625}, "meant": {"model": "psom"}})
    twin = trial_of(sweep, {"row": 0})
    assert find_twin(sweep, {"row": 1}, [twin]) is twin


# --set


def test_set_fixes_a_parameter_and_refuses_what_cannot_be() -> None:
    assert override(make_sweep(), {"gamma": 0.5}).parameters["gamma"] == Parameter(value=0.5)
    with pytest.raises(DefinitionError, match=r"--set gama: is not a setting .* did you mean 'gamma'\?"):
        override(make_sweep(), {"gama": 0.5})
    with pytest.raises(DefinitionError, match=r"--set epochs: 0 is impossible: input should be greater than or equal"):
        override(make_sweep(), {"epochs": 0})


def test_set_takes_a_list_for_values_and_a_mapping_for_a_range() -> None:
    log = {"min": 0.1, "max": 2, "distribution": "log_uniform_values"}
    changed = override(make_sweep(), {"init": ["ae", "random"], "gamma": log})
    assert changed.parameters["init"] == Parameter(values=("ae", "random"))
    assert distributions(changed)["gamma"] == FloatDistribution(0.1, 2, log=True)
    rows = override(rows_sweep(ROWS), {"row": ["second"], "epochs": [3, 4]})
    assert rows.combinations() == 2
    assert rows.settings({"row": 0, "epochs": 4}) == {"model": "psom", "gamma": 0.3, "epochs": 4}


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("init", ["ae", "aee"], r"--set init: 'aee' is impossible: input should be 'random'"),
        ("init", ["ae", "ae"], r"--set init: values \['ae', 'ae'\] name one twice"),
        ("init", [], r"--set init.values: "),
        ("gamma", {"min": 2, "max": 1}, r"--set gamma: min 2 is not below max 1"),
        ("gamma", {"min": 2, "maxx": 3}, r"--set gamma.maxx: is not known here; did you mean 'max'\?"),
        ("gamma", {"distribution": "normal", "mu": 3}, r"--set gamma.distribution: normal is not searched here; take "),
        ("gamma", True, r"--set gamma: give one value, a list or a range, not True"),
        ("gamma", None, r"--set gamma: give one value, a list or a range, not None"),
        ("seed", [1, 2], r"--set seed=\[1, 2\]: each trial has a seed of its own"),
    ],
)
def test_set_says_in_one_line_what_it_does_not_take(name: str, value: object, told: str) -> None:
    with pytest.raises(DefinitionError, match=told) as refusal:
        override(make_sweep(), {name: value})
    assert "\n" not in str(refusal.value)


# What may change


def test_a_space_is_told_in_words() -> None:
    said = describe_space(make_sweep({"alpha": {"min": 1, "max": 9, "distribution": "q_uniform", "q": 2}}))
    assert said["topology"] == "one of toroidal, rectangular"
    assert said["metric"] == "maximize val/ssim"
    assert said["alpha"] == "1 to 9, whole, multiples of 2"
    assert describe_space(AIMED)["objectives"] == "maximize val/ssim, minimize map/topographic_error"
    assert describe_space(AIMED)["constraint on map/topographic_error"] == "at least 0.05, at most 0.2"


HALVING = {"type": "hyperband", "min_iter": 2}
LOG = {"min": 0.1, "max": 1.0, "distribution": "log_uniform_values"}
STEPS = {"min": 0.1, "max": 1.0, "distribution": "q_uniform", "q": 0.1}
CHANGES: dict[str, tuple[dict[str, object], dict[str, object], str]] = {  # parameters, other keys, words; + if accepted
    "nothing": ({}, {}, ""),
    "the same in other digits": ({"gamma": {"min": 0.10, "max": 1}}, {}, ""),
    "a range widened above": ({"gamma": {"min": 0.1, "max": 9.0}}, {}, "+gamma was 0.1 to 1, is 0.1 to 9"),
    "a range widened on both sides": ({"gamma": {"min": 0.01, "max": 2}}, {}, "+gamma was 0.1 to 1, is 0.01 to 2"),
    "a range narrowed": ({"gamma": {"min": 0.2, "max": 1.0}}, {}, "gamma was 0.1 to 1, is 0.2 to 1"),
    "a range moved": ({"gamma": {"min": 0.2, "max": 9.0}}, {}, "gamma was 0.1 to 1, is 0.2 to 9"),
    "a logarithm": ({"gamma": LOG}, {}, "gamma was 0.1 to 1, is 0.1 to 1, log"),
    "steps": ({"gamma": STEPS}, {}, "gamma was 0.1 to 1, is 0.1 to 1, multiples of 0.1"),
    "whole numbers": ({"gamma": {"min": 0, "max": 9}}, {}, "gamma was 0.1 to 1, is 0 to 9, whole"),
    "a range fixed": ({"gamma": {"value": 0.5}}, {}, "gamma was 0.1 to 1, is 0.5"),
    "a category less": ({"topology": {"value": "toroidal"}}, {}, "topology was one of toroidal, rectangular, is toro"),
    "categories": ({"gamma": {"values": [0.1, 1.0]}}, {}, "gamma was 0.1 to 1, is one of 0.1, 1"),
    "a value": ({"epochs": {"value": 10}}, {}, "epochs was 9, is 10"),
    "a parameter added": ({"alpha": {"value": 3.0}}, {}, "alpha was absent, is 3"),
    "a parameter removed": ({"topology": None}, {}, "topology was one of toroidal, rectangular, is absent"),
    "the metric": ({}, {"metric": ERROR}, "metric was maximize val/ssim, is minimize map/topographic_error"),
    "objectives": ({}, {"objectives": [SSIM, ERROR]}, "objectives was absent, is maximize val/ssim, minimize map/"),
    "a constraint": ({}, {"constraints": {"val/mse": {"max": 1}}}, "constraint on val/mse was absent, is at most 1"),
    "random": ({}, {"method": "random"}, "+method was bayes, is random"),
    "pruning": ({}, {"early_terminate": HALVING}, "+early_terminate was none, is hyperband from epoch 2, eta 3"),
    "a monitor": ({}, {"monitor": ERROR}, "+monitor was absent, is minimize map/topographic_error"),
    "a cap": ({}, {"run_cap": 80}, "+run_cap was absent, is 80"),
    "a description": ({}, {"description": "mine"}, "+description was absent, is 'mine'"),
    "brains on W&B": ({}, {"upload_brain_images": True}, "+upload_brain_images was absent, is true"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_leaves_trials_comparable_is_accepted_and_the_rest_refused(what: str) -> None:
    parameters, keys, words = CHANGES[what]
    changes = compare(make_sweep(), make_sweep(parameters, **keys))
    accepted, refused = "\n".join(changes.accepted), "\n".join(changes.refused)
    expected = (words.removeprefix("+"), "") if words.startswith("+") else ("", words)
    assert accepted == expected[0]
    assert words in refused if expected[1] else refused == ""


def test_rows_and_steps_that_change_are_refused_and_wider_steps_are_not() -> None:
    few = rows_sweep(ROWS)
    assert compare(few, rows_sweep({**ROWS, "first": {"model": "psom"}})).refused
    assert compare(few, rows_sweep({"new": {"model": "psom"}, **ROWS})).refused  # a row's number is its place
    assert compare(few, rows_sweep({"first": ROWS["first"]})).refused
    assert compare(few, rows_sweep(ROWS, method="random")).refused[0].startswith("method was grid, is random")
    wider = {**STEPS, "max": 2.0}
    assert compare(make_sweep({"gamma": STEPS}), make_sweep({"gamma": wider})).refused == []
    assert compare(make_sweep({"gamma": STEPS}), make_sweep({"gamma": {**wider, "q": 0.05}})).accepted == []


def test_a_study_refuses_another_space_and_says_what_differs(disk: Settings) -> None:
    begin(disk, make_sweep())
    changed = make_sweep({"gamma": {"min": 0.1, "max": 9.0}, "alpha": {"value": 3.0}})
    expected = r"searches another space: alpha was absent, is 3\. --fork NEW copies .*; --study NAME begins without"
    with pytest.raises(StudyError, match=expected):
        begin(disk, changed)


# Forks

WIDER = {"init": {"values": ["random", "ae"]}, "topology": {"values": ["toroidal", "rectangular"]}}


def test_a_fork_takes_the_finished_trials_that_fit_and_says_why_others_do_not(settings: Settings) -> None:
    old = begin(settings, make_sweep({"alpha": {"values": [9.0, 8.0]}, "epochs": {"min": 2, "max": 9}}))
    row = {"val/ssim": 0.5, "codebook/used_share": 0.05}
    fits = {"gamma": 0.3, "topology": "toroidal", "alpha": 9.0, "epochs": 9}
    add(old, fits, {"val/ssim": 0.2}, row)
    add(old, {**fits, "gamma": 0.9}, row)
    add(old, {**fits, "alpha": 8.0}, row)
    add(old, {**fits, "topology": "rectangular"}, {"val/ssim": 0.1}, state="pruned")
    add(old, fits, row, state="failed")
    add(old, {**fits, "epochs": 8}, row)
    has = make_sweep(
        {
            "gamma": {"min": 0.1, "max": 0.5, "distribution": "log_uniform_values"},  # narrower, another scale
            "grid": {"values": ["4x4", "8x8"]},  # was fixed
            "alpha": {"value": 9.0},  # was searched
            "init": {"values": ["ae", "random"]},  # was not named
            "epochs": {"min": 9, "max": 10},
        },
        constraints={"codebook/used_share": {"min": 0.1}},
    )
    new = begin(settings, has, "new")
    copies = fork_study(old, new)
    assert copies.describe().splitlines() == [
        "2 finished trials of old copied, 3 left out",
        "left out trial 1: gamma 0.9 is not in 0.1 to 0.5, log",
        "left out trial 2: alpha was 8, is 9",
        "left out trial 5: epochs 8 is not in 9 to 10, whole",
    ]
    first, second = new.study.get_trials()
    assert first.params == {"gamma": 0.3, "grid": "4x4", "topology": "toroidal", "init": "random", "epochs": 9}
    assert (first.state, first.value, first.intermediate_values) == (TrialState.COMPLETE, 0.5, {1: 0.2, 2: 0.5})
    assert first.constraints == pytest.approx({"codebook/used_share >= 0.1": 0.05})
    assert (second.state, second.user_attrs[COPIED_FROM]) == (TrialState.PRUNED, "old/0003")
    assert second.constraints == {"codebook/used_share >= 0.1": 1.0}


def test_a_copied_run_is_its_new_studys_and_no_page_or_lease_of_the_old_one_comes_along(settings: Settings) -> None:
    old = begin(settings, make_sweep({"init": {"value": "ae"}}))
    stage = old.record.folder / "stages" / "ae-0123456789ab"
    config = RunConfig(model="ae", seed=1)
    Run.create(stage, old.record.run_record(config, label="ae-012345", stages={})).set_state("complete")
    run = add(old, {"gamma": 0.3, "topology": "toroidal"}, {"val/ssim": 0.5})
    for name in ("lease.json", "tracking.json", "checkpoint.pt", ".attempt.lock"):
        (run.folder / name).write_text("{}")
    (run.folder / "wandb").mkdir()
    new = begin(settings, make_sweep(WIDER), "new")
    assert fork_study(old, new).copied == 1
    copy = new.record.run(0)
    had, has = ({path.name for path in folder.iterdir()} for folder in (run.folder, copy.folder))
    assert had - has == {"lease.json", "tracking.json", ".attempt.lock", "wandb"}
    assert has >= {"checkpoint.pt", "config.json", "figures", "metrics.jsonl", "state.json"}
    assert copy.rows() == run.rows()
    assert copy.record.config == run.record.config
    assert (copy.record.study, copy.record.wandb_id) == ("new", "new-uid-new-t0000")
    shared = new.record.run_record(config, label="ae-012345", stages={})
    assert Run.create((copy.folder / copy.record.stages["ae"]).resolve(), shared).progress().state == "complete"
    assert not list(new.record.folder.glob(".fork*"))


def test_a_fork_aims_at_what_its_ledgers_have(settings: Settings) -> None:
    old = begin(settings, make_sweep())
    params = {"gamma": 0.3, "topology": "toroidal"}
    add(old, params, {"val/ssim": 0.5, "map/topographic_error": 0.1})
    add(old, params, {"val/ssim": 0.5})
    add(old, params, {"val/ssim": 0.5}, state="pruned")
    new = begin(settings, make_sweep(objectives=[SSIM, ERROR]), "new")
    assert fork_study(old, new).left_out == {1: "map/topographic_error was not measured"}
    trials = new.study.get_trials()
    assert [(trial.state, trial.values) for trial in trials] == [
        (TrialState.COMPLETE, [0.5, 0.1]), (TrialState.PRUNED, None)
    ]  # fmt: skip
    assert trials[0].intermediate_values == {}


def test_a_fork_finds_its_rows_by_name_or_by_what_they_say(settings: Settings) -> None:
    old = begin(settings, rows_sweep(ROWS))
    add(old, {"row": 0}, {"val/ssim": 0.5})
    add(old, {"row": 1}, {"val/ssim": 0.6})
    changed = {"new": {"model": "vqvae"}, "second": ROWS["second"], "first": {"model": "som", "alpha": 2.0}}
    new = begin(settings, rows_sweep(changed, method="random"), "new")
    assert fork_study(old, new).left_out == {0: "alpha was 6, is 2"}
    assert [trial.params for trial in new.study.get_trials()] == [{"row": "second"}]
    plain = begin(settings, make_sweep({"epochs": {"value": 9}, "grid": None}), "plain")
    add(plain, {"gamma": 0.3, "topology": "toroidal"}, {"val/ssim": 0.7})
    tabled = begin(settings, rows_sweep(ROWS), "tabled")
    assert fork_study(plain, tabled).copied == 1
    assert tabled.study.get_trials()[0].params == {"row": 1}


KILLED = """
import os, sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from somvq.settings import Settings
from somvq.storages import Store
from somvq.study import fork
from somvq.study.record import load_study
settings, at = Settings(runs=Path(sys.argv[1])), sys.argv[2]
old, new = load_study(settings, "old"), load_study(settings, "new")
copy, add = fork.copy_folder, type(new.study).add_trial

def copy_or_die(run, record, label):
    made = copy(run, record, label)
    if label == "t0001" and at == "folder":
        os.kill(os.getpid(), 9)
    return made

def add_and_die(study, trial):
    add(study, trial)
    if len(study.get_trials()) == 2 and at == "trial":
        os.kill(os.getpid(), 9)

fork.copy_folder, type(new.study).add_trial = copy_or_die, add_and_die
fork.fork_study(old, new)
"""


@pytest.mark.parametrize("at", ["trial", pytest.param("folder", marks=pytest.mark.slow)])
def test_a_fork_killed_in_the_middle_goes_on_when_it_is_repeated(at: str, disk: Settings) -> None:
    old = begin(disk, make_sweep())
    for number in range(4):
        add(old, {"gamma": 0.2 + number / 10, "topology": "toroidal"}, {"val/ssim": number / 10})
    begin(disk, make_sweep(WIDER), "new")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(disk.runs), at], check=False)
    assert killed.returncode == -signal.SIGKILL
    new = load_study(disk, "new")
    assert len(new.study.get_trials()) == (1 if at == "folder" else 2)
    assert fork_study(old, new).copied == 4
    trials = new.study.get_trials()
    assert [trial.user_attrs[COPIED_FROM] for trial in trials] == [f"old/{number:04d}" for number in range(4)]
    assert [new.record.run(trial.number).rows()[-1]["val/ssim"] for trial in trials] == [t.value for t in trials]
    add(old, {"gamma": 0.9, "topology": "toroidal"}, {"val/ssim": 0.9})
    assert fork_study(old, new).copied == 4  # done is done
    assert len(new.study.get_trials()) == 4


def test_a_fork_mixes_with_nothing_else(settings: Settings) -> None:
    old = begin(settings, make_sweep())
    with pytest.raises(StudyError, match="--fork old: a study is no fork of itself"):
        fork_study(old, old)
    elsewhere = begin(settings, make_sweep(WIDER), "elsewhere", cohort="bad")
    with pytest.raises(StudyError, match=r"study 'old' is on another cohort"):
        fork_study(old, elsewhere)
    busy = begin(settings, make_sweep(), "busy")
    add(busy, {"gamma": 0.2, "topology": "toroidal"}, {"val/ssim": 0.5})
    with pytest.raises(StudyError, match="--fork busy: there is such a study, and no fork of old; give another name"):
        fork_study(old, busy)
