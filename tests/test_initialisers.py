"""Where weights and codes start: the auto-encoder's bits, k-means' centres, and maps in order."""

import math
from collections.abc import Mapping
from functools import cache
from typing import get_args

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from torch import Tensor, nn

from somvq.codebooks.grid import Grid
from somvq.codebooks.vq import VQ
from somvq.config import RunConfig
from somvq.errors import DefinitionError
from somvq.initialisers import INITIALISERS, initialise, kmeans, kohonen, weights
from somvq.initialisers.kohonen import batch_map, batch_som
from somvq.initialisers.start import LEAST_WEIGHT, Start, Tokens
from somvq.models import Model, build_model
from somvq.models.ae import AE
from somvq.models.convolutions import Encoder
from somvq.models.discrete import DiscreteAE, flatten
from somvq.models.vae import VAE

READINGS_OF_CODES = {  # every way to place codes
    f"{name} {reading}": found.of(reading)
    for name, found in (("k-means", kmeans.CENTRES), ("map", kohonen.MAP))
    for reading in ("published", "corrected")
}
TOPOLOGIES = ("rectangular", "toroidal")
FROM_AN_AUTOENCODER = [name for name in INITIALISERS if name != "random"]
FROM_TOKENS = [name for name in INITIALISERS if "kmeans" in name or "som" in name]


@pytest.fixture(params=INITIALISERS)
def name(request):
    return request.param


@pytest.fixture(params=TOPOLOGIES)
def topology(request):
    return request.param


def settings(init: str, model: str = "psom", **others) -> RunConfig:
    """A run with `init` and a small map."""
    latent = "continuous" if init.startswith("vae") else "plain"
    grid = None if model in ("ae", "vae") else "4x4"
    return RunConfig.model_validate({"model": model, "init": init, "latent": latent, "grid": grid, **others})


