"""Choosing the epoch by synthetic lesions: the figure, the weights that are kept, resuming, refusals, all bundles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_runs import BUNDLES, refusal, run_bundle, table
from sklearn.metrics import average_precision_score
from test_all_bundles import COMMON, NAMES, OVERLAYS, TINY
from test_training import Killer
from torch import Tensor

from monai_anomaly.data import Cohort
from monai_anomaly.engines import (
    DetectorTraining,
    ReconstructionTrainer,
    SyntheticLesionSelection,
    TrainingData,
    load_detector,
)
from monai_anomaly.exceptions import InputError
from monai_anomaly.networks import AnomalyDetector, AnomalyOutput, Autoencoder

pytest_plugins = ["bundle_fixtures"]

SIZE = 32


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Two training, two validation patients and one to calibrate on: bright cylinders with texture."""
    folder = tmp_path_factory.mktemp("cohort")
    items = []
    for seed in range(5):
        random = np.random.default_rng(seed)
        volume = np.zeros((SIZE, SIZE, 4), dtype=np.float32)
        volume[4:28, 6:26] = 500 + 100 * np.sin(np.arange(24) / 3)[:, None, None] + random.normal(0, 20, (24, 20, 4))
        nib.save(nib.Nifti1Image(volume, np.eye(4)), folder / f"{seed}.nii.gz")
        image = str(folder / f"{seed}.nii.gz")
        items.append({"image": image, "case": str(seed), "patient": str(seed), "label": 0, "mask": None})
    return Cohort(folder, items[:2], items[4:], [], validation=items[2:4])


class Run:
    """A training as a bundle would wire it, small."""

    def __init__(self, cohort: Cohort, folder: Path, epochs: int = 6, handlers: Any = None, **options: Any) -> None:
        torch.manual_seed(0)
        self.network = Autoencoder(channels=(4, 8), latent_channels=4)
        self.data = TrainingData(cohort, image_size=(SIZE, SIZE), batch_size=3, progress=False)
        # a rate at which the error, and with it the choice, goes up and down
        optimizer = torch.optim.Adam(self.network.parameters(), lr=0.05)
        trainer = ReconstructionTrainer(
            self.network, "cpu", epochs, self.data.train_loader, optimizer, train_handlers=handlers
        )
        options = {"select_by": "synthetic_lesions", **options}
        self.training = DetectorTraining(self.network, [trainer], self.data, folder, seed=5, progress=False, **options)

    def go(self) -> Run:
        self.history = self.training.run()
        return self

    def weights(self) -> dict[str, Tensor]:
        return self.network.state_dict()

    def rows(self) -> list[dict[str, str]]:
        return table(self.training.output_dir / "training" / "selection.csv")


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(value, two[key]) for key, value in one.items())


class Known(AnomalyDetector):
    """A detector whose map is a given function of the image."""

    def __init__(self, kind: str) -> None:
        super().__init__(2, 1)
        self.kind = kind
        self.weight = torch.nn.Parameter(torch.ones(1))

    def detect(self, image: Tensor) -> AnomalyOutput:
        maps = {"constant": image * 0, "image": image, "nan": image * float("nan")}
        return AnomalyOutput(maps[self.kind], image.flatten(1).amax(dim=1), None)


