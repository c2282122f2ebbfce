"""Contrast anchors with all keys in one pass, loss and gradient together: for few anchors, and for other forms.

``streamed`` computes every similarity twice, because the gradient needs the sums of the exponentials. When few
embeddings are anchors, a block of anchors with all N keys is small enough to be kept instead: one product for the
similarities, one exponential, and, when the block's sums are known, two products for the gradient. The gradient of
the loss, which is one number, is ready before the backward pass: that multiplies it by what comes from above.

A block of whole rows also gives the sums over an anchor's own class and over the others, O and N, of which every
supervised form is a function (P positives, s the mean of their cosines, t the temperature):

    outside     log(O + N) - s / t          the mean of the positives' logarithms: L_out, and SSCL's code
    inside      log(O + N) - log(O / P)     the logarithm of their mean: L_in
    printed     (log N - log O) / P         the equation printed in SSCL's paper
    negatives   log N - s / t               no positives in the denominator

References:
    Khosla et al., 2020, supervised contrastive learning. https://arxiv.org/abs/2004.11362
    Hu et al., 2021, semi-supervised contrastive learning (SSCL). https://arxiv.org/abs/2109.07407
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

Form = Literal["outside", "inside", "printed", "negatives"]
FORMS: tuple[str, ...] = get_args(Form)

# Anchors of a block, which is kept: 80 x N float32 are two and a half times embeddings of width 32. Products are
# slower with fewer anchors; with more, the block leaves the caches.
BLOCK, BLOCK_CUDA = 80, 1024
# Keys of one operation, for every thread: 80 x 4096 float32 are 1.3 MB, still near when the next operation comes.
KEYS, KEYS_CUDA = 4096, 65536
# exp(40) N stays far from the limits of float32; colder than 1/40, an anchor's largest similarity is taken out first.
LARGEST_SCALE = 40.0
LN_2 = math.log(2)
# The parts of a row. Where the form does not tell classes apart, all keys are in the first.
OTHERS, OWN = 0, 1


def contrast(
    z: Tensor, anchor: Tensor, member: Tensor, *, scale: float, form: Form = "outside", rounded: bool = False
) -> Tensor:
    """Return the mean cost of the anchors, which can be differentiated once.

    Args:
        z: (N, E) embeddings on the unit sphere.
        anchor: (M,) the rows of z that are anchors, rising: whole classes of two or more.
        member: (N,) class of each row, from 0; rising, unless the form is "outside".
        scale: 1 / temperature.
        form: as above; "printed" and "negatives" need two classes.
        rounded: whether the products' factors are rounded to bfloat16 (they are summed in float32).

    Raises:
        RuntimeError: in a backward pass with ``create_graph=True``.
    """
    wanted = z.requires_grad and torch.is_grad_enabled()
    loss: Tensor = torch.ops.handful.contrast_rows(z, anchor, member, scale, form, rounded, wanted)[0]
    return loss


def loss_and_gradient(
    z: Tensor, anchor: Tensor, member: Tensor, scale: float, form: Form, rounded: bool, wanted: bool
) -> tuple[Tensor, Tensor]:
    """Return the mean cost of the anchors and its gradient (N, E), which is empty unless ``wanted``."""
    count, kind = len(anchor), member[anchor]
    size = torch.bincount(member)
    positives = (size[kind] - 1).to(z.dtype)
    cost, gradient = z.new_zeros(()), torch.zeros_like(z) if wanted else z.new_empty(0)
    if form in ("outside", "negatives"):
        # the mean cosine with the positives needs no pairs: it is that with the class sum, less the anchor's own
        own = z[anchor]
        total = z.new_zeros(len(size), z.shape[1]).index_add_(0, kind, own)[kind]
        cost -= scale * (((own * total).sum(1) - own.square().sum(1)) / positives).sum()
        if wanted:
            # each pair is met from both its ends; the lengths are constant on the sphere
            gradient.index_add_(0, anchor, total / positives[:, None], alpha=-2 * scale / count)
    z = z.bfloat16().to(z.dtype) if rounded else z.contiguous()
    on_cpu = z.device.type == "cpu"
    rows, step = (BLOCK, KEYS * torch.get_num_threads()) if on_cpu else (BLOCK_CUDA, KEYS_CUDA)
    borders = z.new_empty(0, dtype=torch.int64)
    if form != "outside":
        # blocks and tiles end where a large class does, so that in few of them classes have to be told apart
        ends, large = size.cumsum(0), size >= rows
        borders = torch.cat((ends[large], (ends - size)[large]))
    edges = _edges(len(z), step, borders)
    kept = z.new_empty(len(z) * min(rows, count))
    for start, stop in pairwise(_edges(count, rows, torch.searchsorted(anchor, borders))):
        block, some = anchor[start:stop], slice(start, stop)
        anchors = z[block]
        tiles = list(_tiles(z, block, None if form == "outside" else member, edges, kept, gradient))
        log_sums, inverse, near = _sums(tiles, anchors, scale, wanted)
        costs, slopes = _costs(form, log_sums, positives[some])
        cost += costs.sum()
        if wanted:
            weights = (slopes * inverse).mul_(scale / count)[:, :, None]
            gradient.index_add_(0, block, (weights * near).sum(0))
            _add_to_keys(tiles, weights * anchors)
    return cost / count, gradient


class Tile(NamedTuple):
    """A block of anchors with some of the keys."""

    e: Tensor  # (keys, anchors): similarities, then their exponentials
    keys: Tensor  # (keys, E)
    gradient: Tensor | None  # (keys, E), where the keys' part of the gradient is summed up
    itself: tuple[Tensor, Tensor] | None  # where anchors meet themselves
    own: Tensor | bool  # where anchors meet their class: nowhere, everywhere, or as the mask says


def _edges(n: int, step: int, borders: Tensor) -> list[int]:
    """Return where pieces of 0..n begin and end: every ``step``, and at the borders."""
    return sorted({*range(0, n, step), *borders.tolist(), n})


def _tiles(
    z: Tensor, block: Tensor, member: Tensor | None, edges: list[int], kept: Tensor, gradient: Tensor
) -> Iterator[Tile]:
    """Yield the tiles of a block of anchors; without ``member`` classes are not told apart."""
    # keys before anchors: this way round products with a narrow second factor run at the full rate
    e = kept[: len(z) * len(block)].view(len(z), len(block))
    cuts = torch.searchsorted(block, torch.tensor(edges, device=z.device)).tolist()
    for k, (start, stop) in enumerate(pairwise(edges)):
        itself = None
        if cuts[k] < cuts[k + 1]:
            here = torch.arange(cuts[k], cuts[k + 1], device=z.device)
            itself = block[here] - start, here
        yield Tile(
            e[start:stop],
            z[start:stop],
            gradient[start:stop] if len(gradient) else None,
            itself,
            False if member is None else _own(member[start:stop], member[block]),
        )


def _own(keys: Tensor, anchors: Tensor) -> Tensor | bool:
    """Return where classes of keys (n,) and of anchors (m,) agree; both rise, so their ends often say it for all."""
    if keys[-1] < anchors[0] or keys[0] > anchors[-1]:
        return False
    if keys[0] == anchors[-1] and keys[-1] == anchors[0]:
        return True
    return keys[:, None] == anchors


def _sums(tiles: list[Tile], anchors: Tensor, scale: float, wanted: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Fill the tiles with exponentials and sum over the keys.

    Returns:
        The logarithms (2, m) of the sums over both parts of the keys; of the exponentials as they are in the tiles, the
        sums' inverse (2, m) and the sums (2, m, E) of the keys so weighted. Of an empty part: -inf, 0, 0.
    """
    powers = (anchors * (scale / LN_2)).T
    sums, near = anchors.new_zeros(2, len(anchors)), anchors.new_zeros(2, *anchors.shape)
    cold = scale > LARGEST_SCALE
    peaks = torch.full_like(sums, -math.inf if cold else 0.0)
    if cold:
        for tile in tiles:
            for part, some in _parts(_similarities(tile, powers), tile.own, -math.inf):
                torch.maximum(peaks[part], some.amax(0), out=peaks[part])
    for tile in tiles:
        e = tile.e.sub_(_choose(peaks, tile.own)) if cold else _similarities(tile, powers)
        for part, some in _parts(e.exp2_(), tile.own, 0):
            sums[part].addmv_(some.T, some.new_ones(len(some)))
            if wanted:
                near[part].addmm_(some.T, tile.keys)
    return (sums.log2() + peaks) * LN_2, sums.reciprocal().masked_fill_(sums == 0, 0), near


