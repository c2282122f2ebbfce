"""The configuration files of a MONAI bundle: the same steps as a prediction here, in MONAI's own transforms.

Needs MONAI to run, not this package. What MONAI does a little differently is listed by ``differences`` and written
into the bundle.

References:
    MONAI bundle specification. https://docs.monai.io/en/stable/mb_specification.html
"""

from importlib.metadata import version
from typing import Any

import handful
from handful.data.intensity import PERCENTILES
from handful.data.plan import ANISOTROPIC, Plan
from handful.data.preprocess import FURTHEST

_DIFFERENCES = (
    "images are not rounded to half precision",
    "volumes that are resampled get exactly the planned spacing, where handful rounds to whole voxels within the "
    "extent of the file, and one order of interpolation for all axes",
    "volumes little larger than a patch are cut into windows, where handful lets them pass whole, and windows lie at "
    "slightly other places",
    "structures of one piece keep all their pieces",
)

_LOW, _HIGH = PERCENTILES[0], PERCENTILES[-1]

# expressions of the configuration: names it defines (@name) are only seen as defaults of a lambda's arguments
_BACKGROUND = (
    "$lambda x: (lambda values, counts: values[counts.argmax()])(*np.unique(np.concatenate("
    "[x.take(end, axis).ravel() for axis in range(3) for end in (0, -1)]), return_counts=True))"
)
_FOREGROUND = (
    "$lambda x, background=@background: "
    "(lambda kept: kept if kept.size >= 0.01 * x.size else x.ravel())(x[x != background(x)])"
)
_STATISTICS = (
    "$lambda x, foreground=@foreground: (lambda v: (lambda c: (c.mean(), c.std() if c.std() > 1e-6 * abs(c.mean()) "
    f"else 1.0))(v.clip(*np.percentile(v, ({_LOW}, {_HIGH}))).astype(np.float64)))(foreground(x))"
)
_NORMALISE = (
    "$lambda x, channels=@channels, statistics=@statistics: (lambda column, found: "
    "((x.clamp(column([c.get('low', -np.inf) for c in channels]), column([c.get('high', np.inf) for c in channels])) "
    "- column([f[0] for f in found])) / column([f[1] for f in found]))"
    ".clamp(column([c.get('least', -np.inf) for c in channels]), column([c.get('most', np.inf) for c in channels])))"
    "(lambda values: torch.tensor(values, dtype=x.dtype).reshape(-1, 1, 1, 1), "
    "[(c['centre'], c['spread']) if 'centre' in c else statistics(i.numpy()) for c, i in zip(channels, x.as_tensor())])"
)
_SEGMENT = (
    "$lambda files, prepare=@preprocessing, infer=@inferer, network=@network, device=@device, finish=@postprocessing: "
    "(lambda item: finish({**item, 'pred': infer(item['image'][None].to(device), network)[0].cpu()}))"
    "(prepare({'image': files}))"
)


def differences(plan: Plan) -> list[str]:
    """Return what differs between ``handful predict`` and a bundle's ``configs/inference.json``."""
    planes = ["slices are cut along the first axis only, where handful averages three directions"]
    return [*_DIFFERENCES, *(planes if len(plan.planes) > 1 else [])]


def inference_config(plan: Plan) -> dict[str, Any]:
    """Return ``configs/inference.json``: label maps of the volumes in ``dataset_dir``, written to ``output_dir``."""
    spacing = [mm or 0.0 for mm in plan.spacing_mm]  # MONAI keeps the spacing of an axis given as 0
    known = [mm for mm in spacing if mm]
    order: int | str = "bilinear" if known and max(known) > ANISOTROPIC * min(known) else 3
    several = len(plan.channels) > 1
    windows = {
        "roi_size": list(plan.patch), "sw_batch_size": max(plan.batch, 1), "overlap": 0.5, "mode": "gaussian",
        "padding_mode": "replicate",
    }  # fmt: skip
    return {
        "imports": ["$import glob", "$import numpy as np", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "images",
        "output_dir": "labels",
        # of several channels, each entry is the list of a case's files, to be given by the user
        "images": [] if several else "$sorted(glob.glob(@dataset_dir + '/*.nii*'))",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "model": "$torch.jit.load(@bundle_root + '/models/model.ts', map_location=@device)",
        "network": "$torch.nn.Sequential(@model, torch.nn.Softmax(1)).eval()",
        "channels": [
            {"low": how.low, "high": how.high, "centre": how.centre, "spread": how.spread}
            if how.kind == "window"
            else {"least": -FURTHEST, "most": FURTHEST}
            for how in plan.channels
        ],
        "background": _BACKGROUND,
        "foreground": _FOREGROUND,
        "statistics": _STATISTICS,
        "normalise": _NORMALISE,
        "preprocessing": _compose(
            {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
            {
                "_target_": "Orientationd",
                "keys": "image",
                "axcodes": "".join("RAS"[axis] for axis in plan.axes),
            },
            {"_target_": "Lambdad", "keys": "image", "func": "@normalise"},
            *(
                [
                    {
                        "_target_": "Spacingd",
                        "keys": "image",
                        "pixdim": spacing,
                        "mode": order,
                        "padding_mode": "border" if order == "bilinear" else "nearest",
                        "scale_extent": True,
                    }
                ]
                if known
                else []
            ),
        ),
        "inferer": {"_target_": "SliceInferer", "spatial_dim": 0, **windows}
        if plan.dims == 2
        else {"_target_": "SlidingWindowInferer", **windows},
        "postprocessing": _compose(
            {
                "_target_": "Invertd",
                "keys": "pred",
                "transform": "@preprocessing",
                "orig_keys": "image",
                "nearest_interp": False,
                "to_tensor": True,
            },
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {
                "_target_": "MapLabelValued",
                "keys": "pred",
                "orig_labels": list(range(len(plan.label_values))),
                "target_labels": list(plan.label_values),
            },
            {
                "_target_": "SaveImaged",
                "keys": "pred",
                "output_dir": "@output_dir",
                "output_postfix": "",
                "output_dtype": "$np.int16",
                "separate_folder": False,
                "print_log": False,
            },
        ),
        "segment": _SEGMENT,
        "run": ["$list(map(@segment, @images))"],
    }


def bundle_metadata(plan: Plan, about: dict[str, Any]) -> dict[str, Any]:
    """Return ``configs/metadata.json``; everything MONAI's schema has no word for is under ``handful``."""
    import torch

    channels, classes = len(plan.channels), len(plan.label_values)
    shape = list(plan.patch)
    return {
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported by handful {handful.__version__}"},
        "monai_version": version("monai"),
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {"nibabel": version("nibabel"), "scipy": version("scipy")},
        "task": f"segmentation of {', '.join(plan.label_names[1:])}",
        "description": about["what"],
        "intended_use": "research; not a medical device, not for diagnosis",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image", "format": "magnitude", "num_channels": channels, "spatial_shape": shape,
                    "dtype": "float32", "value_range": [], "is_patch_data": True,
                    "channel_def": {str(channel): f"channel {channel}" for channel in range(channels)},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image", "format": "segmentation", "num_channels": classes, "spatial_shape": shape,
                    "dtype": "float32", "value_range": [], "is_patch_data": True,
                    "channel_def": {str(index): name for index, name in enumerate(plan.label_names)},
                }
            },
        },
        "handful": {**about, "differences_from_handful_predict": differences(plan)},
    }  # fmt: skip


def _compose(*transforms: dict[str, Any]) -> dict[str, Any]:
    return {"_target_": "Compose", "transforms": list(transforms)}
