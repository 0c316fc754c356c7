"""What the codes of a map are like: how far neighbours are apart (U-matrix), and their principal components.

Shapes: K codes of C channels, node k of a map of height x width at row k // width, column k % width.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from somvq.figures import blank, check_map, checked, styled
from somvq.figures.codebook import colour_bar, label_map, map_axes

Numbers = NDArray[np.float64]
MOST_PLANES = 8
ACROSS = 4  # planes in a line
LEFT, TOP, BOTTOM, STEP = 48, 46, 46, 64  # pixels: beside, above and below all planes; between two of a column
MOST_WIDE, MOST_HIGH, GAP = 178, 400, 36  # pixels of a plane; between two in a line


def neighbour_distances(codes: ArrayLike, height: int, width: int, *, toroidal: bool) -> Numbers:
    """Mean distance of each node's code (K, C) to those of its up to four neighbours, (height, width); Ultsch 1990."""
    vectors = checked("codes", codes, axes=2)
    check_map("codes", len(vectors), height, width)
    grid = vectors.reshape(height, width, -1)
    total, neighbours = np.zeros((height, width)), np.zeros((height, width))
    for axis, length in enumerate((height, width)):
        has_next = np.ones((height, width))
        if not toroidal or length < 3:  # on a torus two nodes wide, left and right are one neighbour
            np.moveaxis(has_next, axis, 0)[-1] = 0
        apart = np.linalg.norm(np.roll(grid, -1, axis) - grid, axis=-1) * has_next
        total += apart + np.roll(apart, 1, axis)
        neighbours += has_next + np.roll(has_next, 1, axis)
    return total / np.maximum(neighbours, 1)


def principal_planes(codes: ArrayLike, most: int = MOST_PLANES) -> tuple[Numbers, Numbers]:
    """The codes' (K, C) scores on their first principal components, (P, K), and each one's share of the variance, (P,).

    A component's sign means nothing: here its largest score is positive.
    """
    vectors = checked("codes", codes, axes=2)
    left, singular, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    variance = np.square(singular)
    real = singular > 1e-9 * max(np.abs(vectors).max(), 1e-300) * len(vectors)  # codes all alike have none
    if not real.any():
        return np.zeros((1, len(vectors))), np.zeros(1)
    count = int(real[:most].sum())
    scores = (left * singular)[:, :count].T
    largest = np.take_along_axis(scores, np.abs(scores).argmax(axis=1, keepdims=True), axis=1)
    return scores * np.where(largest < 0, -1.0, 1.0), variance[:count] / variance.sum()


def draw_umatrix(codes: ArrayLike, height: int, width: int, *, toroidal: bool) -> Figure:
    """How far each node's code (K, C) is from its neighbours': valleys are clusters of codes, ridges part them."""
    distances = neighbour_distances(codes, height, width, toroidal=toroidal)
    with styled():
        figure, axes = map_axes(height, width, f"U-matrix of the {_name(height, width, toroidal)}")
        picture = axes.imshow(distances, cmap="cividis", interpolation="nearest")
        colour_bar(axes, picture, "mean distance to neighbours")
    return figure


def draw_planes(codes: ArrayLike, height: int, width: int, *, toroidal: bool) -> Figure:
    """The codes' (K, C) first principal components on the map, at most 8, each on a scale of its own about 0."""
    check_map("codes", len(np.asarray(codes)), height, width)
    scores, share = principal_planes(codes)
    high, wide = _size(height, width)
    lines = -(-len(scores) // ACROSS)
    with styled():
        tall = lines * (high + STEP) + TOP + BOTTOM
        figure = blank(900, tall)
        figure.set_layout_engine("none")  # matplotlib would take half a second to fit eight axes
        for number, plane in enumerate(scores):
            line, place = divmod(number, ACROSS)
            left = LEFT + place * (MOST_WIDE + GAP) + (MOST_WIDE - wide) / 2
            bottom = BOTTOM + (lines - line - 1) * (high + STEP) + STEP / 2
            axes = figure.add_axes((left / 900, bottom / tall, wide / 900, high / tall))
            _draw_plane(axes, plane.reshape(height, width), f"PC {number + 1}: {share[number]:.0%}")
            if number:
                axes.set(xticks=[], yticks=[])  # as the first one's
        title = f"Principal components of the codes of the {_name(height, width, toroidal)}, and their variance"
        figure.suptitle(title, x=0.015, y=1 - 14 / tall, ha="left", va="top", fontsize=12, fontweight="bold")
        below = f"blue below, red above the mean code; {share.sum():.0%} of the variance"
        figure.text(0.5, 16 / tall, below, ha="center", fontsize=11)
    return figure


def _size(height: int, width: int) -> tuple[int, int]:
    """Pixels of a plane, down and across, at one scale for both but on maps that are next to lines."""
    scale = min(MOST_WIDE / width, MOST_HIGH / height)
    return max(round(height * scale), 12), max(round(width * scale), 12)


def _name(height: int, width: int, toroidal: bool) -> str:
    """What a map is called."""
    return f"{height} × {width} {'torus' if toroidal else 'map'}"


def _draw_plane(axes: Axes, plane: Numbers, title: str) -> None:
    """One component on the map, blue below 0 and red above."""
    reach = max(float(np.abs(plane).max()), 1e-12)
    axes.imshow(plane, cmap="RdBu_r", vmin=-reach, vmax=reach, interpolation="nearest", aspect="auto")
    label_map(axes, most=5)
    axes.set_title(title, fontsize=11, fontweight="normal")
