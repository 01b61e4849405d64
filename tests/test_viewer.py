"""The page with a viewer: its volumes, its script, and how a browser shows it."""

from __future__ import annotations

import base64
import gzip
import io
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from bundle_runs import head, refusal, write_nifti
from monai.transforms import Compose
from PIL import Image
from test_inference import BrightVoxels

from monai_anomaly.data import ScanPreprocessing
from monai_anomaly.engines import (
    CohortEvaluator,
    MaskAboveThresholdd,
    PValued,
    SaveCased,
    SaveViewerd,
    ToScanVoxelsd,
    scan_loader,
)
from monai_anomaly.exceptions import InputError
from monai_anomaly.report.viewer import niivue_script, viewer_page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
STAND_IN = "globalThis.niivue = {};"


def volumes(page: str) -> list[nibabel.Nifti1Image]:
    """Scan and map as the page holds them."""
    found = [re.search(rf'{name} = "([^"]+)"', page) for name in ("scan", "map")]
    return [nibabel.Nifti1Image.from_bytes(_unzipped(match[1])) for match in found if match]


def _unzipped(text: str) -> bytes:
    return gzip.decompress(base64.b64decode(text))


def page_of(
    scan: np.ndarray, anomaly_map: np.ndarray, affine: np.ndarray, niivue: str = STAND_IN, top: float = 2.0
) -> str:
    return viewer_page(scan, anomaly_map, affine, top=top, shown_above=0.5, title="a<b", facts="score 1", niivue=niivue)


def test_the_page_holds_scan_and_map_in_8_bits() -> None:
    rng = np.random.default_rng(0)
    affine = head(4)[2]
    scan, anomaly_map = rng.uniform(-50, 900, (20, 24, 6)), rng.uniform(0, 2, (20, 24, 6)).astype(np.float32)
    page = page_of(scan, anomaly_map, affine)
    shown, found = volumes(page)
    low, high = np.percentile(scan, (0.5, 99.5))
    np.testing.assert_allclose(shown.get_fdata(), np.clip(scan, low, high), atol=(high - low) / 500)
    np.testing.assert_allclose(found.get_fdata(), anomaly_map, atol=2 / 500)
    np.testing.assert_allclose(found.affine, affine, atol=1e-4)
    assert found.get_data_dtype() == np.uint8
    place = [float(value) for value in re.search(r"mm2frac\(\[([^]]+)\]\)", page)[1].split(",")]  # type: ignore[index]
    peak = np.unravel_index(anomaly_map.argmax(), anomaly_map.shape)
    np.testing.assert_allclose(place, (affine @ [*peak, 1])[:3], atol=1e-3)
    assert "a&lt;b" in page
    assert "a<b" not in page
    assert "Research use only" in page
    assert "Redistribution and use in source and binary forms" in page
    assert not re.search(r'(src|href)="http', page)


@pytest.mark.slow
def test_large_volumes_are_coarser_and_stay_in_place() -> None:
    affine = head(4)[2]
    anomaly_map = np.zeros((301, 201, 101), np.float32)
    anomaly_map[200, 51, 77] = 2
    page = page_of(np.broadcast_to(np.arange(301.0)[:, None, None], anomaly_map.shape), anomaly_map, affine)
    shown, found = volumes(page)
    assert np.prod(found.shape) <= 2_000_000
    assert found.get_fdata().max() == pytest.approx(2)  # a single voxel is not averaged away
    peak = np.unravel_index(found.get_fdata().argmax(), found.shape)
    factors = np.ceil(np.array(anomaly_map.shape) / found.shape)
    away = np.linalg.inv(affine) @ found.affine @ [*peak, 1] - [200, 51, 77, 1]
    assert (np.abs(away[:3]) <= factors / 2).all()
    # the scan's values grow with the first index: they say where its voxels are
    index = (np.linalg.inv(affine) @ shown.affine @ [40, 0, 0, 1])[0]
    assert shown.get_fdata()[40, 0, 0] == pytest.approx(index, abs=1)


