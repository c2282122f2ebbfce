"""MONA's stage-one relational loss against its published numbers, and its laws."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from golden_values import golden
from handful.losses.relational import relation, window_relation, windows
from handful.networks.bank import Bank


def linear(g: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight, bias = g[f"{name}_weight"], g[f"{name}_bias"]
    if weight.ndim == 4:
        return F.conv2d(x, weight, bias)
    return F.linear(x, weight, bias)


def through(g: dict[str, Tensor], x: Tensor, *names: str) -> Tensor:
    for name in names:
        x = linear(g, name, x)
    return x


def test_global_and_window_losses_are_the_published_ones() -> None:
    g = golden("mona_isd")
    temperatures = {"student_temperature": float(g["T_s"]), "teacher_temperature": float(g["T_t"])}

    student = through(
        g,
        g["student_latent"].mean((2, 3)),
        *("q_latent_head_f1", "q_latent_head_f2", "latent_predictor_0", "latent_predictor_1"),
    )
    teacher = through(g, g["teacher_latent"].mean((2, 3)), "k_latent_head_f1", "k_latent_head_f2")
    loss = relation(student, teacher, g["queue_before"], **temperatures)
    assert loss.item() == pytest.approx(
        float(g["loss_latent"]), abs=1e-4
    )  # teacher logits are divided by .01
    cosine = F.normalize(student, dim=1) @ F.normalize(g["queue_before"], dim=1).T
    torch.testing.assert_close(cosine / float(g["T_s"]), g["latent_logits"], atol=1e-5, rtol=1e-5)
    queue = Bank(6, 8)
    queue.enqueue(g["queue_before"])
    queue.enqueue(teacher)
    torch.testing.assert_close(F.normalize(queue.valid[:2], dim=1), F.normalize(g["queue_after"][:2], dim=1))
    torch.testing.assert_close(queue.valid[2:], g["queue_after"][2:])

    def embed(maps: Tensor, *names: str) -> Tensor:
        cut = windows(maps, size=int(g["cut_size"]), step=int(g["step"]))
        pooled = F.adaptive_avg_pool2d(cut.flatten(0, 1), 2)
        return through(g, pooled, *names).flatten(1).unflatten(0, (2, 49))

    student = embed(
        g["student_seg_logits"],
        *("q_outputs_head_proj_1", "q_outputs_head_proj_2", "outputs_predictor_0", "outputs_predictor_1"),
    )
    teacher = embed(g["teacher_seg_logits"], "k_outputs_head_proj_1", "k_outputs_head_proj_2")
    torch.testing.assert_close(student, g["patch_embed_student"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(teacher, g["patch_embed_teacher"], atol=1e-5, rtol=1e-5)
    bank = g["queue_mask_before"]
    intended = window_relation(student, teacher, bank, **temperatures)
    assert intended.item() == pytest.approx(float(g["loss_output_intended"]), abs=1e-4)
    official = window_relation(student, teacher, bank, **temperatures, form="official")
    assert official.item() == pytest.approx(float(g["loss_output"]), abs=1e-4)
    assert intended.item() != pytest.approx(official.item(), abs=0.1)
    # what the released code enqueues mixes images and windows; ours enqueues `teacher`
    mixed = teacher.transpose(0, 1).reshape(2, 49, 16)
    torch.testing.assert_close(mixed, g["queue_mask_after"][:2], atol=1e-5, rtol=1e-5)


def at(*cosines: float) -> Tensor:
    """A vector with these cosines to the unit vectors e1, e2, ..."""
    rest = math.sqrt(1 - sum(cosine**2 for cosine in cosines))
    return torch.tensor([[*cosines, rest]], dtype=torch.float64)


@pytest.mark.parametrize(("temperature", "expected"), [(0.01, 0.126928), (0.1, 0.124580)])
def test_relation_by_hand(temperature: float, expected: float) -> None:
    bank = torch.eye(3, dtype=torch.float64)[:2]
    loss = relation(at(0.6, 0.4), at(0.9, 0.1), bank, teacher_temperature=temperature)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def case(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.float64)
    bank = torch.randn(7, 5, 4, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), teacher.requires_grad_(), bank.requires_grad_()


def test_windows_are_compared_with_the_same_window() -> None:
    student, teacher, bank = case()
    apart = torch.stack([relation(student[:, p], teacher[:, p], bank[:, p]) for p in range(5)])
    assert window_relation(student, teacher, bank).item() == pytest.approx(apart.mean().item(), rel=1e-12)


def test_only_the_student_gets_a_gradient_and_scale_does_not_matter() -> None:
    student, teacher, bank = case()
    loss = window_relation(student, teacher, bank) + relation(student[:, 0], teacher[:, 0], bank[:, 0])
    loss.backward()
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None
    assert bank.grad is None
    scaled = window_relation(student * 3, teacher * 4, bank * 5)
    assert scaled.item() == pytest.approx(window_relation(student, teacher, bank).item(), rel=1e-9)
    assert torch.autograd.gradcheck(
        lambda z: window_relation(z, teacher, bank, teacher_temperature=0.1), student
    )


def test_equal_relations_cost_nothing() -> None:
    student, _, bank = case()
    same = window_relation(student, student, bank, student_temperature=0.2, teacher_temperature=0.2)
    assert same.item() == pytest.approx(0, abs=1e-12)
    for empty in (bank[:0], bank[:1]):
        loss = window_relation(student, student, empty)
        student.grad = None
        loss.backward()
        assert loss.item() == 0
        assert student.grad is not None
        assert student.grad.abs().max() < 1e-12


@pytest.mark.parametrize(
    ("shape", "size", "step", "count"),
    [((256, 256), 64, 32, 49), ((112, 112, 80), 20, 10, 700), ((10, 7), (4, 3), (3, 2), 9)],
)
def test_windows_are_the_pieces(
    shape: tuple[int, ...], size: int | tuple[int, ...], step: int | tuple[int, ...], count: int
) -> None:
    maps = torch.randn(1, 1, *shape)
    cut = windows(maps, size=size, step=step)
    sizes = (size,) * len(shape) if isinstance(size, int) else size
    steps = (step,) * len(shape) if isinstance(step, int) else step
    assert cut.shape == (1, count, 1, *sizes)
    last = tuple(slice((n - w) // s * s, (n - w) // s * s + w) for n, w, s in zip(shape, sizes, steps))
    assert torch.equal(cut[0, -1, 0], maps[(0, 0, *last)])
    second = (*(slice(0, w) for w in sizes[:-1]), slice(steps[-1], steps[-1] + sizes[-1]))
    assert torch.equal(cut[0, 1, 0], maps[(0, 0, *second)])


def test_bad_input_is_said() -> None:
    student, teacher, bank = case()
    with pytest.raises(ValueError, match="teacher_temperature must be positive"):
        window_relation(student, teacher, bank, teacher_temperature=0)
    with pytest.raises(ValueError, match="same shape"):
        window_relation(student, teacher[:2], bank)
    with pytest.raises(ValueError, match="same windows"):
        window_relation(student, teacher, bank[:, :3])
    with pytest.raises(ValueError, match="equally wide"):
        window_relation(student, teacher, bank[..., :3])
    with pytest.raises(ValueError, match=r"bank .*NaN"):
        window_relation(student, teacher, bank * math.nan)
    with pytest.raises(ValueError, match="do not fit"):
        windows(torch.zeros(1, 1, 4, 6), size=5, step=1)
