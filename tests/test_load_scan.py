"""LoadScan against nibabel, Pillow and plain array writers."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.data import MetaTensor
from PIL import Image

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.load import LoadScan, LoadScanD, LoadScand, LoadScanDict, scan_suffix

RNG = np.random.default_rng(7)
OBLIQUE = np.array(
    [[-0.9, 0.1, 0.4, 30.5], [0.2, 1.4, -0.3, -71.25], [0.1, 0.2, 4.9, 12.0], [0, 0, 0, 1]], dtype=np.float64
)


def save(path: Path, array: np.ndarray, affine: np.ndarray = OBLIQUE) -> Path:
    nib.Nifti1Image(array, affine).to_filename(path)
    return path


def png16(path: Path, array: np.ndarray) -> Path:
    """A 16-bit PNG of 1 to 4 samples, written chunk by chunk."""
    rows, columns, samples = array.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[samples]
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", columns, rows, 16, colour, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    )
    return path


def test_volume_is_nibabels(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", RNG.normal(size=(5, 6, 7)).astype(np.float32))
    scan = LoadScan()(path)
    assert isinstance(scan, MetaTensor)
    assert scan.dtype == torch.float32
    assert scan.shape == (1, 5, 6, 7)
    image = nib.load(path)
    np.testing.assert_array_equal(scan[0].numpy(), np.asarray(image.dataobj))
    assert scan.affine.dtype == torch.float64
    np.testing.assert_array_equal(scan.affine.numpy(), image.affine)
    np.testing.assert_array_equal(scan.meta["original_affine"], image.affine)
    assert scan.meta["scan_kind"] == "volume"
    assert scan.meta["source_format"] == "nifti"
    assert scan.meta["source"] == [str(path)]


def test_scaling_is_applied(tmp_path: Path) -> None:
    image = nib.Nifti1Image(RNG.integers(-1000, 1000, (4, 5, 3)).astype(np.int16), OBLIQUE)
    image.header.set_slope_inter(0.25, -3)
    image.to_filename(tmp_path / "a.nii")
    raw = np.asarray(nib.load(tmp_path / "a.nii").dataobj.get_unscaled(), dtype=np.float64)
    np.testing.assert_allclose(LoadScan()(tmp_path / "a.nii")[0].numpy(), raw * 0.25 - 3, rtol=1e-6)


def test_affine_is_the_sform_even_where_pixdim_disagrees(tmp_path: Path) -> None:
    image = nib.Nifti1Image(RNG.normal(size=(4, 5, 3)).astype(np.float32), None)
    image.header.set_qform(np.diag([1.0, 1, 3, 1]), 1)
    image.header.set_sform(OBLIQUE, 2)
    image.to_filename(tmp_path / "a.nii")
    np.testing.assert_array_equal(LoadScan()(tmp_path / "a.nii").affine.numpy(), nib.load(tmp_path / "a.nii").affine)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    array=arrays(np.int16, st.tuples(*[st.integers(1, 4)] * 3)),
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 8)] * 3),
    flips=st.tuples(*[st.sampled_from([-1, 1])] * 3),
)
def test_any_volume_and_affine(
    tmp_path: Path,
    array: np.ndarray,
    angles: tuple[float, ...],
    spacing: tuple[float, ...],
    flips: tuple[int, ...],
) -> None:
    from scipy.spatial.transform import Rotation

    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles).as_matrix() @ np.diag(np.array(spacing) * flips)
    path = save(tmp_path / "p.nii", array, affine)
    if array.min() == array.max():
        with pytest.raises(InputError, match="same value"):
            LoadScan()(path)
        return
    scan = LoadScan()(path)
    np.testing.assert_array_equal(scan[0].numpy(), array)
    np.testing.assert_allclose(scan.affine.numpy(), affine, atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 1, 1), (5, 6, 2, 1, 1)])
def test_flat_and_trailing_axes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = RNG.normal(size=shape).astype(np.float32)
    scan = LoadScan()(save(tmp_path / "a.nii", array))
    assert scan.shape == (1, 5, 6, shape[2] if len(shape) > 2 else 1)
    np.testing.assert_array_equal(scan.numpy().ravel(), array.ravel())


def test_time_series(tmp_path: Path) -> None:
    array = RNG.integers(0, 999, (4, 5, 3, 6)).astype(np.int16)
    path = save(tmp_path / "a.nii.gz", array)
    with pytest.raises(InputError, match=r"a\.nii\.gz: holds 6 volumes.*time_point \(0 to 5\)"):
        LoadScan()(path)
    for chosen in (0, 5):
        np.testing.assert_array_equal(LoadScan(time_point=chosen)(path)[0].numpy(), array[..., chosen])
    for absent in (6, -1):
        with pytest.raises(InputError, match=f"no time_point {absent}"):
            LoadScan(time_point=absent)(path)
    three = save(tmp_path / "b.nii", array[..., 0])
    np.testing.assert_array_equal(LoadScan(time_point=0)(three)[0].numpy(), array[..., 0])
    with pytest.raises(InputError, match="no time_point 1"):
        LoadScan(time_point=1)(three)


def test_refused_volumes(tmp_path: Path) -> None:
    good = RNG.normal(size=(6, 6, 6)).astype(np.float32)
    holes = good.copy()
    holes[0, 0, :2], holes[1, 1, 1] = np.nan, np.inf
    singular = np.diag([1.0, 1, 0, 1])
    flat = OBLIQUE.copy()
    flat[:3, 1] = 2 * flat[:3, 0]
    endless = OBLIQUE.copy()
    endless[0, 3] = np.nan
    rgb = np.zeros((3, 3, 3), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])

    def with_sform(name: str, affine: np.ndarray) -> Path:
        image = nib.Nifti1Image(good, None)
        image.header["sform_code"] = 1
        for row, values in zip(("srow_x", "srow_y", "srow_z"), affine):
            image.header[row] = values
        image.to_filename(tmp_path / name)
        return tmp_path / name

    cases = {
        r"3 of 216 values are NaN or infinite": save(tmp_path / "nan.nii", holes),
        r"every voxel has the same value \(3\)": save(tmp_path / "c.nii", np.full((3, 3, 3), 3, np.int16)),
        r"the image is empty": save(tmp_path / "e.nii", np.zeros((3, 0, 3), np.int16)),
        r"complex64 voxels": save(tmp_path / "z.nii", good.astype(np.complex64)),
        r"RGB voxels": save(tmp_path / "rgb.nii", rgb),
        r"has shape \(3, 3, 3, 1, 3\)": save(tmp_path / "v.nii", RNG.normal(size=(3, 3, 3, 1, 3))),
        r"affine is singular: .*": with_sform("s.nii", singular),
        r"affine is singular": with_sform("p.nii", flat),
        r"affine holds NaN": with_sform("n.nii", endless),
        r"no such file": tmp_path / "absent.nii",
        r"holds no DICOM file": tmp_path,
    }
    text = tmp_path / "notes.txt"
    text.write_text("no scan")
    cases["not a supported scan format"] = text
    for message, path in cases.items():
        with pytest.raises(InputError, match=message) as caught:
            LoadScan()(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="list of files is empty"):
        LoadScan()([])


def test_overflowing_float64_is_refused(tmp_path: Path) -> None:
    array = RNG.normal(size=(3, 3, 3))
    array[0, 0, 0] = 1e300
    with pytest.raises(InputError, match="1 of 27 values"):
        LoadScan()(save(tmp_path / "a.nii", array))


def test_damaged_nifti(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.nii.gz", np.arange(32768, dtype=np.int32).reshape(32, 32, 32)).read_bytes()
    plain = gzip.decompress(whole)
    middle = len(whole) // 2
    damaged = {
        "cut.nii.gz": whole[: len(whole) // 2],
        "head.nii.gz": whole[:40],
        "broken.nii.gz": whole[:middle] + b"\xff" * 200 + whole[middle + 200 :],
        "text.nii.gz": b"this is no NIfTI file",
        "plain.nii.gz": plain,
        "cut.nii": plain[: len(plain) // 2],
        "head.nii": plain[:100],
        "empty.nii": b"",
        "zeros.nii": bytes(500),
        "picture.nii.gz": gzip.compress(b"\x89PNG" * 300),
    }
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=r"cannot be read as NIfTI|the header states") as caught:
            LoadScan()(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_channels_are_stacked(tmp_path: Path) -> None:
    first, second = RNG.normal(size=(2, 4, 5, 6)).astype(np.float32)
    nudged, moved = OBLIQUE.copy(), OBLIQUE.copy()
    nudged[0, 3] += 5e-4
    moved[0, 3] += 5e-3
    turned = OBLIQUE.copy()
    turned[0, 1] += 1e-3
    paths = [save(tmp_path / "a.nii", first), save(tmp_path / "b.nii", second, nudged)]
    scan = LoadScan()([str(path) for path in paths])
    np.testing.assert_array_equal(scan.numpy(), np.stack([first, second]))
    assert scan.meta["source"] == [str(path) for path in paths]
    others = [
        save(tmp_path / "moved.nii", second, moved),
        save(tmp_path / "turned.nii", second, turned),
        save(tmp_path / "small.nii", second[:3]),
    ]
    for other in others:
        with pytest.raises(InputError) as caught:
            LoadScan()([paths[0], other])
        assert str(paths[0]) in str(caught.value)
        assert str(other) in str(caught.value)


def test_dictionary_form(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", RNG.normal(size=(4, 4, 4, 2)))
    item = {"image": str(path), "case": "a"}
    result = LoadScand(["image"], time_point=1)(item)
    np.testing.assert_array_equal(result["image"].numpy(), LoadScan(1)(path).numpy())
    assert result["case"] == "a"
    assert item["image"] == str(path)
    assert LoadScanD is LoadScanDict is LoadScand
    with pytest.raises(KeyError):
        LoadScand(["absent"])(item)


def test_suffixes() -> None:
    assert scan_suffix("x/a.b.NII.gz") == ".NII.gz"
    assert scan_suffix("a.Png") == ".Png"
    assert scan_suffix("a.gz") == ""
    assert scan_suffix("readme") == ""


# ---- images


def check_picture(path: Path, expected: np.ndarray) -> None:
    """``expected`` is (rows, columns) or (rows, columns, C)."""
    scan = LoadScan()(path)
    values = expected[..., None] if expected.ndim == 2 else expected
    assert scan.shape == (values.shape[2], *values.shape[:2], 1)
    np.testing.assert_array_equal(scan.numpy()[..., 0], np.moveaxis(values, -1, 0).astype(np.float32))
    np.testing.assert_array_equal(scan.affine.numpy(), np.eye(4))
    assert scan.meta["scan_kind"] == scan.meta["source_format"] == "image"


GRAY8 = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
RGB8 = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
RGBA8 = RNG.integers(0, 256, (5, 7, 4), dtype=np.uint8)
GRAY16 = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_eight_bit_pictures(tmp_path: Path, suffix: str) -> None:
    for name, array in (("gray", GRAY8), ("rgb", RGB8)):
        Image.fromarray(array).save(tmp_path / (name + suffix))
        check_picture(tmp_path / (name + suffix), array)


def test_jpeg_is_as_pillow_decodes_it(tmp_path: Path) -> None:
    Image.fromarray(RGB8).save(tmp_path / "a.JPG", format="JPEG")
    check_picture(tmp_path / "a.JPG", np.asarray(Image.open(tmp_path / "a.JPG")))


def test_alpha_palette_and_bits(tmp_path: Path) -> None:
    Image.fromarray(RGBA8).save(tmp_path / "rgba.png")
    check_picture(tmp_path / "rgba.png", RGBA8[..., :3])
    Image.fromarray(RGBA8[..., :2], mode="LA").save(tmp_path / "la.png")
    check_picture(tmp_path / "la.png", RGBA8[..., 0])
    coarse = RGB8 // 128 * 255
    Image.fromarray(coarse).convert("P", palette=Image.Palette.ADAPTIVE, colors=8).save(tmp_path / "p.png")
    check_picture(tmp_path / "p.png", coarse)
    Image.fromarray(GRAY8 > 128).save(tmp_path / "bits.png")
    check_picture(tmp_path / "bits.png", (GRAY8 > 128) * 255)


@pytest.mark.slow
@pytest.mark.parametrize("samples", [1, 2, 3, 4])
def test_sixteen_bit_png(tmp_path: Path, samples: int) -> None:
    array = RNG.integers(0, 65536, (5, 7, samples), dtype=np.uint16)
    check_picture(png16(tmp_path / "a.png", array), array[..., : {1: 1, 2: 1, 3: 3, 4: 3}[samples]])


@pytest.mark.parametrize(
    ("array", "kept"),
    [
        (GRAY16, 1),
        (RNG.integers(0, 65536, (5, 7, 3), dtype=np.uint16), 3),
        (RNG.integers(0, 65536, (5, 7, 4), dtype=np.uint16), 3),
        (RNG.normal(size=(5, 7)).astype(np.float32), 1),
        (RNG.normal(size=(5, 7, 3)).astype(np.float32), 3),
        (RNG.integers(-3000, 3000, (5, 7)).astype(np.int16), 1),
    ],
)
def test_deep_tiff(tmp_path: Path, array: np.ndarray, kept: int) -> None:
    path = tmp_path / "a.tiff"
    tifffile.imwrite(path, array, photometric="rgb" if array.ndim == 3 else "minisblack", compression="zlib")
    check_picture(path, array[..., :kept] if array.ndim == 3 else array)


def test_refused_pictures(tmp_path: Path) -> None:
    whole = RNG.integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(whole).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "text.tif").write_bytes(b"II no image" * 9)
    deep = png16(tmp_path / "deep.png", RNG.integers(0, 65536, (64, 64, 3), dtype=np.uint16)).read_bytes()
    (tmp_path / "cut_deep.png").write_bytes(deep[: len(deep) // 2])
    for name in ("cut.png", "text.jpg", "text.tif", "cut_deep.png"):
        with pytest.raises(InputError, match="picture") as caught:
            LoadScan()(tmp_path / name)
        assert "\n" not in str(caught.value)
    tifffile.imwrite(tmp_path / "pages.tif", np.stack([whole, whole]), photometric="minisblack")
    with pytest.raises(InputError, match="2 pages"):
        LoadScan()(tmp_path / "pages.tif")
    planes = RNG.integers(0, 65536, (3, 5, 7), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "planes.tif", planes, photometric="rgb", planarconfig="separate")
    with pytest.raises(InputError, match="depth"):
        LoadScan()(tmp_path / "planes.tif")
    Image.new("L", (4, 4), 9).save(tmp_path / "flat.png")
    with pytest.raises(InputError, match=r"same value \(9\)"):
        LoadScan()(tmp_path / "flat.png")
    with pytest.raises(InputError, match="no time_point 2"):
        LoadScan(time_point=2)(tmp_path / "whole.png")
    save(tmp_path / "volume.nii", RNG.normal(size=(64, 64, 1)))
    with pytest.raises(InputError, match="another grid"):
        LoadScan()([tmp_path / "whole.png", tmp_path / "volume.nii"])


@pytest.mark.slow
def test_real_volumes(real_data: Path) -> None:
    for path in sorted((real_data / "nifti3d" / "lesion").rglob("FLAIR*.nii.gz"))[:1]:
        image = nib.load(path)
        scan = LoadScan()(path)
        np.testing.assert_array_equal(scan[0].numpy(), np.asarray(image.dataobj, dtype=np.float32))
        np.testing.assert_array_equal(scan.affine.numpy(), image.affine)


@pytest.mark.parametrize(
    ("fields", "told", "certain"),
    [
        ({"pixdim[0]": 0, "sform_code": 1, "qform_code": 1}, "setting qfac to 1", True),
        ({"pixdim[0]": 0, "sform_code": 0, "qform_code": 1}, "setting qfac to 1", True),
        ({"pixdim[0]": 0, "sform_code": 0, "qform_code": 0}, "setting qfac to 1", True),
        ({"pixdim[0]": -3, "sform_code": 1, "qform_code": 0}, "setting qfac to 1", True),
        ({"pixdim[0]": -3, "sform_code": 0, "qform_code": 1}, "setting qfac to 1", False),
        ({"pixdim[2]": -1.5, "sform_code": 2, "qform_code": 1}, "setting to abs", True),
        ({"pixdim[2]": -1.5, "sform_code": 0, "qform_code": 1}, "setting to abs", False),
        ({"pixdim[3]": 0, "sform_code": 0, "qform_code": 0}, "setting 0 dims to 1", False),
        ({"sform_code": 9, "qform_code": 1}, "sform_code 9 not valid", False),
        ({"sform_code": -1, "qform_code": 1}, "sform_code -1 not valid", False),
        ({"sform_code": 1, "qform_code": 17}, "qform_code 17 not valid", True),
        ({"sform_code": 0, "qform_code": 17}, "qform_code 17 not valid", False),
        ({"bitpix": 3, "sform_code": 0, "qform_code": 1}, "setting bitpix", True),
    ],
)
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_mended_header_is_told_or_refused(
    tmp_path: Path, fields: dict[str, float], told: str, certain: bool, kind: type[nib.Nifti1Image]
) -> None:
    array = RNG.random((3, 4, 5), dtype=np.float32)
    image = kind(array, np.diag([2.0, 1.5, 3, 1]))
    path = tmp_path / ("a.nii.gz" if certain else "a.nii")
    nib.save(image, path)
    with gzip.open(path) if certain else path.open("rb") as file:
        data = file.read()
    size = image.header.template_dtype.itemsize
    header = type(image.header)(data[:size], check=False)
    for name, value in fields.items():
        if name.startswith("pixdim"):
            header["pixdim"][int(name[-2])] = value
        else:
            header[name] = value
    data = header.binaryblock + data[size:]
    path.write_bytes(gzip.compress(data) if certain else data)
    if certain:
        with pytest.warns(UserWarning, match=rf"a.nii.gz: the header was mended: .*{told}") as caught:
            scan = LoadScan()(path)
        assert len(caught) == 1
        np.testing.assert_array_equal(scan[0].numpy(), array)
    else:
        with pytest.raises(InputError, match=rf"a.nii: the header was mended: .*{told}.*programs differ"):
            LoadScan()(path)


def test_a_volume_of_freesurfer_without_geometry_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.mgh"
    nib.save(nib.MGHImage(RNG.random((3, 4, 5), dtype=np.float32), np.diag([2.0, 1.5, 3, 1])), path)
    data = bytearray(path.read_bytes())
    data[28:30] = b"\0\0"
    path.write_bytes(data)
    with pytest.warns(UserWarning, match="a.mgh: the header states no geometry"):
        LoadScan()(path)
