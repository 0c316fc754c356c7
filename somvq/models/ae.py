"""The auto-encoder: the paper's baseline, and where its other models take their first weights."""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn import functional as F

from somvq.models.convolutions import build_decoder, build_encoder
from somvq.models.output import Output


class AE(nn.Module):
    """Encoder and decoder, nothing between them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = build_encoder()
        self.decoder = build_decoder()

    @property
    def weights(self) -> dict[str, float]:
        """How much each term of the loss counts."""
        return {"reconstruction": 1.0}

    def start_epoch(self, batches: Iterable[Tensor]) -> None:
        """Called before an epoch with the training set in order; an AE needs nothing of it."""

    def forward(self, scans: Tensor, rows: Tensor | None = None) -> Output:
        """One pass; `rows` are the scans' places in the training set, none when validating."""
        z = self.encoder(scans)
        reconstruction = self.decoder(z)
        return Output(reconstruction, z, {"reconstruction": F.mse_loss(reconstruction.float(), scans)})
