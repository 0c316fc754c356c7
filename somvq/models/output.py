"""What every model returns."""

from typing import NamedTuple

from torch import Tensor


class Encoded(NamedTuple):
    """B scans as an auto-encoder's encoder sees them, with the terms of the loss that it adds."""

    z: Tensor  # (B, C, x, y, z), x = X / 16
    features: list[Tensor]  # of the encoder's blocks, for skip connections; empty without
    losses: dict[str, Tensor]


class Output(NamedTuple):
    """One forward pass over B scans.

    `losses` are the terms of the objective, each a mean as its docstring says, before the model's weights. A
    reconstruction that no term needs is left out in training, and every one in passes; none in evaluation.
    """

    z: Tensor  # (B, C, x, y, z), x = X / 16
    losses: dict[str, Tensor]
    reconstruction: Tensor | None  # x'_e, decoded from z: (B, 1, X, Y, Z)
    reconstruction_q: Tensor | None = None  # x'_q, decoded from the nearest codes
    nodes: Tensor | None = None  # of every token, (B, x, y, z)
