"""Laws of the memory banks: first in, first out, whatever the sizes."""

import copy

import pytest
import torch

from handful.networks.bank import Bank, ClassBanks


@pytest.mark.parametrize("shape", [(), (3,), (2, 4)])
@pytest.mark.parametrize("capacity", [1, 5, 12])
def test_a_bank_is_the_end_of_the_list(capacity: int, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(capacity)
    bank, everything = Bank(capacity, *shape), torch.zeros(0, *shape)
    for count in (0, 3, 1, 4, 0, 13, 2, 5, 5, 1):
        rows = torch.randn(count, *shape, generator=generator)
        bank.enqueue(rows)
        everything = torch.cat((everything, rows))
        kept = everything[max(0, len(everything) - capacity) :]
        assert len(bank) == len(bank.valid) == min(len(everything), capacity)
        assert torch.equal(bank.in_order(), kept)
        assert torch.equal(bank.valid.flatten().sort().values, kept.flatten().sort().values)
    assert len(everything) == 34


def test_state_goes_round_and_the_copy_continues_alike() -> None:
    bank, other = Bank(5, 2), Bank(5, 2)
    bank.enqueue(torch.randn(7, 2))
    other.load_state_dict(copy.deepcopy(bank.state_dict()), strict=True)
    rows = torch.randn(2, 2)
    for one in (bank, other):
        one.enqueue(rows)
    assert torch.equal(bank.in_order(), other.in_order())
    assert all(isinstance(value, torch.Tensor) for value in bank.state_dict().values())


def test_rows_have_no_gradient_and_are_copies() -> None:
    bank, rows = Bank(4, 2), torch.ones(2, 2, requires_grad=True)
    bank.enqueue(rows * 2)
    assert not bank.valid.requires_grad
    kept = bank.in_order()
    bank.enqueue(torch.zeros(4, 2))
    assert (kept == 2).all()
    assert not list(bank.parameters())


def test_gather_brings_the_rows_of_all_processes() -> None:
    bank = Bank(9, 2)
    bank.enqueue(torch.ones(2, 2), gather=lambda rows: torch.cat((rows, rows * 2)))
    assert bank.in_order()[:, 0].tolist() == [1, 1, 2, 2]


def test_class_banks_take_the_pixels_of_their_masks_in_order() -> None:
    z = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    keys = torch.rand(2, 2, 4, 5, generator=torch.Generator().manual_seed(0)) < 0.4
    banks = ClassBanks([100, 3], 3)
    assert banks.enqueue(z, keys) == keys.transpose(0, 1).flatten(1).sum(1).tolist()
    pixels = z.movedim(1, -1)
    assert torch.equal(banks[0].in_order(), pixels[keys[:, 0]])
    assert torch.equal(banks[1].in_order(), pixels[keys[:, 1]][-3:])
    assert banks.sizes == [len(rows) for rows in banks.valid] == [int(keys[:, 0].sum()), 3]
    other = ClassBanks([100, 3], 3)
    other.load_state_dict(banks.state_dict())
    assert other.sizes == banks.sizes


def test_bad_input_is_said() -> None:
    bank = Bank(4, 2)
    with pytest.raises(ValueError, match="holds rows of"):
        bank.enqueue(torch.ones(3, 3))
    with pytest.raises(ValueError, match="NaN must not enter"):
        bank.enqueue(torch.full((1, 2), torch.nan))
    with pytest.raises(ValueError, match="at least 1"):
        Bank(0, 2)
    with pytest.raises(ValueError, match="keys must be"):
        ClassBanks([2, 2], 3).enqueue(torch.zeros(1, 3, 4, 5), torch.zeros(1, 3, 4, 5, dtype=torch.bool))
