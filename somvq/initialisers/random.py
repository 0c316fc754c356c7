"""Random weights and N(0, 1) codes: what a model is built with."""

from somvq.initialisers.start import Start
from somvq.models import Model


def initialise(model: Model, start: Start) -> None:
    """Leaves `model` as it was built: it needs no auto-encoder and no tokens."""
