"""A packaged detector behind MONAI Label's own server, on loopback.

MONAI Label is looked for on the PATH; ``MONAILABEL`` names its command where it has an environment of its own, which
needs this package too (here by PYTHONPATH).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import nibabel as nib
import numpy as np
import pytest
from bundle_runs import BUNDLE, detect, write_nifti
from PIL import Image

from monai_anomaly.packaging import package_detector

pytest_plugins = ["bundle_fixtures"]
pytestmark = pytest.mark.slow

COMMAND = os.environ.get("MONAILABEL") or shutil.which("monailabel")


class Server(NamedTuple):
    """A running server: its address, its log, the scans it knows."""

    address: str
    log: Path
    studies: Path

    def ask(self, image: str, **params: Any) -> bytes:
        """The label of a scan, as the file that the server sends."""
        form = urlencode({"params": json.dumps({"device": "cpu", **params})}).encode()
        with urlopen(f"{self.address}/infer/lesions?image={image}&output=image", form, timeout=120) as answer:
            return answer.read()


@pytest.fixture(scope="module")
def server(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if COMMAND is None:
        pytest.skip("MONAI Label is not installed here (no monailabel on the PATH, no MONAILABEL)")
    place = tmp_path_factory.mktemp("label")
    environment = {
        **os.environ,
        "PATH": f"{Path(COMMAND).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(BUNDLE.parents[1]),
        "OMP_NUM_THREADS": "1",
    }
    apps = ["apps", "--download", "--name", "monaibundle", "--output", str(place)]
    subprocess.run([COMMAND, *apps], env=environment, check=True, capture_output=True, timeout=120)
    package_detector(trained, place / "monaibundle" / "model" / "lesions")
    studies = place / "studies"
    for seed in (7, 8):
        write_nifti(studies / f"scan{seed}.nii.gz", seed, place / f"mask{seed}.nii.gz")
    pixels = np.kron(np.random.default_rng(3).integers(60, 200, (8, 10)), np.ones((4, 5))).astype(np.uint8)
    pixels[:, :15] = 0
    Image.fromarray(pixels).save(studies / "image.png")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["--app", place / "monaibundle", "--studies", studies, "--host", "127.0.0.1", "--port", port]
    conf = {"models": "lesions", "zoo_source": "ngc", "sam2": "false", "skip_trainers": "true"}
    for name, value in conf.items():
        arguments += ["--conf", name, value]
    log = place / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [COMMAND, "start_server", *map(str, arguments)],
            env=environment,
            cwd=place,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(240):
            try:
                urlopen(f"{address}/info/", timeout=30).close()
                break
            except (URLError, ConnectionError):
                assert process.poll() is None, log.read_text()[-3000:]
                time.sleep(1)
        else:
            pytest.fail(f"the server does not answer: {log.read_text()[-3000:]}")
        yield Server(address, log, studies)
    finally:
        # its launcher is a shell that waits for the server
        os.killpg(process.pid, 15)
        process.wait(timeout=60)


def test_the_server_offers_the_detector(server: Server) -> None:
    with urlopen(f"{server.address}/info/", timeout=60) as answer:
        models = json.loads(answer.read())["models"]
    assert models["lesions"]["labels"] == {"anomaly": 1}
    assert models["lesions"]["config"]["alpha"] == 0.05
    assert models["lesions"]["type"] == "segmentation"


@pytest.mark.parametrize("alpha", [0.05, 0.5])
@pytest.mark.parametrize("scan", ["scan7", "scan8"])
def test_its_label_is_our_mask_voxel_by_voxel(
    server: Server, trained: Path, tmp_path: Path, scan: str, alpha: float
) -> None:
    (tmp_path / "label.nii.gz").write_bytes(server.ask(scan, alpha=alpha))
    detect(trained, tmp_path / "out", server.studies / f"{scan}.nii.gz", alpha=alpha)
    label = nib.load(tmp_path / "label.nii.gz")
    own = nib.load(tmp_path / "out" / scan / "anomaly_mask.nii.gz")
    voxels = np.asarray(label.dataobj)
    assert voxels.any()
    np.testing.assert_array_equal(voxels, np.asarray(own.dataobj))
    np.testing.assert_allclose(label.affine, own.affine, atol=1e-3)


def test_its_map_is_our_map(server: Server, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "label.nii.gz").write_bytes(server.ask("scan7", alpha=None))
    detect(trained, tmp_path / "out", server.studies / "scan7.nii.gz", alpha="$None")
    found, own = (nib.load(path) for path in (tmp_path / "label.nii.gz", tmp_path / "out/scan7/anomaly_map.nii.gz"))
    np.testing.assert_allclose(np.asarray(found.dataobj), np.asarray(own.dataobj), rtol=1e-4, atol=1e-5)


def test_its_label_of_an_image_lies_on_the_image(server: Server, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "label.png").write_bytes(server.ask("image", alpha=0.5))
    detect(trained, tmp_path / "out", server.studies / "image.png", alpha=0.5)
    ours = tmp_path / "out" / "image" / "anomaly_mask.png"
    with Image.open(tmp_path / "label.png") as label, Image.open(ours) as own:
        assert label.size == own.size == (50, 32)
        np.testing.assert_array_equal(np.asarray(label) > 0, np.asarray(own) > 0)


def test_a_rate_that_cannot_be_is_told_in_its_log(server: Server) -> None:
    with pytest.raises(HTTPError) as caught:
        server.ask("scan7", alpha=0.01)
    assert caught.value.code == 500
    assert server.ask("scan7")  # it goes on, and has written its log
    assert "alpha 0.01: needs 99 normal calibration patients, there are 19." in server.log.read_text()
