"""What every model returns."""

from typing import NamedTuple

from torch import Tensor


class Output(NamedTuple):
    """One forward pass over B scans.

    `losses` are the terms of the objective, each a mean as its docstring says, before the model's weights.
    """

    reconstruction: Tensor  # x'_e, decoded from z: (B, 1, X, Y, Z)
    z: Tensor  # (B, C, x, y, z), x = X / 16
    losses: dict[str, Tensor]
