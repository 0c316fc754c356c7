"""A sweep's early_terminate as Optuna's pruner."""

from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner

from somvq.definitions import Sweep


def build_pruner(sweep: Sweep) -> BasePruner:
    """Asynchronous successive halving; not Hyperband, whose brackets are left to chance at the size of our studies."""
    if sweep.early_terminate is None:
        return NopPruner()
    rule = sweep.early_terminate
    return SuccessiveHalvingPruner(min_resource=rule.min_iter, reduction_factor=rule.eta)
