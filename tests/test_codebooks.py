"""Maps and codebooks are checked against loops, numpy, scipy and closed forms."""

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.sparse.csgraph import shortest_path
from scipy.spatial.distance import cdist
from torch import Tensor

from somvq.codebooks.averages import MovingAverages
from somvq.codebooks.codebook import Care, Codebook, count_pairs, homes_on_map, squared_distances, sums_by_node, swaps
from somvq.codebooks.estimators import ESTIMATORS, rotation
from somvq.codebooks.grid import Grid, Neighbourhood
from somvq.codebooks.psom import PSOM, neighbours_of_codes, sharpen
from somvq.codebooks.psom import hardening_of_mean as hardening
from somvq.codebooks.som import SOM, neighbour_term
from somvq.codebooks.vq import VQ, commitment

TOPOLOGIES = ("rectangular", "toroidal")
SHAPES = ((16, 16), (3, 5), (5, 3), (2, 6), (6, 2), (2, 2), (1, 4), (1, 2))
TOKENS, CHANNELS, ALPHA = 7, 5, 10.0


@pytest.fixture(params=TOPOLOGIES)
def topology(request):
    return request.param


@pytest.fixture(params=["vq", "vq-gradient", "som", "kohonen", "psom", "psom-soft"])
def codebook(request):
    """One of every kind, 16 nodes of 32 channels."""
    four = Neighbourhood(Grid(4, 4))
    return {
        "vq": lambda: vq(Grid(4, 4), 32),
        "vq-gradient": lambda: vq(Grid(4, 4), 32, alpha=1.0),
        "som": lambda: som(four, 32),
        "kohonen": lambda: kohonen(four, 32),
        "psom": lambda: psom(Grid(4, 4), 32),
        "psom-soft": lambda: psom(Grid(4, 4), 32, assignment="soft", weights=THREE),
    }[request.param]()


@pytest.fixture(params=SHAPES, ids=lambda shape: "{}x{}".format(*shape))
def grid(request, topology):
    return Grid(*request.param, topology)


def neighbours(height: int, width: int, topology: str) -> dict[tuple[int, int], set[tuple[int, int]]]:
    """Up, down, left and right of every node, by going there."""
    found = {}
    for row in range(height):
        for column in range(width):
            steps = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
            if topology == "toroidal":
                there = {(r % height, c % width) for r, c in steps}
            else:
                there = {(r, c) for r, c in steps if 0 <= r < height and 0 <= c < width}
            found[row, column] = there - {(row, column)}
    return found


def adjacency_by_hand(grid: Grid) -> NDArray:
    matrix = np.zeros((grid.nodes, grid.nodes))
    for (row, column), there in neighbours(grid.height, grid.width, grid.topology).items():
        for r, c in there:
            matrix[row * grid.width + column, r * grid.width + c] = 1
    return matrix


THREE = {"hardening": 1.0, "neighbours": 1.0, "commitment": 1.0}


def psom(grid: Grid, channels: int = CHANNELS, alpha: float = ALPHA, seed: int = 0, **settings) -> PSOM:
    torch.manual_seed(seed)
    weights = {"hardening": 1.0, "neighbours": 1.0}
    return PSOM(Neighbourhood(grid), channels, alpha=alpha, **{"weights": weights, **settings})


def som(neighbourhood: Neighbourhood, channels: int = CHANNELS, seed: int = 0, **settings) -> SOM:
    torch.manual_seed(seed)
    return SOM(neighbourhood, channels, **{"alpha": 1.0, "beta": 1.0, "commitment": 1.0, **settings})


def vq(grid: Grid, channels: int = CHANNELS, seed: int = 0, **settings) -> VQ:
    torch.manual_seed(seed)
    return VQ(grid, channels, **{"alpha": None, "beta": 1.0, **settings})


def kohonen(neighbourhood: Neighbourhood, channels: int = CHANNELS, seed: int = 0, **settings) -> SOM:
    """A SOM by moving averages."""
    return som(neighbourhood, channels, seed, alpha=None, beta=None, **settings)


def some_tokens(count: int = TOKENS, channels: int = CHANNELS, seed: int = 1) -> Tensor:
    return torch.randn(count, channels, generator=torch.Generator().manual_seed(seed))


