"""The auto-encoder: the paper's baseline, the body of its other models, and where they take their first weights."""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from somvq.models.convolutions import Decoder, Encoder
from somvq.models.output import Encoded, Output
from somvq.models.passes import in_passes


class AE(nn.Module):
    """Encoder and decoder, nothing between them; with `skip`, U-Net connections past it."""

    scans_at_once: int | None = None  # that its convolutions see, of a larger batch (passes.py); none: all of them

    def __init__(self, *, skip: bool = False, batch_norm: tuple[bool, bool] = (True, True)):
        super().__init__()
        of_encoder, of_decoder = batch_norm
        self.encoder = Encoder(batch_norm=of_encoder)
        self.decoder = Decoder(batch_norm=of_decoder, skip=skip)

    @property
    def weights(self) -> dict[str, float]:
        """How much each term of the loss counts."""
        return {"reconstruction": 1.0}

    def start_epoch(self, batches: Iterable[Tensor], progress: float = 0.0) -> None:
        """Called before an epoch with the training set in order; an AE needs nothing of it."""

    def encode(self, scans: Tensor) -> Encoded:
        """Tokens and features of `scans`."""
        z, *features = in_passes(self, self.convolve, [scans], self.scans_at_once)
        return Encoded(z, features, {})

    def convolve(self, scans: Tensor) -> list[Tensor]:
        """Tokens of `scans`, and what skip connections carry past them."""
        z, features = self.encoder.with_features(scans)
        return [z, *features] if self.decoder.skip else [z]

    def decode(self, z: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Scans, from `z` or from codes in its place."""
        image: Tensor = self.decoder(z, features)
        return image

    def reconstruct(self, z: Tensor, features: Sequence[Tensor], scans: Tensor) -> tuple[Tensor | None, Tensor]:
        """`scans` decoded from `z`, and their mean squared error.

        Training in passes leaves the images out: that they are not all in memory is what passes are for.
        """
        if self.scans_at_once is None or len(scans) <= self.scans_at_once:
            image = self.decode(z, features)
            return image, reconstruction_error(image, scans)
        errors, *images = in_passes(self, self.score, [scans, z, *features], self.scans_at_once)
        return (images[0] if images else None), errors.mean()

    def score(self, scans: Tensor, z: Tensor, *features: Tensor) -> list[Tensor]:
        """The squared error of each of `scans`, (B,), and in evaluation the images."""
        image = self.decode(z, features)
        error = F.mse_loss(image.float(), scans, reduction="none").flatten(1).mean(1)
        return [error] if self.training else [error, image]

    def forward(self, scans: Tensor, rows: Tensor | None = None) -> Output:
        """One pass; `rows` are the scans' places in the training set, none when validating."""
        encoded = self.encode(scans)
        image, error = self.reconstruct(encoded.z, encoded.features, scans)
        return Output(encoded.z, {"reconstruction": error, **encoded.losses}, image)


def reconstruction_error(image: Tensor, scans: Tensor) -> Tensor:
    """Mean squared error per voxel, in float32."""
    return F.mse_loss(image.float(), scans)
