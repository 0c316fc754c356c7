"""Every model that a run may name keeps one contract; terms, targets and latents are checked against numpy."""

import itertools
from functools import cache
from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.spatial.distance import cdist
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from somvq.codebooks.som import SOM
from somvq.config import RunConfig
from somvq.initialisers import initialise
from somvq.initialisers.start import Start, Tokens
from somvq.models import MODELS, Model, body_of, build_model
from somvq.models.ae import AE
from somvq.models.convolutions import Decoder, Encoder
from somvq.models.discrete import DiscreteAE, flatten, lay_out
from somvq.models.vae import VAE, standard_normal_kl

NODES, ALPHA = 16, 10.0
READINGS, SKIPS, LATENTS = ("published", "corrected"), ("none", "concatenate"), ("plain", "continuous")


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


def config(name: str, **settings) -> RunConfig:
    """`name` with a small map, if it has one."""
    if name not in ("ae", "vae"):
        settings = {"grid": "4x4", **settings}
    return RunConfig.model_validate({"model": name, **settings})


def model_of(name: str, seed: int = 0, **settings) -> Model:
    torch.manual_seed(seed)
    return build_model(config(name, **settings))


def some_scans(count: int = 2, shape: tuple[int, int, int] = (32, 32, 32)) -> Tensor:
    """Blobs of different places and sizes, z-scored, (count, 1, X, Y, Z)."""
    generator = torch.Generator().manual_seed(3)
    x, y, z = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in shape), indexing="ij")
    scans = []
    for _ in range(count):
        a, b, c, width = torch.rand(4, generator=generator) - 0.5
        blob = torch.exp(-((x - a) ** 2 + (y - b) ** 2 + 2 * (z - c) ** 2) / (0.4 + 0.4 * width))
        scans.append((blob - blob.mean()) / blob.std())
    return torch.stack(scans)[:, None]


