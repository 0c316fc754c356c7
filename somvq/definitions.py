"""Finding and reading what a user edits: sweeps/ (what to search) and jobs/ (where and how to run it)."""

import difflib
import math
import re
from collections.abc import Iterable, Iterator
from decimal import Decimal
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import islice, product
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from somvq.config import Frozen, RunConfig
from somvq.errors import DefinitionError
from somvq.runs import METRICS, SURVEY, SURVEY_OF_CODES, SURVEY_OF_MAPS, SURVEY_OF_SKIPS, why_not_measured

SEARCHABLE = [name for name in RunConfig.model_fields if name != "seed"]  # each trial has a seed of its own


def no_boolean(value: Any) -> Any:
    """Python takes true for 1; no setting of a run does."""
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is no value of a setting; give a number or a word")
    return value


def is_measured(name: str) -> str:
    """`name`, if it is a metric."""
    if name not in METRICS:
        raise ValueError(f"'{name}' is not measured; {did_you_mean(name, METRICS)}")
    return name


ROW = "row"  # the parameter that says which of a sweep's rows a trial is
MOST_COMBINATIONS = 1000  # of a sweep's values that are checked together when it is read
AT_THE_END = {*SURVEY, *SURVEY_OF_SKIPS, *SURVEY_OF_CODES, *SURVEY_OF_MAPS}  # metrics that epochs before do not have
Number = Annotated[int | float, BeforeValidator(no_boolean)]
Scalar = Annotated[int | float | str, BeforeValidator(no_boolean)]
MetricName = Annotated[str, AfterValidator(is_measured)]
Distribution = Literal[
    "uniform", "log_uniform_values", "int_uniform", "q_uniform", "q_log_uniform_values", "constant", "categorical"
]
LOGARITHMIC = ("log_uniform_values", "q_log_uniform_values")
QUANTISED = ("q_uniform", "q_log_uniform_values")
NEEDS = {"constant": "value", "categorical": "values"}  # what a distribution is of, if not of min and max
TAKE = {  # W&B's distributions that have no bounds, or whose bounds are exponents or mirrored; what to take instead
    "normal": "uniform",
    "q_normal": "q_uniform",
    "beta": "uniform",
    "q_beta": "q_uniform",
    "log_normal": "log_uniform_values",
    "q_log_normal": "q_log_uniform_values",
    "log_uniform": "log_uniform_values",
    "q_log_uniform": "q_log_uniform_values",
    "inv_log_uniform": "log_uniform_values",
    "inv_log_uniform_values": "log_uniform_values",
}
ADVICE = {  # W&B's keys that say nothing in a sweep here
    "program": "somvq runs its own training: take the line out",
    "command": "somvq runs its own training: take the line out",
    "project": "say wandb_project in somvq.yaml",
    "entity": "say wandb_entity in somvq.yaml",
    "probabilities": "each of values is as likely as the others: take the line out",
    "mu": "say min and max",
    "sigma": "say min and max",
    "parameters": "no parameter is inside another: take those below up, each by its own name",
}
Definition = TypeVar("Definition", "Sweep", "JobDefinition")


class Metric(Frozen):
    """What a study optimises: the value at a run's last epoch."""

    name: MetricName
    goal: Literal["maximize", "minimize"]


