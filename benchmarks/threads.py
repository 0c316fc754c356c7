"""How waiting threads share cores with others: a PSOM's training step at half size, OpenMP spinning against sleeping.

Usage: threads.py [SECONDS]      prints the median step, alone and beside as many busy processes as there are cores
"""

import os
import subprocess
import sys

STEP = """
import statistics, sys, time
import torch
from somvq.config import RunConfig
from somvq.models import build_model

torch.manual_seed(0)
model, scans = build_model(RunConfig(model="psom")), torch.randn(4, 1, 80, 96, 80)
optimiser = torch.optim.Adam(model.parameters(), 0.005)
model.start_epoch([scans])
end, steps = time.monotonic() + float(sys.argv[1]), []
while time.monotonic() < end:
    began = time.monotonic()
    losses = model(scans, torch.arange(4)).losses
    optimiser.zero_grad()
    sum(losses[name] * weight for name, weight in model.weights.items()).backward()
    optimiser.step()
    steps.append(time.monotonic() - began)
print(statistics.median(steps))
"""


def median_step(policy: str | None, seconds: str) -> float:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if policy:
        environment["OMP_WAIT_POLICY"] = policy
    done = subprocess.run(
        [sys.executable, "-c", STEP, seconds], env=environment, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def main() -> None:
    seconds = sys.argv[1] if len(sys.argv) > 1 else "15"
    cores = os.cpu_count() or 1
    print(f"{cores} cores; median seconds a step")
    print(f"{'':24}{'spinning':>10}{'sleeping':>10}{'ratio':>8}")
    for name, busy in (("alone", 0), (f"beside {cores} busy processes", cores)):
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            spinning, sleeping = median_step(None, seconds), median_step("PASSIVE", seconds)
        finally:
            for process in others:
                process.kill()
        print(f"{name:24}{spinning:10.3f}{sleeping:10.3f}{spinning / sleeping:8.1f}")


if __name__ == "__main__":
    main()
