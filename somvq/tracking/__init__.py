"""Where a run's numbers can be followed while it trains: nowhere, or W&B (wandb.py)."""

import configparser
import netrc
import os
from contextlib import suppress
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from somvq.runs import Run, State

Mode = Literal["auto", "online", "offline", "disabled"]

DEFAULT_BASE_URL = "https://api.forge.coreweave.com"  # wandb 0.31's; also known as:
ALIASES = {"api.forge.coreweave.com": "api.wandb.ai", "forge.coreweave.com": "api.wandb.ai"}
MODES: dict[str, Mode] = {  # what WANDB_MODE may say, also by its older names
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}


class Tracker:
    """Keeps nothing: what a run reports to when nobody asked for tracking."""

    def follow(self, run: Run) -> None:
        """Starts to follow `run`, whose ledger may still grow."""

    def finish(self, state: State) -> None:
        """Ends what `follow` started: the run is now `state`."""


def build_tracker(mode: Mode, *, upload_brain_images: bool = False) -> Tracker:
    """The tracker that `mode` asks for; "auto" is what W&B's own settings say, else online if there is an API key."""
    resolved = resolve(mode)
    if resolved == "disabled":
        return Tracker()
    from somvq.tracking.wandb import WandbTracker

    return WandbTracker(resolved, upload_brain_images=upload_brain_images)


def resolve(mode: Mode) -> Literal["online", "offline", "disabled"]:
    """`mode` without "auto"."""
    if mode == "auto":
        fallback: Mode = "online" if has_credentials() else "offline"
        mode = MODES.get(read_setting("mode") or "", fallback)
    assert mode != "auto"
    return mode


def has_credentials() -> bool:
    """Whether wandb would find a key for its server, in the places and the order in which wandb 0.31 looks."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(read_setting("base_url") or DEFAULT_BASE_URL).netloc
    try:
        logins = netrc.netrc(Path(os.environ.get("NETRC") or "~/.netrc").expanduser())
    except (OSError, ValueError, netrc.NetrcParseError):
        return False
    return any(logins.authenticators(name) for name in (host, ALIASES.get(host, host)))


def read_setting(name: str) -> str | None:
    """A setting of W&B as its user left it: by variable, else in this folder's settings file, else in the user's."""
    if value := os.environ.get(f"WANDB_{name.upper()}"):
        return value
    home = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    settings = configparser.ConfigParser(interpolation=None)
    with suppress(OSError, ValueError, configparser.Error):
        settings.read([home / "settings", Path("wandb", "settings")])
    return settings.get("default", name, fallback=None)
