"""Maps and codebooks are checked against loops, scipy and closed forms."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.sparse.csgraph import shortest_path
from scipy.spatial.distance import cdist
from torch import Tensor

from somvq.codebooks.grid import Grid
from somvq.codebooks.psom import PSOM, hardening, sharpen, squared_distances

TOPOLOGIES = ("rectangular", "toroidal")
SHAPES = ((16, 16), (3, 5), (5, 3), (2, 6), (6, 2), (2, 2), (1, 4), (1, 2))
TOKENS, CHANNELS, ALPHA = 7, 5, 10.0


@pytest.fixture(params=TOPOLOGIES)
def topology(request):
    return request.param


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


def psom(grid: Grid, channels: int = CHANNELS, alpha: float = ALPHA, seed: int = 0) -> PSOM:
    torch.manual_seed(seed)
    return PSOM(grid, channels, alpha)


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


def test_bfloat16_around_a_codebook_changes_nothing_in_it():
    codebook, tokens = psom(Grid(4, 4), 32), 5 + some_tokens(300, 32)
    target = some_shares(300, 16)
    plain, nearest = codebook.losses(tokens, target), codebook.nearest(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = codebook.losses(tokens, target)
        assert torch.equal(codebook.nearest(tokens), nearest)
    assert {name: float(term.detach()) for name, term in mixed.items()} == {
        name: float(term.detach()) for name, term in plain.items()
    }


def test_a_codebook_keeps_its_codes_and_nothing_else():
    assert {name: tuple(value.shape) for name, value in psom(Grid(16, 16), 32).state_dict().items()} == {
        "codes": (256, 32)
    }


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
    term = codebook.losses(tokens, some_shares(TOKENS, grid.nodes))["neighbours"]
    assert float(term.detach()) == pytest.approx(neighbour_term_by_hand(s, s, grid), rel=1e-5)


def test_a_collapsed_map_has_a_neighbour_term_of_four_times_the_log_of_its_nodes():
    codebook = psom(Grid(16, 16, "toroidal"), 32)
    with torch.no_grad():
        codebook.codes.zero_()  # every token is as far from all codes
    uniform = torch.full((9, 256), 1 / 256)
    losses = codebook.losses(some_tokens(9, 32), uniform)
    assert float(losses["neighbours"].detach()) == pytest.approx(4 * math.log(256), rel=1e-6)  # 22.18 nats
    assert float(losses["hardening"].detach()) == pytest.approx(0, abs=1e-6)


# gradients


def gradients(term: str) -> tuple[Tensor | None, Tensor | None]:
    """Of one term, with respect to the tokens (so the encoder) and to the codes."""
    codebook, tokens = psom(Grid(3, 4)), some_tokens().requires_grad_()
    loss = codebook.losses(tokens, some_shares(TOKENS, 12))[term]
    return torch.autograd.grad(loss, [tokens, codebook.codes], allow_unused=True)


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
    codebook.losses(tokens, some_shares(4, 6).double())["neighbours"].backward()
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


def test_far_tokens_have_finite_losses_and_gradients():
    codebook = psom(Grid(3, 4))
    tokens = (some_tokens() * 1e5).requires_grad_()
    target = sharpen(codebook.assign(tokens).detach(), codebook.assign(tokens).detach().sum(0))
    losses = codebook.losses(tokens, target)
    sum(losses.values()).backward()
    assert all(term.detach().isfinite() for term in losses.values())
    assert tokens.grad.isfinite().all()
    assert codebook.codes.grad.isfinite().all()
