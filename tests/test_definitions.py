import re
from pathlib import Path
from typing import get_args

import pytest

from somvq.config import RunConfig
from somvq.data.cohort import Cohort
from somvq.definitions import (
    SEARCHABLE,
    Bounds,
    Distribution,
    EarlyTermination,
    Parameter,
    Sweep,
    find_definition,
    folder_of,
    read_job,
    read_sweep,
)
from somvq.errors import DefinitionError
from somvq.executors import EXECUTORS
from somvq.initialisers import INITIALISERS
from somvq.models import MODELS
from somvq.study.samplers import SAMPLERS
from somvq.study.space import override

ROOT = Path(__file__).parents[1]
PSOM = """# How hard the PSOM-VAE assigns tokens to nodes (gamma), how smooth its map is (beta),
# what shape the map has and where its codes start. README.md in this folder says what each key means.
method: bayes                                   # Optuna's TPE; also: random, grid
metric: {name: val/ssim, goal: maximize}        # at a trial's last epoch
run_cap: 50                                     # trials, where --trials says nothing
parameters:
  model: {value: psom}
  init: {values: [ae-som, ae-kmeans, ae, random]}
  topology: {values: [toroidal, rectangular]}
  grid: {value: 16x16}
  alpha: {min: 1.0, max: 30.0}                                              # degrees of freedom
  beta: {min: 1.0e-3, max: 1.0e-1, distribution: log_uniform_values}        # around DPSOM's 80 : 1 of gamma to beta
  gamma: {min: 5.0e-2, max: 5.0, distribution: log_uniform_values}          # see README.md
  epochs: {value: 40}                           # the paper: 800; --set epochs=800
  ae_epochs: {value: 80}                        # of the auto-encoder that a study trains once; the paper: 200
  learning_rate: {value: 0.005}
  batch_size: {value: 32}
"""


@pytest.mark.parametrize("file", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_sweep_is_valid_and_named_after_its_file(file: Path) -> None:
    sweep = read_sweep(file)
    assert sweep.name == file.stem
    assert set(sweep.parameters) <= {*SEARCHABLE, *(["row"] if sweep.rows else [])}
    assert sweep.run_cap


@pytest.mark.parametrize("file", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_job_names_an_executor(file: Path) -> None:
    assert read_job(file).executor in EXECUTORS


def test_what_settings_may_name_is_what_there_is() -> None:
    fields = RunConfig.model_fields
    assert set(get_args(fields["model"].annotation)) == set(MODELS)
    assert set(get_args(fields["init"].annotation)) == set(INITIALISERS)
    assert set(get_args(Sweep.model_fields["method"].annotation)) == set(SAMPLERS)


def test_the_readme_of_sweeps_explains_every_key() -> None:
    text = (ROOT / "sweeps" / "README.md").read_text()
    for key in [*Sweep.model_fields, *SEARCHABLE]:
        assert f"`{key}`" in text, key
    for key in [*Parameter.model_fields, *get_args(Distribution), *Bounds.model_fields, *EarlyTermination.model_fields]:
        assert re.search(rf"\b{key}\b", text), key


def test_a_path_wins_over_the_working_folder_and_that_over_what_is_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(find_definition("sweeps", "psom")).endswith("sweeps/psom.yaml")
    assert find_definition("sweeps", "psom") == folder_of("sweeps") / "psom.yaml"
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "psom.yaml").write_text(PSOM)
    assert find_definition("sweeps", "psom") == Path("sweeps/psom.yaml")
    (tmp_path / "mine.yml").write_text(PSOM)
    assert find_definition("sweeps", "mine.yml") == Path("mine.yml")


def test_an_unknown_sweep_is_answered_with_those_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "mine.yaml").write_text(PSOM)
    with pytest.raises(
        DefinitionError,
        match=r"no sweep is called 'pson'; there are ae, mine, psom, som, table1, vae, vqvae, or give the path",
    ):
        find_definition("sweeps", "pson")


