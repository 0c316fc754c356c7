"""What nodes decode to, laid out as on the map."""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from somvq.figures import blank, checked, grey_window, styled
from somvq.figures.codebook import label_map
from somvq.figures.colours import node_colours

MOST = 8  # rows and columns of the map that are shown
BLANK = 245  # grey of a node that is not used
MAGNIFIED, FRAME, GAP = 4, 6, 4  # pixels: of a voxel, around a block, between blocks


def pick_nodes(height: int, width: int) -> NDArray[np.intp]:
    """Up to 8 x 8 nodes, evenly over the map."""
    rows, columns = (np.arange(min(side, MOST)) * side // min(side, MOST) for side in (height, width))
    return (rows[:, None] * width + columns).ravel()


def draw_decoded(blocks: ArrayLike, hits: ArrayLike, height: int, width: int, *, toroidal: bool) -> Figure:
    """The middle axial slice of the block (N, a, b, c), RAS, that each node of `pick_nodes` decodes to; right is left.

    Frames have the colours of the nodes; those that `hits` (K,) says are not used are blank. One grey window for all.
    """
    volumes, counts = checked("blocks", blocks, axes=4), checked("hits", hits, axes=1)
    nodes, palette = pick_nodes(height, width), node_colours(height, width, toroidal=toroidal)
    if len(volumes) != len(nodes) or len(counts) != len(palette):
        raise ValueError(f"a {height} x {width} map needs {len(nodes)} blocks and {len(palette)} hits, "
                         f"not {len(volumes)} and {len(counts)}")  # fmt: skip
    slices = volumes[..., volumes.shape[3] // 2].transpose(0, 2, 1)[:, ::-1, ::-1]
    used = counts[nodes] > 0
    low, high = grey_window(slices[used] if used.any() else slices)
    greys = (np.clip((slices - low) / (high - low), 0, 1) * 255).round().astype(np.uint8)
    tiles = [_frame(grey, colour) for grey, colour in zip(greys, palette[nodes], strict=True)]
    tiles = [tile if shown else np.full_like(tile, BLANK) for tile, shown in zip(tiles, used, strict=True)]
    rows, columns = np.unique(nodes // width), np.unique(nodes % width)
    sheet = np.vstack([np.hstack(tiles[first : first + len(columns)]) for first in range(0, len(tiles), len(columns))])
    with styled():
        return _lay_out(sheet, rows, columns, tiles[0].shape[:2], (float(low), float(high)))


def _frame(grey: NDArray[np.uint8], colour: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A slice, magnified, as RGB in a frame of `colour`, with white around it."""
    large = np.kron(grey, np.ones((MAGNIFIED, MAGNIFIED), np.uint8))
    high, wide = (side + 2 * FRAME + GAP for side in large.shape)
    tile = np.full((high, wide, 3), 255, np.uint8)
    tile[GAP // 2 : -(GAP // 2), GAP // 2 : -(GAP // 2)] = colour
    inner = GAP // 2 + FRAME
    tile[inner:-inner, inner:-inner] = large[..., None]
    return tile


def _lay_out(
    sheet: NDArray[np.uint8],
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
    tile: tuple[int, ...],
    window: tuple[float, float],
) -> Figure:
    """The sheet with the nodes' rows and columns."""
    figure = blank(max(sheet.shape[1] + 160, 640), sheet.shape[0] + 150)
    axes = figure.add_subplot()
    axes.imshow(sheet, interpolation="nearest")
    label_map(axes, most=MOST)
    axes.set_xticks((np.arange(len(columns)) + 0.5) * tile[1], [str(column) for column in columns])
    axes.set_yticks((np.arange(len(rows)) + 0.5) * tile[0], [str(row) for row in rows])
    axes.set(xlabel="column", ylabel="row")
    figure.suptitle("What nodes decode to where they are chosen", x=0.015, ha="left", fontsize=12, fontweight="bold")
    figure.supxlabel(
        "middle axial slice of each code's block, its neighbours' tokens as they are on average;\n"
        f"z from {window[0]:.1f} (black) to {window[1]:.1f} (white); blank: no token has the node",
        fontsize=10,
    )
    return figure
