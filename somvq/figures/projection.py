"""The map on the brain: each block of voxels in the colour of its token's node (the paper's Figure 1).

Shapes: a scan of X x Y x Z voxels, RAS, has tokens of x x y x z, each a block of the same number of voxels.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from somvq.figures import DARK, LIGHT, blank, checked, grey_window, mid_slices, name_slices, spread, styled
from somvq.figures.codebook import label_map
from somvq.figures.colours import node_colours

Numbers = NDArray[np.float64]
STRENGTH = 0.7  # of a node's colour; the rest is the scan's grey


def draw_projection(
    scan: ArrayLike, brain: ArrayLike, nodes: ArrayLike, height: int, width: int, *, toroidal: bool
) -> Figure:
    """A scan's middle slices, where it is `brain` (X, Y, Z) in the colours of its tokens' nodes (x, y, z); and the map.

    The grey window is the scan's own 0.5 to 99.5 %; voxels are taken to be cubes; right is on the left.
    """
    volume, inside = checked("scan", scan, axes=3), checked("brain", brain, axes=3)
    blocks = spread(np.asarray(nodes), volume.shape)
    palette = node_colours(height, width, toroidal=toroidal) / 255
    if inside.shape != volume.shape or blocks.min() < 0 or blocks.max() >= len(palette):
        raise ValueError(
            f"the scan has the shape {volume.shape}, its brain {inside.shape}; "
            f"the nodes are from {blocks.min()} to {blocks.max()}, the map's from 0 to {len(palette) - 1}"
        )
    low, high = grey_window(volume)
    greys = mid_slices(np.clip((volume - low) / (high - low), 0, 1))
    pictures = [
        blend(grey, palette[node.astype(np.intp)], mask > 0)
        for grey, node, mask in zip(greys, mid_slices(blocks.astype(np.float64)), mid_slices(inside), strict=True)
    ]
    with styled():
        return _lay_out(pictures, volume.shape, palette.reshape(height, width, 3), toroidal)


def blend(grey: Numbers, colours: Numbers, brain: NDArray[np.bool_]) -> Numbers:
    """A slice's greys (a, b) as RGB, tinted with its nodes' `colours` (a, b, 3) where it is brain."""
    tinted = STRENGTH * colours + (1 - STRENGTH) * grey[..., None]
    return np.where(brain[..., None], tinted, grey[..., None])


def _lay_out(pictures: list[Numbers], shape: tuple[int, ...], palette: Numbers, toroidal: bool) -> Figure:
    """Three slices at one scale, and the map's colours as their key."""
    widths = [picture.shape[1] for picture in pictures]
    tallest = max(picture.shape[0] for picture in pictures)
    key_width = sum(widths) / 4
    figure = blank(1000, int(920 * tallest / (sum(widths) + key_width)) + 70)
    figure.set_facecolor(DARK)
    *slices, key = figure.subplots(1, 4, width_ratios=[*widths, key_width])
    for axes, picture, name in zip(slices, pictures, name_slices(shape), strict=True):
        axes.imshow(picture, interpolation="nearest")
        middle = picture.shape[0] / 2
        axes.set_ylim(middle + tallest / 2, middle - tallest / 2)  # the same scale in all
        axes.set_axis_off()
        axes.set_title(name, color=LIGHT, loc="center", fontsize=11, fontweight="normal")
    _draw_key(key, palette, toroidal)
    return figure


def _draw_key(axes: Axes, palette: Numbers, toroidal: bool) -> None:
    """What the colours mean, (height, width, 3)."""
    axes.imshow(palette, interpolation="nearest")
    label_map(axes, most=5)
    axes.tick_params(labelcolor=LIGHT)
    axes.set_title("nodes of the " + ("torus" if toroidal else "map"), color=LIGHT, loc="center", fontsize=11,
                   fontweight="normal")  # fmt: skip
    axes.set_xlabel("column", color=LIGHT)
    axes.set_ylabel("row", color=LIGHT)
