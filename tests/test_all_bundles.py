"""What holds for every bundle: MONAI's tools, the whole way from scans to maps, exports, files that come back."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_runs import BUNDLES, SMALL, command, run_bundle, table
from monai.bundle import ConfigParser

from monai_anomaly.bundle import check_overrides
from monai_anomaly.data import load_cohort
from monai_anomaly.engines import load_detector
from monai_anomaly.networks import AnomalyDetector
from monai_anomaly.packaging import package_detector

pytest_plugins = ["bundle_fixtures"]

# A small and short training of each bundle, merged over the sizes of its own quickstart.
TINY: dict[str, dict[str, Any]] = {
    "baselines": {"network_def#channels": [4, 8, 8, 8], "max_epochs": 1},
    "dae": {"network_def#channels": [4, 8], "max_epochs": 1, "batch_size": 8},
    "daad": {
        "network_def#channels": [4, 4, 8, 8],
        "network_def#division_rates": [2, 2, 1],
        "network_def#num_items": 8,
        "network_def#discriminator_channels": [4, 8, 8],
        "network_def#feature_channels": 4,
        "max_epochs": 1,
    },
    "ddrid": {
        "network_def#channels": 4,
        "network_def#latent_channels": 8,
        "pretrain_epochs": 1,
        "max_epochs": 1,
        "batch_size": 8,
    },
    "hfrae": {"encoder_channels": [4, 4, 8, 8], "pretraining_epochs": 1, "max_epochs": 1, "batch_size": 8},
    "itae": {"network_def#channels": [4, 4, 8, 8, 8], "max_epochs": 1, "batch_size": 8},
    "patchcore": {"encoder_channels": [4, 4, 8, 8], "pretraining_epochs": 1, "batch_size": 8},
    "proxyano": SMALL,
}
# Override configs that a tiny training needs.
OVERLAYS = {"ddrid": ["plain_intensities"], "hfrae": ["own_encoder"], "patchcore": ["own_encoder"]}
COMMON = {"image_size": [32, 32], "num_workers": 1, "progress": False}
NAMES = sorted(path.parts[-3] for path in BUNDLES.glob("*/configs/train.yaml"))
OWN_RUN = {"inference.yaml", "evaluate.yaml", "multi_gpu_train.yaml", "train.yaml", "quickstart.yaml"}
OWN_RUN |= {"video_metrics.yaml"}


def override_configs(name: str) -> list[str]:
    """The names of the files that are merged over a bundle's ``train.yaml``."""
    return sorted(path.stem for path in (BUNDLES / name / "configs").glob("*.yaml") if path.name not in OWN_RUN)


def train_files(name: str, *over: str) -> list[str]:
    return [str(BUNDLES / name / "configs" / f"{file}.yaml") for file in ("train", *over)]


