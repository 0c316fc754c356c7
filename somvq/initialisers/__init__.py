"""Where weights and codes start, by the names that sweep files use."""

from collections.abc import Callable

from somvq.initialisers import autoencoder, kmeans, kohonen, random
from somvq.initialisers.start import Start
from somvq.models import Model

INITIALISERS: dict[str, Callable[[Model, Start], None]] = {
    "random": random.initialise,
    "ae": autoencoder.initialise,
    "ae-kmeans": kmeans.initialise,
    "ae-som": kohonen.initialise,
}
