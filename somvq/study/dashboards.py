"""A study as its page on W&B is told of it: what is searched, its best run, and what made it; no place, no person."""

from somvq.errors import StudyError
from somvq.runs import Run
from somvq.study.record import OpenStudy
from somvq.study.status import read_status
from somvq.tracking.dashboard import Subject
from somvq.tracking.wandb import Tracked


def find_subject(opened: OpenStudy) -> Subject:
    """The study `opened`, for tracking/dashboard.py.

    Raises:
        StudyError: W&B has none of its runs, so that its page would be empty, or its project not there.
    """
    record = opened.record
    on_wandb = [run for run in record.runs() if Tracked.read(run).mode == "online"]
    if not on_wandb:
        raise StudyError(
            f"nothing of study '{record.name}' is on W&B yet; send it: somvq push {record.name}; "
            f"or look at it here: somvq dashboard --local {record.name}"
        )
    there = {run.folder.name: run for run in on_wandb}
    best = next((run for trial in read_status(opened).ranked() if (run := there.get(f"{trial.number:04d}"))), None)
    return Subject(
        name=record.name,
        uid=record.uid,
        sweep=record.sweep,
        cohort=record.cohort_fingerprint,
        made_by=describe_maker(best or on_wandb[-1]),
        project=record.wandb_project,
        entity=record.wandb_entity,
        best=best.record.wandb_id if best else None,
    )


def describe_maker(run: Run) -> str:
    """Which somvq made `run`."""
    told = [f"somvq {run.record.versions.get('somvq', '')}".strip()]
    source = run.record.audit.git.get("source") if run.record.audit else None
    if source:
        told.append(f"commit {source.sha[:10]}{' and changes' if source.dirty else ''}")
    return ", ".join(told)
