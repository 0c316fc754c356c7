"""A cohort at one look: the mid-slices of its scans on one sheet, for what only eyes find.

A brain that lies the wrong way up, is cropped, still has its skull, is noise, or differs in contrast from the others.
"""

from bisect import bisect
from collections.abc import Iterable
from itertools import starmap
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from numpy.typing import NDArray
from PIL import Image

from somvq.figures import DARK, DPI, LIGHT, SHADES, blank, checked, grey_window, mid_slices, styled

WIDTH, HEIGHT = 1600, 1200  # pixels of a sheet, at most; a great many scans need more height
SMALLEST = 60  # pixels: no slice is drawn less high
MARGIN, HEADER, LABEL, GUTTER, GAP = 16, 36, 17, 14, 2  # pixels: around, above all, above a cell, between cells, slices
TYPE = 8  # points of a label; the header has one more
SIDES = (
    "sagittal: front ← → back, ↑ top",
    "coronal: right ← → left, ↑ top",
    "axial: right ← → left, ↑ front",
)

Greys = NDArray[np.uint8]


class _Cell(NamedTuple):
    """What is left of a scan."""

    label: str
    shape: tuple[int, ...]
    slices: list[Greys]


class _Grid(NamedTuple):
    """Where the cells of a sheet lie, in pixels."""

    columns: int
    rows: int
    sizes: list[tuple[int, int]]  # width and height of a cell's three slices

    @property
    def cell(self) -> tuple[int, int]:
        """Width and height of a cell with its label."""
        widths, heights = zip(*self.sizes, strict=True)
        return sum(widths) + 2 * GAP, LABEL + max(heights)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of all cells."""
        width, height = self.cell
        return self.columns * (width + GUTTER) - GUTTER, self.rows * (height + GUTTER) - GUTTER

    def corner(self, number: int) -> tuple[int, int]:
        """Left and top of a cell on the sheet."""
        row, column = divmod(number, self.columns)
        width, height = self.cell
        return MARGIN + column * (width + GUTTER), HEADER + row * (height + GUTTER)


def draw_montage(scans: Iterable[tuple[str, NDArray[Any]]], *, columns: int | None = None) -> Figure:
    """Labelled scans (X, Y, Z), RAS, z-scores, all of one shape, as a sheet of mid-slices; right is on the left.

    Scans are taken one at a time, and of each only its slices are kept. Greys are each scan's own 0.5 to 99.5 %; voxels
    are taken to be cubes. As many `columns` as make the slices largest, if none are given; the sheet is at most WIDTH x
    HEIGHT pixels where SMALLEST slices let it.

    Raises:
        ValueError: no scans or columns, or a scan that is not finite, has not three axes, or another shape.
    """
    if columns is not None and columns < 1:
        raise ValueError(f"columns must be at least 1, not {columns}")
    cells = list(starmap(_reduced, scans))  # a loop's variable would hold a scan while the next one is read
    if not cells:
        raise ValueError("there are no scans to draw")
    for cell in cells:
        if cell.shape != cells[0].shape:
            raise ValueError(
                f"scan {cells[0].label} has the shape {cells[0].shape}, scan {cell.label} {cell.shape}: "
                "one sheet has one scale"
            )
    with styled():
        return _lay_out(cells, _arranged(len(cells), cells[0].slices, columns))


def _reduced(label: str, scan: NDArray[Any]) -> _Cell:
    """A scan's slices in its own window, as greys."""
    label = " ".join(label.split())
    volume = checked(f"scan {label}", scan, axes=3)
    low, high = grey_window(volume)
    greys = [np.clip((plane - low) / (high - low), 0, 1) * 255 for plane in mid_slices(volume)]
    return _Cell(label, volume.shape, [grey.round().astype(np.uint8) for grey in greys])