def _add_to_keys(tiles: list[Tile], anchors: Tensor) -> None:
    """Add the anchors (2, m, E), weighted for both parts, to the keys' gradient."""
    # the last tiles to be filled are the first to be read, and the last read the first to be filled again
    for tile in reversed(tiles):
        assert tile.gradient is not None
        for part, some in _parts(tile.e, tile.own, 0):
            tile.gradient.addmm_(some, anchors[part])


def _similarities(tile: Tile, powers: Tensor) -> Tensor:
    """Fill a tile with similarities as powers of two, -inf where an anchor meets itself."""
    torch.mm(tile.keys, powers, out=tile.e)
    if tile.itself is not None:
        tile.e[tile.itself] = -math.inf
    return tile.e


def _parts(x: Tensor, own: Tensor | bool, fill: float) -> Iterator[tuple[int, Tensor]]:
    """Yield the part a tile belongs to, or both parts of a tile that holds both, the other one's places filled."""
    if isinstance(own, bool):
        yield (OWN if own else OTHERS), x
    else:
        yield OWN, x.masked_fill(~own, fill)
        yield OTHERS, x.masked_fill(own, fill)


def _choose(values: Tensor, own: Tensor | bool) -> Tensor:
    """Return the value of each anchor (2, m) for the part that the places of a tile belong to."""
    if isinstance(own, bool):
        return values[OWN if own else OTHERS]
    return torch.where(own, values[OWN], values[OTHERS])


