"""``handful export``: a run's weights in a form other programs read."""

from pathlib import Path
from typing import Annotated

import typer

from handful.cli.console import say
from handful.cli.options import Overwrite, Quiet


def _targets(incomplete: str) -> list[str]:
    return [
        name for name in ("encoder", "onnx", "torchscript", "monai-bundle") if name.startswith(incomplete)
    ]


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    *,
    to: Annotated[
        str,
        typer.Option(
            metavar="NAME", autocompletion=_targets, help="encoder, onnx, torchscript or monai-bundle."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file; for a bundle, its folder.")],
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Hand over the weights: the encoder alone (.safetensors, .pt), or the network as ONNX, TorchScript, MONAI bundle.

    The network maps one prepared patch to logits. How to prepare an image for it travels with it, as the plan and in
    sentences.
    """
    from handful.inference.export import export as export_

    written = export_(run, out, to=to, overwrite=overwrite)
    if not quiet:
        say(f"{to}: {written}")
