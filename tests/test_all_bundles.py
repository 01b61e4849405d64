"""What holds for every bundle: MONAI's tools, the whole way from scans to maps, exports, files that come back."""

from __future__ import annotations

import json
import shutil
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
# What a quickstart lays over train.yaml.
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


@pytest.fixture(scope="module", params=NAMES)
def tiny_quickstart(
    request: pytest.FixtureRequest, tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A bundle's name and the output folder of its quickstart on the tiny cohort, at a tiny size."""
    name = request.param
    output = tmp_path_factory.mktemp(name)
    content = ConfigParser.load_config_file(str(BUNDLES / name / "configs" / "quickstart.yaml"))
    known = ConfigParser.load_config_files(train_files(name, *OVERLAYS.get(name, [])))
    check_overrides(list(content["small"]), known, "train.yaml")
    small = {**COMMON, **TINY[name]}
    small.pop("num_workers")
    options = {"run#0": "$None", "cohort_dir": str(tiny_cohort), "num_workers": 1, "small": small}
    run_bundle("quickstart", output, bundle=BUNDLES / name, **options)
    return name, output


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
def test_a_quickstart_gives_every_case_its_files_on_its_own_grid(
    tiny_quickstart: tuple[str, Path], tiny_cohort: Path
) -> None:
    _, output = tiny_quickstart
    rows = table(output / "predictions.csv")
    assert len(rows) == 5
    assert all(np.isfinite(float(row["anomaly_score"])) for row in rows)
    assert (output / "metrics.json").is_file()
    for item in load_cohort(tiny_cohort).test:
        written = nib.load(output / item["case"] / "anomaly_map.nii.gz")
        assert np.isfinite(written.get_fdata()).all()
        if not Path(item["image"]).is_dir():
            source = nib.load(item["image"])
            assert written.shape == source.shape
            assert np.abs(written.affine - source.affine).max() == 0


@pytest.mark.slow
def test_a_detector_comes_back_to_the_bit_in_another_process(tiny_quickstart: tuple[str, Path], tmp_path: Path) -> None:
    _, output = tiny_quickstart
    network = load_detector(output / "models").network
    torch.save(image_of(network), tmp_path / "image.pt")
    script = f"""
import torch
torch.set_num_threads({torch.get_num_threads()})
from monai_anomaly.engines import load_detector
with torch.no_grad():
    found = load_detector({str(output / "models")!r}).network.detect(torch.load({str(tmp_path / "image.pt")!r}))
torch.save([found.anomaly_map, found.anomaly_score], {str(tmp_path / "found.pt")!r})
"""
    done = command("-c", script, folder=tmp_path, OMP_NUM_THREADS=str(torch.get_num_threads()))
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = network.detect(image_of(network))
    found = torch.load(tmp_path / "found.pt")
    assert torch.equal(found[0], expected.anomaly_map)
    assert torch.equal(found[1], expected.anomaly_score)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torchscript", "onnx"])
@pytest.mark.filterwarnings("ignore")
def test_exported_detectors_equal_the_detector(tiny_quickstart: tuple[str, Path], tmp_path: Path, kind: str) -> None:
    name, output = tiny_quickstart
    network = load_detector(output / "models").network
    image = image_of(network)
    with torch.no_grad():
        expected = network(image)
    assert expected.std() > 0
    configs = BUNDLES / name / "configs"
    options = {
        "net_id": "network_def",
        "ckpt_file": str(output / "models" / "model.pt"),
        "meta_file": str(configs / "metadata.json"),
        "config_file": str(configs / "inference.yaml"),
        "model_dir": str(output / "models"),
    }
    if kind == "torchscript":
        monai.bundle.ckpt_export(filepath=str(tmp_path / "model.ts"), **options)
        with torch.no_grad():
            exported = torch.jit.load(tmp_path / "model.ts")
            found = exported(image)
        assert torch.equal(exported.calibration.map_maxima, network.calibration.map_maxima)
    else:
        onnxruntime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        monai.bundle.onnx_export(filepath=str(tmp_path / "model.onnx"), input_shape=list(image.shape), **options)
        session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: image.numpy()})[0])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_packaged_detector_passes_the_checks_of_the_model_zoo(
    tiny_quickstart: tuple[str, Path], tiny_cohort: Path, real_data: Path, tmp_path: Path
) -> None:
    _, output = tiny_quickstart
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
    # TorchScript, as it is made anew and as it lies there
    monai.bundle.ckpt_export(filepath=str(tmp_path / "verify.ts"), ckpt_file=str(bundle / "models/model.pt"), **options)
    network = load_detector(bundle / "models").network
    image = image_of(network)
    with torch.no_grad():
        expected = network(image)
        for path in (tmp_path / "verify.ts", bundle / "models" / "model.ts"):
            torch.testing.assert_close(torch.jit.load(path)(image), expected, atol=1e-4, rtol=0)
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
