"""What is drawn of a run, and that what nodes decode to is what the decoder makes of them."""

import numpy as np
import torch

from somvq.config import RunConfig
from somvq.gallery import FIGURE_EPOCHS, decode_nodes, figures_due, mean_surroundings
from somvq.models import build_model
from somvq.models.discrete import DiscreteAE


def model() -> DiscreteAE:
    torch.manual_seed(0)
    made = build_model(RunConfig.model_validate({"model": "psom", "grid": "2x3"}))
    assert isinstance(made, DiscreteAE)
    return made.eval()


def test_surroundings_are_means_over_the_places_of_a_node() -> None:
    z, nodes = torch.randn(2, 5, 3, 4, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 3, 4, 2).long()
    nodes[0, 0, 1, 1] = nodes[1, 2, 3, 0] = 2
    found = mean_surroundings(z, nodes, 4)
    for step in ((-1, 0, 1), (1, 1, 0), (0, 0, 0), (-1, -1, -1)):
        one, other = (np.clip(np.add(place, step), 0, (2, 3, 1)) for place in ((0, 1, 1), (2, 3, 0)))
        expected = (z[0, :, *one] + z[1, :, *other]) / 2
        assert torch.allclose(found[2][:, *np.add(step, 1)], expected)
    assert torch.allclose(found[0][:, 1, 1, 1], z.movedim(1, -1)[nodes == 0].mean(0))
    assert not found[[1, 3]].any()


def test_a_node_among_its_like_decodes_to_what_a_whole_volume_of_it_decodes_to() -> None:
    made = model()
    code = made.codebook.codes.detach()[4]
    tokens, nodes = code.repeat(125, 1), torch.full((1, 5, 5, 5), 4)
    with torch.no_grad():
        whole = made.body.decode(code[None, :, None, None, None].expand(1, -1, 5, 5, 5), [])[0, 0]
    (block,) = decode_nodes(made, tokens, nodes, torch.tensor([4]))
    assert block.shape == (16, 16, 16)
    assert torch.allclose(block, whole[32:48, 32:48, 32:48], atol=1e-5)


def test_a_token_in_a_scan_decodes_to_its_block_from_its_surroundings_alone() -> None:
    made = model()
    z = torch.randn(1, 32, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    z[0, :, 1, 2, 3] = made.codebook.codes.detach()[1]
    nodes = torch.zeros(1, 3, 4, 5).long()
    nodes[0, 1, 2, 3] = 1
    with torch.no_grad():
        whole = made.body.decode(z, [])[0, 0]
    (block,) = decode_nodes(made, z.movedim(1, -1).reshape(-1, 32), nodes, torch.tensor([1]))
    assert torch.allclose(block, whole[16:32, 32:48, 48:64], atol=1e-5)


def test_figures_are_drawn_at_a_sliders_worth_of_epochs_and_at_the_last() -> None:
    assert [epoch for epoch in range(1, 38) if figures_due(epoch, 37)] == [1, 2, 5, 10, 20, 37]
    assert not figures_due(max(FIGURE_EPOCHS) + 1, 10**6)
