"""Every model keeps one contract; the PSOM-VAE's terms are checked against numpy."""

from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from somvq.config import RunConfig
from somvq.models import MODELS, Model, build_model
from somvq.models.ae import AE
from somvq.models.convolutions import build_decoder, build_encoder
from somvq.models.psomvae import PSOMVAE, flatten

NODES, ALPHA = 16, 10.0


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


def config(name: str, **settings) -> RunConfig:
    """`name` with a small map, if it has one."""
    if name != "ae":
        settings = {"grid": "4x4", "alpha": ALPHA, **settings}
    return RunConfig(model=name, **settings)


def model_of(name: str, seed: int = 0, **settings) -> Model:
    torch.manual_seed(seed)
    return build_model(config(name, **settings))


def some_scans(count: int = 2, side: int = 32) -> Tensor:
    """Blobs of different places and sizes, z-scored, (count, 1, side, side, side)."""
    generator = torch.Generator().manual_seed(3)
    axis = torch.linspace(-1, 1, side)
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
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


# encoder and decoder


def test_the_encoder_is_four_convolutions_and_its_last_is_bare():
    convolutions = [layer for layer in build_encoder() if isinstance(layer, nn.Conv3d)]
    assert [(layer.in_channels, layer.out_channels) for layer in convolutions] == [(1, 4), (4, 8), (8, 16), (16, 32)]
    assert [type(layer) for layer in build_encoder()] == [nn.Conv3d, nn.BatchNorm3d, nn.ReLU] * 3 + [nn.Conv3d]


def test_the_decoder_mirrors_the_encoder():
    convolutions = [layer for layer in build_decoder() if isinstance(layer, nn.ConvTranspose3d)]
    assert [(layer.in_channels, layer.out_channels) for layer in convolutions] == [(32, 16), (16, 8), (8, 4), (4, 1)]
    expected = [nn.ConvTranspose3d, nn.BatchNorm3d, nn.ReLU] * 3 + [nn.ConvTranspose3d]
    assert [type(layer) for layer in build_decoder()] == expected


@pytest.mark.parametrize("build", [build_encoder, build_decoder])
def test_every_convolution_has_kernel_four_stride_two_padding_one_and_a_bias(build):
    for layer in build():
        if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
            assert (layer.kernel_size, layer.stride, layer.padding) == ((4, 4, 4), (2, 2, 2), (1, 1, 1))
            assert layer.bias is not None


def test_the_parameters_are_as_many_as_the_papers():
    assert parameters(build_encoder()) == 43_380
    assert parameters(build_decoder()) == 43_349
    assert parameters(AE()) == 86_729
    assert parameters(model_of("psom", grid="16x16")) == 94_921


def test_the_papers_scan_becomes_891_tokens_and_a_scan_again():
    with torch.device("meta"):  # shapes alone
        ae = AE()
        z = ae.encoder(torch.empty(1, 1, 144, 176, 144))
        assert z.shape == (1, 32, 9, 11, 9)
        assert ae.decoder(z).shape == (1, 1, 144, 176, 144)
    assert flatten(z).shape == (891, 32)


def test_a_token_sees_a_cube_of_46_voxels():
    encoder = build_encoder().eval()
    for weight in encoder.parameters():
        nn.init.ones_(weight)  # so that no ReLU hides a voxel
    scans = torch.ones(1, 1, 64, 64, 64, requires_grad=True)
    encoder(scans)[0, 0, 2, 1, 2].backward()
    places = scans.grad[0, 0].nonzero()
    assert places.amin(0).tolist() == [17, 1, 17]  # stride 16, from 15 voxels before the scan
    assert places.amax(0).tolist() == [62, 46, 62]
    assert len(places) == 46**3


# the contract


def test_models_are_those_that_a_run_may_name():
    assert set(MODELS) == set(get_args(RunConfig.model_fields["model"].annotation))


def test_a_model_gives_back_scans_of_the_shape_it_took(name):
    scans = torch.randn(2, 1, 32, 48, 16)
    output = model_of(name)(scans)
    assert output.reconstruction.shape == scans.shape
    assert output.z.shape == (2, 32, 2, 3, 1)


def test_every_term_is_a_finite_number_with_a_weight(name):
    model = model_of(name)
    losses = model(some_scans()).losses
    assert set(losses) == set(model.weights)
    assert all(term.shape == () and term.detach().isfinite() for term in losses.values())


