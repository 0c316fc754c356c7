"""Maps: where nodes are, which are neighbours, how far apart they are."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

Topology = Literal["rectangular", "toroidal"]


@dataclass(frozen=True)
class Grid:
    """A map of height x width nodes, numbered row by row; the edges of a toroidal one join."""

    height: int
    width: int
    topology: Topology = "toroidal"

    @property
    def nodes(self) -> int:
        """How many nodes (K)."""
        return self.height * self.width

    @cached_property
    def distances(self) -> Tensor:
        """Steps between nodes along rows and columns (Manhattan), (K, K)."""
        row, column = torch.arange(self.nodes) // self.width, torch.arange(self.nodes) % self.width
        return self._steps(row, self.height) + self._steps(column, self.width)

    @cached_property
    def adjacency(self) -> Tensor:
        """Which nodes are one step apart, (K, K) of 0 and 1, symmetric, no node its own neighbour.

        Up to four neighbours a node; on a torus two nodes wide, left and right are one neighbour, counted once.
        """
        return (self.distances == 1).float()

    @cached_property
    def edges(self) -> Tensor:
        """Each pair of neighbours once, the lower node first, (pairs, 2)."""
        return torch.nonzero(torch.triu(self.adjacency))

    def _steps(self, place: Tensor, length: int) -> Tensor:
        """Steps between `place` (K,) of each node along an axis of `length`, (K, K); on a torus, the shorter way."""
        apart = (place[:, None] - place[None, :]).abs()
        return torch.minimum(apart, length - apart) if self.topology == "toroidal" else apart
