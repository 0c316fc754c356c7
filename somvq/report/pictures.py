"""The figures of runs, made small enough for fifty runs in one file."""

import base64
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from somvq.processes import usable_cores
from somvq.report.entries import Entry, by_turns
from somvq.tracking.contents import BRAIN_PICTURES

KINDS = {  # the order in which they are shown, and what they are called
    "tsne": "t-SNE of tokens and codes",
    "codebook_grid": "Codebook grid",
    "umatrix": "U-matrix",
    "planes": "Principal components",
    "hits": "Tokens per node",
    "usage": "Use of the codebook",
    "reconstruction": "Reconstruction",
    "projection": "Nodes on the brain",
    "decoded_nodes": "Decoded nodes",
}
LARGE, SMALL = 640, 320  # pixels wide: of the best few, and of the others
BEST = 6
MOST_RUNS = 50
BUDGET = 4_000_000  # bytes in all, before base64
QUALITY, EFFORT = 60, 2  # WEBP's; more effort takes twice the time for a file 5% smaller


@dataclass(frozen=True)
class Picture:
    """One figure of one run."""

    entry: Entry
    kind: str
    epoch: int
    width: int
    height: int
    data: bytes

    @property
    def title(self) -> str:
        """What it shows."""
        return KINDS[self.kind]

    @property
    def source(self) -> str:
        """As an address that holds the picture itself."""
        return f"data:image/webp;base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True)
class Gallery:
    """All pictures of a report, the best run's first, and what is not among them."""

    pictures: tuple[Picture, ...]
    left_out: tuple[str, ...]

    @property
    def kinds(self) -> dict[str, str]:
        """Those that there are, with their names."""
        there = {picture.kind for picture in self.pictures}
        return {kind: title for kind, title in KINDS.items() if kind in there}

    @property
    def entries(self) -> list[Entry]:
        """The trials that have pictures, best first."""
        return list({picture.entry.label: picture.entry for picture in self.pictures}.values())


def draw_gallery(entries: Sequence[Entry], *, brain_images: bool, on_step: Callable[[str, int, int], None]) -> Gallery:
    """The last figures of the best runs, whatever else their folders hold."""
    trained = [entry for entry in entries if entry.trial.same_as is None and newest_figures(entry)]
    shown, notes = by_turns(trained)[:MOST_RUNS], []
    if len(trained) > MOST_RUNS:
        notes.append(f"Figures of the best {MOST_RUNS} runs of {len(trained)} are shown.")
    jobs = [
        (entry, kind, path, LARGE if rank < BEST else SMALL)
        for rank, entry in enumerate(shown)
        for kind, path in newest_figures(entry).items()
        if brain_images or kind not in BRAIN_PICTURES
    ]
    pictures: list[Picture] = []
    damaged = 0
    with ThreadPoolExecutor(usable_cores()) as threads:
        for done, picture in enumerate(threads.map(lambda job: shrink(*job), jobs), 1):
            on_step("figures", done, len(jobs))
            pictures += [picture] if picture else []
            damaged += picture is None
    if damaged:
        notes.append(f"{damaged} figure{'s' if damaged > 1 else ''} could not be read.")
    kept = within_budget(pictures)
    if len(kept) < len(pictures):
        notes.append(f"{len(pictures) - len(kept)} figures of the last runs are left out, to keep the file small.")
    return Gallery(tuple(sorted(kept, key=lambda picture: trained.index(picture.entry))), tuple(notes))


def newest_figures(entry: Entry) -> dict[str, Path]:
    """The figures of the last epoch that has any, by kind, in the order of KINDS; curves are drawn anew."""
    epochs = {int(path.stem[-4:]) for path in entry.run.figures.glob("*_[0-9][0-9][0-9][0-9].png")}
    found = entry.run.figures_of(max(epochs)) if epochs else {}
    return {kind: found[kind] for kind in KINDS if kind in found}


def shrink(entry: Entry, kind: str, path: Path, width: int) -> Picture | None:
    """The figure at `path`, at most `width` pixels wide; none if it is damaged, or was deleted meanwhile."""
    packed = io.BytesIO()
    try:
        with Image.open(path) as figure:
            picture = figure.convert("RGB")
    except (OSError, SyntaxError):  # what Pillow raises for a PNG that is cut off or broken
        return None
    if picture.width > width:
        size = (width, round(picture.height * width / picture.width))
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    picture.save(packed, "WEBP", quality=QUALITY, method=EFFORT, icc_profile=None)
    return Picture(entry, kind, int(path.stem[-4:]), picture.width, picture.height, packed.getvalue())


def within_budget(pictures: Sequence[Picture]) -> list[Picture]:
    """As many as may go into the file, the best runs' first."""
    kept, total = [], 0
    for picture in pictures:
        total += len(picture.data)
        if total > BUDGET:
            break
        kept.append(picture)
    return kept
