"""Datasets: which slices train, which donors they get, what becomes of bad scans, what the cache saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from monai_anomaly.data import ScanDataset, ScanPreprocessing, SliceDataset
from monai_anomaly.data.slices import describe_failure
from monai_anomaly.exceptions import InputError
from monai_anomaly.transforms import RandPseudoAbnormalProxyd, SmoothPatches

# scan -> first and last + 1 of its slices with tissue
TISSUE = {"a": (3, 9), "b": (2, 6), "c": (5, 12)}


def write_scan(path: Path, seed: int, start: int, stop: int, air: float = 0.0) -> dict[str, Any]:
    volume = np.full((16, 16, 12), air, dtype=np.float32)
    volume[2:14, 3:13, start:stop] = air + np.random.default_rng(seed).uniform(100, 900, (12, 10, stop - start))
    volume[8, 8, 0] = air + 900  # one pixel is not yet a slice with tissue
    nib.save(nib.Nifti1Image(volume, np.eye(4)), path)
    return {"image": str(path), "case": path.name.split(".")[0], "patient": path.name, "label": 0, "mask": None}


@pytest.fixture
def cohort(tmp_path: Path) -> list[dict[str, Any]]:
    return [
        write_scan(tmp_path / f"{name}.nii.gz", seed, *TISSUE[name], air=-1000.0 if name == "b" else 0.0)
        for seed, name in enumerate(TISSUE)
    ]


def preprocessing() -> ScanPreprocessing:
    return ScanPreprocessing((16, 16))


def dataset(cohort: list[dict[str, Any]], **kwargs: Any) -> SliceDataset:
    return SliceDataset(cohort, preprocessing(), progress=False, **kwargs)


class CountedProxy(SmoothPatches):
    """Counts how often it is asked."""

    calls = 0

    def __call__(self, img: Any) -> Any:
        type(self).calls += 1
        return super().__call__(img)


def test_slices_with_tissue_in_order(cohort: list[dict[str, Any]]) -> None:
    data = dataset(cohort)
    assert len(data) == sum(stop - start for start, stop in TISSUE.values())
    assert data.channels == 1
    assert not data.failures
    index = 0
    for item, (start, stop) in zip(cohort, TISSUE.values()):
        stack = preprocessing()({"image": item["image"]})["image"]
        for s in range(start, stop):
            drawn = data[index]
            assert set(drawn) == {"image", "proxy"}
            assert drawn["image"].dtype == torch.float32
            assert torch.equal(drawn["image"], stack.as_tensor()[..., s])
            assert torch.equal(drawn["proxy"], drawn["image"])  # without a proxy the image is its own
            index += 1


@pytest.mark.parametrize("cached", [False, True])
def test_proxies_are_those_of_the_slices(cohort: list[dict[str, Any]], tmp_path: Path, cached: bool) -> None:
    proxy = SmoothPatches(4)
    data = dataset(cohort, proxy=proxy, cache_dir=tmp_path / "cache" if cached else None, num_workers=2)
    for item in (data[0], data[7], data[len(data) - 1]):
        np.testing.assert_array_equal(item["proxy"].numpy(), proxy(item["image"].numpy()))
        item["image"] += 1.0  # what is drawn is the caller's own
    assert float(data[0]["image"].max()) <= 1.0


def test_donors_are_of_another_scan(cohort: list[dict[str, Any]]) -> None:
    data = dataset(cohort, donors="other").set_random_state(0)
    images = [data._tensor(i, "image") for i in range(len(data))]
    scans = data.scan_of
    seen = set()
    for _ in range(10):
        for i in range(len(data)):
            donor = data[i]["donor"]
            (found,) = [j for j, image in enumerate(images) if torch.equal(image, donor)]
            assert scans[found] != scans[i]
            seen.add(found)
    assert seen == set(range(len(data)))


def test_donors_of_a_single_scan_and_of_the_image_itself(cohort: list[dict[str, Any]]) -> None:
    single = dataset(cohort[:1], donors="other").set_random_state(0)
    images = [single._tensor(i, "image") for i in range(len(single))]
    assert any(torch.equal(image, single[0]["donor"]) for image in images)
    same = dataset(cohort, donors="same")
    assert torch.equal(same[4]["donor"], same[4]["image"])
    assert "donor" not in dataset(cohort)[0]
    with pytest.raises(ValueError, match="donors"):
        dataset(cohort, donors="any")


def test_draws_follow_the_seed(cohort: list[dict[str, Any]]) -> None:
    def draws(seed: int) -> list[torch.Tensor]:
        data = dataset(cohort, donors="other", slice_transform=RandPseudoAbnormalProxyd("proxy"))
        data.set_random_state(seed)
        return [data[i][key] for i in range(len(data)) for key in ("donor", "pseudo_proxy", "paste_mask")]

    one, two, other = draws(1), draws(1), draws(2)
    assert all(torch.equal(a, b) for a, b in zip(one, two))
    assert not all(torch.equal(a, b) for a, b in zip(one, other))


def test_bad_scans_are_collected(cohort: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "broken.nii.gz").write_bytes(b"no scan")
    nib.save(nib.Nifti1Image(np.ones((8, 8, 3), np.float32), np.eye(4)), tmp_path / "flat.nii.gz")
    bad = [{"image": str(tmp_path / name), "case": name} for name in ("broken.nii.gz", "flat.nii.gz", "gone.nii.gz")]
    two = {"image": [cohort[0]["image"], cohort[0]["image"]], "case": "two"}
    data = dataset([bad[0], cohort[0], bad[1], two, cohort[1], bad[2]])
    assert [failure["case"] for failure in data.failures] == ["broken.nii.gz", "flat.nii.gz", "two", "gone.nii.gz"]
    for failure in data.failures:
        assert "\n" not in failure["error"]
        assert Path(failure["case"]).stem.split(".")[0] in failure["image"] or failure["case"] == "two"
    assert "2 channel(s) where the scans before have 1" in data.failures[2]["error"]
    assert len(data) == len(dataset(cohort[:2]))
    assert len(data.hashes) == len(data.arrays) == 2


def test_no_usable_scan(tmp_path: Path) -> None:
    bad = [{"image": str(tmp_path / "gone.nii.gz"), "case": "gone"}]
    for data in ([], bad):
        with pytest.raises(InputError, match="no usable normal scan"):
            dataset(data)
    empty = dataset(bad, allow_empty=True)
    assert (len(empty), empty.channels, len(empty.failures)) == (0, 0, 1)
    assert len(dataset([], allow_empty=True)) == 0


def test_a_second_run_computes_nothing(cohort: list[dict[str, Any]], tmp_path: Path) -> None:
    CountedProxy.calls = 0
    first = dataset(cohort, proxy=CountedProxy(4), cache_dir=tmp_path / "cache")
    assert CountedProxy.calls == len(first)
    second = dataset(cohort, proxy=CountedProxy(4), cache_dir=tmp_path / "cache")
    assert CountedProxy.calls == len(first)
    assert second.hashes == first.hashes
    for i in range(len(first)):
        assert torch.equal(first[i]["image"], second[i]["image"])
        assert torch.equal(first[i]["proxy"], second[i]["proxy"])
    # another proxy, another preprocessing, another content: computed
    for count, (proxy, size) in enumerate([(8, 16), (4, 32)], start=2):
        SliceDataset(
            cohort, ScanPreprocessing((size, size)), CountedProxy(proxy), cache_dir=tmp_path / "cache", progress=False
        )
        assert CountedProxy.calls == count * len(first)
    before = CountedProxy.calls
    write_scan(Path(cohort[0]["image"]), 99, 3, 9)
    dataset(cohort, proxy=CountedProxy(4), cache_dir=tmp_path / "cache")
    assert CountedProxy.calls == before + 6


def test_a_renamed_scan_is_found_in_the_cache(cohort: list[dict[str, Any]], tmp_path: Path) -> None:
    CountedProxy.calls = 0
    dataset(cohort[:1], proxy=CountedProxy(4), cache_dir=tmp_path / "cache")
    calls = CountedProxy.calls
    moved = Path(cohort[0]["image"]).rename(tmp_path / "renamed.nii.gz")
    dataset([{**cohort[0], "image": str(moved)}], proxy=CountedProxy(4), cache_dir=tmp_path / "cache")
    assert CountedProxy.calls == calls


def test_scan_dataset_gives_scans_or_their_errors(cohort: list[dict[str, Any]], tmp_path: Path) -> None:
    gone = {"image": str(tmp_path / "gone.nii.gz"), "case": "gone"}
    data = ScanDataset([cohort[0], gone, cohort[1]], preprocessing())
    assert len(data) == 3
    entries = [data[i] for i in range(3)]
    assert set(entries[1]) == {"item", "error"}
    assert "gone.nii.gz: no such file" in entries[1]["error"]
    for entry, name in ((entries[0], "a"), (entries[2], "b")):
        start, stop = TISSUE[name]
        assert entry["item"]["case"] == name
        assert entry["scan"].shape == (1, 16, 16, 12)
        assert entry["stack"].shape == (1, 16, 16, 12)
        assert entry["tissue"].tolist() == [start <= s < stop for s in range(12)]


def test_failures_are_one_line() -> None:
    assert describe_failure(InputError("a.nii", "is bad", "Mend it.")) == "a.nii: is bad. Mend it."
    assert describe_failure(KeyError("x\ny")) == r"KeyError: 'x\ny'"
    assert describe_failure(RuntimeError("two\nlines")) == "RuntimeError: two lines"
    wrapped = RuntimeError("applying transform")
    wrapped.__cause__ = InputError("a.nii", "is bad")
    assert describe_failure(wrapped) == "a.nii: is bad."
