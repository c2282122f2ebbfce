"""Which candidates a contrastive loss looks at: uniform draws, and ARCO's stratified ones, which vary less.

All return indices into 0..n-1, with replacement. The candidates are a flat list (pixels of a class in row-major
order): neighbours in the list are neighbours in the image, so strata of the list are strata of the image.

References:
    You et al., 2023, ARCO. https://arxiv.org/abs/2302.01735
"""

import math
from typing import Literal, Protocol

import torch
from torch import Tensor

GRID = 4
"""ARCO cuts the list, laid out as a square, into 4 x 4 strata."""


class Sampler(Protocol):
    """Anything that draws ``count`` of ``n`` candidates, with replacement: (count,) int64 on the generator's device."""

    def __call__(self, n: int, count: int, *, generator: torch.Generator) -> Tensor: ...


def uniform(n: int, count: int, *, generator: torch.Generator) -> Tensor:
    """Draw each of the ``n`` candidates alike (MONA)."""
    _check(n, count)
    return torch.randint(n, (count,), generator=generator, device=generator.device)


def stratified(
    n: int, count: int, *, generator: torch.Generator, form: Literal["repaired", "official"] = "repaired"
) -> Tensor:
    """Draw as often from each of 4 x 4 strata of the square the list is laid out as (ARCO-SG).

    The square is e x e, e = ceil(sqrt n). Draws fall into strata of equal area, those beyond the list's end are
    replaced by uniform ones, and the order is shuffled: every candidate is as likely as any other.

    ``form="official"`` takes e = round(sqrt n) and cuts at multiples of floor(e / 4), so that the last row and column
    of strata are larger than the others but drawn as often: with e = 7 a candidate of the last rows comes a quarter as
    often as one of the first. What lies beyond e^2 is drawn when topping up only.

    Args:
        n: number of candidates, at least 1.
        count: how many to draw.
        generator: its device is where the indices are made.
        form: see above.

    Raises:
        ValueError: no candidates, or a negative count.
    """
    return _draw(n, count, generator, antithetic=False, form=form)


def antithetic(
    n: int, count: int, *, generator: torch.Generator, form: Literal["repaired", "official"] = "repaired"
) -> Tensor:
    """Draw like ``stratified``, but in pairs mirrored at the middle of their stratum (ARCO-SAG).

    Args:
        n: number of candidates, at least 1.
        count: how many to draw.
        generator: its device is where the indices are made.
        form: as for ``stratified``.

    Raises:
        ValueError: no candidates, or a negative count.
    """
    return _draw(n, count, generator, antithetic=True, form=form)


def _draw(n: int, count: int, generator: torch.Generator, *, antithetic: bool, form: str) -> Tensor:
    _check(n, count)
    official = form == "official"
    side = round(math.sqrt(n)) if official else math.isqrt(n - 1) + 1
    each = int(count * side**2 / n) // GRID**2
    if official and side < GRID:  # the released code falls back to strata of a line, which are empty here too
        return uniform(n, count, generator=generator)
    pairs = each // 2 if antithetic else each
    place = torch.rand(2, GRID, GRID, pairs, generator=generator, device=generator.device)
    if antithetic:
        place = torch.cat((place, 1 - place), -1)
    if official:
        edges = torch.tensor([side // GRID * k for k in range(GRID)] + [side], device=place.device)
        start, length = edges[:-1], edges.diff()
    else:
        start = torch.arange(GRID, device=place.device) * side / GRID
        length = torch.full_like(start, side / GRID)
    row = (start[:, None, None] + place[0] * length[:, None, None]).floor().long().clamp(max=side - 1)
    column = (start[:, None] + place[1] * length[:, None]).floor().long().clamp(max=side - 1)
    drawn = (row * side + column).flatten()
    drawn = drawn[drawn < n]
    drawn = drawn[torch.randperm(len(drawn), generator=generator, device=drawn.device)][:count]
    drawn = torch.cat((drawn, uniform(n, count - len(drawn), generator=generator)))
    return drawn[torch.randperm(count, generator=generator, device=drawn.device)]


def _check(n: int, count: int) -> None:
    if n < 1 or count < 0:
        raise ValueError(
            f"there must be candidates to draw from: found {n} candidates and a count of {count}."
        )
