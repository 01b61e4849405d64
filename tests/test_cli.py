"""The package's own command line, and what importing it brings along."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bundle_runs import BUNDLES, command, write_nifti

from monai_anomaly import __version__
from monai_anomaly.__main__ import main

BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("itk", "pydicom", "highdicom", "matplotlib", "nilearn"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None

sys.meta_path.insert(0, Blocker())
import monai_anomaly.engines
print("imported")
"""


def test_bundles_are_written_once(tmp_path: Path) -> None:
    names = sorted(path.parts[-3] for path in BUNDLES.glob("*/configs/train.yaml"))
    done = command("-m", "monai_anomaly", "bundles", "b", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "".join(f"{Path('b') / name}\n" for name in names), "")
    copied = {p.relative_to(tmp_path / "b") for p in (tmp_path / "b").rglob("*") if p.is_file()}
    for name in names:
        for file in ("configs/train.yaml", "configs/metadata.json", "docs/README.md", "LICENSE"):
            assert Path(name) / file in copied
    for path in copied:
        assert (tmp_path / "b" / path).read_bytes() == (BUNDLES / path).read_bytes()
    again = command("-m", "monai_anomaly", "bundles", "b", folder=tmp_path)
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr == f"error: b/{names[0]}: exists already. Name another folder, or remove it first.\n"


def test_bundles_into_a_place_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["bundles", str(tmp_path / "file" / "b")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.filterwarnings("ignore:.*patients of .* scans are not known")
def test_datalist_divides_by_patient(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(10):
        write_nifti(tmp_path / "scans" / f"p{i // 2}_{i}.nii.gz", i)
    arguments = ["datalist", str(tmp_path / "scans"), "-o", str(tmp_path / "list.json"), "--patient-regex", r"(p\d)_"]
    assert main([*arguments, "--test-fraction", "0.2", "--calibration-fraction", "0.25"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "training: 6 scans of 3 patients",
        "calibration: 2 scans of 1 patients",
        "test: 2 scans of 1 patients",
    ]
    written = json.loads((tmp_path / "list.json").read_text())
    patients = [{item["patient"] for item in written[side]} for side in ("training", "calibration", "test")]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 5


def test_datalist_errors_are_one_line_with_exit_code_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datalist", str(tmp_path / "nothing"), "-o", str(tmp_path / "list.json")]) == 1
    assert capsys.readouterr() == ("", f"error: {tmp_path / 'nothing'}: no such folder. Check the path.\n")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert (caught.value.code, capsys.readouterr().out.strip()) == (0, __version__)


def test_importing_the_package_brings_nothing_heavy(tmp_path: Path) -> None:
    heavy = ("itk", "pydicom", "highdicom", "matplotlib", "nilearn", "torch", "monai")
    program = f"import sys, monai_anomaly; print([name for name in {heavy} if name in sys.modules])"
    assert command("-c", program, folder=tmp_path).stdout == "[]\n"


@pytest.mark.slow
def test_engines_import_without_what_they_use_late(tmp_path: Path) -> None:
    done = command("-c", BLOCKER, folder=tmp_path)
    assert done.stdout == "imported\n", done.stderr