def _costs(form: Form, log_sums: Tensor, positives: Tensor) -> tuple[Tensor, Tensor]:
    """Return each anchor's cost but for the mean cosine, and its derivatives (2, m) by the logarithms of the sums."""
    others, own = log_sums
    if form == "inside":
        total = torch.logaddexp(others, own)
        share = torch.exp(others - total)
        return total - own + positives.log(), torch.stack((share, -share))
    if form == "printed":
        return (others - own) / positives, torch.stack((1 / positives, -1 / positives))
    return others, torch.stack((torch.ones_like(others), torch.zeros_like(others)))


def refuse_a_graph() -> None:
    """Raise ``RuntimeError`` in a backward pass that is to be differentiated itself."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the pixel contrast can be differentiated once, its gradient has no graph: call backward or autograd.grad "
            "without create_graph=True."
        )


def _forward(z: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    with torch.autocast(z.device.type, enabled=False):
        return loss_and_gradient(z, *settings)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    refuse_a_graph()
    (gradient,) = ctx.saved_tensors
    return grad * gradient, None, None, None, None, None, None


def _shapes(z: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    return z.new_empty(()), torch.empty_like(z) if settings[-1] else z.new_empty(0)


# One operator, as in ``streamed``: torch.compile does not look inside.
_LIBRARY: Any = torch.library.Library("handful", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "contrast_rows(Tensor z, Tensor anchor, Tensor member, float scale, str form, bool rounded, bool wanted) "
    "-> (Tensor, Tensor)"
)
_LIBRARY.impl("contrast_rows", _forward, "CompositeExplicitAutograd")
torch.library.register_fake("handful::contrast_rows", _shapes, lib=_LIBRARY)
torch.library.register_autograd("handful::contrast_rows", _differentiate, setup_context=_save, lib=_LIBRARY)
