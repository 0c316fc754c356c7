"""What the paper's code did (published) and what its sources mean (corrected): one test a row of the differences."""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from somvq.codebooks.averages import MovingAverages
from somvq.codebooks.grid import Grid, Neighbourhood
from somvq.codebooks.psom import PSOM
from somvq.codebooks.som import SOM
from somvq.codebooks.vq import VQ
from somvq.config import RunConfig
from somvq.initialisers import initialise, kmeans, kohonen
from somvq.initialisers.start import Start, Tokens
from somvq.models import Model, build_model
from somvq.models.discrete import flatten
from somvq.models.vae import half_variance_kl, standard_normal_kl
from somvq.published import DIFFERENCES

READINGS = ("published", "corrected")
KINDS = ("vqvae", "som", "psom")
BATCH_TOKENS = 28_512  # of the paper's 32 scans


def run(model: str, reading: str = "corrected", **settings) -> RunConfig:
    return RunConfig.model_validate({"model": model, "reading": reading, **settings})


def built(config: RunConfig) -> Model:
    torch.manual_seed(0)
    return build_model(config)


def codebook(model: str, reading: str, grid: str = "3x3", **settings) -> VQ | SOM | PSOM:
    """A codebook as a run has it."""
    return built(run(model, reading, grid=grid, **settings)).codebook


def some_tokens(count: int = 50, seed: int = 1) -> Tensor:
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(seed))


def sheet_tokens(count: int, size: float = 1.0, noise: float = 0.01) -> Tensor:
    """Tokens on a curved sheet of two dimensions, as wide as `size` times two."""
    generator = torch.Generator().manual_seed(0)
    place = 2 * torch.rand(count, 2, generator=generator) - 1
    features = torch.cat([place, 0.3 * place.square()], dim=1)
    basis = torch.linalg.qr(torch.randn(32, 4, generator=generator)).Q
    return size * features @ basis.T + noise * torch.randn(count, 32, generator=generator)


def clustered_tokens(count: int) -> Tensor:
    """Tokens in 40 clusters."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(40, 32, generator=generator)
    spread = 0.3 * torch.randn(count, 32, generator=generator)
    return centres[torch.randint(40, (count,), generator=generator)] + spread


def some_scans() -> Tensor:
    return torch.randn(2, 1, 32, 32, 32, generator=torch.Generator().manual_seed(2))


def used(codes: VQ | SOM | PSOM, tokens: Tensor) -> int:
    """How many codes are the nearest of any token."""
    return len(codes.nearest(tokens).unique())


def entropy(s: Tensor) -> float:
    """Of each token's assignment over ln K, the mean."""
    return float(torch.special.entr(s.detach().double()).sum(1).mean() / math.log(s.shape[1]))


