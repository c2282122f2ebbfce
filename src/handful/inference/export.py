"""Weights leave the tool: as a plain encoder, ONNX, TorchScript, or a MONAI bundle."""

import contextlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from handful.artefacts import atomic_path, hash_of_file, write_json
from handful.data.plan import Plan
from handful.errors import DataError, RunError, UsageError, nearest
from handful.inference.about import about
from handful.inference.bundle import bundle_metadata, inference_config
from handful.inference.model import Model, load_model, read_run
from handful.settings import build

ENDINGS = {
    "encoder": (".safetensors", ".pt"),
    "onnx": (".onnx",),
    "torchscript": (".pt", ".ts"),
    "monai-bundle": ("",),
}
"""What weights can leave as, and how the name of each ends; a bundle is a folder, of any name."""

CLOSE = 1e-3
"""An exported network may differ from its original by this share of the largest logit."""

EXTRA = "handful.json"
"""Name, inside a TorchScript archive, of what travels with the network; in ONNX and safetensors it is ``handful``."""


def export(run: Path | str, out: Path | str, *, to: str, overwrite: bool = False) -> Path:
    """Write the weights of a finished run in a form other programs read.

    ``encoder``: the encoder's tensors by their plain names; safetensors with a header, or ``.pt`` with a JSON file of
    the same name beside it. ``onnx``, ``torchscript``: the network of one patch, (B, C, *S) -> logits (B, K, *S), for
    any B and the plan's S. ``monai-bundle``: a folder with that TorchScript network and the configuration to run it.
    Each holds the plan and, in sentences, how an image must be prepared. A network is compared with its original
    before it is written.

    Args:
        run: folder of a training, or for ``encoder`` of a pre-training.
        out: the file, or the bundle's folder.
        to: one of ``ENDINGS``.
        overwrite: replace what is there.

    Returns:
        ``out``.

    Raises:
        UsageError: an unknown target, an ``out`` that exists or has the wrong ending, or a missing extra.
        DataError: not a run, or one that has no such part.
        RunError: the run is not finished, or the result could not be written or differs from the original.

    Example:
        >>> export("runs/two-labels", "encoder.safetensors", to="encoder")  # doctest: +SKIP
    """
    run, out = Path(run), Path(out)
    if to not in ENDINGS:
        raise UsageError(f"--to {to}: there is no such target; {nearest(to, list(ENDINGS))}")
    _check_out(out, to, overwrite=overwrite)
    if to == "onnx":
        _check_extra()
    if to == "encoder":
        _write_encoder(run, out)
        return out
    model = load_model(run)
    for parameter in model.network.parameters():
        # the layout for training would lead instance norms to a branch that fixes the size of the batch; clone, because
        # a kernel of one channel calls itself contiguous in both layouts
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    what = f"segmentation network of one patch, trained by handful ({model.metadata.get('method')})"
    told = about(what, model.plan, model.metadata, model.weights_hash)
    if to == "onnx":
        _write_onnx(model, told, out)
    elif to == "torchscript":
        with atomic_path(out) as temporary:
            _write_torchscript(model, told, temporary)
    else:
        _write_bundle(model, told, out)
    return out


def _check_out(out: Path, to: str, *, overwrite: bool) -> None:
    if to == "monai-bundle":
        if out.is_file():
            raise UsageError(f"--out {out} is a file; a bundle is a folder.")
        if out.exists() and any(out.iterdir()) and not overwrite:
            raise UsageError(f"--out {out} is not empty; choose another, or use --overwrite.")
        return
    if out.suffix not in ENDINGS[to] or out.is_dir():
        raise UsageError(
            f"--out {out}: to {to} needs the name of a file that ends in {' or '.join(ENDINGS[to])}."
        )
    files = [out, out.with_suffix(".json")] if to == "encoder" and out.suffix == ".pt" else [out]
    for file in files:
        if file.exists() and not overwrite:
            raise UsageError(f"{file} exists already; choose another --out, or use --overwrite.")


