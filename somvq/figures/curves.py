"""A run's course: losses, similarity and use of the codebook over its epochs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from somvq.figures import BLUE, ORANGE, blank, styled

Course = tuple[list[float], list[float]]  # epochs, values


@dataclass(frozen=True)
class Panel:
    """One small picture: its title, its curves as key and label, and how its values are shown."""

    title: str
    curves: tuple[tuple[str, str], ...]
    log: bool = False
    best: bool = False  # say each curve's highest value


PANELS = (
    Panel("Loss", (("train/loss", "train"), ("val/loss", "validation")), log=True),
    Panel("Reconstruction loss", (("train/reconstruction", "train"), ("val/reconstruction", "validation")), log=True),
    Panel(
        "Reconstruction loss, $x'_q$",
        (("train/reconstruction_q", "train"), ("val/reconstruction_q", "validation")),
        log=True,
    ),
    Panel("SSIM (validation)", (("val/ssim", "$x'_e$"), ("val/ssim_q", "$x'_q$")), best=True),
    Panel("KL", (("train/kl", "train"), ("val/kl", "validation")), log=True),
    Panel("Codes to tokens", (("train/codebook", "train"), ("val/codebook", "validation")), log=True),
    Panel("Commitment", (("train/commitment", "train"), ("val/commitment", "validation")), log=True),
    Panel("Hardening", (("train/hardening", "train"), ("val/hardening", "validation")), log=True),
    Panel("Neighbours", (("train/neighbours", "train"), ("val/neighbours", "validation")), log=True),
    Panel("Order", (("train/order", "train"), ("val/order", "validation")), log=True),
    Panel("PSNR, dB (validation)", (("val/psnr", "$x'_e$"), ("val/psnr_q", "$x'_q$")), best=True),
    Panel("Codebook, nodes", (("codebook/used", "used"), ("codebook/perplexity", "perplexity"))),
    Panel("Entropy of choice", (("codebook/entropy", "entropy"),)),
    Panel("Map", (("map/neighbour_r", "neighbours' r"), ("map/topographic_error", "topographic error"))),
)
LOOKS = ((BLUE, "-"), (ORANGE, "--"))  # told apart without colour too


def draw_curves(rows: Sequence[Mapping[str, float]]) -> Figure:
    """A ledger's rows as small pictures, one a kind of number; what is not there, or not finite, is left out."""
    known = [(panel, courses) for panel in PANELS if (courses := _courses(rows, panel))]
    if not known:
        raise ValueError(f"none of the {len(rows)} rows has an epoch and one of {PANELS[0].curves[0][0]}, ...")
    columns = 3 if len(known) > 4 else min(len(known), 2)
    lines = math.ceil(len(known) / columns)
    with styled():
        width, height = 1000 if columns > 1 else 640, 290 * lines + 40
        figure = blank(width, height)
        figure.set_layout_engine("none")
        room = _room(width, height, lines, columns)
        grid = list(figure.subplots(lines, columns, squeeze=False, sharex=True, gridspec_kw=room).flat)
        for place, (panel, courses) in enumerate(known):
            _draw_panel(grid[place], panel, courses)
            grid[place].tick_params(labelbottom=place + columns >= len(known))
        for axes in grid[len(known) :]:
            axes.set_axis_off()
        _span_epochs(grid[0], [epoch for _, courses in known for epochs, _ in courses.values() for epoch in epochs])
        figure.text(0.5, 12 / height, "epoch", ha="center", fontsize=11)
    return figure


def _room(width: int, height: int, lines: int, columns: int) -> dict[str, float]:
    """Room for the panels' titles and ticks, as shares: matplotlib would take half a second to find it."""
    left, right, top, bottom, across, down = 70, 20, 34, 62, 72, 54  # pixels: around, and between panels
    wide, high = (width - left - right - (columns - 1) * across) / columns, (height - top - bottom) / lines - down
    sides = {"left": left / width, "right": 1 - right / width, "bottom": bottom / height, "top": 1 - top / height}
    return {**sides, "wspace": across / wide, "hspace": down / high}


def _courses(rows: Sequence[Mapping[str, float]], panel: Panel) -> dict[str, Course]:
    """The panel's curves that have values, by label; of rows that tell the same epoch the last counts."""
    found = {}
    for key, label in panel.curves:
        values = {row["epoch"]: row[key] for row in rows if _is_number(row.get("epoch")) and _is_number(row.get(key))}
        if values:
            epochs = sorted(values)
            found[label] = (epochs, [values[epoch] for epoch in epochs])
    return found


def _is_number(value: object) -> bool:
    """Whether it can be drawn."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def _draw_panel(axes: Axes, panel: Panel, courses: dict[str, Course]) -> None:
    """The panel's curves, with a legend and, where asked for, the best values."""
    for (colour, dashes), (label, (epochs, values)) in zip(LOOKS, courses.items(), strict=False):
        if panel.best:
            highest = max(range(len(values)), key=values.__getitem__)
            axes.plot(epochs[highest], values[highest], "o", color=colour, markersize=6)
            label = f"{label}: best {values[highest]:.4g}"
        marker = "o" if len(epochs) < 3 else ""
        axes.plot(epochs, values, color=colour, linestyle=dashes, marker=marker, markersize=5, label=label)
    axes.set_title(panel.title)
    if panel.log:
        _scale(axes, [value for _, values in courses.values() for value in values])
    if len(courses) > 1 or panel.best:
        axes.legend(loc="best")


def _scale(axes: Axes, values: list[float]) -> None:
    """A log scale where the values span enough for its ticks, 1, 2 and 5 times powers of ten, and are positive."""
    if min(values) > 0 and max(values) >= 4 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(values) < 1000 * min(values) else (1,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _span_epochs(axes: Axes, epochs: list[float]) -> None:
    """All epochs, with ticks at whole ones; all panels share this axis."""
    margin = max(0.03 * (max(epochs) - min(epochs)), 0.5)
    axes.set_xlim(min(epochs) - margin, max(epochs) + margin)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
