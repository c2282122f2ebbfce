"""Where cases lie changes nothing: streamed from compressed files, a batch is the batch from memory, bit for bit."""

import resource
import sys
from pathlib import Path

import pytest
import torch

from handful.data.augment.settings import AugmentSettings
from handful.data.sampling import SamplingSettings, Source
from handful.data.store import _container, _free_gb, load_cases
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


def test_a_container_leaves_its_limit_less_what_is_not_file_cache(tmp_path: Path) -> None:
    assert _container(tmp_path) is None
    (tmp_path / "memory.stat").write_text("anon 300\nfile 5000\n")
    for limit, expected in (("max", None), ("1000", 700), ("200", 0)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert _container(tmp_path) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ulimit_makes_free_memory_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    told = {resource.RLIMIT_DATA: resource.RLIM_INFINITY, resource.RLIMIT_AS: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (told[limit], resource.RLIM_INFINITY))
    assert _free_gb(device) > 0.01
    told[resource.RLIMIT_DATA] = 1 << 20  # less than this process holds already
    assert _free_gb(device) == 0
