"""What the trials of a study share: an auto-encoder trained once, by whoever needs it first."""

from somvq.config import RunConfig, signature
from somvq.runs import Run
from somvq.study.lease import Lease, is_alive
from somvq.study.record import OpenStudy, StudyRecord


def stage_runs(record: StudyRecord, config: RunConfig) -> dict[str, Run]:
    """The runs of the auto-encoders that trials like `config` start from, "ae" or "vae"."""
    return {kind: stage_run(record, kind, stage) for kind, stage in config.stages(record.seed).items()}


def stage_run(record: StudyRecord, kind: str, config: RunConfig) -> Run:
    """The run of one shared auto-encoder; named by all that decides its weights."""
    key = signature([config.model_dump(mode="json"), record.cohort_fingerprint])
    told = record.run_record(config, label=f"{kind}-{key[:6]}", stages={})
    return Run.create(record.folder / "stages" / f"{kind}-{key}", told)


def take_stage(opened: OpenStudy, stage: Run, lease_s: float) -> Lease | None:
    """The hold on `stage`, if it is still to be trained and nobody alive trains it."""
    if is_alive(stage.folder):
        return None
    with opened.store.exclusive(opened.record.name):
        if stage.progress().state == "complete" or is_alive(stage.folder):
            return None
        return Lease.take(stage.folder, lease_s)
