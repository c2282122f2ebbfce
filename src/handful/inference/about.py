"""What travels with exported weights: where they come from, and how an image must be prepared for them."""

from collections.abc import Mapping
from typing import Any

import handful
from handful.data.intensity import PERCENTILES
from handful.data.plan import ANISOTROPIC, Normalisation, Plan
from handful.data.preprocess import FURTHEST


def about(what: str, plan: Plan, metadata: Mapping[str, Any], weights_hash: str) -> dict[str, Any]:
    """Return, as plain values, everything a stranger to the run needs to use its weights.

    Args:
        what: the exported thing, in a sentence.
        plan: of the run.
        metadata: what was saved with the run's weights.
        weights_hash: of that file.
    """
    kept = ("method", "architecture", "data_name", "data_hash", "labelled", "labels_used", "images_used")
    return {
        "what": what,
        "exported_by": f"handful {handful.__version__}",
        "weights_hash": weights_hash,
        **{key: metadata.get(key) for key in kept},
        "channels": len(plan.channels),
        "labels": {str(v): name for v, name in zip(plan.label_values, plan.label_names, strict=True)},
        "preprocessing": preprocessing(plan),
        "plan": metadata["plan"],
    }


def preprocessing(plan: Plan) -> list[str]:
    """Return in sentences, in order, what happens between a file and the network."""
    axes = "".join("RAS"[axis] for axis in plan.axes)
    steps = [
        "Reorder and flip the axes of the file to the closest RAS orientation, without interpolation; D, H, W are then "
        f"the axes that grow towards {', '.join(axes)}.",
        *(f"Channel {number}: {_sentence(how)}" for number, how in enumerate(plan.channels)),
    ]
    spacing = [
        f"{name} {mm:.6g} mm" for name, mm in zip("DHW", plan.spacing_mm, strict=True) if mm is not None
    ]
    if spacing:
        steps.append(
            f"Resample to {', '.join(spacing)} (an axis not named keeps its own), the outer faces of both grids "
            f"aligned: cubic splines, linear along an axis more than {ANISOTROPIC:g} times coarser than the finest."
        )
    steps.append("Round to half precision; the network computes in single precision.")
    patch = " x ".join(str(size) for size in plan.patch)
    steps.append(
        f"The network maps {_cuts(plan)} (B, {len(plan.channels)}, *S), "
        f"trained with S = {patch}, to logits (B, {len(plan.label_values)}, *S); softmax over axis 1 gives the "
        "probability of each class, in the order of the plan's label_values."
    )
    if len(plan.planes) > 1:
        steps.append("The probabilities of all directions are averaged.")
    whole = [name for name, flag in zip(plan.label_names, plan.one_piece) if flag]
    if whole:
        steps.append(f"Afterwards only the largest piece of each of these is kept: {', '.join(whole)}.")
    return steps


def _cuts(plan: Plan) -> str:
    """Return what the network sees, in words."""
    if plan.dims == 3:
        return "patches"
    named = [
        "DHW"[order[0]] + f" (rows {'DHW'[order[1]]}, columns {'DHW'[order[2]]})" for order in plan.planes
    ]
    return f"slices along {' and along '.join(named)}" if len(named) > 1 else f"slices along {named[0]}"


def _sentence(how: Normalisation) -> str:
    if how.kind == "window":
        return f"clip to [{how.low:g}, {how.high:g}], subtract {how.centre:g}, divide by {how.spread:g}."
    return (
        "leave out the voxels that have the commonest value of the volume's six faces; of the others, clipped to their "
        f"percentiles {PERCENTILES[0]:g} and {PERCENTILES[-1]:g}, take mean and standard deviation. Subtract the one "
        f"from the whole volume, divide by the other, clip to [-{FURTHEST:g}, {FURTHEST:g}]."
    )
