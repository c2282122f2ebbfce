"""Logits of every decoder level that predicts: of several batches in one pass or apart, and without training."""

import torch
from torch import Tensor, nn

from handful.networks.unet import UNet


def deep_logits(network: nn.Module, *images: Tensor, joint: bool = True) -> list[list[Tensor]]:
    """Return, for each batch of images, the logits of every level that predicts, finest first.

    A network that knows no levels gives one.

    Args:
        network: a segmentation network.
        images: (B, C, *S) each, of one size.
        joint: whether they go through it as one batch: one pass, and one set of statistics where it has batch norm.
            Other norms look at each image alone, and the result is the same.
    """
    if not joint:
        return [deep_logits(network, each)[0] for each in images]
    image = images[0] if len(images) == 1 else torch.cat(images)
    levels = network.deep(image) if isinstance(network, UNet) else [network(image)]
    parts = [level.split([len(each) for each in images]) for level in levels]
    return [list(own) for own in zip(*parts)]


def deep_logits_of_both(
    network: nn.Module, labelled: Tensor, unlabelled: Tensor | None, *, joint: bool = True
) -> tuple[list[Tensor], Tensor | None]:
    """Return the logits of every level of labelled images, and the finest of unlabelled ones, if there are any.

    Args:
        network: a segmentation network.
        labelled, unlabelled: (B, C, *S) and (U, C, *S), of one size; None without unlabelled images.
        joint: as for ``deep_logits``.
    """
    if unlabelled is None:
        return deep_logits(network, labelled)[0], None
    levels, others = deep_logits(network, labelled, unlabelled, joint=joint)
    return levels, others[0]


@torch.no_grad()
def judged(network: nn.Module, image: Tensor) -> Tensor:
    """Return logits (B, K, *S) as a prediction would: in evaluation mode, without gradient; the mode is put back."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    logits: Tensor = network(image)
    for module, mode in modes.items():
        module.training = mode
    return logits
