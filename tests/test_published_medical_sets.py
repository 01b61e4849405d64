"""Readers of the medical and video sets, on tiny sets in the layouts in which they are published, and on real data."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from monai_anomaly.data import load_cohort
from monai_anomaly.data.published import (
    BMAD,
    OCT2017,
    PUBLISHED_COHORTS,
    PUBLISHED_SETS,
    Avenue,
    BrainMRI,
    BraTSCohort,
    ChestXray,
    Endosome,
    FolderSet,
    IDRiD,
    ImageSet,
    MedIAnomaly,
    MSLUBCohort,
    Ped2,
    Problem,
    ShanghaiTech,
)
from monai_anomaly.data.published.fundus import patch_borders
from monai_anomaly.data.published.layout import one_class_problem
from monai_anomaly.exceptions import InputError
from monai_anomaly.io.image_files import natural_key, read_mask, read_picture

RNG = np.random.default_rng(0)


def picture(path: Path, shape: tuple[int, ...] = (8, 6)) -> np.ndarray:
    """Write an image that looks like no other, and return what it shows."""
    return write(path, RNG.integers(0, 256, shape, dtype=np.uint8))


def write(path: Path, array: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return array


def mask_of(shape: tuple[int, int], *cells: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, dtype=np.uint8)
    for cell in cells:
        mask[cell] = 255
    return mask


# --- what readers share ---------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=30, unique=True))
def test_natural_order_is_the_order_of_the_numbers(numbers):
    assert sorted((f"frame{n}.png" for n in numbers), key=natural_key) == [f"frame{n}.png" for n in sorted(numbers)]


@given(st.lists(st.text("ab1203.", min_size=1, max_size=6), max_size=10))
def test_natural_order_takes_any_names(names):
    turned = names[1:] + names[:1]
    assert sorted(names, key=natural_key) == sorted(turned, key=natural_key)


@given(st.integers(3, 5000), st.integers(1, 3))
def test_patches_cover_an_axis_and_are_of_like_size(size, patches):
    borders = patch_borders(size, patches)
    widths = np.diff(borders)
    assert borders[0] == 0
    assert borders[-1] == size
    assert len(widths) == patches
    assert widths.max() - widths.min() <= 1


def test_pictures_are_read_as_they_are(tmp_path):
    gray, colour = picture(tmp_path / "a.png"), picture(tmp_path / "b.bmp", (8, 6, 3))
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), gray)
    np.testing.assert_array_equal(read_picture(tmp_path / "b.bmp"), colour)
    deep = RNG.integers(0, 2**16, (5, 4)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "c.tif")
    np.testing.assert_array_equal(read_picture(tmp_path / "c.tif"), deep)
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "d.tif")
    with pytest.raises(InputError, match="float32"):
        read_picture(tmp_path / "d.tif")


def test_faint_values_mark_in_lossless_masks_and_not_in_jpeg(tmp_path):
    faint = np.zeros((16, 16), dtype=np.uint8)
    faint[:8] = 1
    write(tmp_path / "m.png", faint)
    assert read_mask(tmp_path / "m.png").sum() == 8 * 16
    strong = np.where(faint > 0, 255, 20).astype(np.uint8)
    write(tmp_path / "m.jpg", strong)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.jpg"), faint > 0)


def test_a_mask_must_be_as_large_as_its_picture(tmp_path):
    picture(tmp_path / "a.png")
    write(tmp_path / "m.png", mask_of((6, 8), (0, 0)))
    with pytest.raises(InputError, match="has 6 x 8 pixels, its image 8 x 6"):
        read_mask(tmp_path / "m.png", tmp_path / "a.png")


def test_no_patient_is_on_both_sides():
    def side(groups, labels):
        return ImageSet(
            [f"{g}{i}" for i, g in enumerate(groups)], np.array(labels), lambda i: np.zeros((1, 1)), groups=groups
        )

    problem = Problem("x", side("aabc", [0] * 4), side("bd", [0, 1]))
    clean = one_class_problem(Path("root"), problem)
    assert clean.training.groups == ("a", "a", "c")
    assert clean.facts["left_out"] == 1
    with pytest.raises(InputError, match="all 1 are of test patients"):
        one_class_problem(Path("root"), Problem("x", side("b", [0]), side("bd", [0, 1])))
    with pytest.raises(InputError, match="no abnormal test image"):
        one_class_problem(Path("root"), Problem("x", side("a", [0]), side("d", [0])))


def test_registries_name_their_classes_and_say_how_to_get_each(tmp_path):
    assert list(PUBLISHED_COHORTS) == sorted(PUBLISHED_COHORTS)
    mine = [Avenue, BMAD, BrainMRI, ChestXray, Endosome, FolderSet, IDRiD, MedIAnomaly, OCT2017, Ped2, ShanghaiTech]
    for kind in mine:
        assert PUBLISHED_SETS[kind.key] is kind
        for fact in ("title", "source", "licence", "protocol", "by_hand"):
            assert getattr(kind, fact)
        with pytest.raises(InputError) as error:
            kind(tmp_path / "absent")
        assert kind.by_hand in str(error.value)
        with pytest.raises(InputError, match="cannot be downloaded"):
            kind.download(tmp_path)
    for key, cohort in PUBLISHED_COHORTS.items():
        assert cohort.key == key
        with pytest.raises(InputError, match="no folder with"):
            cohort(tmp_path / "absent")


# --- videos ---------------------------------------------------------------------------------------------------------


def make_ped2(root: Path, frames: int = 12, m_file: bool = True) -> dict[tuple[str, int], np.ndarray]:
    """Two training and two test clips; frames 3 to 5 of the first test clip, 1, 2 and 12 of the second are marked."""
    base = root / "UCSD_Anomaly_Dataset.v1p2" / "UCSDped2"
    shown = {}
    for clip in ("Train001", "Train002", "Test001", "Test002"):
        side = clip[:-3]
        for number in range(1, frames + 1):
            shown[clip, number] = picture(base / side / clip / f"{number:03d}.tif")
            if side == "Test":
                marked = number in {"Test001": (3, 4, 5), "Test002": (1, 2, 12)}[clip]
                cells = [(number % 8, 2)] if marked else []
                write(base / side / f"{clip}_gt" / f"{number:03d}.bmp", mask_of((8, 6), *cells))
        (base / side / clip / "._001.tif").write_bytes(b"resource fork")
        (base / side / ".DS_Store").write_bytes(b"")
    if m_file:
        (base / "Test" / "UCSDped2.m").write_text(
            "TestVideoFile = {};\n% gt_frame = [9:9];\nTestVideoFile{end+1}.gt_frame = [3:5];\n"
            "TestVideoFile{end+1}.gt_frame = [1:2, 12];\n"
        )
    return shown


@pytest.mark.parametrize("m_file", [True, False])
def test_ped2(tmp_path, m_file):
    shown = make_ped2(tmp_path, m_file=m_file)
    published = Ped2(tmp_path)
    problem = published.problem("all")
    assert problem.video
    assert problem.facts == {"clips": {"training": 2, "test": 2}, "labels_from": "UCSDped2.m" if m_file else "masks"}
    assert len(problem.training) == 24
    assert not problem.training.labels.any()
    test = problem.test
    assert test.names[0] == "Test/Test001/001.tif"
    assert test.groups == ("Test001",) * 12 + ("Test002",) * 12
    assert test.positions == tuple(range(1, 13)) * 2
    for index, (clip, number) in enumerate(zip(test.groups, test.positions)):
        marked = number in {"Test001": (3, 4, 5), "Test002": (1, 2, 12)}[clip]
        np.testing.assert_array_equal(test.read(index), shown[clip, number])
        assert test.labels[index] == marked
        expected = mask_of((8, 6), *([(number % 8, 2)] if marked else [])) > 0
        np.testing.assert_array_equal(test.read_mask(index), expected)
    notes = published.check()
    assert len(notes) == 2
    assert "training has 2 clips with 24 frames, published are 16 with 2550" in notes[0]


def test_ped2_takes_each_of_its_folders(tmp_path):
    make_ped2(tmp_path)
    inner = tmp_path / "UCSD_Anomaly_Dataset.v1p2"
    names = {tuple(Ped2(root).problem("all").test.names) for root in (tmp_path, inner, inner / "UCSDped2")}
    assert len(names) == 1


def test_ped2_frames_without_leading_zeros_are_in_order(tmp_path):
    make_ped2(tmp_path)
    clip = tmp_path / "UCSD_Anomaly_Dataset.v1p2/UCSDped2/Train/Train001"
    for frame in clip.glob("0*.tif"):
        frame.rename(clip / f"{int(frame.stem)}.tif")
    assert Ped2(tmp_path).problem("all").training.positions[:12] == tuple(range(1, 13))


def test_a_part_of_ped2_keeps_its_labels(tmp_path):
    make_ped2(tmp_path)
    base = tmp_path / "UCSD_Anomaly_Dataset.v1p2/UCSDped2/Test"
    for frame in base.glob("Test*/0*.*"):
        if int(frame.stem) % 3 != 1:
            frame.unlink()
    test = Ped2(tmp_path).problem("all").test
    assert test.positions == (1, 4, 7, 10) * 2
    assert test.labels.tolist() == [0, 1, 0, 0, 1, 0, 0, 0]


def test_ped2_says_what_is_wrong(tmp_path):
    make_ped2(tmp_path)
    base = tmp_path / "UCSD_Anomaly_Dataset.v1p2/UCSDped2"
    (base / "Test/UCSDped2.m").write_text("TestVideoFile{end+1}.gt_frame = [3:5];\n")
    with pytest.raises(InputError, match="lists 1 clips, and Test002"):
        Ped2(tmp_path).problem("all")
    (base / "Test/UCSDped2.m").write_text("x.gt_frame = [3:5];\nx.gt_frame = [three];\n")
    with pytest.raises(InputError, match="at clip 2: 'three'"):
        Ped2(tmp_path).problem("all")
    (base / "Test/UCSDped2.m").write_text("x.gt_frame = [3:5];\nx.gt_frame = [1:2];\n")
    assert any("1 frame labels of UCSDped2.m differ" in note for note in Ped2(tmp_path).check())
    (base / "Test/Test002_gt/004.bmp").unlink()
    published = Ped2(tmp_path)
    assert published.problem("all").test.read_mask is None
    assert any("1 of 24 test frames have no mask" in note for note in published.check())
    (base / "Test/UCSDped2.m").unlink()
    with pytest.raises(InputError, match=r"Test002_gt.*mask of each frame"):
        Ped2(tmp_path).problem("all")
    shutil.rmtree(base / "Train")
    with pytest.raises(InputError, match="Train: is missing"):
        Ped2(tmp_path).problem("all")
    with pytest.raises(InputError, match="no problem 'x'"):
        Ped2(tmp_path).problem("x")


def test_a_broken_frame_is_named(tmp_path):
    make_ped2(tmp_path)
    frame = tmp_path / "UCSD_Anomaly_Dataset.v1p2/UCSDped2/Train/Train001/001.tif"
    frame.write_bytes(frame.read_bytes()[:20])
    with pytest.raises(InputError, match=r"Train001/001\.tif: cannot be read as an image"):
        Ped2(tmp_path).problem("all").training.read(0)


def make_avenue(root: Path, first: int = 0, frames: int = 11) -> list[np.ndarray]:
    """One training and two test clips; of test clip i the frames i, i + 4 and i + 8 are marked at (frame % 8, i)."""
    for number in range(first, first + frames):
        picture(root / "training/frames/01" / f"{number}.jpg", (8, 6, 3))
    volumes = []
    for clip in (1, 2):
        masks = np.empty((1, frames), dtype=object)
        for index in range(frames):
            picture(root / f"testing/frames/{clip:02d}" / f"{index + first}.jpg", (8, 6, 3))
            masks[0, index] = mask_of((8, 6), *([(index % 8, clip)] if index % 4 == clip else [])) // 255
        folder = root / "ground_truth_demo/testing_label_mask"
        folder.mkdir(parents=True, exist_ok=True)
        savemat(folder / f"{clip}_label.mat", {"volLabel": masks})
        volumes.append(np.stack(list(masks[0])) > 0)
    return volumes


@pytest.mark.parametrize("first", [0, 1])
def test_avenue(tmp_path, first):
    volumes = make_avenue(tmp_path, first)
    problem = Avenue(tmp_path).problem("all")
    assert problem.video
    assert problem.facts["first_frame"] == first
    test = problem.test
    assert test.groups == ("01",) * 11 + ("02",) * 11
    # "10.jpg" comes after "9.jpg"
    assert test.positions == tuple(range(first, first + 11)) * 2
    for index in range(22):
        mask = volumes[index // 11][index % 11]
        np.testing.assert_array_equal(test.read_mask(index), mask)
        assert test.labels[index] == mask.any()
    assert test.read(0).shape == (8, 6, 3)
    assert len(Avenue(tmp_path).check()) == 2


def test_avenue_says_what_is_wrong(tmp_path):
    make_avenue(tmp_path)
    picture(tmp_path / "testing/frames/02/11.jpg")
    with pytest.raises(InputError, match=r"has frame 11 .*labels are of 11"):
        Avenue(tmp_path).problem("all")
    (tmp_path / "testing/frames/02/11.jpg").unlink()
    label = tmp_path / "ground_truth_demo/testing_label_mask/2_label.mat"
    savemat(label, {"other": np.zeros(3)})
    with pytest.raises(InputError, match=r"2_label\.mat: has no cell array volLabel"):
        Avenue(tmp_path).problem("all")
    for broken in (b"", b"MATLAB 5.0 but no more", label.read_bytes()[:150]):
        broken_set = tmp_path / f"broken{len(broken)}"
        shutil.copytree(tmp_path / "training", broken_set / "training")
        shutil.copytree(tmp_path / "testing", broken_set / "testing")
        shutil.copytree(tmp_path / "ground_truth_demo", broken_set / "ground_truth_demo")
        (broken_set / "ground_truth_demo/testing_label_mask/2_label.mat").write_bytes(broken)
        with pytest.raises(InputError, match=r"2_label\.mat: cannot be read|2_label\.mat: has no cell array"):
            Avenue(broken_set).problem("all")
    label.unlink()
    with pytest.raises(InputError, match=r"2_label\.mat: is missing"):
        Avenue(tmp_path).problem("all")


def test_avenue_videos_are_to_be_extracted_by_hand(tmp_path):
    make_avenue(tmp_path)
    shutil.rmtree(tmp_path / "training")
    video = tmp_path / "Avenue Dataset/training_videos/01.avi"
    video.parent.mkdir(parents=True)
    video.write_bytes(b"RIFF")
    with pytest.raises(InputError) as error:
        Avenue(tmp_path).problem("all")
    text = str(error.value)
    assert "1 videos, which are not decoded here" in text
    assert "ffmpeg" in text
    assert str(tmp_path / "training/frames/01") in text
    assert "\n" not in text


def make_shanghai(root: Path, masks: bool = True) -> dict[str, np.ndarray]:
    volumes = {}
    for clip in ("01_001", "02_001"):
        for index in range(4):
            picture(root / f"shanghaitech/training/frames/{clip}/{index:03d}.jpg")
    testing = root / "shanghaitech/testing"
    for kind in ("test_frame_mask", "test_pixel_mask"):
        (testing / kind).mkdir(parents=True)
    for clip in ("01_0014", "02_0128"):
        volume = np.zeros((5, 8, 6), dtype=np.uint8)
        volume[2:4, int(clip[1]), 3] = 1
        for index in range(5):
            picture(testing / f"frames/{clip}/{index:03d}.jpg")
        np.save(testing / f"test_frame_mask/{clip}.npy", volume.any(axis=(1, 2)).astype(np.int8))
        if masks:
            np.save(testing / f"test_pixel_mask/{clip}.npy", volume)
        volumes[clip] = volume > 0
    return volumes


def test_shanghaitech(tmp_path):
    volumes = make_shanghai(tmp_path)
    published = ShanghaiTech(tmp_path)
    problem = published.problem("all")
    test = problem.test
    assert sorted(set(test.groups)) == ["01_0014", "02_0128"]
    for index, (clip, position) in enumerate(zip(test.groups, test.positions)):
        np.testing.assert_array_equal(test.read_mask(index), volumes[clip][position])
        assert test.labels[index] == volumes[clip][position].any()
    assert len(problem.training) == 8
    assert "published are 107 with 40791" in published.check()[1]


def test_shanghaitech_says_what_is_wrong(tmp_path):
    make_shanghai(tmp_path, masks=False)
    assert ShanghaiTech(tmp_path).problem("all").test.read_mask is None
    labels = tmp_path / "shanghaitech/testing/test_frame_mask/02_0128.npy"
    np.save(labels, np.array([0, 1, 2, 0, 0]))
    with pytest.raises(InputError, match="no list of 0 and 1"):
        ShanghaiTech(tmp_path).problem("all")
    labels.write_bytes(b"no array")
    with pytest.raises(InputError, match=r"02_0128\.npy: cannot be read as NumPy array"):
        ShanghaiTech(tmp_path).problem("all")
    labels.unlink()
    with pytest.raises(InputError, match=r"02_0128\.npy: is missing"):
        ShanghaiTech(tmp_path).problem("all")
    frames = tmp_path / "shanghaitech/training/frames"
    frames.rename(tmp_path / "elsewhere")
    (frames.parent / "videos").mkdir()
    (frames.parent / "videos/01_001.avi").write_bytes(b"RIFF")
    with pytest.raises(InputError, match="not decoded here"):
        ShanghaiTech(tmp_path).problem("all")


def test_a_mask_of_another_size_than_its_frame_is_refused(tmp_path):
    make_shanghai(tmp_path)
    for frame in (tmp_path / "shanghaitech/testing/frames/01_0014").iterdir():
        picture(frame, (4, 3))
    with pytest.raises(InputError, match=r"size \(4, 3\) and its mask \(8, 6\)"):
        ShanghaiTech(tmp_path).problem("all").test.read_mask(0)


# --- folders --------------------------------------------------------------------------------------------------------


def make_folders(root: Path, masks: bool = True) -> None:
    for index in range(4):
        picture(root / f"train/normal/p{index // 2}_{index}.png")
        picture(root / f"test/normal/q{index // 2}_{index}.png")
        picture(root / f"test/abnormal/r{index // 2}_{index}.png")
        if masks:
            write(root / f"test/masks/r{index // 2}_{index}.png", mask_of((8, 6), (index, 1)))


def test_folder_set(tmp_path):
    make_folders(tmp_path)
    problem = FolderSet(tmp_path, patient_regex=r"/(\w+)_\d").problem("all")
    assert problem.training.groups == ("p0", "p0", "p1", "p1")
    assert problem.facts == {"patients": "known", "left_out": 0}
    test = problem.test
    assert test.labels.tolist() == [0] * 4 + [1] * 4
    assert test.groups[-1] == "r1"
    for index, (name, label) in enumerate(zip(test.names, test.labels)):
        cells = [(int(name[-5]), 1)] if label else []
        np.testing.assert_array_equal(test.read_mask(index), mask_of((8, 6), *cells) > 0)


def test_folder_set_without_masks_and_patients(tmp_path, recwarn):
    make_folders(tmp_path, masks=False)
    problem = FolderSet(tmp_path).problem("all")
    assert problem.test.read_mask is None
    assert problem.test.groups == ()
    assert problem.facts["patients"] == "not known, each image counts as its own"
    assert not recwarn.list


def test_folder_set_takes_a_table_of_patients(tmp_path):
    make_folders(tmp_path)
    rows = [f"{path.relative_to(tmp_path).as_posix()},{path.stem[:2]}" for path in tmp_path.glob("t*/*ormal/*.png")]
    (tmp_path / "patients.csv").write_text("image,patient\n" + "\n".join(rows))
    assert set(FolderSet(tmp_path).problem("all").test.groups) == {"q0", "q1", "r0", "r1"}


def test_folder_set_says_what_is_wrong(tmp_path):
    make_folders(tmp_path)
    (tmp_path / "test/masks/r0_0.png").unlink()
    with pytest.raises(InputError, match=r"r0_0\.png: is abnormal and has no mask"):
        FolderSet(tmp_path).problem("all")
    shutil.copy(tmp_path / "train/normal/p0_0.png", tmp_path / "test/normal/copy.png")
    with pytest.raises(InputError, match="same image"):
        FolderSet(tmp_path).problem("all")
    picture(tmp_path / "test/normal/p0_9.png")
    with pytest.raises(InputError, match="patient 'p0' is in"):
        FolderSet(tmp_path, patient_regex=r"/(\w\d|copy)[_.]").problem("all")
    shutil.rmtree(tmp_path / "test/normal")
    with pytest.raises(InputError, match="normal: is missing"):
        FolderSet(tmp_path).problem("all")


def test_endosome_counts(tmp_path):
    make_folders(tmp_path, masks=False)
    notes = Endosome(tmp_path).check()
    assert len(notes) == 3
    assert "4 images to train on, published are 165" in notes[0]
    assert "4 abnormal images to test, published are 366" in notes[2]


def make_oct(root: Path) -> None:
    base = root / "OCT2017"
    for patient in (1001, 1002, 1003):
        for number in (1, 2, 10):
            picture(base / f"train/NORMAL/NORMAL-{patient}-{number}.jpeg")
    for kind, patient in (("NORMAL", 2001), ("CNV", 2002), ("DME", 1003), ("DRUSEN", 2003)):
        picture(base / f"train/{kind}/{kind}-3000-1.jpeg")
        picture(base / f"test/{kind}/{kind}-{patient}-1.jpeg")


def test_oct2017_leaves_out_test_patients_whatever_their_class(tmp_path):
    make_oct(tmp_path)
    published = OCT2017(tmp_path)
    problem = published.problem("all")
    # patient 1003 is in the test with macular oedema; 3000 has one normal scan
    assert set(problem.training.groups) == {"1001", "1002", "3000"}
    assert problem.facts["left_out"] == 3
    assert problem.test.kinds == ("NORMAL", "CNV", "DME", "DRUSEN")
    assert problem.test.labels.tolist() == [0, 1, 1, 1]
    assert [name[-7:-5] for name in problem.training.names[:3]] == ["-1", "-2", "10"]
    assert OCT2017(tmp_path / "OCT2017").problem("all").test.names == problem.test.names
    assert any("10 images, published are 26315 or 51140" in note for note in published.check())


def test_oct2017_says_what_is_wrong(tmp_path):
    make_oct(tmp_path)
    base = tmp_path / "OCT2017"
    picture(base / "train/NORMAL/scan7.jpeg")
    with pytest.raises(InputError, match=r"scan7\.jpeg: names no patient.*NORMAL-<patient>-<number>"):
        OCT2017(tmp_path).problem("all")
    (base / "train/NORMAL/scan7.jpeg").unlink()
    (base / "test/DME/DME-1003-1.jpeg").unlink()
    with pytest.raises(InputError, match="DME: holds no image"):
        OCT2017(tmp_path).problem("all")
    (base / "test/DME").rmdir()
    with pytest.raises(InputError, match="DME: is missing"):
        OCT2017(tmp_path).problem("all")


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("IM-0115-0001.jpeg", "IM-0115"),
        ("NORMAL2-IM-1427-0001.jpeg", "NORMAL2-IM-1427"),
        ("NORMAL-1003233-0001.jpeg", "1003233"),
        ("IM-0505-0001-0001.jpg", "IM-0505"),
    ],
)
def test_chest_patients(tmp_path, name, patient):
    base = tmp_path / "chest_xray"
    picture(base / "train/NORMAL" / name)
    picture(base / "test/NORMAL/IM-0001-0001.jpeg")
    picture(base / "test/PNEUMONIA/person1_virus_6.jpeg")
    picture(base / "test/PNEUMONIA/person78_bacteria_378.jpeg")
    picture(base / "test/PNEUMONIA/VIRUS-1008087-0001.jpeg")
    problem = ChestXray(tmp_path).problem("all")
    assert problem.training.groups == (patient,)
    assert dict(zip(problem.test.groups, problem.test.kinds)) == {
        "IM-0001": "NORMAL",
        "person1": "virus",
        "person78": "bacteria",
        "1008087": "virus",
    }


def make_brain(root: Path) -> None:
    four = root / "Brain-Tumor-Classification-DataSet"
    for index in range(8):
        picture(four / f"Training/no_tumor/{index}.jpg")
        picture(four / f"Training/glioma_tumor/gg ({index}).jpg")
    picture(four / "Testing/meningioma_tumor/image(1).jpg")
    picture(four / "Testing/pituitary_tumor/image(1).jpg")
    picture(root / "two/yes/Y1.jpg")
    picture(root / "two/no/1 no.jpeg")
    (four / "Testing/no_tumor").mkdir()
    # the published test normals are copies of training normals
    for index in (2, 3):
        shutil.copy(four / f"Training/no_tumor/{index}.jpg", four / f"Testing/no_tumor/image({index}).jpg")


def test_brain_mri(tmp_path):
    make_brain(tmp_path)
    published = BrainMRI(tmp_path)
    problem = published.problem("all")
    assert problem.facts["copies_dropped"] == 2
    assert problem.facts["seed"] == 0
    # nine normals that differ: four train
    assert len(problem.training) == 4
    assert problem.test.labels.tolist() == [0] * 5 + [1] * 11
    assert {"glioma", "meningioma", "pituitary", "tumor"} == set(problem.test.kinds) - {"normal"}
    shown = [problem.training.read(i).tobytes() for i in range(4)]
    shown += [problem.test.read(i).tobytes() for i in range(16)]
    assert len(set(shown)) == 20
    assert BrainMRI(tmp_path).problem("all").training.names == problem.training.names
    notes = published.check()
    assert any("2 images are copies" in note for note in notes)
    assert any("4 images to train on, ProxyAno has 500" in note for note in notes)


def test_brain_mri_says_what_is_wrong(tmp_path):
    make_brain(tmp_path)
    shutil.copy(tmp_path / "two/no/1 no.jpeg", tmp_path / "two/yes/Y2.jpeg")
    with pytest.raises(InputError, match=r"shows the same as .* of the other class"):
        BrainMRI(tmp_path).problem("all")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no folder no"):
        BrainMRI(tmp_path / "empty").problem("all")


# --- fundus ---------------------------------------------------------------------------------------------------------


def make_idrid(root: Path) -> dict[str, np.ndarray]:
    """Two healthy and one ill photograph of the grading part, two outlined ones of 10 x 13 pixels."""
    grading, part = root / "B. Disease Grading", root / "A. Segmentation"
    shown = {}
    for name in ("IDRiD_001", "IDRiD_002", "IDRiD_003"):
        shown[name] = picture(grading / f"1. Original Images/a. Training Set/{name}.png", (10, 13, 3))
    table = grading / "2. Groundtruths/a. IDRiD_Disease Grading_Training Labels.csv"
    table.parent.mkdir()
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["Image name", "Retinopathy grade", "Risk of macular edema ", "", ""])
        rows.writerows([["IDRiD_001", "0", "0", "", ""], ["IDRiD_002", "3", "2", "", ""]])
        rows.writerows([["IDRiD_003", "0", "0", "", ""], ["", "", "", "", ""]])
    folders = ("1. Microaneurysms", "2. Haemorrhages", "3. Hard Exudates", "4. Soft Exudates", "5. Optic Disc")
    for side, name in (("a. Training Set", "IDRiD_01"), ("b. Testing Set", "IDRiD_55")):
        shown[name] = picture(part / f"1. Original Images/{side}/{name}.png", (10, 13, 3))
        for folder in folders:
            (part / "2. All Segmentation Groundtruths" / side / folder).mkdir(parents=True)
    truths = part / "2. All Segmentation Groundtruths"
    # patch (0, 0) of the first: exudates and microaneurysms; (2, 2): microaneurysms alone; the second has none of these
    write(truths / "a. Training Set/1. Microaneurysms/IDRiD_01_MA.tif", mask_of((10, 13), (1, 1), (9, 12)))
    write(truths / "a. Training Set/3. Hard Exudates/IDRiD_01_EX.tif", mask_of((10, 13), (0, 2)))
    write(truths / "b. Testing Set/2. Haemorrhages/IDRiD_55_HE.tif", mask_of((10, 13), (5, 5)))
    write(truths / "a. Training Set/5. Optic Disc/IDRiD_01_OD.tif", mask_of((10, 13), (4, 5)))
    return shown


def test_idrid(tmp_path):
    shown = make_idrid(tmp_path)
    published = IDRiD(tmp_path)
    assert published.problems == ("all", "microaneurysms", "haemorrhages", "hard_exudates", "soft_exudates")
    problem = published.problem("all")
    assert problem.training.groups == ("IDRiD_001",) * 9 + ("IDRiD_003",) * 9
    assert len(problem.test) == 18
    abnormal = [name for name, label in zip(problem.test.names, problem.test.labels) if label]
    assert abnormal == ["IDRiD_01_row0_column0", "IDRiD_01_row2_column2", "IDRiD_55_row1_column1"]
    # the patches put together are the photograph
    rows = [np.concatenate([problem.test.read(3 * row + column) for column in range(3)], axis=1) for row in range(3)]
    np.testing.assert_array_equal(np.concatenate(rows), shown["IDRiD_01"])
    rows = [
        np.concatenate([problem.test.read_mask(3 * row + column) for column in range(3)], axis=1) for row in range(3)
    ]
    np.testing.assert_array_equal(np.concatenate(rows), mask_of((10, 13), (1, 1), (9, 12), (0, 2)) > 0)
    assert problem.facts["patches"] == [3, 3]
    assert published.check() == [
        f"{tmp_path}: 2 photographs normal to train on, published are 134",
        f"{tmp_path}: 2 photographs with outlines, published are 81",
    ]


def test_idrid_of_one_kind_leaves_out_patches_of_others(tmp_path):
    make_idrid(tmp_path)
    problem = IDRiD(tmp_path).problem("hard_exudates")
    assert problem.facts["other_lesions_left_out"] == 2
    assert len(problem.test) == 16
    assert problem.test.labels.sum() == 1
    np.testing.assert_array_equal(problem.test.read_mask(0), mask_of((3, 4), (0, 2)) > 0)
    with pytest.raises(InputError, match="no abnormal test image"):
        IDRiD(tmp_path).problem("soft_exudates")


def test_idrid_says_what_is_wrong(tmp_path):
    make_idrid(tmp_path)
    truths = tmp_path / "A. Segmentation/2. All Segmentation Groundtruths/a. Training Set"
    write(truths / "3. Hard Exudates/IDRiD_09_EX.tif", mask_of((10, 13)))
    with pytest.raises(InputError, match=r"IDRiD_09_EX\.tif: is of no image"):
        IDRiD(tmp_path).problem("all")
    (truths / "3. Hard Exudates/IDRiD_09_EX.tif").unlink()
    write(truths / "3. Hard Exudates/IDRiD_01_EX.tif", mask_of((3, 3), (0, 0)))
    with pytest.raises(InputError, match="has 3 x 3 pixels, its image 10 x 13"):
        IDRiD(tmp_path).problem("all").test.read_mask(0)
    table = tmp_path / "B. Disease Grading/2. Groundtruths/a. IDRiD_Disease Grading_Training Labels.csv"
    text = table.read_text()
    table.write_text(text.replace("IDRiD_003,0", "IDRiD_003,none"))
    with pytest.raises(InputError, match="grade 'none' for image 'IDRiD_003'"):
        IDRiD(tmp_path).problem("all")
    table.write_text(text.replace("IDRiD_003,0", "IDRiD_004,0"))
    with pytest.raises(InputError, match=r"IDRiD_004\.jpg: is missing"):
        IDRiD(tmp_path).problem("all")
    shutil.rmtree(tmp_path / "B. Disease Grading")
    with pytest.raises(InputError, match=r"B\. Disease Grading: is missing"):
        IDRiD(tmp_path).problem("all")


# --- collections ----------------------------------------------------------------------------------------------------


def make_bmad(root: Path) -> None:
    brain = root / "Brain_AD/BraTS2021_slice"
    for name in ("00003_60", "00003_61", "00002_70"):
        picture(brain / f"train/good/img/{name}.png")
    for name in ("00000_96", "00000_97"):
        picture(brain / f"test/good/img/{name}.png")
    for index, name in enumerate(("00002_60", "00002_68")):
        picture(brain / f"test/Ungood/img/{name}.png")
        write(brain / f"test/Ungood/label/{name}.png", mask_of((8, 6), (index, 1)))
    picture(brain / "valid/Ungood/img/00124_60.png")
    cells = root / "Histopathology_AD/camelyon16_256"
    for name in ("train/good/1000", "train/good/1001", "test/good/1000", "test/Ungood/100", "test/Ungood/101"):
        picture(cells / f"{name}.png", (8, 6, 3))
    retina = root / "Retina_RESC_AD/RESC"
    for name in ("train/good/img/a", "test/good/img/b", "test/ungood/img/c"):
        picture(retina / f"{name}.png")
    write(retina / "test/ungood/label/c.png", mask_of((8, 6), (0, 0)))


def test_bmad(tmp_path):
    make_bmad(tmp_path)
    published = BMAD(tmp_path)
    assert published.problems == ("BraTS2021_slice", "camelyon16_256", "RESC")
    brain = published.problem("BraTS2021_slice")
    # volume 00002 is in the test
    assert brain.training.groups == ("00003", "00003")
    assert brain.facts == {"patients": "known", "left_out": 1}
    assert brain.test.labels.tolist() == [0, 0, 1, 1]
    assert not brain.test.read_mask(0).any()
    np.testing.assert_array_equal(brain.test.read_mask(3), mask_of((8, 6), (1, 1)) > 0)
    cells = published.problem("camelyon16_256")
    assert cells.test.read_mask is None
    assert cells.test.groups == ()
    assert cells.test.read(0).shape == (8, 6, 3)
    assert published.problem("RESC").test.read_mask(1)[0, 0]
    notes = published.check()
    assert any("3 images to train on, published are 7500" in note for note in notes)
    assert any("1 training slices are of test volumes" in note for note in notes)
    assert BMAD(tmp_path / "Brain_AD/BraTS2021_slice").problems == ("BraTS2021_slice",)


def test_bmad_says_what_is_wrong(tmp_path):
    with pytest.raises(InputError, match="holds nothing in the layout of BMAD"):
        BMAD(tmp_path).problem("Brain")
    make_bmad(tmp_path)
    brain = tmp_path / "Brain_AD/BraTS2021_slice/test"
    (brain / "Ungood/label/00002_68.png").unlink()
    with pytest.raises(InputError, match=r"00002_68\.png: has no mask"):
        BMAD(tmp_path).problem("BraTS2021_slice")
    shutil.rmtree(brain / "good")
    with pytest.raises(InputError, match="test/good: is missing"):
        BMAD(tmp_path).problem("BraTS2021_slice")
    with pytest.raises(InputError, match="no problem 'Liver'"):
        BMAD(tmp_path).problem("Liver")


def make_medianomaly(root: Path) -> None:
    lists = {"train": {"0": ["a.png", "b.png"]}, "test": {"0": ["c.png"], "1": ["d.png", "e.png"]}}
    for name in "abcde":
        picture(root / f"RSNA/images/{name}.png")
    (root / "RSNA/data.json").write_text(json.dumps(lists))
    for name in ("train/good/1", "test/good/2", "test/Ungood/3"):
        picture(root / f"Camelyon16/{name}.png", (8, 6, 3))
    brats = root / "BraTS2021"
    picture(brats / "train/00001_flair_60.png")
    picture(brats / "train/00009_flair_60.png")
    picture(brats / "test/normal/00002_flair_10.png")
    picture(brats / "test/tumor/00009_flair_80.png")
    write(brats / "test/annotation/00009_seg_80.png", mask_of((8, 6), (2, 2)))
    for side, rows in {
        "Training": [("ISIC_1", "NV"), ("ISIC_2", "MEL"), ("ISIC_3", "NV")],
        "Test": [("ISIC_8", "NV"), ("ISIC_9", "BCC")],
    }.items():
        stem = f"ISIC2018_Task3_{side}"
        table = root / f"ISIC2018_Task3/{stem}_GroundTruth/{stem}_GroundTruth.csv"
        table.parent.mkdir(parents=True)
        lines = ["image,MEL,NV,BCC"]
        for name, kind in rows:
            picture(root / f"ISIC2018_Task3/{stem}_Input/{name}.jpg", (8, 6, 3))
            lines.append(f"{name}," + ",".join("1.0" if kind == k else "0.0" for k in ("MEL", "NV", "BCC")))
        table.write_text("\n".join(lines))


def test_medianomaly(tmp_path):
    make_medianomaly(tmp_path)
    published = MedIAnomaly(tmp_path)
    assert published.problems == ("RSNA", "ISIC2018_Task3", "Camelyon16", "BraTS2021")
    listed = published.problem("RSNA")
    assert listed.training.names == ("images/a.png", "images/b.png")
    assert listed.test.labels.tolist() == [0, 1, 1]
    brats = published.problem("BraTS2021")
    assert brats.training.groups == ("00001",)
    assert brats.facts == {"patients": "known", "left_out": 1}
    assert brats.test.read_mask(1)[2, 2]
    assert not brats.test.read_mask(0).any()
    isic = published.problem("ISIC2018_Task3")
    assert [Path(name).stem for name in isic.training.names] == ["ISIC_1", "ISIC_3"]
    assert isic.test.kinds == ("NV", "BCC")
    assert published.problem("Camelyon16").test.labels.tolist() == [0, 1]
    (tmp_path / "BraTS2021.tar.gz").write_bytes(b"part of it")
    notes = published.check()
    assert any("has 10 bytes, the published one 70262263" in note for note in notes)
    assert any("VinCXR, BrainTumor, LAG not there" in note for note in notes)
    assert "RSNA: 2 images to train on, published are 3851" in notes


def test_medianomaly_says_what_is_wrong(tmp_path):
    with pytest.raises(InputError, match="holds nothing in the layout of MedIAnomaly"):
        MedIAnomaly(tmp_path).problem("RSNA")
    make_medianomaly(tmp_path)
    (tmp_path / "RSNA/images/d.png").unlink()
    with pytest.raises(InputError, match=r"d\.png: is missing, as 1 of 5 are"):
        MedIAnomaly(tmp_path).problem("RSNA")
    (tmp_path / "RSNA/data.json").write_text('{"train": {"0": ["a.png"]}}')
    with pytest.raises(InputError, match="no list of train 0"):
        MedIAnomaly(tmp_path).problem("RSNA")
    (tmp_path / "RSNA/data.json").write_text('{"train": {"0": ["a.png"]}, "test": {"0": ["a.png"], "1": ["b.png"]}}')
    with pytest.raises(InputError, match="names an image twice"):
        MedIAnomaly(tmp_path).problem("RSNA")
    (tmp_path / "BraTS2021/test/annotation/00009_seg_80.png").unlink()
    with pytest.raises(InputError, match=r"00009_seg_80\.png: is missing"):
        MedIAnomaly(tmp_path).problem("BraTS2021")


# --- volumes --------------------------------------------------------------------------------------------------------


def volume(path: Path, array: np.ndarray | None = None) -> None:
    import nibabel as nib

    path.parent.mkdir(parents=True, exist_ok=True)
    array = RNG.normal(size=(5, 6, 7)).astype(np.float32) if array is None else array
    nib.save(nib.Nifti1Image(array, np.diag([2.0, 2.0, 3.0, 1.0])), path)


def lesion(*cells: tuple[int, int, int], value: int = 4) -> np.ndarray:
    array = np.zeros((5, 6, 7), dtype=np.uint8)
    for cell in cells:
        array[cell] = value
    return array


def make_brats(root: Path) -> None:
    for case, names in {
        "BraTS2021_00000": ("flair", "t1", "t1ce", "t2", "seg"),
        "BraTS2021_00010": ("flair", "t1", "t1ce", "t2", "seg"),
        "BraTS-GLI-00002-001": ("t2f", "t1n", "t1c", "t2w", "seg"),
    }.items():
        between = "-" if "GLI" in case else "_"
        for name in names:
            array = lesion((1, 2, 3)) if name == "seg" and case != "BraTS2021_00010" else None
            array = lesion() if name == "seg" and array is None else array
            volume(root / case / f"{case}{between}{name}.nii.gz", array)


def test_brats_datalist(tmp_path):
    make_brats(tmp_path / "brats")
    for index in range(10):
        volume(tmp_path / f"ixi/IXI{index:03d}-T2.nii.gz")
    cohort = BraTSCohort(tmp_path / "brats", modality="t2w")
    datalist = cohort.write_datalist(
        tmp_path / "lists/brats.json", tmp_path / "ixi", patient_regex=r"(IXI\d+)", test_fraction=0.3, seed=1
    )
    loaded = load_cohort(tmp_path / "lists/brats.json")
    assert (len(loaded.training), len(loaded.calibration), len(loaded.test)) == (6, 1, 6)
    ours = {item["patient"]: item for item in loaded.test if "IXI" not in item["patient"]}
    assert {patient: item["label"] for patient, item in ours.items()} == {
        "BraTS2021_00000": 1,
        "BraTS2021_00010": 0,
        "BraTS-GLI-00002": 1,
    }
    assert ours["BraTS-GLI-00002"]["image"].endswith("BraTS-GLI-00002-001-t2w.nii.gz")
    assert ours["BraTS2021_00000"]["image"].endswith("BraTS2021_00000_t2.nii.gz")
    assert ours["BraTS2021_00000"]["mask"].endswith("BraTS2021_00000_seg.nii.gz")
    assert ours["BraTS2021_00010"]["mask"] is None
    assert not Path(datalist["test"][-1]["image"]).is_absolute()
    again = cohort.write_datalist(
        tmp_path / "lists/again.json", tmp_path / "ixi", patient_regex=r"(IXI\d+)", test_fraction=0.3, seed=1
    )
    assert again == datalist
    assert cohort.check() == [f"{tmp_path / 'brats'}: 3 cases, published are 335 or 369 or 1251"]


@pytest.mark.parametrize(("modality", "ending"), [("flair", "t2f"), ("t1", "t1n"), ("T1c", "t1c"), ("t2", "t2w")])
def test_brats_modalities_by_each_name(tmp_path, modality, ending):
    make_brats(tmp_path)
    items = {item["patient"]: item for item in BraTSCohort(tmp_path, modality).test_items()}
    assert items["BraTS-GLI-00002"]["image"].endswith(f"-{ending}.nii.gz")
    old = {"t2f": "flair", "t1n": "t1", "t1c": "t1ce", "t2w": "t2"}[ending]
    assert items["BraTS2021_00000"]["image"].endswith(f"00000_{old}.nii.gz")


def test_a_datalist_that_only_tests(tmp_path):
    make_brats(tmp_path / "data/brats")
    BraTSCohort(tmp_path / "data").write_datalist(tmp_path / "test.json")
    loaded = load_cohort(tmp_path / "test.json")
    assert not loaded.training
    assert len(loaded.test) == 3


def test_a_normal_that_is_of_the_cohort_is_refused(tmp_path):
    make_brats(tmp_path / "brats")
    for index in range(4):
        volume(tmp_path / f"normals/{index}.nii.gz")
    source = tmp_path / "brats/BraTS2021_00000/BraTS2021_00000_flair.nii.gz"
    for index in range(4):
        shutil.copy(source, tmp_path / f"normals/{index}.nii.gz")
    with pytest.warns(UserWarning, match="patients"), pytest.raises(InputError, match="same image"):
        BraTSCohort(tmp_path / "brats").write_datalist(
            tmp_path / "list.json", tmp_path / "normals", calibration_fraction=0, test_fraction=0
        )
    assert not (tmp_path / "list.json").exists()


def test_brats_says_what_is_wrong(tmp_path):
    make_brats(tmp_path)
    with pytest.raises(InputError, match="has no 'dwi'"):
        BraTSCohort(tmp_path, "dwi")
    case = tmp_path / "BraTS2021_00010"
    (case / "BraTS2021_00010_seg.nii.gz").rename(case / "W39_1998.09.19_Segm.nii.gz")
    with pytest.raises(InputError, match="BraTS2021_00010: has no outline"):
        BraTSCohort(tmp_path).check()
    seg = case / "BraTS2021_00010_seg.nii.gz"
    seg.write_bytes(b"broken")
    with pytest.raises(InputError, match=r"00010_seg\.nii\.gz: cannot be read as NIfTI"):
        BraTSCohort(tmp_path).test_items()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no case of BraTS"):
        BraTSCohort(tmp_path / "empty")


@pytest.mark.parametrize(
    ("scan", "outline"),
    [
        ("patient01_FLAIR", "patient01_consensus_gt"),
        ("FLAIR", "consensus_gt"),
        (
            "FLAIR_N4_noneck_reduced_winsor_regtoFLAIR_brain_N4_regtoMNI",
            "GOLD_STANDARD_N4_noneck_reduced_winsor_regtoFLAIR_regtoMNI",
        ),
    ],
)
def test_mslub_layouts(tmp_path, scan, outline):
    for patient in ("patient01", "patient02"):
        folder = tmp_path / "MSLUB" / patient
        volume(folder / f"{scan.replace('patient01', patient)}.nii.gz")
        volume(folder / f"{outline.replace('patient01', patient)}.nii.gz", lesion((0, 1, 2), value=1))
        volume(folder / "raw" / f"{patient}_FLAIR.nii.gz")
        volume(folder / "brainmask.nii.gz", lesion((1, 1, 1), value=1))
    items = MSLUBCohort(tmp_path).test_items()
    assert [item["patient"] for item in items] == ["patient01", "patient02"]
    assert all(item["label"] == 1 and "raw" not in item["image"] for item in items)
    assert MSLUBCohort(tmp_path).check() == [f"{tmp_path}: 2 cases, published are 30"]


# --- real data ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_real_ped2(real_data, tmp_path):
    """The packed copy, unpacked into the published layout: labels of masks are the published ones."""
    packed = np.load(real_data / "ucsd_ped2/ped2_128x192_gray_sub.npz", allow_pickle=False)
    masks = np.unpackbits(packed["mask_testing_packed"], axis=-1)
    kept = np.flatnonzero(packed["frame_testing"] % 4 == 0)
    for index in kept:
        clip, frame = int(packed["clip_testing"][index]), int(packed["frame_testing"][index]) + 1
        write(tmp_path / f"Test/Test{clip:03d}_gt/{frame:03d}.bmp", masks[index] * np.uint8(255))
        start, end = packed["offset_testing"][index : index + 2]
        path = tmp_path / f"Test/Test{clip:03d}/{frame:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(packed["jpeg_testing"][start:end].tobytes())
    write(tmp_path / "Train/Train001/001.tif", np.zeros((128, 192), dtype=np.uint8))
    test = Ped2(tmp_path).problem("all").test
    expected = {
        (f"Test{int(packed['clip_testing'][i]):03d}", int(packed["frame_testing"][i]) + 1): packed["label_testing"][i]
        for i in kept
    }
    assert len(test) == len(kept)
    assert {(g, p): label for g, p, label in zip(test.groups, test.positions, test.labels)} == expected
    assert test.read(0).shape == (128, 192)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "regex", "train", "test", "masked"),
    [
        ("brain_lgg_flair", r"(TCGA_\w+?_\w+?)_\d+_\d+\.png", 298, 200, True),
        ("brain_sartaj_dedup", None, None, None, False),
        ("cxr_pneumonia224", None, 200, 120, False),
    ],
)
def test_real_folders(real_data, folder, regex, train, test, masked):
    problem = FolderSet(real_data / folder, patient_regex=regex).problem("all")
    if train is not None:
        assert (len(problem.training), len(problem.test)) == (train, test)
    assert not set(problem.training.groups) & set(problem.test.groups)
    assert problem.training.read(0).ndim == 2
    abnormal = int(np.flatnonzero(problem.test.labels)[0])
    assert (problem.test.read_mask is not None) is masked
    if problem.test.read_mask is not None:
        assert problem.test.read_mask(abnormal).sum() >= 100
        assert not problem.test.read_mask(int(np.flatnonzero(problem.test.labels == 0)[0])).any()


def test_real_chest_xrays_in_the_published_folders(real_data, tmp_path):
    """Of a patient with images in both folders, those in the training folder do not train."""
    folders = {"train/normal": "train/NORMAL", "test/normal": "test/NORMAL", "test/abnormal": "test/PNEUMONIA"}
    for ours, theirs in folders.items():
        (tmp_path / theirs).mkdir(parents=True)
        for file in (real_data / "cxr_pneumonia224" / ours).iterdir():
            (tmp_path / theirs / file.name).symlink_to(file)
    problem = ChestXray(tmp_path).problem("all")
    assert len(problem.training) + problem.facts["left_out"] == 200
    assert not set(problem.training.groups) & set(problem.test.groups)
    assert set(problem.test.kinds) == {"NORMAL", "bacteria", "virus"}


def test_real_fundus(real_data):
    problem = FolderSet(real_data / "fundus_idrid_drive").problem("all")
    assert problem.training.read(0).shape == (512, 512, 3)
    assert problem.test.read_mask(int(np.flatnonzero(problem.test.labels)[0])).any()


def test_real_volumes(real_data, tmp_path):
    lesions = real_data / "nifti3d/lesion"
    brats = BraTSCohort(lesions).test_items()
    assert [item["patient"] for item in brats] == ["brats_2013_pat0003", "brats_2013_pat0005"]
    mslub = MSLUBCohort(lesions)
    mslub.write_datalist(tmp_path / "mslub.json")
    loaded = load_cohort(tmp_path / "mslub.json")
    assert [(item["patient"], item["label"]) for item in loaded.test] == [("patient19", 1), ("patient26", 1)]
    assert "GOLD_STANDARD" in loaded.test[0]["mask"]
