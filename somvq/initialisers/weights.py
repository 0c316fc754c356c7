"""Weights of a trained auto-encoder."""

from collections.abc import Mapping

from torch import Tensor

from somvq.models.ae import AE
from somvq.models.convolutions import Encoder

PARTS = ("encoder", "log_variance", "decoder")


def copy(weights: Mapping[str, Tensor], body: AE, *, decoder: bool = True) -> None:
    """Copies weights and batch statistics into `body`, part by part, where both have the part.

    A VAE takes the encoder of its mean from an AE, and the encoder of its variance from nowhere. Without `decoder` that
    stays random: the published continuous SOM-VAE's has batch norm, and the VAE's, which it starts from, has none.
    """
    for part in PARTS if decoder else PARTS[:-1]:
        own, trained = getattr(body, part, None), part_of(weights, part)
        if own is not None and trained:
            own.load_state_dict(trained)


def trained_encoder(weights: Mapping[str, Tensor]) -> Encoder:
    """The encoder that `weights` are of; a VAE's is that of its mean."""
    trained = part_of(weights, "encoder")
    encoder = Encoder(batch_norm=any("running_mean" in name for name in trained))
    encoder.load_state_dict(trained)
    return encoder


def part_of(weights: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The weights of one part, by their names in it."""
    return {name.removeprefix(f"{part}."): value for name, value in weights.items() if name.startswith(f"{part}.")}