def gradients(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    """Zeros where none arrives."""
    found = torch.autograd.grad(loss, inputs, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


# the list of differences


def test_in_every_difference_the_readings_say_and_do_something_else():
    assert len({difference.item for difference in DIFFERENCES}) == len(DIFFERENCES)
    for difference in DIFFERENCES:
        assert difference.of("published") is difference.published.value
        assert difference.of("corrected") is difference.corrected.value
        assert difference.published.value != difference.corrected.value, difference.item
        assert difference.published.words != difference.corrected.words, difference.item
        assert difference.paper, difference.item


# architecture, skips, batch, loss


@pytest.mark.parametrize("skip", ["none", "concatenate"])
def test_an_autoencoder_is_the_same_in_both_readings(skip):
    published, corrected = (built(run("ae", reading, skip=skip)).state_dict() for reading in READINGS)
    assert published.keys() == corrected.keys()
    assert all(torch.equal(published[key], corrected[key]) for key in published)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("model", ["ae", "vae", *KINDS])
def test_both_readings_train_as_the_paper_says(model, reading):
    config = run(model, reading)
    assert (config.batch_size, config.learning_rate, config.skip) == (32, 0.005, "none")
    assert config.grid == (None if model in ("ae", "vae") else "16x16")


@pytest.mark.parametrize("reading", READINGS)
def test_eq_1_has_no_codebook_term_unless_a_run_asks_for_it(reading):
    assert run("vqvae", reading).terms == ("reconstruction_q", "commitment")
    assert isinstance(codebook("vqvae", reading).averages, MovingAverages)
    by_gradient = codebook("vqvae", reading, update="gradient", alpha=0.5)
    assert by_gradient.averages is None
    assert by_gradient.weights == {"codebook": 0.5, "commitment": 6.0}


@pytest.mark.parametrize("reading", READINGS)
def test_eq_1_beta_is_6_of_a_mean_over_elements(reading):
    """6/32 of a squared distance between vectors."""
    vq, tokens = codebook("vqvae", reading).eval(), some_tokens().requires_grad_()
    picked = vq(tokens)
    term = vq.weights["commitment"] * picked.losses["commitment"]
    apart = cdist(tokens.detach().numpy(), vq.codes.numpy(), "sqeuclidean").min(1)
    assert float(term.detach()) == pytest.approx(6 / 32 * apart.mean(), rel=1e-5)
    expected = 6 / 32 * 2 * (tokens - picked.codes) / len(tokens)
    torch.testing.assert_close(gradients(term, tokens)[0], expected.detach())


@pytest.mark.parametrize("reading", READINGS)
def test_eq_2_the_shares_of_the_reconstructions_sum_to_one(reading):
    weights = built(run("som", reading, grid="3x3")).weights
    assert (weights["reconstruction"], weights["reconstruction_q"]) == (0.8, 0.2)
    weights = built(run("som", reading, grid="3x3", gamma_q=0.5)).weights
    assert (weights["reconstruction"], weights["reconstruction_q"]) == (0.5, 0.5)


@pytest.mark.parametrize(("reading", "reaches"), [("published", False), ("corrected", True)])
def test_eq_2_the_reconstruction_from_codes_reaches_the_codes_as_corrected_only(reading, reaches):
    model, scans = built(run("som", reading, grid="3x3")), some_scans()
    of_codes, of_encoder = gradients(
        model(scans).losses["reconstruction_q"], model.codebook.codes, model.body.encoder[0].weight
    )
    assert bool(of_codes.any()) == reaches
    assert bool(of_encoder.any()) != reaches


# eq. (3): the SOM


def test_eq_3_the_published_attraction_moves_tokens_and_codes_alike():
    som, tokens = codebook("som", "published"), some_tokens().requires_grad_()
    picked = som(tokens)
    assert set(picked.losses) == {"commitment", "neighbours"}
    assert som.weights["commitment"] == 6
    of_tokens, of_codes = gradients(picked.losses["commitment"], tokens, som.codes)
    expected = 2 * (tokens - picked.codes).detach() / tokens.numel()
    torch.testing.assert_close(of_tokens, expected)
    torch.testing.assert_close(of_codes, torch.zeros_like(som.codes).index_add_(0, picked.nodes, -expected))


def test_eq_3_the_corrected_attraction_is_the_published_one_in_two_terms():
    tokens, found = some_tokens().requires_grad_(), []
    for reading, terms in (("published", ["commitment"]), ("corrected", ["codebook", "commitment"])):
        som = codebook("som", reading, alpha=6.0, **({"commitment": 6.0} if reading == "corrected" else {}))
        losses = som(tokens).losses
        found.append(gradients(sum(som.weights[term] * losses[term] for term in terms), tokens, som.codes))
    for published, corrected in zip(*found, strict=True):
        assert published.any()
        torch.testing.assert_close(published, corrected)


@pytest.mark.parametrize("reading", READINGS)
def test_eq_3_the_neighbour_term_sums_over_channels_and_averages_over_pairs_of_which_the_winner_is_one(reading):
    som, tokens = codebook("som", reading, topology="rectangular"), some_tokens()
    apart = cdist(tokens.numpy(), som.codes.detach().numpy(), "sqeuclidean")
    entries = []
    for distances in apart:
        row, column = divmod(int(distances.argmin()), 3)
        near = [(row, column), (row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        entries += [distances[r * 3 + c] for r, c in near if 0 <= r < 3 and 0 <= c < 3]
    assert float(som(tokens).losses["neighbours"].detach()) == pytest.approx(np.mean(entries), rel=1e-5)
    assert som.weights["neighbours"] == 1


# the toroidal map


def neighbours(reading: str, shape: tuple[int, int] = (16, 16)) -> NDArray:
    return Neighbourhood(Grid(*shape, "toroidal"), 4, reading).others.numpy()


def places(row: NDArray, width: int = 16) -> set[tuple[int, int]]:
    return {divmod(int(node), width) for node in np.flatnonzero(row)}


def test_the_published_torus_wraps_to_node_0():
    published, corrected = neighbours("published"), neighbours("corrected")
    assert places(published[15 * 16 + 7]) == {(14, 7), (0, 0), (15, 6), (15, 8)}
    assert places(corrected[15 * 16 + 7]) == {(14, 7), (0, 7), (15, 6), (15, 8)}
    assert places(published[7 * 16 + 15]) == {(6, 15), (8, 15), (7, 14), (0, 0)}
    assert places(published[0]) == {(15, 0), (1, 0), (0, 15), (0, 1)}  # up and left are right


def test_on_the_published_torus_29_nodes_have_wrong_neighbours_and_33_have_node_0():
    published, corrected = neighbours("published"), neighbours("corrected")
    assert (published != corrected).any(1).sum() == 29
    assert published[:, 0].sum() == 33
    assert corrected[:, 0].sum() == 4
    assert not np.array_equal(published, published.T)
    assert published.diagonal().sum() == 0


def test_on_the_corrected_torus_every_node_has_four_neighbours_each_the_others():
    corrected = neighbours("corrected")
    assert (corrected.sum(1) == 4).all()
    assert np.array_equal(corrected, corrected.T)


def test_a_rectangular_map_is_the_same_in_both_readings():
    found = [Neighbourhood(Grid(4, 5, "rectangular"), 4, reading).others for reading in READINGS]
    assert torch.equal(*found)
    assert Neighbourhood(Grid(16, 16, "rectangular"), 4, "published").others.sum() == 2 * 480


@pytest.mark.parametrize("model", ["som", "psom"])
def test_the_published_torus_reaches_the_models(model):
    book = codebook(model, "published", grid="16x16")
    assert np.array_equal(book.neighbourhood.others.numpy(), neighbours("published"))
    tokens = some_tokens()
    other = codebook(model, "published", grid="16x16")
    other.neighbourhood.others.copy_(other.grid.adjacency)
    terms = [float(one(tokens).losses["neighbours"].detach()) for one in (book, other)]
    assert terms[0] != pytest.approx(terms[1], rel=1e-3)


# eq. (3b) to (5): the PSOM


def assign_by_hand(tokens: Tensor, codes: Tensor) -> NDArray:
    """s by the squared distance and 10 degrees of freedom, in float64."""
    apart = cdist(tokens.detach().double().numpy(), codes.detach().double().numpy(), "sqeuclidean")
    kernel = (1 + apart / 10) ** (-11 / 2)
    return kernel / kernel.sum(1, keepdims=True)


def sharpen_by_hand(s: NDArray) -> NDArray:
    """Each row divided by its own sum (eq. 4, whose inner sum prints the wrong subscript)."""
    weighted = s**2 / s.sum(0)
    return weighted / weighted.sum(1, keepdims=True)


def hardening_by_hand(s: NDArray, target: NDArray) -> NDArray:
    """KL(t || s) of each token."""
    return (target * np.log(target / s)).sum(1)


def epoch_begun(psom: PSOM, tokens: Tensor) -> PSOM:
    psom.start_epoch(tokens.detach()[None], 0.0)
    return psom


ROWS = torch.zeros(1, dtype=torch.long)  # one scan, of all tokens


@pytest.mark.parametrize("reading", READINGS)
def test_eq_3b_the_distance_is_squared_and_alpha_is_10_degrees_of_freedom(reading):
    psom, tokens = codebook("psom", reading), some_tokens()
    assert psom.alpha == 10
    assert run("som", reading).alpha == 6  # another alpha: a weight
    np.testing.assert_allclose(psom.assign(tokens).detach(), assign_by_hand(tokens, psom.codes), rtol=1e-4)


def test_eq_3b_no_published_term_reaches_the_encoder():
    model, scans = built(run("psom", "published", grid="4x4")), some_scans()
    weights = list(model.body.encoder.parameters())
    losses = model(scans, torch.arange(2)).losses
    assert set(losses) == {"reconstruction", "hardening", "neighbours"}
    for term in ("hardening", "neighbours"):
        assert not any(gradient.any() for gradient in gradients(losses[term], *weights))
        assert gradients(losses[term], model.codebook.codes)[0].any()


def test_eq_3b_corrected_hardening_reaches_the_encoder():
    model, scans = built(run("psom", grid="4x4")), some_scans()
    model.start_epoch([scans])
    losses = model(scans, torch.arange(2)).losses
    of_encoder, of_codes = gradients(losses["hardening"], model.body.encoder[0].weight, model.codebook.codes)
    assert of_encoder.any()
    assert of_codes.any()


def test_eq_4_the_published_target_is_of_a_batch_and_has_a_gradient():
    psom, tokens = codebook("psom", "published").double(), some_tokens().double()
    assert not psom.wants_tokens
    for batch in (tokens, tokens[:20]):
        s = assign_by_hand(batch, psom.codes)
        target = psom.target(psom.assign(batch), ROWS)
        np.testing.assert_allclose(target.detach(), sharpen_by_hand(s), rtol=1e-9)
        assert target.requires_grad

    def by_hand(s: NDArray) -> float:
        return float(hardening_by_hand(s, sharpen_by_hand(s)).sum())

    term = psom(tokens).losses["hardening"]
    assert float(term.detach()) == pytest.approx(by_hand(assign_by_hand(tokens, psom.codes)), rel=1e-9)
    check_gradient(psom, term, by_hand, tokens)


def check_gradient(psom: PSOM, loss: Tensor, by_hand: Callable[[NDArray], float], tokens: Tensor) -> None:
    """The gradient to codes is that of `by_hand` of s, by finite differences at a few places."""
    gradient = gradients(loss, psom.codes)[0].numpy()
    start, step = psom.codes.detach().clone(), 1e-6
    for place in ((0, 0), (3, 7), (8, 31)):
        sides = []
        for sign in (1, -1):
            moved = start.clone()
            moved[place] += sign * step
            sides.append(by_hand(assign_by_hand(tokens, moved)))
        assert gradient[place] == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=1e-4, abs=1e-7)


def test_eq_4_the_corrected_target_is_of_the_training_set_and_constant():
    psom, tokens = codebook("psom", "corrected").double(), some_tokens().double()
    assert psom.wants_tokens
    psom.start_epoch(tokens.view(5, 10, 32), 0.0)
    expected = sharpen_by_hand(assign_by_hand(tokens, psom.codes))
    target = psom.target(psom.assign(tokens[20:30]), torch.tensor([2]))
    np.testing.assert_allclose(target, expected[20:30], rtol=1e-6)
    assert not target.requires_grad
    term = psom(tokens, torch.arange(5)).losses["hardening"]
    check_gradient(psom, term, lambda s: hardening_by_hand(s, expected).mean(), tokens)


def test_eq_5_published_hardening_is_a_sum_over_tokens_and_the_corrected_one_a_mean():
    """So the paper's gamma of 1 is 28,512 of a mean."""
    terms = {}
    for reading in READINGS:
        tokens = some_tokens(40)
        psom = codebook("psom", reading)
        terms[reading] = float(epoch_begun(psom, tokens)(tokens, ROWS).losses["hardening"].detach())
    assert terms["published"] == pytest.approx(40 * terms["corrected"], rel=1e-4)
    assert terms["corrected"] > 0.01


@pytest.mark.parametrize("topology", ["rectangular", "toroidal"])
def test_eq_5_published_smoothing_is_over_those_whose_neighbour_a_node_is_and_all_of_it_learns(topology):
    psom, tokens = codebook("psom", "published", topology=topology).double(), some_tokens().double()
    others = psom.neighbourhood.others.numpy()
    assert np.array_equal(others, others.T) == (topology == "rectangular")

    def by_hand(s: NDArray) -> float:
        total = 0.0
        for j, e in np.argwhere(others.T):
            total -= (s[:, j] * np.log(s[:, e])).mean()
        return total

    term = psom(tokens).losses["neighbours"]
    assert float(term.detach()) == pytest.approx(by_hand(assign_by_hand(tokens, psom.codes)), rel=1e-9)
    check_gradient(psom, term, by_hand, tokens)


def test_eq_5_corrected_smoothing_moves_codes_by_shares_that_stand_still():
    psom, tokens = codebook("psom", "corrected").double(), some_tokens().double().requires_grad_()
    still, others = assign_by_hand(tokens, psom.codes), psom.neighbourhood.others.numpy()

    def by_hand(s: NDArray) -> float:
        return -float((still * (np.log(s) @ others.T)).sum(1).mean())

    term = epoch_begun(psom, tokens)(tokens, ROWS).losses["neighbours"]
    assert float(term.detach()) == pytest.approx(by_hand(still), rel=1e-9)
    assert not gradients(term, tokens)[0].any()
    check_gradient(psom, term, by_hand, tokens)


def test_eq_5_gamma_and_beta_are_1_and_1_of_a_sum_or_dpsoms_20_and_a_quarter_over_32_channels():
    assert (run("psom", "published").gamma, run("psom", "published").beta) == (1, 1)
    assert (run("psom").gamma, run("psom").beta) == (20 / 32, 0.25 / 32)
    assert run("psom", "published").terms == run("psom").terms == ("reconstruction", "hardening", "neighbours")


@pytest.mark.parametrize("reading", READINGS)
def test_hardening_is_never_negative_and_nothing_where_every_code_is_as_near(reading):
    tokens = some_tokens()
    psom = codebook("psom", reading)
    assert float(epoch_begun(psom, tokens)(tokens, ROWS).losses["hardening"].detach()) > 0
    psom.place(torch.ones(9, 32))
    losses = epoch_begun(psom, tokens)(tokens, ROWS).losses
    assert float(losses["hardening"].detach()) == pytest.approx(0, abs=1e-4)
    torch.testing.assert_close(psom.assign(tokens).detach(), torch.full((50, 9), 1 / 9))


@pytest.mark.parametrize(
    ("reading", "topology", "expected"),
    [
        ("corrected", "toroidal", 4 * math.log(256)),  # 22.1807
        ("published", "toroidal", 4 * math.log(256) * 1023 / 1024),  # 22.159: the last node has node 0 twice
        ("published", "rectangular", 2 * 480 / 256 * math.log(256)),
    ],
)
def test_a_collapsed_map_is_known_by_its_neighbour_term(reading, topology, expected):
    psom = codebook("psom", reading, grid="16x16", topology=topology)
    psom.place(torch.zeros(256, 32))
    assert float(psom(some_tokens()).losses["neighbours"].detach()) == pytest.approx(expected, rel=1e-6)


# the collapse


def trained_codebook(reading: str) -> tuple[float, float, float]:
    """Entropy of s before and after codes from N(0, 1) learn from tokens that stand still; the neighbour term after.

    256 tokens stand for a batch of 28,512, so a sum over them counts as many times more.
    """
    tokens = sheet_tokens(256, size=20.0, noise=0.05)
    psom = codebook("psom", reading, grid="16x16")
    optimiser = torch.optim.Adam(psom.parameters(), 0.02)
    scale = {"hardening": BATCH_TOKENS / len(tokens) if reading == "published" else 1.0, "neighbours": 1.0}
    before = entropy(psom.assign(tokens))
    for step in range(250):
        if step % 4 == 0:
            epoch_begun(psom, tokens)
        losses = psom(tokens, ROWS).losses
        loss = sum(scale[term] * psom.weights[term] * value for term, value in losses.items())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return before, entropy(psom.assign(tokens)), float(losses["neighbours"].detach())


def test_the_published_psoms_codes_collapse_until_every_token_belongs_to_all():
    before, after, term = trained_codebook("published")
    assert after > 0.995 > before
    assert 22.07 < term < 22.19  # 4 ln 256


def test_the_corrected_psoms_codes_part_the_tokens_between_them():
    before, after, _ = trained_codebook("corrected")
    assert after < 0.5 < before


@pytest.mark.parametrize(("term", "sign"), [("hardening", -1), ("neighbours", 1)])
def test_gamma_hardens_and_beta_smooths(term, sign):
    tokens = clustered_tokens(200)
    psom = codebook("psom", "corrected", grid="6x6")
    psom.place(tokens[:36])
    before = entropy(psom.assign(tokens))
    optimiser = torch.optim.Adam(psom.parameters(), 0.02)
    for step in range(60):
        if step % 4 == 0:
            epoch_begun(psom, tokens)
        optimiser.zero_grad()
        psom(tokens, ROWS).losses[term].backward()
        optimiser.step()
    change = entropy(psom.assign(tokens)) - before
    assert sign * change > 0.02


# moving averages


def trained_averages(reading: str, model: str, centres: Tensor | None, steps: int) -> tuple[list[int], Tensor]:
    """Codes in use before each step and after the last, and the longest code."""
    tokens = clustered_tokens(2048)
    vq = codebook(model, reading, grid="16x16", **({"update": "ema"} if model == "som" else {}))
    if centres is not None:
        vq.place(centres)
    counts, longest = [used(vq, tokens)], []
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        vq(tokens[torch.randperm(len(tokens), generator=generator)[:1024]])
        counts.append(used(vq, tokens))
        longest.append(vq.codes.norm(dim=1).max())
    return counts, torch.stack(longest)


@cache
def centres_of_clusters() -> Tensor:
    return kmeans.cluster(clustered_tokens(2048), None, 256, 0, starts=1)


@pytest.mark.parametrize("reading", READINGS)
def test_averages_decay_by_99_percent_and_smooth_by_one_in_100_000(reading):
    torch.manual_seed(0)
    codes = torch.randn(4, 2)
    averages = MovingAverages(codes, reading)
    if reading == "published":
        assert averages.sizes.tolist() == [0, 0, 0, 0]
        assert not torch.allclose(averages.sums, codes)
    else:
        assert averages.sizes.tolist() == [1, 1, 1, 1]
        assert torch.equal(averages.sums, codes)
    averages.sizes[1] = 0  # which smoothing, if it is kept, does not leave so
    sizes, sums = averages.sizes.double().numpy().copy(), averages.sums.double().numpy().copy()
    hits, totals = np.array([3.0, 0.0, 1.0, 6.0]), np.arange(8.0).reshape(4, 2)
    for _ in range(3):
        found = averages.update(torch.from_numpy(hits).float(), torch.from_numpy(totals).float())
        sizes, sums = 0.99 * sizes + 0.01 * hits, 0.99 * sums + 0.01 * totals
        smoothed = (sizes + 1e-5) / (sizes.sum() + 4e-5) * sizes.sum()
        np.testing.assert_allclose(found, sums / smoothed[:, None], rtol=1e-5, atol=1e-6)
        sizes = smoothed if reading == "published" else sizes
        np.testing.assert_allclose(averages.sizes, sizes, rtol=1e-5, atol=1e-9)


def test_published_averages_throw_unused_codes_away_for_good():
    counts, longest = trained_averages("published", "vqvae", None, 60)
    assert longest[0] > 1e5
    assert counts[0] > 30
    assert max(counts[2:]) < counts[0] / 2
    assert counts[-1] <= counts[1]


@pytest.mark.parametrize("model", ["vqvae", "som"])
def test_published_averages_undo_kmeans_in_a_step(model):
    counts, _ = trained_averages("published", model, centres_of_clusters(), 5)
    assert counts[0] == 256
    assert counts[1] < 0.9 * 256


def test_corrected_averages_keep_every_code_of_kmeans():
    counts, longest = trained_averages("corrected", "vqvae", centres_of_clusters(), 60)
    assert set(counts) == {256}
    assert longest.max() < 10


def test_a_code_placed_is_forgotten_by_the_published_averages_and_kept_by_the_corrected_ones():
    kept = {}
    for reading in READINGS:
        vq = codebook("vqvae", reading)
        vq(some_tokens())
        placed = some_tokens(9, seed=5)
        vq.place(placed)
        vq(some_tokens())
        kept[reading] = float((vq.codes - placed).norm(dim=1).max())
    assert kept["corrected"] < 5 < kept["published"]


@pytest.mark.parametrize(
    ("settings", "reached"),
    [
        ({"model": "vqvae", "gamma_q": 0.5}, {"encoder", "decoder"}),
        ({"model": "vqvae", "gamma_q": 0.5, "update": "gradient", "estimator": "direct"}, {"decoder", "codes"}),
        ({"model": "som", "update": "ema"}, {"encoder", "decoder"}),
        ({"model": "som"}, {"decoder", "codes"}),
    ],
)
def test_eq_2_whatever_learns_from_what_is_decoded_from_codes_is_never_the_decoder_alone(settings, reached):
    model, scans = built(run(**settings, grid="3x3")), some_scans()
    model(scans).losses["reconstruction_q"].backward()
    found = {part for part, weights in (("encoder", model.body.encoder), ("decoder", model.body.decoder))
             if any(p.grad is not None and p.grad.any() for p in weights.parameters())}  # fmt: skip
    codes = model.codebook.codes
    assert found | ({"codes"} if codes.grad is not None and codes.grad.any() else set()) == reached


# initialisers


@pytest.mark.parametrize(("reading", "rows"), [("published", 7), ("corrected", None)])
def test_kmeans_sees_the_tokens_of_one_batch_or_of_the_whole_training_set(reading, rows):
    config = run("som", reading, init="ae-kmeans", grid="2x2")
    asked = []

    def tokens(encoder: nn.Module, scans: int | None) -> Tokens:
        asked.append(scans)
        return Tokens(some_tokens(), torch.ones(50))

    weights = built(run("ae")).state_dict()
    initialise(built(config), config, Start(0, tokens, batch=7, weights={"ae": weights}))
    assert asked == [rows]


def half_background() -> Tokens:
    """Tokens of which half are background, spread as widely as brain."""
    values = some_tokens(600)
    brain = (torch.arange(600) < 300).float()
    values[:, 0] += 20 * (1 - brain)
    return Tokens(values, brain)


def test_published_kmeans_is_scikit_learns_and_gives_background_its_share():
    tokens, grid = half_background(), Grid(4, 4)
    centres = kmeans.CENTRES.of("published")(tokens, grid, 3)
    expected = KMeans(16, random_state=3, n_init=10).fit(tokens.values.numpy()).cluster_centers_
    np.testing.assert_allclose(centres, expected, rtol=1e-5, atol=1e-5)
    assert 6 <= (centres[:, 0] > 10).sum() <= 10
    assert (kmeans.CENTRES.of("corrected")(tokens, grid, 3)[:, 0] > 10).sum() <= 5


def neighbour_ratio(codes: Tensor, grid: Grid) -> float:
    """Mean distance of codes on neighbouring nodes over that of all pairs."""
    distances = cdist(codes.numpy(), codes.numpy())
    return float(distances[grid.adjacency.numpy() > 0].mean() / distances[~np.eye(len(codes), dtype=bool)].mean())


def topographic_error(tokens: Tensor, codes: Tensor, grid: Grid) -> float:
    """Share of tokens whose two nearest nodes are no neighbours."""
    first, second = np.argsort(cdist(tokens.numpy(), codes.numpy()), axis=1)[:, :2].T
    return float((grid.adjacency.numpy()[first, second] == 0).mean())


@pytest.mark.parametrize("topology", ["rectangular", "toroidal"])
def test_published_kmeans_has_no_order_on_the_map_and_the_corrected_one_has(topology):
    tokens, grid = Tokens(sheet_tokens(1000), torch.ones(1000)), Grid(8, 8, topology)
    ratios = {reading: neighbour_ratio(kmeans.CENTRES.of(reading)(tokens, grid, 0), grid) for reading in READINGS}
    assert ratios["published"] == pytest.approx(1, abs=0.15)
    assert ratios["corrected"] < 0.6


def test_the_published_kohonen_map_has_no_order_and_the_batch_som_has():
    tokens, grid = Tokens(sheet_tokens(800, size=10.0, noise=0.05), torch.ones(800)), Grid(10, 10, "rectangular")
    found = {}
    for reading in READINGS:
        codes = kohonen.MAP.of(reading)(tokens, grid, 0)
        found[reading] = neighbour_ratio(codes, grid), topographic_error(tokens.values, codes, grid)
    assert found["published"][0] == pytest.approx(1, abs=0.1)
    assert found["published"][1] > 0.6
    assert found["corrected"][0] < 0.3
    assert found["corrected"][1] < 0.3


def continuous_start(model: str, reading: str, init: str) -> tuple[Model, Model, dict[str, dict[str, Tensor]], Tokens]:
    """A model as built, as begun, the weights it began from, and the tokens its codes came from."""
    config = run(model, reading, latent="continuous", init=init, grid="2x2")
    weights = {}
    for seed, (kind, stage) in enumerate(config.stages(0).items()):
        torch.manual_seed(10 + seed)
        weights[kind] = build_model(stage).state_dict()
    seen = []
    scans = torch.randn(8, 1, 16, 16, 32, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def tokens(encoder: nn.Module, rows: int | None) -> Tokens:
        values = flatten(encoder.eval()(scans))
        seen.append((encoder.state_dict(), Tokens(values, torch.ones(len(values)))))
        return seen[-1][1]

    begun = built(config)
    initialise(begun, config, Start(0, tokens, weights=weights))
    source = {f"encoder.{key}": value for key, value in seen[0][0].items()} if seen else {}
    return built(config), begun, {**weights, "source": source}, seen[0][1] if seen else Tokens(scans, scans)


def taken(model: Model, weights: dict[str, Tensor]) -> set[str]:
    """The parts of a model that are bit for bit those of `weights`."""
    state = model.body.state_dict()
    return {
        part
        for part in ("encoder", "log_variance", "decoder")
        if all(key in weights and torch.equal(v, weights[key]) for key, v in state.items() if key.startswith(part))
    }


def test_the_published_continuous_som_starts_from_centres_of_the_ae_and_a_random_decoder():
    fresh, begun, weights, tokens = continuous_start("som", "published", "vae-kmeans")
    assert taken(begun, weights["vae"]) == {"encoder", "log_variance"}
    decoder = begun.body.decoder.state_dict()
    assert all(torch.equal(decoder[key], value) for key, value in fresh.body.decoder.state_dict().items())
    assert any("running_mean" in key for key in decoder)
    assert not any("running_mean" in key for key in begun.body.encoder.state_dict())
    assert all(torch.equal(weights["ae"][key], value) for key, value in weights["source"].items())
    expected = KMeans(4, random_state=0, n_init=10).fit(tokens.values.numpy()).cluster_centers_
    np.testing.assert_allclose(begun.codebook.codes.detach(), expected, rtol=1e-4, atol=1e-5)


def test_the_corrected_continuous_som_starts_from_centres_of_the_vae_and_its_decoder():
    _, begun, weights, _ = continuous_start("som", "corrected", "vae-kmeans")
    assert taken(begun, weights["vae"]) == {"encoder", "log_variance", "decoder"}
    assert set(weights) == {"vae", "source"}
    assert all(torch.equal(weights["vae"][key], value) for key, value in weights["source"].items())


@pytest.mark.parametrize("reading", READINGS)
def test_a_continuous_psom_with_weights_alone_takes_all_of_the_vae_and_keeps_random_codes(reading):
    fresh, begun, weights, _ = continuous_start("psom", reading, "vae")
    assert taken(begun, weights["vae"]) == {"encoder", "log_variance", "decoder"}
    assert torch.equal(begun.codebook.codes, fresh.codebook.codes)
    assert float(fresh.codebook.codes.detach().std()) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("model", KINDS)
def test_codes_start_standard_normal_where_nothing_places_them(model, reading):
    codes = codebook(model, reading, grid="16x16").codes.detach()
    assert float(codes.mean()) == pytest.approx(0, abs=0.05)
    assert float(codes.std()) == pytest.approx(1, abs=0.05)


# the continuous latent


def test_the_published_vae_has_no_batch_norm_and_the_corrected_one_has_it_as_the_ae():
    norms = {
        model: sum(isinstance(layer, nn.BatchNorm3d) for layer in built(config).modules())
        for model, config in (("ae", run("ae")), ("published", run("vae", "published")), ("corrected", run("vae")))
    }
    assert norms == {"ae": 6, "published": 0, "corrected": 9}


def test_the_published_kl_is_least_at_half_the_variance():
    """0.3466 = (ln 2) / 2, where the KL is 0.0966; the KL is 0 at the standard normal."""

    def value(kl: Callable[[Tensor, Tensor], Tensor]) -> Callable[[NDArray], float]:
        return lambda point: float(kl(torch.tensor([point[0]]), torch.tensor([point[1]])))

    least = minimize(value(half_variance_kl), [1.0, 1.0], tol=1e-10)
    assert least.fun == pytest.approx(0.3466, abs=1e-4)
    assert [least.x[0], math.exp(least.x[1])] == pytest.approx([0, 0.5], abs=1e-3)
    assert value(standard_normal_kl)([0.0, math.log(0.5)]) == pytest.approx(0.0966, abs=1e-4)
    true = minimize(value(standard_normal_kl), [1.0, 1.0], tol=1e-10)
    assert true.fun == pytest.approx(0, abs=1e-6)
    assert [true.x[0], math.exp(true.x[1])] == pytest.approx([0, 1], abs=1e-3)


@pytest.mark.parametrize("reading", READINGS)
def test_a_models_kl_is_its_readings(reading):
    model, scans = built(run("vae", reading)), some_scans()
    mean, log_variance = model.encoder(scans), model.log_variance(scans)
    if reading == "published":
        expected = (log_variance.exp() + mean**2 - log_variance / 2 - 0.5).mean()
    else:
        expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0, 1)).mean()
    assert float(model(scans).losses["kl"].detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    assert model.weights["kl"] == {"published": 1, "corrected": 1 / 64}[reading]


@pytest.mark.parametrize("model", ["vae", *KINDS])
def test_the_published_latent_is_sampled_in_evaluation_too_and_the_corrected_one_is_its_mean(model):
    for reading in READINGS:
        found = built(run(model, reading, latent="continuous")).eval()
        with torch.no_grad():
            first, second = (found(some_scans()).z for _ in range(2))
            mean = getattr(found, "body", found).encoder(some_scans())
        assert torch.equal(first, second) == (reading == "corrected")
        assert torch.equal(first, mean) == (reading == "corrected")
        found.train()
        assert not torch.equal(found(some_scans()).z, found(some_scans()).z)


@pytest.mark.parametrize("reading", READINGS)
def test_a_continuous_vqvae_which_the_paper_names_and_does_not_show_can_be_trained(reading):
    assert run("vqvae", reading, latent="continuous").terms == ("reconstruction_q", "kl", "commitment")


# what is decoded


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("model", KINDS)
def test_both_reconstructions_are_shown_so_that_what_quantisation_costs_can_be_seen(model, reading):
    found = built(run(model, reading)).eval()
    output = found(some_scans())
    assert output.reconstruction.shape == output.reconstruction_q.shape == some_scans().shape
    assert not torch.equal(output.reconstruction, output.reconstruction_q)


def test_the_published_psom_learns_from_tokens_alone():
    model = built(run("psom", "published", grid="3x3"))
    assert model.weights["reconstruction"] == 1
    assert "reconstruction_q" not in model.weights
    assert model(some_scans(), torch.arange(2)).reconstruction_q is None
