"""Make the abnormal side of GTSRB's stop signs: adversarial images, by the Boundary Attack.

    pip install foolbox
    python examples/adversarial_stop_signs.py GTSRB --count 20 --steps 25000

GTSRB holds the unpacked training and test archives (``GTSRBStopSigns.download`` fetches them). A small network learns
to tell the 43 signs apart on the training images. Test images of stop signs are then drawn at random, and each that
the network knows is attacked by foolbox's Boundary Attack until it is taken for another sign. The images go to
``GTSRB/adversarial/<test image>_as_<class>.png``.

Signs keep their own size throughout: the network rounds to 8 bits and resizes by itself, so that what is attacked is
what is written, and neither size nor rounding tells the adversarial images from the others.

Brendel et al., Decision-based adversarial attacks, ICLR 2018.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.utils import set_determinism
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from monai_anomaly.data.published.traffic import GTSRBStopSigns, Sign
from monai_anomaly.exceptions import InputError

CLASSES = 43
SIDE = 32


def import_foolbox() -> ModuleType:
    """The library of attacks.

    Raises:
        InputError: if it is not installed.
    """
    try:
        return importlib.import_module("foolbox")
    except ImportError as error:
        raise InputError("foolbox", f"cannot be imported ({error})", "Run: pip install foolbox") from error


class SignNetwork(nn.Module):
    """Images in [0, 1], shape (B, 3, H, W) of any size, to logits (B, 43)."""

    def __init__(self) -> None:
        super().__init__()
        channels = (3, 32, 64, 128)
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        features = channels[-1] * (SIDE // 8) ** 2
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(features, CLASSES))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.layers(resized((pictures * 255).round() / 255))


def resized(pictures: Tensor) -> Tensor:
    """Images (B, C, H, W) at the network's size."""
    if pictures.shape[-2:] == (SIDE, SIDE):
        return pictures
    return F.interpolate(pictures, (SIDE, SIDE), mode="bilinear", antialias=True)


def as_tensor(picture: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 as (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(picture).permute(2, 0, 1)[None] / 255.0


def load(signs: Sequence[Sign], what: str) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) in [0, 1] and classes (N,) of signs."""
    pictures = [resized(as_tensor(sign.read())) for sign in tqdm(signs, desc=what, disable=None)]
    return torch.cat(pictures), torch.tensor([sign.kind for sign in signs])


def train(pictures: Tensor, kinds: Tensor, epochs: int, device: torch.device) -> SignNetwork:
    """A network that tells signs apart, in evaluation mode."""
    network = SignNetwork().to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in tqdm(range(epochs), desc="training", disable=None):
        for batch in torch.randperm(len(pictures)).split(128):
            optimizer.zero_grad()
            F.cross_entropy(network(pictures[batch].to(device)), kinds[batch].to(device)).backward()
            optimizer.step()
    return network.eval()


@torch.no_grad()
def recognised(network: SignNetwork, picture: np.ndarray, device: torch.device) -> int:
    """What the network takes an image (H, W, 3) uint8 for."""
    return int(network(as_tensor(picture).to(device)).argmax())


def attacked(network: SignNetwork, picture: np.ndarray, kind: int, steps: int, device: torch.device) -> np.ndarray:
    """An adversarial image near another.

    Args:
        network: to be deceived.
        image: shape (H, W, 3), uint8.
        kind: its class.
        steps: of the attack.
        device: of the network.

    Returns:
        shape (H, W, 3), uint8.

    Raises:
        InputError: if foolbox is not installed.
        ValueError: if the attack finds no image to start from.
    """
    foolbox = import_foolbox()
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device=device)
    attack = foolbox.attacks.BoundaryAttack(steps=steps)
    _, found, _ = attack(model, as_tensor(picture).to(device), torch.tensor([kind], device=device), epsilons=None)
    return (found[0].permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, attack, write the images and ``adversarial/attack.json``.

    Args:
        arguments: of the command line; None reads them from the process.

    Returns:
        What was written to ``attack.json``.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--steps", type=int, default=25000, help="of the attack, for each image")
    parser.add_argument("--epochs", type=int, default=10, help="of the network's training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    foolbox = import_foolbox()
    signs = GTSRBStopSigns(options.root)
    folder = signs.adversarial_folder
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(folder, "is not empty", "Delete it to make other images.")
    device = torch.device(options.device)
    set_determinism(options.seed)
    training = load([sign for kind in range(CLASSES) for sign in signs.training_signs(kind)], "training images")
    network = train(*training, options.epochs, device)
    stop_signs = [sign for sign in signs.test_signs() if sign.kind == signs.stop_sign]

    folder.mkdir(exist_ok=True)
    made: list[dict[str, Any]] = []
    unknown: list[str] = []
    failed: list[str] = []
    progress = tqdm(total=options.count, desc="attacks", disable=None)
    for index in np.random.default_rng(options.seed).permutation(len(stop_signs)):
        if len(made) == options.count:
            break
        sign = stop_signs[index]
        picture = sign.read()
        if recognised(network, picture, device) != sign.kind:
            unknown.append(sign.path.name)
            continue
        try:
            adversarial = attacked(network, picture, sign.kind, options.steps, device)
        except ValueError:  # no start was found; another image takes its place
            failed.append(sign.path.name)
            continue
        kind = recognised(network, adversarial, device)
        if kind == sign.kind:
            raise RuntimeError(f"{sign.path}: the attack's image is still taken for a stop sign")
        name = f"{sign.path.stem}_as_{kind:02d}.png"
        Image.fromarray(adversarial).save(folder / name)
        change = np.sqrt(np.mean((adversarial / 255.0 - picture / 255.0) ** 2))
        made.append({"name": name, "source": sign.path.name, "taken_for": kind, "rms_change": float(change)})
        progress.update()
    progress.close()
    if len(made) < options.count:
        known = f"of {len(stop_signs)} test stop signs {len(unknown)} are not recognised, {len(failed)} have no start"
        raise InputError(folder, f"{len(made)} of {options.count} images could be made: {known}", "Train for longer.")
    result = {
        "attack": f"foolbox {foolbox.__version__} BoundaryAttack",
        "steps": options.steps,
        "epochs": options.epochs,
        "seed": options.seed,
        "not_recognised": unknown,
        "no_start_found": failed,
        "pictures": made,
    }
    (folder / "attack.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    try:
        pictures = main()["pictures"]
    except InputError as failure:
        sys.exit(str(failure))
    print(f"{len(pictures)} adversarial images, mean change {np.mean([p['rms_change'] for p in pictures]):.4f} (RMS)")
