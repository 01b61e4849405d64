"""Cohorts from datalists and folders; splits by patient; refusals that keep results honest."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from monai_anomaly.data.cohort import Cohort, _hold_out, load_cohort, write_datalist
from monai_anomaly.exceptions import InputError
from monai_anomaly.io import content_hash
from monai_anomaly.io.load import LoadScan
from monai_anomaly.io.reference_masks import load_mask

SIDES = ("training", "calibration", "test")
pytestmark = pytest.mark.filterwarnings("ignore:.*patients of .* scans are not known")


def picture(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 5), dtype=np.uint8)).save(path)
    return path


def outline(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((6, 5), np.uint8)
    mask[2:4, 1:3] = 255
    Image.fromarray(mask).save(path)
    return path


def normal_layout(root: Path, train: int = 10) -> Path:
    for index in range(train):
        picture(root / "train" / "normal" / f"n{index}.png", index)
    for index in range(2):
        picture(root / "test" / "normal" / f"t{index}.png", 100 + index)
        picture(root / "test" / "abnormal" / f"a{index}.png", 200 + index)
    outline(root / "test" / "masks" / "a0.png")
    return root


def datalist(folder: Path, **sections: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "cohort.json"
    path.write_text(json.dumps(sections))
    return path


def items(cohort: Cohort) -> list[dict[str, Any]]:
    return [*cohort.training, *cohort.calibration, *cohort.test]


# ---- splits


ITEMS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 10**6)), min_size=1, max_size=40)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(drawn=ITEMS, fraction=st.floats(0, 0.99), seed=st.integers(0, 2**31), data=st.data())
def test_split_is_by_patient_disjoint_complete_and_free_of_order(
    drawn: list[tuple[int, int]], fraction: float, seed: int, data: st.DataObject
) -> None:
    listed = [{"patient": f"p{patient}", "image": f"{patient}_{number}"} for patient, number in drawn]
    kept, held = _hold_out(listed, fraction, seed)
    patients = {item["patient"] for item in listed}
    kept_patients, held_patients = ({item["patient"] for item in side} for side in (kept, held))
    assert not kept_patients & held_patients
    assert kept_patients | held_patients == patients
    assert sorted(map(str, kept + held)) == sorted(map(str, listed))
    assert kept_patients
    if fraction == 0 or len(patients) == 1:
        assert not held
    else:
        assert 1 <= len(held_patients) <= len(patients) - 1
        assert abs(len(held_patients) - fraction * len(patients)) <= 1
    shuffled = data.draw(st.permutations(listed))
    assert {item["patient"] for item in _hold_out(shuffled, fraction, seed)[1]} == held_patients


def test_split_depends_on_the_seed() -> None:
    listed = [{"patient": str(index)} for index in range(50)]
    assert len({str(_hold_out(listed, 0.3, seed)[1]) for seed in range(5)}) == 5


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(patients=st.lists(st.integers(0, 5), min_size=3, max_size=12), seed=st.integers(0, 99))
def test_folder_split_keeps_patients_together(
    tmp_path_factory: pytest.TempPathFactory, patients: list[int], seed: int
) -> None:
    root = tmp_path_factory.mktemp("cohort")
    for index, patient in enumerate(patients):
        picture(root / "train" / "normal" / f"p{patient}_{index}.png", index)
    cohort = load_cohort(root, patient_regex=r"(p\d+)_", calibration_fraction=0.4, seed=seed)
    groups = [{item["patient"] for item in side} for side in (cohort.training, cohort.calibration)]
    assert not groups[0] & groups[1]
    assert len(cohort.training) + len(cohort.calibration) == len(patients)
    assert cohort == load_cohort(root, patient_regex=r"(p\d+)_", calibration_fraction=0.4, seed=seed)


# ---- layouts


def test_normal_layout(tmp_path: Path) -> None:
    cohort = load_cohort(normal_layout(tmp_path))
    assert [len(getattr(cohort, side)) for side in SIDES] == [8, 2, 4]
    assert {item["label"] for item in cohort.training + cohort.calibration} == {0}
    first, second = [item for item in cohort.test if item["label"] == 1]
    assert first == {
        "case": "test__abnormal__a0",
        "image": str(tmp_path / "test/abnormal/a0.png"),
        "patient": "test__abnormal__a0",
        "label": 1,
        "mask": str(tmp_path / "test/masks/a0.png"),
    }
    assert second["mask"] is None
    assert cohort.root == tmp_path
    for index in range(3):
        picture(tmp_path / "calibration" / "normal" / f"c{index}.png", 300 + index)
    assert [len(getattr(load_cohort(tmp_path), side)) for side in SIDES] == [10, 3, 4]


def test_mvtec_layout(tmp_path: Path) -> None:
    for index in range(5):
        picture(tmp_path / "train" / "good" / f"{index:03d}.png", index)
    for index in range(2):
        picture(tmp_path / "test" / "good" / f"{index:03d}.png", 10 + index)
        for number, kind in enumerate(("cut", "hole")):
            picture(tmp_path / "test" / kind / f"{index:03d}.png", 20 + 10 * number + index)
            outline(tmp_path / "ground_truth" / kind / f"{index:03d}_mask.png")
    cohort = load_cohort(tmp_path)
    assert [len(getattr(cohort, side)) for side in SIDES] == [4, 1, 6]
    hole = next(item for item in cohort.test if item["case"] == "test__hole__001")
    assert hole["mask"] == str(tmp_path / "ground_truth/hole/001_mask.png")
    assert [item["label"] for item in cohort.test] == [0, 0, 1, 1, 1, 1]


def test_single_scan_and_plain_folder(tmp_path: Path) -> None:
    path = picture(tmp_path / "x" / "scan.v1.png", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cohort = load_cohort(path)
    assert items(cohort) == cohort.test
    assert cohort.test == [{"case": "scan.v1", "image": str(path), "patient": "scan.v1", "label": None, "mask": None}]
    picture(tmp_path / "x" / "deep" / "er" / "b.PNG", 2)
    picture(tmp_path / ".hidden" / "c.png", 3)
    (tmp_path / "x" / "notes.txt").write_text("passed over")
    with pytest.warns(UserWarning, match="patients of 2 scans are not known") as caught:
        cohort = load_cohort(tmp_path)
    assert len(caught) == 1
    assert [item["case"] for item in cohort.test] == ["x__deep__er__b", "x__scan.v1"]
    assert not cohort.training


def test_dicom_folders(real_data: Path) -> None:
    source = real_data / "dicom" / "sag_gre_5slice"
    folder = source / "dicom"
    assert load_cohort(folder).test == [
        {"case": "dicom", "image": str(folder), "patient": "dicom", "label": None, "mask": None}
    ]
    found = [item["image"] for item in load_cohort(source).test]
    assert found[0] == str(folder)
    assert len(found) == 2  # the series, and the reference beside it
    digests = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir())
    assert content_hash(str(folder)) == hashlib.sha256("".join(digests).encode()).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["brain_lgg_flair", "mvtec_leather_mini", "fundus_idrid_drive", "mvtec_screw"])
def test_real_layouts(real_data: Path, name: str) -> None:
    cohort = load_cohort(real_data / name)
    assert all(getattr(cohort, side) for side in SIDES)
    masked = [item for item in cohort.test if item["mask"]]
    assert len(masked) == len(list((real_data / name).rglob("*mask*/*.png" if "mvtec" not in name else "*_mask.png")))
    item = masked[0]
    mask = load_mask(item["mask"], LoadScan()(item["image"]))
    assert mask.any()
    assert not mask.all()


@pytest.mark.slow
def test_real_patients(real_data: Path) -> None:
    cohort = load_cohort(real_data / "brain_lgg_flair", patient_regex=r"(TCGA_\w+)_\d+\.png")
    groups = [{item["patient"] for item in getattr(cohort, side)} for side in SIDES]
    assert [len(group) for group in groups] == [45, 11, 25]


# ---- datalists


def test_datalist(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d", "e"):
        picture(tmp_path / "data" / "images" / f"{name}.png", ord(name))
    outline(tmp_path / "data" / "m.png")
    source = datalist(
        tmp_path / "data" / "lists",
        training=[{"image": "../images/a.png", "patient": 7, "site": "X"}, "../images/b.png"],
        calibration=[{"image": str(tmp_path / "data/images/c.png"), "label": 0}],
        test=[
            {"image": ["../images/d.png", "../images/e.png"], "label": 1, "mask": "../m.png", "case": "my-case"},
        ],
    )
    cohort = load_cohort(source)
    assert cohort == load_cohort(source.parent)
    images = tmp_path / "data" / "images"
    expected = {"image": str(images / "a.png"), "case": "a", "patient": "7", "label": 0, "mask": None}
    assert cohort.training[0] == {**expected, "site": "X"}
    assert cohort.training[1]["patient"] == "b"
    assert cohort.test[0]["image"] == [str(images / "d.png"), str(images / "e.png")]
    assert cohort.test[0]["mask"] == str(tmp_path / "data/m.png")
    assert cohort.test[0]["case"] == "my-case"
    (source.parent / "dataset.json").write_text("{}")
    with pytest.raises(InputError, match=r"cohort.json and dataset.json"):
        load_cohort(source.parent)


def test_broken_datalists(tmp_path: Path) -> None:
    image = str(picture(tmp_path / "a.png", 1))
    other = str(picture(tmp_path / "b.png", 2))
    outline(tmp_path / "m.png")
    cases: list[tuple[str, dict[str, Any]]] = [
        ("holds no scan", {}),
        ("section training is no list", {"training": {"a": 1}}),
        (r"training\[0\] has no image", {"training": [{"picture": image}]}),
        (r"training\[0\] has no image", {"training": [3]}),
        (r"test\[0\] has no image", {"test": [{"image": []}]}),
        ("has label 2", {"test": [{"image": image, "label": 2}]}),
        ("has label './labelsTr/a.nii.gz'", {"test": [{"image": image, "label": "./labelsTr/a.nii.gz"}]}),
        ("mask that is no path", {"test": [{"image": image, "mask": 1}]}),
        ("has case '../x'", {"test": [{"image": image, "case": "../x"}]}),
        (
            r"3 of 5 files are missing \(\S+u.png, \S+v.png, \S+w.png\)",
            {"test": [image, "u.png", "v.png", {"image": image, "mask": "w.png"}]},
        ),
        ("is abnormal but in training", {"training": [{"image": image, "label": 1}]}),
        ("is abnormal but in calibration", {"calibration": [{"image": image, "label": 1}]}),
        (r"is normal \(label 0\) but has the mask", {"test": [{"image": image, "label": 0, "mask": "m.png"}]}),
        ("have the same case 'a'", {"test": [image, {"image": other, "case": "a"}]}),
        (
            "patient 'p' is in training and in test",
            {"training": [{"image": image, "patient": "p"}], "test": [{"image": other, "patient": "p"}]},
        ),
    ]
    for message, sections in cases:
        with pytest.raises(InputError, match=message) as caught:
            load_cohort(datalist(tmp_path, **sections))
        assert "\n" not in str(caught.value)
    path = tmp_path / "broken.json"
    path.write_text('{"training": [\n "a.png",\n ]}')
    with pytest.raises(InputError, match="in line 3"):
        load_cohort(path)
    path.write_text("[]")
    with pytest.raises(InputError, match="outermost value"):
        load_cohort(path)
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(InputError, match="UTF-8"):
        load_cohort(path)


def test_refused_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_cohort(tmp_path / "absent")
    with pytest.raises(InputError, match="holds no scan"):
        load_cohort(tmp_path)
    for fraction in (-0.1, 1.0, float("nan")):
        with pytest.raises(InputError, match="calibration_fraction"):
            load_cohort(tmp_path, calibration_fraction=fraction)
    (tmp_path / "e" / "train" / "normal").mkdir(parents=True)
    with pytest.raises(InputError, match="train: holds no scan"):
        load_cohort(tmp_path / "e")
    root = normal_layout(tmp_path / "c")
    outline(root / "test" / "masks" / "a9.png")
    with pytest.raises(InputError, match=r"a9.png: no scan in"):
        load_cohort(root)
    (root / "test" / "masks" / "a9.png").unlink()
    picture(root / "train" / "abnormal" / "x.png", 999)
    with pytest.raises(InputError, match="is abnormal but in training"):
        load_cohort(root)


def test_same_case_twice(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "b.png", 1)
    picture(tmp_path / "a__b.png", 2)
    with pytest.raises(InputError, match="same case 'a__b'"):
        load_cohort(tmp_path)


def test_copies(tmp_path: Path) -> None:
    root = normal_layout(tmp_path)
    copied = root / "train" / "normal" / "copy.png"
    copied.write_bytes((root / "train" / "normal" / "n3.png").read_bytes())
    with pytest.warns(UserWarning, match="1 images of training are copies of others"):
        load_cohort(root, calibration_fraction=0)
    copied.write_bytes((root / "test" / "normal" / "t1.png").read_bytes())
    with pytest.raises(InputError, match=r"(t1|copy).png \(\w+\) and \S+(t1|copy).png \(\w+\) are the same image"):
        load_cohort(root)


def test_files_of_equal_size_and_middle_are_no_copies(tmp_path: Path) -> None:
    # Only the last byte differs, outside the bytes that are compared first.
    content = bytes(300_000)
    sources = {"training": tmp_path / "a.nii", "test": tmp_path / "b.nii"}
    sources["training"].write_bytes(content)
    sources["test"].write_bytes(content[:-1] + b"x")
    path = datalist(tmp_path, **{side: [str(file)] for side, file in sources.items()})
    assert len(items(load_cohort(path))) == 2
    sources["test"].write_bytes(content)
    with pytest.raises(InputError, match="are the same image"):
        load_cohort(path)


def test_content_hash(tmp_path: Path) -> None:
    first, second = picture(tmp_path / "a.png", 1), picture(tmp_path / "b.png", 2)
    assert content_hash(str(first)) == hashlib.sha256(first.read_bytes()).hexdigest()
    assert content_hash([str(first)]) == content_hash(str(first))
    both = {content_hash([str(first), str(second)]), content_hash([str(second), str(first)])}
    assert len(both | {content_hash(str(first)), content_hash(str(second))}) == 4
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
    for index, file in enumerate((first, second)):
        (tmp_path / "x" / f"{index}").write_bytes(file.read_bytes())
        (tmp_path / "y" / f"{9 - index}").write_bytes(file.read_bytes())
    assert content_hash(str(tmp_path / "x")) == content_hash(str(tmp_path / "y"))
    with pytest.raises(InputError, match="cannot be read"):
        content_hash(str(tmp_path / "absent.png"))


# ---- patients


def test_patients(tmp_path: Path) -> None:
    root = normal_layout(tmp_path)
    with pytest.raises(InputError, match=r"t0.png: patient_regex .* finds no patient"):
        load_cohort(root, patient_regex=r"/([na]\d)")
    cohort = load_cohort(root, patient_regex=r"/([nat]\d)\.")
    assert {item["patient"] for item in cohort.test} == {"t0", "t1", "a0", "a1"}
    for regex, message in (("n(", "no regular expression"), (r"n\d", "has no group")):
        with pytest.raises(InputError, match=message):
            load_cohort(root, patient_regex=regex)
    with pytest.raises(InputError, match="patient 'normal' is in"):
        load_cohort(root, patient_regex=r"/(normal|abnormal)/")

    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png") if "masks" not in path.parts)
    table = root / "patients.csv"
    table.write_text("image,patient\n" + "".join(f"{name},P{index}\n" for index, name in enumerate(names)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cohort = load_cohort(root)
    assert {item["patient"] for item in items(cohort)} == {f"P{index}" for index in range(len(names))}
    table.write_text(f"image,patient\n{names[0]},P\n")
    with pytest.raises(InputError, match="is not listed in"):
        load_cohort(root)
    table.write_text(f"image,patient\n{names[0]},P\n{names[0]},Q\n")
    with pytest.raises(InputError, match="line 3"):
        load_cohort(root)
    table.write_text("file,person\n")
    with pytest.raises(InputError, match="columns image and patient"):
        load_cohort(root)


# ---- write_datalist


@pytest.mark.parametrize("place", ["inside", "outside"])
def test_write_datalist_of_a_layout(tmp_path: Path, place: str) -> None:
    root = normal_layout(tmp_path / "data")
    output = (root if place == "inside" else tmp_path / "lists") / "cohort.json"
    options: dict[str, Any] = {"calibration_fraction": 0.3, "seed": 3, "patient_regex": r"(\w\d)\.png"}
    expected = load_cohort(root, **options)
    for _ in range(2):  # the second time a datalist lies in the folder
        written = write_datalist(root, output, **options)
    assert json.loads(output.read_text()) == written
    assert not any(Path(item["image"]).is_absolute() for side in SIDES for item in written[side])
    again = load_cohort(output)
    assert [getattr(again, side) for side in SIDES] == [getattr(expected, side) for side in SIDES]
    with pytest.raises(InputError, match="test_fraction does not apply"):
        write_datalist(root, output, test_fraction=0.2)


def test_write_datalist_of_normals(tmp_path: Path) -> None:
    for index in range(20):
        picture(tmp_path / "scans" / f"p{index // 2}" / f"{index}.png", index)
    options: dict[str, Any] = {"patient_regex": r"(p\d+)/", "test_fraction": 0.2, "calibration_fraction": 0.25}
    written = write_datalist(tmp_path / "scans", tmp_path / "list.json", **options)
    assert [len({item["patient"] for item in written[side]}) for side in SIDES] == [6, 2, 2]
    assert all(item["label"] == 0 for side in SIDES for item in written[side])
    cohort = load_cohort(tmp_path / "list.json")
    assert len(items(cohort)) == 20
    assert write_datalist(tmp_path / "scans", tmp_path / "list.json", patient_regex=r"(p\d+)/")["test"] == []
    with pytest.raises(InputError, match="test_fraction"):
        write_datalist(tmp_path / "scans", tmp_path / "list.json", test_fraction=1)
    with pytest.raises(InputError, match="no such folder"):
        write_datalist(tmp_path / "absent", tmp_path / "list.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no scan"):
        write_datalist(tmp_path / "empty", tmp_path / "list.json")


# ---- masks


def test_picture_masks(tmp_path: Path) -> None:
    scan = LoadScan()(picture(tmp_path / "a.png", 1))
    expected = np.zeros((6, 5, 1), bool)
    expected[2:4, 1:3] = True
    mask = load_mask(outline(tmp_path / "m.png"), scan)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, expected)

    values = np.full((6, 5), 127, np.uint8)
    values[0, 0] = 128
    Image.fromarray(values).save(tmp_path / "half.png")
    assert load_mask(tmp_path / "half.png", scan).sum() == 1
    Image.fromarray(np.uint16(expected[..., 0]) * 65535).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(load_mask(tmp_path / "deep.png", scan), expected)
    Image.fromarray(np.uint8(expected[..., 0])).save(tmp_path / "ones.tif")
    np.testing.assert_array_equal(load_mask(tmp_path / "ones.tif", scan), expected)
    Image.fromarray(expected[..., 0]).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(load_mask(tmp_path / "bits.png", scan), expected)
    Image.new("L", (5, 6)).save(tmp_path / "empty.png")
    assert not load_mask(tmp_path / "empty.png", scan).any()

    Image.fromarray(np.uint8(expected[..., 0])).save(tmp_path / "ones.png")
    with pytest.raises(InputError, match="largest value is 1, below half"):
        load_mask(tmp_path / "ones.png", scan)
    Image.new("L", (6, 5)).save(tmp_path / "turned.png")
    with pytest.raises(InputError, match=r"shape \(5, 6, 1\) and its scan .* \(6, 5, 1\)"):
        load_mask(tmp_path / "turned.png", scan)
    nib.Nifti1Image(np.ones((6, 5, 1), np.uint8), np.eye(4)).to_filename(tmp_path / "m.nii")
    with pytest.raises(InputError, match="is a volume"):
        load_mask(tmp_path / "m.nii", scan)


def test_volume_masks(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    affine = np.array([[-0.9, 0.1, 0.4, 30], [0.2, 1.4, -0.3, -71], [0.1, 0.2, 4.9, 12], [0, 0, 0, 1.0]])
    nib.Nifti1Image(rng.normal(size=(5, 6, 4)).astype(np.float32), affine).to_filename(tmp_path / "a.nii")
    scan = LoadScan()(tmp_path / "a.nii")
    labels = rng.integers(-1, 4, (5, 6, 4)).astype(np.int16)

    def mask(matrix: np.ndarray) -> Path:
        nib.Nifti1Image(labels, matrix).to_filename(tmp_path / "m.nii.gz")
        return tmp_path / "m.nii.gz"

    np.testing.assert_array_equal(load_mask(mask(affine), scan), labels > 0)
    near, far, scaled = affine.copy(), affine.copy(), affine.copy()
    near[2, 3] += 2e-3  # of a voxel 4.9 mm high
    far[2, 3] += 2e-2
    scaled[:3, 0] *= 1.01
    assert load_mask(mask(near), scan).any()
    for matrix in (far, scaled, np.eye(4)):
        with pytest.raises(InputError, match="affine differs from that of its scan"):
            load_mask(mask(matrix), scan)