class Bounds(Frozen):
    """Where a metric has to lie at a run's last epoch."""

    min: Number | None = None
    max: Number | None = None

    @model_validator(mode="after")
    def _leave_something(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("give min: X, or max: X, or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class Parameter(Frozen):
    """One parameter, in W&B's words: `value`, or `values`, or `min` and `max`.

    Whole bounds without a distribution mean whole numbers, as in W&B: {min: 0, max: 1} is 0 or 1.
    """

    value: Scalar | None = None
    values: tuple[Scalar, ...] | None = Field(None, min_length=1)
    min: Number | None = None
    max: Number | None = None
    distribution: Distribution | None = None
    q: Number | None = None

    @field_validator("distribution", mode="before")
    @classmethod
    def _has_bounds(cls, name: Any) -> Any:
        if isinstance(name, str) and name in TAKE:
            raise ValueError(f"{name} is not searched here; take {TAKE[name]}, min and max being values")
        return name

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        forms = {"value": self.value, "values": self.values, "min and max": self.min if self.max is not None else None}
        given = [form for form, said in forms.items() if said is not None]
        if len(given) != 1 or ((self.min is None) != (self.max is None)):
            raise ValueError("give value: X, or values: [X, Y], or min: X and max: Y")
        if self.values is not None and len(set(self.values)) < len(self.values):
            raise ValueError(f"values {list(self.values)} name one twice")
        if self.distribution and NEEDS.get(self.distribution, "min and max") != given[0]:
            raise ValueError(
                f"distribution {self.distribution} needs {NEEDS.get(self.distribution, 'min and max')}, not {given[0]}"
            )
        if self.q is not None and self.distribution not in QUANTISED:
            raise ValueError(f"q says nothing without distribution {' or '.join(QUANTISED)}")
        return self

    @model_validator(mode="after")
    def _has_a_range(self) -> Self:
        if self.min is None or self.max is None:
            return self
        if self.min >= self.max:
            raise ValueError(f"min {self.min} is not below max {self.max}")
        if self.distribution in LOGARITHMIC and self.min <= 0:
            raise ValueError(f"{self.distribution} needs a min above 0, not {self.min}")
        if self.distribution == "int_uniform" and not self.whole:
            raise ValueError(f"int_uniform needs whole bounds, not {self.min} and {self.max}")
        if self.step <= 0:
            raise ValueError(f"q {self.q} is not above 0")
        if self.bounds[0] >= self.bounds[1]:
            raise ValueError(f"{self.min} to {self.max} has no two multiples of q {self.step}")
        return self

    @property
    def step(self) -> int | float:
        """Values of a quantised distribution are multiples of it."""
        return 1 if self.q is None else self.q

    @property
    def whole(self) -> bool:
        """Whether numbers between the bounds are whole by themselves, rather than rounded afterwards."""
        if self.distribution == "q_uniform":
            return isinstance(self.step, int)
        integers = isinstance(self.min, int) and isinstance(self.max, int)
        return integers and self.distribution not in ("uniform", "q_log_uniform_values")

    @property
    def bounds(self) -> tuple[int | float, int | float]:
        """The least and the greatest value of a range."""
        assert self.min is not None
        assert self.max is not None
        if self.distribution != "q_uniform":
            return self.rounded(self.min), self.rounded(self.max)
        low, high = (Decimal(str(bound)) / Decimal(str(self.step)) for bound in (self.min, self.max))
        return self.multiple(math.ceil(low)), self.multiple(math.floor(high))

    def rounded(self, value: Any) -> Any:
        """`value` as a run is told it: of a quantised distribution the nearest multiple of q, as in W&B."""
        return self.multiple(round(value / self.step)) if self.distribution in QUANTISED else value

    def multiple(self, times: int) -> int | float:
        """`times` q, whole if q is, and else in no more digits than q has."""
        return self.step * times if isinstance(self.step, int) else float(Decimal(str(self.step)) * times)

    @property
    def samples(self) -> tuple[Scalar, ...]:
        """Values such that if these are possible, all are: for a range its ends and, if not whole, one between."""
        if self.value is not None:
            return (self.value,)
        if self.values is not None:
            return self.values
        low, high = self.bounds
        if self.distribution == "q_uniform":
            return (low, self.rounded(low + self.step), high)
        return (low, high) if self.whole else (low, high, self.rounded(low + 0.4142 * (high - low)))


class EarlyTermination(Frozen):
    """Stops trials that lag behind: successive halving (ASHA) with `eta`, from epoch `min_iter` on."""

    type: Literal["hyperband"]
    min_iter: Annotated[int, Field(ge=1)] = 10
    eta: Annotated[int, Field(ge=2)] = 3


class Sweep(Frozen):
    """What to search: a W&B sweep file, as far as it makes sense here."""

    name: str = ""
    description: str = ""
    method: Literal["bayes", "random", "grid"] = "bayes"
    metric: Metric | None = None
    objectives: tuple[Metric, ...] = ()
    monitor: Metric | None = None
    constraints: dict[MetricName, Bounds] = Field(default_factory=dict)
    parameters: dict[str, Parameter] = Field(min_length=1)
    rows: dict[str, dict[str, Scalar]] = Field(default_factory=dict)
    run_cap: Annotated[int, Field(ge=1)] | None = None
    early_terminate: EarlyTermination | None = None
    upload_brain_images: bool = False  # whether W&B gets pictures that show brains

    @model_validator(mode="before")
    @classmethod
    def _rows_are_a_parameter(cls, given: Any) -> Any:
        rows, parameters = (given.get("rows"), given.get("parameters") or {}) if isinstance(given, dict) else (None, {})
        if not isinstance(rows, dict) or not rows or not isinstance(parameters, dict) or ROW in parameters:
            return given
        return {**given, "parameters": {**parameters, ROW: {"values": tuple(rows)}}}

    @model_validator(mode="before")
    @classmethod
    def _monitor_is_an_objective(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("monitor"), str):
            return given
        aims = given.get("objectives") or [given.get("metric")]
        named = [aim for aim in aims if isinstance(aim, dict) and aim.get("name") == given["monitor"]]
        return {**given, "monitor": named[0]} if named else given

    @field_validator("monitor", mode="before")
    @classmethod
    def _monitor_has_a_goal(cls, monitor: Any) -> Any:
        if isinstance(monitor, str):
            raise ValueError(f"'{monitor}' is no objective; name one, or give {{name: val/ssim, goal: maximize}}")
        return monitor

    @field_validator("objectives")
    @classmethod
    def _objectives_differ(cls, objectives: tuple[Metric, ...]) -> tuple[Metric, ...]:
        names = [objective.name for objective in objectives]
        if len(names) == 1:
            raise ValueError("give two or more; for one, say metric: {name: NAME, goal: GOAL}")
        if len(set(names)) < len(names):
            raise ValueError(f"{', '.join(names)} name one twice")
        return objectives

    @model_validator(mode="after")
    def _has_one_aim(self) -> Self:
        if (self.metric is None) == (not self.objectives):
            raise ValueError("give metric: {name: NAME, goal: GOAL}, or objectives: a list of those; one of the two")
        if self.early_terminate and self.monitor_goal.name in AT_THE_END:
            raise ValueError(
                f"early_terminate looks at {self.monitor_goal.name} each epoch, but it is measured once, at the end; "
                "say what else to look at, as in monitor: {name: val/ssim, goal: maximize}"
            )
        return self

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        for name, parameter in self.parameters.items():
            try:
                check_parameter(name, parameter, self.rows)
                if self.method == "grid" and parameter.min is not None:
                    raise ValueError("method grid needs value or values here, not min and max")
            except ValueError as error:
                raise PydanticCustomError("parameter", "{message}", {"message": str(error), "at": name}) from None
        for chosen, settings in self.choices():
            try:
                check_together(settings, self.measured())
            except ValueError as error:
                raise ValueError(f"row '{chosen[ROW]}': {error}" if ROW in chosen else str(error)) from None
        return self

    def choices(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """The first combinations of values, a range's least among them, each with the settings that it makes."""
        values = (p.values or p.samples[:1] for p in self.parameters.values())
        for combination in islice(product(*values), MOST_COMBINATIONS):
            chosen = dict(zip(self.parameters, combination, strict=True))
            yield chosen, self.settings(chosen)

    def combinations(self) -> int | None:
        """How many trials a grid has; none if the method is not grid."""
        if self.method != "grid":
            return None
        return math.prod(len(p.values) for p in self.parameters.values() if p.values is not None)

    @property
    def goals(self) -> tuple[Metric, ...]:
        """What is optimised, the first of them first where only one can be shown."""
        return self.objectives or ((self.metric,) if self.metric else ())

    @property
    def monitor_goal(self) -> Metric:
        """What early_terminate looks at."""
        return self.monitor or self.goals[0]

    def measured(self) -> list[str]:
        """The metrics that a run has to have."""
        return list(dict.fromkeys([*(goal.name for goal in self.goals), self.monitor_goal.name, *self.constraints]))

    def named(self, suggested: dict[str, Any]) -> dict[str, Any]:
        """What was suggested, a row by its name: to Optuna, which lets no word be added later, a grid's is a number."""
        row = suggested.get(ROW)
        rows = self.parameters[ROW].values if ROW in self.parameters else None
        return {**suggested, ROW: rows[row]} if isinstance(row, int) and rows else suggested

    def settings(self, suggested: dict[str, Any]) -> dict[str, Any]:
        """A run's settings: what is fixed, what was suggested, and what its row says, the later the stronger."""
        told = {n: self.parameters[n].rounded(v) if n in self.parameters else v for n, v in suggested.items()}
        chosen = {**self.fixed(), **self.named(told)}
        row = self.rows.get(str(chosen.pop(ROW, "")), {})
        return {**chosen, **row}

    def fixed(self) -> dict[str, Scalar]:
        """The parameters that have one value."""
        return {name: p.value for name, p in self.parameters.items() if p.value is not None}


class JobDefinition(Frozen):
    """Where and how to run workers."""

    executor: Literal["local"]
    workers: Annotated[int, Field(ge=1)] | None = None  # none: as many as the place has room for
    workers_per_gpu: Annotated[int, Field(ge=1)] = 1


def check_parameter(name: str, parameter: Parameter, rows: dict[str, dict[str, Scalar]]) -> None:
    """Refuses what is no setting of a run, and values that the setting cannot have."""
    if name == ROW and rows:
        for value in parameter.samples:
            if value not in rows:
                raise ValueError(f"no row is called '{value}'; {did_you_mean(str(value), rows)}")
        return
    if name not in SEARCHABLE:
        raise ValueError(f"is not a setting that can be searched; {did_you_mean(name, SEARCHABLE)}")
    for value in parameter.samples:
        check_setting(name, value)


def check_setting(name: str, value: Any) -> None:
    """Refuses a value that setting `name` cannot have, whatever the others are."""
    try:
        RunConfig.model_validate({"model": "psom", name: value})
    except ValidationError as error:
        own = [problem for problem in error.errors() if problem["loc"][:1] == (name,)]
        if own:
            raise ValueError(f"{value!r} is impossible: {plain(own[0])}") from None


def check_together(settings: dict[str, Any], metrics: Iterable[str]) -> None:
    """Refuses settings that are possible one by one, but not together."""
    try:
        config = RunConfig.model_validate(settings)
    except ValidationError as error:
        raise ValueError(plain(error.errors()[0], "parameters: ")) from None
    for metric in metrics:
        if why := why_not_measured(metric, config):
            raise ValueError(f"{why}, so {metric} is not measured")


def did_you_mean(name: str, allowed: Any) -> str:
    """The names that are allowed, the likeliest first."""
    close = difflib.get_close_matches(name, list(allowed), 1)
    return (f"did you mean '{close[0]}'? " if close else "") + f"allowed: {', '.join(allowed)}"


def plain(problem: Any, prefix: str = "") -> str:
    """One of pydantic's complaints, in our words."""
    if problem["type"] == "extra_forbidden":
        return "is not known here"
    if problem["type"] == "missing":
        return f"{prefix}{problem['loc'][-1]} is missing" if prefix else "is missing"
    if problem["type"] == "model_type":
        return f"give keys and values here, not {problem['input']!r}"
    message: str = problem["msg"].removeprefix("Value error, ")
    return message[0].lower() + message[1:]


class Yaml(yaml.SafeLoader):
    """YAML as people mean it: 5e-3 is a number, and a key that stands twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping, unless a key stands twice in it."""
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} stands here twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
Yaml.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+.0123456789"))


def parse_yaml(text: str) -> Any:
    """What `text` says."""
    return yaml.load(text, Yaml)


def folder_of(kind: Literal["sweeps", "jobs"]) -> Traversable:
    """The definitions that came with somvq: in the wheel, or beside a source checkout."""
    packaged = files("somvq") / kind
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / kind


def find_definition(kind: Literal["sweeps", "jobs"], name: str) -> Traversable:
    """The file that `name` means: a path, else ./KIND/NAME.yaml, else the shipped one.

    Raises:
        DefinitionError: there is none; lists those there are.
    """
    for path in (Path(name), Path(kind, f"{name}.yaml")):
        if path.suffix in (".yaml", ".yml") and path.is_file():
            return path
    shipped = folder_of(kind) / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    known = sorted({p.name.removesuffix(".yaml") for p in [*Path(kind).glob("*.yaml"), *folder_of(kind).iterdir()]
                    if p.name.endswith(".yaml")})  # fmt: skip
    what = kind.removesuffix("s")
    raise DefinitionError(
        f"no {what} is called '{name}'; there are {', '.join(known)}, or give the path of a .yaml file"
    )


def read_sweep(file: Traversable) -> Sweep:
    """The sweep in `file`; its name, where it has none, is the file's."""
    sweep = read_definition(file, Sweep)
    return sweep if sweep.name else sweep.model_copy(update={"name": file.name.rsplit(".", 1)[0]})


def read_job(file: Traversable) -> JobDefinition:
    """The job definition in `file`."""
    return read_definition(file, JobDefinition)


def read_definition(file: Traversable, kind: type[Definition]) -> Definition:
    """What `file` says.

    Raises:
        DefinitionError: the file, the line, the key and what is allowed.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DefinitionError(f"{file}: is not text in UTF-8; is it a YAML file?") from error
    try:
        return kind.model_validate(parse_yaml(text) or {})
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise DefinitionError(f"{file}: {where}not YAML: {getattr(error, 'problem', error)}") from error
    except ValidationError as error:
        tree = yaml.compose(text)
        lines = [complaint(file, tree, problem, kind) for problem in error.errors()]
        raise DefinitionError("\n".join(dict.fromkeys(lines))) from error


def complaint(file: Traversable, tree: Any, problem: Any, kind: type[Frozen]) -> str:
    """One line for one problem: file, line, key, what is wrong, what is allowed."""
    path, message = explain(problem, kind)
    key = f"{'.'.join(map(str, path))}: " if path else ""
    return f"{file}: line {line_of(tree, path)}: {key}{message}"


def explain(problem: Any, kind: type[Frozen]) -> tuple[list[Any], str]:
    """The keys that lead to one of pydantic's complaints, and what to tell of it."""
    if problem["type"] == "parameter":
        problem = {**problem, "loc": ("parameters", problem["ctx"]["at"])}
    path = [part for part in problem["loc"] if part not in ("int", "float", "str", "bool", "[key]")]
    if problem["type"] != "extra_forbidden":
        return path, plain(problem)
    unknown = str(path[-1])
    advice = ADVICE.get(unknown) if kind is Sweep else None
    return path, f"{plain(problem)}; {advice or did_you_mean(unknown, allowed_beside(path, kind))}"


INNER: dict[str, type[Frozen]] = {
    "metric": Metric,
    "objectives": Metric,
    "monitor": Metric,
    "constraints": Bounds,
    "parameters": Parameter,
    "early_terminate": EarlyTermination,
}


def allowed_beside(path: list[Any], kind: type[Frozen]) -> list[str]:
    """The keys that a definition knows at the place of an unknown one."""
    return list((kind if len(path) == 1 else INNER.get(str(path[0]), kind)).model_fields)


def line_of(node: Any, path: list[Any]) -> int:
    """The line of the key at `path` below a YAML node, as far as the path goes."""
    line: int = node.start_mark.line + 1 if node else 1
    for part in path:
        if isinstance(node, yaml.MappingNode):
            pairs = {key.value: (key, value) for key, value in node.value}
        elif isinstance(node, yaml.SequenceNode):
            pairs = {index: (item, item) for index, item in enumerate(node.value)}
        else:
            break
        if part not in pairs:
            break
        key, node = pairs[part]
        line = key.start_mark.line + 1
    return line
