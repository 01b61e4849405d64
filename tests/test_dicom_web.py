"""A PACS as source and target, against a small server of our own, and against Orthanc where it is installed."""

from __future__ import annotations

import base64
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pydicom
import pytest
from bundle_runs import BUNDLE, refusal, run_bundle
from dicom_series import complete
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from test_dicom import PIXELS, series, write

from monai_anomaly.engines import StoreDicomd, scans_of
from monai_anomaly.io.dicom_web import PASSWORD, TOKEN, USER, fetch_series
from monai_anomaly.io.series import SeriesFit

pytest.importorskip("dicomweb_client", reason='DICOMweb needs pip install "monai-anomaly[dicom]"')
pytest_plugins = ["bundle_fixtures"]


class Pacs(ThreadingHTTPServer):
    """QIDO-RS, WADO-RS and STOW-RS for the calls that are made (PS3.18), instances kept in memory."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.instances: list[Dataset] = []
        self.authorization: str | None = None
        self.refuse = False
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/dicom-web"


class Handler(BaseHTTPRequestHandler):
    server: Pacs

    def log_message(self, *_: object) -> None:
        """Not to stderr."""

    def answer(self, code: int, body: bytes = b"", kind: str = "application/dicom+json") -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def allowed(self) -> bool:
        self.server.requests.append(f"{self.command} {self.path}")
        wanted = self.server.authorization
        if wanted is None or self.headers.get("Authorization") == wanted:
            return True
        self.answer(401)
        return False

    def do_GET(self) -> None:
        if not self.allowed():
            return
        parts = urlsplit(self.path).path.removeprefix("/dicom-web/").split("/")
        of_study = [dataset for dataset in self.server.instances if dataset.StudyInstanceUID == parts[1]]
        if parts[2:] == ["series"]:
            first = {dataset.SeriesInstanceUID: dataset for dataset in of_study}
            keys = ("StudyInstanceUID", "SeriesInstanceUID", "SeriesDescription", "Modality")
            found = []
            for dataset in first.values():
                entry = Dataset()
                for key in keys:
                    setattr(entry, key, dataset.get(key, ""))
                found.append(entry.to_json_dict())
            self.answer(200 if found else 204, json.dumps(found).encode() if found else b"")
        else:
            assert self.headers["Accept"].startswith("multipart/related")
            body = b""
            for dataset in (d for d in of_study if d.SeriesInstanceUID == parts[3]):
                buffer = BytesIO()
                dataset.save_as(buffer, enforce_file_format=True)
                body += b"--part\r\nContent-Type: application/dicom\r\n\r\n" + buffer.getvalue() + b"\r\n"
            self.answer(200, body + b"--part--", 'multipart/related; type="application/dicom"; boundary=part')

    def do_POST(self) -> None:
        if not self.allowed():
            return
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        message = BytesParser().parsebytes(head + self.rfile.read(int(self.headers["Content-Length"])))
        response = Dataset()
        done, failed = [], []
        for part in message.walk():
            if part.get_content_type() != "application/dicom":
                continue
            dataset = pydicom.dcmread(BytesIO(part.get_payload(decode=True)))
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
            if self.server.refuse:
                item.FailureReason = 0xA700
                failed.append(item)
            else:
                self.server.instances.append(dataset)
                done.append(item)
        response.ReferencedSOPSequence = done
        if failed:
            response.FailedSOPSequence = failed
        self.answer(200, json.dumps(response.to_json_dict()).encode())


@pytest.fixture
def pacs() -> Iterator[Pacs]:
    server = Pacs()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def study_of(*descriptions: str, modality: str = "MR") -> list[Dataset]:
    """A study with a series of each description."""
    found: list[Dataset] = []
    study, frame = generate_uid(), generate_uid()
    for description in descriptions:
        uid = generate_uid()
        slices = complete(series(PIXELS), SeriesDescription=description, Modality=modality)
        for dataset in slices:
            dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = uid, study, frame
        found += slices
    return found


def test_the_only_scan_of_a_study_is_read(pacs: Pacs, tmp_path: Path) -> None:
    pacs.instances = study_of("T1")
    study, uid = pacs.instances[0].StudyInstanceUID, pacs.instances[0].SeriesInstanceUID
    for modality, description in (("SEG", "mask"), ("SR", "report"), ("OT", "overlay")):
        (other,) = study_of(description, modality=modality)[:1]
        other.StudyInstanceUID = study
        pacs.instances.append(other)
    folder = tmp_path / "dicom_web"
    assert scans_of("ignored", pacs.url, study, None, tmp_path, SeriesFit()) == folder
    assert scans_of("a/folder", None, None, None, tmp_path, SeriesFit()) == "a/folder"
    files = sorted((folder / uid).iterdir())
    assert len(files) == len(PIXELS)
    for path, sent in zip(files, pacs.instances):
        read = pydicom.dcmread(path)
        np.testing.assert_array_equal(read.pixel_array, sent.pixel_array)
        assert read.SOPInstanceUID == sent.SOPInstanceUID
    assert (folder / "patients.csv").read_text().split() == ["image,patient", f"{uid},MRN-7"]


def test_a_series_is_chosen_by_uid_or_description(pacs: Pacs, tmp_path: Path) -> None:
    pacs.instances = study_of("T1", "FLAIR")
    study, uid = pacs.instances[0].StudyInstanceUID, pacs.instances[-1].SeriesInstanceUID
    for number, wanted in enumerate((uid, "flair")):
        fetch_series(pacs.url, study, wanted, tmp_path / str(number))
        assert (tmp_path / str(number) / uid).is_dir()
    line = refusal(fetch_series, pacs.url, study, None, tmp_path / "none")
    assert "2 of 2 series are readable" in line
    assert f"(T1 [{pacs.instances[0].SeriesInstanceUID}], FLAIR [{uid}])" in line
    assert "0 of 2 series are called 'T2'" in refusal(fetch_series, pacs.url, study, "T2", tmp_path / "none")
    assert "has no study 1.2.3" in refusal(fetch_series, pacs.url, "1.2.3", None, tmp_path / "none")
    assert "--study: is not given" in refusal(fetch_series, pacs.url, "", None, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("kind", ["basic", "bearer"])
def test_credentials_come_from_the_environment_and_reach_no_log(
    pacs: Pacs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    caplog.set_level(logging.DEBUG)
    pacs.instances = study_of("T1")
    study = pacs.instances[0].StudyInstanceUID
    secret = "s3cret-passphrase"
    encoded = base64.b64encode(f"reader:{secret}".encode()).decode()
    pacs.authorization = f"Basic {encoded}" if kind == "basic" else f"Bearer {secret}"
    line = refusal(fetch_series, pacs.url, study, None, tmp_path / "in")
    assert "HTTP 401" in line
    assert USER in line
    if kind == "basic":
        monkeypatch.setenv(USER, "reader")
        monkeypatch.setenv(PASSWORD, secret)
    else:
        monkeypatch.setenv(TOKEN, secret)
    fetch_series(pacs.url, study, None, tmp_path / "in")
    assert caplog.records
    assert secret not in caplog.text
    assert encoded not in caplog.text
    pacs.authorization = "Basic other"
    line = refusal(fetch_series, pacs.url, study, None, tmp_path / "again")
    assert secret not in line


def test_addresses_that_cannot_be_used(tmp_path: Path, pacs: Pacs) -> None:
    line = refusal(fetch_series, "http://reader:hidden@pacs/dicom-web", "1.2", None, tmp_path)
    assert "hidden" not in line
    assert PASSWORD in line
    assert "is no address" in refusal(fetch_series, "pacs:8042", "1.2", None, tmp_path)
    closed = pacs.url.replace(str(pacs.server_port), "9")  # the discard port, where nothing listens
    assert "does not answer" in refusal(fetch_series, closed, "1.2", None, tmp_path)


def test_results_are_stored_and_what_a_pacs_does_not_take_is_told(pacs: Pacs, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write(tmp_path / "a" / "dicom", study_of("T1"))
    store, data = StoreDicomd(pacs.url, tmp_path), {"item": {"case": "a"}}
    assert store(data) is data
    assert len(pacs.instances) == len(PIXELS)
    pacs.refuse = True
    line = refusal(store, data)
    assert "does not take 000.dcm (failure reason 42752)" in line


@pytest.mark.slow
def test_the_bundle_reads_a_study_and_stores_its_results_there(pacs: Pacs, trained: Path, tmp_path: Path) -> None:
    pacs.instances = study_of("T1")
    study, uid = pacs.instances[0].StudyInstanceUID, pacs.instances[0].SeriesInstanceUID
    options = {"model_dir": str(trained / "models"), "progress": False, "overview_slices": 0}
    run_bundle("inference", tmp_path / "out", dicom_web=pacs.url, study=study, **options)
    assert (tmp_path / "out" / uid / "anomaly_map.nii.gz").is_file()
    new = pacs.instances[len(PIXELS) :]
    assert sorted({dataset.Modality for dataset in new}) == ["OT", "SEG", "SR"]
    assert {dataset.StudyInstanceUID for dataset in new} == {study}
    assert {dataset.PatientID for dataset in new} == {"MRN-7"}
    # again: the results of the first run are no scans
    run_bundle("inference", tmp_path / "again", dicom_web=pacs.url, study=study, **options)
    assert len(pacs.instances) == len(PIXELS) + 2 * len(new)
    # and without a PACS all is as before
    assert "--dataset_dir" in refusal(run_bundle, "inference", tmp_path / "none", **options)


@pytest.mark.slow
def test_orthanc_takes_and_gives_back_the_results(trained: Path, tmp_path: Path) -> None:
    """It listens on all addresses, so that it runs in a network of its own."""
    unshare = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user"]
    for tool in ("Orthanc", "unshare", "ip"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (Debian: orthanc, orthanc-dicomweb, iproute2)")
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets no process have a network of its own")
    folder = write(tmp_path / "scan", study_of("T1"))
    script = Path(__file__).parent / "orthanc_round_trip.py"
    environment = {
        **os.environ,
        USER: "reader",
        PASSWORD: "s3cret-passphrase",
        "PYTHONPATH": str(BUNDLE.parents[1]),
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(
        [*unshare, sys.executable, str(script), str(folder), str(trained / "models"), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "objects in Orthanc: MR, OT, OT, SEG, SR" in done.stdout
    assert "s3cret-passphrase" not in done.stdout + done.stderr
