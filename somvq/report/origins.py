"""What made a study, and what to type to make it again."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from somvq.errors import RunError
from somvq.report.entries import Entry, Member
from somvq.runs import RunRecord

MOST_COMMANDS = 8


@dataclass(frozen=True)
class Origin:
    """How one study came to be."""

    member: Member
    commands: tuple[str, ...]  # as typed, without places
    code: tuple[str, ...]  # commits, and whether they had been changed
    versions: dict[str, str]
    devices: tuple[str, ...]
    best: Entry | None
    best_seed: int | None
    changes: tuple[str, ...]  # of what is searched, while it was


def trace(member: Member, entries: Sequence[Entry], best: Entry | None) -> Origin:
    """What the runs of `member` say of how they were begun."""
    records = {entry.label: record for entry in entries if entry.study == member.name for record in read(entry)}
    audits = [record.audit for record in records.values() if record.audit]
    commands = Counter(member.censor.clean_command(audit.command) for audit in audits)
    versions = {name: version for audit in audits[:1] for name, version in audit.versions.items()}
    changes = (f"{change['at']}, after {change['trials']} trials: {', '.join(change['what'])}"
               for change in member.status.changes)  # fmt: skip
    own = records.get(best.label) if best else None
    return Origin(
        member=member,
        commands=tuple(command for command, _ in commands.most_common(MOST_COMMANDS)),
        code=tuple(dict.fromkeys(code_of(records.values()))),
        versions={("all packages, hashed" if name == "all" else name): text for name, text in versions.items() if text},
        devices=tuple(dict.fromkeys(device.name for record in records.values() for device in record.devices)),
        best=best,
        best_seed=own.config.seed if own else None,
        changes=tuple(member.censor.clean(change) for change in changes),
    )


def read(entry: Entry) -> list[RunRecord]:
    """What the run was told, if its folder still says so."""
    try:
        return [entry.run.record]
    except RunError:
        return []


def code_of(records: Iterable[RunRecord]) -> list[str]:
    """The commits of somvq that the runs were trained by."""
    found = []
    for record in records:
        source = record.audit.git.get("source") if record.audit else None
        if source:
            changed = " with uncommitted changes (source.patch in its runs' folders)" if source.dirty else ""
            found.append(f"{source.sha[:12]}{changed}")
    return found
