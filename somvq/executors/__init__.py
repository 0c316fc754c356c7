"""Places to run workers, by the names that job files use."""

from collections.abc import Callable

from somvq.definitions import JobDefinition
from somvq.executors.job import Executor
from somvq.executors.local import LocalExecutor

EXECUTORS: dict[str, Callable[[JobDefinition], Executor]] = {"local": LocalExecutor}
