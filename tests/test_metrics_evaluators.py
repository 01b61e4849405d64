"""The metrics as MONAI's: on tensors, and as handlers of an evaluator that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.engines import SupervisedEvaluator
from monai.handlers import StatsHandler, from_engine
from torch import Tensor, nn

from monai_anomaly.metrics import (
    ImageScoreHandler,
    ImageScoreMetric,
    LesionDetection,
    LesionDetectionHandler,
    LesionDetectionMetric,
    PixelMapHandler,
    PixelMapMetric,
    PixelMetrics,
    image_metrics,
)


def batches(number: int = 3, spatial: tuple[int, ...] = (12, 10), abnormal: bool = True) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(number):
        label = torch.zeros(2, 1, *spatial)
        if abnormal:
            label[1, 0, 2:5, 3:6] = 1
        image = torch.rand(2, 1, *spatial, generator=generator) + 0.4 * label
        found.append({"image": image, "label": label})
    return found


def expected(data: list[dict[str, Tensor]], metric: Any) -> dict[str, Any]:
    for batch in data:
        for image, label in zip(batch["image"], batch["label"]):
            metric.update(image[0].detach().float().numpy(), label[0].numpy())
    return metric.compute()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("spatial", [(12, 10), (8, 7, 6)])
def test_metrics_on_tensors_are_those_on_arrays(dtype: torch.dtype, spatial: tuple[int, ...]) -> None:
    data = [{"image": b["image"].to(dtype), "label": b["label"]} for b in batches(spatial=spatial)]
    pixel, lesion = PixelMapMetric({"paper": 0.5}, exact_voxels=100), LesionDetectionMetric({"paper": 0.8})
    for batch in data:
        sums = pixel(batch["image"].requires_grad_(), batch["label"].bool())
        assert sums.tolist() == batch["label"].flatten(1).sum(1).tolist()
        lesion(list(batch["image"]), list(batch["label"]))  # decollated
    assert pixel.aggregate() == expected(data, PixelMetrics({"paper": 0.5}, exact_voxels=100))
    assert lesion.aggregate() == expected(data, LesionDetection({"paper": 0.8}))
    pixel.reset()
    assert pixel.aggregate()["num_voxels"] == 0


def test_scores_on_tensors() -> None:
    metric = ImageScoreMetric(threshold=0.5)
    assert metric.aggregate()["undefined"]["auroc"] == "no labelled scan"
    metric(torch.tensor([0.1, 0.7]), torch.tensor([0, 1]))
    metric(torch.tensor([[0.25], [0.6]], dtype=torch.float16), torch.tensor([[1], [0]]))
    metric([torch.tensor(0.9), torch.tensor([0.3])], [torch.tensor(1), torch.tensor([0])])
    scores = [float(torch.tensor(s)) for s in (0.1, 0.7)]
    scores += [0.25, float(torch.tensor(0.6, dtype=torch.float16)), float(torch.tensor(0.9)), float(torch.tensor(0.3))]
    assert metric.aggregate() == image_metrics([0, 1, 1, 0, 1, 0], scores, 0.5)
    metric(torch.tensor([0.5]), torch.tensor([2]))
    with pytest.raises(ValueError, match="labels"):
        metric.aggregate()


@pytest.mark.parametrize(
    ("maps", "masks", "problem"),
    [
        (torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4), "spatial"),
        (torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5), "spatial"),
        (torch.full((1, 1, 4, 4), torch.nan), torch.zeros(1, 1, 4, 4), "NaN"),
        (torch.zeros(1, 1, 4, 4), None, "none"),
    ],
)
def test_unfit_tensors_are_refused(maps: Tensor, masks: Tensor | None, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        PixelMapMetric()(maps, masks)
    with pytest.raises(ValueError, match="one label"):
        ImageScoreMetric()(torch.zeros(2), torch.zeros(3))


class Identity(nn.Module):
    """Takes an image for its own anomaly map, in the precision that autocast would give on a GPU."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, image: Tensor) -> Tensor:
        return image.to(self.dtype)


def pair(output: list[dict[str, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """A scan's score is its highest voxel, its label whether it has a lesion."""
    return [item["pred"].amax() for item in output], [item["label"].amax() for item in output]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_handlers_in_a_monai_evaluator(dtype: torch.dtype) -> None:
    data = batches()
    maps = from_engine(["pred", "label"])
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=data,
        network=Identity(dtype),
        key_val_metric={"pixel_ap": PixelMapHandler("ap", maps, {"paper": 0.5})},
        additional_metrics={
            "pixel_dice": PixelMapHandler("decisions/paper/dice", maps, {"paper": 0.5}),
            "froc": LesionDetectionHandler({"paper": 1.0}, output_transform=maps),
            "auroc": ImageScoreHandler(output_transform=pair),
        },
        val_handlers=[StatsHandler(iteration_log=False)],
    )
    evaluator.run()
    evaluator.run()  # each run starts anew
    seen = [{**b, "image": b["image"].to(dtype)} for b in data]
    pixel, lesion = expected(seen, PixelMetrics({"paper": 0.5})), expected(seen, LesionDetection({"paper": 1.0}))
    state = evaluator.state
    assert state.metrics["pixel_ap"] == pytest.approx(pixel["ap"], abs=1e-12)
    assert state.metrics["pixel_dice"] == pixel["decisions"]["paper"]["dice"]
    assert state.metrics["froc"] == lesion["froc_score"]
    assert state.metrics["auroc"] == pytest.approx(
        image_metrics([0, 1] * 3, [float(image.max()) for b in seen for image in b["image"]])["auroc"]
    )
    assert state.metric_details["pixel_ap"] == pixel
    assert state.metric_details["auroc"]["num_abnormal"] == 3
    assert state.best_metric == state.metrics["pixel_ap"]


def test_an_undefined_key_metric_is_no_best_metric() -> None:
    maps = from_engine(["pred", "label"])
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=batches(abnormal=False),
        network=Identity(),
        key_val_metric={"pixel_ap": PixelMapHandler(output_transform=maps)},
        val_handlers=[StatsHandler(iteration_log=False)],
    )
    with pytest.warns(UserWarning, match="not a scalar"):
        evaluator.run()
    assert evaluator.state.metrics["pixel_ap"] is None
    assert evaluator.state.best_metric_epoch == -1
    assert evaluator.state.metric_details["pixel_ap"]["undefined"]["ap"] == "no abnormal voxel"


def _one_of_two(rank: int, store: str, results: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    pixel, scores = PixelMapMetric({"paper": 0.5}, exact_voxels=200), ImageScoreMetric()
    for batch in batches()[rank::2]:  # two batches here, one there
        pixel(batch["image"], batch["label"])
        scores(batch["image"].flatten(1).amax(1), batch["label"].flatten(1).amax(1))
    torch.save((pixel.aggregate(), scores.aggregate()), f"{results}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_see_the_metrics_of_all_scans(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_one_of_two, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    pixel = expected(batches(), PixelMetrics({"paper": 0.5}, exact_voxels=200))
    labels = [0, 1] * 3
    scores = [float(image.max()) for batch in batches() for image in batch["image"]]
    for rank in range(2):
        got = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert got[0]["num_voxels"] == pixel["num_voxels"] == 720
        assert got[0]["decisions"] == pixel["decisions"]
        for name in ("auroc", "ap", "aupro", "best_dice"):
            assert got[0][name] == pytest.approx(pixel[name], abs=1e-12)
        assert np.isclose(got[1]["auroc"], image_metrics(labels, scores)["auroc"])
        assert got[1]["num_normal"] == 3
