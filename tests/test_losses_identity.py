"""Laws of SimSiam's, BYOL's and MoCo's terms."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from handful.losses.identity import byol_distance, negative_cosine, queue_info_nce


def case() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    queue = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    return query.requires_grad_(), key.requires_grad_(), queue.requires_grad_()


@pytest.mark.parametrize(("angle", "cosine"), [(0, 1), (math.pi / 2, 0), (math.pi, -1)])
def test_cosines_by_hand(angle: float, cosine: float) -> None:
    z = torch.tensor([[2.0, 0.0]] * 3)
    p = torch.tensor([[math.cos(angle), math.sin(angle)]] * 3)
    assert negative_cosine(p, z).item() == pytest.approx(-cosine, abs=1e-6)
    assert byol_distance(p, z).item() == pytest.approx(2 - 2 * cosine, abs=1e-6)


def test_bootstrap_is_the_squared_distance_on_the_sphere() -> None:
    query, key, _ = case()
    slow = (F.normalize(query, dim=1) - F.normalize(key, dim=1)).square().sum(1).mean()
    assert byol_distance(query, key).item() == pytest.approx(slow.item(), rel=1e-12)


def test_queue_agrees_with_the_slow_obvious_version() -> None:
    query, key, queue = case()
    terms = []
    query, key, queue = (z.detach() for z in (query, key, queue))
    for q, k in zip(F.normalize(query, dim=1), F.normalize(key, dim=1)):
        near = math.exp(float(q @ k) / 0.2)
        far = sum(math.exp(float(q @ n) / 0.2) for n in F.normalize(queue, dim=1))
        terms.append(-math.log(near / (near + far)))
    assert len(terms) == 5
    assert queue_info_nce(query, key, queue).item() == pytest.approx(sum(terms) / 5, rel=1e-12)
    same = queue_info_nce(torch.ones(4, 2), torch.ones(4, 2), torch.ones(6, 2), temperature=0.3)
    assert same.item() == pytest.approx(math.log(7), rel=1e-6)


def test_related_keys_are_no_negatives() -> None:
    query, key, queue = case()
    related = torch.rand(5, 7, generator=torch.Generator().manual_seed(1)) < 0.4
    related[3] = True  # nothing left to tell it from: costs nothing
    rows = [
        queue_info_nce(q[None], k[None], queue[~r]).item()
        for q, k, r in zip(query, key, related, strict=True)
    ]
    loss = queue_info_nce(query, key, queue, related=related)
    loss.backward()
    assert rows[3] == 0
    assert loss.item() == pytest.approx(sum(rows) / 5, rel=1e-12)
    assert query.grad is not None
    assert torch.isfinite(query.grad).all()
    with pytest.raises(ValueError, match=r"related must be bool of shape \(5, 7\)"):
        queue_info_nce(query, key, queue, related=related.T)


def test_only_the_first_argument_gets_a_gradient_and_scale_does_not_matter() -> None:
    query, key, queue = case()

    def total(a: float = 1, b: float = 1, c: float = 1) -> Tensor:
        return queue_info_nce(query * a, key * b, queue * c) + byol_distance(query * a, key * b)

    total().backward()
    assert query.grad is not None
    assert query.grad.abs().sum() > 0
    assert key.grad is None
    assert queue.grad is None
    assert total(2, 3, 4).item() == pytest.approx(total().item(), rel=1e-9)
    assert torch.autograd.gradcheck(lambda z: queue_info_nce(z, key, queue), query)
    assert queue_info_nce(query.half(), key.half(), queue.half()).dtype == torch.float32
    assert queue_info_nce(query, key.float(), queue.half()).dtype == torch.float64


def test_nothing_to_compare_is_zero_with_a_graph() -> None:
    query, key, queue = case()
    for loss in (
        queue_info_nce(query, key, queue[:0]),
        queue_info_nce(query[:0], key[:0], queue),
        negative_cosine(query[:0], key[:0]),
        byol_distance(query[:0], key[:0]),
    ):
        query.grad = None
        loss.backward()
        assert loss.item() == 0
        assert query.grad is not None
        assert (query.grad == 0).all()


def test_a_zero_vector_has_no_direction() -> None:
    z = torch.zeros(2, 3, requires_grad=True)
    loss = negative_cosine(z, torch.ones(2, 3))
    loss.backward()
    assert loss.item() == 0
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()


def test_bad_input_is_said() -> None:
    query, key, queue = case()
    with pytest.raises(ValueError, match="same shape"):
        negative_cosine(query, key[:3])
    with pytest.raises(ValueError, match=r"target must be \(N, E\)"):
        negative_cosine(query, key[0])
    with pytest.raises(ValueError, match="floating point"):
        byol_distance(query.long(), key)
    with pytest.raises(ValueError, match="temperature must be positive"):
        queue_info_nce(query, key, queue, temperature=-1)
    with pytest.raises(ValueError, match="equally wide"):
        queue_info_nce(query, key, queue[:, :2])
    broken = queue.detach().clone()
    broken[2, 1] = math.inf
    with pytest.raises(ValueError, match=r"queue .* 1 NaN or infinite values, the first at \(2, 1\)"):
        queue_info_nce(query, key, broken)
