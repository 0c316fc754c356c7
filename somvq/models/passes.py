"""A batch that does not fit in memory: its convolutions run a few scans at a time, and nothing else knows of it.

Only convolutions take memory; tokens are 1/128 of a scan. So these alone run in passes, each made again when its
gradient is due, and what lies between them (sampling, codebooks, every term of the loss) sees the whole batch as ever:
there is no sum or target of a batch that would have to be put together from parts. It costs a second forward pass.

Batch norm is the exception: in training it takes the mean and variance of a pass, and its running statistics move once
a pass. A model with it (all but the published VAE) trains a little differently in passes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def in_passes(
    module: nn.Module, function: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor], scans: int | None
) -> list[Tensor]:
    """What `function`, a part of `module`, makes of `tensors`, at most `scans` at a time; none: all at once."""
    if scans is None or len(tensors[0]) <= scans:
        return list(function(*tensors))

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), uncounted(module)

    made = []
    for part in zip(*(tensor.split(scans) for tensor in tensors), strict=True):
        if torch.is_grad_enabled():
            made.append(checkpoint(function, *part, use_reentrant=False, preserve_rng_state=False, context_fn=contexts))
        else:
            made.append(function(*part))
    return [torch.cat(values) for values in zip(*made, strict=True)]


@contextmanager
def uncounted(module: nn.Module) -> Iterator[None]:
    """Running statistics of `module` stand still: a pass that is made again counts once."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm3d)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
