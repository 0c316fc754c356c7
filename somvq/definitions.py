"""Finding and reading what a user edits: sweeps/ (what to search) and jobs/ (where and how to run it)."""

import difflib
import math
import re
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import islice, product
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from somvq.config import Frozen, RunConfig
from somvq.errors import DefinitionError
from somvq.runs import METRICS, why_not_measured

SEARCHABLE = [name for name in RunConfig.model_fields if name != "seed"]  # each trial has a seed of its own


def no_boolean(value: Any) -> Any:
    """Python takes true for 1; no setting of a run does."""
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is no value of a setting; give a number or a word")
    return value


ROW = "row"  # the parameter that says which of a sweep's rows a trial is
MOST_COMBINATIONS = 1000  # of a sweep's values that are checked together when it is read
Number = Annotated[int | float, BeforeValidator(no_boolean)]
Scalar = Annotated[int | float | str, BeforeValidator(no_boolean)]
Distribution = Literal["uniform", "log_uniform_values", "int_uniform"]
Definition = TypeVar("Definition", "Sweep", "JobDefinition")


class Metric(Frozen):
    """What a study optimises: the value at a run's last epoch."""

    name: str
    goal: Literal["maximize", "minimize"]

    @field_validator("name")
    @classmethod
    def _is_measured(cls, name: str) -> str:
        if name not in METRICS:
            raise ValueError(f"'{name}' is not measured; {did_you_mean(name, METRICS)}")
        return name


class Parameter(Frozen):
    """One parameter, in W&B's words: `value`, or `values`, or `min` and `max`.

    Whole bounds without a distribution mean whole numbers, as in W&B: {min: 0, max: 1} is 0 or 1.
    """

    value: Scalar | None = None
    values: tuple[Scalar, ...] | None = Field(None, min_length=1)
    min: Number | None = None
    max: Number | None = None
    distribution: Distribution | None = None

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        forms = [self.value is not None, self.values is not None, self.min is not None and self.max is not None]
        if sum(forms) != 1 or ((self.min is None) != (self.max is None)):
            raise ValueError("give value: X, or values: [X, Y], or min: X and max: Y")
        if self.values is not None and len(set(self.values)) < len(self.values):
            raise ValueError(f"values {list(self.values)} name one twice")
        if self.min is None and self.distribution:
            raise ValueError(f"distribution {self.distribution} needs min and max")
        if self.min is not None and self.max is not None:
            if self.min >= self.max:
                raise ValueError(f"min {self.min} is not below max {self.max}")
            if self.distribution == "log_uniform_values" and self.min <= 0:
                raise ValueError(f"log_uniform_values needs a min above 0, not {self.min}")
            if self.distribution == "int_uniform" and not self.whole:
                raise ValueError(f"int_uniform needs whole bounds, not {self.min} and {self.max}")
        return self

    @property
    def whole(self) -> bool:
        """Whether both bounds are whole numbers."""
        return isinstance(self.min, int) and isinstance(self.max, int)

    @property
    def samples(self) -> tuple[Scalar, ...]:
        """Values such that if these are possible, all are: for a range its ends and, if not whole, one between."""
        if self.value is not None:
            return (self.value,)
        if self.values is not None or self.min is None or self.max is None:
            return self.values or ()
        return (self.min, self.max) if self.whole else (self.min, self.max, self.min + 0.4142 * (self.max - self.min))


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
    metric: Metric
    parameters: dict[str, Parameter] = Field(min_length=1)
    rows: dict[str, dict[str, Scalar]] = Field(default_factory=dict)
    run_cap: Annotated[int, Field(ge=1)] | None = None
    early_terminate: EarlyTermination | None = None

    @model_validator(mode="before")
    @classmethod
    def _rows_are_a_parameter(cls, given: Any) -> Any:
        rows, parameters = (given.get("rows"), given.get("parameters") or {}) if isinstance(given, dict) else (None, {})
        if not isinstance(rows, dict) or not rows or not isinstance(parameters, dict) or ROW in parameters:
            return given
        return {**given, "parameters": {**parameters, ROW: {"values": tuple(rows)}}}

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
                check_together(settings, self.metric.name)
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

    def settings(self, suggested: dict[str, Any]) -> dict[str, Any]:
        """A run's settings: what is fixed, what was suggested, and what its row says, the later the stronger."""
        chosen = {**self.fixed(), **suggested}
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


def check_together(settings: dict[str, Any], metric: str) -> None:
    """Refuses settings that are possible one by one, but not together."""
    try:
        config = RunConfig.model_validate(settings)
    except ValidationError as error:
        raise ValueError(plain(error.errors()[0], "parameters: ")) from None
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
    if problem["type"] == "parameter":
        problem = {**problem, "loc": ("parameters", problem["ctx"]["at"])}
    path = [part for part in problem["loc"] if isinstance(part, int) or part not in ("int", "float", "str", "bool")]
    message = plain(problem)
    if problem["type"] == "extra_forbidden":
        message += f"; {did_you_mean(str(path[-1]), allowed_beside(path, kind))}"
    key = f"{'.'.join(map(str, path))}: " if path else ""
    return f"{file}: line {line_of(tree, path)}: {key}{message}"


def allowed_beside(path: list[Any], kind: type[Frozen]) -> list[str]:
    """The keys that a definition knows at the place of an unknown one."""
    if len(path) == 1:
        return list(kind.model_fields)
    inner: dict[str, type[Frozen]] = {"metric": Metric, "parameters": Parameter, "early_terminate": EarlyTermination}
    return list(inner.get(str(path[0]), kind).model_fields)


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
