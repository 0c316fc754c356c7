"""What ends a study's work before it has all its trials: a user who says so, hours that are used up.

Whoever works for the study looks here now and then. Nothing is lost by stopping: trials go on from their checkpoints.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field

from somvq.config import Frozen
from somvq.files import clock, write_json
from somvq.runs import Attempt, Run
from somvq.study.lease import is_alive, last_beat

FILE = "stop.json"
HOUR_S = 3600.0


class Limits(Frozen):
    """What a study may use up, over all its workers and resumes; none: as much as it takes."""

    hours: Annotated[float, Field(gt=0)] | None = Field(None, description="hours in which anything of it trains")
    gpu_hours: Annotated[float, Field(gt=0)] | None = Field(None, description="hours of GPUs, summed over them")

    def any(self) -> bool:
        """Whether there is a limit."""
        return self.hours is not None or self.gpu_hours is not None

    def reached(self, hours: float, gpu_hours: float) -> str:
        """Which limit is reached by what was used; empty if none."""
        if self.hours is not None and hours >= self.hours:
            return f"{hours:.3g} of {self.hours:g} hours are used up"
        if self.gpu_hours is not None and gpu_hours >= self.gpu_hours:
            return f"{gpu_hours:.3g} of {self.gpu_hours:g} GPU-hours are used up"
        return ""


class Usage(NamedTuple):
    """`hours` in which at least one attempt was under way; `gpu_hours` summed over all attempts."""

    hours: float
    gpu_hours: float


Span = tuple[float, float, float]  # of an attempt: when it began and ended, in seconds, and its GPUs


def read_usage(folder: Path) -> Usage:
    """What the study whose runs are in `folder` has used so far."""
    return add_up([span(run, attempt) for run in all_runs(folder) for attempt in run.attempts()])


def add_up(spans: Sequence[Span]) -> Usage:
    """What attempts have used together."""
    gpu_seconds = sum((ended - began) * gpus for began, ended, gpus in spans)
    return Usage(union((began, ended) for began, ended, _ in spans) / HOUR_S, gpu_seconds / HOUR_S)


def all_runs(folder: Path) -> Iterator[Run]:
    """The runs of trials and stages in a study's folder."""
    for pattern in ("[0-9]*/attempts.jsonl", "stages/*/attempts.jsonl"):
        for path in sorted(folder.glob(pattern)):
            yield Run(path.parent)


def span(run: Run, attempt: Attempt) -> Span:
    """When `attempt` of `run` began and ended; one under way ends now, a dead one when it was last seen."""
    ended = attempt.ended
    if ended is None:
        alive = is_alive(run.folder)
        seen = clock(run.folder) if alive else max(last_beat(run.folder), run.last_sign_of_training())
        ended = max(seen, attempt.began)
    return attempt.began, ended, attempt.gpus


def union(spans: Iterable[tuple[float, float]]) -> float:
    """The seconds that `spans` cover, each counted once."""
    covered, until = 0.0, float("-inf")
    for began, ended in sorted(spans):
        covered += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return covered


def ask_to_stop(folder: Path) -> None:
    """Tells all who work in `folder`, a study's or a run's, to end."""
    write_json(folder / FILE, {"asked": clock(folder)})


def asked_to_stop(folder: Path) -> bool:
    """Whether work in `folder` is to end."""
    return (folder / FILE).exists()


def go_on(folder: Path) -> bool:
    """Takes back what `ask_to_stop` said; whether there was anything."""
    asked = asked_to_stop(folder)
    (folder / FILE).unlink(missing_ok=True)
    return asked
