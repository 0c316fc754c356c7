"""A run whole at its last epoch: saved atomically, loaded without running anyone's code."""

import io
from pathlib import Path
from typing import Any

import torch

from somvq.errors import RunError
from somvq.files import write_whole

FORMAT = 1


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """`content` (tensors, numbers, strings and dicts of them) at `path`, whole or not at all."""
    buffer = io.BytesIO()  # torch makes something unreadable of a full disk; a file of ours says what it is
    torch.save({"format": FORMAT, **content}, buffer)
    write_whole(path, lambda file: file.write(buffer.getbuffer()))


def load_checkpoint(path: Path, device: str = "cpu") -> dict[str, Any] | None:
    """What was saved at `path`; none if nothing was.

    Raises:
        RunError: it is damaged, or of another version.
    """
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises whatever the damage leads to
        raise RunError(f"{path} is damaged ({type(error).__name__}); delete it and its run starts again") from error
    if content.get("format") != FORMAT:
        raise RunError(
            f"{path} has format {content.get('format')}, not {FORMAT}; finish it with the somvq it began with"
        )
    return content
