"""Figures are judged by their pixels."""

from collections.abc import Iterator
from pathlib import Path
from weakref import ref

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from numpy.typing import NDArray
from scipy import ndimage
from skimage.color import deltaE_ciede2000, rgb2lab

from somvq.codebooks.grid import Grid
from somvq.config import Topology
from somvq.figures import DARK, SHADES, UNSEEN, render, save, spread
from somvq.figures.codebook import draw_grid, draw_hits, draw_usage
from somvq.figures.colours import node_colours
from somvq.figures.curves import draw_curves
from somvq.figures.decoded import draw_decoded, pick_nodes
from somvq.figures.latent import draw_latent, embed
from somvq.figures.montage import HEIGHT as MOST_HIGH
from somvq.figures.montage import SMALLEST, draw_montage
from somvq.figures.montage import WIDTH as MOST_WIDE
from somvq.figures.planes import draw_planes, draw_umatrix, neighbour_distances, principal_planes
from somvq.figures.projection import STRENGTH, draw_projection
from somvq.figures.reconstruction import draw_reconstruction

HEIGHT, WIDTH, CHANNELS = 4, 6, 8
GREY_OF_UNUSED = (217, 220, 226)
FIGURES = ("latent", "grid", "hits", "usage", "reconstruction", "curves", "umatrix", "planes", "projection", "decoded")


def latent(count: int = 120, seed: int = 0) -> tuple[NDArray, NDArray, NDArray]:
    """Tokens near the codes of a small map, their nodes, and the codes; the last node is never used."""
    generator = np.random.default_rng(seed)
    row, column = np.divmod(np.arange(HEIGHT * WIDTH), WIDTH)
    codes = np.stack([row, column], axis=1) @ generator.normal(size=(2, CHANNELS))
    nodes = generator.integers(HEIGHT * WIDTH - 1, size=count)
    return codes[nodes] + generator.normal(0, 0.1, (count, CHANNELS)), nodes, codes


def scan(shape: tuple[int, int, int] = (20, 26, 22)) -> NDArray:
    """Left dark, right bright; the back, and below, darker."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    return x + 0.5 * y + 0.25 * z


def labelled(count: int, shape: tuple[int, int, int] = (20, 26, 22)) -> Iterator[tuple[str, NDArray]]:
    """A cohort's scans, one after the other."""
    return ((f"sub-{number:03d} train", scan(shape)) for number in range(count))


def ledger(epochs: int = 12) -> list[dict[str, float]]:
    """Rows as a PSOM-VAE writes them, validated every second epoch."""
    rows = []
    for epoch in range(1, epochs + 1):
        falling = float(np.exp(-epoch / 4))
        row = {"epoch": epoch, "train/loss": falling + 0.01, "train/reconstruction": falling, "codebook/used": epoch}
        if epoch % 2 == 0:
            row |= {"val/loss": falling + 0.02, "val/ssim": 1 - falling, "val/ssim_q": 0.9 - falling}
        rows.append(row)
    return rows


def draw(name: str) -> Figure:
    """The figure called `name`, of made-up arrays."""
    tokens, nodes, codes = latent()
    hits = np.bincount(nodes, minlength=len(codes))
    return {
        "latent": lambda: draw_latent(tokens, nodes, codes, HEIGHT, WIDTH),
        "grid": lambda: draw_grid(codes, HEIGHT, WIDTH),
        "hits": lambda: draw_hits(hits, HEIGHT, WIDTH),
        "usage": lambda: draw_usage(hits),
        "reconstruction": lambda: draw_reconstruction(scan(), scan() * 0.8, scan() * 0.5),
        "curves": lambda: draw_curves(ledger()),
        "umatrix": lambda: draw_umatrix(codes, HEIGHT, WIDTH, toroidal=True),
        "planes": lambda: draw_planes(np.sin(np.outer(np.arange(24), np.arange(8))), HEIGHT, WIDTH, toroidal=True),
        "projection": lambda: draw_projection(*projected(), HEIGHT, WIDTH, toroidal=True),
        "decoded": lambda: draw_decoded(decoded_blocks(), hits, HEIGHT, WIDTH, toroidal=True),
    }[name]()


def projected() -> tuple[NDArray, NDArray, NDArray]:
    """A scan of 32 x 48 x 32 voxels, where it is brain, and the nodes of its 12 tokens."""
    volume = scan((32, 48, 32))
    return volume, volume > -0.5, np.arange(12).reshape(2, 3, 2) * 2


