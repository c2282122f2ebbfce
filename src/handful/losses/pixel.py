"""Pixel contrast: embeddings of pixels of one class attract each other, over all pixels of the batch.

The published losses keep every fourth pixel or cut the maps into blocks, because N pixels seemed to need an N x N
matrix. Here the loss over all pixels is exact and its memory linear in N; the approximations are kept to compare with.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import product

import torch
from torch import Tensor

from handful.batches import IGNORE
from handful.losses import checks
from handful.losses.embeddings import unit
from handful.losses.streamed import Products, supervised_contrast
from handful.losses.streamed_rows import FORMS, Form


def pixel_contrast(
    z: Tensor,
    labels: Tensor | None,
    *,
    temperature: float,
    stride: int | None = None,
    block: int | None = None,
    background: int = 0,
    background_anchors: bool = False,
    ignore: int = IGNORE,
    products: Products = "float32",
    form: Form = "outside",
) -> Tensor:
    """Return the contrast between all pixels of all views and images: exact, in memory linear in their number N.

    Pixel x with P(x) other pixels of its class, s the cosine of two embeddings and t the temperature:

        l_x = -1/|P(x)|  sum_{p in P(x)}  [ s_xp / t - log sum_{k != x} exp(s_xk / t) ]

    and the loss is the mean over the anchors: the pixels that are not background and whose class has another pixel
    in the batch. Background pixels are in the denominators only, unless ``background_anchors``. Without labels, every
    pixel is an anchor and its positives are the same pixel of the other views of its image.

    Without anchors (all background, a class with one pixel) the loss is 0 and can still be differentiated. The loss
    cannot approach 0 otherwise: an anchor costs at least ln |P(x)|, and ln(N - 1) when all embeddings are equal.

    This is what the published code computes, not the equation the paper prints (``form="printed"``: a log of a sum
    over positives, with a denominator of negatives only), which can be negative and shrinks with |P|.

    The loss can be differentiated once: its gradient has no graph.

    Args:
        z: (B, V, C, *S) embeddings of V views of B images, of any length; scaled to length one inside.
        labels: (B, V, *S) integer classes, or None for self-supervision (V >= 2, views aligned pixel by pixel).
        temperature: positive; 0.1 in SSCL.
        stride: contrast only the pixels 0, s, 2s, ... of every axis; 4 in the paper.
        block: contrast only within tiles of this side (over all images and views), mean over the tiles that hold an
            anchor; what is left over at the end of an axis is dropped; 16 in the paper. Not together with ``stride``.
        background: the class of background.
        background_anchors: whether background pixels are anchors like all others.
        ignore: pixels with this label take no part at all.
        products: "bfloat16" rounds the factors of the products to bfloat16 and sums in float32.
        form: which supervised contrast. With O and N the sums of exponentials over the own class and the others:
            "outside", the equation above; "inside", log(O + N) - log(O / |P|), the logarithm of the positives' mean
            instead of the mean of their logarithms; "printed", log(N / O) / |P|, the equation of SSCL's paper;
            "negatives", as "outside" with N for the denominator. The last two are 0 where there is only one class.

    Returns:
        A scalar, float64 for float64 embeddings and float32 otherwise.

    Raises:
        ValueError: shapes that do not fit, embeddings that are not floating point or not finite, labels that are not
            integers, an unknown ``products`` or ``form``, settings out of range.
        RuntimeError: in a backward pass with ``create_graph=True``.

    Example:
        >>> z = torch.randn(2, 2, 32, 64, 48, requires_grad=True)
        >>> labels = torch.randint(0, 3, (2, 1, 64, 48)).expand(2, 2, 64, 48)
        >>> pixel_contrast(z, labels, temperature=0.1).backward()

    References:
        Hu et al., 2021, semi-supervised contrastive learning (SSCL). https://arxiv.org/abs/2109.07407
        Khosla et al., 2020, supervised contrastive learning. https://arxiv.org/abs/2004.11362
    """
    z = checked(z, labels, temperature=temperature, products=products)
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, found {form!r}.")
    if stride is not None and block is not None:
        raise ValueError(f"stride ({stride}) and block ({block}) are two approximations: give one of them.")
    if stride is not None:
        z, labels = strided(z, labels, stride)
    losses = []
    for z_tile, labels_tile in _tiles(z, labels, block):
        with torch.autocast(z.device.type, enabled=False):
            pixel, group, anchor = pixels(
                z_tile,
                labels_tile,
                background=background,
                background_anchors=background_anchors,
                ignore=ignore,
            )
            loss = None
            if anchor.any():
                loss = supervised_contrast(
                    unit(pixel), group, anchor, temperature=temperature, products=products, form=form
                )
        if loss is not None:
            losses.append(loss)
    return torch.stack(losses).mean() if losses else checks.nothing(z)


def pixels(
    z: Tensor, labels: Tensor | None, *, background: int, background_anchors: bool, ignore: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pixels that take part: embeddings (N, C), group (N,) of mutual positives, anchor (N,) bool."""
    pixel = z.movedim(2, -1).flatten(0, -2)
    if labels is None:
        image, views, _, *size = z.shape
        place = torch.arange(image * math.prod(size), device=z.device).view(image, 1, -1)
        group = place.expand(-1, views, -1).flatten()
        return pixel, group, torch.ones_like(group, dtype=torch.bool)
    group = labels.to(z.device).flatten()
    kept = group != ignore
    if not kept.all():
        pixel, group = pixel[kept], group[kept]
    anchor = torch.ones_like(group, dtype=torch.bool) if background_anchors else group != background
    return pixel, group, anchor


