"""Memory of earlier embeddings that knows where each was cut from: patches of the same tissue are no negatives."""

import torch
from torch import Tensor, nn

from handful.networks.bank import Bank


class Memory(nn.Module):
    """Hold the last ``capacity`` embeddings and the box each shows.

    A box is seven numbers: the case, the first voxel along D, H, W, and the one after the last.

    Example:
        >>> import torch
        >>> memory = Memory(8, 2)
        >>> memory.enqueue(torch.eye(2), torch.tensor([[0, 0, 0, 0, 4, 4, 4], [1, 0, 0, 0, 4, 4, 4]]))
        >>> z, box = memory.valid
        >>> overlap(torch.tensor([[0, 3, 3, 3, 7, 7, 7]]), box)
        tensor([[ True, False]])
    """

    def __init__(self, capacity: int, width: int) -> None:
        super().__init__()
        self.embeddings = Bank(capacity, width)
        self.boxes = Bank(capacity, 7, dtype=torch.int64)

    @property
    def valid(self) -> tuple[Tensor, Tensor]:
        """The embeddings held (n, E) and their boxes (n, 7)."""
        return self.embeddings.valid, self.boxes.valid

    def with_batch(self, z: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings of this batch, then those held, (B + n, E), and their boxes (B + n, 7)."""
        held, boxes = self.valid
        return torch.cat([z.detach(), held]), torch.cat([box, boxes])

    @torch.no_grad()
    def enqueue(self, z: Tensor, box: Tensor) -> None:
        """Append embeddings (n, E) and their boxes (n, 7); the oldest make room."""
        self.embeddings.enqueue(z)
        self.boxes.enqueue(box)


def overlap(box: Tensor, other: Tensor) -> Tensor:
    """Return (N, M) bool: which boxes (N, 7) and (M, 7) are of one case and share a voxel."""
    low = torch.maximum(box[:, None, 1:4], other[:, 1:4])
    high = torch.minimum(box[:, None, 4:], other[:, 4:])
    return (box[:, None, 0] == other[:, 0]) & (high > low).all(2)
