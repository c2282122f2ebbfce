"""What the page says of weights to start from: of the pre-training that made them, and of a training that used them."""

import shlex
from collections.abc import Mapping
from typing import Any

from handful.report.evidence import Evidence, listing, mapping
from handful.report.words import both, count


def is_pretraining(evidence: Evidence) -> bool:
    """Say whether the run makes weights to start from, not a model: by its manifest, its weights, or its metrics."""
    kind = evidence.manifest.get("kind")
    if kind is not None:
        return bool(kind == "pretrain")
    if evidence.exports:
        return "segmenter" not in evidence.exports
    return any(key.startswith("health/") for row in evidence.metrics for key in row)


def headline(evidence: Evidence) -> dict[str, str]:
    """Say what was learned from, with whose labels, and what there is to start from."""
    images = _images(evidence)
    method = evidence.manifest.get("method") or evidence.recipe.get("name") or "an unknown method"
    papers = "; ".join(map(str, listing(evidence.manifest.get("references"))))
    source = f" ({papers})" if papers else ""
    what = f"the images of {count(len(images), 'case')}" if images else "unknown images"
    if evidence.exports:
        found = (
            f"It exports {both([f'the {part}' for part in evidence.exports])}, to train a segmentation from."
        )
    else:
        found = "It has exported nothing yet."
    return {
        "figure": str(len(images)) if images else "–",
        "caption": "image learned from" if len(images) == 1 else "images learned from",
        "sentence": f"Pre-trained by {method}{source} on {what}. {labels_used(evidence)} {found}",
    }


def labels_used(evidence: Evidence) -> str:
    """Say whether labels entered the loss, only stopped the run, only made the probe, or were not opened."""
    labelled = evidence.cases("labelled")
    stopped = bool(mapping(evidence.recipe.get("loop")).get("patience"))
    learned = evidence.manifest.get("learns_labels")
    if (
        learned is None
    ):  # not recorded: labels that decide the weights without entering the loss do so by patience
        learned = None if stopped else bool(evidence.header.get("labels_used"))
    whose = f"The labels of {count(len(labelled), 'case')}"
    if not evidence.manifest:
        return "Whether labels were used is not recorded."
    if not labelled:
        return "No label was opened."
    if learned:
        return f"{whose} entered the loss."
    if learned is None:
        return f"{whose} entered the loss or decided when to stop."
    if stopped:
        return f"{whose} decided when to stop, through the probe, and did not enter the loss."
    if any("health/probe" in row for row in evidence.metrics):
        return f"{whose} made the probe and did not enter the loss."
    return f"{whose} did not enter the loss."


def uses(evidence: Evidence) -> dict[str, str]:
    """Return what each part of the split was used for."""
    images = set(_images(evidence))
    seen = not evidence.cases("unlabelled") or bool(images & set(evidence.cases("unlabelled")))
    return {
        "labelled": f"images learned from. {labels_used(evidence)}",
        "unlabelled": "images learned from; labels never opened" if seen else "not used by this method",
        "validation": "set aside",
        "test": "held out: neither images nor labels were looked at",
    }


def train_command(evidence: Evidence) -> str:
    """Return the command that trains from these weights on the same division of the cases; "" without weights."""
    root = mapping(evidence.manifest.get("dataset")).get("root")
    if not root or not evidence.exports:
        return ""
    run = evidence.run.resolve()
    words = ["handful", "train", str(root), "--init", str(run)]
    for option, value in (
        ("--labels", evidence.recipe.get("labels")),
        ("--draw", evidence.recipe.get("draw")),
    ):
        words += [option, str(value)] if value else []
    words += ["--splits", str(run / "splits.json")] if evidence.splits else []
    seed = evidence.recipe.get("seed")
    words += ["--seed", str(seed)] if seed else []
    return shlex.join([*words, "--out", str(run.with_name(f"{run.name}-trained"))])


def start(evidence: Evidence) -> str:
    """Say which weights a run started from; "" if from none."""
    found = mapping(evidence.manifest.get("init"))
    if not found:
        fingerprint = evidence.recipe.get("init")
        return f"weights with the hash {fingerprint}; of which run is not recorded" if fingerprint else ""
    learned = listing(found.get("labels_used"))
    labels = f"the labels of {count(len(learned), 'case')}" if learned else "no label"
    images = found.get("images_used")
    seen = f"{count(images, 'image')} of {found.get('data_name')} and " if isinstance(images, int) else ""
    return f"{found.get('run')} (method {found.get('method')}, which learned from {seen}{labels})"


def beyond_budget(evidence: Evidence) -> list[str]:
    """Return the cases whose labels the start learned from and this run's budget does not have."""
    found: Mapping[str, Any] = mapping(evidence.manifest.get("init"))
    used = {str(case) for case in listing(found.get("labels_used"))}
    if found.get("data_name") == mapping(evidence.manifest.get("dataset")).get("name"):
        used -= set(evidence.cases("labelled"))
    return sorted(used)


def _images(evidence: Evidence) -> list[str]:
    """Return the cases whose images were learned from."""
    known = listing(evidence.header.get("images_used"))
    return list(map(str, known)) or [*evidence.cases("labelled"), *evidence.cases("unlabelled")]
