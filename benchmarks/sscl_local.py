"""What a step of SSCL's local stage costs: exact contrast at two decoder levels, with and without a limit of pixels.

    python benchmarks/sscl_local.py [--threads 1]

Volumes of 48 x 64 x 48 voxels, a twentieth of them foreground, and the networks a CPU plan takes. Processor time of
forward and backward on one batch, the fastest of three; the batch, drawn before, is not counted.
"""

import argparse
import time

import torch

from handful.data.augment.settings import AugmentSettings
from handful.data.sampling import SamplingSettings, Source, StoredCase, foreground_voxels
from handful.methods.sscl import SSCL, Settings
from handful.networks.unet import UNet

WIDTHS = {2: (24, 48, 96, 192), 3: (16, 32, 64, 128)}
BATCH = {2: 8, 3: 2}
ALL = 10**9
# dims, how, decoder level, limit of pixels; without it the finest level in 3D takes minutes
CASES = [
    (2, "exact", 0, ALL),
    (2, "exact", 1, ALL),
    (2, "stride", 0, ALL),
    (2, "block", 0, ALL),
    (3, "exact", 0, 32_768),
    (3, "exact", 1, 32_768),
    (3, "stride", 0, ALL),
]


def volume(seed: int) -> StoredCase:
    """Return noise with two classes side by side in a box of a twentieth of the voxels."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.zeros(48, 64, 48, dtype=torch.uint8)
    label[15:33, 20:32, 15:33], label[15:33, 32:44, 15:33] = 1, 2
    image = torch.randn(1, *label.shape, generator=generator) + label
    return StoredCase(f"v{seed}", image, label, foreground_voxels(label.numpy(), 3), (1.0, 1.0, 1.0))


def measure(dims: int, local: str, level: int, pixels: int, cases: list[StoredCase]) -> str:
    """Return a row of the table."""
    torch.manual_seed(0)
    network = UNet(dims=dims, in_channels=1, classes=3, widths=WIDTHS[dims], norm="batch")
    settings = Settings(stage="local", local=local, local_level=level, local_pixels=pixels)  # type: ignore[arg-type]
    method = SSCL(network, settings)
    source = Source(
        labelled=cases, unlabelled=[], patch=(48, 64, 48)[3 - dims :], batch=BATCH[dims], classes=3,
        mirror=(False,) * dims, augment=AugmentSettings(), sampling=SamplingSettings(),
        device=torch.device("cpu"), seed=0, step=0,
    )  # fmt: skip
    batch = method.batch(source)
    taken = []
    for _ in range(3):
        before = time.process_time()
        method.step(batch, 0.0).loss.backward()
        taken.append(time.process_time() - before)
    thinned = settings.stride**dims if local == "stride" else 1
    contrasted = 2 * batch.first.numel() // (2 ** (level * dims) * thinned)
    side = " x ".join(map(str, batch.first.shape[2:]))
    return (
        f"| {dims}D | {local} | {level} | {len(batch.first)} of {side} | {contrasted:,} | {min(taken):.2f} |"
    )


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(arguments.parse_args().threads)
    cases = [volume(seed) for seed in range(4)]
    print("| | local | level | images | pixels contrasted | s a step |")
    print("|---|---|---|---|---|---|")
    for case in CASES:
        print(measure(*case, cases), flush=True)


if __name__ == "__main__":
    main()
