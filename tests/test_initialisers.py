"""Where weights and codes start: the auto-encoder's bits, k-means' centres, and maps in order."""

import math
from functools import cache
from typing import get_args

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from torch import Tensor

from somvq.codebooks.grid import Grid
from somvq.config import RunConfig
from somvq.errors import DefinitionError
from somvq.initialisers import INITIALISERS, kohonen
from somvq.initialisers.kohonen import batch_som, sample
from somvq.initialisers.start import Start
from somvq.metrics import topographic_error
from somvq.models import build_model
from somvq.models.ae import AE
from somvq.models.psomvae import PSOMVAE, flatten

TOPOLOGIES = ("rectangular", "toroidal")
FROM_AN_AUTOENCODER = [name for name in INITIALISERS if name != "random"]
FROM_TOKENS = ("ae-kmeans", "ae-som")


@pytest.fixture(params=INITIALISERS)
def name(request):
    return request.param


@pytest.fixture(params=TOPOLOGIES)
def topology(request):
    return request.param


def psom(grid: str = "4x4", topology: str = "toroidal", seed: int = 0) -> PSOMVAE:
    torch.manual_seed(seed)
    model = build_model(RunConfig(model="psom", grid=grid, topology=topology))
    assert isinstance(model, PSOMVAE)
    return model


