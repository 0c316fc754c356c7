"""Metrics are checked against skimage, scikit-learn, MiniSom, scipy, numpy, and cases worked by hand."""

import math

import numpy as np
import pytest
import torch
from minisom import MiniSom
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import stats
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity
from sklearn import manifold
from torch import Tensor

from somvq import metrics
from somvq.codebooks.grid import Grid
from somvq.metrics import codebook, maps, reconstruction

TOPOLOGIES = ("rectangular", "toroidal")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scan_and_image(noise: float = 0.5, shape: tuple[int, int, int] = (18, 21, 16), seed: int = 0) -> tuple:
    """A smooth z-scored scan (1, 1, X, Y, Z) with dark borders, and a noisy copy."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.meshgrid(*(torch.linspace(-2, 2, side) for side in shape), indexing="ij")
    brain = torch.exp(-(axes[0] ** 2 + 0.5 * axes[1] ** 2 + axes[2] ** 2)) * (2 + torch.sin(3 * axes[1]))
    scan = (brain - brain.mean()) / brain.std()
    return scan[None, None], (scan + noise * torch.randn(shape, generator=generator))[None, None]


def ssim_by_hand(scan: NDArray, image: NDArray, window: int) -> float:
    """Every window for itself, with numpy's mean, variance and covariance."""
    extent = scan.max() - scan.min()
    c1, c2 = (0.01 * extent) ** 2, (0.03 * extent) ** 2
    values = []
    windows = (sliding_window_view(volume, (window,) * 3).reshape(-1, window**3) for volume in (scan, image))
    for a, b in zip(*windows, strict=True):
        (variance_a, covariance), (_, variance_b) = np.cov(a, b, bias=True)
        luminance = (2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1)
        values.append(luminance * (2 * covariance + c2) / (variance_a + variance_b + c2))
    return float(np.mean(values))


def volume(scans: Tensor) -> NDArray:
    return scans[0, 0].double().numpy()


# reconstruction


SKIMAGE = {  # what makes structural_similarity the SSIM of each kind
    "paper": {"win_size": 9, "use_sample_covariance": False},
    "skimage": {},
    "gaussian": {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False},
}


def by_skimage(kind: str, scan: Tensor, image: Tensor, **options) -> tuple:
    extent = float(scan.max() - scan.min())
    return structural_similarity(volume(scan), volume(image), data_range=extent, **SKIMAGE[kind], **options)


@pytest.mark.parametrize("scale", [1, 255])
@pytest.mark.parametrize("noise", [0.05, 0.5, 3.0])
@pytest.mark.parametrize("kind", SKIMAGE)
def test_ssim_agrees_with_scikit_image(kind, noise, scale):
    scan, image = (scale * one for one in scan_and_image(noise))
    assert float(metrics.ssim(scan, image, kind)) == pytest.approx(by_skimage(kind, scan, image), abs=1e-5)


@pytest.mark.parametrize("shape", [(9, 9, 9), (16, 10, 11), (17, 9, 30), (25, 12, 10)])
def test_ssim_takes_every_window_of_every_shape(shape):
    scan, image = scan_and_image(shape=shape)
    assert float(metrics.ssim(scan, image)) == pytest.approx(by_skimage("paper", scan, image), abs=1e-5)


@pytest.mark.parametrize("kind", SKIMAGE)
def test_ssim_of_a_mask_is_over_the_windows_centred_in_it(kind):
    scan, image = scan_and_image()
    mask = scan > scan.quantile(0.9)
    margin = metrics.SSIM_KINDS[kind].side // 2
    inside = np.zeros(volume(scan).shape, dtype=bool)
    inside[margin:-margin, margin:-margin, margin:-margin] = True
    _, every = by_skimage(kind, scan, image, full=True)
    expected = every[inside & mask[0, 0].numpy()].mean()
    assert float(metrics.ssim(scan, image, kind, mask)) == pytest.approx(expected, abs=1e-5)
    assert abs(expected - by_skimage(kind, scan, image)) > 1e-3


def test_ssim_is_what_a_loop_over_windows_averages():
    scan, image = scan_and_image(shape=(10, 11, 12))
    assert float(metrics.ssim(scan, image)) == pytest.approx(ssim_by_hand(volume(scan), volume(image), 9), abs=1e-5)


@pytest.mark.parametrize("kind", SKIMAGE)
def test_ssim_in_parts_by_numpy_is_ssim_at_once_by_torch(kind):
    """As on a CPU and as on a GPU."""
    scan, image = (one[0, 0] for one in scan_and_image())
    window = metrics.SSIM_KINDS[kind]
    weights = torch.from_numpy(reconstruction.window_weights(scan.shape, None, window.side))
    flat = [one.reshape(-1) for one in (scan, image, weights)]
    at_once = reconstruction.sum_of_map(*flat, (21 * 16, 16, 1), window, 18)
    parts = reconstruction.sum_of_map(*(one.numpy() for one in flat), (21 * 16, 16, 1), window, 3)
    assert at_once == pytest.approx(parts, rel=1e-6)