def built(config: RunConfig, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return build_model(config)


def begun(config: RunConfig, start: Start, seed: int = 0) -> Model:
    model = built(config, seed)
    initialise(model, config, start)
    return model


def body_of(model: Model) -> AE:
    return model.body if isinstance(model, DiscreteAE) else model


@cache
def trained(config: RunConfig) -> Mapping[str, Tensor]:
    """The state of an auto-encoder after a few steps: its batch statistics are no longer those it was built with."""
    model = built(config, 7)
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(3):
        losses = model(torch.randn(2, 1, 16, 16, 16)).losses
        optimiser.zero_grad()
        sum(losses.values()).backward()
        optimiser.step()
    return model.state_dict()


def sheet_tokens(count: int = 3000, channels: int = 32, seed: int = 0) -> Tensor:
    """Tokens on a curved sheet of two dimensions in `channels`."""
    generator = torch.Generator().manual_seed(seed)
    place = 2 * torch.rand(count, 2, generator=generator) - 1
    features = torch.cat([place, 0.3 * place.square()], dim=1)
    basis = torch.linalg.qr(torch.randn(channels, 4, generator=generator)).Q
    return 3 + features @ basis.T + 0.01 * torch.randn(count, channels, generator=generator)


def all_brain(values: Tensor) -> Tokens:
    return Tokens(values, torch.ones(len(values)))


def start(config: RunConfig, tokens: Tensor | None = None, seed: int = 5) -> Start:
    """Trained auto-encoders of the kinds that `config` asks for, and the training set's tokens."""
    given = all_brain(sheet_tokens(400) if tokens is None else tokens)
    stages = {kind: dict(trained(stage)) for kind, stage in config.stages(0).items()}
    return Start(seed, lambda encoder, rows: given, weights=stages)


def quantisation_error(tokens: Tensor, codes: Tensor) -> float:
    return float((cdist(tokens.numpy(), codes.numpy()).min(1) ** 2).mean())


def neighbour_ratio(codes: Tensor, grid: Grid) -> float:
    """Mean distance of codes on neighbouring nodes over that of all pairs: 1 in arbitrary order, small on a map."""
    distances = cdist(codes.numpy(), codes.numpy())
    return float(distances[grid.adjacency.numpy() > 0].mean() / distances[~np.eye(len(codes), dtype=bool)].mean())


def error_of_map(tokens: Tensor, codes: Tensor, grid: Grid) -> float:
    """Share of tokens whose two nearest nodes are no neighbours."""
    first, second = np.argsort(cdist(tokens.numpy(), codes.numpy()), axis=1)[:, :2].T
    return float((grid.adjacency.numpy()[first, second] == 0).mean())


def shuffled(codes: Tensor) -> Tensor:
    return codes[torch.randperm(len(codes), generator=torch.Generator().manual_seed(0))]


# the contract


def test_initialisers_are_those_that_a_run_may_name():
    assert set(INITIALISERS) == set(get_args(RunConfig.model_fields["init"].annotation))


@pytest.mark.parametrize(
    ("init", "taken"),
    [
        ("random", set()),
        ("ae", {"encoder", "decoder"}),
        ("vae", {"encoder", "log_variance", "decoder"}),
        ("ae-kmeans", {"encoder", "decoder", "codes"}),
        ("vae-kmeans", {"encoder", "log_variance", "decoder", "codes"}),
        ("ae-som", {"encoder", "decoder", "codes"}),
        ("vae-som", {"encoder", "log_variance", "decoder", "codes"}),
        ("ae-kmeans-codes", {"codes"}),
    ],
)
@pytest.mark.parametrize("model", ["vqvae", "som", "psom"])
def test_each_initialiser_changes_what_its_name_says_and_nothing_else(init, taken, model):
    config = settings(init, model)
    fresh, begun_there = built(config), begun(config, start(config))
    before, after = fresh.state_dict(), begun_there.state_dict()
    changed = {weight.removeprefix("body.").split(".")[0] for weight in before if weight.endswith("0.weight")
               and not torch.equal(before[weight], after[weight])}  # fmt: skip
    if not torch.equal(before["codebook.codes"], after["codebook.codes"]):
        changed.add("codes")
    assert changed == taken


def test_a_start_is_finite_and_can_be_trained(name):
    config = settings(name)
    model = begun(config, start(config))
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert model.codebook.codes.shape == (16, 32)
    assert model.codebook.codes.requires_grad
    model.start_epoch([torch.randn(2, 1, 16, 16, 16)])
    sum(model(torch.randn(2, 1, 16, 16, 16), torch.arange(2)).losses.values()).backward()
    assert model.codebook.codes.grad.any()


def test_the_same_seed_starts_from_the_same_bits(name):
    config = settings(name)
    states = [begun(config, start(config)).state_dict() for _ in range(2)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("place", READINGS_OF_CODES)
def test_another_seed_starts_from_other_codes(place, monkeypatch):
    for module, name in ((kmeans, "MOST_TOKENS"), (kohonen, "MOST_TOKENS"), (kohonen, "PUBLISHED_TOKENS")):
        monkeypatch.setattr(module, name, 100)  # of 400: another seed draws others
    tokens, grid = all_brain(sheet_tokens(400)), Grid(4, 4)
    codes = [READINGS_OF_CODES[place](tokens, grid, seed) for seed in (0, 1, 1)]
    assert not torch.allclose(codes[0], codes[1])
    assert torch.equal(codes[1], codes[2])


def test_random_leaves_a_model_as_it_was_built():
    config = settings("random")
    before = built(config).state_dict()
    assert all(torch.equal(value, before[key]) for key, value in begun(config, start(config)).state_dict().items())


@pytest.mark.parametrize("name", ["ae", "vae", "ae-kmeans", "vae-kmeans", "ae-som", "vae-som"])
def test_weights_and_batch_statistics_are_the_autoencoders_bit_for_bit(name):
    config = settings(name)
    given = start(config)
    state = begun(config, given).body.state_dict()
    (taken,) = given.weights.values()
    assert state.keys() == taken.keys()
    assert all(torch.equal(state[key], value) for key, value in taken.items())
    assert int(state["encoder.1.num_batches_tracked"]) == 3
    assert not torch.equal(state["encoder.1.running_mean"], torch.zeros(4))


@pytest.mark.parametrize("name", FROM_AN_AUTOENCODER)
def test_a_start_is_a_copy_that_training_does_not_carry_back(name):
    config = settings(name)
    given = start(config)
    model = begun(config, given)
    before = {kind: taken["encoder.0.weight"].clone() for kind, taken in given.weights.items()}
    with torch.no_grad():
        for value in model.parameters():
            value.add_(1)
    assert all(torch.equal(given.weights[kind]["encoder.0.weight"], value) for kind, value in before.items())


@pytest.mark.parametrize("name", ["ae", "vae", "ae-kmeans", "vae-som"])
def test_without_a_trained_autoencoder_there_is_no_start(name):
    config = settings(name)
    with pytest.raises(AssertionError, match="the stage that trains the auto-encoder has not run"):
        begun(config, start(config)._replace(weights={}))


@pytest.mark.parametrize("place", [*READINGS_OF_CODES, "weights"], ids=str)
def test_a_start_leaves_the_global_generator_alone(place):
    config = settings("ae")
    given, model = start(config), built(config)
    torch.manual_seed(3)
    expected = torch.get_rng_state()
    if place == "weights":
        initialise(model, config, given)
    else:
        READINGS_OF_CODES[place](given.tokens(model, None), model.codebook.grid, 0)
    assert torch.equal(torch.get_rng_state(), expected)


# weights


def test_an_autoencoder_can_start_from_another():
    config = settings("ae", "ae")
    taken = trained(config.stages(0)["ae"])
    assert all(torch.equal(value, taken[key]) for key, value in begun(config, start(config)).state_dict().items())


def test_a_vae_takes_the_encoder_of_its_mean_and_its_decoder_from_an_ae():
    config = RunConfig(model="vae", init="ae")
    taken, fresh, model = trained(config.stages(0)["ae"]), built(config), begun(config, start(config))
    for key, value in model.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[key] if key.startswith("log_variance.") else taken[key])


def test_an_ae_takes_the_encoder_of_a_vaes_mean():
    taken = trained(RunConfig(model="vae"))
    model = AE()
    weights.copy(taken, model)
    assert all(torch.equal(value, taken[key]) for key, value in model.state_dict().items())


def test_an_encoder_of_other_layers_is_refused():
    taken = dict(trained(RunConfig(model="ae")))
    del taken["encoder.0.weight"]
    with pytest.raises(RuntimeError, match=r"0\.weight"):
        weights.copy(taken, AE())
    with pytest.raises(RuntimeError, match=r"1\.running_mean"):
        weights.copy(trained(RunConfig(model="vae", reading="published")), AE())


def test_a_decoder_with_batch_norm_takes_nothing_of_one_without_and_says_so_unless_told():
    taken = trained(RunConfig(model="vae", reading="published"))
    torch.manual_seed(0)
    model = VAE(kl=1.0, reading="published", decoder_batch_norm=True)
    before = {key: value.clone() for key, value in model.decoder.state_dict().items()}
    with pytest.raises(RuntimeError, match="size mismatch"):
        weights.copy(taken, VAE(kl=1.0, reading="published", decoder_batch_norm=True))
    weights.copy(taken, model, decoder=False)
    assert all(torch.equal(value, before[key]) for key, value in model.decoder.state_dict().items())
    assert torch.equal(model.encoder.state_dict()["0.weight"], taken["encoder.0.weight"])
    assert torch.equal(model.log_variance.state_dict()["0.weight"], taken["log_variance.0.weight"])


@pytest.mark.parametrize(("model", "reading"), [("ae", "corrected"), ("vae", "corrected"), ("vae", "published")])
def test_a_trained_encoder_makes_the_tokens_that_its_model_makes(model, reading):
    config = RunConfig.model_validate({"model": model, "reading": reading})
    body, scans = built(config), torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    body.load_state_dict(trained(config))
    encoder = weights.trained_encoder(trained(config))
    assert isinstance(encoder, Encoder)
    assert torch.equal(encoder.eval()(scans), body.eval().encoder(scans))


@pytest.mark.parametrize("model", ["psom", "vqvae"])
def test_skip_connections_come_with_the_weights(model):
    config = settings("ae", model, skip="concatenate")
    taken = trained(config.stages(0)["ae"])
    decoder = begun(config, start(config)).body.decoder.state_dict()
    assert decoder["3.weight"].shape == (32, 8, 4, 4, 4)
    assert all(torch.equal(value, taken[f"decoder.{key}"]) for key, value in decoder.items())


# codes from tokens


@pytest.mark.parametrize("name", FROM_TOKENS)
def test_tokens_are_those_of_the_trained_encoder_and_of_the_whole_training_set(name):
    config = settings(name, grid="2x3")
    given, seen = start(config), []
    scans = torch.randn(8, 1, 32, 16, 16, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def tokens(encoder: nn.Module, rows: int | None) -> Tokens:
        seen.append((encoder.state_dict()["0.weight"].clone(), rows))
        return all_brain(flatten(encoder(scans)))

    begun(config, given._replace(tokens=tokens))
    ((weight, rows),) = seen
    (taken,) = given.weights.values()
    assert torch.equal(weight, taken["encoder.0.weight"])
    assert rows is None


@pytest.mark.parametrize("name", ["ae-kmeans", "ae-som"])
@pytest.mark.parametrize("grid", ["2x6", "6x2", "3x5", "1x4", "16x16"])
def test_a_map_of_any_shape_starts_among_the_tokens(name, grid, topology):
    config, tokens = settings(name, grid=grid, topology=topology), sheet_tokens(600)
    model = begun(config, start(config, tokens))
    codes = model.codebook.codes.detach()
    assert (codes >= tokens.amin(0) - 1e-4).all()
    assert (codes <= tokens.amax(0) + 1e-4).all()
    assert len(codes.unique(dim=0)) == model.codebook.grid.nodes


@pytest.mark.parametrize("reading", ["published", "corrected"])
@pytest.mark.parametrize("name", FROM_TOKENS)
def test_fewer_tokens_than_nodes_are_refused_in_one_line(name, reading):
    config = settings(name, reading=reading)
    with pytest.raises(DefinitionError) as raised:
        begun(config, start(config, sheet_tokens(15)))
    assert str(raised.value) == ("a map of 16 nodes cannot start from 15 tokens; take a smaller grid, or init ae")


@pytest.mark.parametrize("name", FROM_TOKENS)
def test_as_many_tokens_as_nodes_are_enough(name):
    config = settings(name)
    assert begun(config, start(config, sheet_tokens(16))).codebook.codes.isfinite().all()


@pytest.mark.parametrize("model", ["vqvae", "som"])
def test_moving_averages_start_where_the_codes_are_placed(model):
    config = settings("ae-kmeans", model, update="ema")
    codebook = begun(config, start(config)).codebook
    assert isinstance(codebook, VQ)
    assert torch.equal(codebook.averages.sums, codebook.codes)
    assert codebook.averages.sizes.tolist() == [1.0] * 16


def test_a_sample_holds_tokens_drawn_without_replacement():
    tokens = Tokens(torch.arange(200.0).view(100, 2), torch.arange(100.0))
    drawn = tokens.sample(50, seed=0)
    assert drawn.values.shape == (50, 2)
    assert len(drawn.values.unique(dim=0)) == 50
    assert {tuple(token) for token in drawn.values.tolist()} <= {tuple(token) for token in tokens.values.tolist()}
    assert torch.equal(drawn.values[:, 0] / 2, drawn.brain)  # each with its own share of brain
    assert drawn.values.mean() > tokens.values[:50].mean() + 20  # not the first scans alone
    assert not torch.equal(drawn.values, tokens.sample(50, seed=1).values)
    assert len(tokens.sample(1000, seed=0).values) == 100


def test_a_token_counts_by_its_share_of_brain_and_background_a_little():
    weights = Tokens(torch.zeros(3, 2), torch.tensor([0.0, 0.5, 1.0])).weights
    assert 0 < LEAST_WEIGHT < 0.5
    torch.testing.assert_close(weights, torch.tensor([LEAST_WEIGHT, (1 + LEAST_WEIGHT) / 2, 1.0]))


# k-means


def kmeans_codes(topology: str) -> tuple[Tensor, Tensor, Grid]:
    """Tokens, codes and map of an 8 x 8 start."""
    tokens, grid = sheet_tokens(2000), Grid(8, 8, topology)
    return tokens, kmeans.centres_on_the_map(all_brain(tokens), grid, 5), grid


def test_kmeans_codes_are_the_centres_each_on_one_node(topology):
    tokens, codes, grid = kmeans_codes(topology)
    drawn = all_brain(tokens).sample(50_000, 5).values
    clusters = KMeans(grid.nodes, n_init=1, random_state=5).fit(drawn.numpy())
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


def test_kmeans_gives_its_centres_to_brain_and_a_few_to_background():
    """Half of the tokens are background, spread as widely as brain."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1000, 32, generator=generator)
    brain = (torch.arange(1000) < 500).float()
    values[:, 0] += 20 * (1 - brain)
    on_brain = [
        int((kmeans.centres_on_the_map(Tokens(values, share), Grid(4, 4), 0)[:, 0] < 10).sum())
        for share in (brain, torch.ones(1000))
    ]
    assert on_brain[0] >= 11  # of 16
    assert on_brain[1] <= 9


# batch SOM


def plane_by_hand(z: np.ndarray, weights: np.ndarray, grid: Grid) -> np.ndarray:
    """Codes on the principal axes, from the eigenvectors of the weighted covariance."""
    mean = np.average(z, axis=0, weights=weights)
    values, vectors = np.linalg.eigh(np.cov(z.T, aweights=weights, ddof=0))
    axes = (vectors * np.sqrt(values.clip(0))).T[::-1]
    codes = np.zeros((grid.nodes, z.shape[1]))
    for node in range(grid.nodes):
        row, column = divmod(node, grid.width)
        if grid.topology == "toroidal":
            a, b = 2 * math.pi * row / grid.height, 2 * math.pi * column / grid.width
            places = [math.cos(a), math.sin(a), math.cos(b), math.sin(b)]
        else:
            places = [2 * row / (grid.height - 1) - 1, 2 * column / (grid.width - 1) - 1]
        codes[node] = mean + sum(place * axis for place, axis in zip(places, axes, strict=False))
    return codes


def batch_som_by_hand(tokens: Tokens, codes: np.ndarray, grid: Grid, steps: int) -> np.ndarray:
    """Kohonen's batch map in float64, one node at a time; distances on the map from rows and columns."""
    z, share = tokens.values.double().numpy(), tokens.weights.double().numpy()
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
            after[node] = np.average(z, axis=0, weights=weights * share)
        codes = after
    return codes


def weighted_tokens() -> Tokens:
    """60 tokens whose principal axes differ in length, some of them background."""
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(60, 4, generator=generator) * torch.tensor([4.0, 3.0, 2.0, 1.0]) + 3
    return Tokens(values, torch.rand(60, generator=generator))


def test_a_batch_som_starts_from_the_principal_plane_or_its_torus(topology):
    tokens, grid = weighted_tokens(), Grid(3, 5, topology)
    z, share = tokens.values.double().numpy(), tokens.weights.double().numpy()
    codes, by_hand = batch_som(tokens, grid, steps=0), plane_by_hand(z, share, grid)
    mean = np.average(z, axis=0, weights=share)
    np.testing.assert_allclose(codes.numpy().mean(0), mean, atol=1e-4)
    one, other = (cdist(c, c) for c in (codes.numpy(), by_hand))
    np.testing.assert_allclose(one, other, atol=1e-3)  # up to the axes' signs


def test_a_batch_som_is_the_mean_under_a_neighbourhood_on_the_map(topology):
    tokens, grid = weighted_tokens(), Grid(3, 5, topology)
    first = batch_som(tokens, grid, steps=0).double().numpy()
    expected = batch_som_by_hand(tokens, first, grid, steps=4)
    np.testing.assert_allclose(batch_som(tokens, grid, steps=4), expected, rtol=1e-3, atol=1e-3)


def test_a_batch_map_is_the_batch_som_of_a_sample():
    tokens, grid = all_brain(sheet_tokens(300)), Grid(3, 4)
    expected = batch_som(tokens.sample(50_000, 2), grid)
    assert torch.equal(batch_map(tokens, grid, 2), expected)


@pytest.mark.parametrize(("topology", "error", "ratio"), [("rectangular", 0.05, 0.3), ("toroidal", 0.75, 0.5)])
def test_a_batch_som_unfolds_over_a_sheet(topology, error, ratio):
    """A torus has to fold to cover a sheet, so that far nodes lie together: its error is large by nature."""
    tokens, grid = sheet_tokens(), Grid(8, 8, topology)
    codes = batch_som(all_brain(tokens), grid)
    assert error_of_map(tokens, shuffled(codes), grid) > 0.9
    assert error_of_map(tokens, codes, grid) < error
    assert neighbour_ratio(shuffled(codes), grid) > 0.9
    assert neighbour_ratio(codes, grid) < ratio


def test_a_toroidal_batch_som_unfolds_over_a_torus():
    generator = torch.Generator().manual_seed(0)
    angles = 2 * math.pi * torch.rand(3000, 2, generator=generator)
    tokens = torch.cat([angles.cos(), angles.sin()], dim=1)
    grid = Grid(8, 8, "toroidal")
    codes = batch_som(all_brain(tokens), grid)
    assert error_of_map(tokens, shuffled(codes), grid) > 0.9
    assert error_of_map(tokens, codes, grid) < 0.2
    edges = cdist(codes.numpy(), codes.numpy())[tuple(grid.edges.T.numpy())]
    assert edges.max() < 3 * np.median(edges)  # also across the seam


def test_a_batch_som_represents_its_tokens():
    tokens = sheet_tokens()
    codes = batch_som(all_brain(tokens), Grid(8, 8, "rectangular"))
    assert quantisation_error(tokens, codes) < 0.1 * quantisation_error(tokens, tokens.mean(0, keepdim=True))


def test_nodes_that_no_token_reaches_stay_among_the_tokens():
    """Two points far from the origin, on a map too large for them: no code may fall towards the origin."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.cat([centre + 0.01 * torch.randn(200, 2, generator=generator) for centre in (100, 101)])
    codes = batch_som(all_brain(tokens), Grid(16, 16, "toroidal"))
    assert codes.min() > 99.9
    assert codes.max() < 101.1


def test_a_batch_som_follows_the_tokens_that_count():
    """Two blobs as large; where one is background, most codes lie in the other."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(800, 4, generator=generator)
    brain = (torch.arange(800) < 400).float()
    values[:, 0] += 20 * (1 - brain)
    codes = batch_som(Tokens(values, brain), Grid(5, 5, "rectangular"))
    even = batch_som(all_brain(values), Grid(5, 5, "rectangular"))
    assert (codes[:, 0] < 10).sum() > (even[:, 0] < 10).sum() + 2