def decoded_blocks() -> NDArray:
    """A block of voxels for each node that the small map's figure shows."""
    return np.stack([scan((16, 16, 16)) * node for node in range(HEIGHT * WIDTH)])


def words(figure: Figure) -> str:
    """All that is written on a figure."""
    return " | ".join(text.get_text() for text in figure.findobj(lambda part: hasattr(part, "get_text")))


def is_cut_off(figure: Figure) -> bool:
    """Whether anything reaches the outermost pixels."""
    return reaches_the_edge(render(figure))


def reaches_the_edge(pixels: NDArray) -> bool:
    """Whether the outermost pixels are not all alike."""
    edge = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3), pixels[:, :2].reshape(-1, 3)])
    edge = np.concatenate([edge, pixels[:, -2:].reshape(-1, 3)])
    return bool((edge != pixels[0, 0]).any())


def centre_of_cell(figure: Figure, row: int, column: int) -> tuple[int, int]:
    """The pixel (down, right) in the middle of a node of the figure's first axes."""
    render(figure)
    right, up = figure.axes[0].transData.transform((column, row))
    return round(figure.bbox.height - up), round(right)


def slices_of(figure: Figure) -> list[list[tuple[slice, slice]]]:
    """Where on a montage's sheet the three slices of each cell are, cells in the order of reading."""
    sheet = np.asarray(figure.images[0].get_array())
    blots, _ = ndimage.label((sheet != np.round(np.multiply(to_rgb(DARK), 255))).any(axis=-1))
    places = sorted(ndimage.find_objects(blots), key=lambda place: (place[0].start, place[1].start))
    return [places[first : first + 3] for first in range(0, len(places), 3)]


def shown(figure: Figure) -> list[list[NDArray]]:
    """The greys of the three slices of each cell of a montage."""
    pixels = render(figure)
    return [[pixels[place][..., 0] for place in places] for places in slices_of(figure)]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_bytes_and_neither_black_nor_blank_nor_cut_off(name: str) -> None:
    figure = draw(name)
    pixels = render(figure)
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3
    assert 600 <= pixels.shape[1] <= 1100
    assert pixels.max() > 200
    assert pixels.std() > 10
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 30
    assert not is_cut_off(figure)
    assert pyplot.get_fignums() == []  # nothing is left behind


def test_the_users_matplotlibrc_changes_nothing() -> None:
    *_, codes = latent()
    plain = render(draw_grid(codes, HEIGHT, WIDTH))
    with pyplot.rc_context({"font.size": 30, "figure.dpi": 50, "axes.facecolor": "red", "image.origin": "lower"}):
        assert np.array_equal(render(draw_grid(codes, HEIGHT, WIDTH)), plain)


def test_a_saved_figure_reads_back_as_rendered_as_far_as_eyes_can_tell_and_equal_figures_give_equal_bytes(
    tmp_path: Path,
) -> None:
    *_, codes = latent()
    for name in ("first.png", "second.png"):
        save(draw_grid(codes, HEIGHT, WIDTH), tmp_path / name)
    read = np.round(imread(tmp_path / "first.png")[..., :3] * 255)
    assert np.abs(read - render(draw_grid(codes, HEIGHT, WIDTH))).max() <= UNSEEN
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    assert b"atplotlib" not in (tmp_path / "first.png").read_bytes()


def test_a_figure_that_cannot_be_saved_leaves_the_old_one_and_no_scraps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, codes = latent()
    save(draw_grid(codes, HEIGHT, WIDTH), tmp_path / "grid.png")
    before = (tmp_path / "grid.png").read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        save(draw_grid(-codes, HEIGHT, WIDTH), tmp_path / "grid.png")
    assert [file.name for file in tmp_path.iterdir()] == ["grid.png"]
    assert (tmp_path / "grid.png").read_bytes() == before


def test_tsne_gives_the_same_bits_twice_and_others_for_another_seed() -> None:
    tokens, *_ = latent()
    assert np.array_equal(embed(tokens, seed=3), embed(tokens, seed=3))
    assert not np.array_equal(embed(tokens, seed=3), embed(tokens, seed=4))


def test_tsne_keeps_two_far_clusters_apart() -> None:
    points = np.random.default_rng(0).normal(size=(200, CHANNELS))
    points[100:] += 30
    places = embed(points, seed=0)
    one, other = places[:100], places[100:]
    apart = np.linalg.norm(one[:, None] - other[None], axis=-1).min()
    nearest = np.linalg.norm(one[:, None] - one[None], axis=-1)
    assert apart > 3 * np.sort(nearest, axis=1)[:, 1].max()


