"""Figures: arrays in, a matplotlib Figure out; here, what all of them share, and how a figure becomes pixels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

DPI = 100
INK, FAINT, PAPER, DARK, LIGHT = "#1f2430", "#8b93a1", "#ffffff", "#101318", "#e8eaee"
BLUE, ORANGE = "#0072b2", "#d55e00"  # Okabe and Ito's, told apart by everyone
UNSEEN = 6  # of 255: two colours that differ by less in each channel look alike
SHADES = 64  # of a scan's greys: the eye hardly sees more, and the PNG of a study is uploaded many times

PLANES = (("sagittal", "x", "A", "P"), ("coronal", "y", "R", "L"), ("axial", "z", "R", "L"))  # name, axis, left, right

STYLE: dict[str, Any] = {
    "figure.dpi": DPI,
    "figure.facecolor": PAPER,
    "figure.constrained_layout.h_pad": 0.12,
    "figure.constrained_layout.w_pad": 0.12,
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same pixels on every machine
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": "#c3c8d0",
    "axes.labelcolor": INK,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e9ebef",
    "xtick.color": "#c3c8d0",
    "ytick.color": "#c3c8d0",
    "xtick.labelcolor": "#4d5563",
    "ytick.labelcolor": "#4d5563",
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "lines.linewidth": 1.8,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "legend.fontsize": 10,
}


@contextmanager
def styled() -> Iterator[None]:
    """Our look, on matplotlib's own defaults: what the user's matplotlibrc says is left out and put back."""
    from matplotlib import style  # here, as below: training imports this package and need not wait for matplotlib

    with style.context(["default", STYLE]):
        yield


def blank(width: int, height: int) -> Figure:
    """An empty figure of `width` x `height` pixels, without pyplot, so that nothing is left behind or displayed."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / DPI, height / DPI), layout="constrained")


def render(figure: Figure) -> NDArray[np.uint8]:
    """The figure's pixels, (height, width, 3): bytes, since W&B no longer scales pictures and shows floats as black."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with styled():  # some settings, such as the fonts, are only looked up when drawing
        canvas = FigureCanvasAgg(figure)
        canvas.draw()  # type: ignore[no-untyped-call]
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]


def save(figure: Figure, path: Path) -> None:
    """Write the figure to `path` as PNG, whole or not at all; equal figures give equal bytes."""
    partial = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        reduced(render(figure)).save(partial, "png", dpi=(DPI, DPI))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def reduced(pixels: NDArray[np.uint8]) -> Image:
    """`pixels` in 256 colours, half the bytes of a file, where nobody would see it; else as they are."""
    from PIL import Image

    picture = Image.fromarray(pixels)
    few = picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    off = np.abs(np.asarray(few.convert("RGB"), np.int16) - pixels).max()
    return few if off <= UNSEEN else picture


def checked(name: str, values: Any, axes: int) -> NDArray[np.float64]:
    """`values` as floats, after checking that they are finite and have `axes` axes."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != axes or array.size == 0:
        raise ValueError(f"{name} must have {axes} axes and not be empty, not the shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: {np.count_nonzero(~np.isfinite(array))} of {array.size} values are not finite")
    return array


def grey_window(scan: NDArray[np.float64]) -> tuple[float, float]:
    """What is black and what is white in a scan: its 0.5 and 99.5 %, never the same."""
    low, high = np.percentile(scan, (0.5, 99.5))
    return float(low), float(high if high > low else low + 1)


def mid_slices(volume: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Middle sagittal, coronal and axial slice: superior (axial: anterior) up; right, or front, on the left."""
    x, y, z = (size // 2 for size in volume.shape)
    return [plane.T[::-1, ::-1] for plane in (volume[x], volume[:, y], volume[:, :, z])]


def spread(tokens: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """What is known of tokens (x, y, z) at each voxel of a scan of `shape` (X, Y, Z): each is a block of voxels."""
    if (
        tokens.ndim != 3
        or len(shape) != 3
        or any(side % count for side, count in zip(shape, tokens.shape, strict=True))
    ):
        raise ValueError(f"tokens of the shape {tokens.shape} are no whole blocks of a scan of {shape}")
    for axis, side in enumerate(shape):
        tokens = tokens.repeat(side // tokens.shape[axis], axis)
    return tokens


def name_slices(shape: tuple[int, ...]) -> list[str]:
    """What is written above each of `mid_slices` of a volume: its plane, its place, and which side is on the left."""
    named = zip(PLANES, shape, strict=True)
    return [f"{left}   {name}, {axis} = {side // 2}   {right}" for (name, axis, left, right), side in named]


def check_map(name: str, count: int, height: int, width: int) -> None:
    """Refuse a map of other than `count` nodes."""
    if height < 1 or width < 1 or count != height * width:
        raise ValueError(f"a {height} x {width} map has {height * width} nodes, not {count} ({name})")
