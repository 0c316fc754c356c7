"""Which t-SNE draws a trial's latent figure soonest: scikit-learn's or openTSNE's, on the same points and settings.

    python benchmarks/tsne.py                       # 1k, 3k, 10k and 20k points, once each: about 8 minutes
    python benchmarks/tsne.py --sizes 1000 3000 --repeats 3 --cores 2

Points are tokens round the codes of a smooth 16 x 16 map in 32 channels. Equal for all: perplexity 30, exaggeration 12,
250 + 500 steps, momentum 0.5 then 0.8, the step length (scikit-learn's is a quarter, for its gradient is four times as
long), theta 0.5, the first positions (principal components) and exact neighbours. "Kept" is the share of a point's ten
nearest neighbours in 32 channels that are among its ten nearest in the embedding, over 500 points.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import openTSNE
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

Points = NDArray[np.float64]
PERPLEXITY, EXAGGERATION, EARLY, LATE, THETA = 30, 12, 250, 500, 0.5


def latent(size: int, seed: int = 0) -> Points:
    """(size, 32) tokens round the codes of a smooth 16 x 16 map."""
    generator = np.random.default_rng(seed)
    row, column = np.divmod(np.arange(256), 16)
    waves = generator.normal(size=(4, 32)) / 2
    codes = np.stack([np.sin(row / 5), np.cos(row / 5), np.sin(column / 5), np.cos(column / 5)], axis=1) @ waves
    return codes[generator.integers(256, size=size)] + generator.normal(0, 0.15, size=(size, 32))


def start(points: Points) -> Points:
    """(N, 2) first two principal components, as short as t-SNE wants them."""
    centred = points - points.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    plane = centred @ axes[:, :-3:-1]
    return plane / plane[:, 0].std() * 1e-4


def with_sklearn(points: Points, cores: int) -> Points:
    """(N, 2) by scikit-learn's Barnes-Hut."""
    return TSNE(
        perplexity=PERPLEXITY,
        early_exaggeration=EXAGGERATION,
        learning_rate=max(len(points) / EXAGGERATION, 200) / 4,
        max_iter=EARLY + LATE,
        min_grad_norm=0,
        angle=THETA,
        init=start(points),
        random_state=0,
        n_jobs=cores,
    ).fit_transform(points)


def with_opentsne(points: Points, cores: int, gradient: str) -> Points:
    """(N, 2) by openTSNE; `gradient` is bh (Barnes-Hut) or fft (interpolation)."""
    return np.asarray(
        openTSNE.TSNE(
            perplexity=PERPLEXITY,
            early_exaggeration=EXAGGERATION,
            learning_rate=max(len(points) / EXAGGERATION, 200),
            early_exaggeration_iter=EARLY,
            n_iter=LATE,
            initial_momentum=0.5,
            final_momentum=0.8,
            theta=THETA,
            initialization=start(points),
            neighbors="exact",
            negative_gradient_method=gradient,
            random_state=0,
            n_jobs=cores,
        ).fit(points)
    )


METHODS: dict[str, Callable[[Points, int], Points]] = {
    "scikit-learn": with_sklearn,
    "openTSNE bh": lambda points, cores: with_opentsne(points, cores, "bh"),
    "openTSNE fft": lambda points, cores: with_opentsne(points, cores, "fft"),
}


def kept(points: Points, embedded: Points, neighbours: int = 10, sample: int = 500) -> float:
    """The share of nearest neighbours that the embedding keeps, over `sample` points."""
    chosen = np.random.default_rng(0).choice(len(points), sample, replace=False)
    near = [
        NearestNeighbors(n_neighbors=neighbours + 1).fit(space).kneighbors(space[chosen], return_distance=False)[:, 1:]
        for space in (points, embedded)
    ]
    shared = [len(np.intersect1d(before, after)) for before, after in zip(*near, strict=True)]
    return float(np.mean(shared)) / neighbours


def measure(method: Callable[[Points], Points], points: Points, repeats: int) -> tuple[float, float]:
    """(median seconds, share of neighbours kept)."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        embedded = method(points)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), kept(points, embedded)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description="t-SNE: scikit-learn against openTSNE")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 3_000, 10_000, 20_000])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--cores", type=int, default=1)
    request = parser.parse_args()
    warnings.simplefilter("ignore")
    threadpool_limits(request.cores)
    for method in METHODS.values():
        method(latent(200), request.cores)  # first calls load
    print(f"{request.cores} core(s), 32 channels, median of {request.repeats}; ratio = scikit-learn's time / its own\n")
    print(f"{'points':>7}  {'method':<13} {'seconds':>8} {'ratio':>6} {'kept':>6}")
    for size in request.sizes:
        points = latent(size)
        theirs = 0.0
        for name, method in METHODS.items():
            seconds, share = measure(partial(method, cores=request.cores), points, request.repeats)
            theirs = theirs or seconds
            print(f"{size:>7,}  {name:<13} {seconds:>8.2f} {theirs / seconds:>5.1f}x {share:>6.0%}", flush=True)


if __name__ == "__main__":
    main()
