"""Devices and precisions are chosen or refused in words, the same for every command."""

import pytest
import torch

from handful.device import PRECISIONS, choose_device, choose_precision, use_threads
from handful.errors import UsageError

CPU = torch.device("cpu")


def test_what_is_named_is_taken() -> None:
    assert choose_device("cpu") == CPU
    assert [choose_precision(name, CPU) for name in ("32", "bf16")] == ["32-true", "bf16-mixed"]
    assert choose_precision("fp16", torch.device("cuda", 0)) == "16-mixed"


def test_auto_takes_what_is_there() -> None:
    assert choose_device("auto").type == (
        "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    )
    assert choose_precision("auto", CPU) in {PRECISIONS["32"], PRECISIONS["bf16"]}


@pytest.mark.parametrize("name", ["tpu", "warp", "xpu", "cuda:9999", "cpu:x"])
def test_other_devices_are_refused_with_what_is_allowed(name: str) -> None:
    with pytest.raises(UsageError, match=rf"--device {name}: .*(expected auto, cpu|--device auto or cpu)"):
        choose_device(name)


def test_other_precisions_and_no_threads_are_refused() -> None:
    with pytest.raises(UsageError, match="expected auto, 32, bf16, fp16"):
        choose_precision("fp8", CPU)
    with pytest.raises(UsageError, match="needs a GPU"):
        choose_precision("fp16", CPU)
    with pytest.raises(UsageError, match="at least 1, found 0"):
        use_threads(0)


def test_no_number_of_threads_leaves_what_is() -> None:
    before = torch.get_num_threads()
    use_threads(None)
    assert torch.get_num_threads() == before
