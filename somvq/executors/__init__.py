"""Places to run workers, by the names that job files use."""

from collections.abc import Callable

from somvq.executors.job import Executor
from somvq.executors.local import LocalExecutor

EXECUTORS: dict[str, Callable[[int], Executor]] = {"local": LocalExecutor}