def parameters(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def objective(model: Model, losses: dict[str, Tensor]) -> Tensor:
    return sum(model.weights[term] * value for term, value in losses.items())


def train(model: Model, scans: Tensor, steps: int, learning_rate: float) -> list[float]:
    """The objective at each step, on one batch, with a new target every fifth step."""
    optimiser = torch.optim.Adam(model.parameters(), learning_rate)
    values = []
    for step in range(steps):
        if step % 5 == 0:
            model.start_epoch([scans])
        loss = objective(model, model(scans, torch.arange(len(scans))).losses)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        values.append(float(loss.detach()))
    return values


def part_of(weight: str) -> str:
    """encoder, decoder, log_variance or codebook."""
    return weight.removeprefix("body.").split(".")[0]


def moved(model: Model) -> set[str]:
    """The parts of a model that have a gradient."""
    return {part_of(name) for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


# encoder and decoder


def test_the_encoder_is_four_convolutions_and_its_last_is_bare():
    convolutions = [layer for layer in Encoder() if isinstance(layer, nn.Conv3d)]
    assert [(layer.in_channels, layer.out_channels) for layer in convolutions] == [(1, 4), (4, 8), (8, 16), (16, 32)]
    assert [type(layer) for layer in Encoder()] == [nn.Conv3d, nn.BatchNorm3d, nn.ReLU] * 3 + [nn.Conv3d]
    assert [type(layer) for layer in Encoder(batch_norm=False)] == [nn.Conv3d, nn.ReLU] * 3 + [nn.Conv3d]


def test_the_decoder_mirrors_the_encoder():
    convolutions = [layer for layer in Decoder() if isinstance(layer, nn.ConvTranspose3d)]
    assert [(layer.in_channels, layer.out_channels) for layer in convolutions] == [(32, 16), (16, 8), (8, 4), (4, 1)]
    expected = [nn.ConvTranspose3d, nn.BatchNorm3d, nn.ReLU] * 3 + [nn.ConvTranspose3d]
    assert [type(layer) for layer in Decoder()] == expected
    expected = [nn.ConvTranspose3d, nn.ReLU] * 3 + [nn.ConvTranspose3d]
    assert [type(layer) for layer in Decoder(batch_norm=False)] == expected


@pytest.mark.parametrize("layers", [Encoder(), Decoder(), Decoder(skip=True)])
def test_every_convolution_has_kernel_four_stride_two_padding_one_and_a_bias(layers):
    for layer in layers:
        if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
            assert (layer.kernel_size, layer.stride, layer.padding) == ((4, 4, 4), (2, 2, 2), (1, 1, 1))
            assert layer.bias is not None


def test_the_parameters_are_as_many_as_the_papers():
    assert parameters(Encoder()) == 43_380
    assert parameters(Decoder()) == 43_349
    assert parameters(AE()) == 86_729
    assert parameters(AE(skip=True)) == 97_225
    assert parameters(model_of("som", grid="16x16")) == 94_921
    assert parameters(model_of("psom", grid="16x16")) == 94_921
    assert parameters(model_of("vae", reading="published")) == 129_941


def test_the_papers_scan_becomes_891_tokens_and_a_scan_again():
    with torch.device("meta"):  # shapes alone
        ae = AE()
        z = ae.encoder(torch.empty(1, 1, 144, 176, 144))
        assert z.shape == (1, 32, 9, 11, 9)
        assert ae.decoder(z).shape == (1, 1, 144, 176, 144)
    assert flatten(z).shape == (891, 32)


def test_a_token_sees_a_cube_of_46_voxels():
    encoder = Encoder().eval()
    for weight in encoder.parameters():
        nn.init.ones_(weight)  # so that no ReLU hides a voxel
    scans = torch.ones(1, 1, 64, 64, 64, requires_grad=True)
    encoder(scans)[0, 0, 2, 1, 2].backward()
    places = scans.grad[0, 0].nonzero()
    assert places.amin(0).tolist() == [17, 1, 17]  # stride 16, from 15 voxels before the scan
    assert places.amax(0).tolist() == [62, 46, 62]
    assert len(places) == 46**3


# skip connections


def blocks(layers: nn.Sequential) -> list[nn.Sequential]:
    """A convolution, its batch norm and its ReLU, three times, and the last convolution."""
    return [nn.Sequential(*list(layers)[first : first + 3]) for first in range(0, len(layers), 3)]


def test_with_skip_each_block_but_the_first_reads_twice_the_channels():
    convolutions = [layer for layer in Decoder(skip=True) if isinstance(layer, nn.ConvTranspose3d)]
    assert [layer.in_channels for layer in convolutions] == [32, 32, 16, 8]


def test_a_skip_connection_puts_the_encoders_features_before_the_decoders_own():
    torch.manual_seed(0)
    model, scans = AE(skip=True).eval(), some_scans()
    first, second, third, last = blocks(model.encoder)
    a = first(scans)
    b = second(a)
    c = third(b)
    assert [tuple(feature.shape[1:]) for feature in (a, b, c)] == [(4, 16, 16, 16), (8, 8, 8, 8), (16, 4, 4, 4)]
    first, *others = blocks(model.decoder)
    image = first(last(c))
    for block, feature in zip(others, (c, b, a), strict=True):
        image = block(torch.cat([feature, image], 1))
    torch.testing.assert_close(model(scans).reconstruction, image)


def test_without_skip_the_decoder_sees_nothing_but_tokens():
    model = AE().eval()
    assert model.encode(some_scans()).features == []


@pytest.mark.parametrize("kind", ["vae", "vqvae", "som", "psom"])
def test_both_reconstructions_use_the_skip_connections(kind):
    model, scans = model_of(kind, skip="concatenate").eval(), some_scans()
    body = model.body if isinstance(model, DiscreteAE) else model
    output = model(scans)
    z, features, _ = body.encode(scans)
    torch.testing.assert_close(output.reconstruction, body.decoder(z, features))
    blank = [torch.zeros_like(feature) for feature in features]
    assert not torch.allclose(output.reconstruction, body.decoder(z, blank), atol=1e-3)
    if isinstance(model, DiscreteAE):
        codes = lay_out(model.codebook.codes[output.nodes.flatten()], output.nodes.shape)
        torch.testing.assert_close(output.reconstruction_q, body.decoder(codes, features))


# the contract


def combinations() -> dict[tuple[str, str, str], list[dict]]:
    """All settings that RunConfig accepts, by model, reading and init."""
    found: dict[tuple[str, str, str], list[dict]] = {}
    inits = get_args(RunConfig.model_fields["init"].annotation)
    for model, reading, init in itertools.product(MODELS, READINGS, inits):
        for skip, latent, topology, update in itertools.product(
            SKIPS, LATENTS, ("rectangular", "toroidal") if model in ("som", "psom") else (None,),
            ("ema", "gradient") if model in ("vqvae", "som") else (None,),
        ):  # fmt: skip
            settings = {"skip": skip, "latent": latent, "topology": topology, "update": update}
            settings["grid"] = None if model in ("ae", "vae") else "3x2"
            try:
                RunConfig.model_validate({"model": model, "reading": reading, "init": init, **settings})
            except ValidationError:
                continue
            found.setdefault((model, reading, init), []).append(settings)
    return found


ACCEPTED = combinations()


@cache
def stage_weights(stage: RunConfig) -> dict[str, Tensor]:
    """What a stage hands on: an auto-encoder after two steps."""
    torch.manual_seed(1)
    model = build_model(stage)
    train(model, some_scans(4, (32, 16, 16)), 2, 0.01)
    return model.state_dict()


def started(config: RunConfig, scans: Tensor) -> Model:
    """A model as a run begins it."""

    @torch.no_grad()
    def tokens(encoder: nn.Module, rows: int | None) -> Tokens:
        values = flatten(encoder.eval()(scans[:rows]))
        return Tokens(values, torch.ones(len(values)))

    torch.manual_seed(0)
    model = build_model(config)
    weights = {kind: stage_weights(stage) for kind, stage in config.stages(0).items()}
    initialise(model, config, Start(0, tokens, len(scans), weights))
    return model


def complaints(config: RunConfig, scans: Tensor) -> list[str]:
    """What is wrong with two steps of training."""
    model, wrong = started(config, scans), []
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    model.start_epoch([scans])
    values = []
    for step in range(3):
        torch.manual_seed(5)  # a continuous latent draws the same tokens
        output = model(scans, torch.arange(len(scans)))
        losses = output.losses
        if not set(losses) == set(config.terms) == set(model.weights):
            wrong.append(f"terms {sorted(losses)}, weights {sorted(model.weights)}, expected {config.terms}")
        loss = objective(model, losses)
        if step == 0:
            tokens = flatten(output.z).detach()
        if config.reading == "published" and config.has_map and config.update != "ema":
            # the encoder knows nothing of the map, so its tokens wander: what falls is the terms of those there were
            losses = {**losses, **model.codebook(tokens, torch.arange(len(scans))).losses}
        values.append(float(objective(model, losses).detach()))
        if step == 2:
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        parts = {"encoder", "decoder"} | ({"log_variance"} if config.latent == "continuous" else set())
        parts |= {"codebook"} if config.model == "psom" or config.update == "gradient" else set()
        if moved(model) != parts or {part_of(weight) for weight, _ in model.named_parameters()} != parts:
            wrong.append(f"gradients in {sorted(moved(model))}, expected in {sorted(parts)}")
    if not np.isfinite(values).all() or not all(value.isfinite().all() for value in model.state_dict().values()):
        wrong.append(f"not finite: {values}")
    flies = config.update == "ema" and config.reading == "published"  # codes jump to 1e5: see test_readings
    if not flies and values[-1] >= values[0]:
        wrong.append(f"no descent: {values}")
    return wrong


def test_models_are_those_that_a_run_may_name():
    assert set(MODELS) == set(get_args(RunConfig.model_fields["model"].annotation))


def test_the_contract_leaves_out_nothing_that_a_run_may_name():
    counts: dict[str, int] = {}
    for (model, _, _), settings in ACCEPTED.items():
        counts[model] = counts.get(model, 0) + len(settings)
    # inits: plain 5; continuous 8, of which the published reading has 4; times readings, skip, topology, update
    expected = {"ae": 2 * 2 * 2, "vae": (3 + 2) * 2, "vqvae": 22 * 2 * 2, "som": 22 * 2 * 2 * 2, "psom": 22 * 2 * 2}
    assert counts == expected


@pytest.mark.parametrize("case", ACCEPTED, ids="-".join)
def test_a_run_that_is_accepted_trains(case):
    model, reading, init = case
    scans, wrong = some_scans(4, (32, 16, 16)), {}
    for settings in ACCEPTED[case]:
        config = RunConfig.model_validate({"model": model, "reading": reading, "init": init, **settings})
        found = complaints(config, scans)
        if found:
            wrong[" ".join(str(value) for value in settings.values() if value)] = found
    assert wrong == {}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ("ae init=ae-kmeans", "model ae has no codebook, so init ae-kmeans says nothing"),
        ("vae init=vae-som", "model vae has no codebook, so init vae-som says nothing"),
        ("ae grid=4x4", "model ae has no codebook, so grid says nothing"),
        ("ae latent=continuous", "model ae has a plain latent; one with a continuous latent is model vae"),
        ("vae latent=plain", "model vae has a continuous latent; one with a plain latent is model ae"),
        ("som init=vae-kmeans", "init vae-kmeans needs latent: continuous, as a VAE has; or take init ae"),
        ("som latent=continuous reading=published init=ae-som", "a published continuous latent has no batch norm"),
        ("vqvae topology=toroidal", "topology says nothing here: model vqvae has none"),
        ("vqvae alpha=1", "alpha says nothing here: codes learn by moving averages, not by a term of the loss"),
        ("som update=ema beta=1", "beta says nothing here: codes learn by moving averages"),
        ("som gamma=1", "gamma says nothing here: model som has none"),
        ("som reading=published commitment=1", "the published alpha moves tokens and codes alike"),
        ("som reading=published neighbours=gaussian", "4 neighbours, so neighbours gaussian is no published one"),
        ("som kl=1", "kl says nothing here: latent is plain"),
        ("som update=ema estimator=direct", "which update ema has none of; take rotation"),
        ("vqvae gamma_q=0.2 estimator=direct", "which update ema has none of; take rotation"),
        ("vqvae reading=published revive=2", "revive says nothing here: the paper's code leaves codes where they are"),
        ("psom reading=published swap=each-epoch", "swap says nothing here: the paper's code leaves codes where they"),
        ("psom commitment=3", "commitment says nothing here: gamma_q is 0, so nothing is decoded from codes"),
        ("psom assignment=soft", "assignment says nothing here: gamma_q is 0"),
        ("som gamma_q=0 estimator=rotation", "estimator says nothing here: gamma_q is 0"),
        ("som gamma_q=1", "estimator direct with gamma_q 1 leaves the encoder without a reconstruction"),
        ("psom update=ema", "update says nothing here: model psom has none"),
        ("psom reading=published update=ema", "update says nothing here: model psom has none"),
        ("psom reading=published gamma_q=0.2", "gamma_q says nothing here: the published psom decodes tokens alone"),
        ("psom gamma_q=0.2 assignment=soft estimator=rotation", "means of codes, which need no estimator rotation"),
        ("som grid=16", "grid '16' is not HEIGHTxWIDTH"),
        ("som grid=1x1", "grid '1x1' is not HEIGHTxWIDTH, two whole numbers from 1 to 99, as in 16x16"),
    ],
)
def test_what_says_nothing_or_cannot_be_is_refused_with_its_reason(settings, reason):
    model, *pairs = settings.split()
    with pytest.raises(ValidationError) as raised:
        RunConfig.model_validate({"model": model, **dict(pair.split("=") for pair in pairs)})
    assert reason in raised.value.errors()[0]["msg"]


