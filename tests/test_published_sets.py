"""Readers of the published natural-image sets, on tiny sets in the true layouts and on real ones."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import runpy
import struct
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from monai_anomaly.data.published import (
    BTAD,
    CIFAR10,
    CIFAR100,
    MNIST,
    PUBLISHED_SETS,
    Digits,
    FashionMNIST,
    GTSRBStopSigns,
    ImageNetSuperclasses,
    MVTecAD,
    Problem,
    RemoteFile,
    VisA,
)
from monai_anomaly.data.published.cifar import read_batch
from monai_anomaly.data.published.download import unpack
from monai_anomaly.data.published.idx import read_idx
from monai_anomaly.exceptions import InputError
from monai_anomaly.io.image_files import list_pictures, read_picture

NATURAL = {
    "btad": BTAD,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "digits": Digits,
    "fashion_mnist": FashionMNIST,
    "gtsrb_stop_signs": GTSRBStopSigns,
    "imagenet": ImageNetSuperclasses,
    "mnist": MNIST,
    "mvtec_ad": MVTecAD,
    "visa": VisA,
}


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, array: np.ndarray, **options: Any) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return array


def assert_well_formed(problem: Problem) -> None:
    """What every problem must be."""
    for side in (problem.training, problem.test):
        assert len(set(side.names)) == len(side) > 0
        assert len(side.kinds) == len(side)
        for index in range(len(side)):
            picture = side.read(index)
            assert picture.dtype == np.uint8
            assert picture.ndim == 2 or picture.shape[2:] == (3,)
            if side.read_mask is not None:
                mask = side.read_mask(index)
                assert mask.dtype == bool
                assert mask.shape == picture.shape[:2]
                assert mask.any() == side.labels[index]
    assert set(problem.test.labels) == {0, 1}
    assert not set(problem.training.names) & set(problem.test.names)


# --- the registry ---------------------------------------------------------------------------------------------------


def test_the_registry_names_every_set() -> None:
    assert NATURAL.items() <= PUBLISHED_SETS.items()
    for key, published in NATURAL.items():
        assert published.key == key
        for fact in (published.title, published.source, published.licence, published.citation, published.protocol):
            assert fact.strip()
        for file in published.files:
            assert len(file.sha256) in (0, 64)
            assert len(file.md5) in (0, 32)
            assert not file.url or file.sha256 or file.md5  # nothing is fetched unchecked


@pytest.mark.parametrize("key", sorted(NATURAL.keys() - {"digits"}))
def test_a_missing_folder_says_how_to_get_the_set(key: str, tmp_path: Path) -> None:
    published = NATURAL[key]
    with pytest.raises(InputError, match="no folder with") as caught:
        published(tmp_path / "absent")
    assert str(tmp_path / "absent") in str(caught.value)
    assert published.how_to_get() in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["imagenet", "mvtec_ad"])
def test_sets_behind_forms_are_not_downloaded(key: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be downloaded by a program"):
        NATURAL[key].download(tmp_path)


# --- MNIST and Fashion-MNIST ----------------------------------------------------------------------------------------


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx_set(folder: Path, packed: bool = True) -> dict[str, np.ndarray]:
    """Four files; of each class two training images and one test image."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "train-images-idx3-ubyte": noise(0, 20, 28, 28),
        "train-labels-idx1-ubyte": np.random.default_rng(1).permutation(np.repeat(np.arange(10, dtype=np.uint8), 2)),
        "t10k-images-idx3-ubyte": noise(2, 10, 28, 28),
        "t10k-labels-idx1-ubyte": np.random.default_rng(3).permutation(np.arange(10, dtype=np.uint8)),
    }
    for name, array in content.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array)))
        else:
            (folder / name).write_bytes(idx_bytes(array))
    return content


@pytest.mark.parametrize("published", [MNIST, FashionMNIST])
@pytest.mark.parametrize("layout", ["packed", "unpacked", "torchvision"])
def test_idx_sets_are_read_exactly(published: type[MNIST], layout: str, tmp_path: Path) -> None:
    folder = tmp_path / published.__name__ / "raw" if layout == "torchvision" else tmp_path
    content = write_idx_set(folder, packed=layout != "unpacked")
    found = published(tmp_path)
    assert found.problems == published.classes
    for number, name in enumerate(found.problems):
        problem = found.problem(name)
        assert_well_formed(problem)
        expected = content["train-images-idx3-ubyte"][content["train-labels-idx1-ubyte"] == number]
        np.testing.assert_array_equal([problem.training.read(i) for i in range(2)], expected)
        np.testing.assert_array_equal(
            [problem.test.read(i) for i in range(10)], content["t10k-images-idx3-ubyte"], strict=True
        )
        np.testing.assert_array_equal(problem.test.labels, content["t10k-labels-idx1-ubyte"] != number)
        assert problem.test.kinds == tuple(published.classes[c] for c in content["t10k-labels-idx1-ubyte"])
        assert set(problem.training.kinds) == {name}
    with pytest.raises(InputError, match=r"has no problem '11'.*Choose one of"):
        found.problem("11")
    notes = found.check()
    assert sum("not the published content" in note for note in notes) == 4
    assert sum(note.startswith(("train: not the published number", "t10k: not the published")) for note in notes) == 2


def test_a_picture_that_is_changed_leaves_the_set_alone(tmp_path: Path) -> None:
    write_idx_set(tmp_path)
    problem = MNIST(tmp_path).problem("3")
    first = problem.test.read(0)
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(problem.test.read(0), kept)


