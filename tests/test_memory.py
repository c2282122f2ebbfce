"""Laws of the memory that knows where its embeddings were cut from, and of the heads with batch norm."""

import torch

from handful.losses.mixcl import overlapping
from handful.networks.embedder import Embedder
from handful.networks.heads import NormedHead
from handful.networks.memory import Memory, overlap


def boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.randint(0, 9, (count, 3), generator=generator)
    high = low + torch.randint(1, 6, (count, 3), generator=generator)
    return torch.cat([torch.randint(0, 2, (count, 1), generator=generator), low, high], 1)


def test_boxes_overlap_as_the_losses_say() -> None:
    box = boxes(30, 0)
    assert torch.equal(overlap(box, box), overlapping(box[:, 0], box[:, 1:4], box[:, 4:]))
    mine, theirs = boxes(6, 1), boxes(11, 2)
    slow = [
        [bool(a[0] == b[0]) and bool((a[1:4] < b[4:]).all()) and bool((b[1:4] < a[4:]).all()) for b in theirs]
        for a in mine
    ]  # fmt: skip
    found = overlap(mine, theirs)
    assert found.tolist() == slow
    assert 0 < found.sum() < found.numel()


def test_embeddings_and_boxes_stay_together_and_go_round() -> None:
    memory, other = Memory(4, 2), Memory(4, 2)
    z, box = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)), boxes(6, 3)
    memory.enqueue(z[:3], box[:3])
    memory.enqueue(z[3:], box[3:])
    other.load_state_dict(memory.state_dict())
    held, held_boxes = other.with_batch(z[:1], box[:1])
    assert len(held) == len(held_boxes) == 5
    assert torch.equal(held[0], z[0])
    for row, seven in zip(held, held_boxes, strict=True):
        assert any(torch.equal(row, a) and torch.equal(seven, b) for a, b in zip(z, box, strict=True))
    assert {tuple(row.tolist()) for row in held[1:]} == {tuple(row.tolist()) for row in z[2:]}


def test_a_normed_head_is_linear_norm_relu_linear() -> None:
    torch.manual_seed(0)
    head = NormedHead(3, widths=(5, 4))
    feature = torch.randn(6, 3, 2, 4)
    first, norm, _, last = head.layers
    hidden = feature.mean((2, 3)) @ first.weight.T
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + norm.eps).sqrt()
    torch.testing.assert_close(head(feature), hidden.relu() @ last.weight.T + last.bias)
    torch.testing.assert_close(head(feature), head(feature.mean((2, 3))))
    whole = NormedHead(3, widths=(5, 4), norm_last=True)(feature)
    torch.testing.assert_close(whole.mean(0), torch.zeros(4), atol=1e-6, rtol=0)
    assert [name for name, _ in NormedHead(3, widths=(5, 4), norm_last=True).named_parameters()] == [
        "layers.0.weight", "layers.1.weight", "layers.1.bias", "layers.3.weight",
    ]  # fmt: skip


def test_embeddings_are_float32_under_autocast() -> None:
    embedder = Embedder(torch.nn.ModuleList(), NormedHead(3, widths=(4,)))
    embedder.encoder = torch.nn.Identity()
    with torch.autocast("cpu", torch.bfloat16):
        assert embedder([torch.ones(2, 3, 4)]).dtype == torch.float32