def variants() -> list[RunConfig]:
    """Every model with every way to decode codes and to teach them."""
    estimators = ("straight-through", "rotation", "direct")
    ways: dict[str, list[dict]] = {"ae": [{}], "vae": [{}], "vqvae": [], "som": [], "psom": [{}]}
    for update, estimator in itertools.product(("ema", "gradient"), estimators):
        if (update, estimator) == ("ema", "direct"):
            continue  # refused: averages have no gradient
        ways["vqvae"] += [{"update": update, "estimator": estimator, "gamma_q": 0.2}]
        ways["som"] += [{"update": update, "estimator": estimator}]
    ways["vqvae"] += [{"update": "ema"}, {"update": "gradient"}]  # eq. (1): gamma_q 1
    ways["psom"] += [{"gamma_q": 0.2, "assignment": "hard", "estimator": estimator} for estimator in estimators]
    ways["psom"] += [{"gamma_q": share, "assignment": "soft"} for share in (0.2, 1.0)]
    found = []
    for model, reading, skip in itertools.product(MODELS, READINGS, SKIPS):
        for way, latent in itertools.product(ways[model], LATENTS):
            if (model == "psom" and reading == "published" and way) or (latent, model) in (
                ("continuous", "ae"),
                ("plain", "vae"),
            ):
                continue
            found.append(config(model, reading=reading, skip=skip, latent=latent, **way))
    return found