def test_the_papers_window_is_nine_voxels():
    scan, image = scan_and_image()
    assert torch.equal(metrics.ssim(scan, image), metrics.ssim(scan, image, "paper"))
    assert not torch.equal(metrics.ssim(scan, image), metrics.ssim(scan, image, "skimage"))


@pytest.mark.parametrize("kind", SKIMAGE)
def test_ssim_of_a_scan_with_itself_is_one(kind):
    scan, _ = scan_and_image()
    assert float(metrics.ssim(scan, scan, kind)) == pytest.approx(1, abs=1e-6)


def test_ssim_of_nothing_is_no_number():
    scan, image = scan_and_image()
    assert metrics.ssim(scan, image, mask=torch.zeros_like(scan, dtype=torch.bool)).isnan()
    assert metrics.ssim(torch.ones_like(scan), image).isnan()
    assert metrics.ssim(scan, torch.full_like(scan, math.nan)).isnan()
    assert metrics.ssim(scan, torch.full_like(scan, math.inf)).isnan()


def test_a_volume_smaller_than_the_window_has_no_ssim():
    scan, image = scan_and_image(shape=(8, 12, 12))
    assert metrics.ssim(scan, image, "skimage").isfinite()
    with pytest.raises(ValueError, match="9 voxels do not fit"):
        metrics.ssim(scan, image)


def test_metrics_of_reconstruction_take_images_with_gradients():
    scan, image = scan_and_image()
    image.requires_grad_()
    assert not metrics.ssim(scan, image).requires_grad
    assert not metrics.mse(scan, image).requires_grad


def test_ssim_is_symmetric_between_volumes_of_one_range():
    scan, image = scan_and_image()
    image = image.clamp(scan.min(), scan.max())
    assert image.max() - image.min() == scan.max() - scan.min()
    torch.testing.assert_close(metrics.ssim(scan, image), metrics.ssim(image, scan))


def test_the_range_in_ssim_is_the_scans_not_the_images():
    scan, image = scan_and_image()
    loud = 3 * image
    assert float(metrics.ssim(scan, loud)) == pytest.approx(
        structural_similarity(
            volume(scan),
            volume(loud),
            win_size=9,
            data_range=float(scan.max() - scan.min()),
            use_sample_covariance=False,
        ),
        abs=1e-5,
    )
    assert abs(float(metrics.ssim(scan, loud) - metrics.ssim(loud, scan))) > 0.01


def test_every_scan_of_a_batch_is_measured_by_itself():
    (scan, image), (other, other_image) = scan_and_image(), scan_and_image(seed=1)
    scans, images = torch.cat([scan, 5 * other]), torch.cat([image, 4 * other_image])
    peak = metrics.scan_range(scans)
    torch.testing.assert_close(peak, torch.stack([scan.max() - scan.min(), 5 * (other.max() - other.min())]))
    alone = [(scans[[i]], images[[i]], peak[[i]]) for i in range(2)]
    torch.testing.assert_close(
        metrics.ssim(scans, images), torch.cat([metrics.ssim(one, its_image) for one, its_image, _ in alone])
    )
    torch.testing.assert_close(metrics.psnr(scans, images, peak), torch.cat([metrics.psnr(*one) for one in alone]))


def test_half_precision_images_are_measured_in_full():
    scan, image = scan_and_image()
    half = image.bfloat16()
    torch.testing.assert_close(metrics.ssim(scan, half), metrics.ssim(scan, half.float()))


@pytest.mark.parametrize("peak", [metrics.scan_range, metrics.scan_maximum])
def test_psnr_is_that_of_skimage(peak):
    scan, image = scan_and_image()
    reference = {metrics.scan_range: float(scan.max() - scan.min()), metrics.scan_maximum: float(scan.max())}[peak]
    expected = peak_signal_noise_ratio(volume(scan), volume(image), data_range=reference)
    assert float(metrics.psnr(scan, image, peak(scan))) == pytest.approx(expected, abs=1e-4)


