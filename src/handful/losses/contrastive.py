"""The contrastive family on image embeddings: one kernel, and the masks that make it SimCLR, PCL and GCL.

``info_nce`` is the kernel; the others only say which pairs are positive. For pixels, where the (N, N) matrix of this
file would not fit, see ``pixel_contrast``.

None of these losses can reach 0: an anchor with P positives costs at least ln P, because its positives share the
softmax. When all embeddings are equal, every anchor costs ln(N - 1): a training curve frozen there has collapsed.
"""

import torch
from torch import Tensor

from handful.losses import checks
from handful.losses.embeddings import unit


def info_nce(
    z: Tensor,
    positives: Tensor,
    *,
    temperature: float,
    anchors: Tensor | None = None,
    left_out: Tensor | None = None,
) -> Tensor:
    """Return the mean over anchors of the mean over their positives of -log softmax over all other embeddings.

    With s_ij the cosine of embeddings i and j, t the temperature and P(i) the positives of i, anchor i costs

        l_i = -1/|P(i)|  sum_{p in P(i)}  [ s_ip / t - log sum_{k != i} exp(s_ik / t) ]

    (the "mean outside the log" form of supervised contrast; positives are in the denominator too). The result is
    the plain mean, without the factor temperature / 0.07 that some published code carries.

    An embedding is never its own positive: the diagonal of ``positives`` is not read. Anchors without a positive are
    left out of the mean; without any anchor left the loss is 0 and can still be differentiated.

    Args:
        z: (N, E) embeddings of any length; scaled to length one inside.
        positives: (N, N) bool; row i marks the positives of anchor i. It need not be symmetric.
        temperature: positive.
        anchors: (N,) bool, which rows count in the mean; all of them when None. The others stay in the denominators.
        left_out: (N, N) bool, pairs that are neither positives nor negatives (patches that show the same tissue):
            where true, k is no term of row i's denominator, unless it is a positive.

    Returns:
        A scalar, float64 for float64 embeddings and float32 otherwise.

    Raises:
        ValueError: shapes that do not fit, embeddings that are not floating point or not finite, masks that are not
            bool, a temperature that is not positive.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> positives = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=torch.bool)
        >>> float(info_nce(z, positives, temperature=1.0))  # ln(e + 1) - 1; the third has no positive
        0.3132617...

    References:
        van den Oord et al., 2018, InfoNCE. https://arxiv.org/abs/1807.03748
        Khosla et al., 2020, supervised contrastive learning. https://arxiv.org/abs/2004.11362
    """
    z = checks.embeddings("z", z, "N E")
    checks.temperature(temperature)
    n = len(z)
    if positives.shape != (n, n) or positives.dtype != torch.bool:
        raise ValueError(
            f"positives must be a bool matrix of shape ({n}, {n}) for {n} embeddings, "
            f"found {positives.dtype} of shape {tuple(positives.shape)}."
        )
    if anchors is not None and (anchors.shape != (n,) or anchors.dtype != torch.bool):
        raise ValueError(
            f"anchors must be bool of shape ({n},) for {n} embeddings, "
            f"found {anchors.dtype} of shape {tuple(anchors.shape)}."
        )
    if left_out is not None and (left_out.shape != (n, n) or left_out.dtype != torch.bool):
        raise ValueError(
            f"left_out must be a bool matrix of shape ({n}, {n}) for {n} embeddings, "
            f"found {left_out.dtype} of shape {tuple(left_out.shape)}."
        )
    self_pair = torch.eye(n, dtype=torch.bool, device=z.device)
    positives = positives & ~self_pair
    count = positives.sum(1)
    counted = count > 0 if anchors is None else (count > 0) & anchors
    if not counted.any():
        return checks.nothing(z)
    with torch.autocast(z.device.type, enabled=False):
        direction = unit(z)
        absent = self_pair if left_out is None else self_pair | (left_out & ~positives)
        logits = (direction @ direction.T / temperature).masked_fill(absent, -torch.inf)
        log_p = logits.log_softmax(1)
        # where, not a product: the diagonal is -inf, and -inf * 0 is NaN
        cost = -log_p.where(positives, 0).sum(1) / count.clamp(min=1)
        return cost[counted].mean()


def nt_xent(a: Tensor, b: Tensor, *, temperature: float) -> Tensor:
    """Return SimCLR's loss: the only positive of an image is its other view, all other 2B - 2 views are negatives.

    ``info_nce`` over the 2B embeddings; symmetric in ``a`` and ``b``. Batches of one image give 0: there is nothing
    to tell it from.

    Args:
        a: (B, E) embeddings of one view of B images, of any length.
        b: (B, E) embeddings of the other view, in the same order.
        temperature: positive; 0.5 in SSCL's global stage, 0.1 in PCL's comparison.

    Raises:
        ValueError: as ``info_nce``; views of different shapes.

    Example:
        >>> loss = nt_xent(torch.randn(8, 128), torch.randn(8, 128), temperature=0.1)

    References:
        Chen et al., 2020, SimCLR. https://arxiv.org/abs/2002.05709
    """
    a, b = checks.embeddings("a", a, "B E"), checks.embeddings("b", b, "B E")
    checks.same_shape(a=a, b=b)
    image = torch.arange(len(a), device=a.device).repeat(2)
    return info_nce(torch.cat([a, b]), image[:, None] == image, temperature=temperature)


