"""The codebook as pictures: its grid, and who uses it.

Node k of a map of height x width lies at row k // width, column k % width; row 0 is at the top.
"""

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike, NDArray

from somvq.figures import BLUE, FAINT, ORANGE, blank, check_map, checked, styled

Numbers = NDArray[np.float64]
UNUSED = "#d9dce2"
COUNTS = FuncFormatter(lambda count, _: f"{count:,.0f}")


def draw_grid(codes: ArrayLike, height: int, width: int) -> Figure:
    """The paper's picture of a map: at each node, the sum of its code (K, C) over the channels."""
    vectors = checked("codes", codes, axes=2)
    check_map("codes", len(vectors), height, width)
    with styled():
        figure, axes = map_axes(height, width, f"Codes of the {height} × {width} map")
        picture = axes.imshow(vectors.sum(axis=1).reshape(height, width), cmap="viridis", interpolation="nearest")
        colour_bar(axes, picture, f"sum over {vectors.shape[1]} channels")
    return figure


def draw_hits(hits: ArrayLike, height: int, width: int) -> Figure:
    """How many tokens each node won, (K,), on a log scale; a node that won none is grey with a cross."""
    counts = _counts(hits)
    check_map("hits", len(counts), height, width)
    grid = np.ma.masked_equal(counts.reshape(height, width), 0)
    with styled():
        title = f"Tokens won: {np.count_nonzero(counts)} of {len(counts)} nodes used"
        figure, axes = map_axes(height, width, title)
        scale, palette = (
            LogNorm(1, max(counts.max(), 10)),
            colormaps["viridis"].with_extremes(bad=UNUSED),
        )
        picture = axes.imshow(grid, cmap=palette, norm=scale, interpolation="nearest")
        rows, columns = np.divmod(np.flatnonzero(counts == 0), width)
        axes.scatter(columns, rows, marker="x", s=(160 / max(height, width)) ** 2, color=FAINT, linewidth=1.3)
        colour_bar(axes, picture, "tokens; × = none", COUNTS)
    return figure


def draw_usage(hits: ArrayLike) -> Figure:
    """Each node's share of the tokens, most used first, against the level at which all would be used alike."""
    counts = _counts(hits)
    share = np.sort(counts / max(counts.sum(), 1))[::-1]
    with styled():
        figure = blank(900, 480)
        axes = figure.add_subplot()
        axes.stairs(share, fill=True, color=BLUE, linewidth=0)
        axes.axhline(1 / len(share), color=ORANGE, linestyle="--", label=f"all alike: {1 / len(share):.2%}")
        axes.set(xlim=(0, len(share)), ylim=(0, max(share.max(), 1 / len(share)) * 1.08))
        axes.set(xlabel="nodes, most used first", ylabel="share of tokens")
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        used = np.count_nonzero(counts)
        axes.set_title(f"{used} of {len(share)} nodes used, perplexity {_perplexity(share):.1f}")
        axes.grid(visible=False, axis="x")
        axes.legend(loc="upper right")
    return figure


def label_map(axes: Axes, most: int) -> None:
    """At most `most` ticks, at whole rows and columns; no grid and no frame."""
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.xaxis.set_major_locator(MaxNLocator(most, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(most, integer=True, min_n_ticks=1))


def map_axes(height: int, width: int, title: str) -> tuple[Figure, Axes]:
    """A figure with one map on it, and its axes."""
    figure = blank(800, int(np.clip(110 + 590 * height / width, 300, 680)))
    axes = figure.add_subplot()
    label_map(axes, most=8)
    axes.set(xlabel="column", ylabel="row", aspect="equal")
    figure.suptitle(title, x=0.015, ha="left", fontsize=12, fontweight="bold")  # not the axes': a map may be narrow
    return figure, axes


def colour_bar(axes: Axes, picture: AxesImage, label: str, numbers: FuncFormatter | None = None) -> None:
    """What the colours of `picture` mean, to its right."""
    figure = axes.figure
    bar = figure.colorbar(picture, ax=axes, label=label, format=numbers, fraction=0.05, pad=0.02, panchor=False)
    bar.outline.set_visible(False)
    bar.ax.grid(visible=False)


def _counts(hits: ArrayLike) -> Numbers:
    """`hits` after checking that none is negative."""
    counts = checked("hits", hits, axes=1)
    if counts.min() < 0:
        raise ValueError(f"hits must not be negative: node {counts.argmin()} has {counts.min():g}")
    return counts


def _perplexity(share: Numbers) -> float:
    """How many nodes, used alike, would be as varied as these: exp of the entropy."""
    positive = share[share > 0]
    return float(np.exp(-(positive * np.log(positive)).sum())) if positive.size else 0.0
