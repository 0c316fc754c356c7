"""What a codebook costs: training steps of each model against the auto-encoder's, and SSIM of a pair of volumes.

    python benchmarks/steps.py [--rounds 7] [--scans 4] [--shape 144x176x144] [--threads 2]

Each model trains a step in turn, round after round, so that what else the machine does falls on all alike; the table
has medians, and the median over rounds of each ratio. A SOM-VAE decodes twice, so that its base is an auto-encoder
that decodes twice.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from somvq import metrics
from somvq.config import RunConfig
from somvq.models import Model, build_model
from somvq.validation import objective

AE, TWICE = "ae", "ae, decoded twice"
BASES = {TWICE: AE, "psom": AE, "som": TWICE, "psom, gamma_q 0.2": TWICE, "vqvae": AE, "vqvae, gamma_q 0.2": TWICE}
MOST = {"som": 1.15, "psom": 1.10}
SETTINGS = {
    "psom": {"model": "psom"},
    "psom, gamma_q 0.2": {"model": "psom", "gamma_q": 0.2},
    "som": {"model": "som"},
    "vqvae": {"model": "vqvae"},
    "vqvae, gamma_q 0.2": {"model": "vqvae", "gamma_q": 0.2},
}


def step_of(model: Model, scans: Tensor) -> Callable[[], None]:
    """A training step of `model`."""
    rows = torch.arange(len(scans))
    model.train().start_epoch([scans])
    return descend(model, lambda: objective(model, model(scans, rows).losses))


def step_twice(scans: Tensor) -> Callable[[], None]:
    """A training step of an auto-encoder with two reconstructions."""
    model = build_model(RunConfig(model="ae"))

    def loss() -> Tensor:
        z = model.encoder(scans)
        return sum(torch.nn.functional.mse_loss(model.decoder(z), scans) for _ in range(2))

    return descend(model, loss)


def descend(model: Model, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """One step of Adam down `loss`."""
    optimiser = torch.optim.Adam(model.parameters(), 0.005)

    def step() -> None:
        value = loss()
        optimiser.zero_grad()
        value.backward()
        optimiser.step()

    return step


def seconds(work: Callable[[], object]) -> float:
    """How long `work` took."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Measures and prints."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--rounds", type=int, default=7)
    asked.add_argument("--scans", type=int, default=4)
    asked.add_argument("--shape", default="144x176x144")
    asked.add_argument("--threads", type=int, default=2)
    given = asked.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    scans = torch.randn(given.scans, 1, *map(int, given.shape.split("x")))
    steps = {AE: step_of(build_model(RunConfig(model="ae")), scans), TWICE: step_twice(scans)}
    steps |= {name: step_of(build_model(RunConfig.model_validate(said)), scans) for name, said in SETTINGS.items()}
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    pairs = []
    for _ in range(given.rounds):
        for name, step in steps.items():
            times[name].append(seconds(step))
        pairs.append(seconds(lambda: metrics.ssim(scans[:1], scans[1:2])))
    table = Table(title=f"{given.scans} scans of {given.shape}, {given.threads} threads, {given.rounds} rounds")
    for heading in ("step of", "seconds", "against", "ratio", "asked"):
        table.add_column(heading)
    for name, taken in times.items():
        base = BASES.get(name)
        ratio = statistics.median(t / b for t, b in zip(taken, times[base], strict=True)) if base else 1
        asked_for = f"at most {MOST[name]:.2f}" if name in MOST else ""
        table.add_row(name, f"{statistics.median(taken):.3f}", base or "", f"{ratio:.3f}", asked_for)
    table.add_row("SSIM of a pair", f"{statistics.median(pairs):.3f}", "", "", "at most 0.06 s")
    Console().print(table)


if __name__ == "__main__":
    main()