def test_niivue_is_read_from_a_file_or_a_package(tmp_path: Path) -> None:
    script = tmp_path / "niivue.umd.js"
    script.write_text('let a = "</script>";')
    assert niivue_script(script) == 'let a = "<\\/script>";'
    with tarfile.open(tmp_path / "niivue.tgz", "w:gz") as package:
        entry = tarfile.TarInfo("package/dist/niivue.umd.js")
        entry.size = 4
        package.addfile(entry, io.BytesIO(b"let "))
    assert niivue_script(tmp_path / "niivue.tgz") == "let "
    for name in ("missing.js", "missing.tgz"):
        assert "holds no NiiVue" in refusal(niivue_script, tmp_path / name)
    with tarfile.open(tmp_path / "other.tgz", "w:gz"):
        pass
    assert "holds no NiiVue" in refusal(niivue_script, tmp_path / "other.tgz")


def test_without_a_network_the_way_out_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", _no_network)
    assert "pass --niivue FILE" in refusal(niivue_script)


def _no_network(*_: object, **__: object) -> None:
    raise OSError("no network")


def case_of(tmp_path: Path, path: Path, niivue: Path) -> Path:
    network = BrightVoxels()
    network.calibration.fit({f"p{i}": 1e-3 * i for i in range(19)}, {f"p{i}": 0.02 * i for i in range(19)})
    preprocessing = ScanPreprocessing((32, 32))
    evaluator = CohortEvaluator(
        network,
        scan_loader([{"image": str(path), "case": "case", "patient": "p"}], preprocessing),
        postprocessing=Compose(
            [
                ToScanVoxelsd(preprocessing),
                PValued(network),
                MaskAboveThresholdd(network, 0.05),
                SaveViewerd(niivue),
                SaveCased(tmp_path / "out", 0),
            ]
        ),
        progress=False,
    )
    evaluator.run()
    evaluator.finish()
    return tmp_path / "out" / "case"


def test_a_case_has_its_page(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "niivue.umd.js").write_text(STAND_IN)
    case = case_of(tmp_path, write_nifti(tmp_path / "scan.nii.gz", 5), tmp_path / "niivue.umd.js")
    page = (case / "viewer.html").read_text()
    written = nibabel.load(case / "anomaly_map.nii.gz")
    found = volumes(page)[1]
    top = 2 * 0.36  # twice the threshold
    np.testing.assert_allclose(found.get_fdata(), np.clip(written.get_fdata(), 0, top), atol=top / 500)
    assert "p 0.05" in page
    assert 'value="0.36' in page

    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 50), dtype=np.uint8)).save(tmp_path / "scan.png")
    case = case_of(tmp_path, tmp_path / "scan.png", tmp_path / "niivue.umd.js")
    assert "no viewer" in caplog.text
    assert not (case / "viewer.html").exists()


@pytest.mark.slow
def test_a_browser_shows_the_map_over_the_scan(tmp_path: Path) -> None:
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium or Chrome is installed")
    try:
        niivue = niivue_script()
    except InputError as error:
        pytest.skip(f"NiiVue cannot be downloaded: {error}")
    x, y, z = np.indices((64, 64, 40))
    ball = np.where((x - 32) ** 2 + (y - 32) ** 2 + (z - 20) ** 2 < 300, 100.0, 0.0)
    anomaly_map = 2 * np.exp(-((x - 32) ** 2 + (y - 24) ** 2 + (z - 20) ** 2) / 20.0)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    (tmp_path / "page.html").write_text(page_of(ball, anomaly_map, affine, niivue), encoding="utf-8")
    command = [browser, "--headless=new", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=900,500", "--virtual-time-budget=20000"]
    page = (tmp_path / "page.html").as_uri()
    picture = tmp_path / "page.png"
    subprocess.run([*command, f"--screenshot={picture}", page], capture_output=True, timeout=120, check=True)
    dom = subprocess.run([*command, "--dump-dom", page], capture_output=True, timeout=120, check=True, text=True).stdout
    assert 'data-ready="true"' in dom
    assert "This browser cannot show it" not in re.sub(r"(?s)<script>.*?</script>", "", dom)
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)[60:]
    spread = pixels.max(axis=-1) - pixels.min(axis=-1)
    grey = (spread < 10) & (pixels.max(axis=-1) > 100)
    # the bright end of the colours: yellow, which neither the scan nor the red cross is
    yellow = (pixels[..., 0] > 150) & (pixels[..., 1] > 100) & (pixels[..., 2] < 120)
    assert grey.sum() > 5000
    assert 100 < yellow.sum() < grey.sum()
