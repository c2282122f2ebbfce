"""An encoder and its head as one module: what students and teachers of image embeddings are made of."""

from torch import Tensor, nn


class Embedder(nn.Module):
    """Map images (B, C, *S) to embeddings (B, E) in float32, whatever precision the encoder works in.

    Args:
        encoder: image -> feature maps, finest first.
        head: the deepest of them -> (B, E).
    """

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, image: Tensor) -> Tensor:
        embedding: Tensor = self.head(self.encoder(image)[-1])
        return embedding.float()