def _check_extra() -> None:
    missing = [
        name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise UsageError(
            f"--to onnx needs {', '.join(missing)}, not installed here; pip install 'handful[onnx]' brings it."
        )


def _write_encoder(run: Path, out: Path) -> None:
    file, parts, metadata = read_run(run)
    inside = {
        name.removeprefix("encoder."): tensor
        for name, tensor in parts.get("segmenter", {}).items()
        if name.startswith("encoder.")
    }
    state = {name: tensor.contiguous() for name, tensor in parts.get("encoder", inside).items()}
    if not state:
        raise DataError(
            f"{file} holds {', '.join(parts) or 'nothing'}, no encoder among it; --to torchscript takes the whole "
            "network."
        )
    plan = build(Plan, metadata["plan"], where=f"the plan in {file}")
    told = about(f"encoder trained by handful ({metadata.get('method')})", plan, metadata, hash_of_file(file))
    if out.suffix == ".pt":
        write_json(out.with_suffix(".json"), told)
    with atomic_path(out) as temporary:
        try:
            if out.suffix == ".pt":
                torch.save(state, temporary)
            else:
                save_file(state, temporary, metadata={"format": "pt", "about": json.dumps(told)})
        except (SafetensorError, RuntimeError) as error:  # how the two report a full disk
            raise RunError(f"{out} could not be written: {error}. Free some space and try again.") from None


def _write_torchscript(model: Model, told: dict[str, Any], path: Path) -> None:
    with _quiet():
        traced = torch.jit.trace(model.network, _example(model, 2), check_trace=False)  # type: ignore[no-untyped-call]
        _compare(lambda image: traced(image), model)
        torch.jit.save(traced, str(path), _extra_files={EXTRA: json.dumps(told)})


def _write_onnx(model: Model, told: dict[str, Any], out: Path) -> None:
    import onnxruntime

    with _quiet():
        program = torch.onnx.export(
            model.network,
            (_example(model, 2),),
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.model.metadata_props["handful"] = json.dumps(told)
        with atomic_path(out) as temporary:
            program.save(str(temporary))
            session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
            _compare(
                lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0]),
                model,
            )


def _write_bundle(model: Model, told: dict[str, Any], out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".tmp-", dir=out.parent))
    except OSError as error:
        raise RunError(f"{out.parent} cannot be written: {error.strerror}. Choose another --out.") from error
    try:
        bundle = folder / "bundle"
        write_json(bundle / "configs" / "metadata.json", bundle_metadata(model.plan, told))
        write_json(bundle / "configs" / "inference.json", inference_config(model.plan))
        with atomic_path(bundle / "models" / "model.ts") as temporary:
            _write_torchscript(model, told, temporary)
        if not out.exists():
            os.rename(bundle, out)
            return
        for file in sorted(file for file in bundle.rglob("*") if file.is_file()):
            home = out / file.relative_to(bundle)  # whatever else lies in the folder stays
            home.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, home)
    except OSError as error:
        raise RunError(
            f"{out} could not be written: {error.strerror or error}. Free some space and try again."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _example(model: Model, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, len(model.plan.channels), *model.plan.patch, generator=generator)


def _compare(exported: Callable[[Tensor], Tensor], model: Model) -> None:
    """Refuse a network that gives other logits than its original, for another size of batch than it was made with."""
    image = _example(model, 1)
    expected = model.network(image)
    try:
        difference = float((exported(image) - expected).abs().max())
    except Exception as error:
        raise RunError(
            f"the exported network fails where the original works ({type(error).__name__}: {error}); nothing was "
            "written."
        ) from None
    allowed = CLOSE * float(expected.abs().max())
    if not difference <= allowed:
        raise RunError(
            f"the exported network differs from the original by {difference:.3g} (allowed: {allowed:.3g}); nothing was "
            "written. Its architecture may depend on its input in a way that cannot be exported."
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what exporters say of themselves; ``_compare`` decides whether the result is right."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
