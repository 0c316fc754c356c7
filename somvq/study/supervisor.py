"""Starts workers, replaces those that die, shows how the study goes, stops them all in order."""

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.live import Live

from somvq.audit import COMMAND, typed_command
from somvq.errors import RunError
from somvq.executors.job import Executor, Job
from somvq.storages import explain, is_away
from somvq.study.herald import Silence
from somvq.study.record import OpenStudy
from somvq.study.status import Status, TrialStatus, read_status
from somvq.study.tables import describe_params, progress_table
from somvq.study.worker import BLOCKED, FAILING, Stop

POLL_S = 0.2
REFUSED = 2  # exit status of a wrong request: no other worker would do better
SHOW_S = 2.0  # between two looks at the study
QUIET_SHOW_S = 30.0  # between two lines about a trial under way, where there is no terminal
RESTARTS = 10  # of workers that die without any trial getting further
PATIENCE_S = 60.0  # for workers that were asked to stop; their own for an attempt and W&B is shorter


class Supervisor:
    """The foreground of `somvq sweep`."""

    def __init__(
        self,
        opened: OpenStudy,
        executor: Executor,
        environment: Mapping[str, str],
        console: Console,
        herald: Silence,
    ):
        self.herald = herald
        self.opened, self.executor, self.console = opened, executor, console
        self.environment = environment
        self.jobs: dict[int, Job] = {}
        self.blocked: list[str] = []  # what workers said that gave up
        self.fruitless, self.seen_progress = 0, 0
        self.status = read_status(opened)
        self.stop: Stop | None = None
        self.looked = float("-inf")
        self.said: set[str] = set()
        self.reporter = Reporter(console)

    def run(self) -> int:
        """Until the study has all its trials, is stopped, or a signal comes; 0, or 128 + signal.

        Raises:
            RunError: workers keep dying, trials keep failing, or nothing can be trained here.
        """
        stop = self.stop = Stop()
        with Live(console=self.console, auto_refresh=False, transient=True) as live:
            while not stop.asked():
                self.replace_the_dead()
                if time.monotonic() - self.looked > SHOW_S:
                    self.look(live)
                    self.start_what_is_missing()
                if not self.jobs and self.is_over():
                    break
                time.sleep(POLL_S)
        self.stop_all()
        return 128 + stop.signal if stop.asked() else 0

    def is_over(self) -> bool:
        """Whether there is nothing to wait for: also not for a trial that a worker elsewhere holds, and may drop.

        Raises:
            RunError: there is, but no worker here can go on.
        """
        if self.status.stopped or self.status.unfinished == 0:
            return True
        if self.blocked:
            raise RunError(self.blocked[-1])
        if self.status.claimable == 0:
            held = [f"{trial.number} on {trial.host}" for trial in self.status.trials if trial.state == "running"]
            self.say_once(f"waiting for trial {', '.join(held)}; Ctrl-C leaves without it")
        return False

    def start_what_is_missing(self) -> None:
        """A worker for each trial that waits for one, as far as there is room."""
        room = self.executor.workers - len(self.jobs) - len(self.blocked)
        starting = len(self.jobs) - self.status.count("running")  # of those here, some have not claimed yet
        for _ in range(min(room, self.status.claimable - max(starting, 0))):
            if not self.status.stopped:
                self.start(next(slot for slot in range(len(self.jobs) + 1) if slot not in self.jobs))

    def start(self, slot: int) -> None:
        """A worker."""
        record = self.opened.record
        command = [sys.executable, "-m", "somvq", "worker", record.name, "--parent", str(os.getpid())]
        log = record.folder / "workers" / f"worker-{slot}.log"
        self.jobs[slot] = self.executor.submit(
            command, log=log, environment={**self.environment, COMMAND: typed_command()}
        )

    def replace_the_dead(self) -> None:
        """Starts a worker for each that was killed; lets go of those that ended by themselves."""
        for slot, job in list(self.jobs.items()):
            ended = job.poll()
            if ended is None:
                continue
            del self.jobs[slot]
            self.looked = float("-inf")
            if ended == BLOCKED:
                self.blocked.append(f"worker {slot} gave up: {last_line(job.log)}; see {job.log}")
                self.say_once(self.blocked[-1])
            elif ended in (FAILING, REFUSED):
                self.stop_all()
                raise RunError(f"worker {slot} gave up: {last_line(job.log)}; see {job.log}")
            elif ended != 0:
                self.count_restart(job)
                self.console.print(
                    f"worker {slot} died ({describe_exit(ended)}); its trial goes on from its checkpoint"
                )
                self.start(slot)

    def count_restart(self, job: Job) -> None:
        """Gives up when workers die one after the other and nothing gets further."""
        progress = sum(trial.epoch for trial in self.status.trials)
        self.fruitless = 1 if progress > self.seen_progress else self.fruitless + 1
        self.seen_progress = progress
        if self.fruitless > RESTARTS:
            self.stop_all()
            raise RunError(f"workers died {RESTARTS} times and no trial got further; see {job.log}")

    def look(self, live: Live | None = None) -> None:
        """Reads the study, and shows it: a table on a terminal, a line for what is new elsewhere."""
        self.looked = time.monotonic()
        try:
            self.status = read_status(self.opened)
        except Exception as error:
            if not is_away(error):
                raise
            self.say_once(f"the study's storage does not answer ({explain(error)}); training goes on without it")
            return
        self.herald.follow(self.status)
        if not self.console.is_terminal:
            self.reporter.report(self.status)
        elif live:
            room = max(5, self.console.height - len(self.status.stages) - 4)
            live.update(progress_table(self.status, self.console.width, room), refresh=True)

    def say_once(self, line: str) -> None:
        """Prints `line`, if it was not the last thing said of its kind."""
        if line not in self.said:
            self.said.add(line)
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def stop_all(self) -> None:
        """Asks all workers to stop, and makes them."""
        for job in self.jobs.values():
            job.terminate()
        asked, deadline = self.stop.times if self.stop else 0, time.monotonic() + PATIENCE_S
        if self.jobs:
            self.say_once("stopping: workers leave things in order; Ctrl-C again ends them at once, and loses an epoch")
        while any(job.poll() is None for job in self.jobs.values()):
            if time.monotonic() > deadline or (self.stop and self.stop.times > asked):
                for job in self.jobs.values():
                    job.kill()
            time.sleep(POLL_S)
        self.jobs.clear()


class Reporter:
    """Plain lines for a log file: what began, how it goes now and then, how it ended."""

    def __init__(self, console: Console):
        self.console = console
        self.said: dict[str, tuple[str, float]] = {}

    def report(self, status: Status) -> None:
        """A line for each trial that changed, or has been going on for long."""
        for name, stage in status.stages.items():
            self.mention(f"shared auto-encoder {name}", stage, "val/ssim")
        for trial in status.trials:
            self.mention(f"trial {trial.number}", trial, status.metric)

    def mention(self, name: str, trial: TrialStatus, metric: str) -> None:
        """One line, if there is something to say."""
        state, when = self.said.get(name, ("", 0.0))
        if trial.state == state and (trial.state != "running" or time.monotonic() - when < QUIET_SHOW_S):
            return
        self.said[name] = (trial.state, time.monotonic())
        value = f" {metric} {trial.row[metric]:.4f}" if metric in trial.row else ""
        settings = f" {describe_params(trial.params)}" if not state else ""
        line = f"{name}: {trial.state} {trial.epoch}/{trial.epochs}{value}{settings} {trial.reason}".rstrip()
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def describe_exit(status: int) -> str:
    """How a process ended."""
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"


def last_line(path: Path) -> str:
    """The last line of a log."""
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
