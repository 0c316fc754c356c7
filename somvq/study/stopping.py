"""What `somvq stop` does: ask, wait until it is so, and say how to go on."""

import time
from collections.abc import Callable

from optuna.trial import TrialState
from rich.console import Console

from somvq.errors import StudyError
from somvq.settings import Settings
from somvq.study.claim import Claim, fill, hold, is_abandoned
from somvq.study.lease import is_alive
from somvq.study.record import OpenStudy
from somvq.study.status import ENDED, TrialStatus, read_status
from somvq.study.stops import all_runs, ask_to_stop
from somvq.study.trial import Conductor
from somvq.tracking import Tracker

POLL_S = 0.3
PATIENCE_S = 90.0  # a worker elsewhere looks often; an attempt ends within a step


def stop_study(opened: OpenStudy, console: Console) -> None:
    """Has all workers of a study end, wherever they are; its trials go on when it is resumed."""
    name, folder = opened.record.name, opened.record.folder
    ask_to_stop(folder)
    busy = [run for run in all_runs(folder) if is_alive(run.folder)]
    if busy:
        console.print(f"asked {len(busy)} under way to stop at their last epoch; waiting", soft_wrap=True)
    left = await_that(lambda: not any(is_alive(run.folder) for run in busy))
    if left:
        console.print(f"study {name} is stopped: no worker takes its trials; somvq resume {name} goes on")
    else:
        console.print(f"study {name}: some workers did not answer yet; they stop when they do (somvq status {name})")


def stop_trial(opened: OpenStudy, number: int, settings: Settings, console: Console) -> None:
    """Ends one trial for good, as pruned; its checkpoint and numbers stay.

    Raises:
        StudyError: there is no such trial, or it is over.
    """
    trial = find_trial(opened, number)
    run = opened.record.run(number)
    run.folder.mkdir(parents=True, exist_ok=True)  # a queued trial has none yet
    ask_to_stop(run.folder)
    if claim := claim_abandoned(opened, number, settings):
        Conductor(opened, claim, Tracker(), lambda: "", settings).conduct()
    elif not await_that(lambda: find_state(opened, number) in ENDED):
        console.print(f"trial {number}: its worker on {trial.host} did not answer yet; it stops when it does")
        return
    console.print(
        f"trial {number} is stopped after {len(opened.record.run(number).rows())} epochs, and counts as pruned"
    )


def find_trial(opened: OpenStudy, number: int) -> TrialStatus:
    """Trial `number`, which must not be over."""
    trials, name = read_status(opened).trials, opened.record.name
    if not 0 <= number < len(trials):
        there = f"0 to {len(trials) - 1}" if trials else "none yet"
        raise StudyError(f"study '{name}' has no trial {number} (there: {there})")
    trial = trials[number]
    if trial.state in ENDED:
        raise StudyError(f"trial {number} of '{name}' is {trial.state} already; somvq status {name} shows who is not")
    if trial.same_as is not None:
        raise StudyError(f"trial {number} only waits for trial {trial.same_as}, whose settings it has; stop that one")
    return trial


def find_state(opened: OpenStudy, number: int) -> str:
    """How trial `number` is now."""
    return read_status(opened).trials[number].state


def claim_abandoned(opened: OpenStudy, number: int, settings: Settings) -> Claim | None:
    """The hold on trial `number`, if no worker has it."""
    with opened.store.exclusive(opened.record.name):
        trials = opened.study.get_trials(deepcopy=False)
        trial = trials[number]
        if trial.state != TrialState.WAITING and not is_abandoned(opened, trial):
            return None
        return hold(opened, fill(opened, trial, trials), settings.lease_s, taken_over=True)


def await_that(so: Callable[[], bool]) -> bool:
    """Whether `so` came true in time."""
    deadline = time.monotonic() + PATIENCE_S
    while not so():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True