@pytest.fixture(scope="module")
def whole(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(cohort, tmp_path_factory.mktemp("whole")).go()


def selection(cohort: Cohort, **options: Any) -> SyntheticLesionSelection:
    data = TrainingData(cohort, image_size=(SIZE, SIZE), progress=False)
    assert data.held_out is not None
    return SyntheticLesionSelection(data.held_out, data.train_dataset, **options)


def test_the_figure_is_the_average_precision_of_the_lesions_pixels(cohort: Cohort) -> None:
    chooser = selection(cohort, batch_size=3)
    pairs = [chooser.image(number) for number in range(len(chooser.indices))]
    assert len(pairs) == 8  # all slices of both patients
    images, masks = (torch.stack([pair[i] for pair in pairs]) for i in (0, 1))
    assert all(mask.any() for mask in masks)
    expected = average_precision_score(masks.flatten().numpy(), images.flatten().numpy())
    assert chooser.score(Known("image")) == pytest.approx(expected, abs=1e-12)
    assert chooser.lesion_share == pytest.approx(float(masks.mean()))
    # a map that says nothing has the average precision of chance
    assert chooser.score(Known("constant")) == pytest.approx(chooser.lesion_share)
    with pytest.raises(InputError, match="not finite"):
        chooser.score(Known("nan"))


def test_every_candidate_sees_the_same_and_stays_as_it_is(cohort: Cohort) -> None:
    torch.manual_seed(1)
    chooser, network = selection(cohort), Autoencoder(channels=(4, 8), latent_channels=4)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state = torch.get_rng_state()
    first = chooser.score(network)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(network.state_dict(), before)
    assert chooser.score(network) == selection(cohort).score(network) == first
    for one, two in zip(chooser.image(2), selection(cohort).image(2)):
        assert torch.equal(one, two)
    assert not torch.equal(chooser.image(2)[0], selection(cohort, seed=1).image(2)[0])


def test_few_images_and_pixels_give_an_estimate(cohort: Cohort) -> None:
    few = selection(cohort, most_images=3, most_pixels=500)
    assert few.indices == [0, 4, 7]
    assert few.score(Known("constant")) == pytest.approx(few.lesion_share)
    assert few.score(Known("image")) == few.score(Known("image"))


@pytest.mark.slow
def test_the_weights_of_the_best_epoch_are_kept(whole: Run, cohort: Cohort, tmp_path: Path) -> None:
    rows = whole.rows()
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    figures = [float(row["pixel_ap"]) for row in rows]
    best = int(np.argmax(figures)) + 1
    assert [int(row["chosen"]) for row in rows] == [int(epoch == best) for epoch in range(1, 7)]
    assert best < 6, "the last epoch is the best, so the test shows nothing"
    # the same training, stopped there
    assert same(whole.weights(), Run(cohort, tmp_path, epochs=best, select_by=None).go().weights())
    files = load_detector(whole.training.output_dir / "models")
    assert same(files.network.state_dict(), whole.weights())
    chosen = files.description["training"]["selection"]
    assert (chosen["by"], chosen["epoch"], chosen["candidates"]) == ("synthetic_lesions", best, 6)
    assert chosen["pixel_ap"] == max(figures)
    assert chosen["pixel_ap_of_last_epoch"] == figures[-1]
    assert 0 < chosen["pixel_ap_of_chance"] < 0.2
    assert files.description["training"]["epochs"] == [6]
    # calibrated with what was kept
    assert torch.equal(files.network.calibration.scores, whole.network.calibration.scores)


@pytest.mark.slow
def test_the_default_is_the_last_epoch(whole: Run, cohort: Cohort, tmp_path: Path) -> None:
    last = Run(cohort, tmp_path, select_by=None).go()
    assert last.history == whole.history
    assert not same(last.weights(), whole.weights())
    assert not (tmp_path / "training" / "selection.csv").exists()
    assert load_detector(tmp_path / "models").description["training"]["selection"] is None


@pytest.mark.slow
@pytest.mark.parametrize(("epoch", "step"), [(1, 1), (3, 2), (6, 3)])
def test_killed_and_resumed_it_ends_the_same(whole: Run, cohort: Cohort, tmp_path: Path, epoch: int, step: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        Run(cohort, tmp_path, handlers=[Killer("reconstruction", epoch, step)]).go()
    resumed = Run(cohort, tmp_path).go()
    assert same(resumed.weights(), whole.weights())
    assert resumed.rows() == whole.rows()
    # and once more, when all is done
    assert same(Run(cohort, tmp_path).go().weights(), whole.weights())


@pytest.mark.slow
@pytest.mark.parametrize("save_interval", [1, 4])
def test_more_epochs_go_on_from_fewer(cohort: Cohort, tmp_path: Path, save_interval: int) -> None:
    options = {"val_interval": 2, "save_interval": save_interval}
    expected = Run(cohort, tmp_path / "whole", epochs=5, **options).go()
    assert [int(row["epoch"]) for row in expected.rows()] == [2, 4, 5]
    # the third epoch is a candidate of a run of three epochs alone
    assert [int(row["epoch"]) for row in Run(cohort, tmp_path / "parts", epochs=3, **options).go().rows()] == [2, 3]
    longer = Run(cohort, tmp_path / "parts", epochs=5, **options).go()
    assert longer.rows() == expected.rows()
    assert same(longer.weights(), expected.weights())


def test_a_checkpoint_of_another_choice_is_refused(cohort: Cohort, tmp_path: Path) -> None:
    Run(cohort, tmp_path, epochs=1, select_by=None).go()
    with pytest.raises(InputError, match="other settings or other data"):
        Run(cohort, tmp_path, epochs=2).go()


def test_refused_without_validation_patients_or_by_another_name(cohort: Cohort, tmp_path: Path) -> None:
    without = Cohort(cohort.root, cohort.training, cohort.calibration, [])
    with pytest.raises(InputError, match=r"^select_by: .*needs validation patients.*--validation_fraction 0.1"):
        Run(without, tmp_path)
    with pytest.raises(InputError, match=r"^select_by: is 'test_auroc'"):
        Run(cohort, tmp_path, select_by="test_auroc")
    with pytest.raises(InputError, match="no epochs to choose from"):
        DetectorTraining(
            Autoencoder(channels=(4, 8), latent_channels=4),
            [],
            TrainingData(cohort, image_size=(SIZE, SIZE), progress=False),
            tmp_path,
            select_by="synthetic_lesions",
        )
    bad = [{**item, "image": str(tmp_path / "gone.nii.gz"), "case": "gone"} for item in cohort.validation[:1]]
    with pytest.raises(InputError, match="no validation scan can be used"):
        Run(Cohort(cohort.root, cohort.training, cohort.calibration, [], validation=bad), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_bundle_chooses(name: str, tiny_cohort: Path, tmp_path: Path) -> None:
    epochs = "pretraining_epochs" if name == "patchcore" else "max_epochs"  # PatchCore's encoder alone is trained
    options = {**COMMON, **TINY[name], epochs: 2, "select_by": "synthetic_lesions"}
    files = ["train", *OVERLAYS.get(name, [])]
    run_bundle(files, tmp_path, tiny_cohort, bundle=BUNDLES / name, **options, validation_fraction=0.3)
    rows = table(tmp_path / "training" / "selection.csv")
    assert [int(row["epoch"]) for row in rows] == [1, 2]
    losses = table(tmp_path / "training" / "losses.csv")
    assert {row["stage"] for row in rows} == {losses[-1]["stage"]}
    chosen = json.loads((tmp_path / "models" / "detector.json").read_text())["training"]["selection"]
    assert chosen["pixel_ap"] == max(float(row["pixel_ap"]) for row in rows) > 0


def test_a_bundle_without_validation_patients_refuses(tiny_cohort: Path, tmp_path: Path) -> None:
    options = {**COMMON, **TINY["itae"], "select_by": "synthetic_lesions"}
    line = refusal(run_bundle, "train", tmp_path, tiny_cohort, bundle=BUNDLES / "itae", **options)
    assert line.startswith("select_by: choosing the epoch needs validation patients")