def expected_to_move(config: RunConfig, term: str) -> set[str]:
    """The parts that each term of the loss has a gradient for."""
    encoders = {"encoder", "log_variance"} if config.latent == "continuous" else {"encoder"}
    codes = {"codebook"} if config.model == "psom" or config.update == "gradient" else set()
    published = config.reading == "published"
    match term:
        case "reconstruction":
            return encoders | {"decoder"}
        case "reconstruction_q" if config.assignment == "soft":
            return encoders | {"decoder"} | codes
        case "reconstruction_q" if config.estimator == "direct":
            return {"decoder"} | codes | ({"encoder"} if config.skip == "concatenate" else set())
        case "reconstruction_q":
            return encoders | {"decoder"}
        case "kl":
            return encoders
        case "commitment":
            return encoders | (codes if published and config.model == "som" else set())
        case "hardening":
            return codes if published else encoders | codes
    return codes  # codebook, neighbours


@pytest.mark.parametrize("kind", MODELS)
def test_each_term_moves_what_it_should_and_nothing_else(kind):
    scans, wrong = some_scans(2, (32, 16, 16)), {}
    for config in (config for config in variants() if config.model == kind):
        torch.manual_seed(0)
        model = build_model(config)
        model.start_epoch([scans])
        losses = model(scans, torch.arange(2)).losses
        for term, value in losses.items():
            model.zero_grad()
            value.backward(retain_graph=True)
            if moved(model) != expected_to_move(config, term):
                said = config.model_dump(include={"reading", "skip", "latent", "update", "estimator", "assignment"})
                wrong[f"{term} {said}"] = sorted(moved(model))
    assert wrong == {}


# a batch in passes

FROZEN, LIVE = False, True  # batch norm's statistics


def step_in_passes(config: RunConfig, at_once: int | None, norms: bool) -> tuple[dict, dict, dict]:
    """The terms of a step over 4 scans, its gradients, and the buffers that it leaves."""
    scans = some_scans(4, (32, 16, 16))
    model = started(config, scans)
    body_of(model).scans_at_once = at_once
    model.train().start_epoch([scans])
    for part in model.modules():
        if isinstance(part, nn.BatchNorm3d):
            part.train(norms)
    torch.manual_seed(5)
    losses = model(scans, torch.arange(4)).losses
    loss = objective(model, losses)
    loss.backward()
    losses = {"loss": loss, **losses}
    return (
        {name: term.detach() for name, term in losses.items()},
        {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None},
        {name: value.clone() for name, value in model.named_buffers()},
    )