@pytest.mark.parametrize("channels", [1, 2, 32])
def test_tsne_takes_any_number_of_channels_and_equal_points(channels: int) -> None:
    points = np.repeat(np.random.default_rng(0).normal(size=(10, channels)), 5, axis=0)
    assert np.isfinite(embed(points, seed=0)).all()


def test_a_collapsed_latent_space_is_one_point_not_islands() -> None:
    codes = np.ones((HEIGHT * WIDTH, CHANNELS))
    assert not embed(codes, seed=0).any()
    assert render(draw_latent(codes, np.zeros(len(codes), int), codes, HEIGHT, WIDTH)).std() > 10


def test_the_latent_figure_says_what_it_shows_and_how_much_of_it() -> None:
    tokens, nodes, codes = latent(count=150)
    figure = draw_latent(tokens, nodes, codes, HEIGHT, WIDTH, limit=100)
    assert "100 of 150 tokens, 24 codes of which 23 used" in words(figure)
    drawn = [len(marks.get_offsets()) for marks in figure.axes[0].collections]
    assert drawn == [100, 1, 23]  # tokens, unused codes, used codes


def test_a_token_has_the_colour_of_its_node() -> None:
    tokens, nodes, codes = latent()
    figure = draw_latent(tokens, nodes, codes, HEIGHT, WIDTH, toroidal=True)
    palette = node_colours(HEIGHT, WIDTH, toroidal=True) / 255
    assert np.allclose(figure.axes[0].collections[0].get_facecolors()[:, :3], palette[nodes])
    key = next(axes for axes in figure.axes if axes.images)
    assert np.allclose(key.images[0].get_array(), palette.reshape(HEIGHT, WIDTH, 3))


def difference(one: NDArray, other: NDArray) -> NDArray:
    """CIEDE2000 between colours of 0 to 255: 1 can just be seen."""
    return np.asarray(deltaE_ciede2000(rgb2lab(one / 255), rgb2lab(other / 255)))


@pytest.mark.parametrize(("toroidal", "evenness"), [(True, 2.6), (False, 3.2)])
def test_neighbours_differ_by_about_as_much_everywhere_on_a_map_and_far_nodes_by_more(
    toroidal: bool, evenness: float
) -> None:
    grid = Grid(16, 16, "toroidal" if toroidal else "rectangular")
    colours = node_colours(16, 16, toroidal=toroidal)
    apart = difference(colours[:, None], colours[None])
    steps = apart[grid.adjacency.numpy() == 1]
    assert steps.min() > 2
    assert steps.max() < evenness * steps.min()
    assert apart[grid.distances.numpy() >= 4].min() > 1.1 * steps.mean()
    assert len(np.unique(colours, axis=0)) == 256


@pytest.mark.parametrize("toroidal", [True, False])
def test_colours_join_across_the_edges_of_a_torus_and_only_there(toroidal: bool) -> None:
    colours = node_colours(16, 16, toroidal=toroidal).reshape(16, 16, 3)
    for axis in (0, 1):
        steps = difference(colours, np.roll(colours, -1, axis))
        inner, across = np.delete(steps, -1, axis), steps.take(-1, axis)
        if toroidal:
            assert inner.min() - 0.3 < across.min()  # of bytes: rounded
            assert across.max() < inner.max() + 0.3
        else:
            assert across.min() > 2 * inner.max()


def test_a_map_on_its_side_has_the_same_colours_and_any_map_has_some() -> None:
    upright, lying = (node_colours(*shape, toroidal=True).reshape(*shape, 3) for shape in ((24, 8), (8, 24)))
    assert np.array_equal(upright, lying.swapaxes(0, 1))
    for shape in ((1, 1), (1, 16), (16, 1), (2, 2)):
        for toroidal in (True, False):
            assert node_colours(*shape, toroidal=toroidal).shape == (shape[0] * shape[1], 3)


def test_the_grid_shows_each_node_at_its_row_and_column() -> None:
    codes = np.zeros((HEIGHT * WIDTH, CHANNELS))
    codes[1 * WIDTH + 4] = 1  # row 1, column 4
    figure = draw_grid(codes, HEIGHT, WIDTH)
    pixels = render(figure)
    yellow, purple = (253, 231, 37), (68, 1, 84)  # viridis's ends
    down, right = centre_of_cell(figure, 0, 0)
    step = centre_of_cell(figure, 0, 1)[1] - right
    for row in range(HEIGHT):
        for column in range(WIDTH):
            expected = yellow if (row, column) == (1, 4) else purple
            assert np.abs(pixels[down + row * step, right + column * step] - np.array(expected)).max() <= 1


