"""Memory of earlier embeddings: a queue of fixed capacity that forgets the oldest, and one such queue a class."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from handful.errors import NotFinite


class Bank(nn.Module):
    """Hold the last ``capacity`` rows that were enqueued, on the module's device, never with a gradient.

    A ring: a new row takes the place of the oldest. Losses take ``valid`` (or ``in_order()``) as an argument.

    Attributes:
        rows: (capacity, *shape); only the first ``len(bank)`` places hold anything.

    Example:
        >>> import torch
        >>> bank = Bank(3, 1)
        >>> bank.enqueue(torch.tensor([[1.0], [2], [3], [4]]))
        >>> bank.in_order().flatten().tolist()
        [2.0, 3.0, 4.0]
    """

    rows: Tensor

    def __init__(self, capacity: int, *shape: int, dtype: torch.dtype = torch.float32) -> None:
        """Make an empty bank for rows of ``shape``: (E,), or (P, E) for windows.

        Raises:
            ValueError: a capacity below 1.
        """
        super().__init__()
        if capacity < 1:
            raise ValueError(f"the capacity of a bank must be at least 1, found {capacity}.")
        self.register_buffer("rows", torch.zeros(capacity, *shape, dtype=dtype))
        # Numbers of the host: as buffers, every question after the length would wait for the device.
        self._count = self._next = 0

    def __len__(self) -> int:
        return self._count

    @property
    def capacity(self) -> int:
        return len(self.rows)

    @property
    def valid(self) -> Tensor:
        """The rows held, (len, *shape), in no particular order: a view, overwritten by later calls of ``enqueue``."""
        return self.rows[: self._count]

    def in_order(self) -> Tensor:
        """Return a copy of the rows held, the oldest first."""
        start = self._next if self._count == self.capacity else 0
        return self.valid.roll(-start, 0)

    @torch.no_grad()
    def enqueue(self, rows: Tensor, *, gather: Callable[[Tensor], Tensor] | None = None) -> None:
        """Append rows (n, *shape), n of any size; of more than the capacity the last ones stay.

        Backward through a loss of ``valid`` must come first or use a copy: banks are detached inside the losses, but
        a product with them still needs their values. Losses normalise, which copies.

        Args:
            rows: of the bank's shape; converted to its type and device.
            gather: brings together the rows of all processes, (n, *shape) to (N, *shape), the same on each.

        Raises:
            ValueError: rows of another shape.
            NotFinite: NaN among them.
        """
        if rows.shape[1:] != self.rows.shape[1:] or rows.ndim != self.rows.ndim:
            raise ValueError(
                f"this bank holds rows of {tuple(self.rows.shape[1:])}, found an array of {tuple(rows.shape)}."
            )
        rows = rows.detach().to(self.rows)
        if gather is not None:
            rows = gather(rows)
        if rows.isnan().any():
            raise NotFinite("NaN must not enter a bank: it would stay for many steps. The network diverged.")
        rows = rows[-self.capacity :]
        place = (torch.arange(len(rows), device=self.rows.device) + self._next) % self.capacity
        self.rows[place] = rows
        self._next = (self._next + len(rows)) % self.capacity
        self._count = min(self._count + len(rows), self.capacity)

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self._count, self._next])

    def set_extra_state(self, state: Any) -> None:
        self._count, self._next = (int(number) for number in state)


class ClassBanks(nn.Module):
    """Hold one ``Bank`` a class, each with its own capacity; a pixel may enter several.

    MONA keeps 50,000 rows of background and 30,000 of every other class. Banks start empty, where the released code
    starts with a row of zeros (2D) or noise (3D): enqueue such a row to begin like it.
    """

    def __init__(self, capacities: Sequence[int], width: int, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.banks = nn.ModuleList(Bank(capacity, width, dtype=dtype) for capacity in capacities)

    def __len__(self) -> int:
        return len(self.banks)

    def __getitem__(self, label: int) -> Bank:
        bank = self.banks[label]
        assert isinstance(bank, Bank)
        return bank

    @property
    def valid(self) -> list[Tensor]:
        """The rows of each class."""
        return [self[label].valid for label in range(len(self))]

    @property
    def sizes(self) -> list[int]:
        """The number of rows of each class."""
        return [len(self[label]) for label in range(len(self))]

    @torch.no_grad()
    def enqueue(
        self, z: Tensor, keys: Tensor, *, gather: Callable[[Tensor], Tensor] | None = None
    ) -> list[int]:
        """Append the embeddings at the pixels of each class's mask, image by image and row-major.

        Args:
            z: (B, E, *S).
            keys: (B, K, *S) bool, for example of ``losses.bank_keys``.
            gather: see ``Bank.enqueue``.

        Returns:
            The number of keys this process had for each class.
        """
        counts = []
        for label, rows in enumerate(self.rows_at(z, keys, every=gather is not None)):
            self[label].enqueue(rows, gather=gather)
            counts.append(int(keys[:, label].sum()))
        return counts

    def rows_at(self, z: Tensor, keys: Tensor, *, every: bool = False) -> list[Tensor]:
        """Return for each class the embeddings (n, E) of z (B, E, *S) at the pixels of its mask, keys (B, K, *S).

        Only the last ones, up to the bank's capacity, unless ``every``; never with a gradient.
        """
        if keys.shape[1] != len(self) or keys.shape[:1] + keys.shape[2:] != z.shape[:1] + z.shape[2:]:
            raise ValueError(
                f"keys must be (B, {len(self)}, *S) for z {tuple(z.shape)}, found {tuple(keys.shape)}."
            )
        flat, size, rows = z.detach().flatten(2), math.prod(z.shape[2:]), []
        for label in range(len(self)):
            pixels = keys[:, label].flatten().nonzero()[:, 0]
            pixels = pixels if every else pixels[-self[label].capacity :]
            rows.append(flat[pixels // size, :, pixels % size])
        return rows

    def with_rows(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Return for each class what its bank will hold once ``rows`` (n, E) are enqueued, without doing so."""
        return [
            torch.cat([self[label].in_order(), own.to(self[label].rows)])[-self[label].capacity :]
            for label, own in enumerate(rows)
        ]
