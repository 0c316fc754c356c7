"""Which trials lag behind: asynchronous successive halving (ASHA) on the epochs that ledgers have, for any goals.

Optuna's pruner, which this equals decision by decision where there is one objective, knows no studies of several.
"""

import math
from collections.abc import Sequence

from somvq.definitions import Sweep


def rungs(sweep: Sweep, epochs: int) -> list[int]:
    """The epochs after which a trial of `epochs` may be stopped: min_iter, min_iter eta, ...; never the last."""
    found: list[int] = []
    rule = sweep.early_terminate
    epoch = rule.min_iter if rule else epochs
    while rule and epoch < epochs:
        found.append(epoch)
        epoch *= rule.eta
    return found


def is_rung(sweep: Sweep, epoch: int) -> bool:
    """Whether trials are compared after `epoch`."""
    return epoch in rungs(sweep, epoch + 1)


def lags(sweep: Sweep, epoch: int, value: float, rivals: Sequence[float]) -> bool:
    """Whether a trial whose monitored metric is `value` after `epoch` stops there.

    It goes on if it is among the best 1/eta of all that reached this epoch; while they are fewer than eta, if it is the
    best. `rivals` are the values of all other trials after the same epoch, whatever became of them.
    """
    rule = sweep.early_terminate
    if rule is None or not is_rung(sweep, epoch):
        return False
    if math.isnan(value):
        return True
    sign = -1.0 if sweep.monitor_goal.goal == "maximize" else 1.0
    ranked = sorted(sign * each for each in [*rivals, value] if not math.isnan(each))
    promoted = max(len(ranked) // rule.eta, 1)
    return sign * value > ranked[promoted - 1]
