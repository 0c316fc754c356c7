"""What a lab types once: somvq.yaml in the working folder, or SOMVQ_* variables; the command line wins."""

import os
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, YamlConfigSettingsSource

from somvq.definitions import did_you_mean, plain
from somvq.errors import DefinitionError

FILE = Path("somvq.yaml")
PREFIX = "SOMVQ_"
WandbMode = Literal["auto", "online", "offline", "disabled"]


class Settings(BaseSettings):
    """Where things are, on this machine or in this lab."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, yaml_file=FILE, extra="forbid", env_ignore_empty=True)
    cohort: Path | None = Field(None, description="folder of T1 volumes, or a manifest; none: the demo cohort")
    runs: Path = Field(Path("runs"), description="where studies and their runs are kept")
    cohorts: Path = Field(Path("cohorts"), description="where the demo cohort and prepared cohorts are kept")
    lease_s: float = Field(120, gt=0, description="seconds of silence after which a worker is taken for dead")
    outage_s: float = Field(900, gt=0, description="seconds that workers wait for a storage that does not answer")
    storage: str | None = Field(
        None,
        description="where Optuna keeps trials: sqlite:///PATH, journal:///PATH (shared disks) or "
        "postgresql://USER@HOST/DATABASE; none: study.db in the study's folder",
    )
    wandb: WandbMode = Field("auto", description="auto: online where there is a key, else offline")
    upload_brain_images: bool = Field(False, description="whether W&B gets pictures that show brains, too")
    wandb_project: str = Field("somvq", description="W&B project of new studies")
    wandb_entity: str | None = Field(None, description="W&B user or team of new studies; none: WANDB_ENTITY, or yours")

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], *sources: Any, **named: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The command line, then the environment, then somvq.yaml."""
        return named["init_settings"], named["env_settings"], YamlConfigSettingsSource(settings_cls)


def read_settings(**given: Any) -> Settings:
    """The settings in force; `given` are the command line's, none where it says nothing.

    Raises:
        DefinitionError: where a value is from, what it is, what is allowed.
    """
    spoken = {name: value for name, value in given.items() if value is not None}
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name.removeprefix(PREFIX).lower() not in Settings.model_fields:
            known = [PREFIX + field.upper() for field in Settings.model_fields]
            raise DefinitionError(f"{name} is not a setting; {did_you_mean(name, known)}")
    try:
        return Settings(**spoken)
    except yaml.YAMLError as error:
        raise DefinitionError(f"{FILE} is not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise DefinitionError("\n".join(complaint(problem, spoken) for problem in error.errors())) from error
    except (TypeError, ValueError) as error:  # what pydantic-settings makes of a file that is no mapping
        raise DefinitionError(f"{FILE} is not a list of settings, as in 'runs: /data/runs'") from error


def complaint(problem: Any, spoken: dict[str, Any]) -> str:
    """One line for one impossible setting."""
    name = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        return f"{FILE}: {name} is not a setting; {did_you_mean(name, Settings.model_fields)}"
    return f"{origin(name, spoken)}: {name} {problem['input']!r} is impossible: {plain(problem)}"


def origin(name: str, spoken: dict[str, Any]) -> str:
    """Where the value of setting `name` comes from."""
    if name in spoken:
        return "command line"
    if os.environ.get(PREFIX + name.upper()):
        return PREFIX + name.upper()
    in_file = yaml.safe_load(FILE.read_text()) if FILE.is_file() else None
    return str(FILE) if isinstance(in_file, dict) and name in in_file else "default"


def mask(value: Any) -> str:
    """`value` as text, with the password of a URL hidden."""
    hidden = re.sub(r"(://[^:/@\s]*:)\S+@", r"\1***@", str(value))
    return re.sub(r"([?&]\w*(?:password|passwd|token|key)=)[^&\s]+", r"\1***", hidden, flags=re.IGNORECASE)
