"""When a run is past saving: its loss has exploded, or its codebook has died; told from the ledger alone.

So a resumed run is judged as an uninterrupted one, and a trial that can come to nothing costs minutes.

Training is judged, not validation: batch norm's running statistics lag behind weights that move fast. An auto-encoder
at a learning rate of 0.1 had val/mse 24,000 after its first epoch and 0.23 after its tenth; its train/reconstruction
fell from 1.0 to 0.2 all the while.
"""

import math
from collections.abc import Sequence

from somvq.config import RunConfig
from somvq.runs import Row

EXPLODED = 10.0  # times what a blank image scores: an untrained decoder scores 1, a scan's negative 4
RISEN = 100.0  # times the least loss before: terms at war with each other (psom, gamma 10, beta 1) rose to 1.3 times
EXPLODED_EPOCHS = 3  # in a row: one bad epoch is a spike, which Adam mends
ONE_CODE = 1.05  # perplexity: 99 tokens of 100 have the same code; runs with 3 codes left are at 2.5 to 3
ONE_CODE_EPOCHS = 10  # in a row: by then batch norm's statistics have settled, and codes that can move have moved


class Diverged(Exception):
    """The loss is no longer a number, or has exploded: the settings are at fault, not the machine."""


class Collapsed(Exception):
    """All tokens have one code, and have had it for long."""


def check(rows: Sequence[Row], config: RunConfig, blank: float) -> None:
    """Nothing, if the run whose ledger is `rows` may go on; `blank` is what an image of zeros scores (squared error).

    Published runs may collapse: that is what they are there to show.

    Raises:
        Diverged, Collapsed: it has come to nothing.
    """
    exploded(rows, config, blank)
    risen(rows)
    if config.has_codebook and config.reading == "corrected":
        collapsed(rows)


def exploded(rows: Sequence[Row], config: RunConfig, blank: float) -> None:
    """Stops a run whose reconstructions, the best of those it trains, are far worse than none."""
    names = [f"train/{term}" for term in config.terms if term.startswith("reconstruction")]
    last, limit = rows[-EXPLODED_EPOCHS:], EXPLODED * blank
    if len(last) == EXPLODED_EPOCHS and all(row[name] > limit for row in last for name in names):
        why = f"{EXPLODED:g} times what a blank image scores, for {EXPLODED_EPOCHS} epochs"
        raise Diverged(f"{at(last[-1], names[0])}, above {limit:.4g} ({why})")


def risen(rows: Sequence[Row]) -> None:
    """Stops a run whose loss is far above what it once was."""
    last = rows[-EXPLODED_EPOCHS:]
    before = [row["train/loss"] for row in rows[:-EXPLODED_EPOCHS]]
    if before and all(row["train/loss"] > RISEN * min(before) > 0 for row in last):
        why = f"{RISEN:g} times its least, for {EXPLODED_EPOCHS} epochs"
        raise Diverged(f"{at(last[-1], 'train/loss')}, above {RISEN * min(before):.4g} ({why})")


def collapsed(rows: Sequence[Row]) -> None:
    """Stops a run whose tokens all have one code."""
    name, last = "codebook/perplexity", rows[-ONE_CODE_EPOCHS:]
    if len(last) == ONE_CODE_EPOCHS and all(row.get(name, math.inf) < ONE_CODE for row in last):
        why = f"all tokens have one code, for {ONE_CODE_EPOCHS} epochs"
        raise Collapsed(f"{at(last[-1], name)}, below {ONE_CODE:g} ({why})")


def at(row: Row, name: str) -> str:
    """A number, and when it was measured."""
    return f"{name} was {row[name]:.4g} in epoch {row['epoch']:.0f}"


def finite(row: Row, epoch: int | None = None) -> Row:
    """`row`, if it is all numbers.

    Raises:
        Diverged: it is not.
    """
    for name, value in row.items():
        if not math.isfinite(value):
            raise Diverged(f"{name} became {value}" + (f" in epoch {epoch}" if epoch else ""))
    return row