def test_a_tenth_of_the_peak_wrong_everywhere_is_twenty_decibels():
    scan = torch.rand(2, 1, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    found = metrics.psnr(scan, scan + torch.tensor([0.1, 0.2])[:, None, None, None, None], torch.tensor([1.0, 2.0]))
    assert found.tolist() == pytest.approx([20, 20], abs=1e-4)


def test_mse_is_that_of_skimage():
    scan, image = scan_and_image()
    assert float(metrics.mse(scan, image)) == pytest.approx(mean_squared_error(volume(scan), volume(image)), rel=1e-5)


def test_errors_in_a_mask_are_of_its_voxels_alone():
    scan, image = scan_and_image()
    mask = scan > scan.median()
    chosen = mask.numpy()
    expected = mean_squared_error(scan.numpy()[chosen], image.numpy()[chosen])
    assert float(metrics.mse(scan, image, mask)) == pytest.approx(expected, rel=1e-5)
    found = metrics.psnr(scan, image, torch.tensor([2.0]), mask)
    assert float(found) == pytest.approx(10 * math.log10(4 / expected), abs=1e-4)
    assert metrics.mse(scan, image, torch.zeros_like(mask)).isnan()


def test_a_perfect_image_has_an_infinite_psnr():
    scan, _ = scan_and_image()
    assert metrics.psnr(scan, scan, metrics.scan_range(scan)).isposinf()


def test_a_crop_is_the_voxels_of_its_box():
    images = torch.arange(2 * 4 * 5 * 6).view(2, 1, 4, 5, 6)
    assert torch.equal(metrics.crop(images, ((1, 3), (0, 5), (2, 6))), images[:, :, 1:3, :, 2:])


# codebook


def test_hits_are_counted_for_every_code():
    nodes = torch.tensor([[0, 3, 3], [3, 1, 0]])
    hits = metrics.count_hits(nodes, 5)
    assert hits.tolist() == [2, 1, 0, 3, 0]
    assert metrics.codes_used(hits) == 3
    assert metrics.dead_codes(hits) == 2
    assert metrics.count_hits(nodes[nodes > 4], 5).tolist() == [0] * 5


def test_codes_of_a_scan_are_those_of_its_foreground():
    nodes = torch.tensor([[0, 3, 3, 2], [4, 4, 4, 4], [0, 1, 2, 3]])
    assert metrics.codes_per_scan(nodes, 5).tolist() == [3, 1, 4]
    mask = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]).bool()
    assert metrics.codes_per_scan(nodes, 5, mask).tolist() == [1, 1, 0]


def test_codes_that_won_nothing_have_no_perplexity():
    assert math.isnan(metrics.perplexity(torch.zeros(4)))


def test_the_two_nearest_codes_are_those_of_scipy():
    tokens, codes = draw(301, 6), draw(40, 6, seed=1)
    every = np.linalg.norm(tokens.double().numpy()[:, None] - codes.double().numpy(), axis=2)
    distances, nodes = metrics.nearest_two(tokens, codes)
    np.testing.assert_array_equal(nodes.numpy(), every.argsort(axis=1)[:, :2])
    np.testing.assert_allclose(distances.numpy(), np.sort(every, axis=1)[:, :2], rtol=1e-12)


def test_nearest_codes_do_not_depend_on_how_tokens_are_cut(monkeypatch):
    tokens, codes = draw(301, 6), draw(40, 6, seed=1)
    whole = metrics.nearest_two(tokens, codes)
    overlap = metrics.mixing(tokens, codes), metrics.token_overlap(tokens, codes)
    monkeypatch.setattr(codebook, "CHUNK", 7 * 40)
    assert all(map(torch.equal, whole, metrics.nearest_two(tokens, codes)))
    assert (metrics.mixing(tokens, codes), metrics.token_overlap(tokens, codes)) == pytest.approx(overlap, rel=1e-12)


def test_of_codes_that_coincide_the_lower_nodes_are_nearest():
    """Far from the origin, where |a|^2 + |b|^2 - 2ab would leave only rounding."""
    codes = torch.full((7, 3), 1e4)
    distances, nodes = metrics.nearest_two(codes[:2] + torch.tensor([[0.0], [0.25]]), codes)
    assert nodes.tolist() == [[0, 1], [0, 1]]
    assert distances[0].tolist() == [0, 0]
    assert distances[1].tolist() == pytest.approx([0.25 * math.sqrt(3)] * 2)


def test_one_code_has_no_second():
    with pytest.raises(ValueError, match="codebook of 1"):
        metrics.nearest_two(draw(3, 2), draw(1, 2))


def minisom(grid: Grid, codes: Tensor) -> MiniSom:
    som = MiniSom(grid.height, grid.width, codes.shape[1])
    som._weights = codes.double().numpy().reshape(grid.height, grid.width, -1)
    return som


def test_errors_are_those_of_minisom():
    grid = Grid(6, 5, "rectangular")
    tokens, codes = draw(500, 3), draw(30, 3, seed=1)
    som = minisom(grid, codes)
    error = som.quantization_error(tokens.double().numpy())
    assert metrics.quantisation_error(tokens, codes) == pytest.approx(error, abs=1e-5)
    nodes = metrics.nearest_two(tokens, codes)[1]
    error = som.topographic_error(tokens.double().numpy())
    assert 0.3 < error < 0.9
    assert metrics.topographic_error_of(nodes, grid, 8) == pytest.approx(error, abs=1e-5)
    distances = torch.cdist(tokens, codes)
    assert metrics.topographic_error(distances, grid, 8) == pytest.approx(error, abs=1e-5)


