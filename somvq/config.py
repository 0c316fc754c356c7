"""What a run and a cohort may be told: frozen, checked when made, unknown keys refused."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from somvq.readings import Choice, Difference, Reading

ENCODER_STRIDE = 16  # voxels of a scan along each side of a token: four convolutions of stride 2

STEPS_AN_EPOCH = 4  # the paper's: 128 scans in batches of 32
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


Model = Literal["ae", "vae", "vqvae", "som", "psom"]
Init = Literal["random", "ae", "vae", "ae-kmeans", "vae-kmeans", "ae-som", "vae-som", "ae-kmeans-codes"]
Topology = Literal["rectangular", "toroidal"]
Neighbours = Literal[4, 8, "gaussian"]
Estimator = Literal["straight-through", "rotation", "direct"]

ESTIMATOR: Difference[Estimator] = Difference(
    "Eq. (2): what x'_q teaches",
    "its reconstruction loss reaches the codes",
    Choice("straight-through: its gradient goes to the encoder, none reaches a code", "straight-through"),
    Choice(
        "codes that learn by gradient are decoded directly (Fortuin et al. 2018), so that it moves them; moving "
        "averages have no gradient, and pass it to the encoder",
        "direct",
    ),
)
HARDENING_WEIGHT: Difference[float] = Difference(
    "Eq. (5): gamma",
    "1 and 10",
    Choice("1, of a sum over all tokens of a batch", 1.0),
    Choice("DPSOM's 20, of a mean over tokens, over the 32 channels: our reconstruction is a mean too", 20 / 32),
)
NEIGHBOUR_WEIGHT: Difference[float] = Difference(
    "Eq. (5): beta",
    "1 and 0.3",
    Choice("1, of a mean over tokens", 1.0),
    Choice("DPSOM's 0.25, over the 32 channels: gamma to beta as 80 to 1", 0.25 / 32),
)
KL_WEIGHT: Difference[float] = Difference(
    "Continuous latent: weight of the KL",
    "a standard VAE loss",
    Choice("1, of a mean over latent elements beside a mean over voxels: 64 times too strong", 1.0),
    Choice("2 latents / voxels = 1/64: with it the loss is the ELBO of a decoder of unit variance", 2 * 32 / 16**3),
)


class Frozen(BaseModel):
    """Settings that are checked once and never change."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class RunConfig(Frozen):
    """Everything that decides a run's numbers, beside its cohort.

    What the model makes no use of is None; what it uses and nobody gave has the model's default in its reading.
    """

    model: Model = Field(description="ae, vae, vqvae, som or psom")
    reading: Reading = Field("corrected", description="what the paper's code did (published) or its sources mean")
    init: Init = Field("random", description="where weights and codes start")
    latent: Literal["plain", "continuous"] | None = Field(
        None, description="continuous: tokens are sampled, as a VAE's (default plain)"
    )
    skip: Literal["none", "concatenate"] = Field("none", description="U-Net connections from encoder to decoder")
    grid: str | None = Field(None, description="nodes of the map, HEIGHTxWIDTH; a VQ-VAE has as many codes")
    topology: Topology | None = Field(None, description="whether the map's edges join")
    neighbours: Neighbours | None = Field(None, description="4, 8, or gaussian: all, by a width that shrinks")
    update: Literal["ema", "gradient"] | None = Field(None, description="how codes learn: moving averages, or the loss")
    alpha: Positive | None = Field(
        None, description="psom: degrees of freedom (eq. 3b); som, vqvae: weight of the codebook term"
    )
    beta: NonNegative | None = Field(None, description="weight of the neighbour term; vqvae: of the commitment")
    beta_som: NonNegative | None = Field(
        None, description="psom: weight of the SOM's neighbour term (eq. 3), which keeps the map in order"
    )
    gamma: NonNegative | None = Field(None, description="weight of the cluster hardening (eq. 5)")
    gamma_q: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="share of the reconstruction that is decoded from the codes (eq. 2)"
    )
    assignment: Literal["hard", "soft"] | None = Field(
        None, description="what gamma_q decodes: nearest codes, or their mean by s"
    )
    estimator: Estimator | None = Field(None, description="how the reconstruction from codes is differentiated")
    commitment: NonNegative | None = Field(None, description="weight of the pull of tokens to their codes")
    revive: Annotated[int, Field(ge=0)] | None = Field(
        None, description="codes with fewer training tokens are moved among them; 0: never"
    )
    swap: Literal["never", "each-epoch"] | None = Field(
        None, description="codes exchange nodes where that makes neighbours of those nearest to the same tokens"
    )
    kl: NonNegative | None = Field(None, description="weight of the KL of a continuous latent")
    epochs: Annotated[int, Field(ge=1)] = Field(40, description="passes over the training set")
    ae_epochs: Annotated[int, Field(ge=1)] = Field(80, description="epochs of the shared auto-encoder that init needs")
    batch_size: Annotated[int, Field(ge=1)] = Field(32, description="scans a step, at most; see batch_size below")
    learning_rate: Positive = Field(0.005, description="of Adam")
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="cosine: the rate rises for an eighth of the run, then falls to 0"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 on a GPU, else float32"
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="decides all that is random in the run")

    @field_validator("grid", mode="before")
    @classmethod
    def _grid_is_a_map(cls, grid: Any) -> Any:
        if grid is not None and (not re.fullmatch(r"[1-9]\d?x[1-9]\d?", str(grid)) or grid == "1x1"):
            raise ValueError(f"grid '{grid}' is not HEIGHTxWIDTH, two whole numbers from 1 to 99, as in 16x16")
        return grid

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        spoken = {name: value for name, value in given.items() if value is not None}
        return {**defaults(spoken), **spoken}

    @model_validator(mode="after")
    def _settings_apply_to_the_model(self) -> Self:
        applicable = defaults(self.model_dump())
        idle = [n for n in MODEL_SETTINGS if n not in applicable and getattr(self, n) is not None]
        if idle and not self.has_codebook and idle[0] != "kl":
            raise ValueError(f"model {self.model} has no codebook, so {', '.join(idle)} says nothing")
        if idle:
            raise ValueError(f"{idle[0]} says nothing here: {self.why_idle(idle[0])}")
        return self

    @model_validator(mode="after")
    def _settings_go_together(self) -> Self:
        if not self.has_codebook and CODES.search(self.init):
            raise ValueError(f"model {self.model} has no codebook, so init {self.init} says nothing")
        if self.init.startswith("vae") and self.latent != "continuous":
            raise ValueError(f"init {self.init} needs latent: continuous, as a VAE has; or take init ae")
        if self.model == "vae" and self.latent == "plain":
            raise ValueError("model vae has a continuous latent; one with a plain latent is model ae")
        if self.model == "ae" and self.latent == "continuous":
            raise ValueError("model ae has a plain latent; one with a continuous latent is model vae")
        if self.reading == "published" and self.latent == "continuous" and self.init.startswith("ae"):
            raise ValueError(f"a published continuous latent has no batch norm for init {self.init}; take init vae")
        if self.assignment == "soft" and self.estimator != "direct":
            raise ValueError(f"assignment soft decodes means of codes, which need no estimator {self.estimator}")
        if self.reading == "published" and self.neighbours not in (None, 4):
            raise ValueError(
                f"the paper's code knows 4 neighbours, so neighbours {self.neighbours} is no published one"
            )
        if self.update == "ema" and self.estimator == "direct":
            raise ValueError("estimator direct teaches codes by gradient, which update ema has none of; take rotation")
        if self.gamma_q == 1 and self.estimator == "direct" and self.assignment != "soft":
            raise ValueError(
                "estimator direct with gamma_q 1 leaves the encoder without a reconstruction to learn from; "
                "give gamma_q below 1, or estimator rotation"
            )
        return self

    def why_idle(self, name: str) -> str:
        """Why this run makes no use of setting `name`."""
        if name == "kl":
            return "latent is plain"
        if self.reading == "published" and name in ("swap", "revive") and (self.has_map or name == "revive"):
            return "the paper's code leaves codes where they are"
        if self.reading == "published" and self.model == "som" and name == "commitment":
            return "the published alpha moves tokens and codes alike"
        if self.reading == "published" and self.model == "psom" and name != "update":
            return "the published psom decodes tokens alone"
        if not self.gamma_q and name in ("estimator", "assignment", "commitment"):
            return "gamma_q is 0, so nothing is decoded from codes"
        if self.update == "ema" and name in ("alpha", "beta"):
            return "codes learn by moving averages, not by a term of the loss (update: gradient)"
        return f"model {self.model} has none"

    @property
    def has_codebook(self) -> bool:
        """Whether tokens have codes."""
        return self.model not in ("ae", "vae")

    @property
    def has_map(self) -> bool:
        """Whether codes lie on a map."""
        return self.model in ("som", "psom")

    @property
    def grid_shape(self) -> tuple[int, int]:
        """Height and width of the map, in nodes."""
        assert self.grid is not None
        height, width = self.grid.split("x")
        return int(height), int(width)

    @property
    def terms(self) -> tuple[str, ...]:
        """The terms of the loss, by the names under which they are logged."""
        share = self.gamma_q or 0.0
        chosen = {
            "reconstruction": share < 1,
            "reconstruction_q": share > 0,
            "kl": self.latent == "continuous",
            "codebook": self.update == "gradient" and (self.model == "vqvae" or self.reading == "corrected"),
            "commitment": self.model in ("vqvae", "som") or (self.model == "psom" and share > 0),
            "hardening": self.model == "psom",
            "order": bool(self.beta_som),
            "neighbours": self.model == "psom" or (self.model == "som" and self.update == "gradient"),
        }
        return tuple(name for name, is_there in chosen.items() if is_there)

    def stages(self, study_seed: int) -> dict[str, "RunConfig"]:
        """The runs that train what `init` starts from, "ae" or "vae"; the same for a whole study."""
        return {model: self.stage(model, study_seed) for model in self.starts_from}

    @property
    def starts_from(self) -> tuple[Literal["ae", "vae"], ...]:
        """The kinds of trained auto-encoder that `init` needs."""
        if self.init == "random":
            return ()
        if self.init.startswith("ae"):
            return ("ae",)
        takes_centres_of_ae = self.reading == "published" and self.init == "vae-kmeans"
        return ("vae", "ae") if takes_centres_of_ae else ("vae",)

    def stage(self, model: Literal["ae", "vae"], study_seed: int) -> "RunConfig":
        """The run that trains the auto-encoder `model`."""
        own = {"reading": self.reading, "kl": self.kl} if model == "vae" else {}  # an AE is the same in both readings
        return RunConfig(
            model=model,
            skip=self.skip,
            epochs=self.ae_epochs,
            ae_epochs=self.ae_epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            schedule="constant",
            precision=self.precision,
            seed=derive_seed(study_seed, "autoencoder"),
            **own,
        )


