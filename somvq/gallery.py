"""Which figures a run has after an epoch, and what is drawn on them."""

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from somvq.codebooks.psom import PSOM
from somvq.codebooks.som import SOM
from somvq.figures import codebook, curves, decoded, latent, planes, projection, reconstruction
from somvq.models import Model
from somvq.models.discrete import DiscreteAE, flatten, lay_out
from somvq.runs import Row
from somvq.validation import Validation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE_EPOCHS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # and the last; a slider's worth, not a disk's

Brain = npt.NDArray[np.bool_]


def figures_due(epoch: int, last: int) -> bool:
    """Whether `epoch` is one of those that are drawn."""
    return epoch in FIGURE_EPOCHS or epoch == last


def draw_epoch(model: Model, validation: Validation) -> "dict[str, Figure]":
    """The figures of any epoch that is drawn, by name."""
    drawn = {"reconstruction": draw_slices(validation)}
    if isinstance(model, DiscreteAE) and validation.hits is not None:
        grid, codes, hits = model.codebook.grid, codes_of(model), validation.hits.cpu().numpy()
        drawn |= {
            "codebook_grid": codebook.draw_grid(codes, grid.height, grid.width),
            "hits": codebook.draw_hits(hits, grid.height, grid.width),
            "usage": codebook.draw_usage(hits),
        }
    return drawn


def draw_last(model: Model, validation: Validation, brain: Brain, rows: Sequence[Row]) -> "dict[str, Figure]":
    """Those of the last epoch alone, by name; `brain` is of the first validation scan, `rows` the ledger's."""
    drawn = {"curves": curves.draw_curves(rows)}
    if not isinstance(model, DiscreteAE):
        return drawn
    assert validation.tokens is not None
    assert validation.nodes is not None
    assert validation.hits is not None
    codes, nodes = codes_of(model), validation.nodes.cpu().numpy()
    height, width, torus = model.codebook.grid.height, model.codebook.grid.width, is_torus(model)
    tokens, scan, hits = validation.tokens.cpu().numpy(), validation.scan.cpu().numpy(), validation.hits.cpu().numpy()
    drawn["tsne"] = latent.draw_latent(tokens, nodes.flatten(), codes, height, width, toroidal=torus)
    drawn["projection"] = projection.draw_projection(scan, brain, nodes[0], height, width, toroidal=torus)
    if isinstance(model.codebook, SOM | PSOM):
        drawn["umatrix"] = planes.draw_umatrix(codes, height, width, toroidal=torus)
        drawn["planes"] = planes.draw_planes(codes, height, width, toroidal=torus)
    if not model.body.decoder.skip:  # a decoder that also reads features of a scan decodes no code alone
        picked = torch.from_numpy(decoded.pick_nodes(height, width)).to(validation.nodes.device)
        blocks = decode_nodes(model, validation.tokens, validation.nodes, picked).cpu().numpy()
        drawn["decoded_nodes"] = decoded.draw_decoded(blocks, hits, height, width, toroidal=torus)
    return drawn


def draw_slices(validation: Validation) -> "Figure":
    """The first validation scan beside its reconstructions."""
    quantised = None if validation.image_q is None else validation.image_q.cpu().numpy()
    return reconstruction.draw_reconstruction(validation.scan.cpu().numpy(), validation.image.cpu().numpy(), quantised)


def codes_of(model: DiscreteAE) -> npt.NDArray[np.float32]:
    """The codes (K, C)."""
    codes: npt.NDArray[np.float32] = model.codebook.codes.detach().float().cpu().numpy()
    return codes


def is_torus(model: DiscreteAE) -> bool:
    """Whether the edges of the model's map join."""
    return model.codebook.grid.topology == "toroidal"


@torch.no_grad()
def decode_nodes(model: DiscreteAE, tokens: Tensor, nodes: Tensor, picked: Tensor) -> Tensor:
    """The block of voxels (N, 16, 16, 16) that each code of the nodes `picked` (N,) is decoded to, where it is chosen.

    Decoders read a token's neighbours too, one on each side: here their means over the places of `tokens` (M, C) whose
    node is the one, from `nodes` (B, x, y, z). A code everywhere, or alone among zeros, would be no brain.
    """
    model.eval()
    z = mean_surroundings(lay_out(tokens, tuple(nodes.shape)), nodes, model.codebook.grid.nodes)[picked]
    z[:, :, 1, 1, 1] = model.codebook.codes.detach().float()[picked]
    image = model.body.decode(z, [])[:, 0].float()
    middle = slice(image.shape[1] // 3, 2 * image.shape[1] // 3)
    return image[:, middle, middle, middle]


def mean_surroundings(z: Tensor, nodes: Tensor, count: int) -> Tensor:
    """The mean of the 3 x 3 x 3 tokens of `z` (B, C, x, y, z) about the places of each node, (count, C, 3, 3, 3).

    Beyond a scan's border its outermost tokens go on; a node without a place has zeros.
    """
    padded = F.pad(z, (1,) * 6, mode="replicate")
    total = z.new_zeros(count, z.shape[1], 3, 3, 3)
    for i, j, k in product(range(3), repeat=3):
        x, y, w = (slice(first, first + side) for first, side in zip((i, j, k), z.shape[2:], strict=True))
        total[:, :, i, j, k].index_add_(0, nodes.flatten(), flatten(padded[:, :, x, y, w]))
    return total / torch.bincount(nodes.flatten(), minlength=count).clamp(min=1)[:, None, None, None, None]
