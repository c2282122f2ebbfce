"""Every term: float32 at least, float64 throughout, the same under autocast, NaN refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from handful import losses
from handful.losses.anatomical import Draw

GENERATOR = torch.Generator().manual_seed(0)
STUDENT, TEACHER = torch.randn(2, 3, 4, 6, 5, generator=GENERATOR)
LABEL = torch.randint(0, 4, (3, 6, 5), generator=GENERATOR)
BANK = torch.randn(9, 4, generator=GENERATOR)
MEMBERS = losses.class_masks(LABEL, 4)
DRAWS = [
    Draw(k, k, MEMBERS[:, k].flatten().nonzero()[:3, 0], torch.arange(6).reshape(3, 2)) for k in range(4)
]
SURE = torch.rand(3, 6, 5, generator=GENERATOR)


def rows(maps: Tensor) -> Tensor:
    return maps.flatten(2).mean(2)


def windowed(maps: Tensor) -> Tensor:
    return maps.flatten(2).transpose(1, 2)


TERMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "negative_cosine": lambda s, t: losses.negative_cosine(rows(s), rows(t)),
    "byol_distance": lambda s, t: losses.byol_distance(rows(s), rows(t)),
    "queue_info_nce": lambda s, t: losses.queue_info_nce(rows(s), rows(t), BANK),
    "relation": lambda s, t: losses.relation(rows(s), rows(t), BANK),
    "window_relation": lambda s, t: losses.window_relation(windowed(s), windowed(t), windowed(TEACHER)),
    "nearest_neighbours": lambda s, t: losses.nearest_neighbours(rows(s), rows(t), BANK),
    "query_contrast": lambda s, t: losses.query_contrast(s, MEMBERS, DRAWS),
    "bank_contrast": lambda s, t: losses.bank_contrast(s, t, MEMBERS, [BANK] * 4, DRAWS),
    "warp_consistency": lambda s, t: losses.warp_consistency(s, t, SURE, lambda maps: maps.flip(2)),
    "pseudo_label": lambda s, t: losses.pseudo_label_cross_entropy(s, LABEL, SURE, threshold=0.5),
    "squared_consistency": lambda s, t: losses.squared_consistency(s, t),
    "divergence_consistency": lambda s, t: losses.divergence_consistency(s, t),
    "reconstruction_error": lambda s, t: losses.reconstruction_error(s, t),
    "identity_contrast": lambda s, t: losses.identity_contrast(rows(s), rows(t)),
    "mixed_identity": lambda s, t: losses.mixed_identity(
        rows(s), rows(t), torch.tensor([1, 2, 0]), weight=0.7
    ),
    "label_contrast": lambda s, t: losses.label_contrast(windowed(s).flatten(0, 1), LABEL.flatten()),
    "label_segmentation": lambda s, t: losses.label_segmentation(s, LABEL),
    "global_contrast": lambda s, t: losses.global_contrast(torch.stack((rows(s), rows(t)), 1)),
    "local_contrast": lambda s, t: losses.local_contrast(
        windowed(s), windowed(t), torch.arange(30)[:, None].roll(1, 0)
    ),
}


@pytest.mark.parametrize("name", TERMS)
def test_precision(name: str) -> None:
    term = TERMS[name]
    exact = term(STUDENT.double(), TEACHER.double())
    assert exact.dtype == torch.float64
    assert exact.ndim == 0
    single = term(STUDENT, TEACHER)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(exact.item(), rel=1e-4, abs=1e-6)
    for kind in (torch.float16, torch.bfloat16):
        assert term(STUDENT.to(kind), TEACHER.to(kind)).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        mixed = term(STUDENT, TEACHER)
    assert mixed.item() == pytest.approx(single.item(), rel=1e-6)


@pytest.mark.parametrize("name", TERMS)
def test_the_student_is_trained_and_nan_is_refused(name: str) -> None:
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone()
    TERMS[name](student, teacher).backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert student.grad.abs().sum() > 0
    broken = STUDENT.clone()
    broken[1, 2, 3, 4] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        TERMS[name](broken, teacher)


def test_all_public_names_exist() -> None:
    assert len(losses.__all__) > 40
    assert all(callable(getattr(losses, name)) for name in losses.__all__)
