"""Maps: where nodes are, which are neighbours, how far apart they are."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from somvq.config import Neighbours, Topology
from somvq.readings import Choice, Difference, Reading

FIRST_TEMPERATURE, LAST_TEMPERATURE = 1.0, 0.1  # of a Gaussian neighbourhood that shrinks: LSOR's


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
    def steps(self) -> tuple[Tensor, Tensor]:
        """Steps between nodes along columns, and along rows, (K, K) each; on a torus, the shorter way."""
        row, column = torch.arange(self.nodes) // self.width, torch.arange(self.nodes) % self.width
        return self._steps(row, self.height), self._steps(column, self.width)

    @cached_property
    def distances(self) -> Tensor:
        """Steps between nodes along rows and columns together (Manhattan), (K, K)."""
        return self.steps[0] + self.steps[1]

    @cached_property
    def adjacency(self) -> Tensor:
        """Which nodes are one step apart, (K, K) of 0 and 1, symmetric, no node its own neighbour.

        Up to four neighbours a node; on a torus two nodes wide, left and right are one neighbour, counted once.
        """
        return (self.distances == 1).float()

    @cached_property
    def adjacency_8(self) -> Tensor:
        """Which nodes touch, diagonally too, (K, K) of 0 and 1, as `adjacency`."""
        return (torch.maximum(*self.steps) == 1).float()

    @cached_property
    def edges(self) -> Tensor:
        """Each pair of neighbours once, the lower node first, (pairs, 2)."""
        return torch.nonzero(torch.triu(self.adjacency))

    def _steps(self, place: Tensor, length: int) -> Tensor:
        """Steps between `place` (K,) of each node along an axis of `length`, (K, K); on a torus, the shorter way."""
        apart = (place[:, None] - place[None, :]).abs()
        return torch.minimum(apart, length - apart) if self.topology == "toroidal" else apart


def joined_edges(grid: Grid) -> Tensor:
    """`grid.adjacency`."""
    return grid.adjacency


def edges_joined_to_node_0(grid: Grid) -> Tensor:
    """Neighbours as the paper's code has them, (K, K), a row the neighbours of a node.

    Below the last row and right of the last column of its torus lies node 0, not the opposite edge: on 16 x 16 nodes
    29 have a wrong neighbour, and 33 have node 0.
    """
    if grid.topology == "rectangular":
        return grid.adjacency
    node = torch.arange(grid.nodes)
    row, column = node // grid.width, node % grid.width
    up, left = (row - 1) % grid.height * grid.width + column, row * grid.width + (column - 1) % grid.width
    down = torch.where(row + 1 < grid.height, node + grid.width, 0)
    right = torch.where(column + 1 < grid.width, node + 1, 0)
    adjacency = torch.zeros(grid.nodes, grid.nodes)
    for other in (up, down, left, right):
        adjacency[node, other] = 1
    return adjacency.fill_diagonal_(0)


TORUS: Difference[Callable[[Grid], Tensor]] = Difference(
    "Toroidal map",
    "nodes at the border have a neighbour on the opposite side",
    Choice("below the last row and right of the last column lies node 0", edges_joined_to_node_0),
    Choice("the edges join: every node has 4 neighbours, each the other's", joined_edges),
)


class Neighbourhood(nn.Module):
    """How much the other nodes of a map move with each: its 4 or 8 neighbours, or all by a width that shrinks.

    `others` is (K, K), a row a node, its diagonal 0. The Gaussian is LSOR's soft SOM (Ouyang et al. 2023),
    exp(-d^2 / (2 height width T^2)) with d in steps and T falling from 1 to 0.1, exponentially, over a run.
    """

    others: Tensor

    def __init__(self, grid: Grid, kind: Neighbours = 4, reading: Reading = "corrected"):
        super().__init__()
        self.grid, self.kind = grid, kind
        self.register_buffer("others", TORUS.of(reading)(grid) if kind == 4 else grid.adjacency_8.clone())
        self.shrink(0.0)

    def shrink(self, progress: float) -> None:
        """Sets the Gaussian's width for `progress` through a run, 0 to 1; 4 or 8 neighbours stay what they are."""
        if self.kind == "gaussian":
            temperature = FIRST_TEMPERATURE * (LAST_TEMPERATURE / FIRST_TEMPERATURE) ** progress
            variance = self.grid.nodes * temperature**2
            weights = torch.exp(-self.grid.distances.float().square() / (2 * variance))
            self.others.copy_(weights.fill_diagonal_(0))

    @property
    def like_four(self) -> Tensor:
        """`others`; those of a Gaussian scaled to weigh as much as four neighbours, whatever its width."""
        if self.kind != "gaussian":
            return self.others
        return self.others * (4 / self.others.sum(1, keepdim=True))

    @property
    def with_self(self) -> Tensor:
        """`others`, and each node itself with weight 1."""
        return self.others + torch.eye(self.grid.nodes, device=self.others.device)