def test_hits_mark_the_nodes_that_won_nothing() -> None:
    hits = np.arange(HEIGHT * WIDTH)
    hits[[0, 9]] = 0
    figure = draw_hits(hits, HEIGHT, WIDTH)
    pixels = render(figure)
    assert "22 of 24 nodes used" in words(figure)
    assert figure.axes[0].collections[0].get_offsets().tolist() == [[0, 0], [3, 1]]  # column, row
    down, right = centre_of_cell(figure, 0, 0)
    step = centre_of_cell(figure, 0, 1)[1] - right
    for node in range(HEIGHT * WIDTH):
        row, column = divmod(node, WIDTH)
        above_the_cross = pixels[down + row * step - 30, right + column * step].astype(int)
        grey = np.abs(above_the_cross - GREY_OF_UNUSED).max() <= 1
        assert grey == (hits[node] == 0)


def test_hits_of_nothing_at_all_are_drawn_too() -> None:
    assert "0 of 24 nodes used" in words(draw_hits(np.zeros(24), HEIGHT, WIDTH))
    assert "0 of 24 nodes used, perplexity 0.0" in words(draw_usage(np.zeros(24)))


def test_usage_says_how_many_nodes_are_used_and_how_evenly() -> None:
    assert "4 of 8 nodes used, perplexity 4.0" in words(draw_usage([0, 5, 5, 0, 5, 5, 0, 0]))
    assert "all alike: 12.50%" in words(draw_usage([1, 0, 0, 0, 0, 0, 0, 7]))


@pytest.mark.parametrize(("height", "width"), [(1, 16), (16, 2), (32, 32)])
def test_maps_of_any_shape_fit_their_figure(height: int, width: int) -> None:
    hits = np.arange(height * width)
    assert not is_cut_off(draw_hits(hits, height, width))
    assert not is_cut_off(draw_grid(hits[:, None], height, width))


@pytest.mark.parametrize("topology", ["toroidal", "rectangular"])
@pytest.mark.parametrize(("height", "width"), [(1, 5), (2, 3), (1, 1), (4, 6)])
def test_the_u_matrix_is_the_mean_distance_to_the_grids_neighbours(height: int, width: int, topology: Topology) -> None:
    codes = np.random.default_rng(0).normal(size=(height * width, CHANNELS))
    joined = Grid(height, width, topology).adjacency.double()
    apart = torch.cdist(torch.from_numpy(codes), torch.from_numpy(codes))
    expected = (apart * joined).sum(1) / joined.sum(1).clamp(min=1)
    found = neighbour_distances(codes, height, width, toroidal=topology == "toroidal")
    assert np.allclose(found, expected.view(height, width).numpy())


def test_the_u_matrix_of_a_ramp_has_a_ridge_where_a_torus_joins_and_none_on_a_flat_map() -> None:
    ramp = np.repeat(np.arange(5.0), 5)[:, None]  # a row's code is its number
    flat = neighbour_distances(ramp, 5, 5, toroidal=False)
    assert np.allclose(flat[1:-1, 1:-1], 1 / 2)
    assert np.allclose(flat[0, 1:-1], 1 / 3)
    assert np.allclose(flat[0, 0], 1 / 2)
    torus = neighbour_distances(ramp, 5, 5, toroidal=True)
    assert np.allclose(torus[1:-1], 1 / 2)
    assert np.allclose(torus[[0, -1]], (1 + 4) / 4)


def test_planes_are_principal_components_with_their_share_of_the_variance() -> None:
    codes = np.random.default_rng(0).normal(size=(24, CHANNELS)) * np.arange(1, CHANNELS + 1)
    scores, share = principal_planes(codes, most=3)
    values, vectors = np.linalg.eigh(np.cov(codes.T))
    assert np.allclose(share, values[:-4:-1] / values.sum())
    expected = (codes - codes.mean(0)) @ vectors[:, :-4:-1]
    assert np.allclose(np.abs(scores), np.abs(expected.T))
    assert (scores.max(axis=1) >= -scores.min(axis=1)).all()
    assert len(principal_planes(codes[:, :2])[0]) == 2
    none, nothing = principal_planes(np.ones((24, CHANNELS)) / 3)
    assert not none.any()
    assert not nothing.any()


