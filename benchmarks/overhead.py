"""What a trial costs beyond its own time: somvq's worker, step by step; bare Optuna; Ray Tune."""

import os
import statistics
import subprocess
import time
from pathlib import Path

import optuna
from large import Place, begin
from rich.table import Table
from standin import asleep, clock_worker, work_quietly, write_sweep

EPOCHS = 4
RAY = """
import sys, time
import ray
from ray import tune
trials = int(sys.argv[1])
def objective(config):
    for epoch in range(4):
        tune.report({"score": config["alpha"] * epoch})
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
space = {name: tune.uniform(0, 1) for name in ("alpha", "beta", "gamma", "gamma_q")}
space["topology"] = tune.choice(["toroidal", "rectangular"])
began = time.perf_counter()
tune.Tuner(objective, param_space=space, tune_config=tune.TuneConfig(num_samples=trials, max_concurrent_trials=1),
           run_config=tune.RunConfig(verbose=0)).fit()
print("ms a trial:", 1000 * (time.perf_counter() - began) / trials)
"""


def fsync_ms(folder: Path) -> float:
    """The median of syncing a line to this disk, now."""
    took = []
    with (folder / "synced").open("w") as file:
        for _ in range(25):
            file.write("a line\n")
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            took.append(time.perf_counter() - began)
    return 1000 * statistics.median(took)


def measure_worker(folder: Path, trials: int, seconds: float) -> tuple[float, dict[str, float]]:
    """Milliseconds a trial beyond its own, and by step."""
    place = Place(folder)
    opened = begin(place, trials, write_sweep(folder, EPOCHS), "short")
    steps = clock_worker("sqlite")
    try:
        with asleep(seconds) as attempts:
            began = time.perf_counter()
            work_quietly(opened, place.settings)
            took = time.perf_counter() - began
    finally:
        for undo in reversed(steps.undo):
            undo()
    own = sum(attempt.ended - attempt.began for attempt in attempts)
    late = sum(attempt.noticed - attempt.ended for attempt in attempts)
    assert len(attempts) == trials
    parts = {"end of the attempt noticed": late, **steps.seconds}
    parts["done while the attempt ran"] = -(sum(parts.values()) - (took - own))
    return 1000 * (took - own) / trials, {name: 1000 * part / trials for name, part in parts.items()}


def measure_optuna(folder: Path, trials: int) -> float:
    """Milliseconds a trial of study.optimize on SQLite, five parameters, four reports."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial: optuna.Trial) -> float:
        found = [trial.suggest_float(name, 0.1, 1.0, log=True) for name in ("alpha", "beta", "gamma", "gamma_q")]
        trial.suggest_categorical("topology", ["toroidal", "rectangular"])
        for epoch in range(1, EPOCHS + 1):
            trial.report(sum(found) / epoch, epoch)
        return sum(found)

    study = optuna.create_study(storage=f"sqlite:///{folder / 'bare.db'}")
    began = time.perf_counter()
    study.optimize(objective, n_trials=trials)
    return 1000 * (time.perf_counter() - began) / trials


def measure_ray(python: str | None, trials: int) -> str:
    """Milliseconds a trial of Ray Tune in the environment of `python`."""
    if python is None:
        return "not installed: python -m venv RAY && RAY/bin/pip install 'ray\\[tune]', then --ray RAY/bin/python"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", RAY, str(trials)], capture_output=True, text=True, env=environment, check=False
    )
    found = [line for line in done.stdout.splitlines() if line.startswith("ms a trial:")]
    return f"{float(found[0].split(':')[1]):.0f}" if found else f"failed: {done.stderr.strip()[-200:]}"


def overhead(folder: Path, trials: int, ray: str | None) -> list[Table]:
    """Both tables: side by side, and somvq's steps."""
    rounds = [measure_worker(folder / f"somvq-{number}", trials, 1.0) for number in range(3)]
    bare = [measure_optuna_in(folder / f"optuna-{number}", 5 * trials) for number in range(3)]
    middle = sorted(rounds, key=lambda found: found[0])[1]
    title = f"A trial beyond its own second; one worker, SQLite, 5 parameters, {EPOCHS} reports; median of 3 x {trials}"
    table = Table(title=title, title_justify="left")
    for heading in ("what", "ms a trial", "of what"):
        table.add_column(heading)
    noticed = middle[1]["end of the attempt noticed"]
    table.add_row("somvq", f"{middle[0]:.0f}", "the attempt is a thread that sleeps; its process's start is left out")
    table.add_row("  its own work", f"{middle[0] - noticed:.0f}", "asked: 60 at most")
    table.add_row("  until the end is noticed", f"{noticed:.0f}", "from the attempt's end to the worker's next look")
    table.add_row(
        "bare Optuna", f"{statistics.median(bare):.0f}", "study.optimize; objective of no work; SQLite as it is"
    )
    table.add_row("Ray Tune", measure_ray(ray, trials), "random search, one trial at a time; actors' start included")
    parts = Table(title="somvq's steps, ms a trial (exclusive of each other)", title_justify="left")
    parts.add_column("step")
    parts.add_column("ms", justify="right")
    for name, ms in sorted(middle[1].items(), key=lambda part: -part[1]):
        parts.add_row(name, f"{ms:.1f}")
    return [table, parts]


def measure_optuna_in(folder: Path, trials: int) -> float:
    folder.mkdir(parents=True)
    return measure_optuna(folder, trials)