@cache
def trained() -> AE:
    """An AE after a few steps: its batch statistics are no longer those it was built with."""
    torch.manual_seed(7)
    ae = AE()
    optimiser = torch.optim.Adam(ae.parameters(), 0.01)
    for _ in range(3):
        loss = ae(torch.randn(2, 1, 16, 16, 16)).losses["reconstruction"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return ae


def trained_autoencoder() -> dict[str, Tensor]:
    """The state of a trained AE, the caller's own."""
    return {key: value.clone() for key, value in trained().state_dict().items()}


def sheet_tokens(count: int = 3000, channels: int = 32, seed: int = 0) -> Tensor:
    """Tokens on a curved sheet of two dimensions in `channels`."""
    generator = torch.Generator().manual_seed(seed)
    place = 2 * torch.rand(count, 2, generator=generator) - 1
    features = torch.cat([place, 0.3 * place.square()], dim=1)
    basis = torch.linalg.qr(torch.randn(channels, 4, generator=generator)).Q
    return 3 + features @ basis.T + 0.01 * torch.randn(count, channels, generator=generator)


def start(tokens: Tensor | None = None, seed: int = 5) -> Start:
    """A trained AE and the training set's tokens."""
    given = sheet_tokens(400) if tokens is None else tokens
    return Start(seed, lambda encoder: given, trained_autoencoder())


def quantisation_error(tokens: Tensor, codes: Tensor) -> float:
    return float((cdist(tokens.numpy(), codes.numpy()).min(1) ** 2).mean())


def neighbour_ratio(codes: Tensor, grid: Grid) -> float:
    """Mean distance of codes on neighbouring nodes over that of all pairs: 1 in arbitrary order, small on a map."""
    distances = cdist(codes.numpy(), codes.numpy())
    return float(distances[grid.adjacency.numpy() > 0].mean() / distances[~np.eye(len(codes), dtype=bool)].mean())


def error_of_map(tokens: Tensor, codes: Tensor, grid: Grid) -> float:
    return topographic_error(torch.from_numpy(cdist(tokens.numpy(), codes.numpy())), grid)


def shuffled(codes: Tensor) -> Tensor:
    return codes[torch.randperm(len(codes), generator=torch.Generator().manual_seed(0))]


# the contract


def test_initialisers_are_those_that_a_run_may_name():
    assert set(INITIALISERS) == set(get_args(RunConfig.model_fields["init"].annotation))


def test_a_start_is_finite_and_can_be_trained(name):
    model = psom()
    INITIALISERS[name](model, start())
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert model.codebook.codes.shape == (16, 32)
    assert model.codebook.codes.requires_grad
    sum(model(torch.randn(2, 1, 16, 16, 16)).losses.values()).backward()
    assert model.codebook.codes.grad.any()


def test_the_same_seed_starts_from_the_same_bits(name):
    states = []
    for _ in range(2):
        model = psom()
        INITIALISERS[name](model, start())
        states.append(model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("name", FROM_TOKENS)
def test_another_seed_starts_from_other_codes(name):
    models = psom(), psom()
    for seed, model in enumerate(models):
        INITIALISERS[name](model, start(seed=seed))
    assert not torch.allclose(models[0].codebook.codes, models[1].codebook.codes)


def test_random_leaves_a_model_as_it_was_built():
    model, built = psom(), psom().state_dict()
    INITIALISERS["random"](model, start())
    assert all(torch.equal(value, built[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", FROM_AN_AUTOENCODER)
def test_weights_and_batch_statistics_are_the_autoencoders_bit_for_bit(name):
    model, trained = psom(), trained_autoencoder()
    INITIALISERS[name](model, start())
    state = model.state_dict()
    assert {key for key in state if key.startswith(("encoder.", "decoder."))} == set(trained)
    assert all(torch.equal(state[key], value) for key, value in trained.items())
    assert int(state["encoder.1.num_batches_tracked"]) == 3
    assert not torch.equal(state["encoder.1.running_mean"], torch.zeros(4))


@pytest.mark.parametrize("name", FROM_AN_AUTOENCODER)
def test_a_start_is_a_copy_that_training_does_not_carry_back(name):
    model, given = psom(), start()
    INITIALISERS[name](model, given)
    before = given.autoencoder["encoder.0.weight"].clone()
    with torch.no_grad():
        model.encoder[0].weight.add_(1)
    assert torch.equal(given.autoencoder["encoder.0.weight"], before)


@pytest.mark.parametrize("name", FROM_AN_AUTOENCODER)
def test_without_a_trained_autoencoder_there_is_no_start(name):
    with pytest.raises(AssertionError, match="the stage that trains the auto-encoder has not run"):
        INITIALISERS[name](psom(), start()._replace(autoencoder=None))


def test_an_autoencoder_of_other_layers_is_refused():
    trained = trained_autoencoder()
    del trained["decoder.0.weight"]
    with pytest.raises(AssertionError, match=r"does not fit: .*decoder\.0\.weight"):
        INITIALISERS["ae"](psom(), start()._replace(autoencoder=trained))


def test_an_autoencoder_can_start_from_another():
    torch.manual_seed(1)
    model, trained = AE(), trained_autoencoder()
    INITIALISERS["ae"](model, start())
    assert all(torch.equal(value, trained[key]) for key, value in model.state_dict().items())


def test_codes_stay_random_where_only_weights_are_taken():
    model, built = psom(), psom().codebook.codes
    INITIALISERS["ae"](model, start())
    assert torch.equal(model.codebook.codes, built)


# codes from tokens


@pytest.mark.parametrize("name", FROM_TOKENS)
def test_tokens_are_those_of_the_trained_encoder(name):
    model, trained = psom("2x3"), trained_autoencoder()
    scans = torch.randn(8, 1, 32, 16, 16, generator=torch.Generator().manual_seed(0))
    seen = []

    def tokens(encoder):
        seen.append(encoder.state_dict()["0.weight"].clone())
        with torch.no_grad():
            return flatten(encoder(scans))

    INITIALISERS[name](model, Start(0, tokens, trained))
    assert len(seen) == 1
    assert torch.equal(seen[0], trained["encoder.0.weight"])


@pytest.mark.parametrize("name", FROM_TOKENS)
@pytest.mark.parametrize("grid", ["2x6", "6x2", "3x5", "1x4", "16x16"])
def test_a_map_of_any_shape_starts_among_the_tokens(name, grid, topology):
    model, tokens = psom(grid, topology), sheet_tokens(600)
    INITIALISERS[name](model, start(tokens))
    codes = model.codebook.codes.detach()
    assert (codes >= tokens.amin(0) - 1e-4).all()
    assert (codes <= tokens.amax(0) + 1e-4).all()
    assert len(codes.unique(dim=0)) == model.codebook.grid.nodes


@pytest.mark.parametrize("name", FROM_TOKENS)
def test_fewer_tokens_than_nodes_are_refused_in_one_line(name):
    with pytest.raises(DefinitionError) as raised:
        INITIALISERS[name](psom(), start(sheet_tokens(15)))
    assert str(raised.value) == (
        "a map of 16 nodes cannot start from the 15 tokens of this training set; take a smaller grid, or init ae"
    )


@pytest.mark.parametrize("name", FROM_TOKENS)
def test_as_many_tokens_as_nodes_are_enough(name):
    model = psom()
    INITIALISERS[name](model, start(sheet_tokens(16)))
    assert model.codebook.codes.isfinite().all()


def test_a_sample_holds_tokens_drawn_without_replacement(monkeypatch):
    monkeypatch.setattr(kohonen, "MOST_TOKENS", 50)
    tokens = torch.arange(200.0).view(100, 2)
    drawn = sample(tokens, 4, seed=0)
    assert drawn.shape == (50, 2)
    assert len(drawn.unique(dim=0)) == 50
    assert {tuple(token) for token in drawn.tolist()} <= {tuple(token) for token in tokens.tolist()}
    assert drawn.mean() > tokens[:50].mean() + 20  # not the first scans alone
    assert not torch.equal(drawn, sample(tokens, 4, seed=1))


# k-means


def kmeans_codes(topology: str) -> tuple[Tensor, Tensor, Grid]:
    """Tokens, codes and map of an 8 x 8 start."""
    tokens, model = sheet_tokens(2000), psom("8x8", topology)
    INITIALISERS["ae-kmeans"](model, start(tokens))
    return tokens, model.codebook.codes.detach(), model.codebook.grid


def test_kmeans_codes_are_the_centres_each_on_one_node(topology):
    tokens, codes, grid = kmeans_codes(topology)
    clusters = KMeans(grid.nodes, n_init=1, random_state=5).fit(sample(tokens, grid.nodes, 5).numpy())
    distances = cdist(codes.numpy(), clusters.cluster_centers_)
    assert sorted(distances.argmin(1)) == list(range(grid.nodes))
    assert distances.min(1).max() < 1e-4
    assert quantisation_error(tokens, codes) == pytest.approx(-clusters.score(tokens.numpy()) / len(tokens), rel=1e-4)


def test_kmeans_codes_are_the_means_of_the_tokens_nearest_to_them():
    tokens, codes, _ = kmeans_codes("toroidal")
    nearest = cdist(tokens.numpy(), codes.numpy()).argmin(1)
    for node, code in enumerate(codes):
        torch.testing.assert_close(tokens[nearest == node].mean(0), code, atol=0.05, rtol=0)


def test_kmeans_codes_are_laid_out_in_the_maps_order(topology):
    tokens, codes, grid = kmeans_codes(topology)
    arbitrary = shuffled(codes)
    assert neighbour_ratio(arbitrary, grid) == pytest.approx(1, abs=0.15)
    assert neighbour_ratio(codes, grid) < 0.6
    assert error_of_map(tokens, codes, grid) < error_of_map(tokens, arbitrary, grid) - 0.2


# batch SOM


def batch_som_by_hand(tokens: Tensor, grid: Grid, seed: int, steps: int) -> np.ndarray:
    """Kohonen's batch map in float64, one node at a time; distances on the map from the neighbours' graph."""
    z = tokens.double().numpy()
    codes = z[torch.randperm(len(z), generator=torch.Generator().manual_seed(seed)).numpy()[: grid.nodes]]
    first = 3 / 8 * max(grid.height, grid.width)
    for step in range(steps):
        width = first * (0.5 / first) ** (step / (steps - 1))
        winners = [int(((codes - token) ** 2).sum(1).argmin()) for token in z]
        after = np.zeros_like(codes)
        for node in range(grid.nodes):
            weights = []
            for winner in winners:
                down = abs(node // grid.width - winner // grid.width)
                across = abs(node % grid.width - winner % grid.width)
                if grid.topology == "toroidal":
                    down, across = min(down, grid.height - down), min(across, grid.width - across)
                weights.append(math.exp(-((down + across) ** 2) / (2 * width**2)))
            after[node] = np.average(z, axis=0, weights=weights)
        codes = after
    return codes


def test_a_batch_som_is_the_mean_under_a_neighbourhood_on_the_map(topology):
    tokens, grid = sheet_tokens(60, channels=4), Grid(3, 5, topology)
    expected = batch_som_by_hand(tokens, grid, seed=2, steps=4)
    np.testing.assert_allclose(batch_som(tokens, grid, 2, steps=4), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("topology", "error", "ratio"), [("rectangular", 0.05, 0.3), ("toroidal", 0.75, 0.5)])
def test_a_batch_som_unfolds_over_a_sheet(topology, error, ratio):
    """A torus has to fold to cover a sheet, so that far nodes lie together: its error is large by nature."""
    tokens, grid = sheet_tokens(), Grid(8, 8, topology)
    codes = batch_som(tokens, grid, 0)
    assert error_of_map(tokens, shuffled(codes), grid) > 0.9
    assert error_of_map(tokens, codes, grid) < error
    assert neighbour_ratio(shuffled(codes), grid) > 0.9
    assert neighbour_ratio(codes, grid) < ratio


def test_a_toroidal_batch_som_unfolds_over_a_torus():
    generator = torch.Generator().manual_seed(0)
    angles = 2 * math.pi * torch.rand(3000, 2, generator=generator)
    tokens = torch.cat([angles.cos(), angles.sin()], dim=1)
    grid = Grid(8, 8, "toroidal")
    codes = batch_som(tokens, grid, 0)
    assert error_of_map(tokens, shuffled(codes), grid) > 0.9
    assert error_of_map(tokens, codes, grid) < 0.2
    edges = cdist(codes.numpy(), codes.numpy())[tuple(grid.edges.T.numpy())]
    assert edges.max() < 3 * np.median(edges)  # also across the seam


def test_a_batch_som_represents_its_tokens():
    tokens = sheet_tokens()
    codes = batch_som(tokens, Grid(8, 8, "rectangular"), 0)
    assert quantisation_error(tokens, codes) < 0.1 * quantisation_error(tokens, tokens.mean(0, keepdim=True))


def test_nodes_that_no_token_reaches_stay_among_the_tokens():
    """Two points far from the origin, on a map too large for them: no code may fall towards the origin."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.cat([centre + 0.01 * torch.randn(200, 2, generator=generator) for centre in (100, 101)])
    codes = batch_som(tokens, Grid(16, 16, "toroidal"), 0)
    assert codes.min() > 99.9
    assert codes.max() < 101.1


def test_a_start_leaves_the_global_generator_alone(name):
    torch.manual_seed(3)
    expected = torch.get_rng_state()
    model, given = psom(), start()
    torch.manual_seed(3)
    INITIALISERS[name](model, given)
    assert torch.equal(torch.get_rng_state(), expected)