def some_shares(rows: int, columns: int, seed: int = 2) -> Tensor:
    """Rows that sum to 1."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).softmax(1)


def assign_by_hand(tokens: NDArray, codes: NDArray, alpha: float) -> NDArray:
    """s_ij with the squared distance, one token and one node at a time."""
    s = np.zeros((len(tokens), len(codes)))
    for i, token in enumerate(tokens):
        for j, code in enumerate(codes):
            s[i, j] = (1 + ((token - code) ** 2).sum() / alpha) ** (-(alpha + 1) / 2)
        s[i] /= s[i].sum()
    return s


# maps


def test_neighbours_are_one_step_up_down_left_or_right(grid):
    assert np.array_equal(grid.adjacency.numpy(), adjacency_by_hand(grid))


def test_distances_are_the_shortest_ways_along_neighbours(grid):
    assert np.array_equal(grid.distances.numpy(), shortest_path(adjacency_by_hand(grid), unweighted=True))


def test_to_be_neighbours_is_mutual_and_never_with_oneself(grid):
    assert torch.equal(grid.adjacency, grid.adjacency.T)
    assert grid.adjacency.diagonal().sum() == 0


def test_edges_name_each_pair_of_neighbours_once(grid):
    pairs = {frozenset(edge) for edge in grid.edges.tolist()}
    assert len(pairs) == len(grid.edges)
    assert pairs == {frozenset(edge) for edge in np.argwhere(adjacency_by_hand(grid)).tolist()}


@pytest.mark.parametrize(("kind", "edges"), [("rectangular", 480), ("toroidal", 512)])
def test_the_papers_map_has_as_many_edges_as_it_should(kind, edges):
    assert len(Grid(16, 16, kind).edges) == edges


def test_every_node_of_a_torus_has_four_neighbours():
    for shape in ((16, 16), (3, 5), (4, 3)):
        assert Grid(*shape, "toroidal").adjacency.sum(1).tolist() == [4.0] * (shape[0] * shape[1])


def test_only_the_border_of_a_rectangle_lacks_neighbours():
    counts = Grid(4, 5, "rectangular").adjacency.sum(1).view(4, 5)
    assert counts[1:-1, 1:-1].unique().tolist() == [4]
    assert torch.cat([counts[0, 1:-1], counts[-1, 1:-1], counts[1:-1, 0], counts[1:-1, -1]]).unique().tolist() == [3]
    assert counts[[0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("node", "expected"),
    [  # the paper's code wraps both to (0, 0)
        ((15, 7), {(14, 7), (0, 7), (15, 6), (15, 8)}),
        ((7, 15), {(6, 15), (8, 15), (7, 14), (7, 0)}),
        ((0, 0), {(15, 0), (1, 0), (0, 15), (0, 1)}),
    ],
)
def test_a_torus_wraps_to_the_opposite_edge(node, expected):
    row, column = node
    found = Grid(16, 16, "toroidal").adjacency[row * 16 + column].nonzero().flatten().tolist()
    assert {divmod(there, 16) for there in found} == expected


def test_a_torus_is_half_as_far_across_as_a_rectangle():
    assert Grid(16, 16, "toroidal").distances.max() == 16
    assert Grid(16, 16, "rectangular").distances.max() == 30


def test_eight_neighbours_touch_by_a_side_or_a_corner(grid):
    expected = np.zeros((grid.nodes, grid.nodes))
    for (row, column), down, across in itertools.product(np.ndindex(grid.height, grid.width), (-1, 0, 1), (-1, 0, 1)):
        r, c = row + down, column + across
        if grid.topology == "toroidal":
            r, c = r % grid.height, c % grid.width
        if 0 <= r < grid.height and 0 <= c < grid.width and (r, c) != (row, column):
            expected[row * grid.width + column, r * grid.width + c] = 1
    assert np.array_equal(grid.adjacency_8.numpy(), expected)


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_a_gaussian_neighbourhood_falls_with_the_steps_on_the_map_and_shrinks_over_a_run(grid, progress):
    """LSOR: exp(-Manhattan^2 / (2 height width T^2)), T from 1 to 0.1 exponentially."""
    neighbourhood = Neighbourhood(grid, "gaussian")
    neighbourhood.shrink(progress)
    steps = shortest_path(adjacency_by_hand(grid), unweighted=True)
    temperature = 1.0 * (0.1 / 1.0) ** progress
    expected = np.exp(-(steps**2) / (2 * grid.height * grid.width * temperature**2))
    np.testing.assert_allclose(neighbourhood.with_self, expected, rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(neighbourhood.others, expected - np.eye(grid.nodes), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize(("kind", "attribute"), [(4, "adjacency"), (8, "adjacency_8")])
def test_four_or_eight_neighbours_stay_what_they_are(grid, kind, attribute):
    neighbourhood = Neighbourhood(grid, kind)
    neighbourhood.shrink(1.0)
    assert torch.equal(neighbourhood.others, getattr(grid, attribute))
    assert torch.equal(neighbourhood.with_self, getattr(grid, attribute) + torch.eye(grid.nodes))


def test_neighbours_of_a_map_do_not_change_with_a_models_neighbourhood():
    grid = Grid(3, 4)
    neighbourhood = Neighbourhood(grid, 8)
    before = grid.adjacency_8.clone()
    neighbourhood.others.zero_()
    assert torch.equal(grid.adjacency_8, before)


# the assignment


def test_distances_to_codes_are_squared_and_euclidean():
    tokens, codes = some_tokens(), some_tokens(12, seed=3)
    expected = cdist(tokens.numpy(), codes.numpy(), "sqeuclidean")
    np.testing.assert_allclose(squared_distances(tokens, codes), expected, rtol=1e-4, atol=1e-5)


def test_a_distance_is_never_negative():
    tokens = 100 + some_tokens(200, 32)
    assert squared_distances(tokens, tokens).min() >= 0


@pytest.mark.parametrize("alpha", [0.5, 1.0, 10.0, 40.0])
def test_tokens_belong_to_nodes_as_a_loop_says(alpha):
    codebook, tokens = psom(Grid(3, 4), alpha=alpha), some_tokens()
    expected = assign_by_hand(tokens.numpy(), codebook.codes.detach().numpy(), alpha)
    np.testing.assert_allclose(codebook.assign(tokens).detach(), expected, rtol=1e-4)


@pytest.mark.parametrize("alpha", [0.5, 10.0])
def test_tokens_belong_to_nodes_by_students_t_of_their_distance(alpha):
    codebook, tokens = psom(Grid(3, 4), alpha=alpha), some_tokens()
    density = stats.t.pdf(cdist(tokens.numpy(), codebook.codes.detach().numpy()), df=alpha)
    expected = density / density.sum(1, keepdims=True)
    np.testing.assert_allclose(codebook.assign(tokens).detach(), expected, rtol=1e-4)


def test_every_token_belongs_to_all_nodes_with_a_total_of_one():
    s = psom(Grid(16, 16), 32).assign(some_tokens(100, 32))
    assert s.shape == (100, 256)
    assert s.min() > 0
    torch.testing.assert_close(s.sum(1), torch.ones(100))


def test_the_nearest_node_is_the_one_a_token_belongs_to_most():
    codebook, tokens = psom(Grid(4, 5)), some_tokens(50)
    expected = cdist(tokens.numpy(), codebook.codes.detach().numpy()).argmin(1)
    assert np.array_equal(codebook.nearest(tokens), expected)
    assert np.array_equal(codebook.assign(tokens).argmax(1), expected)


def test_bfloat16_around_a_codebook_changes_nothing_in_it(codebook):
    tokens, rows = 5 + some_tokens(300, 32), torch.zeros(1, dtype=torch.long)
    codebook.eval().start_epoch(tokens[None], 0.0)
    plain = codebook(tokens, rows)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = codebook(tokens, rows)
    assert torch.equal(mixed.nodes, plain.nodes)
    assert torch.equal(mixed.codes, plain.codes)
    assert {name: float(term.detach()) for name, term in mixed.losses.items()} == {
        name: float(term.detach()) for name, term in plain.losses.items()
    }


def test_codebooks_remember_what_they_should_between_runs():
    four, shapes = Neighbourhood(Grid(16, 16)), {"codes": (256, 32)}
    averages = {"averages.sizes": (256,), "averages.sums": (256, 32)}
    of_map = {"neighbourhood.others": (256, 256)}

    def remembered(codebook: Codebook) -> dict[str, tuple[int, ...]]:
        return {name: tuple(value.shape) for name, value in codebook.state_dict().items()}

    assert remembered(psom(Grid(16, 16), 32)) == {**shapes, **of_map, "frequency": (256,)}
    assert remembered(som(four, 32)) == {**shapes, **of_map, "step": ()}
    assert remembered(kohonen(four, 32)) == {**shapes, **of_map, **averages, "step": ()}
    assert remembered(vq(Grid(16, 16), 32)) == {**shapes, **averages}
    assert remembered(vq(Grid(16, 16), 32, alpha=1.0)) == shapes


# the target and the hardening


def test_the_target_is_the_squared_share_over_the_nodes_frequency():
    s = some_shares(TOKENS, 6)
    frequency = s.sum(0).numpy()
    expected = np.zeros((TOKENS, 6))
    for i in range(TOKENS):
        weighted = [float(s[i, j]) ** 2 / frequency[j] for j in range(6)]
        expected[i] = [weight / sum(weighted) for weight in weighted]
    np.testing.assert_allclose(sharpen(s, torch.from_numpy(frequency)), expected, rtol=1e-5)


def test_the_target_is_harder_than_the_assignment_where_nodes_are_equally_frequent():
    s = some_shares(40, 6)
    target = sharpen(s, torch.ones(6))
    torch.testing.assert_close(target.sum(1), torch.ones(40))
    assert (torch.special.entr(target).sum(1) < torch.special.entr(s).sum(1)).all()


def test_a_rare_node_is_favoured_over_a_frequent_one():
    target = sharpen(torch.tensor([[0.5, 0.5]]), torch.tensor([9.0, 1.0]))
    torch.testing.assert_close(target, torch.tensor([[0.1, 0.9]]))


def test_the_target_of_nodes_that_no_token_belongs_to_is_finite():
    s = torch.tensor([[0.25, 0.75, 0.0], [0.5, 0.5, 0.0]])
    assert sharpen(s, s.sum(0)).isfinite().all()
    assert sharpen(s, s.sum(0))[:, 2].tolist() == [0, 0]


def test_hardening_is_the_mean_relative_entropy_of_target_and_assignment():
    target, s = some_shares(TOKENS, 6), some_shares(TOKENS, 6, seed=5)
    assert float(hardening(target, s.log())) == pytest.approx(stats.entropy(target, s, axis=1).mean(), rel=1e-5)


def test_hardening_takes_a_target_that_is_sure():
    s = some_shares(3, 3)
    expected = -float(s.log().diagonal().mean())
    assert float(hardening(torch.eye(3), s.log())) == pytest.approx(expected, rel=1e-5)


def test_hardening_is_nothing_where_all_nodes_share_alike_and_positive_elsewhere():
    uniform = torch.full((9, 16), 1 / 16)
    assert float(hardening(sharpen(uniform, uniform.sum(0)), uniform.log())) == pytest.approx(0, abs=1e-6)
    s = some_shares(9, 16)
    assert float(hardening(sharpen(s, s.sum(0)), s.log())) > 0.01


# the neighbour term


def neighbour_term_by_hand(s: NDArray, s_of_codes: NDArray, grid: Grid) -> float:
    around, total = neighbours(grid.height, grid.width, grid.topology), 0.0
    for i in range(len(s)):
        for (row, column), there in around.items():
            for r, c in there:
                total -= s[i, row * grid.width + column] * math.log(s_of_codes[i, r * grid.width + c])
    return total / len(s)


@pytest.mark.parametrize("shape", [(3, 4), (2, 5), (4, 2), (1, 6)])
def test_the_neighbour_term_is_what_a_loop_over_neighbours_adds_up(shape, topology):
    grid = Grid(*shape, topology)
    codebook, tokens = psom(grid), some_tokens()
    s = assign_by_hand(tokens.numpy(), codebook.codes.detach().numpy(), ALPHA)
    term = codebook(tokens).losses["neighbours"]
    assert float(term.detach()) == pytest.approx(neighbour_term_by_hand(s, s, grid), rel=1e-5)


def test_a_collapsed_map_has_a_neighbour_term_of_four_times_the_log_of_its_nodes():
    codebook = psom(Grid(16, 16, "toroidal"), 32)
    with torch.no_grad():
        codebook.codes.zero_()  # every token is as far from all codes
    losses = codebook(some_tokens(9, 32)).losses
    assert float(losses["neighbours"].detach()) == pytest.approx(4 * math.log(256), rel=1e-6)  # 22.18 nats
    assert float(losses["hardening"].detach()) == pytest.approx(0, abs=1e-6)


# gradients


def gradients(term: str) -> tuple[Tensor | None, Tensor | None]:
    """Of one term, with respect to the tokens (so the encoder) and to the codes."""
    codebook, tokens = psom(Grid(3, 4)), some_tokens().requires_grad_()
    return torch.autograd.grad(codebook(tokens).losses[term], [tokens, codebook.codes], allow_unused=True)


def test_hardening_moves_encoder_and_codes():
    of_tokens, of_codes = gradients("hardening")
    assert of_tokens.abs().sum() > 0
    assert of_codes.abs().sum() > 0


def test_the_neighbour_term_moves_codes_alone():
    of_tokens, of_codes = gradients("neighbours")
    assert of_tokens is None or of_tokens.abs().sum() == 0
    assert of_codes.abs().sum() > 0


def test_no_gradient_reaches_the_target():
    s = some_shares(TOKENS, 6).requires_grad_()
    target = sharpen(s, torch.ones(6))
    target.retain_grad()
    hardening(target, s.log()).backward()
    assert target.grad is None
    expected = -(target / s / TOKENS).detach()  # of -sum t log s, t constant
    torch.testing.assert_close(s.grad, expected)


def test_the_neighbour_term_pulls_neighbours_by_shares_that_stand_still():
    """Its gradient is that of -sum_j s_ij sum_e log s_ie with s_ij constant: by finite differences, in float64."""
    grid = Grid(2, 3, "rectangular")
    codebook, tokens = psom(grid).double(), some_tokens(4).double()
    codebook(tokens).losses["neighbours"].backward()
    start = codebook.codes.detach().numpy().copy()
    s, step = assign_by_hand(tokens.numpy(), start, ALPHA), 1e-6
    expected = np.zeros_like(start)
    for place in np.ndindex(*start.shape):
        sides = []
        for sign in (1, -1):
            moved = start.copy()
            moved[place] += sign * step
            sides.append(neighbour_term_by_hand(s, assign_by_hand(tokens.numpy(), moved, ALPHA), grid))
        expected[place] = (sides[0] - sides[1]) / (2 * step)
    np.testing.assert_allclose(codebook.codes.grad, expected, rtol=1e-5, atol=1e-7)


def test_far_tokens_have_finite_losses_and_gradients(codebook):
    tokens = (some_tokens(TOKENS, 32) * 1e5).requires_grad_()
    codebook.start_epoch(tokens.detach()[None], 0.0)
    losses = codebook(tokens, torch.zeros(1, dtype=torch.long)).losses
    sum(losses.values()).backward()
    assert all(term.detach().isfinite() for term in losses.values())
    assert tokens.grad.isfinite().all()
    assert all(weight.grad.isfinite().all() for weight in codebook.parameters())


def test_the_mean_code_is_the_mean_of_all_by_share():
    codebook, tokens = psom(Grid(3, 4), assignment="soft", weights=THREE), some_tokens()
    codes = codebook.codes.detach().numpy()
    expected = assign_by_hand(tokens.numpy(), codes, ALPHA) @ codes
    picked = codebook(tokens)
    np.testing.assert_allclose(picked.codes.detach(), expected, rtol=1e-4, atol=1e-5)
    assert picked.soft
    assert float(picked.losses["commitment"].detach()) == pytest.approx(
        np.square(tokens.numpy() - expected).mean(), rel=1e-5
    )


# the nearest code


def test_every_codebook_picks_the_nearest_code(codebook):
    tokens = some_tokens(50, 32)
    codes = codebook.codes.detach().clone()  # averages move after they were asked
    picked = codebook(tokens, None)
    assert np.array_equal(picked.nodes, cdist(tokens.numpy(), codes.numpy()).argmin(1))
    if not picked.soft:
        assert torch.equal(picked.codes.detach(), codes[picked.nodes])


def test_codes_are_quantised_to_themselves(codebook):
    codes = codebook.codes.detach().clone()
    assert codebook.eval()(codes).nodes.tolist() == list(range(16))


def test_codes_stay_where_an_initialiser_puts_them(codebook):
    centres = some_tokens(16, 32, seed=8)
    codebook.place(centres)
    assert torch.equal(codebook.codes.detach(), centres)
    centres.zero_()
    assert codebook.codes.detach().any()
    assert codebook.eval()(some_tokens(3, 32)).losses.keys() == codebook.weights.keys()
    assert codebook.codes.detach().any()


def test_commitment_is_a_mean_over_channels_that_moves_its_first_alone():
    moved, held = some_tokens().requires_grad_(), some_tokens(seed=3).requires_grad_()
    term = commitment(moved, held)
    assert float(term.detach()) == pytest.approx(float(np.square((moved - held).detach().numpy()).mean()), rel=1e-6)
    term.backward()
    torch.testing.assert_close(moved.grad, 2 * (moved - held).detach() / moved.numel())
    assert held.grad is None


def test_sums_by_node_are_what_a_loop_adds_up():
    tokens, nodes = some_tokens(20).double(), torch.randint(6, (20,), generator=torch.Generator().manual_seed(0))
    hits, sums = sums_by_node(nodes, tokens, 8)
    for node in range(8):
        assert hits[node] == (nodes == node).sum()
        torch.testing.assert_close(sums[node], tokens[nodes == node].sum(0))


# the SOM's neighbour term


def neighbour_term_by_loop(tokens: NDArray, codes: NDArray, weights: NDArray) -> tuple[float, NDArray]:
    """The mean squared distance over pairs of a token and a node near its own, and its gradient to codes."""
    total, count, gradient = 0.0, 0.0, np.zeros_like(codes)
    for token in tokens:
        winner = int(((codes - token) ** 2).sum(1).argmin())
        for node, weight in enumerate(weights[winner]):
            total += weight * ((codes[node] - token) ** 2).sum()
            gradient[node] += weight * 2 * (codes[node] - token)
            count += weight
    return total / count, gradient / count


@pytest.mark.parametrize("reading", ["published", "corrected"])
@pytest.mark.parametrize("kind", [4, 8, "gaussian"])
@pytest.mark.parametrize("shape", [(3, 4), (2, 5), (1, 4)])
def test_the_neighbour_term_and_its_gradient_are_those_of_a_loop_over_tokens(shape, kind, topology, reading):
    neighbourhood = Neighbourhood(Grid(*shape, topology), kind, reading)
    neighbourhood.shrink(0.4)
    codebook = som(neighbourhood, reading=reading).double()
    tokens = (3 + some_tokens(30)).double().requires_grad_()
    term = codebook(tokens).losses["neighbours"]
    term.backward()
    weights = neighbourhood.others.double().numpy() + np.eye(neighbourhood.grid.nodes)
    expected, gradient = neighbour_term_by_loop(tokens.detach().numpy(), codebook.codes.detach().numpy(), weights)
    assert float(term.detach()) == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(codebook.codes.grad, gradient, rtol=1e-9, atol=1e-12)
    assert tokens.grad is None or not tokens.grad.any()


def test_the_neighbour_term_of_tokens_far_from_the_origin_keeps_its_digits():
    grid, tokens = Grid(4, 4), 1000 + some_tokens(200)
    codes = 1000 + some_tokens(16, seed=3)
    nodes, weights = squared_distances(tokens - 1000, codes - 1000).argmin(1), Neighbourhood(grid).with_self
    expected = np.average(
        cdist(tokens.double(), codes.double(), "sqeuclidean").ravel(), weights=weights[nodes].double().numpy().ravel()
    )
    assert float(neighbour_term(tokens, nodes, codes, weights)) == pytest.approx(expected, rel=1e-4)


# the estimate of x'_q's gradient


@pytest.mark.parametrize("name", ESTIMATORS)
def test_what_is_decoded_has_the_codes_values_to_the_bit(name):
    tokens, codes = 7 * some_tokens(3000, 32), some_tokens(3000, 32, seed=4)
    codes[:10] = tokens[:10]  # equal, opposite, far, and at the origin
    codes[10:20] = -tokens[10:20]
    tokens[20:30] *= 1e6
    tokens[30:40] = 0
    codes[40:50] = 0
    assert torch.equal(ESTIMATORS[name](tokens, codes), codes)


def gradients_of(name: str, tokens: Tensor, codes: Tensor, upstream: Tensor) -> tuple[Tensor | None, Tensor | None]:
    tokens, codes = tokens.clone().requires_grad_(), codes.clone().requires_grad_()
    ESTIMATORS[name](tokens, codes).backward(upstream)
    return tokens.grad, codes.grad


def test_a_straight_through_estimate_passes_the_gradient_to_the_tokens_alone():
    upstream = some_tokens(seed=5)
    of_tokens, of_codes = gradients_of("straight-through", some_tokens(), some_tokens(seed=4), upstream)
    assert torch.equal(of_tokens, upstream)
    assert of_codes is None


def test_direct_decoding_passes_the_gradient_to_the_codes_alone():
    upstream = some_tokens(seed=5)
    of_tokens, of_codes = gradients_of("direct", some_tokens(), some_tokens(seed=4), upstream)
    assert of_tokens is None
    assert torch.equal(of_codes, upstream)


def rotation_by_hand(token: NDArray, code: NDArray) -> NDArray:
    """The matrix that turns `token` to the direction of `code` in their plane, and nothing outside it."""
    a = token / np.linalg.norm(token)
    along = code @ a
    b = code - along * a
    cosine, sine = along / np.linalg.norm(code), np.linalg.norm(b) / np.linalg.norm(code)
    b /= np.linalg.norm(b)
    plane = np.stack([a, b], 1)
    turn = np.array([[cosine, -sine], [sine, cosine]])
    return np.eye(len(token)) + plane @ (turn - np.eye(2)) @ plane.T


def test_a_rotation_passes_the_gradient_turned_and_scaled_to_the_tokens_alone():
    tokens, codes, upstream = 3 * some_tokens().double(), some_tokens(seed=4).double(), some_tokens(seed=5).double()
    of_tokens, of_codes = gradients_of("rotation", tokens, codes, upstream)
    assert of_codes is None
    for token, code, above, gradient in zip(tokens.numpy(), codes.numpy(), upstream.numpy(), of_tokens, strict=True):
        matrix = rotation_by_hand(token, code)
        scale = np.linalg.norm(code) / np.linalg.norm(token)
        np.testing.assert_allclose(scale * matrix @ token, code, atol=1e-12)  # it does turn the token to its code
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(CHANNELS), atol=1e-12)
        np.testing.assert_allclose(gradient, scale * matrix.T @ above, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("token", [[0.0, 0.0, 0.0], [-2.0, -4.0, 0.0]], ids=["at the origin", "opposite its code"])
def test_where_no_rotation_is_known_the_gradient_passes_unturned(token):
    token, upstream = torch.tensor([token], requires_grad=True), torch.tensor([[1.0, -2.0, 3.0]])
    rotation(token, torch.tensor([[1.0, 2.0, 0.0]])).backward(upstream)
    assert torch.equal(token.grad, upstream)


# moving averages


def averages_by_hand(codes: NDArray, batches: list[NDArray], spread: list[NDArray]) -> NDArray:
    """Codes after `batches`, by numpy in float64: averages of size 1 at the codes, decay 0.99, Laplace smoothing."""
    sizes, sums, codes = np.ones(len(codes)), codes.copy(), codes.copy()
    for tokens, weights in zip(batches, spread, strict=True):
        hits, totals = np.zeros(len(codes)), np.zeros_like(codes)
        for token in tokens:
            winner = int(((codes - token) ** 2).sum(1).argmin())
            hits += weights[winner]
            totals += weights[winner][:, None] * token
        sizes, sums = 0.99 * sizes + 0.01 * hits, 0.99 * sums + 0.01 * totals
        smoothed = (sizes + 1e-5) / (sizes.sum() + len(codes) * 1e-5) * sizes.sum()
        codes = sums / smoothed[:, None]
    return codes


def test_codes_follow_the_moving_averages_of_their_tokens():
    codebook, batches = vq(Grid(2, 3)), [some_tokens(40, seed=seed) for seed in range(5)]
    start = codebook.codes.double().numpy().copy()
    for tokens in batches:
        codebook(tokens)
    expected = averages_by_hand(start, [tokens.double().numpy() for tokens in batches], [np.eye(6)] * 5)
    np.testing.assert_allclose(codebook.codes, expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(expected, start, atol=0.1)


@pytest.mark.parametrize("kind", [4, 8, "gaussian"])
def test_a_kohonen_vaes_codes_follow_their_neighbours_tokens_too(kind, topology):
    """4 and 8 neighbours count 1 / (1 + 0.1 step), as in Irie et al. 2024; a Gaussian has its own weights."""
    neighbourhood = Neighbourhood(Grid(2, 3, topology), kind)
    neighbourhood.shrink(0.7)
    codebook, batches = kohonen(neighbourhood), [some_tokens(40, seed=seed) for seed in range(4)]
    start, others = codebook.codes.double().numpy().copy(), neighbourhood.others.double().numpy()
    for tokens in batches:
        codebook(tokens)
    fading = [1.0 if kind == "gaussian" else 1 / (1 + 0.1 * step) for step in range(4)]
    spread = [np.eye(6) + weight * others for weight in fading]
    expected = averages_by_hand(start, [tokens.double().numpy() for tokens in batches], spread)
    np.testing.assert_allclose(codebook.codes, expected, rtol=1e-5, atol=1e-6)


def test_a_node_learns_from_those_whose_neighbour_it_is():
    neighbourhood = Neighbourhood(Grid(1, 3, "rectangular"))
    neighbourhood.others.copy_(torch.tensor([[0.0, 1, 0], [0, 0, 0], [0, 0, 0]]))  # node 0 takes node 1 along
    codebook = kohonen(neighbourhood)
    start, tokens = codebook.codes.double().numpy().copy(), codebook.codes.repeat(5, 1) + 1
    codebook(tokens)
    spread = np.eye(3) + neighbourhood.others.double().numpy()
    expected = averages_by_hand(start, [tokens.double().numpy()], [spread])
    np.testing.assert_allclose(codebook.codes, expected, rtol=1e-5, atol=1e-6)


def test_codes_by_averages_stand_still_in_evaluation_and_have_no_gradient():
    codebook = vq(Grid(2, 3)).eval()
    before = {name: value.clone() for name, value in codebook.state_dict().items()}
    codebook(some_tokens(40))
    assert all(torch.equal(value, before[name]) for name, value in codebook.state_dict().items())
    assert list(codebook.parameters()) == []


def test_a_token_is_given_the_code_from_before_the_averages_moved():
    codebook, tokens = vq(Grid(2, 3)), some_tokens(40)
    before = codebook.codes.clone()
    picked = codebook(tokens)
    assert torch.equal(picked.codes, before[picked.nodes])
    assert not torch.equal(codebook.codes, before)


def test_the_smoothing_of_sizes_keeps_their_total_and_reaches_empty_nodes():
    averages = MovingAverages(torch.ones(3, 2), "corrected")
    averages.sizes.copy_(torch.tensor([0.0, 1.0, 9.0]))
    averages.sums.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0], [9.0, 9.0]]))
    codes = averages.update(torch.tensor([0.0, 1.0, 9.0]), torch.tensor([[0.0, 0.0], [1.0, 1.0], [9.0, 9.0]]))
    assert codes.isfinite().all()
    torch.testing.assert_close(codes[1:], torch.ones(2, 2), atol=1e-4, rtol=0)
    torch.testing.assert_close(averages.sizes, torch.tensor([0.0, 1.0, 9.0]), atol=1e-7, rtol=1e-6)


# dead codes


def with_a_dead_code(kind: str, revive: int) -> tuple[Codebook, Tensor]:
    """A codebook of 9 nodes, of which the middle one is far from all tokens, and tokens of 3 scans."""
    grid, care = Grid(3, 3, "rectangular"), Care(revive=revive)
    centres = 4 * some_tokens(9, seed=6)
    tokens = (centres.repeat(30, 1) + 0.1 * some_tokens(270)).view(3, 90, CHANNELS)
    codebook = {
        "vq": lambda: vq(grid, care=care),
        "kohonen": lambda: kohonen(Neighbourhood(grid), care=care),
        "som": lambda: som(Neighbourhood(grid), care=care),
        "psom": lambda: psom(grid, care=care),
    }[kind]()
    centres[4] = 1000.0
    codebook.place(centres)
    return codebook, tokens


@pytest.mark.parametrize("kind", ["vq", "kohonen", "som", "psom"])
def test_a_code_that_no_token_chooses_is_moved_to_a_token_and_living_codes_stay(kind):
    codebook, tokens = with_a_dead_code(kind, revive=1)
    before = codebook.codes.detach().clone()
    codebook.start_epoch(tokens, 0.0)
    after, living = codebook.codes.detach(), torch.arange(9) != 4
    assert torch.equal(after[living], before[living])
    assert (tokens.flatten(0, 1) == after[4]).all(1).any()
    if kind in ("vq", "kohonen"):
        assert float(codebook.averages.sizes[4]) == 1
        assert torch.equal(codebook.averages.sums[4], after[4])
        codebook(tokens.flatten(0, 1))
        assert (codebook.codes[4] - after[4]).norm() < 2  # the averages do not carry it back to 1000


@pytest.mark.parametrize("kind", ["vq", "kohonen", "som", "psom"])
def test_codes_are_revived_only_where_a_run_asks_for_it(kind):
    codebook, tokens = with_a_dead_code(kind, revive=0)
    before = codebook.codes.detach().clone()
    codebook.start_epoch(tokens, 0.0)
    assert torch.equal(codebook.codes.detach(), before)
    assert codebook.wants_tokens == (kind == "psom")  # for its target


@pytest.mark.parametrize("kind", ["vq", "kohonen", "som", "psom"])
def test_a_code_with_as_many_tokens_as_asked_for_is_alive(kind):
    codebook, tokens = with_a_dead_code(kind, revive=30)  # each living code has 30, or more
    before = codebook.codes.detach().clone()
    codebook.start_epoch(tokens, 0.0)
    assert (codebook.codes.detach() != before).any(1).nonzero().flatten().tolist() == [4]


@pytest.mark.parametrize("kind", ["kohonen", "som", "psom"])
def test_on_a_map_a_dead_code_comes_back_among_its_neighbours(kind):
    codebook, tokens = with_a_dead_code(kind, revive=1)
    mean = codebook.codes.detach()[[1, 3, 5, 7]].mean(0)
    codebook.start_epoch(tokens, 0.0)
    flat = tokens.flatten(0, 1)
    assert torch.equal(codebook.codes.detach()[4], flat[(flat - mean).norm(dim=1).argmin()])


@pytest.mark.parametrize("kind", ["kohonen", "som", "psom"])
def test_codes_of_a_map_that_died_together_come_back_to_tokens_of_their_own(kind):
    codebook, tokens = with_a_dead_code(kind, revive=1)
    codebook.place(torch.zeros(9, CHANNELS))
    codebook.start_epoch(tokens, 0.0)
    assert len(codebook.codes.detach().unique(dim=0)) == 9
    few = homes_on_map(torch.ones(3, 3), torch.zeros(3, CHANNELS), torch.arange(3), some_tokens(2))
    assert len(few.unique(dim=0)) == 2


def test_a_dead_code_without_neighbours_still_comes_back_to_a_token():
    tokens = some_tokens(20)
    homes = homes_on_map(torch.zeros(3, 3), some_tokens(3, seed=4), torch.tensor([1]), tokens)
    assert (tokens == homes).all(1).any()


def test_the_psoms_target_is_made_after_the_dead_came_back():
    codebook, tokens = with_a_dead_code("psom", revive=1)
    codebook.start_epoch(tokens, 0.0)
    expected = codebook.assign(tokens.flatten(0, 1)).detach().sum(0)
    torch.testing.assert_close(codebook.frequency, expected)
    torch.testing.assert_close(codebook.epoch_codes, codebook.codes.detach())


# a term by itself


def test_the_psoms_neighbour_term_takes_a_neighbourhood_of_any_kind():
    s, of_codes = some_shares(TOKENS, 6), some_shares(TOKENS, 6, seed=5)
    neighbourhood = Neighbourhood(Grid(2, 3), "gaussian")
    weights, total = neighbourhood.others.numpy(), 0.0
    for i, j, e in np.ndindex(TOKENS, 6, 6):
        total -= float(s[i, j]) * weights[j, e] * math.log(float(of_codes[i, e])) / TOKENS
    term = neighbours_of_codes(s.log(), of_codes.log(), neighbourhood.others)
    assert float(term) == pytest.approx(total, rel=1e-5)


# swaps


def sheet_of_tokens(grid: Grid, seed: int) -> tuple[Tensor, Tensor]:
    """Codes of a perfect map of `grid` in a plane, and tokens between each code and its neighbours."""
    row, column = torch.arange(grid.nodes) // grid.width, torch.arange(grid.nodes) % grid.width
    codes = torch.stack([row, column], 1).float()
    generator = torch.Generator().manual_seed(seed)
    pairs = grid.edges.repeat(20, 1)
    share = 0.2 + 0.6 * torch.rand(len(pairs), 1, generator=generator)
    return codes, share * codes[pairs[:, 0]] + (1 - share) * codes[pairs[:, 1]]


def test_pairs_are_counted_as_a_loop_counts_them():
    tokens, codes = some_tokens(60, seed=1).view(3, 20, CHANNELS), some_tokens(7, seed=2)
    expected = np.zeros((7, 7))
    for token in tokens.flatten(0, 1):
        first, second = (codes - token).norm(dim=1).argsort()[:2].tolist()
        expected[first, second] += 1
        expected[second, first] += 1
    np.testing.assert_array_equal(count_pairs(tokens, codes), expected)


def test_swaps_put_two_codes_that_changed_places_back():
    grid = Grid(5, 6, "rectangular")
    codes, tokens = sheet_of_tokens(grid, 0)
    order = torch.arange(30)
    order[[3, 22]] = order[[22, 3]]
    assert swaps(count_pairs(tokens[None], codes[order]), grid.adjacency.numpy()).tolist() == order.tolist()
    assert swaps(count_pairs(tokens[None], codes), grid.adjacency.numpy()).tolist() == list(range(30))


def test_swaps_only_ever_make_more_pairs_neighbours_and_stop_where_no_swap_would():
    grid = Grid(6, 6, "rectangular")
    codes, tokens = sheet_of_tokens(grid, 0)
    adjacency = grid.adjacency.double().numpy()
    for seed in range(3):
        codes = codes[torch.randperm(36, generator=torch.Generator().manual_seed(seed))]
        pairs = count_pairs(tokens[None], codes)
        order = swaps(pairs, grid.adjacency.numpy()).numpy()
        assert sorted(order) == list(range(36))
        ordered = pairs[np.ix_(order, order)]
        reached = (adjacency * ordered).sum()
        assert reached > 1.5 * (adjacency * pairs).sum()
        for a in range(36):
            for b in range(a):
                swapped = np.arange(36)
                swapped[[a, b]] = swapped[[b, a]]
                assert (adjacency * ordered[np.ix_(swapped, swapped)]).sum() <= reached


@pytest.mark.parametrize("kind", ["kohonen", "som", "psom"])
def test_swapped_codes_keep_what_is_theirs_and_nothing_but_the_map_changes(kind):
    grid = Grid(4, 4)
    make = {"kohonen": kohonen, "som": som, "psom": lambda _, **settings: psom(grid, **settings)}[kind]
    codebook, tokens = make(Neighbourhood(grid), care=Care(swap=True)), some_tokens(300, seed=5).view(3, 100, CHANNELS)
    if kind == "kohonen":
        codebook.averages.sizes.copy_(torch.arange(16) + 1.0)
        codebook.averages.sums.copy_(codebook.codes * (torch.arange(16) + 1.0)[:, None])
    before = codebook.codes.detach().clone()
    hits = torch.bincount(codebook.nearest(tokens.flatten(0, 1)), minlength=16)
    codebook.start_epoch(tokens, 0.0)
    after = codebook.codes.detach()
    order = [int((before == code).all(1).nonzero()) for code in after]
    assert sorted(order) == list(range(16))
    assert order != list(range(16))
    assert torch.equal(torch.bincount(codebook.nearest(tokens.flatten(0, 1)), minlength=16), hits[order])
    if kind == "kohonen":
        assert codebook.averages.sizes.tolist() == [number + 1.0 for number in order]
        torch.testing.assert_close(codebook.averages.sums / codebook.averages.sizes[:, None], after)


@pytest.mark.parametrize("kind", ["kohonen", "som", "psom"])
def test_codes_stay_at_their_nodes_unless_swaps_are_asked_for(kind):
    grid = Grid(4, 4)
    make = {"kohonen": kohonen, "som": som, "psom": lambda _: psom(grid)}[kind]
    codebook, before = make(Neighbourhood(grid)), None
    before = codebook.codes.detach().clone()
    codebook.start_epoch(some_tokens(300, seed=5).view(3, 100, CHANNELS), 0.0)
    assert torch.equal(codebook.codes.detach(), before)


def test_a_psom_holds_its_map_in_order_by_the_soms_own_term():
    grid, tokens = Grid(4, 4), some_tokens(50)
    weights = {"hardening": 1.0, "neighbours": 1.0, "order": 0.5}
    codebook = psom(grid, weights=weights)
    codebook.start_epoch(tokens[None], 0.0)
    tokens.requires_grad_()
    picked = codebook(tokens, None)
    expected = neighbour_term(tokens.detach(), picked.nodes, codebook.codes, Neighbourhood(grid).with_self)
    assert float(picked.losses["order"].detach()) == pytest.approx(float(expected.detach()))
    picked.losses["order"].backward()
    assert tokens.grad is None
    assert codebook.codes.grad.any()
    assert set(psom(grid)(tokens, None).losses) == {"hardening", "neighbours"}


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("grid", [Grid(5, 7), Grid(5, 7, "rectangular")])
def test_a_gaussian_neighbourhood_weighs_as_much_as_four_neighbours_in_eq_5(grid, progress):
    neighbourhood = Neighbourhood(grid, "gaussian")
    neighbourhood.shrink(progress)
    torch.testing.assert_close(neighbourhood.like_four.sum(1), torch.full((35,), 4.0))
    assert torch.equal(Neighbourhood(grid, 8).like_four, grid.adjacency_8)
