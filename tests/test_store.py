"""Where cases lie changes nothing: streamed from compressed files, a batch is the batch from memory, bit for bit."""

from pathlib import Path

import pytest
import torch

from handful.data.augment.settings import AugmentSettings
from handful.data.sampling import SamplingSettings, Source
from handful.data.store import load_cases
from handful.training.decisions import choose_cases, decide_plan


@pytest.mark.parametrize("dims", [2, 3])
def test_streamed_batches_equal_resident_batches(phantom_folder: Path, tmp_path: Path, dims: int) -> None:
    dataset, _, selection = choose_cases(phantom_folder, labels="2")
    plan = decide_plan(dataset, selection, device="cpu", dims=dims)
    cases = [*selection.labelled, *selection.unlabelled]
    device = torch.device("cpu")
    resident = load_cases(cases, plan, folder=tmp_path, device=device)
    streamed = load_cases(cases, plan, folder=tmp_path, device=device, memory_gb=0)
    assert not resident.streamed
    assert streamed.streamed
    batches = []
    for stored in (resident.cases, streamed.cases):
        assert [case.label is not None for case in stored] == [True] * 2 + [False] * (len(cases) - 2)
        source = Source(
            labelled=stored[:2], unlabelled=stored[2:], patch=plan.patch, batch=3, classes=len(plan.label_values),
            mirror=plan.mirror, augment=AugmentSettings(), sampling=SamplingSettings(), device=device, seed=1, step=4,
        )  # fmt: skip
        seen = source.view(source.draw_labelled(3))
        hidden = source.view(source.draw_unlabelled(2))
        assert hidden.label is None
        batches.append((seen.image, seen.label, hidden.image))
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one, other)
