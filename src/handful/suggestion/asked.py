"""What given runs can say about the candidates: an encoder which images are alike, a segmenter what it is unsure of."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from handful.device import choose_device, use_threads
from handful.errors import UsageError
from handful.inference.model import PART, load_model, read_run
from handful.suggestion.embeddings import embedding_features, load_encoder
from handful.suggestion.roster import Roster
from handful.suggestion.trust import judge
from handful.suggestion.warm import predict_uncertainty


class Answer(NamedTuple):
    """What runs said.

    Attributes:
        kind: ``segmenter`` or ``encoder``.
        why: which way of choosing follows from them, a sentence.
        features: (N, E) embeddings of labelled cases and candidates; None: take intensities.
        uncertainty: (M, structures) of the candidates; None: not asked, or not believed.
        structures: their names.
    """

    kind: str
    why: str
    features: NDArray[np.float64] | None = None
    uncertainty: NDArray[np.float64] | None = None
    structures: tuple[str, ...] = ()


def ask_runs(
    runs: Sequence[Path],
    roster: Roster,
    *,
    trust: bool,
    tta: bool,
    device: str,
    threads: int | None,
    progress: Callable[[str, int, int | None], None],
) -> Answer:
    """Embed all cases with a pre-trained encoder, or predict the candidates with segmenters that are to be believed.

    Raises:
        UsageError: runs of different kinds, several pre-trainings, or other channels or another data set than these.
    """
    use_threads(threads)
    where = choose_device(device)
    kinds = [_check(run, roster) for run in runs]
    if kinds == ["encoder"]:
        encoder, plan = load_encoder(runs[0], device=where)
        cases = [*roster.labelled, *roster.candidates]
        features = embedding_features(
            encoder, plan, cases, progress=lambda done, total: progress("embedding", done, total)
        )
        return Answer("encoder", f"Cold start from embeddings of {runs[0]}.", features=features)
    if "encoder" in kinds:
        raise UsageError(
            "--run takes one pre-training, or one or several trained segmenters, not both kinds and no second "
            f"pre-training: {', '.join(f'{run} ({kind})' for run, kind in zip(runs, kinds))}."
        )
    believed, why = judge(runs, force=trust)
    if not believed:
        return Answer(PART, f"Cold start from intensities: {why}; --trust believes the model anyway.")
    models = [load_model(run, device=where) for run in runs]
    doubt = predict_uncertainty(
        models,
        roster.candidates,
        tta=tta,
        progress=lambda done, total: progress("predicting", done, total),
    )
    return Answer(
        PART,
        f"Warm start from the uncertainty of {', '.join(map(str, runs))}: {why}.",
        uncertainty=doubt,
        structures=models[0].plan.label_names[1:],
    )


def _check(run: Path, roster: Roster) -> str:
    """Return ``segmenter`` or ``encoder``; refuse a run that cannot say anything about these images."""
    file, parts, metadata = read_run(run)
    kind = PART if PART in parts else "encoder"
    if kind not in parts:
        raise UsageError(
            f"--run {run}: {file.name} holds {', '.join(parts) or 'nothing'}, no segmenter or encoder."
        )
    expected, found = len(metadata["plan"]["channels"]), roster.dataset.channel_names
    if expected != len(found):
        raise UsageError(
            f"--run {run}: it was trained on {expected} image channels, {roster.dataset.name} has {len(found)} "
            f"({', '.join(found)}). Give a run of images with these channels."
        )
    trained_on = metadata.get("data_name", roster.dataset.name)
    if kind == PART and trained_on != roster.dataset.name:
        raise UsageError(
            f"--run {run}: it was trained on {trained_on}, this is {roster.dataset.name}: its doubt "
            "would be about the other images. Give a run of this data set, or none for a cold start."
        )
    return kind
