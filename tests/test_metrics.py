"""Metrics are checked against skimage, scipy, numpy, and cases worked by hand."""

import math

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import stats
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from somvq import metrics
from somvq.codebooks.grid import Grid


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


def test_a_window_mean_is_over_the_whole_cubes_that_fit():
    scan, _ = scan_and_image(shape=(10, 12, 9))
    expected = sliding_window_view(volume(scan), (4, 4, 4)).mean((-3, -2, -1))
    found = metrics.window_mean(scan, 4)
    assert found.shape == (1, 1, 7, 9, 6)
    np.testing.assert_allclose(volume(found), expected, atol=1e-6)


@pytest.mark.parametrize("noise", [0.05, 0.5, 3.0])
@pytest.mark.parametrize("window", [7, 9])
def test_ssim_is_that_of_skimage_on_the_valid_interior(noise, window):
    scan, image = scan_and_image(noise)
    extent = float(scan.max() - scan.min())
    _, every = structural_similarity(
        volume(scan), volume(image), win_size=window, data_range=extent, use_sample_covariance=False, full=True
    )
    inside = (slice(window // 2, -(window // 2)),) * 3
    assert float(metrics.ssim(scan, image, window)) == pytest.approx(every[inside].mean(), abs=1e-5)


def test_ssim_is_what_a_loop_over_windows_averages():
    scan, image = scan_and_image(shape=(10, 11, 12))
    assert float(metrics.ssim(scan, image)) == pytest.approx(ssim_by_hand(volume(scan), volume(image), 9), abs=1e-5)


def test_the_papers_window_is_nine_voxels():
    scan, image = scan_and_image()
    assert torch.equal(metrics.ssim(scan, image), metrics.ssim(scan, image, 9))
    assert not torch.equal(metrics.ssim(scan, image), metrics.ssim(scan, image, 7))


def test_ssim_of_a_scan_with_itself_is_one():
    scan, _ = scan_and_image()
    assert float(metrics.ssim(scan, scan)) == pytest.approx(1, abs=1e-6)


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


# codebook


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
