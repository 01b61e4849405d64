"""What a method's own part costs on a CPU: its detection relative to a plain part of it, both measured in one run.

    python examples/method_cost.py --size 256 --batch-size 8 --threads 1

HFR-AE: the whole detection relative to its bare frozen encoder. DAAD: with its block-wise memories relative to without
(AE+Skip). ITAE: with its T erased versions relative to one pass of the same network over the image alone. The two sides
take turns, so that both see the same machine; compared are CPU seconds, which other programs do not add to. Weights are
random: they do not change the cost. Prints one JSON line a method.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from monai_anomaly.networks import DAAD, HFRAE, ITAE

Sides = tuple[Callable[[Tensor], object], Callable[[Tensor], object]]


def hfrae(size: int) -> Sides:
    """The whole detection and the bare encoder, ResNet18."""
    network = HFRAE(encoder="resnet18").eval()
    return network.detect, network.encode


def daad(size: int) -> Sides:
    """DAAD with and without memories."""
    whole = DAAD(image_size=(size, size), discriminator=False).eval()
    return whole.detect, DAAD(image_size=(size, size), discriminator=False, memory_scales=[]).eval().detect


def itae(size: int) -> Sides:
    """ITAE with the four turns and as a plain autoencoder."""
    return ITAE(erasing=["rotation"]).eval().detect, ITAE(erasing=[]).eval().detect


METHODS = {"hfrae": hfrae, "daad": daad, "itae": itae}


def cpu_seconds(function: Callable[[Tensor], object], image: Tensor) -> float:
    """The CPU time of one call."""
    start = time.process_time()
    function(image)
    return time.process_time() - start


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    image = torch.rand(given.batch_size, 1, given.size, given.size)
    for method in given.methods:
        whole, part = METHODS[method](given.size)
        pairs = [(cpu_seconds(whole, image), cpu_seconds(part, image)) for _ in range(given.repeats + 1)][1:]
        ratios = [w / p for w, p in pairs]  # without the first pair, which warms up
        found = {
            "method": method,
            "size": given.size,
            "batch_size": given.batch_size,
            "threads": given.threads,
            "repeats": given.repeats,
            "seconds_per_image": round(statistics.median(w for w, _ in pairs) / given.batch_size, 4),
            "seconds_per_image_of_the_part": round(statistics.median(p for _, p in pairs) / given.batch_size, 4),
            "ratio": round(statistics.median(ratios), 3),
            "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