def test_codes_all_alike_are_drawn_too() -> None:
    codes = np.ones((24, CHANNELS)) / 3
    assert "PC 1: 0%" in words(draw_planes(codes, HEIGHT, WIDTH, toroidal=False))
    assert render(draw_umatrix(codes, HEIGHT, WIDTH, toroidal=False)).std() > 10


@pytest.mark.parametrize(("height", "width"), [(1, 16), (16, 2), (24, 24)])
def test_new_kinds_of_maps_fit_their_figures_too(height: int, width: int) -> None:
    codes = np.random.default_rng(0).normal(size=(height * width, 3))
    blocks = np.random.default_rng(0).normal(size=(len(pick_nodes(height, width)), 16, 16, 16))
    volume, brain, nodes = projected()
    for figure in (
        draw_umatrix(codes, height, width, toroidal=True),
        draw_planes(codes, height, width, toroidal=False),
        draw_decoded(blocks, np.ones(height * width), height, width, toroidal=True),
        draw_projection(volume, brain, nodes % height, height, width, toroidal=False),
    ):
        assert not is_cut_off(figure)


def test_a_voxel_of_the_brain_has_its_nodes_colour_over_its_grey_and_others_are_grey() -> None:
    volume, brain, nodes = projected()
    figure = draw_projection(volume, brain, nodes, HEIGHT, WIDTH, toroidal=True)
    _, _, axial, key = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    palette = node_colours(HEIGHT, WIDTH, toroidal=True) / 255
    low, high = np.percentile(volume, (0.5, 99.5))
    for x, y in ((2, 5), (20, 40), (30, 3), (10, 30)):
        grey = np.clip((volume[x, y, 16] - low) / (high - low), 0, 1)
        colour = palette[nodes[x // 16, y // 16, 1]]
        expected = STRENGTH * colour + (1 - STRENGTH) * grey if brain[x, y, 16] else np.repeat(grey, 3)
        assert np.allclose(axial[47 - y, 31 - x], expected)  # front up, right on the left
    assert np.allclose(key, palette.reshape(HEIGHT, WIDTH, 3))
    for place in ("sagittal, x = 16", "coronal, y = 24", "axial, z = 16"):
        assert place in words(figure)


def test_what_is_known_of_a_token_holds_for_its_block_of_voxels() -> None:
    nodes = np.arange(24).reshape(2, 3, 4)
    blocks = spread(nodes, (32, 48, 64))
    assert all(blocks[place] == nodes[tuple(np.array(place) // 16)] for place in ((0, 0, 0), (15, 16, 63), (31, 47, 1)))


def test_a_decoded_node_has_its_tile_and_frame_and_an_unused_one_neither() -> None:
    hits = np.ones(24)
    hits[7] = 0  # row 1, column 1
    figure = draw_decoded(decoded_blocks(), hits, HEIGHT, WIDTH, toroidal=True)
    sheet = np.asarray(figure.axes[0].images[0].get_array())
    tiles = sheet.reshape(HEIGHT, len(sheet) // HEIGHT, WIDTH, -1, 3).swapaxes(1, 2)
    palette = node_colours(HEIGHT, WIDTH, toroidal=True).reshape(HEIGHT, WIDTH, 3)
    assert len(np.unique(tiles[1, 1])) == 1
    for row, column in ((0, 0), (2, 5), (3, 1)):
        assert np.array_equal(tiles[row, column][3, 40], palette[row, column])
    top, bottom = tiles[3, 5][20:30, 40], tiles[3, 5][-30:-20, 40]  # front is brighter in the made-up scan
    assert top.mean() > bottom.mean()


@pytest.mark.parametrize(("height", "width"), [(16, 16), (4, 6), (1, 9), (20, 3)])
def test_the_decoded_nodes_lie_evenly_over_the_map(height: int, width: int) -> None:
    nodes = pick_nodes(height, width)
    assert len(nodes) == len(set(nodes.tolist())) == min(height, 8) * min(width, 8)
    for places, length in ((np.unique(nodes // width), height), (np.unique(nodes % width), width)):
        gaps = np.diff([*places, length + places[0]])  # the last to the first, round a torus
        assert np.ptp(gaps) <= 1


def test_slices_stand_upright_with_the_subjects_right_on_the_left() -> None:
    figure = draw_reconstruction(scan(), scan(), None)
    pictures = [axes.images[0].get_array() for axes in figure.axes if axes.images and not axes.axison]
    sagittal, coronal, axial = pictures[:3]
    assert sagittal.shape == (22, 26)
    assert sagittal[0].mean() > sagittal[-1].mean()  # superior up
    assert sagittal[:, 0].mean() > sagittal[:, -1].mean()  # anterior left
    assert coronal.shape == (22, 20)
    assert coronal[:, 0].mean() > coronal[:, -1].mean()  # right on the left
    assert axial.shape == (26, 20)
    assert axial[0].mean() > axial[-1].mean()  # anterior up


def test_a_voxel_is_as_wide_as_it_is_high_in_all_slices() -> None:
    figure = draw_reconstruction(scan((30, 20, 12)), scan((30, 20, 12)), None)
    render(figure)
    scales = []
    for axes in figure.axes:
        if axes.images and not axes.axison:
            rows, columns = axes.images[0].get_array().shape
            scales += [axes.bbox.width / columns, axes.bbox.height / rows]
    assert np.ptp(scales) < 0.01


def test_all_greys_share_the_scans_window_and_all_errors_a_fixed_one() -> None:
    figure = draw_reconstruction(scan(), scan() * 3, scan() + 1)
    windows = [axes.images[0].get_clim() for axes in figure.axes if axes.images and not axes.axison]
    assert len(windows) == 5 * 3
    grey, error = windows[0], (0, 2)
    assert windows == [grey] * 6 + [error] * 3 + [grey] * 3 + [error] * 3
    assert grey == pytest.approx(np.percentile(scan(), (0.5, 99.5)))
    assert "mean 1.00" in words(figure)


def test_a_blank_scan_is_drawn_too() -> None:
    assert render(draw_reconstruction(np.zeros((8, 8, 8)), np.ones((8, 8, 8)), None)).max() > 200


def test_curves_leave_out_what_is_not_there() -> None:
    titles = [axes.get_title(loc="left") for axes in draw_curves(ledger()).axes if axes.axison]
    assert titles == ["Loss", "Reconstruction loss", "SSIM (validation)", "Codebook, nodes"]
    only = draw_curves([{"epoch": 1, "train/loss": 2.0, "val/ssim": float("nan")}])
    assert [axes.get_title(loc="left") for axes in only.axes] == ["Loss"]


def test_curves_draw_each_value_at_its_epoch_and_the_last_of_a_repeated_epoch() -> None:
    rows = [{"epoch": 2, "val/ssim": 0.5}, {"epoch": 1, "val/ssim": 0.25}, {"epoch": 2, "val/ssim": 0.75}]
    curve = draw_curves(rows).axes[0].lines[-1]
    assert np.array_equal(curve.get_xydata(), [[1, 0.25], [2, 0.75]])
    assert "best 0.75" in curve.get_label()


def test_losses_are_on_a_log_scale_where_they_can_be() -> None:
    assert draw_curves(ledger()).axes[0].get_yscale() == "log"
    assert (
        draw_curves([{"epoch": 1, "train/loss": 9.0}, {"epoch": 2, "train/loss": -1.0}]).axes[0].get_yscale()
        == "linear"
    )


def test_what_does_not_fit_is_refused_with_both_numbers() -> None:
    tokens, nodes, codes = latent()
    with pytest.raises(ValueError, match=r"16 x 16 map has 256 nodes, not 250 \(codes\)"):
        draw_grid(np.zeros((250, 32)), 16, 16)
    with pytest.raises(ValueError, match=r"4 x 6 map has 24 nodes, not 25 \(hits\)"):
        draw_hits(np.zeros(25), HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="node 1 has -3"):
        draw_usage([1, -3])
    with pytest.raises(ValueError, match="tokens have 7 channels, codes 8"):
        draw_latent(tokens[:, :7], nodes, codes, HEIGHT, WIDTH)
    with pytest.raises(ValueError, match=r"120 tokens need nodes of the shape \(120,\), not \(119,\)"):
        draw_latent(tokens, nodes[1:], codes, HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="from 1 to 24, but the map's from 0 to 23"):
        draw_latent(tokens, np.where(nodes > 20, 24, nodes + 1), codes, HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="nodes must be whole numbers, not float64"):
        draw_latent(tokens, nodes / 1, codes, HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="limit must be at least 1, not 0"):
        draw_latent(tokens, nodes, codes, HEIGHT, WIDTH, limit=0)
    with pytest.raises(ValueError, match="codes: 1 of 192 values are not finite"):
        draw_grid(np.where(np.arange(192).reshape(24, 8) == 5, np.nan, codes), HEIGHT, WIDTH)
    with pytest.raises(ValueError, match=r"\(20, 26, 22\), its reconstruction x'_q \(8, 8, 8\)"):
        draw_reconstruction(scan(), scan(), np.zeros((8, 8, 8)))
    with pytest.raises(ValueError, match="at least 4 points, not 3"):
        embed(tokens[:3], seed=0)
    volume, brain, of_tokens = projected()
    with pytest.raises(ValueError, match=r"the nodes are from 0 to 22, the map's from 0 to 15"):
        draw_projection(volume, brain, of_tokens, 4, 4, toroidal=True)
    with pytest.raises(ValueError, match=r"tokens of the shape \(2, 3, 2\) are no whole blocks"):
        draw_projection(volume[:31], brain[:31], of_tokens, HEIGHT, WIDTH, toroidal=True)
    with pytest.raises(ValueError, match="needs 24 blocks and 24 hits, not 24 and 25"):
        draw_decoded(decoded_blocks(), np.ones(25), HEIGHT, WIDTH, toroidal=True)
    with pytest.raises(ValueError, match="none of the 1 rows"):
        draw_curves([{"epoch": 1}])


def test_a_montage_shows_every_scan_once_and_in_order_below_its_label() -> None:
    brighter = [np.where(np.arange(22) < 2 * number + 1, 1.0, 0.0) * np.ones((20, 26, 22)) for number in range(10)]
    figure = draw_montage((f"sub-{number}", volume) for number, volume in enumerate(brighter))
    greys = shown(figure)
    assert len(greys) == 10
    for number, (sagittal, coronal, _) in enumerate(greys):
        assert (sagittal > 127).mean() == pytest.approx((2 * number + 1) / 22, abs=0.02)
        assert (coronal > 127).mean() == pytest.approx((2 * number + 1) / 22, abs=0.02)
    header, *labels = figure.texts
    assert header.get_text().startswith("10 scans ")
    assert [label.get_text() for label in labels] == [f"sub-{number}" for number in range(10)]
    for label, (sagittal, *_) in zip(labels, slices_of(figure), strict=True):
        box = label.get_window_extent()
        assert box.x0 == pytest.approx(sagittal[1].start, abs=2)
        assert 0 <= sagittal[0].start - (figure.bbox.height - box.y0) < 8


def test_right_front_and_top_are_where_the_montages_header_says() -> None:
    volume = np.zeros((20, 26, 22))
    volume[10, -4:, -3:] = 1  # front and top
    volume[-2:, 13, -3:] = 1  # right and top
    volume[-2:, -4:, 11] = 1  # right and front
    figure = draw_montage([("a", volume)])
    for plane in ("sagittal: front ← → back, ↑ top", "coronal: right ← → left, ↑ top"):
        assert plane in words(figure)
    assert "axial: right ← → left, ↑ front" in words(figure)
    ((sagittal, coronal, axial),) = shown(figure)
    for greys, (down, right) in ((sagittal, (3 / 22, 4 / 26)), (coronal, (3 / 22, 2 / 20)), (axial, (4 / 26, 2 / 20))):
        bright = greys > 127
        corner = bright[: round(down * len(greys)), : round(right * greys.shape[1])]
        assert corner.mean() > 0.98
        assert bright.sum() < corner.size * 1.05 + 8 * len(greys)  # and the marks of the other planes, seen edge on


@pytest.mark.parametrize("count", [1, 3, 8, 24, 48, 179])
def test_a_montage_of_any_cohort_fits_a_screen_as_far_as_slices_can_be_seen(count: int) -> None:
    figure = draw_montage(labelled(count, (18, 22, 18)))
    pixels = render(figure)
    assert 600 < pixels.shape[1] <= MOST_WIDE
    assert pixels.shape[0] <= MOST_HIGH or count == 179
    assert pixels.size / 3 > 0.55 * MOST_WIDE * MOST_HIGH or count == 1
    assert not reaches_the_edge(pixels)
    assert (pixels.dtype, pixels.min(), pixels.max()) == (np.uint8, 0, 255)
    assert pyplot.get_fignums() == []
    cells = slices_of(figure)
    sizes = {tuple((down.stop - down.start, right.stop - right.start) for down, right in cell) for cell in cells}
    assert len(cells) == count
    assert len(sizes) == 1
    for (high, wide), (rows, columns) in zip(sizes.pop(), ((18, 22), (18, 18), (22, 18)), strict=True):
        assert high >= SMALLEST
        assert high / rows == pytest.approx(wide / columns, rel=0.02)
    for place in cells[-1]:
        assert np.array_equal(pixels[place], np.asarray(figure.images[0].get_array())[place])  # not resampled


def test_a_montage_has_the_columns_that_were_asked_for() -> None:
    for columns, across in ((1, 1), (3, 3), (12, 7)):
        starts = {sagittal[1].start for sagittal, *_ in slices_of(draw_montage(labelled(7), columns=columns))}
        assert len(starts) == across


def test_a_montages_label_too_long_for_its_cell_is_cut_and_dollars_are_dollars() -> None:
    names = ["sub-$1$\nval", "sub-1 val", "", "sub-" + "x" * 200, "W" * 200]
    figure = draw_montage([(name, scan()) for name in names * 2], columns=10)
    dollars, plain, nothing, long, _ = labels = figure.texts[1:6]
    assert [label.get_text() for label in (dollars, plain, nothing)] == ["sub-$1$ val", "sub-1 val", ""]
    assert dollars.get_window_extent().width > plain.get_window_extent().width + 8
    for label, (first, _, last) in zip(labels, slices_of(figure)[:5], strict=True):
        assert label.get_window_extent().x1 <= last[1].stop + 1
        if label in labels[3:]:
            assert label.get_text().endswith("…")
            assert label.get_window_extent().width > 0.9 * (last[1].stop - first[1].start)
    held = long.get_text().rstrip("…")
    assert names[3].startswith(held)
    assert draw_montage([(held, scan())] * 10, columns=10).texts[1].get_text() == held  # what fits is left whole


def test_a_montage_holds_one_volume_at_a_time() -> None:
    def scans() -> Iterator[tuple[str, NDArray]]:
        for number in range(5):
            volume = scan().astype(np.float16)
            held = ref(volume)
            yield f"sub-{number}", volume
            del volume
            assert held() is None

    assert len(slices_of(draw_montage(scans()))) == 5


def test_each_scan_of_a_montage_has_its_own_grey_window_in_few_shades() -> None:
    noise = np.random.default_rng(0).normal(size=(20, 26, 22)).astype(np.float16)
    plain, scaled, blank_one, noisy = shown(
        draw_montage([("a", scan()), ("b", 8 * scan() - 4), ("c", np.ones((20, 26, 22))), ("d", noise)])
    )
    for one, other, black in zip(plain, scaled, blank_one, strict=True):
        assert np.array_equal(one, other)
        assert not black.any()
    assert 30 < len(np.unique(noisy[0])) <= SHADES
    assert {noisy[0].min(), noisy[0].max()} == {0, 255}


def test_a_shrunk_montage_leaves_no_voxel_out() -> None:
    volume = np.zeros((120, 120, 120), np.float16)
    volume[:, :, ::7] = 1  # planes one voxel thick
    sagittal, coronal, _ = shown(draw_montage([(str(number), volume) for number in range(8)], columns=8))[0]
    for greys in (sagittal, coronal):
        assert len(greys) < 120
        lines = ndimage.label(greys[:, 5] > 60)[1]
        assert lines == 18


def test_equal_scans_make_equal_montages_to_the_byte(tmp_path: Path) -> None:
    for name in ("first.png", "second.png"):
        save(draw_montage(labelled(8), columns=8), tmp_path / name)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


def test_what_a_montage_cannot_show_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="there are no scans to draw"):
        draw_montage([])
    with pytest.raises(ValueError, match="columns must be at least 1, not 0"):
        draw_montage(labelled(2), columns=0)
    with pytest.raises(ValueError, match=r"scan b must have 3 axes and not be empty, not the shape \(8, 8\)"):
        draw_montage([("a", scan()), ("b", np.ones((8, 8)))])
    with pytest.raises(ValueError, match="scan b: 1 of 11440 values are not finite"):
        draw_montage([("a", scan()), ("b", np.where(scan() == scan().max(), np.inf, scan()))])
    with pytest.raises(ValueError, match=r"scan a has the shape \(20, 26, 22\), scan b \(20, 22, 26\)"):
        draw_montage([("a", scan()), ("b", scan((20, 22, 26)))])