def _arranged(count: int, slices: list[Greys], columns: int | None) -> _Grid:
    """The grid on which `count` cells are largest."""
    heights, widths = zip(*(plane.shape for plane in slices), strict=True)
    smallest = min(SMALLEST / min(heights), 2 * SMALLEST / max(heights))  # pixels a voxel; flat scans are no exception

    def scale(columns: int) -> float:
        rows = -(-count // columns)
        across = (WIDTH - 2 * MARGIN + GUTTER) / columns - GUTTER - 2 * GAP
        down = (HEIGHT - HEADER - MARGIN + GUTTER) / rows - GUTTER - LABEL
        return float(min(across / sum(widths), down / max(heights)))

    if columns is None:
        narrowest = smallest * sum(widths) + 2 * GAP + GUTTER
        most = int((WIDTH - 2 * MARGIN + GUTTER) / narrowest)
        columns = max(range(1, max(min(most, count), 1) + 1), key=scale)
    columns = min(columns, count)
    voxel = max(scale(columns), smallest)
    sizes = [(_pixels(w * voxel), _pixels(h * voxel)) for w, h in zip(widths, heights, strict=True)]
    return _Grid(columns, -(-count // columns), sizes)


def _pixels(length: float) -> int:
    """Whole pixels, at least one; 59.9999999 are 60."""
    return max(int(length + 1e-6), 1)


def _lay_out(cells: list[_Cell], grid: _Grid) -> Figure:
    """All cells on one dark sheet, pixel for pixel: hundreds of matplotlib's axes would take many seconds."""
    header = "      ".join((f"{len(cells)} scan{'s' * (len(cells) > 1)}", *SIDES))
    width = 2 * MARGIN + max(grid.size[0], _width(header, TYPE + 1))
    height = HEADER + grid.size[1] + MARGIN
    figure = blank(width, height)
    figure.set_layout_engine("none")
    figure.set_facecolor(DARK)
    sheet = np.empty((height, width, 3), np.uint8)
    sheet[:] = np.round(np.multiply(to_rgb(DARK), 255))
    _text(figure, MARGIN, HEADER / 2, header, TYPE + 1)
    for number, cell in enumerate(cells):
        left, top = grid.corner(number)
        _text(figure, left, top + LABEL / 2 - 1, _cut(cell.label, grid.cell[0]), TYPE)
        for plane, (wide, high) in zip(cell.slices, grid.sizes, strict=True):
            sheet[top + LABEL : top + LABEL + high, left : left + wide] = _resized(plane, wide, high)[..., None]
            left += wide + GAP
    figure.figimage(sheet, origin="upper")
    return figure


def _resized(plane: Greys, width: int, height: int) -> Greys:
    """A slice of another size in few shades: blocks where it grows; where it shrinks, no voxel is left out."""
    way = Image.Resampling.NEAREST if width >= plane.shape[1] else Image.Resampling.HAMMING
    greys = np.asarray(Image.fromarray(plane).resize((width, height), way), np.float64)
    return (np.round(greys / 255 * (SHADES - 1)) / (SHADES - 1) * 255).round().astype(np.uint8)


def _cut(words: str, width: int) -> str:
    """As much of `words` as `width` pixels hold, with an ellipsis for what they do not."""
    if _width(words, TYPE) <= width:
        return words
    held = bisect(range(1, len(words)), width, key=lambda length: _width(words[:length] + "…", TYPE))
    return words[:held].rstrip() + "…"


def _width(words: str, points: float) -> int:
    """Pixels from the first letter to the last."""
    pen = RendererAgg(1, 1, DPI)  # type: ignore[no-untyped-call]
    width, *_ = pen.get_text_width_height_descent(words, FontProperties(size=points), False)  # type: ignore[no-untyped-call]
    return int(np.ceil(width))


def _text(figure: Figure, left: float, middle: float, words: str, points: float) -> None:
    """Light words from a pixel on; dollars are dollars."""
    width, height = figure.get_size_inches() * DPI
    look: dict[str, Any] = {"color": LIGHT, "fontsize": points, "va": "center_baseline", "parse_math": False}
    figure.text(left / width, 1 - middle / height, words, **look)
