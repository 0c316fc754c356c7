"""What a study remembers about itself, in Optuna's storage: enough for any worker anywhere to go on with it."""

import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.exceptions import StorageInternalError
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage
from optuna.study import Study
from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError

from somvq.audit import read_audit
from somvq.config import CohortSettings, Frozen, RunConfig, derive_seed
from somvq.definitions import Sweep
from somvq.errors import StudyError
from somvq.runs import Run, RunRecord
from somvq.settings import Settings
from somvq.storages import Store, default_url, open_store
from somvq.study.space import Changes, refuse_another_space
from somvq.study.stops import Limits

ATTRIBUTE, TARGET, LIMITS, CHANGES = "somvq", "somvq_trials", "somvq_limits", "somvq_changes"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class PageName(NamedTuple):
    """A page on W&B: its id, which decides which one it is, and what people read."""

    id: str
    name: str


class StudyRecord(Frozen):
    """A study's own settings. What may change while it lives is kept beside them: its target, its limits."""

    name: str
    uid: str  # tells studies of one name apart, in W&B
    seed: int
    sweep: Sweep
    folder: Path  # of its runs
    scans: Path  # the cohort's folder, as the user named it
    cohort_settings: CohortSettings
    cohort: Path  # prepared from them
    cohort_fingerprint: str
    cohort_summary: str
    wandb_project: str
    wandb_entity: str | None = None

    def run(self, number: int) -> Run:
        """The run of trial `number`."""
        return Run(self.folder / f"{number:04d}")

    def runs(self) -> list[Run]:
        """The runs of all trials."""
        return [Run(config.parent) for config in sorted(self.folder.glob("[0-9]*/config.json"))]

    def run_config(self, number: int, suggested: dict[str, Any]) -> RunConfig:
        """What the run of trial `number` is told."""
        return RunConfig(**{**self.sweep.settings(suggested), "seed": derive_seed(self.seed, number)})

    def page(self, label: str) -> PageName:
        """What the page of `label` is called on W&B, the same for whoever tells it."""
        slug = re.sub(r"[^a-z0-9-]+", "-", self.name.lower()).strip("-")[:40] or "study"
        return PageName(f"{slug}-{self.uid}-{label}", f"{self.name} {label}")

    def run_record(self, config: RunConfig, *, label: str, stages: dict[str, str]) -> RunRecord:
        """What a run's folder says of itself; `label` is t0007, or ae-1a2b3c for a shared auto-encoder."""
        audit, page = read_audit(), self.page(label)
        return RunRecord(
            config=config,
            cohort=self.cohort,
            cohort_fingerprint=self.cohort_fingerprint,
            stages=stages,
            study=self.name,
            name=page.name,
            wandb_id=page.id,
            wandb_project=self.wandb_project,
            wandb_entity=self.wandb_entity,
            versions={package: audit.versions[package] for package in ("somvq", "torch", "optuna", "wandb", "numpy")},
            study_seed=self.seed,
            audit=audit,
        )


class OpenStudy:
    """A study, its record, and the storage that keeps it."""

    def __init__(self, study: Study, store: Store):
        self.study, self.store = study, store
        self.changed: list[str] = []  # in what is searched, by who opened it
        self.over: dict[int, Any] = {}  # what status.py knows of trials that change no more
        self.told: dict[str, Any] = study.user_attrs[ATTRIBUTE]
        try:
            self.record = StudyRecord.model_validate(self.told)
        except ValidationError as error:
            raise StudyError(
                f"study '{study.study_name}' was begun by another version of somvq; finish it with that one"
            ) from error

    def refresh(self) -> int:
        """Searches what the study searches now, should someone have changed it; the trials it should have in all."""
        attributes = self.study.user_attrs
        if attributes[ATTRIBUTE] != self.told:
            self.told = attributes[ATTRIBUTE]
            sweep = StudyRecord.model_validate(self.told).sweep
            self.record = self.record.model_copy(update={"sweep": sweep})
        return int(attributes.get(TARGET, 0))

    @property
    def storage(self) -> BaseStorage:
        """Optuna's own, with its cache."""
        return self.study._storage

    @property
    def target(self) -> int:
        """How many trials the study should have in all."""
        return int(self.study.user_attrs.get(TARGET, 0))

    def aim_for(self, trials: int) -> None:
        """Sets the target; trials that there are cannot be wished away.

        Raises:
            StudyError: a grid has no more combinations.
        """
        combinations = self.record.sweep.combinations()
        if combinations is not None and trials > combinations:
            raise StudyError(f"--trials {trials} is more than the {combinations} combinations of this study's grid")
        trials = max(trials, len(self.study.get_trials(deepcopy=False)))
        if trials != self.target:
            self.study.set_user_attr(TARGET, trials)

    @property
    def limits(self) -> Limits:
        """What the study may use up."""
        return Limits.model_validate(self.study.user_attrs.get(LIMITS, {}))

    def limit(self, given: Mapping[str, float]) -> None:
        """Sets those limits that are given; the others stay, and an infinite one is none."""
        if given:
            both = {**self.limits.model_dump(exclude_none=True), **given}
            self.study.set_user_attr(LIMITS, {name: value for name, value in both.items() if isfinite(value)})

    @property
    def changes(self) -> list[dict[str, Any]]:
        """Each change of what is searched: when, after how many trials, what."""
        return list(self.study.user_attrs.get(CHANGES, []))

    def change(self, sweep: Sweep, what: list[str]) -> None:
        """Searches `sweep` from now on, and remembers what changed; call while nobody else can claim."""
        self.changed = what
        if what:
            trials, now = len(self.study.get_trials(deepcopy=False)), datetime.now(UTC).isoformat(timespec="seconds")
            self.study.set_user_attr(CHANGES, [*self.changes, {"at": now, "trials": trials, "what": what}])
            self.record = self.record.model_copy(update={"sweep": sweep})
            self.study.set_user_attr(ATTRIBUTE, self.record.model_dump(mode="json"))


