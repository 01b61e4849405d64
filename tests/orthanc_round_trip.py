"""A study into a real Orthanc, through inference, and back out; run by test_dicom_web.py in a network of its own.

python orthanc_round_trip.py SERIES MODELS FOLDER
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pydicom
import requests
from bundle_runs import run_bundle
from dicomweb_client.api import DICOMwebClient

from monai_anomaly.io.dicom_web import PASSWORD, USER, store_files

URL = "http://127.0.0.1:8042/dicom-web"
PLUGINS = "/usr/share/orthanc/plugins"


def main(series: Path, models: Path, folder: Path) -> None:
    """Run it all.

    Args:
        series: DICOM files of one series.
        models: of a detector.
        folder: for everything that is written.
    """
    user, password = os.environ[USER], os.environ[PASSWORD]
    configuration = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [f"{PLUGINS}/libOrthancDicomWeb.so"],
        "DicomServerEnabled": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {user: password},
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "storage").mkdir()
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with (folder / "orthanc.log").open("w") as log:
        orthanc = subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log)
        try:
            for _ in range(300):
                try:
                    if requests.get(URL + "/studies", auth=(user, password), timeout=5).ok:
                        break
                except requests.ConnectionError:
                    time.sleep(0.1)
            store_files(URL, sorted(series.iterdir()))
            study = pydicom.dcmread(next(series.iterdir())).StudyInstanceUID
            options = {"progress": False, "overview_slices": 0, "report": False}
            run_bundle("inference", folder / "out", dicom_web=URL, study=study, model_dir=str(models), **options)
            compare(study, folder / "out", (user, password))
        finally:
            orthanc.terminate()
            orthanc.wait(30)


def compare(study: str, out: Path, credentials: tuple[str, str]) -> None:
    """What Orthanc gives back is what was written."""
    session = requests.Session()
    session.auth = credentials
    client = DICOMwebClient(URL, session=session)
    found = client.search_for_series(study_instance_uid=study)
    modalities = sorted(item["00080060"]["Value"][0] for item in found)
    assert modalities == ["MR", "OT", "OT", "SEG", "SR"], modalities
    written = {str(dataset.SOPInstanceUID): dataset for dataset in map(pydicom.dcmread, out.rglob("dicom/**/*.dcm"))}
    back = {}
    for item in found:
        for dataset in client.retrieve_series(study, item["0020000E"]["Value"][0]):
            back[str(dataset.SOPInstanceUID)] = dataset
    assert set(written) <= set(back)
    for uid, dataset in written.items():
        if dataset.Modality == "SR":
            assert back[uid].ContentSequence == dataset.ContentSequence
        else:
            np.testing.assert_array_equal(back[uid].pixel_array, dataset.pixel_array)
    print(f"{len(written)} objects in Orthanc: {', '.join(modalities)}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