def test_relative_error_is_one_for_the_mean_and_none_for_the_tokens():
    tokens = draw(50, 4)
    assert metrics.relative_quantisation_error(tokens, tokens) == 0
    assert metrics.relative_quantisation_error(tokens, tokens.mean(0).repeat(2, 1)) == pytest.approx(1)
    halves = torch.tensor([[-3.0], [-1.0], [1.0], [3.0]])
    assert metrics.relative_quantisation_error(halves, torch.tensor([[-2.0], [2.0]])) == pytest.approx(4 / 20)
    assert math.isnan(metrics.relative_quantisation_error(torch.ones(5, 2), draw(3, 2)))


def test_codes_among_tokens_mix_and_codes_apart_do_not():
    tokens = draw(1000, 4)
    among, apart = draw(200, 4, seed=1), draw(200, 4, seed=1) + 100
    assert metrics.mixing(tokens, among) == pytest.approx(1000 / 1199, abs=0.04)
    assert metrics.token_overlap(tokens, among) == pytest.approx(1, abs=0.1)
    assert metrics.mixing(tokens, apart) == metrics.token_overlap(tokens, apart) == 0


def test_the_nearest_of_a_code_are_counted_by_hand():
    tokens, codes = torch.tensor([[1.0], [2.0], [9.0]]), torch.tensor([[0.0], [4.0]])
    assert metrics.mixing(tokens, codes, 1) == 1  # 1 and 2
    assert metrics.mixing(tokens, codes, 3) == pytest.approx((2 / 3 + 2 / 3) / 2)  # 1 2 (4); 2 1 (0)
    assert metrics.mixing(tokens, codes, 4) == pytest.approx(3 / 4)  # all there are
    with pytest.raises(ValueError, match="5 neighbours"):
        metrics.mixing(tokens, codes, 5)


def test_neighbours_at_one_distance_count_by_their_share():
    codes = torch.tensor([[0.0], [1.0]])
    tokens = torch.tensor([[-1.0], [2.0]])  # a code and a token are equally near each code
    assert metrics.mixing(tokens, codes, 1) == 0.5
    assert metrics.mixing(torch.zeros(3, 2), torch.zeros(4, 2), 2) == 0.5  # 3 tokens and 3 other codes, all at 0


def test_the_ratio_of_norms_is_of_the_largest():
    tokens, codes = torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([[0.0, 0.0], [0.0, -10.0]])
    assert metrics.norm_ratio(tokens, codes) == 2


@pytest.mark.parametrize("nodes", [1, 2, 16, 256])
def test_codes_used_evenly_have_a_perplexity_of_their_number(nodes):
    assert metrics.perplexity(torch.full((nodes,), 7)) == pytest.approx(nodes)


def test_one_code_that_wins_all_has_a_perplexity_of_one():
    assert metrics.perplexity(torch.tensor([0, 0, 891, 0])) == pytest.approx(1)


def test_perplexity_is_the_exponential_of_the_entropy_of_use():
    hits = torch.tensor([3, 1, 0, 12, 5])
    assert metrics.perplexity(hits) == pytest.approx(math.exp(stats.entropy(hits.numpy())))


def test_perplexity_does_not_mind_how_many_tokens_there_are():
    hits = torch.tensor([30_000_001, 10_000_000, 5])
    assert metrics.perplexity(hits) == pytest.approx(math.exp(stats.entropy(hits.numpy())), rel=1e-9)


@pytest.mark.parametrize("nodes", [2, 16, 256])
def test_tokens_that_belong_everywhere_alike_have_an_entropy_of_one(nodes):
    assert metrics.assignment_entropy(torch.full((5, nodes), 1 / nodes)) == pytest.approx(1)


def test_tokens_that_belong_to_one_node_have_no_entropy():
    assert metrics.assignment_entropy(torch.eye(6)) == 0


def test_entropy_is_the_mean_over_tokens_by_the_log_of_the_nodes():
    s = torch.randn(9, 12, generator=torch.Generator().manual_seed(0)).softmax(1)
    expected = stats.entropy(s.numpy(), axis=1).mean() / math.log(12)
    assert metrics.assignment_entropy(s) == pytest.approx(expected, rel=1e-5)


# map


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("grid", [Grid(3, 4, "rectangular"), Grid(3, 4, "toroidal"), Grid(2, 5, "toroidal")], ids=str)
def test_neighbours_are_correlated_as_numpy_says(grid, centred):
    codes = torch.randn(grid.nodes, 8, generator=torch.Generator().manual_seed(0)) + torch.arange(8.0)
    matrix = np.corrcoef(codes.numpy() - (codes.numpy().mean(0) if centred else 0))
    expected = matrix[grid.adjacency.numpy() > 0].mean()
    assert metrics.neighbour_correlation(codes, grid, centred=centred) == pytest.approx(expected, rel=1e-5)