def test_some_of_the_pictures(tmp_path: Path) -> None:
    write_idx_set(tmp_path)
    test = MNIST(tmp_path).problem("3").test
    part = test.take([7, 2])
    assert part.names == (test.names[7], test.names[2])
    assert part.kinds == (test.kinds[7], test.kinds[2])
    np.testing.assert_array_equal(part.labels, test.labels[[7, 2]])
    np.testing.assert_array_equal(part.read(1), test.read(2))


@pytest.mark.slow
@given(array=arrays(np.uint8, array_shapes(min_dims=1, max_dims=4, max_side=4)), packed=st.booleans())
def test_any_idx_array_comes_back(array: np.ndarray, packed: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("idx") / ("file.gz" if packed else "file")
    path.write_bytes(gzip.compress(idx_bytes(array)) if packed else idx_bytes(array))
    np.testing.assert_array_equal(read_idx(path), array, strict=True)
    path.write_bytes(gzip.compress(idx_bytes(array)[:-1]) if packed else idx_bytes(array)[:-1])
    with pytest.raises(InputError, match="truncated"):
        read_idx(path)


def test_broken_idx_files_are_named(tmp_path: Path) -> None:
    write_idx_set(tmp_path)
    images, labels = tmp_path / "train-images-idx3-ubyte.gz", tmp_path / "train-labels-idx1-ubyte.gz"
    whole = images.read_bytes()
    cases = [
        (images, whole[: len(whole) // 2], "cannot be unpacked"),
        (images, b"<html>not found</html>", "cannot be unpacked"),
        (images, gzip.compress(b"\x00\x00\x0d\x01\x00\x00\x00\x01\x00"), "no idx file of unsigned bytes"),
        (images, gzip.compress(b"\x00\x00\x08\x03\x00\x00"), "truncated within its header"),
        (images, gzip.compress(idx_bytes(noise(0, 20, 14, 14))), "not N images of 28 x 28"),
        (labels, gzip.compress(idx_bytes(np.zeros(19, dtype=np.uint8))), "19,.*for 20 images"),
        (labels, gzip.compress(idx_bytes(np.full(20, 10, dtype=np.uint8))), "labels above 9"),
    ]
    for path, content, message in cases:
        write_idx_set(tmp_path)
        path.write_bytes(content)
        with pytest.raises(InputError, match=message) as caught:
            MNIST(tmp_path).problem("0")
        assert caught.value.where == str(path)
        assert caught.value.remedy
    images.unlink()
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte.gz: is missing, it is part of MNIST.*--download"):
        MNIST(tmp_path).problem("0")


# --- downloads ------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A web server of a folder: its address and the folder."""
    folder = tmp_path_factory.mktemp("server")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}", folder
        http.shutdown()
        thread.join()


def offered(folder: Path, address: str) -> tuple[RemoteFile, ...]:
    """The files of a folder as a publisher offers them."""
    return tuple(
        RemoteFile(path.name, f"{address}/{path.name}", sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.iterdir())
    )


def test_files_are_downloaded_checked_and_not_twice(server: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = server
    content = write_idx_set(folder)

    class Offered(MNIST):
        files = offered(folder, address)

    root = tmp_path / "set"
    Offered.download(root)
    np.testing.assert_array_equal(Offered(root).problem("3").test.read(4), content["t10k-images-idx3-ubyte"][4])

    # One file is fetched again, for it is not there; the others are left alone, for they are.
    (root / "t10k-labels-idx1-ubyte.gz").unlink()
    for path in folder.iterdir():
        if not path.name.startswith("t10k-labels"):
            path.unlink()
    Offered.download(root)
    assert len(list(root.iterdir())) == 4


def test_a_file_that_is_not_the_published_one_is_not_kept(server: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = server
    write_idx_set(folder)

    class Offered(MNIST):
        files = offered(folder, address)

    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(b"something else")
    with pytest.raises(InputError, match="does not have the published sha256"):
        Offered.download(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (folder / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(InputError, match=r"could not be downloaded.*404"):
        Offered.download(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_archives_are_downloaded_and_unpacked(server: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = server
    write_cifar10(tmp_path / "made")
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "made" / "cifar-10-batches-py", "cifar-10-batches-py")

    class Offered(CIFAR10):
        files = (*offered(folder, address), *CIFAR10.files[1:])

    root = tmp_path / "set"
    Offered.download(root)
    assert {path.name for path in root.iterdir()} == {"cifar-10-python.tar.gz", "cifar-10-batches-py"}
    assert_well_formed(Offered(root).problem("dog"))

    # What is unpacked is not fetched again, though the archive was deleted and the server has it no longer.
    (root / "cifar-10-python.tar.gz").unlink()
    (folder / "cifar-10-python.tar.gz").unlink()
    Offered.download(root)
    assert {path.name for path in root.iterdir()} == {"cifar-10-batches-py"}


def test_broken_and_hostile_archives_leave_nothing(tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    outside = tmp_path / "outside.txt"
    archives = {name: tmp_path / name for name in ("broken.tar.gz", "broken.zip", "hostile.tar")}
    archives["broken.tar.gz"].write_bytes(gzip.compress(noise(0, 5000).tobytes())[:-100])
    archives["broken.zip"].write_bytes(b"PK\x03\x04 and no more")
    with tarfile.open(archives["hostile.tar"], "w") as tar:
        tar.addfile(tarfile.TarInfo("../../outside.txt"), io.BytesIO())
    for archive in archives.values():
        with pytest.raises(InputError, match="cannot be unpacked"):
            unpack(archive, root)
        assert list(root.iterdir()) == []
    assert not outside.exists()


def test_archives_of_one_folder_are_laid_over_each_other(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as zipped:
            zipped.writestr(f"GTSRB/Final/{name}.txt", name)
        unpack(tmp_path / f"{name}.zip", tmp_path)
    assert {path.name for path in (tmp_path / "GTSRB" / "Final").iterdir()} == {"a.txt", "b.txt"}


# --- CIFAR ----------------------------------------------------------------------------------------------------------


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes bytes and text as Python 2 wrote its strings, which is how the published batches are."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def _string(self, value: bytes | str) -> None:
        raw = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = _string


def python2_pickle(value: Any) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def python3_pickle(value: Any) -> bytes:
    return pickle.dumps(value, protocol=2)


def write_cifar10(
    root: Path, classes: tuple[int, ...] = tuple(range(10)), dumps: Any = python2_pickle
) -> dict[str, tuple[np.ndarray, list[int]]]:
    """Five training batches with an image of each class given, a test batch with one of each class."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    content = {}
    for seed, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        labels = [
            int(c) for c in np.random.default_rng(seed).permutation(range(10) if name == "test_batch" else classes)
        ]
        data = noise(seed, len(labels), 3072)
        content[name] = (data, labels)
        names = [f"{label}_{i}.png".encode() for i, label in enumerate(labels)]
        batch = {b"batch_label": name.encode(), b"labels": labels, b"data": data, b"filenames": names}
        (folder / name).write_bytes(dumps(batch))
    return content


def cifar_picture(row: np.ndarray) -> np.ndarray:
    """By the published description: 1024 red, 1024 green, 1024 blue bytes, each row by row."""
    picture = np.empty((32, 32, 3), dtype=np.uint8)
    for channel in range(3):
        for y in range(32):
            picture[y, :, channel] = row[1024 * channel + 32 * y : 1024 * channel + 32 * (y + 1)]
    return picture


@pytest.mark.parametrize("dumps", [python2_pickle, python3_pickle, pickle.dumps])
@pytest.mark.parametrize("inner", [True, False])
def test_cifar10_is_read_exactly(dumps: Any, inner: bool, tmp_path: Path) -> None:
    content = write_cifar10(tmp_path, dumps=dumps)
    found = CIFAR10(tmp_path / "cifar-10-batches-py" if inner else tmp_path)
    assert found.problems == CIFAR10.classes
    problem = found.problem("dog")
    assert_well_formed(problem)
    dogs = [data[labels.index(5)] for name, (data, labels) in content.items() if name != "test_batch"]
    for index, row in enumerate(dogs):
        np.testing.assert_array_equal(problem.training.read(index), cifar_picture(row))
    data, labels = content["test_batch"]
    np.testing.assert_array_equal(problem.test.read(3), cifar_picture(data[3]))
    np.testing.assert_array_equal(problem.test.labels, np.array(labels) != 5)
    assert problem.test.kinds == tuple(CIFAR10.classes[label] for label in labels)
    assert sum("not the published file (md5 differs)" in note for note in found.check()) == 6


def test_a_part_of_cifar10_has_the_problems_that_are_there(tmp_path: Path) -> None:
    write_cifar10(tmp_path, classes=(0, 1, 5))
    found = CIFAR10(tmp_path)
    assert found.problems == ("airplane", "automobile", "dog")
    assert len(found.problem("dog").test) == 10
    with pytest.raises(InputError, match=r"has no problem 'cat'.*airplane, automobile, dog"):
        found.problem("cat")
    absent = "bird, cat, deer, frog, horse, ship, truck"
    assert f"train: a part of the set: no images of {absent}" in found.check()


def test_cifar100_has_its_superclasses_as_problems(tmp_path: Path) -> None:
    contents = {}
    for seed, name in enumerate(("train", "test")):
        coarse = [int(c) for c in np.random.default_rng(seed).permutation(20)]
        contents[name] = (noise(seed, 20, 3072), coarse)
        batch = {b"data": contents[name][0], b"coarse_labels": coarse, b"fine_labels": [99 - c for c in coarse]}
        (tmp_path / "cifar-100-python").mkdir(exist_ok=True)
        (tmp_path / "cifar-100-python" / name).write_bytes(python2_pickle(batch))
    found = CIFAR100(tmp_path)
    assert len(found.problems) == 20
    assert list(found.problems) == sorted(found.problems)  # published in the order of the alphabet
    for number, name in enumerate(found.problems):
        problem = found.problem(name)
        np.testing.assert_array_equal(
            problem.training.read(0), cifar_picture(contents["train"][0][contents["train"][1].index(number)])
        )
        np.testing.assert_array_equal(problem.test.labels, np.array(contents["test"][1]) != number)


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_runs_nothing(protocol: int, tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    path, trace = tmp_path / "cifar-10-batches-py" / "data_batch_3", tmp_path / "trace"
    content = pickle.dumps({b"data": Hostile(f"touch {trace}"), b"labels": []}, protocol=protocol)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"asks for (posix|nt)\.system") as caught:
        CIFAR10(tmp_path).problem("dog")
    assert caught.value.where == str(path)
    assert not trace.exists()
    pickle.loads(content)  # the file does what it says where loading is not restricted
    assert trace.exists()


@pytest.mark.parametrize("name", ["builtins\neval", "numpy\nload", "numpy.core.multiarray\nscalar", "codecs\nopen"])
def test_other_globals_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "batch").write_bytes(f"c{name}\n.".encode())
    with pytest.raises(InputError, match=name.replace("\n", r"\.")):
        read_batch(tmp_path / "batch")


def test_broken_batches_are_named(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    whole = path.read_bytes()
    data, labels = noise(0, 2, 3072), [0, 1]
    cases = [
        (whole[: len(whole) // 2], "truncated or damaged"),
        (b"", "truncated or damaged"),
        (b"<html>", "truncated or damaged"),
        (pickle.dumps([data]), "holds a list"),
        (pickle.dumps({"labels": labels}), "no images of 3 x 32 x 32"),
        (pickle.dumps({"data": data[:, :3000], "labels": labels}), "no images of 3 x 32 x 32"),
        (pickle.dumps({"data": data.astype(np.float32), "labels": labels}), "no images of 3 x 32 x 32"),
        (pickle.dumps({"data": data, "labels": [0]}), "does not hold 2 labels"),
        (pickle.dumps({"data": data, "labels": [0, 10]}), "labels from 0 to 9"),
        (pickle.dumps({"data": data, "labels": ["a", "b"]}), "labels from 0 to 9"),
        (pickle.dumps({"data": data, "fine_labels": labels}), "under 'labels'"),
    ]
    for content, message in cases:
        path.write_bytes(content)
        with pytest.raises(InputError, match=message) as caught:
            CIFAR10(tmp_path).problem("dog")
        assert caught.value.where == str(path)
    path.unlink()
    with pytest.raises(InputError, match="test_batch: is missing"):
        CIFAR10(tmp_path).problem("dog")


# --- digits ---------------------------------------------------------------------------------------------------------


def test_digits_need_no_files() -> None:
    from sklearn.datasets import load_digits

    published = load_digits()
    found = Digits()
    Digits.download()
    assert found.check() == []
    sides = {}
    for number in range(10):
        problem = found.problem(str(number))
        assert set(problem.training.kinds) == {str(number)}
        expected = int((published.target == number).sum())
        assert len(problem.training) + problem.test.kinds.count(str(number)) == expected
        assert abs(problem.test.kinds.count(str(number)) - expected / 3) <= 0.5
        np.testing.assert_array_equal(problem.test.labels, [kind != str(number) for kind in problem.test.kinds])
        sides[number] = [problem.training.read(i) for i in range(len(problem.training))]
    # Both sides together are the published images, each once.
    test = found.problem("0").test
    together = [picture for side in sides.values() for picture in side] + [test.read(i) for i in range(len(test))]
    stretched = [np.floor(image / 16 * 255 + 0.5).astype(np.uint8) for image in published.images]
    assert sorted(p.tobytes() for p in together) == sorted(p.tobytes() for p in stretched)
    assert max(picture.max() for picture in together) == 255


def test_the_split_of_the_digits_is_always_the_same(tmp_path: Path) -> None:
    first, second = Digits().problem("7"), Digits(tmp_path).problem("7")
    np.testing.assert_array_equal(
        [first.test.read(i) for i in range(len(first.test))], [second.test.read(i) for i in range(len(second.test))]
    )
    digest = hashlib.sha256(b"".join(first.test.read(i).tobytes() for i in range(len(first.test)))).hexdigest()
    assert digest == "ee2dc1a05fdbd95624bacdfdd4f0919124ac6ccf052e7f0506e8689c718046ba"


# --- ImageNet -------------------------------------------------------------------------------------------------------


def write_imagenet(root: Path) -> None:
    number = 0
    for wnids in ImageNetSuperclasses.superclasses.values():
        for wnid in wnids:
            for side, count in (("train", 2), ("val", 1)):
                for i in range(count):
                    save(root / side / wnid / f"{wnid}_{i}.JPEG", noise(number := number + 1, 6, 8, 3))


@pytest.mark.parametrize("below", ["", "ILSVRC/Data/CLS-LOC"])
def test_imagenet_superclasses(below: str, tmp_path: Path) -> None:
    write_imagenet(tmp_path / below)
    gray = tmp_path / below / "val" / "n02123045" / "n02123045_0.JPEG"
    save(gray, noise(0, 5, 7))
    with Image.open(tmp_path / below / "val" / "n02123159" / "n02123159_0.JPEG") as picture:
        picture.convert("CMYK").save(tmp_path / below / "val" / "n02123159" / "n02123159_0.JPEG")
    found = ImageNetSuperclasses(tmp_path)
    wnids = [wnid for members in found.superclasses.values() for wnid in members]
    assert len(set(wnids)) == len(wnids) == 56
    assert len(found.problems) == 10
    problem = found.problem("cat")
    assert_well_formed(problem)
    assert len(problem.training) == 8
    assert len(problem.test) == 56
    assert list(problem.test.labels).count(0) == 4
    assert [kind == "cat" for kind in problem.test.kinds] == [label == 0 for label in problem.test.labels]
    index = problem.test.names.index("val/n02123045/n02123045_0.JPEG")
    with Image.open(gray) as picture:
        np.testing.assert_array_equal(problem.test.read(index), np.repeat(np.asarray(picture)[..., None], 3, axis=2))
    notes = found.check()
    assert sum("1 of 50 images" in note for note in notes) == 56
    assert sum("published are 732 to 1300" in note for note in notes) == 56


def test_parts_of_imagenet(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    for path in (tmp_path / "train" / "n01728920").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="n01728920: holds no images"):
        ImageNetSuperclasses(tmp_path).problem("snake")
    (tmp_path / "train" / "n01728920").rmdir()
    found = ImageNetSuperclasses(tmp_path)
    assert "snake" not in found.problems
    assert "not all classes of snake" in found.check()[0]
    for path in (tmp_path / "val" / "n02088364").iterdir():
        path.unlink()
    (tmp_path / "val" / "n02088364").rmdir()
    with pytest.raises(InputError, match=r"n02088364: is missing.*Ask for access"):
        ImageNetSuperclasses(tmp_path).problem("cat")
    save(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG", noise(0, 4, 4, 3))
    with pytest.raises(InputError, match="not sorted into classes"):
        ImageNetSuperclasses(tmp_path).problem("cat")


# --- industrial inspection ------------------------------------------------------------------------------------------


def write_mvtec(folder: Path, shape: tuple[int, ...] = (6, 8, 3)) -> dict[str, np.ndarray]:
    """One category: two defect types with images of the same names."""
    written = {}
    for seed, name in enumerate(
        ["train/good/000.png", "train/good/001.png", "test/good/000.png", "test/crack/000.png", "test/cut/000.png"]
    ):
        written[name] = save(folder / name, noise(seed, *shape))
    for seed, kind in enumerate(("crack", "cut")):
        mask = np.zeros(shape[:2], dtype=np.uint8)
        mask[seed, 1 : 3 + seed] = 255
        written[f"ground_truth/{kind}/000_mask.png"] = save(folder / "ground_truth" / kind / "000_mask.png", mask)
    return written


def test_mvtec_is_read_exactly(tmp_path: Path) -> None:
    written = {name: write_mvtec(tmp_path / name) for name in ("zipper", "bottle", "my_own")}
    write_mvtec(tmp_path / "screw", shape=(6, 8))
    found = MVTecAD(tmp_path)
    assert found.problems == ("bottle", "screw", "zipper", "my_own")
    problem = found.problem("bottle")
    assert_well_formed(problem)
    assert problem.training.read_mask is None
    assert problem.test.kinds == ("good", "crack", "cut")
    assert problem.facts == {}
    for index, name in enumerate(("test/good/000.png", "test/crack/000.png", "test/cut/000.png")):
        assert problem.test.names[index] == f"bottle/{name}"
        np.testing.assert_array_equal(problem.test.read(index), written["bottle"][name], strict=True)
    assert problem.test.read_mask is not None
    for index, kind in enumerate(("crack", "cut"), start=1):
        expected = written["bottle"][f"ground_truth/{kind}/000_mask.png"] == 255
        np.testing.assert_array_equal(problem.test.read_mask(index), expected, strict=True)
    assert found.problem("screw").test.read(0).shape == (6, 8)
    notes = found.check()
    assert any(note.startswith(f"{tmp_path}: a part of the set: no cable, capsule") for note in notes)
    assert "bottle: 2 images to train on, published are 209" in notes
    assert "my_own: is no published category" in notes


def test_one_category_is_named_by_its_folder(tmp_path: Path) -> None:
    write_mvtec(tmp_path / "leather")
    found = MVTecAD(tmp_path / "leather")
    assert found.problems == ("leather",)
    assert_well_formed(found.problem("leather"))
    assert any(note.endswith("leather: a part of the set: one category") for note in found.check())


def test_missing_masks_are_told_and_none_are_used(tmp_path: Path) -> None:
    write_mvtec(tmp_path / "bottle")
    (tmp_path / "bottle" / "ground_truth" / "cut" / "000_mask.png").unlink()
    problem = MVTecAD(tmp_path).problem("bottle")
    assert problem.test.read_mask is None
    assert problem.facts == {"abnormal_without_mask": 1}
    assert "bottle: 1 of 2 abnormal images have no mask, so none are used" in MVTecAD(tmp_path).check()


def test_broken_categories_are_named(tmp_path: Path) -> None:
    def remade() -> Path:
        import shutil

        shutil.rmtree(tmp_path / "bottle", ignore_errors=True)
        write_mvtec(tmp_path / "bottle")
        return tmp_path / "bottle"

    mask = remade() / "ground_truth" / "cut" / "000_mask.png"
    save(mask, np.ones((5, 8), dtype=np.uint8))
    test = MVTecAD(tmp_path).problem("bottle").test
    assert test.read_mask is not None
    with pytest.raises(InputError, match=r"5 x 8 pixels, its image 6 x 8") as caught:
        test.read_mask(2)
    assert caught.value.where == str(mask)

    picture = remade() / "train" / "good" / "001.png"
    picture.write_bytes(picture.read_bytes()[:60])
    with pytest.raises(InputError, match="cannot be read as an image") as caught:
        MVTecAD(tmp_path).problem("bottle").training.read(1)
    assert caught.value.where == str(picture)

    (remade() / "test" / "good" / "000.png").unlink()
    with pytest.raises(InputError, match="good: holds no images"):
        MVTecAD(tmp_path).problem("bottle")
    (tmp_path / "bottle" / "test" / "good").rmdir()
    with pytest.raises(InputError, match=r"good: is missing.*Fill in the form"):
        MVTecAD(tmp_path).problem("bottle")

    for kind in ("crack", "cut"):
        (remade() / "test" / kind / "000.png").unlink()
    (tmp_path / "bottle" / "test" / "crack" / "000.png").unlink()
    with pytest.raises(InputError, match="no images with defects"):
        MVTecAD(tmp_path).problem("bottle")


@pytest.mark.parametrize("below", ["", "BTech_Dataset_transformed"])
def test_btad_with_its_names_and_extensions(below: str, tmp_path: Path) -> None:
    root = tmp_path / below
    # As published: BMP images with PNG masks, PNG with PNG, BMP with BMP.
    extensions = {"01": ("bmp", "png"), "02": ("png", "png"), "03": ("bmp", "bmp")}
    pictures, masks = {}, {}
    for seed, (name, (ending, mask_ending)) in enumerate(extensions.items()):
        save(root / name / "train" / "ok" / f"0000.{ending}", noise(seed, 6, 8, 3))
        save(root / name / "test" / "ok" / f"0000.{ending}", noise(10 + seed, 6, 8, 3))
        pictures[name] = save(root / name / "test" / "ko" / f"0000.{ending}", noise(20 + seed, 6, 8, 3))
        masks[name] = np.zeros((6, 8), dtype=np.uint8)
        masks[name][seed, :4] = 255
        save(root / name / "ground_truth" / "ko" / f"0000.{mask_ending}", masks[name])
    found = BTAD(tmp_path)
    assert found.problems == ("01", "02", "03")
    for name in found.problems:
        problem = found.problem(name)
        assert_well_formed(problem)
        assert problem.test.kinds == ("ok", "ko")
        assert problem.test.read_mask is not None
        np.testing.assert_array_equal(problem.test.read(1), pictures[name], strict=True)
        np.testing.assert_array_equal(problem.test.read_mask(1), masks[name] > 0, strict=True)
    assert "02: 1 abnormal images to test, published are 200" in found.check()


def write_visa(root: Path) -> dict[str, np.ndarray]:
    lines, written = ["object,split,label,image,mask"], {}
    for name in ("candle", "pcb1"):
        annotations = ["image,label,mask"]
        for number, split in ((1, "train"), (2, "train"), (3, "test")):
            image = f"{name}/Data/Images/Normal/{number:04d}.JPG"
            save(root / image, noise(number, 6, 8, 3))
            lines.append(f"{name},{split},normal,{image},")
            annotations.append(f"{image},normal,")
        image, mask = f"{name}/Data/Images/Anomaly/000.JPG", f"{name}/Data/Masks/Anomaly/000.png"
        save(root / image, noise(7, 6, 8, 3))
        values = np.zeros((6, 8), dtype=np.uint8)
        values[2, 3:5], values[4, 0] = 1, 3  # each defect type has its own value
        written[name] = save(root / mask, values)
        lines.append(f"{name},test,anomaly,{image},{mask}")
        annotations.append(f'{image},"melt,scratch",{mask}')
        if name == "candle":
            (root / name / "image_anno.csv").write_text("\n".join(annotations) + "\n")
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_text("\r\n".join(lines) + "\r\n")
    return written


def test_visa_follows_its_table(tmp_path: Path) -> None:
    written = write_visa(tmp_path)
    found = VisA(tmp_path)
    assert found.problems == ("candle", "pcb1")
    for name, kind in (("candle", "melt,scratch"), ("pcb1", "anomaly")):
        problem = found.problem(name)
        assert_well_formed(problem)
        assert problem.training.names == tuple(f"{name}/Data/Images/Normal/000{i}.JPG" for i in (1, 2))
        assert problem.test.kinds == ("normal", kind)
        assert problem.test.read_mask is not None
        np.testing.assert_array_equal(problem.test.read_mask(1), written[name] > 0, strict=True)
    assert "candle: 1 normal images to test, published are 100" in found.check()


def test_broken_visa_is_named(tmp_path: Path) -> None:
    write_visa(tmp_path)
    table = tmp_path / "split_csv" / "1cls.csv"
    whole = table.read_text()
    for content, message in [
        (whole.replace("object,split", "object,side"), "no table with rows and the columns"),
        ("object,split,label,image,mask\n", "no table with rows"),
        (whole.replace("candle,test,normal", "candle,probe,normal"), "line 4 is neither train nor test"),
        (whole.replace("candle,train,normal", "candle,train,anomaly"), "trains on abnormal images of candle"),
        (whole.replace("candle,test", "candle,train"), "has no test rows of candle"),
        (whole + "pcb1,test\n", "line 10 is too short"),
    ]:
        table.write_text(content)
        with pytest.raises(InputError, match=message) as caught:
            VisA(tmp_path).problem("candle")
        assert caught.value.where == str(table)
    table.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read as a table"):
        VisA(tmp_path).problem("candle")
    table.write_text(whole)
    (tmp_path / "candle" / "Data" / "Masks" / "Anomaly" / "000.png").unlink()
    with pytest.raises(InputError, match=r"000\.png: is missing, it is part of VisA"):
        VisA(tmp_path).problem("candle")
    table.unlink()
    with pytest.raises(InputError, match=r"1cls\.csv: is missing"):
        VisA(tmp_path).problem("pcb1")


# --- traffic signs --------------------------------------------------------------------------------------------------


def sign_picture(kind: int, seed: int, size: int) -> np.ndarray:
    """A sign of a colour of its own, within a border, with a little noise."""
    colour = np.array([kind % 4, kind // 4 % 4, kind // 16]) * 60 + 30
    picture = np.full((size, size + 1, 3), 128, dtype=np.int64)
    picture[5:-5, 5:-5] = colour
    return (picture + np.random.default_rng(seed).integers(-8, 9, picture.shape)).clip(0, 255).astype(np.uint8)


def write_gtsrb(root: Path, kinds: tuple[int, ...] = (13, 14), tracks: int = 2) -> dict[str, np.ndarray]:
    """Tables and images as the three archives unpack; of each class ``tracks`` training images and two others."""
    base = root / "GTSRB"
    header = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"
    written, tests = {}, [header]

    def row(path: Path, kind: int, seed: int) -> str:
        picture = save(path, sign_picture(kind, seed, 18 + seed % 5))
        height, width = picture.shape[:2]
        written[path.relative_to(base).as_posix()] = picture[5 : height - 5, 5 : width - 5]
        return f"{path.name};{width};{height};5;5;{width - 5};{height - 5};{kind}"

    for kind in kinds:
        folder = base / "Final_Training" / "Images" / f"{kind:05d}"
        rows = [row(folder / f"{i:05d}_0000{i % 3}.ppm", kind, 100 * kind + i) for i in range(tracks)]
        (folder / f"GT-{kind:05d}.csv").write_text("\n".join([header, *rows]) + "\n")
        for i in range(2):
            name = f"{2 * kinds.index(kind) + i:05d}.ppm"
            tests.append(row(base / "Final_Test" / "Images" / name, kind, 100 * kind + 50 + i))
    (root / "GT-final_test.csv").write_text("\n".join(tests) + "\n")
    return written


@pytest.mark.parametrize("inner", [True, False])
def test_stop_signs_are_read_without_their_border(inner: bool, tmp_path: Path) -> None:
    written = write_gtsrb(tmp_path)
    root = tmp_path
    if inner:
        root = tmp_path / "GTSRB"
        (tmp_path / "GT-final_test.csv").rename(root / "Final_Test" / "GT-final_test.csv")
    first = save(root / "adversarial" / "00003_as_01.png", noise(0, 9, 9, 3))
    save(root / "adversarial" / "found_elsewhere.png", noise(1, 9, 9, 3))
    (root / "adversarial" / "attack.json").write_text("{}")
    found = GTSRBStopSigns(root)
    assert found.problems == ("stop_sign",)
    problem = found.problem("stop_sign")
    assert_well_formed(problem)
    assert problem.training.names == tuple(f"Final_Training/Images/00014/0000{i}_0000{i}.ppm" for i in (0, 1))
    assert problem.training.groups == ("track 00000", "track 00001")
    assert problem.test.names == (
        "Final_Test/Images/00002.ppm",
        "Final_Test/Images/00003.ppm",
        "adversarial/00003_as_01.png",
        "adversarial/found_elsewhere.png",
    )
    # An adversarial image is of the sign that it is made of.
    assert problem.test.groups == ("00002", "00003", "00003", "found_elsewhere.png")
    assert problem.test.kinds == ("stop_sign", "stop_sign", "adversarial", "adversarial")
    for side in (problem.training, problem.test):
        for index, name in enumerate(side.names):
            if name in written:
                np.testing.assert_array_equal(side.read(index), written[name], strict=True)
    np.testing.assert_array_equal(problem.test.read(2), first)
    assert found.check() == [
        "stop_sign: 2 images to train on, the protocol has 780",
        "stop_sign: 2 normal images to test, the protocol has 270",
        "stop_sign: 2 abnormal images to test, the protocol has 20",
    ]


def test_broken_gtsrb_is_named(tmp_path: Path) -> None:
    write_gtsrb(tmp_path)
    with pytest.raises(InputError, match=r"no adversarial images.*examples/adversarial_stop_signs\.py"):
        GTSRBStopSigns(tmp_path).problem("stop_sign")
    save(tmp_path / "adversarial" / "00003_as_01.png", noise(0, 9, 9, 3))
    table = tmp_path / "GTSRB" / "Final_Training" / "Images" / "00014" / "GT-00014.csv"
    whole = table.read_text()
    table.write_text(whole.replace(";5;5;", ";5;x;"))
    with pytest.raises(InputError, match="line 2 is broken"):
        GTSRBStopSigns(tmp_path).problem("stop_sign")
    table.write_text(whole.replace(";5;5;", ";5;50;"))
    with pytest.raises(InputError, match="is not within"):
        GTSRBStopSigns(tmp_path).problem("stop_sign").training.read(0)
    table.write_text(whole.replace("Roi.X1", "X1"))
    with pytest.raises(InputError, match=r"the columns Filename, Roi\.X1"):
        GTSRBStopSigns(tmp_path).problem("stop_sign")
    table.write_text(whole)
    (table.parent / "00001_00001.ppm").unlink()
    with pytest.raises(InputError, match=r"00001_00001\.ppm: is missing"):
        GTSRBStopSigns(tmp_path).problem("stop_sign")
    table.unlink()
    with pytest.raises(InputError, match=r"GT-00014\.csv: is missing.*--download"):
        GTSRBStopSigns(tmp_path).problem("stop_sign")
    write_gtsrb(tmp_path, kinds=(13, 14))
    (tmp_path / "GT-final_test.csv").unlink()
    with pytest.raises(InputError, match=r"GT-final_test\.csv: is missing"):
        GTSRBStopSigns(tmp_path).problem("stop_sign")


def example() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parents[1] / "examples" / "adversarial_stop_signs.py"))


def test_the_attack_says_that_its_library_is_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_gtsrb(tmp_path)
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(InputError, match=r"foolbox: cannot be imported.*pip install foolbox"):
        example()["main"]([str(tmp_path)])
    assert not (tmp_path / "adversarial").exists()


@pytest.mark.slow
def test_the_attacked_network_learns_the_signs(tmp_path: Path) -> None:
    import torch

    write_gtsrb(tmp_path, kinds=(3, 14, 37), tracks=8)
    script, signs = example(), GTSRBStopSigns(tmp_path)
    torch.manual_seed(0)
    training = script["load"]([sign for kind in (3, 14, 37) for sign in signs.training_signs(kind)], "")
    network = script["train"](*training, 40, torch.device("cpu"))
    test = signs.test_signs()
    kinds = [script["recognised"](network, sign.read(), torch.device("cpu")) for sign in test]
    assert kinds == [sign.kind for sign in test] == [3, 3, 14, 14, 37, 37]


def test_adversarial_stop_signs(tmp_path: Path) -> None:
    """The whole script where foolbox is installed, its one line where it is not."""
    write_gtsrb(tmp_path, kinds=tuple(range(43)), tracks=4)
    script, signs = example(), GTSRBStopSigns(tmp_path)
    arguments = [str(tmp_path), "--count", "2", "--steps", "40", "--epochs", "30"]
    if find_spec("foolbox") is None:
        with pytest.raises(InputError, match="pip install foolbox"):
            script["main"](arguments)
        return
    result = script["main"](arguments)
    assert len(result["pictures"]) == 2
    assert json.loads((tmp_path / "adversarial" / "attack.json").read_text()) == result
    problem = signs.problem("stop_sign")
    assert_well_formed(problem)
    assert list(problem.test.labels) == [0, 0, 1, 1]
    originals = dict(zip(problem.test.groups[:2], (problem.test.read(0), problem.test.read(1))))
    for index in (2, 3):
        assert problem.test.read(index).shape == originals[problem.test.groups[index]].shape
    for made in result["pictures"]:
        assert made["taken_for"] != 14
        assert 0 < made["rms_change"] < 0.5
    with pytest.raises(InputError, match="is not empty"):
        script["main"](arguments)


# --- image files --------------------------------------------------------------------------------------------------


def test_pictures_are_read_as_they_are_stored(tmp_path: Path) -> None:
    gray, colour = noise(0, 4, 5), noise(1, 4, 5, 3)
    deep = np.random.default_rng(2).integers(0, 65536, (4, 5), dtype=np.uint16)
    cases = {"gray.png": gray, "colour.bmp": colour, "deep.png": deep}
    for name, array in cases.items():
        save(tmp_path / name, array)
        np.testing.assert_array_equal(read_picture(tmp_path / name), array, strict=True)
    save(tmp_path / "alpha.png", np.dstack([colour, np.full((4, 5), 7, dtype=np.uint8)]))
    np.testing.assert_array_equal(read_picture(tmp_path / "alpha.png"), colour, strict=True)
    Image.fromarray(gray > 127).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "bits.png"), (gray > 127) * np.uint8(255), strict=True)
    (tmp_path / "Thumbs.db").write_bytes(b"")
    (tmp_path / "._gray.png").write_bytes(b"")
    names = ["alpha.png", "bits.png", "colour.bmp", "deep.png", "gray.png"]
    assert [path.name for path in list_pictures(tmp_path)] == names


# --- real data ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("published", "file", "mean"),
    [(MNIST, "mnist/mnist_full.npz", 33.32), (FashionMNIST, "fashion_mnist/fashion_mnist_full.npz", 72.94)],
)
def test_real_idx_sets(published: type[MNIST], file: str, mean: float, real_data: Path, tmp_path: Path) -> None:
    whole = np.load(real_data / file)
    for side, key in (("train", "train"), ("t10k", "test")):
        (tmp_path / f"{side}-images-idx3-ubyte").write_bytes(idx_bytes(whole[f"x_{key}"]))
        (tmp_path / f"{side}-labels-idx1-ubyte").write_bytes(idx_bytes(whole[f"y_{key}"].astype(np.uint8)))
    found = published(tmp_path)
    assert found.check() == []  # the published content, by its MD5 and its counts
    problem = found.problem(found.problems[8])
    assert len(problem.training) == published.counts["train"][8]
    assert len(problem.test) == 10000
    np.testing.assert_array_equal(problem.test.read(17), whole["x_test"][17])
    training = [found.problem(name).training for name in found.problems]
    pictures = np.concatenate([part.read(i).ravel() for part in training for i in range(0, 5000, 10)])
    assert abs(float(pictures.mean()) - mean) < 1


@pytest.mark.slow
def test_real_cifar10(real_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    runpy.run_path(str(real_data / "unpack.py"))["cifar10"](folder)
    found = CIFAR10(tmp_path)
    assert found.problems == ("airplane", "automobile", "dog")
    problem = found.problem("dog")
    assert (len(problem.training), len(problem.test), int(problem.test.labels.sum())) == (5000, 10000, 9000)
    notes = found.check()
    assert "train: a part of the set: no images of bird, cat, deer, frog, horse, ship, truck" in notes
    assert not any(note.startswith("test") for note in notes)
    with (folder / "test_batch").open("rb") as file:
        batch = pickle.load(file, encoding="bytes")
    np.testing.assert_array_equal(problem.test.read(123), cifar_picture(batch[b"data"][123]))


def test_real_mvtec_screw(real_data: Path) -> None:
    found = MVTecAD(real_data / "mvtec_screw")
    problem = found.problem("mvtec_screw")
    assert (len(problem.training), len(problem.test), int(problem.test.labels.sum())) == (320, 160, 119)
    counts = {kind: problem.test.kinds.count(kind) for kind in set(problem.test.kinds)}
    expected = {"good": 41, "manipulated_front": 24, "scratch_head": 24, "scratch_neck": 25}
    assert counts == expected | {"thread_side": 23, "thread_top": 23}
    assert problem.test.read_mask is not None
    for index in range(0, 160, 8):
        mask = problem.test.read_mask(index)
        assert mask.shape == problem.test.read(index).shape == (256, 256)
        assert mask.any() == problem.test.labels[index]


def test_real_mvtec_leather_with_masks_missing(real_data: Path) -> None:
    problem = MVTecAD(real_data / "mvtec_leather_mini").problem("mvtec_leather_mini")
    assert (len(problem.training), len(problem.test)) == (4, 24)
    assert problem.facts == {"abnormal_without_mask": 9}
    assert problem.test.read_mask is None
