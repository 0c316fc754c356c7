"""Two readings of the paper: what its own code did (published), and what its sources mean (corrected).

Every place where they differ is one `Difference`, kept beside the code that it decides, which takes its choice from it;
published.py lists them all.
"""

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

Reading = Literal["published", "corrected"]
Value = TypeVar("Value")


@dataclass(frozen=True)
class Choice(Generic[Value]):
    """What one reading does: in words, and as the function or value that does it."""

    words: str
    value: Value


@dataclass(frozen=True)
class Difference(Generic[Value]):
    """One place where the paper's code and its sources differ; `paper` is what its text says."""

    item: str
    paper: str
    published: Choice[Value]
    corrected: Choice[Value]

    def of(self, reading: Reading) -> Value:
        """What `reading` does."""
        return (self.published if reading == "published" else self.corrected).value