def test_a_mean_that_all_codes_share_raises_the_raw_correlation_alone():
    grid = Grid(8, 8, "toroidal")
    codes = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    shifted = codes + 10 * torch.randn(32, generator=torch.Generator().manual_seed(1))
    assert metrics.neighbour_correlation(shifted, grid, centred=False) > 0.95
    plain = metrics.neighbour_correlation(codes, grid, centred=True)
    assert metrics.neighbour_correlation(shifted, grid, centred=True) == pytest.approx(plain, abs=1e-5)
    assert abs(plain) < 0.1


def test_codes_that_slide_along_the_map_are_correlated_between_neighbours():
    grid = Grid(8, 8, "rectangular")
    row, column = torch.arange(64) // 8 - 3.5, torch.arange(64) % 8 - 3.5
    codes = torch.stack([row, column], 1) @ torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    shuffled = codes[torch.randperm(64, generator=torch.Generator().manual_seed(1))]
    assert metrics.neighbour_correlation(codes, grid, centred=True) > 0.7
    assert abs(metrics.neighbour_correlation(shuffled, grid, centred=True)) < 0.3


def test_a_codebook_that_is_one_point_has_no_centred_correlation():
    codes = torch.randn(8, generator=torch.Generator().manual_seed(0)).repeat(15, 1)
    assert math.isnan(metrics.neighbour_correlation(codes, Grid(3, 5), centred=True))
    assert metrics.neighbour_correlation(codes, Grid(3, 5), centred=False) == pytest.approx(1)


