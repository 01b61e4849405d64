"""The array cache: exact values, keys that tell everything apart, damage found, and processes that do not clash."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from monai_anomaly.data import proxy_cache
from monai_anomaly.data.proxy_cache import ArrayCache
from monai_anomaly.exceptions import InputError

KEY = {"content": "00ff", "proxy": {"class": "SmoothPatches", "patch_size": 8}}


class Maker:
    """Counts how often it is asked."""

    def __init__(self, **arrays: np.ndarray) -> None:
        self.arrays, self.calls = arrays, 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.calls += 1
        return dict(self.arrays)


def maker(seed: int = 0) -> Maker:
    random = np.random.default_rng(seed)
    return Maker(proxy=random.random((1, 8, 9), dtype=np.float32), labels=random.integers(0, 9, (8, 9)))


def entry_of(folder: Path) -> Path:
    (record,) = folder.glob("*/*/key.json")
    return record.parent


def test_made_once_and_read_back_exactly(tmp_path: Path) -> None:
    make = maker()
    first = ArrayCache(tmp_path / "deep" / "cache").get(KEY, make)
    second = ArrayCache(str(tmp_path / "deep" / "cache")).get(KEY, make)
    assert make.calls == 1
    for result in (first, second):
        assert set(result) == {"proxy", "labels"}
        for name, array in make.arrays.items():
            assert isinstance(result[name], np.memmap)
            assert not result[name].flags.writeable
            assert result[name].dtype == array.dtype
            np.testing.assert_array_equal(result[name], array)


def test_layout_on_disk_is_plain(tmp_path: Path) -> None:
    make = maker()
    ArrayCache(tmp_path).get(KEY, make)
    entry = entry_of(tmp_path)
    assert len(entry.name) == 64
    assert entry.parent.name == entry.name[:2]
    assert sorted(file.name for file in entry.iterdir()) == ["key.json", "labels.npy", "proxy.npy"]
    assert sorted(entry.parent.iterdir()) == [entry]  # nothing left from writing
    np.testing.assert_array_equal(np.load(entry / "proxy.npy"), make.arrays["proxy"])
    assert json.loads((entry / "key.json").read_text())["key"]["parts"] == KEY


@settings(max_examples=25, deadline=None)
@given(
    array=hnp.arrays(
        dtype=st.sampled_from([np.float32, np.float64, np.uint8, np.int64, np.bool_]),
        shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    fortran=st.booleans(),
)
def test_any_array_comes_back(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, fortran: bool) -> None:
    folder = tmp_path_factory.mktemp("cache")
    given_array = np.asfortranarray(array) if fortran and array.ndim else array
    for _ in range(2):
        result = ArrayCache(folder).get(KEY, Maker(x=given_array))["x"]
        assert result.shape == array.shape
        assert result.dtype == array.dtype
        np.testing.assert_array_equal(result, array)


def test_every_part_of_the_key_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, make = ArrayCache(tmp_path), maker()
    keys = [
        KEY,
        {**KEY, "content": "00fe"},
        {**KEY, "extra": None},
        {"content": "00ff", "proxy": {"class": "SmoothPatches", "patch_size": 9}},
        {"content": "00ff", "proxy": {"class": "SmoothImage", "patch_size": 8}},
        {"content": "00ff", "proxy": {"class": "SmoothPatches", "patch_size": "8"}},
    ]
    for count, key in enumerate(keys, start=1):
        cache.get(key, make)
        assert make.calls == count
    for key in keys:
        cache.get(dict(reversed(key.items())), make)  # the order of the items does not count
    assert make.calls == len(keys)
    monkeypatch.setattr(proxy_cache, "CACHE_VERSION", proxy_cache.CACHE_VERSION + 1)
    cache.get(KEY, make)
    assert make.calls == len(keys) + 1


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "bit flipped": lambda entry: flip_a_bit(entry / "proxy.npy"),
    "cut short": lambda entry: os.truncate(entry / "proxy.npy", 140),
    "emptied": lambda entry: os.truncate(entry / "labels.npy", 0),
    "array gone": lambda entry: (entry / "labels.npy").unlink(),
    "record gone": lambda entry: (entry / "key.json").unlink(),
    "record cut short": lambda entry: os.truncate(entry / "key.json", 30),
    "record is no text": lambda entry: (entry / "key.json").write_bytes(b"\xff\xfe\xff"),
    "record is a list": lambda entry: (entry / "key.json").write_text("[]"),
    "record without files": lambda entry: (entry / "key.json").write_text('{"key": 1}'),
    "record of another key": lambda entry: (entry / "key.json").write_text(
        (entry / "key.json").read_text().replace("00ff", "00fe")
    ),
    "everything gone": lambda entry: [file.unlink() for file in entry.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_found_and_repaired(tmp_path: Path, damage: object, caplog: pytest.LogCaptureFixture) -> None:
    cache, make = ArrayCache(tmp_path), maker()
    cache.get(KEY, make)
    entry = entry_of(tmp_path)
    damage(entry)
    for _ in range(2):
        result = cache.get(KEY, make)
        for name, array in make.arrays.items():
            np.testing.assert_array_equal(result[name], array)
    assert make.calls == 2
    assert "damaged" in caplog.text
    assert sorted(entry.parent.iterdir()) == [entry]


def test_the_later_of_two_writers_discards_its_own(tmp_path: Path) -> None:
    other = ArrayCache(tmp_path)

    def slow() -> dict[str, np.ndarray]:
        other.get(KEY, maker(seed=1))  # another process finishes the same key first
        return maker(seed=2).arrays

    result = ArrayCache(tmp_path).get(KEY, slow)
    np.testing.assert_array_equal(result["proxy"], maker(seed=1).arrays["proxy"])
    entry = entry_of(tmp_path)
    assert sorted(entry.parent.iterdir()) == [entry]


def fill(folder: Path, me: str) -> None:
    """What each of two processes does: wait for the other one, then ask for the same entries."""
    (folder / f"ready-{me}").touch()
    limit = time.monotonic() + 60
    while len(list(folder.glob("ready-*"))) < 2:
        assert time.monotonic() < limit, "the other process did not come"
        time.sleep(0.001)
    # no entry is ever seen damaged, which would be logged
    proxy_cache._logger.warning = lambda *told: os._exit(7)  # type: ignore[method-assign]
    cache = ArrayCache(folder / "cache")
    for number in range(40):
        expected = np.full((64, 64), number, dtype=np.float32)
        result = cache.get({"number": number}, lambda: {"a": expected, "b": -expected})  # noqa: B023
        assert np.array_equal(result["a"], expected)
        assert np.array_equal(result["b"], -expected)


@pytest.mark.slow
def test_two_processes_at_once(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")  # at work at once
    workers = [fork.Process(target=fill, args=(tmp_path, me)) for me in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=100)
        assert worker.exitcode == 0
    entries = list((tmp_path / "cache").glob("*/*"))
    assert len(entries) == 40  # no leftovers: hidden folders would match too
    make = Maker()
    for number in range(40):
        result = ArrayCache(tmp_path / "cache").get({"number": number}, make)
        assert (result["a"] == number).all()
    assert make.calls == 0


def test_without_a_folder_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make = maker()
    for calls in (1, 2):
        result = ArrayCache(None).get(KEY, make)
        assert result["proxy"] is make.arrays["proxy"]
        assert make.calls == calls
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path)
    with pytest.raises(ValueError, match="identifier"):
        cache.get(KEY, Maker(**{"../x": np.zeros(1)}))
    with pytest.raises(ValueError, match="Object arrays"):
        cache.get(KEY, Maker(x=np.array([{}], dtype=object)))
    with pytest.raises(ValueError, match="JSON compliant"):
        cache.get({"sigma": float("nan")}, maker())
    with pytest.raises(TypeError, match="JSON serializable"):
        cache.get({"path": tmp_path}, maker())
    assert list(tmp_path.glob("*/*")) == []


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    with pytest.raises(InputError, match=r"file: the cache folder cannot be used"):
        ArrayCache(file).get(KEY, maker())


def test_an_error_in_making_passes_through(tmp_path: Path) -> None:
    def fails() -> dict[str, np.ndarray]:
        raise FileNotFoundError("scan.nii")

    with pytest.raises(FileNotFoundError, match=r"scan\.nii"):
        ArrayCache(tmp_path).get(KEY, fails)
