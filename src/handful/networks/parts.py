"""What representation learning needs to know of a network: its encoder, its decoder, and their sizes."""

from typing import Any, NamedTuple

from torch import nn

from handful.errors import UsageError


class Parts(NamedTuple):
    """A segmentation network taken apart.

    Attributes:
        encoder: image (B, C, *S) -> one feature map a level, finest first.
        decoder: those maps -> one decoder map a level, finest first.
        dims: 2 or 3.
        deepest: channels of the encoder's last map.
        widths: channels of the decoder's maps, finest first.
        stride: what the strides multiply to along each axis; sides of an input are multiples of it.
        channels: of the image, what a reconstruction gives back.
    """

    encoder: nn.Module
    decoder: nn.Module
    dims: int
    deepest: int
    widths: tuple[int, ...]
    stride: tuple[int, ...]
    channels: int


def parts_of(network: nn.Module) -> Parts:
    """Take a network apart.

    Raises:
        UsageError: it has no ``encoder`` and ``decoder`` that say their ``widths`` and ``total_stride``.

    Example:
        >>> from handful.networks.unet import UNet
        >>> parts_of(UNet(dims=2, in_channels=1, classes=3, widths=(8, 16, 32))).deepest
        32
    """
    encoder, decoder = getattr(network, "encoder", None), getattr(network, "decoder", None)
    strides: Any = getattr(encoder, "total_stride", None)
    down: Any = getattr(encoder, "widths", None)
    up: Any = getattr(decoder, "widths", None)
    if not (isinstance(encoder, nn.Module) and isinstance(decoder, nn.Module) and strides and down and up):
        raise UsageError(
            f"pre-training needs a network in two parts, 'encoder' (with 'widths' and 'total_stride') and 'decoder' "
            f"(with 'widths'); {type(network).__name__} has not got them. Use the built-in U-Net or V-Net."
        )
    convolutions = (module for module in encoder.modules() if isinstance(module, (nn.Conv2d, nn.Conv3d)))
    first = next(convolutions, None)
    if first is None:
        raise UsageError(f"pre-training needs a convolutional encoder; {type(encoder).__name__} is none.")
    return Parts(encoder, decoder, len(strides), down[-1], tuple(up), tuple(strides), first.in_channels)


def head_of(network: nn.Module) -> tuple[nn.Module, int]:
    """Return the layer that turns the finest decoder map into logits, and the number of its classes.

    Raises:
        UsageError: the network has no ``heads``.
    """
    heads: Any = getattr(network, "heads", None)
    head = heads[0] if isinstance(heads, nn.ModuleList) and len(heads) else nn.Identity()
    convolutions = [module for module in head.modules() if isinstance(module, (nn.Conv2d, nn.Conv3d))]
    if not convolutions:
        raise UsageError(
            f"this method trains the layer of the network that gives the logits, 'heads[0]' with a convolution; "
            f"{type(network).__name__} has not got it. Use the built-in U-Net or V-Net."
        )
    return head, convolutions[-1].out_channels
