"""PatchCore: patches, distances, score and coreset against plain computations; files, exports, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.networks import convert_to_onnx
from scipy.ndimage import gaussian_filter, uniform_filter
from scipy.spatial.distance import cdist
from scipy.special import logsumexp

from monai_anomaly import networks
from monai_anomaly.exceptions import InputError
from monai_anomaly.networks import PatchCore
from monai_anomaly.networks.nets.patchcore import greedy_coreset

STRIDED: dict[str, Any] = {"encoder": "strided", "encoder_channels": (4, 6, 8)}


def made(**kwargs: Any) -> PatchCore:
    """A detector with a label on its random encoder."""
    torch.manual_seed(0)
    detector = PatchCore(**{**STRIDED, **kwargs}).eval()
    detector.load_encoder(detector.encoder.encoder.state_dict(), "own-encoder")
    return detector


def images(count: int = 6, channels: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, channels, 16, 24, generator=torch.Generator().manual_seed(seed))


def fitted(channels: int = 1, **kwargs: Any) -> PatchCore:
    detector = made(in_channels=channels, **kwargs)
    with torch.no_grad():
        detector.fit_statistics([images(4, channels), images(2, channels, seed=1)], [])
    return detector


@pytest.mark.parametrize("channels", [1, 3])
def test_patches_are_neighbourhood_means_of_joined_levels(channels: int) -> None:
    detector = made(in_channels=channels)
    image = images(2, channels)
    with torch.no_grad():
        found = detector.patches(image)
        _, middle, deep = detector.encode(image)
    assert found.shape == (2, 14, 4, 6)
    # zeros beyond the border count, as in the paper's average pooling
    plain = [uniform_filter(f.double().numpy(), size=(1, 1, 3, 3), mode="constant") for f in (middle, deep)]
    joined = np.concatenate(
        [plain[0], F.interpolate(torch.tensor(plain[1]), (4, 6), mode="bilinear", align_corners=False).numpy()], axis=1
    )
    np.testing.assert_allclose(found.numpy(), joined, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("neighbours", [1, 3, 50])
def test_map_and_score(distance: str, neighbours: int) -> None:
    detector = fitted(distance=distance, neighbours=neighbours, sigma=1.0, coreset=0.2)
    memory = detector.memory.items.double().numpy()
    assert len(memory) == round(0.2 * 6 * 24)
    image = images(3, seed=2)
    with torch.no_grad():
        output = detector.detect(image)
        patches = detector.patches(image).double().flatten(2).transpose(1, 2).numpy()
    if distance == "cosine":
        np.testing.assert_allclose(np.linalg.norm(memory, axis=1), 1.0, rtol=1e-5)
    for b in range(3):
        distances = cdist(patches[b], memory)
        nearest = distances.min(axis=1)
        upsampled = F.interpolate(
            torch.tensor(nearest.reshape(1, 1, 4, 6)), (16, 24), mode="bilinear", align_corners=False
        )[0, 0].numpy()
        smooth = gaussian_filter(upsampled, 1.0, mode="constant", truncate=4.0)
        inner = (slice(4, -4), slice(4, -4))
        np.testing.assert_allclose(output.anomaly_map[b, 0].numpy()[inner], smooth[inner], rtol=1e-2)
        place = nearest.argmax()
        star = distances[place].argmin()
        around = np.argsort(cdist(memory[star : star + 1], memory)[0], kind="stable")[:neighbours]
        weight = 1.0 if neighbours == 1 else 1 - np.exp(nearest[place] - logsumexp(distances[place][around]))
        assert float(output.anomaly_score[b]) == pytest.approx(weight * nearest[place], rel=1e-3)


def test_coreset_is_the_greedy_choice() -> None:
    items = torch.rand(40, 5, generator=torch.Generator().manual_seed(3))
    chosen = greedy_coreset(items, 12, torch.Generator().manual_seed(0)).tolist()
    assert len(set(chosen)) == 12
    distances = cdist(items.numpy(), items.numpy())
    for k in range(1, 12):
        assert chosen[k] == distances[:, chosen[:k]].min(axis=1).argmax()
    assert sorted(greedy_coreset(items, 40).tolist()) == list(range(40))
    with pytest.raises(ValueError, match="count is 1 to 40"):
        greedy_coreset(items, 41)


def test_coreset_of_many_dimensions_covers_the_clusters() -> None:
    random = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(8, 300, generator=random)
    items = centres.repeat_interleave(20, dim=0) + 0.1 * torch.randn(160, 300, generator=random)
    chosen = greedy_coreset(items, 8, random)
    assert sorted((chosen // 20).tolist()) == list(range(8))


def test_training_patches_have_distance_zero_in_a_whole_memory() -> None:
    detector = fitted(coreset=1.0)
    with torch.no_grad():
        # what is left is the rounding of single precision
        assert float(detector(images(4)).max()) < 0.1 * float(detector(images(1, seed=9)).max())


def test_limits_of_the_memory() -> None:
    assert len(fitted(coreset=1.0, most_items=10).memory.items) == 10
    drawn = fitted(coreset=1.0, most_candidates=50)
    assert 20 < len(drawn.memory.items) < 90
    assert torch.equal(drawn.memory.items, fitted(coreset=1.0, most_candidates=50).memory.items)


def test_weights_bring_the_memory() -> None:
    first, second = fitted(), made()
    assert not second.memory.items.numel()
    second.load_state_dict(first.state_dict())
    image = images(2, seed=4)
    with torch.no_grad():
        assert torch.equal(first(image), second(image))
    again = networks.make_detector(first.config)
    assert isinstance(again, PatchCore)


@pytest.mark.slow
def test_export() -> None:
    detector, image = fitted(), images(2, seed=5)
    with torch.no_grad():
        expected = detector(image)
        torch.testing.assert_close(torch.jit.script(detector)(image), expected)
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    convert_to_onnx(detector, inputs=[image], use_ort=True, verify=True, rtol=1e-3, atol=1e-4, use_trace=True)


def test_an_unfitted_detector_has_an_empty_map() -> None:
    output = made().detect(images(2))
    assert output.anomaly_map.shape == (2, 1, 16, 24)
    assert not output.anomaly_map.any()


def test_random_weights_are_rejected() -> None:
    detector = PatchCore(**STRIDED).eval()
    with pytest.raises(InputError, match="random weights"):
        detector.fit_statistics([images()], [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"levels": (3, 2)}, "levels are 1 to 3"),
        ({"levels": ()}, "levels are 1 to 3"),
        ({"levels": (2, 4)}, "levels are 1 to 3"),
        ({"patch_size": 2}, "patch_size is odd"),
        ({"coreset": 0.0}, "coreset is a share"),
        ({"distance": "manhattan"}, "distance is"),
        ({"neighbours": 0}, "at least 1"),
        ({"sigma": -1.0}, "sigma is at least 0"),
        ({"spatial_dims": 3}, "2-D"),
    ],
)
def test_wrong_settings(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatchCore(**{**STRIDED, **arguments})