def differences(whole: tuple[dict, ...], other: tuple[dict, ...]) -> list[str]:
    """What differs by more than float32's sums in another order: 1e-5 of a term, 1e-4 of a tensor's largest value."""
    wrong = []
    for one, two, share in zip(whole, other, (1e-5, 1e-4, 1e-4), strict=True):
        assert one.keys() == two.keys()
        wrong += [k for k in one if (one[k] - two[k]).abs().max() > share * one[k].abs().max().clamp_min(1e-6)]
    return wrong


PASSES = [  # each codebook in both readings, and each way in which a term or a target is one of the whole batch
    "model=ae skip=concatenate",
    "model=vae",
    "model=vae reading=published skip=concatenate",
    "model=vqvae",
    "model=vqvae reading=published latent=continuous",
    "model=vqvae update=gradient gamma_q=0.5",
    "model=som topology=rectangular",
    "model=som reading=published topology=rectangular",
    "model=som update=ema neighbours=gaussian topology=rectangular",
    "model=som update=ema reading=published",
    "model=psom reading=published",
    "model=psom reading=published latent=continuous",
    "model=psom gamma_q=0.2 beta_som=0.1 topology=rectangular",
    "model=psom gamma_q=0.2 assignment=soft skip=concatenate",
]


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("told", PASSES)
def test_a_step_in_passes_is_the_step_over_the_whole_batch(told, at_once):
    settings = dict(pair.split("=") for pair in told.split())
    chosen = config(settings.pop("model"), **settings)
    assert differences(step_in_passes(chosen, None, FROZEN), step_in_passes(chosen, at_once, FROZEN)) == []


@pytest.mark.slow
@pytest.mark.parametrize("case", ACCEPTED, ids="-".join)
def test_every_run_that_is_accepted_takes_the_same_step_in_passes(case):
    model, reading, init = case
    wrong = {}
    for settings in ACCEPTED[case]:
        chosen = RunConfig.model_validate({"model": model, "reading": reading, "init": init, **settings})
        whole = step_in_passes(chosen, None, FROZEN)
        for at_once in (1, 2, 3):
            found = differences(whole, step_in_passes(chosen, at_once, FROZEN))
            if found:
                wrong[f"{at_once} {' '.join(str(value) for value in settings.values() if value)}"] = found
    assert wrong == {}


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("told", [("ae", {}), ("vae", {}), ("psom", {"latent": "continuous"})])
def test_batch_norm_alone_sees_that_a_step_is_in_passes(told, reading):
    chosen = config(told[0], reading=reading, **told[1])
    has_norm = any(isinstance(part, nn.BatchNorm3d) for part in build_model(chosen).modules())
    assert has_norm == (reading == "corrected" or told[0] == "ae")
    found = differences(step_in_passes(chosen, None, LIVE), step_in_passes(chosen, 2, LIVE))
    assert bool(found) == has_norm


def test_a_pass_that_is_made_again_counts_once_in_batch_norm():
    scans = some_scans(2)
    apart, together = AE().train(), AE().train()
    together.load_state_dict(apart.state_dict())
    for scan in scans.split(1):
        apart(scan)
    together.scans_at_once = 1
    together(scans).losses["reconstruction"].backward()
    expected = dict(apart.named_buffers())
    assert all(torch.equal(value, expected[name]) for name, value in together.named_buffers())
    assert together.encoder[1].num_batches_tracked == 2
    assert together.encoder[1].momentum == 0.1


def held_for_backward(model: Model, scans: Tensor) -> int:
    """Bytes that a forward pass keeps, its scans apart."""
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        model(scans, torch.arange(len(scans)))
    kept.pop(scans.untyped_storage().data_ptr(), None)
    return sum(kept.values())


def test_a_forward_pass_in_passes_holds_next_to_nothing_for_the_backward_pass(name):
    model, scans = model_of(name), some_scans(4)
    model.start_epoch([scans])
    whole = held_for_backward(model, scans)
    body_of(model).scans_at_once = 1
    assert held_for_backward(model, scans) < whole / 20


@pytest.mark.parametrize("reading", READINGS)
def test_evaluation_in_passes_gives_the_same_images_and_terms(name, reading):
    model, scans = model_of(name, reading=reading), some_scans(3)
    model.start_epoch([scans])
    model.eval()
    outputs = []
    for at_once in (None, 2):
        body_of(model).scans_at_once = at_once
        torch.manual_seed(5)
        with torch.no_grad():
            outputs.append(model(scans))
    whole, parts = outputs
    torch.testing.assert_close(parts.reconstruction, whole.reconstruction, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts.reconstruction_q, whole.reconstruction_q, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts.losses, whole.losses, rtol=1e-5, atol=1e-7)


def test_a_model_gives_back_scans_of_the_shape_it_took(name):
    scans = torch.randn(2, 1, 32, 48, 16)
    output = model_of(name).eval()(scans)
    assert output.reconstruction.shape == scans.shape
    assert output.z.shape == (2, 32, 2, 3, 1)
    if name not in ("ae", "vae"):
        assert output.reconstruction_q.shape == scans.shape
        assert output.nodes.shape == (2, 2, 3, 1)


