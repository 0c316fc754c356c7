"""Where scans come from, by the names of layouts, in the order in which they are looked for."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from somvq.config import CohortSettings
from somvq.errors import DataError
from somvq.sources import bids, derivatives, folder, freesurfer, manifest, neurite, oasis1, oasis2, oasis3
from somvq.sources.clinical import attach_tables
from somvq.sources.found import Found, ScanFile, counted, some_of
from somvq.sources.layout import Layout
from somvq.sources.names import fault_of, printable, torn_people
from somvq.sources.ratings import select_by_rating
from somvq.sources.walk import names_in

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        manifest.LAYOUT,
        neurite.LAYOUT,
        oasis1.LAYOUT,
        oasis2.LAYOUT,
        freesurfer.LAYOUT,
        oasis3.LAYOUT,
        derivatives.LAYOUT,
        bids.LAYOUT,
        folder.LAYOUT,
    )
}
NAMES_SHOWN = 5  # of what is in a folder without scans


def find_scans(root: Path, settings: CohortSettings) -> Found:
    """The scans at `root`, a folder or a manifest, that `settings` ask for, in order of subject and file.

    Raises:
        DataError: names what is not as it has to be, and what to do.
    """
    layout = layout_of(root, settings)
    found = layout.find(root, settings)
    named = [scan for scan in found.scans if not fault_of(scan.file)]
    left_out = [*map(printable, found.left_out), *badly_named(found.scans)]
    scans: Sequence[ScanFile] = sorted(named, key=lambda scan: (scan.subject, scan.file))
    if not scans:
        raise DataError(nothing_found(root, layout, left_out))
    scans, of_tables = attach_tables(scans, root, settings.table)
    notes = [*map(printable, found.notes), *of_tables]
    if settings.cdr is not None:
        scans, note = select_by_rating(scans, settings.cdr, settings.include_blank_cdr)
        notes.append(note)
    if layout is not manifest.LAYOUT or settings.take == "subject":  # who lists sessions twice wants both
        scans, passed_over = take(scans, settings)
        notes += passed_over
    notes += note_on_visits(scans, layout)
    return replace(found, scans=tuple(scans), left_out=tuple(left_out), notes=tuple(notes))


def badly_named(scans: Sequence[ScanFile]) -> list[str]:
    """A line for each of `scans` that no index can hold."""
    return [f"{scan.file!a}: {fault}; rename it" for scan in scans if (fault := fault_of(scan.file))]


def note_on_visits(scans: Sequence[ScanFile], layout: Layout) -> list[str]:
    """A note where subjects look like visits of fewer people, who may then be in two splits."""
    torn = torn_people(scan.subject for scan in scans)
    if not torn:
        return []
    names = [name for those in torn for name in those]
    like = f"{len(names)} subjects have names that look like visits of {counted(len(torn), 'person', 'people')}"
    advice = "give each one subject_id" if layout is manifest.LAYOUT else "give subject_id in a manifest"
    return [f"{like} ({some_of(names, 2)}): one person may be in two splits; {advice}"]


def layout_of(root: Path, settings: CohortSettings) -> Layout:
    """The layout that is asked for, else the first that recognises `root`.

    Raises:
        DataError: there is nothing at `root`, or something of another layout.
    """
    if not os.path.exists(root):
        raise DataError(f"cohort {root} does not exist; give a folder of T1 volumes or a manifest")
    looks_like = next((layout for layout in LAYOUTS.values() if fits(layout, root)), None)
    if looks_like is None:
        raise DataError(f"cohort {root} is not a folder; give a folder of T1 volumes or a manifest (.csv, .tsv, .xlsx)")
    layout = LAYOUTS[settings.layout] if settings.layout else looks_like
    if not fits(layout, root):
        raise DataError(
            f"cohort {root} is not of layout {layout.name} ({layout.looks_for}); it looks like layout "
            f"{looks_like.name} ({looks_like.looks_for}): give --layout {looks_like.name}, or none"
        )
    if settings.space and layout is not derivatives.LAYOUT:
        raise DataError(f"--space {settings.space} chooses among derivatives, and {root} is of layout {layout.name}")
    return layout


def fits(layout: Layout, root: Path) -> bool:
    """Whether `root` is of `layout`; of those of a file there is one."""
    return (layout is manifest.LAYOUT or os.path.isdir(root)) and layout.recognise(root)


def nothing_found(root: Path, layout: Layout, left_out: Sequence[str]) -> str:
    """What was looked for, and what there is instead."""
    if left_out:
        more = f" (and {len(left_out) - 1} more)" if left_out[1:] else ""
        return f"cohort {root} holds no whole scan of layout {layout.name}: {left_out[0]}{more}"
    names = names_in(root)
    more = f" and {len(names) - NAMES_SHOWN} more" if names[NAMES_SHOWN:] else ""
    there_is = ", ".join(names[:NAMES_SHOWN]) + more if names else "nothing"
    return f"cohort {root} holds no T1 volume; put there {layout.looks_for}; there is {there_is}"


def take(scans: Sequence[ScanFile], settings: CohortSettings) -> tuple[Sequence[ScanFile], list[str]]:
    """Of sorted `scans` the first of each session or subject, or every one; a note on those passed over."""
    if settings.take == "every":
        return scans, []
    first: dict[tuple[str, str], ScanFile] = {}
    for scan in scans:
        first.setdefault((scan.subject, scan.session if settings.take == "session" else ""), scan)
    passed_over = len(scans) - len(first)
    if not passed_over:
        return scans, []
    if passed_over == 1:
        return list(first.values()), [f"1 more scan of a {settings.take} is passed over: --take every keeps it"]
    what = f"{passed_over} more scans of the same {settings.take}s are passed over: --take every keeps them"
    return list(first.values()), [what]
