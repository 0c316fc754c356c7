"""Encoder and decoder from a trained auto-encoder; codes stay random."""

from somvq.initialisers.start import Start
from somvq.models import Model


def initialise(model: Model, start: Start) -> None:
    """Copies the auto-encoder's weights and batch statistics into `model`."""
    assert start.autoencoder is not None, "the stage that trains the auto-encoder has not run"
    missing, unexpected = model.load_state_dict(dict(start.autoencoder), strict=False)
    strangers = [name for name in missing if name.startswith(("encoder.", "decoder."))]
    assert not [*strangers, *unexpected], f"the auto-encoder does not fit: {strangers or unexpected}"
