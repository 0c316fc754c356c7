"""The colours of a map's nodes: near nodes alike, far ones not, and every step between neighbours about as large.

Both kinds of map are surfaces in OKLab (Ottosson 2020), where distances are about as large as they look. A flat map is
bent to a part of a cylinder, which stretches nothing: rows go from light to dark, columns from blue over pink to olive,
which colour-blind eyes tell apart too. A torus lies there as a ring whose tube is flat and upright, so that its outside
is not much longer than its inside: the longer side of the map goes round the hues, the other round the tube, strong,
light, pale, dark, and all edges join. No torus can be told apart by two kinds of cones alone.

The numbers below were fitted once to a map of 16 x 16: as even and as far apart by CIEDE2000 as screens can show.
"""

import numpy as np
from numpy.typing import NDArray

from somvq.figures import check_map

Numbers = NDArray[np.float64]
Colours = NDArray[np.uint8]

RING_CENTRE, RING_RADIUS = (0.649, -0.002, 0.013), 0.07  # OKLab
TUBE_WIDTH, TUBE_HEIGHT = 0.026, 0.215  # half axes: away from the ring's centre, and from dark to light
SHEET_CENTRE, SHEET_RADIUS = (0.561, -0.044, -0.026), 0.1
SHEET_HEIGHT, SHEET_ARC = 0.2, (-1.1, 1.7)  # half way from dark to light; hues about the centre, radians


def node_colours(height: int, width: int, *, toroidal: bool) -> Colours:
    """(height * width, 3) sRGB, 0 to 255, of the nodes of a map, row by row."""
    check_map("node_colours", height * width, height, width)
    if toroidal and height > width:  # the longer side goes round the ring, which is longer than the tube
        return _turned(node_colours(width, height, toroidal=True), width, height)
    row, column = np.divmod(np.arange(height * width), width)
    if toroidal:
        return _srgb(_on_ring(row / height, column / width))
    return _srgb(_on_sheet(row / max(height - 1, 1), column / max(width - 1, 1)))


def _turned(colours: Colours, height: int, width: int) -> Colours:
    """Colours of a map of `height` x `width` for one that lies on its side."""
    return colours.reshape(height, width, 3).swapaxes(0, 1).reshape(-1, 3)


def _on_ring(around: Numbers, along: Numbers) -> Numbers:
    """(K, 3) OKLab of places on the torus, both in 0..1: `around` its tube in equal lengths, `along` its ring."""
    angles = np.linspace(0, 2 * np.pi, 721)
    edge = np.stack([TUBE_WIDTH * np.cos(angles), TUBE_HEIGHT * np.sin(angles)])
    length = np.append(0, np.linalg.norm(np.diff(edge), axis=0).cumsum())
    angle, hue = np.interp(around * length[-1], length, angles), 2 * np.pi * along
    radius = RING_RADIUS + TUBE_WIDTH * np.cos(angle)
    return RING_CENTRE + np.stack([TUBE_HEIGHT * np.sin(angle), radius * np.cos(hue), radius * np.sin(hue)], axis=1)


def _on_sheet(down: Numbers, right: Numbers) -> Numbers:
    """(K, 3) OKLab of places on the sheet, both in 0..1, from its upper left corner."""
    angle = SHEET_ARC[0] + right * (SHEET_ARC[1] - SHEET_ARC[0])
    lightness = (1 - 2 * down) * SHEET_HEIGHT
    return SHEET_CENTRE + np.stack([lightness, SHEET_RADIUS * np.cos(angle), SHEET_RADIUS * np.sin(angle)], axis=1)


def _srgb(lab: Numbers) -> Colours:
    """(K, 3) sRGB, 0 to 255, of OKLab colours."""
    to_cones = np.array(
        [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip((lab @ to_cones.T) ** 3 @ to_rgb.T, 0, 1)
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    colours: Colours = np.round(curved * 255).astype(np.uint8)
    return colours