def test_a_reconstruction_that_nothing_learns_from_is_made_in_evaluation_only(name):
    model, scans = model_of(name), some_scans()
    model.start_epoch([scans])
    trained = {"ae": (1, 0), "vae": (1, 0), "vqvae": (0, 1), "som": (1, 1), "psom": (1, 0)}[name]
    output = model(scans, torch.arange(2))
    assert (output.reconstruction is not None, output.reconstruction_q is not None) == trained
    output = model.eval()(scans)
    assert output.reconstruction is not None
    assert (output.reconstruction_q is not None) == (name not in ("ae", "vae"))


def test_every_term_is_a_finite_number_with_a_weight(name):
    model = model_of(name)
    losses = model(some_scans()).losses
    assert set(losses) == set(model.weights)
    assert all(term.shape == () and term.detach().isfinite() for term in losses.values())


def test_reconstruction_is_the_mean_squared_error_per_voxel_and_its_shares_sum_to_one(name):
    scans, model = some_scans(), model_of(name)
    output, shares = model(scans), 0.0
    for term, image in (("reconstruction", output.reconstruction), ("reconstruction_q", output.reconstruction_q)):
        if term in output.losses:
            expected = np.mean((image.detach().numpy() - scans.numpy()) ** 2)
            assert float(output.losses[term].detach()) == pytest.approx(expected, rel=1e-5)
            shares += model.weights[term]
    assert shares == pytest.approx(1)


def test_in_evaluation_one_reconstruction_is_of_z_and_one_of_its_nearest_codes(name):
    model, scans = model_of(name).eval(), some_scans()
    body = model.body if isinstance(model, DiscreteAE) else model
    output = model(scans)
    assert torch.equal(output.z, body.encoder(scans))
    assert torch.equal(output.reconstruction, body.decoder(output.z))
    if isinstance(model, DiscreteAE):
        z, codes = output.z.detach(), model.codebook.codes.detach()
        nearest = torch.empty_like(z)
        for b, i, j, k in np.ndindex(2, 2, 2, 2):
            node = int(((codes - z[b, :, i, j, k]) ** 2).sum(1).argmin())
            assert int(output.nodes[b, i, j, k]) == node
            nearest[b, :, i, j, k] = codes[node]
        assert torch.equal(output.reconstruction_q, body.decoder(nearest))


def test_every_parameter_is_trained(name):
    model = model_of(name)
    model.start_epoch([some_scans()])
    objective(model, model(some_scans(), torch.arange(2)).losses).backward()
    still = [weight for weight, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert still == []


def test_a_scan_is_reconstructed_without_regard_to_its_batch(name):
    model, scans = model_of(name), some_scans(3)
    model(scans)  # batch statistics that differ from their start
    model.eval()
    alone = torch.cat([model(scan).reconstruction for scan in scans.split(1)])
    torch.testing.assert_close(model(scans).reconstruction, alone)


def test_a_model_learns_one_batch_by_heart(name):
    values = train(model_of(name), some_scans(), steps=50, learning_rate=0.02)
    assert values[-1] < values[0] / 2


def test_a_saved_model_answers_like_the_one_it_was_saved_from(name, tmp_path):
    model = model_of(name)
    train(model, some_scans(), steps=2, learning_rate=0.01)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    restored = model_of(name, seed=9)
    restored.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    with torch.no_grad():
        first, second = model.eval()(some_scans()), restored.eval()(some_scans())
    assert torch.equal(first.reconstruction, second.reconstruction)
    assert {term: float(value) for term, value in first.losses.items()} == {
        term: float(value) for term, value in second.losses.items()
    }


def test_a_seed_decides_a_models_weights(name):
    first, again, other = model_of(name).state_dict(), model_of(name).state_dict(), model_of(name, 1).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    weight = next(key for key in first if key.endswith("encoder.0.weight"))
    assert not torch.equal(first[weight], other[weight])


def test_settings_of_the_map_reach_the_model():
    model = psom(grid="3x5", topology="rectangular", neighbours=8, alpha=3.0, beta=0.5, gamma=0.25)
    grid = model.codebook.grid
    assert (grid.height, grid.width, grid.topology) == (3, 5, "rectangular")
    assert torch.equal(model.codebook.neighbourhood.others, grid.adjacency_8)
    assert model.codebook.alpha == 3
    assert model.weights == {"reconstruction": 1, "hardening": 0.25, "neighbours": 0.5}
    assert model.codebook.codes.shape == (15, 32)


def test_settings_of_the_loss_reach_the_model():
    som = model_of("som", alpha=2.0, beta=0.5, commitment=3.0, gamma_q=0.25)
    assert som.weights == {
        "reconstruction": 0.75,
        "reconstruction_q": 0.25,
        "codebook": 2,
        "commitment": 3,
        "neighbours": 0.5,
    }
    assert model_of("som", update="ema", commitment=3.0).weights.keys() == {
        "reconstruction",
        "reconstruction_q",
        "commitment",
    }
    assert model_of("vqvae", beta=2.0).weights == {"reconstruction_q": 1, "commitment": 2}
    assert model_of("vqvae", update="gradient", alpha=4.0).weights["codebook"] == 4
    assert model_of("vae", kl=0.5).weights == {"reconstruction": 1, "kl": 0.5}
    assert model_of("psom", latent="continuous", kl=0.5).weights["kl"] == 0.5
    assert model_of("psom", revive=3, swap="each-epoch").codebook.care == (3, True)


def test_the_neighbourhood_shrinks_as_epochs_begin():
    model = model_of("som", neighbours="gaussian")
    assert isinstance(model.codebook, SOM)
    others = model.codebook.neighbourhood.others
    before = others.sum()
    model.start_epoch([some_scans()], 1.0)
    assert others.sum() < before / 2


# the continuous latent


def test_tokens_are_sampled_between_mean_and_variance_in_training():
    model, scans = model_of("vae"), some_scans()
    mean, log_variance = model.encoder(scans), model.log_variance(scans)
    torch.manual_seed(3)
    z = model(scans).z
    torch.manual_seed(3)
    expected = Normal(0, 1).sample(mean.shape) * (log_variance / 2).exp() + mean
    torch.testing.assert_close(z, expected)
    assert not torch.allclose(model(scans).z, z, atol=0.1)


def test_the_kl_is_that_to_the_standard_normal_averaged_over_elements():
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn(2, 3, 4, 5, 6, 7, generator=generator)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0, 1)).mean()
    assert float(standard_normal_kl(mean, log_variance)) == pytest.approx(float(expected), rel=1e-5)


