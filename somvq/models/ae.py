"""The auto-encoder: the paper's baseline, the body of its other models, and where they take their first weights."""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from somvq.models.convolutions import Decoder, Encoder
from somvq.models.output import Encoded, Output


class AE(nn.Module):
    """Encoder and decoder, nothing between them; with `skip`, U-Net connections past it."""

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
        z, features = self.encoder.with_features(scans)
        return Encoded(z, features if self.decoder.skip else [], {})

    def decode(self, z: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Scans, from `z` or from codes in its place."""
        image: Tensor = self.decoder(z, features)
        return image

    def forward(self, scans: Tensor, rows: Tensor | None = None) -> Output:
        """One pass; `rows` are the scans' places in the training set, none when validating."""
        encoded = self.encode(scans)
        image = self.decode(encoded.z, encoded.features)
        return Output(encoded.z, {"reconstruction": reconstruction_error(image, scans), **encoded.losses}, image)


def reconstruction_error(image: Tensor, scans: Tensor) -> Tensor:
    """Mean squared error per voxel, in float32."""
    return F.mse_loss(image.float(), scans)
