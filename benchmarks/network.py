"""What a training step of the U-Net costs, variant by variant, and how much of the machine it uses.

    python benchmarks/network.py [--threads 1]

Times are processor time, the fastest of a few steps, so that other programs on the machine disturb little; the rate is
compared with the machine's own matrix product, measured in between.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from handful.losses.segmentation import dice_ce
from handful.networks.blocks import InstanceNorm
from handful.networks.unet import UNet

SHAPE = (2, 1, 40, 56, 40)
WIDTHS = (16, 32, 64, 128)


class TorchInstanceNorm(InstanceNorm):
    """Torch's own kernel, for comparison."""

    def forward(self, x: Tensor) -> Tensor:
        return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)


class GroupedNorm(InstanceNorm):
    """Group norm with one channel a group: the same function by another kernel, for comparison."""

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, x.shape[1], self.weight, self.bias, self.eps)


def count_flops(net: nn.Module, shape: Sequence[int]) -> int:
    """Return the floating-point operations of one forward and backward pass on images of ``shape`` (B, C, *S)."""
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(*shape)).sum().backward()
    return counter.get_total_flops()


def fastest(call: Callable[[], object], *, repeats: int = 4) -> float:
    """Return the processor seconds of the fastest of several calls, after one that warms up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def matmul_rate(dtype: torch.dtype) -> float:
    """Return the GFLOP/s of a large matrix product."""
    a = torch.randn(2048, 2048).to(dtype)
    return float(2 * 2048**3 / fastest(lambda: a @ a) / 1e9)


def row(
    name: str,
    *,
    last: bool,
    dtype: torch.dtype,
    peak: float,
    instance: type[nn.Module] = InstanceNorm,
    **kwargs: Any,
) -> str:
    """Time one variant and return its line of the table."""
    torch.manual_seed(0)
    net = UNet(dims=3, in_channels=SHAPE[1], classes=3, widths=WIDTHS, **kwargs)
    for module in net.modules():
        if type(module) is InstanceNorm:
            module.__class__ = instance
    form = torch.channels_last_3d if last else torch.contiguous_format
    net = net.to(memory_format=form)
    image = torch.randn(*SHAPE).to(memory_format=form)
    label = torch.randint(0, 3, (SHAPE[0], *SHAPE[2:]))

    def step() -> None:
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = net(image)
        dice_ce(logits, label).backward()

    rate = count_flops(net, SHAPE) / 1e9
    seconds = fastest(step)
    kind = f"{'channels-last' if last else 'channels-first'}, {'bf16' if dtype == torch.bfloat16 else 'fp32'}"
    return f"| {name} | {kind} | {seconds * 1e3:.0f} | {rate / seconds:.0f} | {rate / seconds / peak:.0%} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    print("| variant | memory, precision | ms/step | GFLOP/s | of matmul |\n|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        peak = matmul_rate(dtype)
        common: dict[str, Any] = {"dtype": dtype, "peak": peak}
        print(row("instance norm", last=False, **common), flush=True)
        print(row("instance norm", last=True, **common), flush=True)
        print(row("instance norm, torch's", last=True, instance=TorchInstanceNorm, **common), flush=True)
        print(row("group norm of one", last=True, instance=GroupedNorm, **common), flush=True)
        print(row("batch norm", last=True, norm="batch", **common), flush=True)
        print(row("no norm", last=True, norm="none", **common), flush=True)
        print(row("max-pool down", last=True, style={"down": "pool"}, **common), flush=True)
        print(row("linear up", last=True, style={"up": "linear"}, **common), flush=True)
        print(row("residual, one block a level", last=True, kind="residual", blocks=1, **common), flush=True)


if __name__ == "__main__":
    main()
