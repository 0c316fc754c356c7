"""Codes at the k-means centres of a trained auto-encoder's tokens, laid out on the map."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from somvq.codebooks.psom import squared_distances
from somvq.initialisers import autoencoder
from somvq.initialisers.kohonen import batch_som, sample
from somvq.initialisers.start import Start
from somvq.models import Model
from somvq.models.psomvae import PSOMVAE


def initialise(model: Model, start: Start) -> None:
    """Auto-encoder weights, and k-means++ centres of the whole training set's tokens.

    k-means knows no map: its centres come in arbitrary order. Each is given the node whose code in a batch SOM of the
    same tokens it is nearest to, by Hungarian assignment: neighbours start alike, at the same quantisation error.
    """
    assert isinstance(model, PSOMVAE)
    autoencoder.initialise(model, start)
    tokens = sample(start.tokens(model.encoder), model.codebook.grid.nodes, start.seed)
    from sklearn.cluster import KMeans  # here: it takes a second to load, which most runs need not wait

    clusters = KMeans(model.codebook.grid.nodes, n_init=1, random_state=start.seed).fit(tokens.numpy())
    centres = torch.from_numpy(np.asarray(clusters.cluster_centers_, np.float32))
    sheet = batch_som(tokens, model.codebook.grid, start.seed)
    nodes, order = linear_sum_assignment(squared_distances(sheet, centres).numpy())
    assert (nodes == np.arange(len(nodes))).all()
    with torch.no_grad():
        model.codebook.codes.copy_(centres[order])
