"""Laws of the samplers."""

import pytest
import torch

from handful.losses.sampling import Sampler, antithetic, stratified, uniform

SAMPLERS: list[Sampler] = [uniform, stratified, antithetic]
N = [1, 2, 3, 15, 16, 17, 99, 100, 1000, 4097]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("n", N)
def test_draws_are_candidates_and_as_many_as_asked(sampler: Sampler, n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    for count in (0, 1, 8, 256, 5000):
        drawn = sampler(n, count, generator=generator)
        assert drawn.shape == (count,)
        assert drawn.dtype == torch.int64
        if count:
            assert 0 <= int(drawn.min()) <= int(drawn.max()) < n
    for form in ("official",) if sampler is not uniform else ():
        drawn = sampler(n, 256, generator=generator, form=form)  # type: ignore[call-arg]
        assert drawn.shape == (256,)
        assert 0 <= int(drawn.min()) <= int(drawn.max()) < n


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("n", [10, 37, 100])
def test_every_candidate_is_as_likely(sampler: Sampler, n: int) -> None:
    """Stratified draws vary less than independent ones, so chi-square stays below its usual bound."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([sampler(n, 64, generator=generator) for _ in range(3000)])
    seen = drawn.bincount(minlength=n).double()
    expected = len(drawn) / n
    assert ((seen - expected).square() / expected).sum() < n + 5 * (2 * n) ** 0.5


def test_the_official_form_neglects_the_tail() -> None:
    """99 candidates as 10 x 10: cells of 2, 2, 2 and 4 rows are drawn alike, so the last rows come half as often."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([stratified(100, 64, generator=generator, form="official") for _ in range(2000)])
    rows = (drawn // 10).bincount(minlength=10).double() / len(drawn)
    assert rows[:6].mean() == pytest.approx(0.125, abs=0.005)
    assert rows[6:].mean() == pytest.approx(0.0625, abs=0.005)


def test_strata_lower_the_variance_of_a_smooth_mean() -> None:
    """What they are for: the mean of something that varies slowly over the image, 64 draws of 64 x 64."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing="ij")
    values = (y + 2 * x).flatten()
    spread = []
    for sampler in SAMPLERS:
        means = torch.stack([values[sampler(4096, 64, generator=generator)].mean() for _ in range(600)])
        assert means.mean().item() == pytest.approx(values.mean().item(), abs=0.02)
        spread.append(means.var().item())
    assert spread[1] < 0.2 * spread[0]
    assert spread[2] < 0.3 * spread[1], "a mirrored pair cancels what is linear within its stratum"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_chance_is_the_generator_alone_and_bad_counts_are_said(sampler: Sampler) -> None:
    first, second = (sampler(50, 40, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    with pytest.raises(ValueError, match="candidates"):
        sampler(0, 4, generator=torch.Generator())
    with pytest.raises(ValueError, match="candidates"):
        sampler(4, -1, generator=torch.Generator())
