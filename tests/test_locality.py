"""Locality is found where it was put, not where it was not, and is what loops and scikit-learn compute."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.distance import pdist, squareform
from skimage.filters import threshold_multiotsu
from sklearn.metrics import mutual_info_score, normalized_mutual_info_score
from torch import Tensor

from somvq import metrics
from somvq.codebooks.grid import Grid
from somvq.metrics import locality

GRID = Grid(6, 6, "rectangular")
SHAPE = (4, 5, 4)  # tokens of a scan


def random_nodes(scans: int, seed: int = 0, nodes: int = 36) -> Tensor:
    return torch.randint(nodes, (scans, *SHAPE), generator=torch.Generator().manual_seed(seed))


def nodes_by_place(scans: int, noise: int = 1, seed: int = 0) -> Tensor:
    """Row and column of the node follow x and y of the token, give or take `noise` nodes."""
    x, y, _ = torch.meshgrid(*(torch.arange(side) for side in SHAPE), indexing="ij")
    generator = torch.Generator().manual_seed(seed)
    row, column = (
        (place + torch.randint(-noise, noise + 1, (scans, *SHAPE), generator=generator)).clamp(0, 5) for place in (x, y)
    )
    return row * 6 + column


def relabelled(nodes: Tensor, seed: int = 1) -> Tensor:
    return torch.randperm(36, generator=torch.Generator().manual_seed(seed))[nodes]


def half(scans: int, seed: int = 5) -> Tensor:
    return torch.rand(scans, *SHAPE, generator=torch.Generator().manual_seed(seed)) < 0.5


# distances


def test_mantel_is_spearmans_correlation_and_its_p_that_of_a_loop():
    generator = np.random.default_rng(0)
    places = generator.standard_normal((12, 3))
    a, b = pdist(places), pdist(places + 0.8 * generator.standard_normal((12, 3)))
    null = metrics.mantel(a, squareform(b), permutations=299, seed=1)
    assert null.value == pytest.approx(stats.spearmanr(a, b).statistic)
    drawn = []
    for _ in range(299):
        order = generator.permutation(12)
        drawn.append(stats.spearmanr(a, squareform(squareform(b)[order][:, order])).statistic)
    assert null.mean == pytest.approx(np.mean(drawn), abs=0.05)
    assert null.deviation == pytest.approx(np.std(drawn), rel=0.2)
    assert null.p == pytest.approx((1 + np.sum(np.array(drawn) >= null.value)) / 300, abs=0.05)


def test_matrices_of_one_distance_have_no_correlation():
    assert all(math.isnan(one) for one in metrics.mantel(np.ones(6), np.arange(6.0), permutations=9, seed=0))


def test_ranks_of_steps_are_those_of_scipy():
    steps = np.random.default_rng(0).integers(0, 9, 200)
    np.testing.assert_array_equal(locality.ranks_of_steps(steps), stats.rankdata(steps))


def test_locality_is_the_mean_of_spearmans_correlations_within_scans():
    nodes, mask = nodes_by_place(3), half(3)
    found = []
    for of_scan, inside in zip(nodes, mask, strict=True):
        places = inside.nonzero().double().numpy()
        chosen = of_scan[inside]
        steps = GRID.distances[chosen][:, chosen].numpy()[np.triu_indices(len(chosen), 1)]
        found.append(stats.spearmanr(pdist(places), steps).statistic)
    null = metrics.anatomical_locality(nodes, GRID, mask, permutations=9, seed=0)
    assert null.value == pytest.approx(np.mean(found))


@pytest.mark.parametrize("shuffle", ["tokens", "nodes"])
def test_a_map_of_places_is_local_and_a_random_one_is_not(shuffle):
    local = metrics.anatomical_locality(nodes_by_place(4), GRID, shuffle=shuffle, permutations=99, seed=0)
    assert local.p == 0.01
    assert local.value > 0.4
    chance = metrics.anatomical_locality(random_nodes(4), GRID, shuffle=shuffle, permutations=99, seed=0)
    assert chance.p > 0.05
    assert abs(chance.value) < 0.05


def test_nodes_that_follow_place_but_not_the_map_fail_the_test_that_shuffles_nodes():
    """Tokens of one node are near each other and 0 apart on any map: that much is no map's merit."""
    x, y, _ = torch.meshgrid(*(torch.arange(side) for side in SHAPE), indexing="ij")
    nodes = relabelled((x // 2 * 3 + y // 2).expand(6, *SHAPE))
    assert metrics.anatomical_locality(nodes, GRID, permutations=99, seed=0).p == 0.01
    assert metrics.anatomical_locality(nodes, GRID, shuffle="nodes", permutations=99, seed=0).p > 0.05


def test_p_of_locality_is_uniform_by_chance():
    found = [
        metrics.anatomical_locality(random_nodes(2, seed), GRID, half(2, seed), tokens=30, permutations=49, seed=seed).p
        for seed in range(60)
    ]
    assert stats.kstest(found, "uniform").pvalue > 1e-3


def test_locality_takes_a_sample_of_tokens():
    nodes = nodes_by_place(4)
    every = metrics.anatomical_locality(nodes, GRID, permutations=9, seed=0).value
    some = metrics.anatomical_locality(nodes, GRID, tokens=40, permutations=9, seed=0).value
    assert some == pytest.approx(every, abs=0.1)
    assert some != every
    assert some == metrics.anatomical_locality(nodes, GRID, tokens=40, permutations=9, seed=0).value


def test_scans_that_say_nothing_of_locality_are_left_out():
    nodes, mask = nodes_by_place(3), torch.ones(3, *SHAPE, dtype=torch.bool)
    nodes[1] = 7
    mask[2] = False
    alone = metrics.anatomical_locality(nodes[:1], GRID, permutations=9, seed=0)
    assert metrics.anatomical_locality(nodes, GRID, mask, permutations=9, seed=0).value == pytest.approx(alone.value)
    nothing = metrics.anatomical_locality(nodes[1:], GRID, mask[1:], permutations=9, seed=0)
    assert all(math.isnan(one) for one in nothing)


# agreement


def agreement_by_hand(nodes: Tensor, mask: Tensor) -> tuple[float, float]:
    """Mean steps and share of same nodes at the same place, over pairs of scans; chance by all pairs of places."""
    here, chance, same = [], [], []
    for a, b in itertools.combinations(range(len(nodes)), 2):
        both = (mask[a] & mask[b]).flatten()
        one, other = nodes[a].flatten(), nodes[b].flatten()
        here += GRID.distances[one[both], other[both]].tolist()
        same += (one == other)[both].tolist()
        anywhere = GRID.distances[one[mask[a].flatten()]][:, other[mask[b].flatten()]]
        chance += [float(anywhere.double().mean())] * int(both.sum())
    return 1 - np.mean(here) / np.mean(chance), np.mean(same)


def test_agreement_is_what_a_loop_over_pairs_of_scans_finds():
    nodes, mask = nodes_by_place(4), half(4)
    expected, same = agreement_by_hand(nodes, mask)
    null = metrics.across_subject_agreement(nodes, GRID, mask, permutations=99, seed=0)
    assert null.value == pytest.approx(expected)
    assert null.mean == pytest.approx(0, abs=3 * null.deviation / 10)
    assert metrics.same_node_share(nodes, mask) == pytest.approx(same)


def test_scans_that_are_the_same_agree_and_random_ones_do_not():
    same = random_nodes(1).repeat(5, 1, 1, 1)
    null = metrics.across_subject_agreement(same, GRID, permutations=99, seed=0)
    assert (null.value, null.p) == (1, 0.01)
    assert metrics.same_node_share(same) == 1
    chance = metrics.across_subject_agreement(random_nodes(5), GRID, permutations=99, seed=0)
    assert chance.p > 0.05
    assert metrics.same_node_share(random_nodes(5)) == pytest.approx(1 / 36, abs=0.02)


def test_p_of_agreement_is_uniform_by_chance():
    found = [
        metrics.across_subject_agreement(random_nodes(3, seed), GRID, half(3, seed), permutations=49, seed=seed).p
        for seed in range(60)
    ]
    assert stats.kstest(found, "uniform").pvalue > 1e-3


def test_agreement_needs_two_scans_a_place_and_two_nodes():
    nodes, nowhere = random_nodes(3), torch.zeros(3, *SHAPE, dtype=torch.bool)
    for these, mask in ((nodes[:1], None), (nodes, nowhere), (torch.zeros_like(nodes), None)):
        null = metrics.across_subject_agreement(these, GRID, mask, permutations=9, seed=0)
        assert all(math.isnan(one) for one in null)
    assert math.isnan(metrics.same_node_share(nodes[:1]))
    assert math.isnan(metrics.same_node_share(nodes, nowhere))


def test_the_baseline_of_position_is_the_most_frequent_node_of_the_other_scans():
    nodes = torch.tensor([[3, 0, 5], [3, 1, 6], [2, 1, 7], [2, 1, 8]]).view(4, 3, 1, 1)
    mask = torch.ones_like(nodes, dtype=torch.bool)
    mask[3, 0] = False
    mask[:3, 2] = False
    found = metrics.position_baseline(nodes, mask).view(4, 3)
    assert found[:, 0].tolist() == [2, 2, 3, 3]  # of 3 2, of 3 2, of 3 3, of 3 3 2
    assert found[:, 1].tolist() == [1, 1, 1, 1]
    assert found[3, 2] == 8  # no other scan's
    assert found[:3, 2].tolist() == [8, 8, 8]


# what is known of a token


def test_tissues_are_the_three_classes_of_otsu_and_the_most_frequent_wins():
    generator = torch.Generator().manual_seed(0)
    tissue = torch.arange(4).repeat_interleave(4).view(1, 1, 16, 1, 1).expand(1, 1, 16, 4, 4).clone()
    scan = torch.tensor([0.0, 2.0, 5.0, 9.0])[tissue] + 0.2 * torch.randn(tissue.shape, generator=generator)
    mask = tissue > 0
    assert metrics.tissue_of_tokens(scan, mask, stride=4).tolist() == [[0, 1, 2, 3]]
    assert metrics.TISSUES == ("background", "csf", "gm", "wm")
    mask[0, 0, 4:8, :3] = False  # three quarters of CSF's block are no brain now
    assert metrics.tissue_of_tokens(scan, mask, stride=4).tolist() == [[0, 0, 2, 3]]


def test_thresholds_are_those_of_skimage_in_the_brain_of_each_scan():
    generator = torch.Generator().manual_seed(0)
    scans = torch.rand(2, 1, 6, 6, 6, generator=generator) * torch.tensor([1.0, 50.0]).view(2, 1, 1, 1, 1)
    masks = torch.rand(2, 1, 6, 6, 6, generator=generator) < 0.7
    found = metrics.tissue_of_tokens(scans, masks, stride=1).view(2, 6, 6, 6)
    for scan, mask, tissue in zip(scans[:, 0].numpy(), masks[:, 0].numpy(), found.numpy(), strict=True):
        expected = 1 + np.digitize(scan, threshold_multiotsu(scan[mask], classes=3))
        np.testing.assert_array_equal(tissue, np.where(mask, expected, 0))


def test_a_scan_without_brain_is_all_background():
    scans = torch.rand(1, 1, 4, 4, 4)
    assert metrics.tissue_of_tokens(scans, torch.zeros_like(scans), stride=2).tolist() == [[0] * 8]
    with pytest.raises(ValueError, match="different values"):
        metrics.tissue_of_tokens(torch.ones(1, 1, 4, 4, 4), torch.ones(1, 1, 4, 4, 4), stride=2)


def test_mutual_information_is_that_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    nodes = torch.randint(20, (500,), generator=generator)
    labels = (nodes // 5 + torch.randint(2, (500,), generator=generator)) * 3
    null = metrics.mutual_information(nodes, labels, permutations=99, seed=0)
    shares = np.unique(labels.numpy(), return_counts=True)[1] / 500
    expected = mutual_info_score(labels.numpy(), nodes.numpy()) / stats.entropy(shares)
    assert null.value == pytest.approx(expected, abs=1e-5)
    assert null.p == 0.01
    assert normalized_mutual_info_score(labels.numpy(), nodes.numpy()) < expected  # that is by both entropies


def test_a_node_that_tells_the_label_has_all_its_information():
    labels = torch.arange(60) % 3
    assert metrics.mutual_information(labels + 3 * (torch.arange(60) // 30), labels, seed=0).value == pytest.approx(1)
    assert metrics.mutual_information(torch.zeros(60), labels, seed=0).value == 0


def test_the_information_of_chance_is_not_zero_and_its_p_is_uniform():
    found = []
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        nodes, labels = (torch.randint(many, (200,), generator=generator) for many in (30, 3))
        found.append(metrics.mutual_information(nodes, labels, permutations=49, seed=seed))
    assert np.mean([null.value for null in found]) == pytest.approx(np.mean([null.mean for null in found]), rel=0.1)
    assert np.mean([null.mean for null in found]) > 0.1
    assert stats.kstest([null.p for null in found], "uniform").pvalue > 1e-3


def test_one_label_and_no_tokens_have_no_information():
    for nodes in (torch.arange(9), torch.arange(0)):
        for groups in (None, nodes):
            null = metrics.mutual_information(nodes, torch.zeros_like(nodes), groups=groups, permutations=9, seed=0)
            assert all(math.isnan(one) for one in null)


def test_labels_of_subjects_are_shuffled_over_subjects():
    """Nodes that are a scan's own tell any label of scans: over tokens that looks certain, over scans it is chance."""
    groups = torch.arange(10).repeat_interleave(40)
    nodes = groups * 2 + torch.arange(400) % 2
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 1, 0])[groups]
    assert metrics.mutual_information(nodes, labels, permutations=99, seed=0).p == 0.01
    null = metrics.mutual_information(nodes, labels, groups=groups, permutations=99, seed=0)
    assert null == pytest.approx((1, 1, 0, 1))
    with pytest.raises(ValueError, match="10 groups have 20 labels"):
        metrics.mutual_information(nodes, torch.arange(400) % 2, groups=groups, permutations=9, seed=0)


def test_a_factor_that_moves_nodes_is_found_and_one_that_does_not_is_not():
    ages = 55 + 40 * torch.rand(24, generator=torch.Generator().manual_seed(0))
    nodes = random_nodes(24, nodes=18).flatten(1)
    older = torch.where((ages > 75)[:, None] & (torch.arange(80) < 20), nodes + 18, nodes)
    assert metrics.factor_information(older, ages, permutations=99, seed=0).p == 0.01
    assert metrics.factor_information(nodes, ages, permutations=99, seed=0).p > 0.05
    mask = (torch.arange(80) >= 20).expand(24, 80)
    assert metrics.factor_information(older, ages, mask, permutations=99, seed=0).p > 0.05


def test_factors_are_cut_at_their_terciles_and_sexes_are_not():
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    ages = torch.tensor([55.0, 56.0, 57.0, 70.0, 71.0, 72.0, 90.0, 91.0, 92.0])
    nodes = torch.randint(5, (9, 30), generator=torch.Generator().manual_seed(0))
    groups = torch.arange(9).repeat_interleave(30)
    expected = metrics.mutual_information(nodes.flatten(), labels[groups], groups=groups, permutations=9, seed=0)
    assert metrics.factor_information(nodes, ages, permutations=9, seed=0) == pytest.approx(expected)
    sexes = torch.tensor([0, 1, 1, 0, 1, 0, 0, 0, 1])
    expected = metrics.mutual_information(nodes.flatten(), sexes[groups], groups=groups, permutations=9, seed=0)
    assert metrics.factor_information(nodes, sexes, permutations=9, seed=0) == pytest.approx(expected)


def test_scans_of_unknown_age_are_left_out():
    ages = torch.tensor([55.0, math.nan, 70.0, 90.0, 60.0])
    nodes, known = random_nodes(5).flatten(1), torch.tensor([0, 2, 3, 4])
    expected = metrics.factor_information(nodes[known], ages[known], permutations=9, seed=0)
    assert metrics.factor_information(nodes, ages, permutations=9, seed=0) == pytest.approx(expected)
