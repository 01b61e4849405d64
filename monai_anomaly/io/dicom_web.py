"""Series from a PACS and results back to it, by DICOMweb."""

from __future__ import annotations

import csv
import importlib.util
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from monai_anomaly.exceptions import InputError

from .atomic import atomic_folder, atomic_path
from .series import AUTO, FoundSeries, SeriesFit, choose_series

__all__ = ["PASSWORD", "TOKEN", "USER", "fetch_series", "store_files"]

logger = logging.getLogger(__name__)

# Where credentials are read from: user and password, or a bearer token.
USER, PASSWORD, TOKEN = (f"MONAI_ANOMALY_DICOM_WEB_{name}" for name in ("USER", "PASSWORD", "TOKEN"))
# Modalities of objects that are no scans, those of our own results among them.
_NO_SCANS = frozenset(
    ("DOC", "FID", "KO", "OT", "PLAN", "PR", "REG", "RTDOSE", "RTPLAN", "RTSTRUCT", "RWV", "SEG", "SR")
)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_STUDY, _SERIES, _DESCRIPTION, _MODALITY = "0020000D", "0020000E", "0008103E", "00080060"


def fetch_series(url: str, study: str, series: str | None, folder: str | Path, fit: SeriesFit | None = None) -> Path:
    """Read one series of a study into a folder.

    Args:
        url: of the DICOMweb service, such as ``http://pacs:8042/dicom-web``.
        study: its UID.
        series: UID or description of the series; None or ``"auto"`` takes the only scan that fits.
        folder: gets a folder named by the series' UID, and ``patients.csv``.
        fit: what fits; the PACS is asked for the modality alone.

    Returns:
        ``folder``.

    Raises:
        InputError: if dicomweb-client is missing, the service does not answer or refuses, there is no such study, or
            not exactly one such series.
    """
    if not study:
        raise InputError("--study", "is not given", "Pass --study UID with --dicom_web.")
    folder = Path(folder)
    with _client(url) as client:
        answer = client.search_for_series(study_instance_uid=study, fields=[_DESCRIPTION, _MODALITY])
        if not answer:
            raise InputError(url, f"has no study {study}", "Check the UID.")
        known = [[_value(item, tag) for tag in (_SERIES, _MODALITY, _DESCRIPTION)] for item in answer]
        found = [
            FoundSeries(uid, study, modality, description, folder, readable=modality not in _NO_SCANS)
            for uid, modality, description in known
        ]
        fit = SeriesFit(volumes=None, modalities=fit.modalities if fit else ())
        chosen = choose_series(url, found, series or AUTO, fit)[0].uid
        patient = study
        with atomic_folder(folder / chosen) as temporary:
            # as stored: the reader knows the compressed syntaxes
            every = client.iter_series(study, chosen, media_types=(("application/dicom", "*"),))
            for index, dataset in enumerate(every):
                patient = str(dataset.get("PatientID") or study)
                dataset.save_as(temporary / f"{index:05d}.dcm", enforce_file_format=True)
    with atomic_path(folder / "patients.csv") as path, path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("image", "patient"), (chosen, patient)])
    return folder


def store_files(url: str, paths: Sequence[str | Path]) -> None:
    """Store DICOM files in a PACS, each in the study that it names.

    Args:
        url: of the DICOMweb service.
        paths: the files.

    Raises:
        InputError: if dicomweb-client is missing, or the service does not answer or does not take a file.
    """
    import pydicom

    with _client(url) as client:
        for path in paths:
            answer = client.store_instances([pydicom.dcmread(path)])
            if refused := answer.get("FailedSOPSequence"):
                reason = refused[0].get("FailureReason")
                raise InputError(url, f"does not take {Path(path).name} (failure reason {reason})", "Ask the PACS.")


def _value(item: Mapping[str, Any], tag: str) -> str:
    """The first value of an attribute in DICOM's JSON; empty where there is none."""
    return str((item.get(tag, {}).get("Value") or [""])[0])


@contextmanager
def _client(url: str) -> Iterator[Any]:
    """A client with the credentials of the environment; its errors are told in one line, which never has them."""
    if importlib.util.find_spec("dicomweb_client") is None:
        raise InputError("--dicom_web", "dicomweb-client is not installed", 'pip install "monai-anomaly[dicom]".')
    import requests
    from dicomweb_client.api import DICOMwebClient

    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError("--dicom_web", "is no address", "Pass http(s)://HOST[:PORT]/PATH of the DICOMweb service.")
    if parts.username or parts.password:
        problem = "holds a user or a password, which would be written into logs"
        raise InputError("--dicom_web", problem, f"Set the environment variables {USER} and {PASSWORD}.")
    user, password, token = (os.environ.get(name) for name in (USER, PASSWORD, TOKEN))
    if parts.scheme == "http" and (user or token) and parts.hostname not in _LOOPBACK:
        logger.warning(f"{url}: the credentials are sent without encryption.")

    class Bearer(requests.auth.AuthBase):
        """Kept out of the session's headers, which clients may log."""

        def __call__(self, request: Any) -> Any:
            request.headers["Authorization"] = f"Bearer {token}"
            return request

    with requests.Session() as session:
        session.auth = Bearer() if token else (user, password or "") if user else None
        try:
            client = DICOMwebClient(url, session=session)
            client.set_http_retry_params(retry=True, max_attempts=3, wait_exponential_multiplier=250)
            yield client
        except requests.HTTPError as error:
            code = error.response.status_code if error.response is not None else "?"
            known = code in (401, 403)
            remedy = (
                f"Set {USER} and {PASSWORD}, or {TOKEN}." if known else "Check the address, the study and the PACS."
            )
            raise InputError(url, f"answers with HTTP {code}", remedy) from error
        except requests.RequestException as error:
            problem = f"does not answer ({type(error).__name__})"
            raise InputError(url, problem, "Check the address and the network.") from error