def strided(z: Tensor, labels: Tensor | None, stride: int) -> tuple[Tensor, Tensor | None]:
    """Return the pixels 0, s, 2s, ... of every axis."""
    _check_side(stride, "stride")
    return _window(z, labels, [slice(None, None, stride)] * (z.ndim - 3))


def checked(z: Tensor, labels: Tensor | None, *, temperature: float, products: str) -> Tensor:
    """Return the embeddings in float32 at least, after refusing in words what cannot be contrasted."""
    precise = checks.embeddings("z", z, "B V C *S")
    checks.temperature(temperature)
    if products not in ("float32", "bfloat16"):
        raise ValueError(f"products must be 'float32' (exact) or 'bfloat16', found {products!r}.")
    if products == "bfloat16" and z.dtype == torch.float64:
        raise ValueError(
            "products='bfloat16' would throw away the precision of float64 embeddings: give float32."
        )
    if labels is None:
        if z.shape[1] < 2:
            raise ValueError(
                f"without labels a pixel's positive is the same pixel of another view: z needs at least two views, "
                f"found shape {tuple(z.shape)}."
            )
        return precise
    if labels.shape != (*z.shape[:2], *z.shape[3:]):
        raise ValueError(
            f"labels must be (B, V, *S) for z (B, V, C, *S), so {(*z.shape[:2], *z.shape[3:])} for z "
            f"{tuple(z.shape)}, found {tuple(labels.shape)}."
        )
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels must be integer classes, found {labels.dtype}.")
    return precise


def _tiles(z: Tensor, labels: Tensor | None, block: int | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield the whole map, or its tiles of side ``block`` without the remainders."""
    if block is None:
        yield z, labels
        return
    _check_side(block, "block")
    size = z.shape[3:]
    if min(size) < block:
        raise ValueError(
            f"block must fit into the map: found block {block} and a map of {tuple(size)} pixels."
        )
    for corner in product(*(range(0, side - block + 1, block) for side in size)):
        yield _window(z, labels, [slice(start, start + block) for start in corner])


def _window(z: Tensor, labels: Tensor | None, window: Sequence[slice]) -> tuple[Tensor, Tensor | None]:
    z = z[(slice(None), slice(None), slice(None), *window)]
    return z, None if labels is None else labels[(slice(None), slice(None), *window)]


def _check_side(value: int, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of pixels, 1 or more, found {value!r}.")