def positional_contrast(
    z: Tensor, position: Tensor, *, threshold: float, temperature: float, related: Tensor | None = None
) -> Tensor:
    """Return PCL's loss: slices (or patches) at a similar place in their volumes are positives.

    ``info_nce`` over all B V views; views i and j are positives when ``abs(p_i - p_j) < threshold``, strictly and in
    float64, so that every image's other views always are. Many pairs sit exactly on the threshold (0.5 and 0.4 with
    0.1); which side they fall on is decided by the float64 values of (i + 1) / n, see ``relative_position``.

    A threshold of 0 leaves no positives (loss 0); above 1 everything is positive.

    Args:
        z: (B, V, E) embeddings of V views of B images, of any length.
        position: (B,) relative positions in [0, 1], float64 to reproduce the published ties; or (B, A) along A axes,
            and positives are near along every one of them.
        threshold: not negative; 0.1 for CHD and 0.35 for ACDC in the paper.
        temperature: positive; 0.1 in the paper.
        related: (B, B) bool: images that show the same tissue and so are never each other's negatives; none when None.

    Raises:
        ValueError: as ``info_nce``; positions that do not fit or are not finite; a negative threshold.

    Example:
        >>> position = relative_position(10)[[0, 1, 9]]
        >>> loss = positional_contrast(torch.randn(3, 2, 64), position, threshold=0.1, temperature=0.1)

    References:
        Zeng et al., 2021, positional contrastive learning. https://arxiv.org/abs/2106.09157
    """
    place = _per_image(z, position if position.ndim > 1 else position[:, None], name="position").double()
    if not place.isfinite().all():
        raise ValueError(f"position holds NaN or infinite values: {position.tolist()}.")
    if not threshold >= 0:
        raise ValueError(f"threshold must be 0 or more (a share of the volume's length), found {threshold}.")
    place = place.repeat(z.shape[1], 1)
    near = ((place[:, None] - place).abs() < threshold).all(2)
    left_out = None if related is None else related.to(z.device).repeat(z.shape[1], z.shape[1])
    return info_nce(_view_by_view(z), near, temperature=temperature, left_out=left_out)


def partition_contrast(
    z: Tensor, partition: Tensor, *, temperature: float, related: Tensor | None = None
) -> Tensor:
    """Return GCL's global loss as PCL and SSCL use it: slices of the same partition of their volumes are positives.

    ``info_nce`` over all B V views. This is the later re-implementation (mean over all samples of the partition, all
    others in the denominator), not the fixed pairs of the original.

    Args:
        z: (B, V, E) embeddings of V views of B images, of any length.
        partition: (B,) the number of each image's partition, see ``partition_of_slices``.
        temperature: positive; 0.1 in the papers.
        related: (B, B) bool: images that show the same tissue and so are never each other's negatives; none when None.

    Raises:
        ValueError: as ``info_nce``; partitions that do not fit.

    Example:
        >>> partition = partition_of_slices(10)[[0, 1, 9]]
        >>> loss = partition_contrast(torch.randn(3, 2, 64), partition, temperature=0.1)

    References:
        Chaitanya et al., 2020. https://arxiv.org/abs/2006.10511
        Zeng et al., 2021 (the form). https://arxiv.org/abs/2106.09157
    """
    if partition.ndim != 1:
        raise ValueError(f"partition must have shape ({len(z)},), found {tuple(partition.shape)}.")
    part = _per_image(z, partition, name="partition").repeat(z.shape[1])
    left_out = None if related is None else related.to(z.device).repeat(z.shape[1], z.shape[1])
    return info_nce(_view_by_view(z), part[:, None] == part, temperature=temperature, left_out=left_out)


def relative_position(slices: int) -> Tensor:
    """Return the position of every slice of a volume, (i + 1) / n for i = 0..n-1, in float64.

    Example:
        >>> relative_position(4)
        tensor([0.2500, 0.5000, 0.7500, 1.0000], dtype=torch.float64)
    """
    if slices < 1:
        raise ValueError(f"a volume has at least one slice, found {slices}.")
    return torch.arange(1, slices + 1, dtype=torch.float64) / slices


def partition_of_slices(slices: int, *, partitions: int = 4) -> Tensor:
    """Return the partition 1..``partitions`` of every slice of a volume, by the published rounding.

    All partitions have n / partitions slices rounded half up, the last one what is left (it may be short or long):
    10 slices give 1112223334. A volume with fewer slices than half the partitions has one slice a partition.

    Example:
        >>> partition_of_slices(5).tolist()
        [1, 2, 3, 4, 4]
    """
    if slices < 1 or partitions < 1:
        raise ValueError(f"at least one slice and one partition are needed, found {slices} and {partitions}.")
    width = max(1, (2 * slices + partitions) // (2 * partitions))
    return torch.div(torch.arange(slices), width, rounding_mode="floor").clamp(max=partitions - 1) + 1


def _view_by_view(z: Tensor) -> Tensor:
    """Return (V B, E): all first views, then all second views, as the published masks are ordered."""
    return z.transpose(0, 1).flatten(0, 1)


def _per_image(z: Tensor, value: Tensor, *, name: str) -> Tensor:
    """Return ``value`` on the embeddings' device after checking that it has one entry an image."""
    checks.embeddings("z", z, "B V E")
    if value.shape[:1] != z.shape[:1] or value.ndim > 2 or value.shape[1:] == (0,):
        raise ValueError(
            f"{name} must have shape ({len(z)},), one entry for each of {len(z)} images, found {tuple(value.shape)}."
        )
    return value.to(z.device)