def test_reconstruction_is_the_mean_squared_error_per_voxel(name):
    scans, model = some_scans(), model_of(name)
    output = model(scans)
    expected = np.mean((output.reconstruction.detach().numpy() - scans.numpy()) ** 2)
    assert float(output.losses["reconstruction"].detach()) == pytest.approx(expected, rel=1e-5)
    assert model.weights["reconstruction"] == 1


def test_the_reconstruction_is_decoded_from_z_unquantised(name):
    model = model_of(name).eval()
    output = model(some_scans())
    assert torch.equal(output.reconstruction, model.decoder(output.z))
    assert torch.equal(output.z, model.encoder(some_scans()))


def test_every_parameter_is_trained(name):
    model = model_of(name)
    objective(model, model(some_scans()).losses).backward()
    still = [weight for weight, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert still == []


def test_a_scan_is_reconstructed_without_regard_to_its_batch(name):
    model, scans = model_of(name), some_scans(3)
    model(scans)  # batch statistics that differ from their start
    model.eval()
    alone = torch.cat([model(scan).reconstruction for scan in scans.split(1)])
    torch.testing.assert_close(model(scans).reconstruction, alone)


def test_a_model_learns_one_batch_by_heart(name):
    values = train(model_of(name), some_scans(), steps=20, learning_rate=0.02)
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
    assert not torch.equal(first["encoder.0.weight"], other["encoder.0.weight"])


# the PSOM-VAE


def psom(**settings) -> PSOMVAE:
    model = model_of("psom", **settings)
    assert isinstance(model, PSOMVAE)
    return model


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


def test_settings_of_the_map_reach_the_model():
    model = psom(grid="3x5", topology="rectangular", alpha=3.0, beta=0.5, gamma=0.25)
    grid = model.codebook.grid
    assert (grid.height, grid.width, grid.topology) == (3, 5, "rectangular")
    assert model.codebook.alpha == 3
    assert model.weights == {"reconstruction": 1, "hardening": 0.25, "neighbours": 0.5}
    assert model.codebook.codes.shape == (15, 32)


def test_tokens_are_taken_scan_by_scan_and_place_by_place():
    z = torch.randn(2, 32, 3, 2, 4)
    expected = [z[b, :, i, j, k] for b in range(2) for i in range(3) for j in range(2) for k in range(4)]
    assert torch.equal(flatten(z), torch.stack(expected))


def test_each_term_moves_what_it_should():
    """Reconstruction: the auto-encoder; hardening: encoder and codes; the neighbour term: codes alone."""
    moved = {}
    for term in ("reconstruction", "hardening", "neighbours"):
        model = psom()
        model.start_epoch([some_scans()])
        model(some_scans(), torch.arange(2)).losses[term].backward()
        moved[term] = {
            part.split(".")[0]
            for part, value in model.named_parameters()
            if value.grad is not None and value.grad.any()
        }
    assert moved == {
        "reconstruction": {"encoder", "decoder"},
        "hardening": {"encoder", "codebook"},
        "neighbours": {"codebook"},
    }


def test_the_target_is_that_of_the_whole_training_set_in_eval_mode():
    model, scans = psom(), some_scans(4)
    model(scans)  # batch statistics that differ from their start
    model.start_epoch(scans.split(3))
    with torch.no_grad():
        s = share(model.eval().encoder(scans), model.codebook.codes)
    np.testing.assert_allclose(model.frequency, s.sum(0), rtol=1e-3)
    np.testing.assert_allclose(model.target(torch.arange(4)), target_by_hand(s, s.sum(0)), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(
        model.target(torch.tensor([2])), target_by_hand(s, s.sum(0))[16:24], rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("training", [True, False])
def test_to_fix_the_target_changes_neither_mode_nor_batch_statistics(training):
    model = psom().train(training)
    before = {key: value.clone() for key, value in model.state_dict().items() if key != "frequency"}
    model.start_epoch([some_scans()])
    assert model.training == model.encoder.training == training
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert not model.target(torch.arange(2)).requires_grad


def test_the_target_stands_still_through_an_epoch_while_weights_move():
    model, scans = psom(), some_scans(4)
    model.start_epoch([scans])
    rows = torch.tensor([2, 0])
    target = model.target(rows)
    optimiser = torch.optim.Adam(model.parameters(), 0.05)
    losses = []
    for _ in range(3):
        output = model(scans[rows], rows)
        s = share(output.z, model.codebook.codes)
        expected = hardening_by_hand(target.double().numpy(), s)
        losses.append(float(output.losses["hardening"].detach()))
        assert losses[-1] == pytest.approx(expected, rel=1e-3)
        optimiser.zero_grad()
        objective(model, output.losses).backward()
        optimiser.step()
    assert torch.equal(model.target(rows), target)
    assert len(set(losses)) == 3
    model.start_epoch([scans])
    assert not torch.allclose(model.target(rows), target, atol=1e-3)


def test_a_validation_target_has_the_training_sets_frequencies():
    model, scans = psom(), some_scans(4)
    model.start_epoch([scans[:3]])
    output = model.eval()(scans[3:])
    s = share(output.z, model.codebook.codes)
    expected = hardening_by_hand(target_by_hand(s, model.frequency.double().numpy()), s)
    assert float(output.losses["hardening"].detach()) == pytest.approx(expected, rel=1e-3)


def test_validation_does_not_change_the_epochs_target():
    model, scans = psom(), some_scans(3)
    model.start_epoch([scans[:2]])
    kept, frequency = model.target(torch.arange(2)), model.frequency.clone()
    model.eval()(scans[2:])
    assert torch.equal(model.target(torch.arange(2)), kept)
    assert torch.equal(model.frequency, frequency)


def test_a_token_is_quantised_to_its_nearest_code():
    model = psom()
    z = torch.randn(2, 32, 2, 3, 1, generator=torch.Generator().manual_seed(0))
    quantised, nodes = model.quantise(z)
    codes = model.codebook.codes.detach()
    assert quantised.shape == z.shape
    for b, x, y in np.ndindex(2, 2, 3):
        nearest = int(((codes - z[b, :, x, y, 0]) ** 2).sum(1).argmin())
        assert int(nodes[b, x, y, 0]) == nearest
        assert torch.equal(quantised[b, :, x, y, 0], codes[nearest])


def test_codes_are_quantised_to_themselves():
    model = psom()
    z = model.codebook.codes.detach().T.reshape(1, 32, NODES, 1, 1)
    quantised, nodes = model.quantise(z)
    assert nodes.flatten().tolist() == list(range(NODES))
    assert torch.equal(quantised, z)


def test_bfloat16_convolutions_leave_the_codebooks_terms_in_full_precision():
    model = psom()
    model.start_epoch([some_scans()])
    with torch.autocast("cpu", torch.bfloat16):
        output = model(some_scans(), torch.arange(2))
    again = model.codebook.losses(flatten(output.z).float(), model.target(torch.arange(2)))
    for term in ("hardening", "neighbours"):
        assert float(output.losses[term].detach()) == pytest.approx(float(again[term].detach()), rel=1e-6)


# The reconstruction from codes


def quantising_psom(assignment: str) -> PSOMVAE:
    torch.manual_seed(0)
    return build_model(
        RunConfig.model_validate({"model": "psom", "grid": "4x4", "gamma_q": 0.2, "assignment": assignment})
    )


@pytest.mark.parametrize(
    ("assignment", "moved"), [("hard", {"decoder", "codebook"}), ("soft", {"encoder", "decoder", "codebook"})]
)
def test_the_reconstruction_from_codes_teaches_codes_without_a_straight_through_estimate(assignment, moved):
    model = quantising_psom(assignment)
    model.start_epoch([some_scans()])
    output = model(some_scans(), torch.arange(2))
    output.losses["reconstruction_q"].backward(retain_graph=True)
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()} == moved
    model.zero_grad()
    output.losses["commitment"].backward()
    found = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert found == {"encoder"}


def test_the_terms_from_codes_are_what_they_say():
    model, scans = quantising_psom("hard"), some_scans()
    model.eval()
    output = model(scans)
    quantised, _ = model.quantise(output.z)
    expected = ((model.decoder(quantised) - scans) ** 2).mean()
    assert float(output.losses["reconstruction_q"].detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    apart = ((output.z - quantised) ** 2).mean()
    assert float(output.losses["commitment"].detach()) == pytest.approx(float(apart.detach()), rel=1e-5)
    assert model.weights["reconstruction"] + model.weights["reconstruction_q"] == pytest.approx(1)


def test_a_soft_assignment_decodes_the_mean_of_all_codes():
    codebook = quantising_psom("soft").codebook
    tokens = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    s = codebook.assign(tokens).detach().double().numpy()
    np.testing.assert_allclose(
        codebook.mean_code(tokens).detach(), s @ codebook.codes.detach().double().numpy(), atol=1e-4
    )


def test_a_psom_without_gamma_q_is_the_papers():
    model = psom()
    model.start_epoch([some_scans()])
    assert set(model(some_scans(), torch.arange(2)).losses) == {"reconstruction", "hardening", "neighbours"}
    assert model.weights["reconstruction"] == 1