MODEL_SETTINGS = ("latent", "grid", "topology", "neighbours", "update", "alpha", "beta", "beta_som", "gamma", "gamma_q",
                  "assignment", "estimator", "commitment", "revive", "swap", "kl")  # fmt: skip
OF_GAMMA_Q = {"vqvae": {"estimator"}, "som": {"estimator"}, "psom": {"estimator", "assignment", "commitment"}}
CODES = re.compile("kmeans|som")  # what names initialisers that place codes


def defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a model makes use of, each with what it is where nobody says."""
    model = given.get("model")
    reading: Reading = "published" if given.get("reading") == "published" else "corrected"
    use: dict[str, Any] = {"latent": "continuous" if model == "vae" else "plain"}
    if given.get("latent", use["latent"]) == "continuous":
        use["kl"] = KL_WEIGHT.of(reading)
    if model in ("vqvae", "som", "psom"):
        use |= {"grid": "16x16", "estimator": ESTIMATOR.of(reading)} | ({"revive": 0} if reading == "corrected" else {})
    if model in ("som", "psom"):
        use |= {"topology": "toroidal", "neighbours": 4}
        use |= {"swap": "never"} if reading == "corrected" else {}
    if model == "vqvae":
        use |= {"update": "ema", "beta": 6.0, "gamma_q": 1.0}
        if given.get("update") == "gradient":
            use["alpha"] = 1.0
        if given.get("gamma_q", 1.0) == 1 or given.get("update", "ema") == "ema":
            use["estimator"] = "straight-through"  # eq. (1), where the encoder learns of nothing but x'_q; averages
    if model == "som":
        use |= {"update": "gradient", "gamma_q": 0.2, "commitment": 6.0, "alpha": 6.0, "beta": 1.0}
        if reading == "published":
            del use["commitment"]  # its alpha moves tokens and codes alike
        if given.get("update") == "ema":
            use |= {"commitment": 6.0, "estimator": "straight-through"}
            del use["alpha"], use["beta"]
    if model == "psom":
        use |= {"alpha": 10.0, "beta": NEIGHBOUR_WEIGHT.of(reading), "gamma": HARDENING_WEIGHT.of(reading)}
        if reading == "corrected":
            use |= {"gamma_q": 0.0, "assignment": "hard", "commitment": 0.25, "beta_som": 0.0}
        else:
            del use["estimator"]
    decodes_codes = given.get("gamma_q", use.get("gamma_q", 0))
    return {name: value for name, value in use.items() if decodes_codes or name not in OF_GAMMA_Q.get(str(model), ())}


Split = Literal["train", "val", "test"]
LayoutName = Literal[
    "manifest", "neurite", "oasis1", "oasis2", "freesurfer", "oasis3", "derivatives", "bids", "folder"
]  # in the order in which they are looked for


class CohortSettings(Frozen):
    """Which scans are taken, and what is done to them on their way to a model."""

    layout: LayoutName | None = Field(None, description="how the folder is laid out; none: found by looking")
    table: Path | None = Field(None, description="clinical table (.csv, .tsv, .xlsx); none: the one in the folder")
    cdr: str | None = Field(None, description="scans of people with these clinical dementia ratings, as in 0 or 0,0.5")
    include_blank_cdr: bool = Field(False, description="with cdr: also people who were never rated")
    space: str | None = Field(None, description="of BIDS derivatives: T1w or a template's; none: what most have")
    take: Literal["session", "subject", "every"] = Field("session", description="scans: the first of each, or every")
    orient: str | None = Field(None, description="axes of files whose headers do not say, as in LAS")
    voxel_mm: Positive | None = Field(None, description="resample to cubes of this side; none: as they are")
    shape: tuple[int, int, int] | None = Field(None, description="voxels; none: the smallest that holds every brain")
    normalise: Literal["volume", "brain"] = Field("volume", description="z-scores by mean and deviation of which")
    padding: Literal["background", "mean"] = Field(
        "background", description="what fills up a scan: its background; or its mean, the published reading"
    )
    split: str = Field("128/23/28", description="subjects to train, validate and test with, in proportion")
    split_seed: Annotated[int, Field(ge=0)] = 0
    stratify: str | None = Field(None, description="covariate whose values each split has in proportion")
    strict: bool = Field(False, description="stop where a scan cannot be used, instead of going on without it")

    def decisive(self) -> dict[str, Any]:
        """What is done to scans, whichever they are: part of a cohort's fingerprint, beside the scans."""
        chosen_by = {"layout", "table", "cdr", "include_blank_cdr", "space", "take", "strict"}
        return self.model_dump(mode="json", exclude=chosen_by)

    @field_validator("split")
    @classmethod
    def _split_has_three_parts(cls, split: str) -> str:
        if not re.fullmatch(r"\d+(\.\d+)?(/\d+(\.\d+)?){2}", split) or 0 in [float(s) for s in split.split("/")[:2]]:
            raise ValueError(f"split '{split}' is not TRAIN/VAL/TEST, three numbers of which only the last may be 0")
        return split

    @field_validator("cdr")
    @classmethod
    def _ratings_are_of_the_scale(cls, cdr: str | None) -> str | None:
        if cdr is not None and not set(cdr.split(",")) <= {"0", "0.5", "1", "2", "3"}:
            raise ValueError(f"cdr '{cdr}' is not ratings of 0, 0.5, 1, 2 or 3, as in 0 or 0,0.5")
        return cdr

    @field_validator("orient")
    @classmethod
    def _axes_are_three(cls, orient: str | None) -> str | None:
        if orient is not None and not re.fullmatch("(?=.*[RL])(?=.*[AP])(?=.*[SI])[RLAPSI]{3}", orient):
            raise ValueError(f"orient '{orient}' is not three axes, one each of R or L, A or P, S or I, as in LAS")
        return orient

    @model_validator(mode="after")
    def _blank_ratings_are_added_to_some(self) -> Self:
        if self.include_blank_cdr and self.cdr is None:
            raise ValueError("include-blank-cdr adds those never rated to those of --cdr; give --cdr 0 as well")
        return self

    @model_validator(mode="after")
    def _tokens_fill_the_shape(self) -> Self:
        if self.shape and any(side < ENCODER_STRIDE or side % ENCODER_STRIDE for side in self.shape):
            given = "x".join(map(str, self.shape))
            raise ValueError(f"shape {given} has a side that is not a multiple of {ENCODER_STRIDE}, as in 144x176x144")
        return self


def batch_size(asked: int, scans: int) -> int:
    """Scans a step: as asked, but no more than leaves an epoch the paper's four steps."""
    return max(1, min(asked, scans // STEPS_AN_EPOCH))


def derive_seed(*parts: Any) -> int:
    """A seed of 31 bits decided by `parts` alone, the same on every machine."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def signature(content: Any) -> str:
    """Twelve hexadecimal letters that name `content` (anything that JSON can hold)."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
