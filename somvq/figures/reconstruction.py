"""What goes in, what comes out, and where they differ, in three slices through the middle of the scan."""

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from somvq.figures import DARK, DPI, LIGHT, SHADES, blank, checked, grey_window, mid_slices, name_slices, styled

ERROR = Normalize(0, 2)  # z; fixed, so that the errors of all epochs and trials can be compared
WIDTH, LEFT, RIGHT, TOP, GAP = 880, 44, 84, 34, 6  # pixels

Slices = list[NDArray[np.float64]]
Row = tuple[str, Slices, str, Normalize]  # label, slices, colour map, window


def draw_reconstruction(scan: ArrayLike, reconstruction: ArrayLike, quantised: ArrayLike | None) -> Figure:
    """A scan (X, Y, Z), RAS, z-scores, above its reconstructions x'_e and x'_q and their errors; right is on the left.

    The grey window is the scan's own 0.5 to 99.5 %, for all rows; voxels are taken to be cubes.
    """
    truth = checked("scan", scan, axes=3)
    window = Normalize(*grey_window(truth))
    rows: list[Row] = [("scan", mid_slices(truth), "gray", window)]
    for label, values in (("$x'_e$", reconstruction), ("$x'_q$", quantised)):
        if values is None:
            continue
        made = checked(f"reconstruction {label.strip('$')}", values, axes=3)
        if made.shape != truth.shape:
            raise ValueError(
                f"the scan has the shape {truth.shape}, its reconstruction {label.strip('$')} {made.shape}"
            )
        error = np.abs(made - truth)
        rows.append((f"reconstruction {label}", mid_slices(made), "gray", window))
        rows.append((f"|error| of {label}, mean {error.mean():.2f}", mid_slices(error), "inferno", ERROR))
    with styled():
        return _lay_out(rows, name_slices(truth.shape))


def _lay_out(rows: list[Row], names: list[str]) -> Figure:
    """All slices at one scale, packed to the pixel."""
    widths = [picture.shape[1] for picture in rows[0][1]]
    tallest = max(picture.shape[0] for picture in rows[0][1])
    scale = (WIDTH - LEFT - RIGHT - 2 * GAP) / sum(widths)  # pixels a voxel
    step = round(tallest * scale) + GAP
    height = TOP + step * len(rows)
    figure = blank(WIDTH, height)
    figure.set_layout_engine("none")
    figure.set_facecolor(DARK)
    for number, (label, pictures, colours, window) in enumerate(rows):
        middle = height - TOP - step * number - (step - GAP) / 2
        left = float(LEFT)
        for picture in pictures:
            box = (left, middle - picture.shape[0] * scale / 2, picture.shape[1] * scale, picture.shape[0] * scale)
            shown = _show(figure, _share(figure, box), picture, colours, window)
            left += box[2] + GAP
        _text(figure, LEFT / 2, middle, label, rotation=90)
        _window_bar(figure, shown, _share(figure, (WIDTH - RIGHT + 12, middle - step * 0.36, 12, step * 0.72)))
    _name_columns(figure, names, [width * scale for width in widths], height)
    return figure


Box = tuple[float, float, float, float]  # left, bottom, width, height


def _share(figure: Figure, box: Box) -> Box:
    """A box in pixels as shares of the figure."""
    width, height = figure.get_size_inches() * DPI
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


def _show(figure: Figure, box: Box, picture: NDArray[np.float64], colours: str, window: Normalize) -> AxesImage:
    """One slice, without axes."""
    axes = figure.add_axes(box)
    axes.set_axis_off()
    return axes.imshow(
        picture, cmap=colormaps[colours].resampled(SHADES), norm=window, interpolation="nearest", aspect="auto"
    )


def _window_bar(figure: Figure, shown: AxesImage, box: Box) -> None:
    """What the greys or colours of a row mean."""
    bar = figure.colorbar(shown, cax=figure.add_axes(box))
    bar.locator = MaxNLocator(4)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelcolor=LIGHT, color=LIGHT, length=3, labelsize=9)
    bar.ax.set_title("z", color=LIGHT, fontsize=10, loc="center", pad=4, fontweight="normal")


def _name_columns(figure: Figure, names: list[str], widths: list[float], height: float) -> None:
    """Above each column its name."""
    left = float(LEFT)
    for name, width in zip(names, widths, strict=True):
        _text(figure, left + width / 2, height - TOP / 2, name)
        left += width + GAP


def _text(figure: Figure, x: float, y: float, words: str, rotation: float = 0) -> None:
    """Light words centred on a pixel."""
    width, height = figure.get_size_inches() * DPI
    figure.text(x / width, y / height, words, color=LIGHT, rotation=rotation, ha="center", va="center", fontsize=11)
