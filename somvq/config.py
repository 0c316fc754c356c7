"""What a run and a cohort may be told: frozen, checked when made, unknown keys refused."""

import hashlib
import json
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

ENCODER_STRIDE = 16  # voxels of a scan along each side of a token: four convolutions of stride 2

NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


CODEBOOK_SETTINGS = ("grid", "topology", "alpha", "beta", "gamma", "gamma_q", "assignment")
CODE_INITIALISERS = ("ae-kmeans", "ae-som")


class Frozen(BaseModel):
    """Settings that are checked once and never change."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class RunConfig(Frozen):
    """Everything that decides a run's numbers, beside its cohort."""

    model: Literal["ae", "psom"]
    init: Literal["random", "ae", "ae-kmeans", "ae-som"] = Field("random", description="where weights and codes start")
    grid: str = Field("16x16", description="nodes of the map, HEIGHTxWIDTH")
    topology: Literal["rectangular", "toroidal"] = Field("toroidal", description="whether the map's edges join")
    alpha: Positive = Field(10.0, description="degrees of freedom of the Student's t assignment (paper eq. 3b)")
    beta: NonNegative = Field(0.25 / 32, description="weight of the neighbour term (paper eq. 5)")
    gamma: NonNegative = Field(20 / 32, description="weight of the cluster-hardening term (paper eq. 5)")
    gamma_q: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="share of the reconstruction that is decoded from the codes, and trains them"
    )
    assignment: Literal["hard", "soft"] = Field(
        "hard", description="what gamma_q decodes: nearest codes, or their mean by s"
    )
    epochs: Annotated[int, Field(ge=1)] = 40
    ae_epochs: Annotated[int, Field(ge=1)] = Field(80, description="epochs of the shared auto-encoder that init needs")
    batch_size: Annotated[int, Field(ge=1)] = Field(32, description="scans a step, at most; see training.batch_size")
    learning_rate: Positive = 0.005
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 on a GPU, else float32"
    )
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _grid_is_a_map(self) -> Self:
        if not re.fullmatch(r"[1-9]\d?x[1-9]\d?", self.grid) or self.grid == "1x1":
            raise ValueError(f"grid '{self.grid}' is not HEIGHTxWIDTH, two whole numbers from 1 to 99, as in 16x16")
        return self

    @model_validator(mode="after")
    def _settings_apply_to_the_model(self) -> Self:
        if self.model == "ae":
            idle = [name for name in CODEBOOK_SETTINGS if getattr(self, name) != RunConfig.model_fields[name].default]
            if idle or self.init in CODE_INITIALISERS:
                raise ValueError(f"model ae has no codebook, so {', '.join(idle) or 'init ' + self.init} says nothing")
        return self

    @property
    def needs_autoencoder(self) -> bool:
        """Whether `init` takes weights from a trained auto-encoder."""
        return self.init != "random"

    @property
    def grid_shape(self) -> tuple[int, int]:
        """Height and width of the map, in nodes."""
        height, width = self.grid.split("x")
        return int(height), int(width)

    def autoencoder(self, study_seed: int) -> "RunConfig":
        """The run that trains the auto-encoder from which `init` takes weights; the same for a whole study."""
        return RunConfig(
            model="ae",
            init="random",
            epochs=self.ae_epochs,
            ae_epochs=self.ae_epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            precision=self.precision,
            seed=derive_seed(study_seed, "autoencoder"),
        )


class CohortSettings(Frozen):
    """What is done to scans on their way to a model; part of a cohort's fingerprint."""

    voxel_mm: Positive | None = Field(None, description="resample to cubes of this side; none: as they are")
    shape: tuple[int, int, int] | None = Field(None, description="voxels; none: the smallest that holds every brain")
    split_seed: Annotated[int, Field(ge=0)] = 0
    skip_bad_scans: bool = Field(False, description="go on without scans that cannot be used")

    @model_validator(mode="after")
    def _tokens_fill_the_shape(self) -> Self:
        if self.shape and any(side < ENCODER_STRIDE or side % ENCODER_STRIDE for side in self.shape):
            given = "x".join(map(str, self.shape))
            raise ValueError(f"shape {given} has a side that is not a multiple of {ENCODER_STRIDE}, as in 144x176x144")
        return self


def derive_seed(*parts: Any) -> int:
    """A seed of 31 bits decided by `parts` alone, the same on every machine."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def signature(content: Any) -> str:
    """Twelve hexadecimal letters that name `content` (anything that JSON can hold)."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
