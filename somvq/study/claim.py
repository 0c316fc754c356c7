"""Who trains what: trials are taken one at a time, by whoever has the claim of the study, and held by a lease.

A trial whose worker died stays RUNNING in Optuna and is taken over by the next worker that looks: the same trial, the
same folder, from its checkpoint. So a study's trials are numbered without gaps, and their count is its budget.

A trial that is suggested the settings of an earlier one is not trained: others are suggested instead, and where there
are none (a small space), it takes the earlier one's values as soon as that has ended.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from somvq.config import derive_seed
from somvq.runs import Run
from somvq.study.lease import LEASE_S, Lease, is_alive
from somvq.study.record import OpenStudy
from somvq.study.samplers import build_sampler
from somvq.study.space import distributions, find_twin

ASKS = 10  # for settings that no other trial has
SAME_AS = "same_as"  # user attribute: the number of the trial whose settings these are
OUT_OF_MEMORY = "memory"  # a constraint that is violated: the sampler keeps away from what does not fit
REASON = "reason"  # user attribute: why a trial ended as it did


@dataclass(frozen=True)
class Claim:
    """A trial that this worker holds."""

    trial: FrozenTrial
    run: Run
    lease: Lease
    taken_over: bool


def claim_trial(opened: OpenStudy, lease_s: float = LEASE_S) -> Claim | None:
    """A trial to train: one whose worker died, else a new one; none when the study has all its trials."""
    with opened.store.exclusive(opened.record.name):
        target = opened.refresh()
        while True:
            trials = opened.study.get_trials(deepcopy=False)
            if settle_twins(opened, trials):
                continue
            for trial in trials:
                if trial.state == TrialState.WAITING or is_abandoned(opened, trial):
                    filled = fill(opened, trial, trials)
                    return hold(opened, filled, lease_s, taken_over=trial.state == TrialState.RUNNING)
            if len(trials) >= target:
                return None
            asked = ask(opened, trials)
            if SAME_AS not in asked.user_attrs:
                return hold(opened, asked, lease_s, taken_over=False)


def is_abandoned(opened: OpenStudy, trial: FrozenTrial) -> bool:
    """Whether nobody trains `trial`, which has begun and is not over.

    Its state is read again after its lease: a worker that has just told its end lets go of the lease next.
    """
    if trial.state != TrialState.RUNNING or trial.user_attrs.get(SAME_AS) is not None:
        return False
    if is_alive(opened.record.run(trial.number).folder):
        return False
    return opened.storage.get_trial(trial._trial_id).state == TrialState.RUNNING


def hold(opened: OpenStudy, trial: FrozenTrial, lease_s: float, *, taken_over: bool) -> Claim:
    """Takes the lease of `trial`'s run."""
    run = opened.record.run(trial.number)
    run.folder.mkdir(parents=True, exist_ok=True)
    return Claim(trial, run, Lease.take(run.folder, lease_s), taken_over)


def fill(opened: OpenStudy, trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> FrozenTrial:
    """`trial` begun, with all its settings: one that a user queued by Optuna's enqueue_trial may lack some."""
    space, queued = distributions(opened.record.sweep), trial.system_attrs.get("fixed_params", {})
    lacking = {name: kind for name, kind in space.items() if name not in trial.params}
    if lacking:
        told = {**suggest(opened, space, trials, again=0), **queued}
        for name, kind in lacking.items():
            opened.storage.set_trial_param(trial._trial_id, name, kind.to_internal_repr(told[name]), kind)
    if trial.state == TrialState.WAITING:
        opened.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
    return opened.storage.get_trial(trial._trial_id) if lacking or trial.state == TrialState.WAITING else trial


def ask(opened: OpenStudy, trials: Sequence[FrozenTrial]) -> FrozenTrial:
    """A new trial: written with all its settings at once, so that a kill leaves none half-made."""
    record, space = opened.record, distributions(opened.record.sweep)
    params, twin = suggest(opened, space, trials, again=0), None
    for again in range(1, ASKS + 1):
        twin = find_twin(record.sweep, params, trials) if space else None  # without any choice, trials are repeats
        if twin is None or again == ASKS:
            break
        params = suggest(opened, space, trials, again=again)
    same = {} if twin is None else {SAME_AS: twin.number}
    asked = create_trial(state=TrialState.RUNNING, params=params, distributions=space, user_attrs=same)
    asked._trial_id = opened.storage.create_new_trial(opened.study._study_id, asked)
    asked.number = opened.storage.get_trial_number_from_id(asked._trial_id)
    return asked


def suggest(
    opened: OpenStudy, space: dict[str, BaseDistribution], trials: Sequence[FrozenTrial], *, again: int
) -> dict[str, Any]:
    """What the sweep's method suggests for the next trial; decided by the study's seed and what has ended so far."""
    record = opened.record
    asked = ("ask", len(trials), again) if again else ("ask", len(trials))
    sampler = build_sampler(record.sweep, derive_seed(record.seed, *asked))
    study = Snapshot(opened.study, trials)
    to_come = create_trial(state=TrialState.RUNNING)
    to_come.number = len(trials)
    params = sampler.sample_relative(study, to_come, sampler.infer_relative_search_space(study, to_come))
    for name, distribution in space.items():
        if name not in params:
            params[name] = sampler.sample_independent(study, to_come, name, distribution)
    return params


class Snapshot(Study):
    """A study as it was when its trials were read: its sampler would read them again, some of them twice."""

    def __init__(self, study: Study, trials: Sequence[FrozenTrial]):
        self.__dict__.update(study.__dict__)
        self.seen = trials

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        """Those in any of `states`, as Study's; nobody changes them."""
        return [trial for trial in self.seen if states is None or trial.state in states]


def settle_twins(opened: OpenStudy, trials: Sequence[FrozenTrial]) -> bool:
    """Gives trials with the settings of another what that one came to, where it has ended; whether there was any."""
    settled = False
    for trial in trials:
        number = trial.user_attrs.get(SAME_AS)
        if number is None or trial.state != TrialState.RUNNING or not trials[number].state.is_finished():
            continue
        settled = True
        if trials[number].state == TrialState.FAIL:
            opened.storage.set_trial_user_attr(trial._trial_id, SAME_AS, None)  # to be tried itself
        else:
            take_values(opened, trial, trials[number])
    return settled


def take_values(opened: OpenStudy, trial: FrozenTrial, twin: FrozenTrial) -> None:
    """Ends `trial` as `twin` ended."""
    live = Trial(opened.study, trial._trial_id)
    for name, value in twin.constraints.items():
        if name not in trial.constraints:
            live.set_constraint(name, value)
    live.set_user_attr(REASON, f"the same settings as trial {twin.number}, so not trained again")
    values = twin.values if twin.state == TrialState.COMPLETE else None
    opened.study.tell(trial.number, values, state=twin.state, skip_if_finished=True)
