"""The latent space in two dimensions: where the tokens are, and whether the codes are among them (paper, Figure A1).

Shapes: N tokens or points, C channels, K codes, one for each node of a map of height x width.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray

from somvq.figures import FAINT, INK, PAPER, blank, check_map, checked, styled
from somvq.figures.codebook import label_map
from somvq.figures.colours import node_colours

PERPLEXITY = 30
STEPS = {"early_exaggeration_iter": 125, "n_iter": 250}  # half of the usual: as many neighbours kept, in half the time


def embed(points: ArrayLike, seed: int) -> NDArray[np.float64]:
    """t-SNE of points (N, C) as (N, 2), the same bits for the same points and seed; all zero where all points are one.

    By openTSNE: scikit-learn takes 1.1 to 1.4 times as long for 3,000 points, 6 times for 20,000 (benchmarks/tsne.py).
    """
    places = checked("points", points, axes=2)
    if len(places) < 4:
        raise ValueError(f"t-SNE needs at least 4 points, not {len(places)}")
    if (places == places[0]).all():
        return np.zeros((len(places), 2))  # t-SNE would draw islands where there is nothing
    import openTSNE  # here: it loads scikit-learn, a second that runs without t-SNE need not wait

    method = openTSNE.TSNE(
        perplexity=_perplexity(len(places)),
        theta=0.8,  # as many neighbours kept as at the usual 0.5, in 0.7 of the time
        initialization=_start(places, seed),
        neighbors="exact",
        random_state=seed,
        n_jobs=1,  # its threads wait by spinning: on a busy machine two were twice as slow as one
        **STEPS,
    )
    return np.asarray(method.fit(places), dtype=np.float64)


def draw_latent(
    tokens: ArrayLike,
    nodes: ArrayLike,
    codes: ArrayLike,
    height: int,
    width: int,
    *,
    seed: int = 0,
    limit: int = 3000,
    toroidal: bool = False,
) -> Figure:
    """t-SNE of tokens (N, C), coloured by where on the map their nodes (N,) lie, and of all codes (K, C) on top.

    At most `limit` tokens are drawn, a sample by `seed`; a code that none of the N tokens chose is drawn hollow.
    """
    vectors, all_codes = checked("tokens", tokens, axes=2), checked("codes", codes, axes=2)
    chosen = _check(vectors, np.asarray(nodes), all_codes, height, width)
    if limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    sample = np.sort(np.random.default_rng(seed).permutation(len(vectors))[:limit])
    places = embed(np.concatenate([vectors[sample], all_codes]), seed)
    palette = node_colours(height, width, toroidal=toroidal) / 255
    used = np.isin(np.arange(len(all_codes)), chosen)
    with styled():
        figure = blank(1000, 760)
        parts = figure.subplot_mosaic("ck;cm", width_ratios=(4, 1), height_ratios=(2, 3))
        cloud = parts["c"]
        _draw_tokens(cloud, places[: len(sample)], palette[chosen[sample]])
        _draw_codes(cloud, places[len(sample) :], palette, used)
        cloud.set_title("Tokens and codes (t-SNE)")
        cloud.set_xlabel(
            f"{len(sample):,} of {len(vectors):,} tokens, {len(used):,} codes of which {used.sum():,} used; "
            f"perplexity {_perplexity(len(places)):.3g}, seed {seed}"
        )
        _draw_key(parts["k"], palette.reshape(height, width, 3), toroidal)
        _name_markers(parts["m"], to_hex(palette[0]))
    return figure


def _check(
    tokens: NDArray[np.float64], nodes: NDArray[np.generic], codes: NDArray[np.float64], height: int, width: int
) -> NDArray[np.intp]:
    """The nodes as indices, after checking that everything fits together."""
    check_map("codes", len(codes), height, width)
    if tokens.shape[1] != codes.shape[1]:
        raise ValueError(f"tokens have {tokens.shape[1]} channels, codes {codes.shape[1]}")
    if nodes.shape != (len(tokens),):
        raise ValueError(f"{len(tokens)} tokens need nodes of the shape ({len(tokens)},), not {nodes.shape}")
    if not np.issubdtype(nodes.dtype, np.integer):
        raise ValueError(f"nodes must be whole numbers, not {nodes.dtype}")
    if nodes.min() < 0 or nodes.max() >= len(codes):
        raise ValueError(f"nodes go from {nodes.min()} to {nodes.max()}, but the map's from 0 to {len(codes) - 1}")
    return nodes.astype(np.intp)


def _perplexity(count: int) -> float:
    """The usual perplexity, or what `count` points allow."""
    return min(PERPLEXITY, (count - 1) / 3)


def _start(points: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """(N, 2) first positions: the principal plane, and a little noise, without which equal points would never part."""
    centred = points - points.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    plane = centred @ axes[:, :-3:-1]
    start = np.random.default_rng(seed).normal(0, 1e-6, size=(len(points), 2))
    start[:, : plane.shape[1]] += plane / plane[:, 0].std() * 1e-4
    return start


def _draw_tokens(axes: Axes, places: NDArray[np.float64], colours: NDArray[np.float64]) -> None:
    """A dot a token, on axes without ticks, for t-SNE's units mean nothing."""
    size = float(np.clip(30_000 / len(places), 7, 40))
    axes.scatter(places[:, 0], places[:, 1], s=size, c=colours, alpha=0.75, linewidth=0)
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[:].set_visible(False)


def _draw_codes(axes: Axes, places: NDArray[np.float64], colours: NDArray[np.float64], used: NDArray[np.bool_]) -> None:
    """A ring a code: filled with its node's colour where used, hollow where not."""
    axes.scatter(places[~used, 0], places[~used, 1], s=34, facecolor=PAPER, edgecolor=FAINT, linewidth=1.2)
    axes.scatter(places[used, 0], places[used, 1], s=46, c=colours[used], edgecolor=INK, linewidth=1.1)


def _draw_key(axes: Axes, palette: NDArray[np.float64], toroidal: bool) -> None:
    """What the colours mean, (height, width, 3)."""
    axes.imshow(palette, interpolation="nearest")
    axes.set_anchor("N")
    label_map(axes, most=5)
    axes.set_title("Nodes of the " + ("torus" if toroidal else "map"))
    axes.set(xlabel="column", ylabel="row")


def _name_markers(axes: Axes, colour: str) -> None:
    """What the markers mean."""
    axes.set_axis_off()
    markers = [
        Line2D([], [], marker="o", linestyle="", color=colour, markersize=4, label="token"),
        Line2D([], [], marker="o", linestyle="", color=colour, markeredgecolor=INK, markersize=7, label="code"),
        Line2D(
            [], [], marker="o", linestyle="", color=PAPER, markeredgecolor=FAINT, markersize=6, label="code, unused"
        ),
    ]
    axes.legend(handles=markers, loc="upper left", handletextpad=0.2, borderaxespad=0)