def test_the_loss_of_a_vae_is_the_elbo_of_a_decoder_of_unit_variance():
    """32 channels at stride 16: the KL weighs 2 x 32 / 16^3 = 1/64 beside a mean over voxels."""
    model, scans = model_of("vae"), some_scans()
    assert model.weights["kl"] == 1 / 64
    posterior = Normal(model.encoder(scans).double(), (model.log_variance(scans).double() / 2).exp())
    output = model(scans)
    likelihood = Normal(output.reconstruction.double(), 1.0).log_prob(scans.double()).sum()
    elbo = likelihood - kl_divergence(posterior, Normal(0.0, 1.0)).sum()
    voxels = scans.numel()
    expected = -2 * elbo / voxels - np.log(2 * np.pi)  # of which the constant teaches nothing
    assert float(objective(model, output.losses).detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


@pytest.mark.parametrize("kind", ["vqvae", "som", "psom"])
def test_a_codebook_can_have_a_continuous_latent(kind):
    model, scans = model_of(kind, latent="continuous"), some_scans()
    assert isinstance(model.body, VAE)
    model.start_epoch([scans])
    assert "kl" in model(scans, torch.arange(2)).losses
    assert torch.equal(model.eval()(scans).z, model.body.encoder(scans))


# the PSOM-VAE


def psom(**settings) -> DiscreteAE:
    model = model_of("psom", **settings)
    assert isinstance(model, DiscreteAE)
    return model


def target(model: DiscreteAE, rows: list[int]) -> Tensor:
    """The target of training scans; their s is not asked for."""
    return model.codebook.target(torch.empty(0), torch.tensor(rows))


def share(z: Tensor, codes: Tensor) -> NDArray:
    """s of tokens (N, K), by numpy in float64."""
    tokens = np.moveaxis(z.detach().double().numpy(), 1, -1).reshape(-1, z.shape[1])
    kernel = (1 + cdist(tokens, codes.detach().double().numpy(), "sqeuclidean") / ALPHA) ** (-(ALPHA + 1) / 2)
    return kernel / kernel.sum(1, keepdims=True)


def target_by_hand(s: NDArray, frequency: NDArray) -> NDArray:
    weighted = s**2 / frequency
    return weighted / weighted.sum(1, keepdims=True)


def hardening_by_hand(target: NDArray, s: NDArray) -> float:
    return float((target * np.log(target / s)).sum(1).mean())


def test_tokens_are_taken_scan_by_scan_and_place_by_place_and_laid_out_again():
    z = torch.randn(2, 32, 3, 2, 4)
    expected = [z[b, :, i, j, k] for b in range(2) for i in range(3) for j in range(2) for k in range(4)]
    assert torch.equal(flatten(z), torch.stack(expected))
    assert torch.equal(lay_out(flatten(z), (2, 3, 2, 4)), z)


def test_the_target_is_that_of_the_whole_training_set_in_eval_mode():
    model, scans = psom(), some_scans(4)
    model(scans)  # batch statistics that differ from their start
    model.start_epoch(scans.split(3))
    with torch.no_grad():
        s = share(model.eval().body.encoder(scans), model.codebook.codes)
    np.testing.assert_allclose(model.codebook.frequency, s.sum(0), rtol=1e-3)
    np.testing.assert_allclose(target(model, [0, 1, 2, 3]), target_by_hand(s, s.sum(0)), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(target(model, [2]), target_by_hand(s, s.sum(0))[16:24], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_to_fix_the_target_changes_neither_mode_nor_batch_statistics(training):
    model = psom().train(training)
    before = {key: value.clone() for key, value in model.state_dict().items() if key != "codebook.frequency"}
    model.start_epoch([some_scans()])
    assert model.training == model.body.encoder.training == training
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert not target(model, [0, 1]).requires_grad


def test_the_target_stands_still_through_an_epoch_while_weights_move():
    model, scans = psom(gamma=1.0, beta=1.0), some_scans(4)
    model.start_epoch([scans])
    rows = [2, 0]
    fixed = target(model, rows)
    optimiser = torch.optim.Adam(model.parameters(), 0.05)
    losses = []
    for _ in range(3):
        output = model(scans[rows], torch.tensor(rows))
        s = share(output.z, model.codebook.codes)
        losses.append(float(output.losses["hardening"].detach()))
        assert losses[-1] == pytest.approx(hardening_by_hand(fixed.double().numpy(), s), rel=1e-3)
        optimiser.zero_grad()
        objective(model, output.losses).backward()
        optimiser.step()
    assert torch.equal(target(model, rows), fixed)
    assert len(set(losses)) == 3
    model.start_epoch([scans])
    assert not torch.allclose(target(model, rows), fixed, atol=1e-3)


def test_a_validation_target_has_the_training_sets_frequencies():
    model, scans = psom(), some_scans(4)
    model.start_epoch([scans[:3]])
    output = model.eval()(scans[3:])
    s = share(output.z, model.codebook.codes)
    expected = hardening_by_hand(target_by_hand(s, model.codebook.frequency.double().numpy()), s)
    assert float(output.losses["hardening"].detach()) == pytest.approx(expected, rel=1e-3)


def test_validation_does_not_change_the_epochs_target():
    model, scans = psom(), some_scans(3)
    model.start_epoch([scans[:2]])
    kept, frequency = target(model, [0, 1]), model.codebook.frequency.clone()
    model.eval()(scans[2:])
    assert torch.equal(target(model, [0, 1]), kept)
    assert torch.equal(model.codebook.frequency, frequency)


def test_bfloat16_convolutions_leave_the_codebooks_terms_in_full_precision():
    model = psom()
    model.start_epoch([some_scans()])
    with torch.autocast("cpu", torch.bfloat16):
        output = model(some_scans(), torch.arange(2))
    again = model.codebook(flatten(output.z).float(), torch.arange(2)).losses
    for term in ("hardening", "neighbours"):
        assert float(output.losses[term].detach()) == pytest.approx(float(again[term].detach()), rel=1e-6)


@pytest.mark.parametrize("name", ["vqvae", "som"])
def test_bfloat16_convolutions_leave_the_choice_of_codes_in_full_precision(name):
    model = model_of(name, grid="16x16")
    with torch.autocast("cpu", torch.bfloat16):
        output = model(some_scans())
    tokens = flatten(output.z).double().detach().numpy()
    codes = model_of(name, grid="16x16").codebook.codes.double().detach().numpy()  # as before the averages moved
    assert np.array_equal(output.nodes.flatten(), cdist(tokens, codes).argmin(1))


# the reconstruction from codes


def test_the_terms_from_codes_are_what_they_say():
    model, scans = psom(gamma_q=0.2).eval(), some_scans()
    output = model(scans)
    codes = lay_out(model.codebook.codes[output.nodes.flatten()], output.nodes.shape)
    expected = ((model.body.decoder(codes) - scans) ** 2).mean()
    assert float(output.losses["reconstruction_q"].detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    apart = ((output.z - codes) ** 2).mean()
    assert float(output.losses["commitment"].detach()) == pytest.approx(float(apart.detach()), rel=1e-5)


def test_a_soft_assignment_trains_the_mean_of_all_codes_and_shows_the_nearest():
    model, scans = psom(gamma_q=0.2, assignment="soft").eval(), some_scans()
    output = model(scans)
    s = torch.from_numpy(share(output.z, model.codebook.codes)).float()
    means = lay_out(s @ model.codebook.codes, output.nodes.shape)
    trained = ((model.body.decoder(means) - scans) ** 2).mean()
    assert float(output.losses["reconstruction_q"].detach()) == pytest.approx(float(trained.detach()), rel=1e-4)
    nearest = lay_out(model.codebook.codes[output.nodes.flatten()], output.nodes.shape)
    assert torch.equal(output.reconstruction_q, model.body.decoder(nearest))


def test_a_psom_without_gamma_q_is_the_papers():
    model = psom()
    model.start_epoch([some_scans()])
    assert set(model(some_scans(), torch.arange(2)).losses) == {"reconstruction", "hardening", "neighbours"}
    assert model.weights["reconstruction"] == 1
