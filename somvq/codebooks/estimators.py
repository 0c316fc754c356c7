"""How the reconstruction from codes is differentiated: what its gradient does to tokens and codes."""

# Shapes: N tokens, C channels. Each takes tokens and their codes, and returns the codes' values.

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Estimate = Callable[[Tensor, Tensor], Tensor]


def straight_through(tokens_NC: Tensor, codes_NC: Tensor) -> Tensor:
    """The gradient goes to the tokens as if they had been decoded; none to the codes (van den Oord et al. 2017)."""
    return codes_NC.detach() + (tokens_NC - tokens_NC.detach())  # the value is the code's, to the bit


def direct(tokens_NC: Tensor, codes_NC: Tensor) -> Tensor:
    """The gradient goes to the codes, which are what is decoded; none to the tokens (Fortuin et al. 2018)."""
    return codes_NC


def rotation(tokens_NC: Tensor, codes_NC: Tensor) -> Tensor:
    """The gradient goes to the tokens, turned and scaled as the code is from its token (Fifty et al. 2024).

    The code is written as the token under a rotation and a scaling that are held constant; angles and relative lengths
    between gradient and token become those between gradient and code. A token at the origin, or one opposite its code,
    passes its gradient on unturned.
    """
    codes = codes_NC.detach()
    length, other = tokens_NC.detach().norm(dim=1, keepdim=True), codes.norm(dim=1, keepdim=True)
    unit, target = F.normalize(tokens_NC.detach(), dim=1), F.normalize(codes, dim=1)
    between = F.normalize(unit + target, dim=1)
    has_turn = (length > 1e-12) & ((unit + target).norm(dim=1, keepdim=True) > 1e-6)
    turned = (
        tokens_NC
        - 2 * (tokens_NC * between).sum(1, keepdim=True) * between
        + 2 * (tokens_NC * unit).sum(1, keepdim=True) * target
    )
    scaled = torch.where(has_turn, turned * (other / length.clamp_min(1e-12)), tokens_NC)
    return codes + (scaled - scaled.detach())


ESTIMATORS: dict[str, Estimate] = {
    "straight-through": straight_through,
    "rotation": rotation,
    "direct": direct,
}