@pytest.fixture(scope="module")
def tiny_run(tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Of a bundle's name the output folder of a tiny training and its inference on the tiny cohort, made once."""

    @cache
    def made(name: str) -> Path:
        output, bundle = tmp_path_factory.mktemp(name), BUNDLES / name
        run_bundle(["train", *OVERLAYS.get(name, [])], output, tiny_cohort, bundle, **{**COMMON, **TINY[name]})
        run_bundle("inference", output, tiny_cohort, bundle, overview_slices=0, report=False, progress=False)
        return output

    return made


def image_of(network: AnomalyDetector) -> torch.Tensor:
    return torch.rand(2, network.in_channels, 32, 32, generator=torch.Generator().manual_seed(0))


def test_every_bundle_is_tested() -> None:
    assert set(NAMES) == set(TINY)


def test_the_bundles_are_what_their_source_says() -> None:
    source = BUNDLES.parent / ".ci" / "make_bundles.py"
    if not source.is_file():
        pytest.skip("the bundles' source, .ci/bundles, is not in this copy")
    done = command(source, "--check", folder=BUNDLES.parent)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", NAMES)
def test_a_quickstart_sets_what_train_knows(name: str) -> None:
    content = ConfigParser.load_config_file(str(BUNDLES / name / "configs" / "quickstart.yaml"))
    named = re.search(r"override_configs=\[(.*?)\]", content["run"][1])
    over = [] if named is None else re.findall(r"'(\w+)'", named[1])
    check_overrides(list(content["small"]), ConfigParser.load_config_files(train_files(name, *over)), "train.yaml")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:No hash value provided")
def test_metadata_follow_the_schema(name: str, real_data: Path, tmp_path: Path) -> None:
    schema = real_data.parent / "schema" / "meta_schema_20240725.json"
    if not schema.is_file():
        pytest.skip("MONAI's metadata schema meta_schema_20240725.json is not beside the real data")
    # a copy: the tool would download into the place it is given
    copy = shutil.copy(schema, tmp_path / "schema.json")
    monai.bundle.verify_metadata(meta_file=str(BUNDLES / name / "configs" / "metadata.json"), filepath=copy)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")
def test_network_keeps_the_shapes_of_the_metadata(name: str) -> None:
    """As the model zoo checks it: the defaults of ``inference.yaml``, at their full width."""
    monai.bundle.verify_net_in_out(
        net_id="network_def",
        meta_file=str(BUNDLES / name / "configs" / "metadata.json"),
        config_file=str(BUNDLES / name / "configs" / "inference.yaml"),
        bundle_root=str(BUNDLES / name),
        device="cpu",
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")
def test_network_is_verified_exported_and_loaded_before_any_training(name: str, tmp_path: Path) -> None:
    """As the model zoo and MONAI Label do: from ``inference.yaml``, with no folder of a training."""
    narrow = {
        key.replace("network_def", "definition"): value
        for key, value in {**TINY[name], "image_size": [32, 32]}.items()
        if key.startswith(("network_def#", "encoder", "image_size"))
    }
    if name in ("hfrae", "patchcore"):
        narrow["encoder"] = "strided"  # narrow
    configs = BUNDLES / name / "configs"
    options = {"config_file": str(configs / "inference.yaml"), "model_dir": str(tmp_path / "none"), **narrow}
    parser = ConfigParser(ConfigParser.load_config_file(options["config_file"]))
    parser.update({key: value for key, value in options.items() if key != "config_file"})
    first = parser.get_parsed_content("network_def")
    torch.save(first.state_dict(), tmp_path / "model.pt")
    parser.get_parsed_content("network_def", instantiate=True).load_state_dict(torch.load(tmp_path / "model.pt"))
    meta = str(configs / "metadata.json")
    monai.bundle.ckpt_export(
        net_id="network_def",
        ckpt_file=str(tmp_path / "model.pt"),
        meta_file=meta,
        filepath=str(tmp_path / "model.ts"),
        **options,
    )
    image = image_of(first)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(image), first.eval()(image))
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt", "model.ts"}


@pytest.mark.parametrize(
    ("name", "override_config"),
    [(name, override_config) for name in NAMES for override_config in override_configs(name)],
)
def test_overlays_name_only_what_train_knows(name: str, override_config: str) -> None:
    content = ConfigParser.load_config_file(train_files(name, override_config)[1])
    # an override_config may bring ids of its own for its own components to refer to
    known = {
        **ConfigParser.load_config_file(train_files(name)[0]),
        **{k: v for k, v in content.items() if "#" not in k},
    }
    check_overrides([key for key in content if not key.startswith("train#")], known, "train.yaml")
    merged = ConfigParser(ConfigParser.load_config_files(train_files(name, override_config)))
    assert all(merged[key] == value for key, value in content.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_case_has_its_files_on_its_own_grid(
    name: str, tiny_run: Callable[[str], Path], tiny_cohort: Path
) -> None:
    output = tiny_run(name)
    rows = table(output / "predictions.csv")
    assert len(rows) == 5
    assert all(np.isfinite(float(row["anomaly_score"])) for row in rows)
    for item in load_cohort(tiny_cohort).test:
        written = nib.load(output / item["case"] / "anomaly_map.nii.gz")
        assert np.isfinite(written.get_fdata()).all()
        if not Path(item["image"]).is_dir():
            source = nib.load(item["image"])
            assert written.shape == source.shape
            assert np.abs(written.affine - source.affine).max() == 0


@pytest.mark.slow
def test_detectors_come_back_to_the_bit_in_another_process(tiny_run: Callable[[str], Path], tmp_path: Path) -> None:
    folders = {name: str(tiny_run(name) / "models") for name in NAMES}
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
from test_all_bundles import detected
torch.save({{name: detected(folder) for name, folder in {folders!r}.items()}}, "found.pt")
"""
    done = command("-c", script, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt")
    for name, folder in folders.items():
        assert all(torch.equal(one, two) for one, two in zip(found[name], detected(folder), strict=True)), name


def detected(models: str) -> list[torch.Tensor]:
    """Map and score of a detector in a folder."""
    network = load_detector(models).network
    with torch.no_grad():
        output = network.detect(image_of(network))
    return [output.anomaly_map, output.anomaly_score]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_monai_exports_to_onnx(
    tiny_run: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tool of the model zoo, on one bundle; ``package_detector`` exports all of them (below)."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # the tool leaves a file of weights there
    models, configs = tiny_run("baselines") / "models", BUNDLES / "baselines" / "configs"
    network = load_detector(models).network
    image = image_of(network)
    monai.bundle.onnx_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.onnx"),
        ckpt_file=str(models / "model.pt"),
        meta_file=str(configs / "metadata.json"),
        config_file=str(configs / "inference.yaml"),
        model_dir=str(models),
        input_shape=list(image.shape),
    )
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: image.numpy()})[0])
    with torch.no_grad():
        torch.testing.assert_close(found, network(image), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")
def test_a_packaged_detector_passes_the_checks_of_the_model_zoo(
    name: str, tiny_run: Callable[[str], Path], tiny_cohort: Path, real_data: Path, tmp_path: Path
) -> None:
    output = tiny_run(name)
    package_detector(output, tmp_path / "made")
    bundle = Path(shutil.move(tmp_path / "made", tmp_path / "moved"))
    # the files, the version
    for file in ("configs/metadata.json", "LICENSE", "models/model.pt", "configs/inference.yaml", "docs/README.md"):
        assert (bundle / file).is_file()
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]
    # the schema
    meta, config = str(bundle / "configs" / "metadata.json"), str(bundle / "configs" / "inference.yaml")
    schema = real_data.parent / "schema" / "meta_schema_20240725.json"
    if schema.is_file():
        copy = shutil.copy(schema, tmp_path / "schema.json")
        monai.bundle.verify_metadata(meta_file=meta, filepath=copy)
    # the properties
    workflow = monai.bundle.ConfigWorkflow(
        config_file=config,
        meta_file=meta,
        workflow_type="infer",
        logging_file=False,
        bundle_root=str(bundle),
        dataset_dir=str(tiny_cohort),
        output_dir=str(tmp_path / "out"),
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    # the shape
    options = {"net_id": "network_def", "meta_file": meta, "config_file": config, "bundle_root": str(bundle)}
    monai.bundle.verify_net_in_out(device="cpu", **options)
    # TorchScript, its calibration with it
    network = load_detector(bundle / "models").network
    image = image_of(network)
    exported = torch.jit.load(bundle / "models" / "model.ts")
    with torch.no_grad():
        expected = network(image)
        assert expected.std() > 0
        torch.testing.assert_close(exported(image), expected, atol=1e-4, rtol=0)
    assert torch.equal(exported.calibration.map_maxima, network.calibration.map_maxima)
    # ONNX, with other numbers of images than it was made with
    if (bundle / "models" / "model.onnx").is_file():
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(str(bundle / "models" / "model.onnx"))
        for images in (image[:1], torch.cat([image, image[:1]])):
            (found,) = session.run(["anomaly_map"], {"image": images.numpy()})
            with torch.no_grad():
                torch.testing.assert_close(torch.from_numpy(found), network(images), atol=1e-4, rtol=0)
    else:
        assert find_spec("onnxscript") is None
    # the same maps as those of the run
    run_bundle("inference", tmp_path / "out", tiny_cohort, bundle=bundle, overview_slices=0, progress=False)
    for case in (row["case"] for row in table(output / "predictions.csv")):
        maps = [np.asarray(nib.load(each / case / "anomaly_map.nii.gz").dataobj) for each in (output, tmp_path / "out")]
        np.testing.assert_array_equal(*maps)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("config", "kind"), [("train", "train"), ("inference", "infer"), ("evaluate", "infer")])
def test_no_property_is_missing(name: str, config: str, kind: str, trained: Path, tiny_cohort: Path) -> None:
    if (name, config) == ("patchcore", "train"):
        pytest.skip("PatchCore has no epochs: a memory is fitted, and MONAI requires a trainer")
    over = OVERLAYS.get(name, []) if config == "train" else []
    options = {**COMMON, **TINY[name]} if config == "train" else {"model_dir": str(trained / "models")}
    files = train_files(name, *over) if config == "train" else [str(BUNDLES / name / "configs" / f"{config}.yaml")]
    workflow = monai.bundle.ConfigWorkflow(
        config_file=files,
        workflow_type=kind,
        logging_file=False,
        bundle_root=str(BUNDLES / name),
        dataset_dir=str(tiny_cohort),
        output_dir=str(trained),
        **options,
    )
    workflow.initialize()
    assert workflow.check_properties() == []