def test_map_metrics_take_codes_that_are_being_trained():
    codes = torch.nn.Parameter(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    assert math.isfinite(metrics.neighbour_correlation(codes, Grid(2, 3), centred=True))
    assert math.isfinite(metrics.assignment_entropy(codes.softmax(1)))


LINE = torch.tensor(  # distances of four tokens to nodes 0-1-2-3
    [
        [0.0, 1.0, 2.0, 3.0],  # 0 then 1: neighbours
        [1.0, 5.0, 0.5, 9.0],  # 2 then 0: not
        [4.0, 3.0, 2.0, 1.0],  # 3 then 2: neighbours
        [0.1, 5.0, 5.0, 0.2],  # 0 then 3: only on a ring
    ]
)


@pytest.mark.parametrize(("topology", "expected"), [("rectangular", 0.5), ("toroidal", 0.25)])
def test_topographic_error_counts_tokens_whose_two_nearest_nodes_are_apart(topology, expected):
    assert metrics.topographic_error(LINE, Grid(1, 4, topology)) == expected


def test_a_diagonal_is_an_error():
    distances = torch.tensor([[0.0, 2.0, 3.0, 1.0]])  # nodes (0, 0) and (1, 1)
    assert metrics.topographic_error(distances, Grid(2, 2, "rectangular")) == 1
    assert metrics.topographic_error(distances, Grid(2, 2, "toroidal")) == 1


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("neighbours", [4, 8])
def test_neighbours_are_those_within_a_step(topology, neighbours):
    grid = Grid(4, 5, topology)
    near = maps.neighbourhood(grid, neighbours)
    for a in range(20):
        for b in range(20):
            down, across = abs(a // 5 - b // 5), abs(a % 5 - b % 5)
            if topology == "toroidal":
                down, across = min(down, 4 - down), min(across, 5 - across)
            assert near[a, b] == (down + across == 1 if neighbours == 4 else max(down, across) == 1)


def test_errors_from_nodes_and_from_distances_are_the_same():
    tokens, codes, grid = draw(200, 4), draw(20, 4, seed=1), Grid(4, 5)
    nodes = metrics.nearest_two(tokens, codes)[1]
    distances = torch.cdist(tokens, codes)
    for neighbours in (4, 8):
        expected = metrics.topographic_error(distances, grid, neighbours)
        assert metrics.topographic_error_of(nodes, grid, neighbours) == expected
        null = metrics.topographic_error_null(nodes, grid, neighbours, permutations=19, seed=0)
        assert null.value == expected
    assert metrics.topographic_error_of(nodes, grid, 8) < metrics.topographic_error_of(nodes, grid, 4)


def test_no_tokens_have_no_topographic_error():
    nodes = torch.zeros(0, 2, dtype=torch.long)
    assert math.isnan(metrics.topographic_error_of(nodes, Grid(2, 2)))
    assert all(math.isnan(one) for one in metrics.topographic_error_null(nodes, Grid(2, 2), seed=0))


def test_morans_i_of_one_channel_is_the_textbooks():
    grid, values = Grid(3, 4, "rectangular"), draw(12, 1)
    x = values[:, 0].double().numpy() - values.double().mean().item()
    w = grid.adjacency.numpy()
    expected = 12 / w.sum() * sum(w[i, j] * x[i] * x[j] for i in range(12) for j in range(12)) / (x**2).sum()
    assert metrics.morans_i(values, grid) == pytest.approx(expected)
    w = np.exp(-grid.distances.numpy())
    expected = 12 / w.sum() * sum(w[i, j] * x[i] * x[j] for i in range(12) for j in range(12)) / (x**2).sum()
    assert metrics.morans_i_published(values, grid) == pytest.approx(expected)


def test_morans_i_of_channels_is_their_mean_by_variance():
    grid, codes = Grid(4, 4), draw(16, 3) * torch.tensor([1.0, 2.0, 5.0])
    alone = [metrics.morans_i(codes[:, [channel]], grid) for channel in range(3)]
    expected = np.average(alone, weights=codes.double().var(0).numpy())
    assert metrics.morans_i(codes, grid) == pytest.approx(expected)


def test_a_chequerboard_has_a_morans_i_of_minus_one():
    board = ((torch.arange(16) // 4 + torch.arange(16) % 4) % 2).float()[:, None]
    assert metrics.morans_i(board, Grid(4, 4, "toroidal")) == pytest.approx(-1)


def test_self_pairs_are_all_there_was_to_the_published_morans_i():
    codes = draw(256, 32)
    for grid, published in ((Grid(16, 16, "rectangular"), 0.234), (Grid(16, 16, "toroidal"), 0.21)):
        nulls = metrics.map_nulls(codes, grid, permutations=49, seed=0)
        assert nulls["morans_i_published"].mean == pytest.approx(published, abs=0.01)
        assert nulls["morans_i"].mean == pytest.approx(-1 / 255, abs=0.003)


def plane(height: int, width: int, channels: int = 8) -> Tensor:
    """Codes that lie as their nodes do: a plane in `channels` dimensions."""
    row, column = torch.arange(height * width) // width, torch.arange(height * width) % width
    turn = torch.linalg.qr(draw(channels, channels).double()).Q[:2]
    return torch.stack([row, column], 1).double() @ turn


def ring(height: int, width: int) -> Tensor:
    """Codes that lie as the nodes of a toroidal map do."""
    row, column = torch.arange(height * width) // width, torch.arange(height * width) % width
    down, across = 2 * math.pi * row.double() / height, 2 * math.pi * column.double() / width
    circles = [height * down.cos(), height * down.sin(), width * across.cos(), width * across.sin()]
    return torch.stack(circles, 1)


@pytest.mark.parametrize("neighbours", [2, 4])
def test_trustworthiness_agrees_with_scikit_learn_on_a_chain(neighbours):
    codes = draw(25, 3)
    places = np.arange(25.0)[:, None]
    expected = manifold.trustworthiness(codes.double().numpy(), places, n_neighbors=neighbours)
    found = metrics.trustworthiness(codes, Grid(1, 25, "rectangular"), neighbours)
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("neighbours", [4, 8])
def test_trustworthiness_agrees_with_scikit_learn_on_a_torus(neighbours):
    """Where the neighbours of a node are either four or eight, no tie decides."""
    codes = draw(63, 5)
    found = metrics.trustworthiness(codes, Grid(7, 9), neighbours)
    expected = manifold.trustworthiness(codes.double().numpy(), ring(7, 9).numpy(), n_neighbors=neighbours)
    assert found == pytest.approx(expected, abs=1e-5)


def test_trustworthiness_with_ties_is_the_mean_over_ways_to_break_them():
    codes, grid = draw(30, 3).round(), Grid(5, 6, "rectangular")
    assert len(codes.unique(dim=0)) < 30  # some coincide
    generator = np.random.default_rng(0)
    places = np.stack(np.divmod(np.arange(30), 6), 1)
    found = [
        manifold.trustworthiness(
            codes.double().numpy() + 1e-6 * generator.standard_normal(codes.shape),
            places + 1e-6 * generator.standard_normal(places.shape),
            n_neighbors=5,
        )
        for _ in range(300)
    ]
    error = 4 * np.std(found) / math.sqrt(300)
    assert metrics.trustworthiness(codes, grid, 5) == pytest.approx(np.mean(found), abs=error)


def test_a_codebook_that_is_one_point_is_as_trustworthy_as_chance():
    nulls = metrics.map_nulls(draw(64, 4), Grid(8, 8), permutations=99, seed=0)
    assert metrics.trustworthiness(torch.ones(64, 4), Grid(8, 8)) == pytest.approx(
        nulls["trustworthiness"].mean, abs=0.01
    )


def test_trustworthiness_needs_more_nodes_than_twice_its_neighbours():
    assert 0 <= metrics.trustworthiness(draw(11, 2), Grid(1, 11), 5) <= 1
    with pytest.raises(ValueError, match="more than 10 nodes, not 10"):
        metrics.trustworthiness(draw(10, 2), Grid(1, 10), 5)


def product_by_hand(codes: NDArray, places: NDArray) -> tuple[float, float]:
    """Bauer & Pawelzik's definitions to the letter, with loops; no two distances from a node may be equal."""
    nodes = len(codes)
    product = violation = 0.0
    for j in range(nodes):
        apart, steps = np.linalg.norm(codes - codes[j], axis=1), np.linalg.norm(places - places[j], axis=1)
        by_codes = [i for i in np.argsort(apart) if i != j]
        by_map = [i for i in np.argsort(steps) if i != j]
        q1, q2 = apart[by_map] / apart[by_codes], steps[by_map] / steps[by_codes]
        for k in range(1, nodes):
            p1, p2 = np.prod(q1[:k]) ** (1 / k), np.prod(q2[:k]) ** (1 / k)
            product += math.log(math.sqrt(p1 * p2))
            violation += math.log(math.sqrt(p1 / p2))
    return product / (nodes * (nodes - 1)), violation / (nodes * (nodes - 1))


def test_the_topographic_product_of_three_nodes_is_worked_out():
    """A chain whose codes are 0, 2, 1. All P3(j, 2) are 1; of k = 1, with a = log 2:

    node 0: log Q1 = a, log Q2 = -a. Node 1: on the map a tie, so log Q1 = a or 0, a / 2; log Q2 = 0. Node 2: among the
    codes a tie, so log Q1 = 0, log Q2 = -a / 2. log P3 is half their sum: 0, a / 4, -a / 4; its mean over 3 x 2 is 0.
    """
    codes, grid = torch.tensor([[0.0], [2.0], [1.0]]), Grid(1, 3, "rectangular")
    assert metrics.topographic_product(codes, grid) == pytest.approx(0, abs=1e-12)
    assert metrics.topographic_violation(codes, grid) == pytest.approx((1 + 1 / 4 + 1 / 4) * math.log(2) / 6)
    # codes 0, 1, 3: node 1 alone has a tie on the map, so log Q1 = log 2 or 0; all else agrees
    stretched = torch.tensor([[0.0], [1.0], [3.0]])
    assert metrics.topographic_product(stretched, grid) == pytest.approx(math.log(2) / 4 / 6)
    assert metrics.topographic_violation(stretched, grid) == pytest.approx(math.log(2) / 4 / 6)


def test_the_topographic_product_with_ties_is_the_mean_over_ways_to_break_them():
    codes, grid = draw(20, 3), Grid(4, 5, "rectangular")
    generator = np.random.default_rng(0)
    places = np.stack(np.divmod(np.arange(20), 5), 1)
    found = [
        product_by_hand(codes.double().numpy(), places + 1e-7 * generator.standard_normal(places.shape))
        for _ in range(100)
    ]
    error = 4 * np.std(found, axis=0) / 10
    assert metrics.topographic_product(codes, grid) == pytest.approx(np.mean(found, axis=0)[0], abs=error[0])
    assert metrics.topographic_violation(codes, grid) == pytest.approx(np.mean(found, axis=0)[1], abs=error[1])


@pytest.mark.parametrize("of", [metrics.topographic_product, metrics.topographic_violation])
def test_a_perfect_map_violates_nothing(of):
    assert of(3 * torch.arange(12.0)[:, None] - 7, Grid(1, 12, "rectangular")) == pytest.approx(0, abs=1e-12)
    places = torch.stack([torch.arange(30) // 6, torch.arange(30) % 6], 1).float()
    assert of(places, Grid(5, 6, "rectangular")) == pytest.approx(0, abs=1e-12)


def test_a_map_of_too_few_dimensions_has_a_negative_product_and_one_of_too_many_a_positive():
    snake = torch.stack([torch.arange(36) // 6, (torch.arange(36) % 12 - 5.5).abs().floor()], 1).float()
    assert metrics.topographic_product(snake, Grid(1, 36, "rectangular")) < -0.02
    line = torch.arange(36.0)[:, None]
    assert metrics.topographic_product(line, Grid(6, 6, "rectangular")) > 0.02


def test_the_topographic_product_does_not_see_disorder_and_the_violation_does():
    """Why there is a second: of a shuffled plane, its two parts cancel."""
    codes, grid = plane(8, 8), Grid(8, 8, "rectangular")
    shuffled = codes[torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    assert abs(metrics.topographic_product(shuffled, grid)) < 0.01
    assert metrics.topographic_violation(shuffled, grid) > 0.3


def test_codes_that_coincide_have_a_topographic_product():
    codes = torch.tensor([[0.0], [0.0], [1.0], [1.0], [3.0]])
    grid = Grid(1, 5, "rectangular")
    assert math.isfinite(metrics.topographic_product(codes, grid))
    assert metrics.topographic_violation(codes, grid) > 0
    for of in (metrics.topographic_product, metrics.topographic_violation):  # their distance has the codes' scale
        assert of(1000 * codes, grid) == pytest.approx(of(codes, grid))
    assert math.isnan(metrics.topographic_product(torch.ones(5, 2), grid))
    assert math.isnan(metrics.topographic_violation(torch.ones(5, 2), grid))
    assert math.isnan(metrics.topographic_product(torch.ones(1, 2), Grid(1, 1)))


def test_codes_have_to_be_as_many_as_nodes():
    with pytest.raises(ValueError, match="3 x 4 map has 12 nodes, not 11"):
        metrics.morans_i(draw(11, 2), Grid(3, 4))


# nulls

NULLS = {
    "neighbour_correlation",
    "neighbour_correlation_raw",
    "morans_i",
    "morans_i_published",
    "trustworthiness",
    "topographic_violation",
    "topographic_error",
    "topographic_error_8",
}


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_every_map_metric_tells_an_ordered_map_from_a_shuffled_one(topology):
    grid = Grid(8, 8, topology)
    codes = (plane(8, 8) if topology == "rectangular" else ring(8, 8)).float()
    codes = codes + draw(1, codes.shape[1], seed=9)  # none at 0, which correlates with nothing
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    tokens = codes[torch.arange(640) % 64] + 0.3 * draw(640, codes.shape[1], seed=4)
    for these, ordered in ((codes, True), (codes[order], False)):
        nodes = metrics.nearest_two(tokens, these)[1]
        nulls = metrics.map_nulls(these, grid, nodes, permutations=99, seed=5)
        assert set(nulls) == NULLS | {"topographic_product"}
        for name in NULLS:
            null = nulls[name]
            assert null.p == 0.01 if ordered else null.p > 0.02, name
            assert abs(null.value - null.mean) > 8 * null.deviation or not ordered, name


def test_p_is_uniform_of_codes_in_random_order():
    found = []
    for seed in range(60):
        codes, tokens = draw(25, 4, seed=seed), draw(100, 4, seed=1000 + seed)
        nodes = metrics.nearest_two(tokens, codes)[1]
        nulls = metrics.map_nulls(codes, Grid(5, 5), nodes, permutations=49, seed=seed)
        found.append([nulls[name].p for name in sorted(NULLS)])
    for name, p in zip(sorted(NULLS), np.array(found).T, strict=True):
        assert stats.kstest(p, "uniform").pvalue > 1e-3, name
        assert p.max() > 0.9, name
        assert p.min() < 0.1, name


def test_the_nulls_of_all_are_those_of_each():
    codes, grid = draw(36, 4), Grid(6, 6)
    nodes = metrics.nearest_two(draw(200, 4, seed=1), codes)[1]
    nulls = metrics.map_nulls(codes, grid, nodes, permutations=29, seed=7)
    alone = {
        "neighbour_correlation": (lambda c: metrics.neighbour_correlation(c, grid, centred=True), True),
        "neighbour_correlation_raw": (lambda c: metrics.neighbour_correlation(c, grid, centred=False), True),
        "morans_i": (lambda c: metrics.morans_i(c, grid), True),
        "morans_i_published": (lambda c: metrics.morans_i_published(c, grid), True),
        "trustworthiness": (lambda c: metrics.trustworthiness(c, grid), True),
        "topographic_violation": (lambda c: metrics.topographic_violation(c, grid), False),
    }
    for name, (statistic, larger) in alone.items():
        null = metrics.permutation_null(statistic, codes, permutations=29, seed=7, larger_is_better=larger)
        assert nulls[name] == pytest.approx(null, rel=1e-9), name
    for name, neighbours in (("topographic_error", 4), ("topographic_error_8", 8)):
        null = metrics.topographic_error_null(nodes, grid, neighbours, permutations=29, seed=7)
        assert nulls[name] == pytest.approx(null, rel=1e-9), name


def test_a_null_counts_what_is_as_good():
    assert maps.null_of(3.0, [1.0, 2.0, 3.0, 4.0]) == pytest.approx((3, 2.5, math.sqrt(1.25), 3 / 5))
    assert maps.null_of(3.0, [1.0, 2.0, 3.0, 4.0], larger_is_better=False).p == 4 / 5
    assert maps.null_of(1.0, [1.0 - 1e-15] * 4).p == 1  # equal but for rounding


def test_what_has_no_value_has_no_p():
    """NaN compares as worse than nothing, and would be significant."""
    assert math.isnan(maps.null_of(math.nan, [1.0, 2.0]).p)
    assert math.isnan(maps.null_of(1.0, [math.nan, 2.0]).p)
    nulls = metrics.map_nulls(torch.ones(16, 3), Grid(4, 4), permutations=9, seed=0)
    assert nulls["trustworthiness"].p == 1
    for name in ("neighbour_correlation", "morans_i", "topographic_violation", "topographic_product"):
        assert all(math.isnan(one) for one in nulls[name]), name


def test_nulls_are_the_same_for_the_same_seed():
    codes, grid = draw(16, 3), Grid(4, 4)
    first, again, other = (metrics.map_nulls(codes, grid, permutations=9, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_small_maps_have_nulls_but_no_trustworthiness():
    nulls = metrics.map_nulls(draw(4, 3), Grid(2, 2), permutations=9, seed=0)
    assert "trustworthiness" not in nulls
    assert math.isfinite(nulls["morans_i"].value)
