"""The variational auto-encoder, and with it the paper's "continuous" latents (Kingma and Welling 2014)."""

from collections.abc import Callable

import torch
from torch import Tensor

from somvq.models.ae import AE
from somvq.models.convolutions import Encoder
from somvq.models.output import Encoded
from somvq.models.passes import in_passes
from somvq.readings import Choice, Difference, Reading


def half_variance_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """What the paper's code calls KL, mean over elements: least, 0.3466, at variance 1/2; the KL's least is 0 at 1."""
    return (log_variance.exp() + mean.square() - log_variance / 2 - 1 / 2).mean()


def standard_normal_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) in nats, mean over elements."""
    return ((log_variance.exp() + mean.square() - log_variance - 1) / 2).mean()


KL: Difference[Callable[[Tensor, Tensor], Tensor]] = Difference(
    "Continuous latent: the KL",
    "a standard VAE KL divergence loss",
    Choice("mean(exp(lv) + mu^2 - lv/2 - 1/2): least at variance 1/2", half_variance_kl),
    Choice("mean(exp(lv) + mu^2 - lv - 1) / 2: least at the standard normal", standard_normal_kl),
)
SAMPLES_IN_EVALUATION: Difference[bool] = Difference(
    "Continuous latent: evaluation",
    "silent",
    Choice("tokens are sampled in evaluation too", True),
    Choice("the mean is decoded, and picks the codes", False),
)
BATCH_NORM: Difference[bool] = Difference(
    "VAE against AE",
    "the VAE does surprisingly poorly",
    Choice("the VAE has no batch norm, the AE it is compared with has it", False),
    Choice("both have it", True),
)


class VAE(AE):
    """Two encoders, of mean and of log-variance; tokens are sampled between them, decoded as an AE's.

    Args:
        kl: weight of the KL beside the reconstruction.
        reading: what the KL is, whether there is batch norm, and whether evaluation samples.
        skip: U-Net connections, from the encoder of the mean.
        decoder_batch_norm: whether the decoder has it; none: as the encoders.
    """

    def __init__(self, *, kl: float, reading: Reading, skip: bool = False, decoder_batch_norm: bool | None = None):
        batch_norm = BATCH_NORM.of(reading)
        super().__init__(
            skip=skip, batch_norm=(batch_norm, batch_norm if decoder_batch_norm is None else decoder_batch_norm)
        )
        self.log_variance = Encoder(batch_norm=batch_norm)
        self.kl, self.reading = kl, reading

    @property
    def weights(self) -> dict[str, float]:
        """How much each term of the loss counts."""
        return {"reconstruction": 1.0, "kl": self.kl}

    def encode(self, scans: Tensor) -> Encoded:
        """Sampled tokens, or their means in evaluation; float32, as the exponential needs."""
        mean, features, losses = super().encode(scans)
        [log_variance] = in_passes(self, lambda part: [self.log_variance(part)], [scans], self.scans_at_once)
        mean, log_variance = mean.float(), log_variance.float()
        z = mean
        if self.training or SAMPLES_IN_EVALUATION.of(self.reading):
            z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return Encoded(z, features, {**losses, "kl": KL.of(self.reading)(mean, log_variance)})
