"""What an initialiser may start from."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor, nn


class Start(NamedTuple):
    """`autoencoder` are a trained AE's weights; `tokens(encoder)` are the training set's, (N, C), in eval mode."""

    seed: int
    tokens: Callable[[nn.Module], Tensor]
    autoencoder: Mapping[str, Tensor] | None = None