WRONG = {  # what is changed in psom.yaml, to what, and what its user is told
    "unknown setting": ("  gamma:", "  gama:", r"line 13: parameters.gama: .* did you mean 'gamma'\?"),
    "unknown top key": ("method:", "methud:", r"line 3: methud: is not known here; did you mean 'method'\?"),
    "unknown key of a parameter": ("max: 30.0", "maxx: 30.0", r"alpha.maxx: is not known here; did you mean 'max'\?"),
    "impossible value": (
        "[ae-som,",
        "[ae-sum,",
        r"parameters.init: 'ae-sum' is impossible: .*'vae-som' or 'ae-kmeans-codes'",
    ),
    "impossible bound": ("min: 1.0,", "min: -1.0,", r"parameters.alpha: -1.0 is impossible: .*greater than 0"),
    "impossible in between": ("{value: 40}", "{min: 1.0, max: 9.0}", r"epochs: 4.3\d* is impossible: .*valid integer"),
    "impossible map": ("16x16", "16by16", r"parameters.grid: '16by16' is impossible: .*HEIGHTxWIDTH"),
    "bounds the wrong way": ("max: 30.0", "max: 0.5", r"parameters.alpha: min 1.0 is not below max 0.5"),
    "a bound missing": (
        ", max: 30.0",
        "",
        r"parameters.alpha: give value: X, or values: \[X, Y\], or min: X and max: Y",
    ),
    "a logarithm of zero": ("min: 1.0e-3", "min: 0.0", r"beta: log_uniform_values needs a min above 0, not 0.0"),
    "a distribution without": ("uniform_values", "unifrm", r"'q_log_uniform_values', 'constant' or 'categorical'"),
    "a normal distribution": (
        "log_uniform_values",
        "log_normal",
        r"beta.distribution: log_normal is not searched here; take log_uniform_values, min and max being values",
    ),
    "exponents for bounds": ("log_uniform_values", "log_uniform", r"log_uniform is not searched here; take log_unif"),
    "probabilities": (
        "random]}",
        "random], probabilities: [1, 0, 0, 0]}",
        r"parameters.init.probabilities: is not known here; each of values is as likely as the others: take",
    ),
    "nested parameters": (
        "{value: 16x16}",
        "{parameters: {a: {value: 1}}}",
        r"grid.parameters: is not known here; no parameter is inside another",
    ),
    "a constant without value": (
        "max: 30.0",
        "max: 30.0, distribution: constant",
        r"parameters.alpha: distribution constant needs value, not min and max",
    ),
    "steps without": ("max: 30.0", "max: 30.0, q: 2", r"alpha: q says nothing without distribution q_uniform or q_log"),
    "steps of nothing": (
        "max: 30.0",
        "max: 30.0, distribution: q_uniform, q: 0",
        r"alpha: q 0 is not above 0",
    ),
    "steps too wide": (
        "max: 30.0",
        "max: 30.0, distribution: q_uniform, q: 20",
        r"parameters.alpha: 1.0 to 30.0 has no two multiples of q 20",
    ),
    "steps that round to nothing": (
        "max: 30.0",
        "max: 30.0, distribution: q_log_uniform_values, q: 3",
        r"parameters.alpha: 0 is impossible: .*greater than 0",
    ),
    "steps through the impossible": (
        "{value: 40}",
        "{min: 1, max: 3, distribution: q_uniform, q: 0.5}",
        r"parameters.epochs: 1.5 is impossible: .*valid integer",
    ),
    "a program": (
        "method:",
        "program: train.py\nmethod:",
        r"line 3: program: .* somvq runs its own training: take",
    ),
    "a command": ("method:", "command: [a, b]\nmethod:", r"line 3: command: .* somvq runs its own training: take"),
    "a project": ("method:", "project: mine\nmethod:", r"line 3: project: .* say wandb_project in somvq.yaml"),
    "an entity": ("method:", "entity: me\nmethod:", r"line 3: entity: .* say wandb_entity in somvq.yaml"),
    "a constraint on nothing": (
        "method:",
        "constraints: {codebook/used: {}}\nmethod:",
        r"line 3: constraints.codebook/used: give min: X, or max: X, or both",
    ),
    "a constraint between nothing": (
        "method:",
        "constraints: {codebook/used: {min: 2, max: 1}}\nmethod:",
        r"constraints.codebook/used: min 2 is above max 1",
    ),
    "no constraint like that": (
        "method:",
        "constraints: {codebook/usd: {min: 2}}\nmethod:",
        r"constraints.codebook/usd: 'codebook/usd' is not measured; did you mean 'codebook/used'\?",
    ),
    "an unknown key of a constraint": (
        "method:",
        "constraints: {codebook/used: {minn: 2}}\nmethod:",
        r"constraints.codebook/used.minn: is not known here; did you mean 'min'\?",
    ),
    "a constraint that is not measured": (
        "method:",
        "constraints: {val/kl: {max: 2}}\nmethod:",
        r"this psom has no term kl, so val/kl is not measured",
    ),
    "two aims": (
        "method:",
        "objectives: [{name: val/ssim, goal: maximize}, {name: val/mse, goal: minimize}]\nmethod:",
        r"give metric: .* or objectives: a list of those; one of the two",
    ),
    "no aim": ("metric:", "# ", r"give metric: .* or objectives: a list of those; one of the two"),
    "one objective": (
        "metric: {name: val/ssim, goal: maximize}",
        "objectives: [{name: val/ssim, goal: maximize}]",
        r"line 4: objectives: give two or more; for one, say metric: {name: NAME, goal: GOAL}",
    ),
    "an objective twice": (
        "metric: {name: val/ssim, goal: maximize}",
        "objectives: [{name: val/ssim, goal: maximize}, {name: val/ssim, goal: minimize}]",
        r"line 4: objectives: val/ssim, val/ssim name one twice",
    ),
    "a wrong objective": (
        "metric: {name: val/ssim, goal: maximize}",
        "objectives: [{name: val/ssim, goal: maximize}, {name: val/mse, gaol: minimize}]",
        r"objectives.1.gaol: is not known here; did you mean 'goal'\?",
    ),
    "a monitor without goal": (
        "method:",
        "monitor: val/mse\nmethod:",
        r"line 3: monitor: 'val/mse' is no objective; name one, or give {name: val/ssim, goal: maximize}",
    ),
    "a monitor that is measured once": (
        "metric: {name: val/ssim,",
        "early_terminate: {type: hyperband}\nmetric: {name: val/ssim_brain,",
        r"early_terminate looks at val/ssim_brain each epoch, but it is measured once, at the end; say what else",
    ),
    "a value twice": ("[toroidal,", "[rectangular,", r"values \['rectangular', 'rectangular'\] name one twice"),
    "no metric like that": (
        "val/ssim",
        "val/sim",
        r"metric.name: 'val/sim' is not measured; did you mean 'val/ssim'\?",
    ),
    "no method like that": ("bayes", "baies", r"line 3: method: input should be 'bayes', 'random' or 'grid'"),
    "a grid over ranges": ("bayes", "grid", r"alpha: method grid needs value or values here, not min and max"),
    "a bare value": ("{value: 40}", "40", r"parameters.epochs: give keys and values here, not 40"),
    "a seed": ("epochs: {value: 40}", "seed: {value: 4}", r"parameters.seed: is not a setting that can be searched"),
    "not YAML": ("method: bayes", "method: [bayes", r"not YAML"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_sweep_file_is_refused_with_file_line_key_and_what_is_allowed(what: str, tmp_path: Path) -> None:
    before, after, told = WRONG[what]
    assert before in PSOM
    file = tmp_path / "psom.yaml"
    file.write_text(PSOM.replace(before, after))
    with pytest.raises(DefinitionError, match=told) as refusal:
        read_sweep(file)
    for line in str(refusal.value).splitlines():
        assert line.startswith(f"{file}: line ")


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "psom.yaml"
    file.write_text(PSOM.replace("bayes", "baies").replace("val/ssim", "val/sim"))
    with pytest.raises(DefinitionError) as refusal:
        read_sweep(file)
    assert len(str(refusal.value).splitlines()) == 2


@pytest.mark.parametrize("text", ["", "- 1\n- 2\n", "just words"])
def test_a_file_that_is_no_sweep_at_all_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text(text)
    with pytest.raises(DefinitionError, match=r"odd\.yaml: line 1: "):
        read_sweep(file)


def test_the_demo_cohort_fits_the_shipped_sweeps(tiny_cohort: Cohort) -> None:
    fixed = read_sweep(ROOT / "sweeps" / "psom.yaml").fixed()
    RunConfig.model_validate({**fixed, "init": "ae-som"})
    assert all(side % 16 == 0 for side in tiny_cohort.index.shape)


ROWS = """
method: grid
metric: {name: val/ssim_q, goal: maximize}
parameters:
  epochs: {value: 3}
  batch_size: {value: 4}
rows:
  first: {model: vqvae, epochs: 7}
  second: {model: som, reading: published, alpha: 2.5}
"""


def read_text(text: str, folder: Path) -> Sweep:
    (folder / "rows.yaml").write_text(text)
    return read_sweep(folder / "rows.yaml")


def test_rows_are_trials_of_their_own_and_their_words_are_the_strongest(tmp_path: Path) -> None:
    sweep = read_text(ROWS, tmp_path)
    assert sweep.combinations() == 2
    assert sweep.settings({"row": "first"}) == {"model": "vqvae", "epochs": 7, "batch_size": 4}
    assert sweep.settings({"row": "second"}) == {
        "model": "som", "reading": "published", "alpha": 2.5, "epochs": 3, "batch_size": 4,
    }  # fmt: skip


def test_set_is_stronger_than_a_row_and_takes_one(tmp_path: Path) -> None:
    sweep = override(read_text(ROWS, tmp_path), {"row": "first", "epochs": 1})
    assert sweep.combinations() == 1
    assert sweep.settings({})["epochs"] == 1
    with pytest.raises(DefinitionError, match=r"--set row: no row is called 'thrid'; .*allowed: first, second"):
        override(read_text(ROWS, tmp_path), {"row": "thrid"})


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("alpha: 2.5", "alhpa: 2.5", "row 'second': .*alhpa is not known here|row 'second': .*is not known here"),
        ("alpha: 2.5", "gamma: 2.5", "row 'second': gamma says nothing here: model som has none"),
        ("model: vqvae", "model: ae", "row 'first': model ae has no codebook, so val/ssim_q is not measured"),
    ],
)
def test_a_row_that_cannot_be_run_is_refused_by_its_name(before: str, after: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match=told):
        read_text(ROWS.replace(before, after), tmp_path)


def test_table_1_has_each_row_of_the_paper_in_both_readings() -> None:
    sweep = read_sweep(find_definition("sweeps", "table1"))
    published = {name: row for name, row in sweep.rows.items() if row.get("reading") == "published"}
    assert len(published) == 17
    assert {f"{name}+" for name in published} == set(sweep.rows) - set(published)
    for name, row in published.items():
        assert {**row, "reading": None} == {"reading": None, **sweep.rows[f"{name}+"]}