def study_folder(settings: Settings, name: str) -> Path:
    """Where the study's runs are.

    Raises:
        StudyError: the name cannot be a folder's.
    """
    if not NAME.fullmatch(name):
        raise StudyError(
            f"study name '{name}' must be 1 to 64 letters, digits, '-', '_' or '.', a letter or digit first"
        )
    return settings.runs.resolve() / name


def find_study(settings: Settings, name: str, *, looking: bool = False) -> OpenStudy | None:
    """The study `name`, if there is one; opened quicker for who is only `looking`."""
    folder = study_folder(settings, name)
    if settings.storage is None and not (folder / "study.db").exists():
        return None
    url = settings.storage or default_url(folder)
    if looking:
        with suppress(
            DBAPIError, StorageInternalError
        ):  # its tables are not there yet, or it is no database: opened as a whole, and told
            return find_in(open_store(url, looking=True), settings, name)
    return find_in(open_store(url), settings, name)


def find_in(store: Store, settings: Settings, name: str) -> OpenStudy | None:
    """The study `name` of `store`, if there is one."""
    if name not in optuna.get_all_study_names(store.storage):
        return None
    study = optuna.load_study(study_name=name, storage=store.storage, **idle())
    if ATTRIBUTE not in study.user_attrs:
        return None  # its maker was killed before it said what it is: made again
    opened = OpenStudy(study, store)
    here = study_folder(settings, name)
    if settings.storage is None or not opened.record.folder.is_dir():  # it may have been moved
        opened.record = opened.record.model_copy(update={"folder": here})
    return opened


def load_study(settings: Settings, name: str, *, looking: bool = False) -> OpenStudy:
    """The study `name`; opened quicker for who is only `looking`.

    Raises:
        StudyError: there is none; lists those there are.
    """
    found = find_study(settings, name, looking=looking)
    if found is None:
        known = ", ".join(list_studies(settings)) or "none yet"
        raise StudyError(f"no study '{name}' in {settings.runs} (there: {known}); begin one with somvq sweep NAME")
    if not found.record.folder.is_dir():
        raise StudyError(
            f"study '{name}' has its runs in {found.record.folder}, which is not here; mount it, or --runs"
        )
    return found


def list_studies(settings: Settings) -> list[str]:
    """Names of the studies there are."""
    if settings.storage is not None:
        return sorted(optuna.get_all_study_names(open_store(settings.storage).storage))
    return sorted(path.parent.name for path in settings.runs.glob("*/study.db"))


def create_or_resume(settings: Settings, record: StudyRecord) -> tuple[OpenStudy, bool]:
    """The study that `record` describes, and whether it was there already.

    Raises:
        StudyError: a study of that name searches another space or trains on another cohort.
    """
    record.folder.mkdir(parents=True, exist_ok=True)
    if settings.storage is None and not (record.folder / "study.db").exists():
        refuse_unknown_runs(record)  # before it gets a storage
    store = open_store(settings.storage or default_url(record.folder))
    with store.exclusive(record.name):  # two commands that begin it at once begin one
        found = find_in(store, settings, record.name)
        if found is None:
            return begin_study(store, record), False
        changes = refuse_another_search(found.record, record.sweep, record.seed)
        refuse_another_cohort(found.record, record.cohort_fingerprint, record.cohort_summary)
        found.change(record.sweep, changes.accepted)
    return found, True


def refuse_another_search(had: StudyRecord, sweep: Sweep, seed: int) -> Changes:
    """Trials must come from one search: a space and an aim that let them be compared, decided by the same seed."""
    changes = refuse_another_space(had.name, had.sweep, sweep)
    if had.seed != seed:
        advice = f"Give --seed {had.seed}, or give a new study a name: --study NAME"
        raise StudyError(f"study '{had.name}' was begun with seed {had.seed}, not {seed}. {advice}")
    return changes


def begin_study(store: Store, record: StudyRecord) -> OpenStudy:
    """A new study, or one whose maker was killed before it said what it is."""
    refuse_unknown_runs(record)
    study = optuna.create_study(
        study_name=record.name,
        storage=store.storage,
        directions=[goal.goal for goal in record.sweep.goals],
        load_if_exists=True,
        **idle(),
    )
    study.set_user_attr(ATTRIBUTE, record.model_dump(mode="json"))
    return OpenStudy(study, store)


def refuse_unknown_runs(record: StudyRecord) -> None:
    """Trials of a new study would go on in the folders of another one."""
    if any(record.folder.glob("[0-9]*/config.json")):
        advice = "move it away, or give the new study a name: --study NAME"
        raise StudyError(f"{record.folder} holds runs of a study that its storage does not know; {advice}")


def refuse_another_cohort(record: StudyRecord, fingerprint: str, summary: str) -> None:
    """Trials on different scans cannot be compared."""
    if record.cohort_fingerprint != fingerprint:
        had, has = f"{record.cohort_fingerprint} ({record.cohort_summary})", f"{fingerprint} ({summary})"
        advice = "Give a new study a name: --study NAME"
        raise StudyError(f"study '{record.name}' is on another cohort: {had}, not {has}. {advice}")


def idle() -> dict[str, Any]:
    """A sampler and a pruner that do nothing: ours are asked beside the study (claim.py, trial.py)."""
    return {"sampler": RandomSampler(), "pruner": NopPruner()}


def new_uid() -> str:
    """Six random letters."""
    return secrets.token_hex(3)
