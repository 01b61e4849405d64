"""A trained detector as a MONAI bundle of its own: configs, weights, exports and a page, as in MONAI's model zoo."""

from __future__ import annotations

import copy
import json
import re
import shutil
import tempfile
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml

from monai_anomaly import __version__
from monai_anomaly.bundle import bundles_folder
from monai_anomaly.calibration import least_normals
from monai_anomaly.engines import DetectorFiles, load_detector
from monai_anomaly.exceptions import InputError
from monai_anomaly.io.atomic import atomic_folder, atomic_path
from monai_anomaly.io.content import content_hash
from monai_anomaly.io.tables import write_json
from monai_anomaly.metrics import Figure, FigureTable
from monai_anomaly.networks import AnomalyDetector

__all__ = ["detector_metadata", "export_onnx", "package_detector"]

# Where the configs of our bundles look for a detector, and where it lies in a bundle of its own.
_OF_A_RUN, _OF_A_BUNDLE = "model_dir: $@output_dir + '/models'", "model_dir: $@bundle_root + '/models'"
# Of an evaluation, by level, what a page and the metadata tell.
_TOLD = {"image": ("auroc", "ap"), "pixel": ("auroc", "ap", "best_dice")}
# Files of weights, by suffix.
_WEIGHTS = (".pt", ".ts", ".onnx")
# Rates whose thresholds go with the ONNX file, as far as the calibration carries them.
_RATES = (0.01, 0.05, 0.1, 0.2)


def package_detector(
    run: str | Path,
    destination: str | Path,
    bundle: str | Path | None = None,
    figure: str | Path | None = None,
    data_license: str | Path | None = None,
    large_files: str | None = None,
) -> list[str]:
    """Make a bundle of a trained detector, which works wherever it is copied to.

    It holds the configs of the bundle that it was trained with and the metadata of this detector, ``models/`` as the
    training left it, ``model.ts`` and, with the extra ``onnx``, ``model.onnx``, a page, and the licences. No scan of
    the cohort goes in.

    Args:
        run: the ``output_dir`` of a training; an evaluation of the same detector there is told on the page.
        destination: the folder to write, or a file that ends with ``.zip``, which holds that folder.
        bundle: the bundle that it was trained with; None: ours for this network.
        figure: an image for the page, beside the loss curves.
        data_license: a text on the training scans' licence; None: a text that says it was not stated.
        large_files: address that the weights will be at. They are then written to a folder of their own beside
            ``destination``, whose content is to be put there, and the bundle has ``large_files.yml``, by which MONAI's
            ``download_large_files`` gets them.

    Returns:
        What was left out, and where weights are that are not in the bundle, a line each.

    Raises:
        InputError: if there is no detector, ``destination`` exists, no bundle is known for the network, or a named
            file is missing.
    """
    run, destination = Path(run), Path(destination)
    aside = destination.with_name(f"{destination.stem}_large_files")
    for place in (destination, *([aside] if large_files else [])):
        if place.exists():
            raise InputError(place, "exists already", "Name another place, or remove it first.")
    for path in (figure, data_license):
        if path is not None and not Path(path).is_file():
            raise InputError(path, "no such file", "Check the path.")
    files = load_detector(run / "models")
    source = _bundle_of(files) if bundle is None else Path(bundle)
    if not (source / "configs" / "metadata.json").is_file():
        raise InputError(source, "not a bundle: it has no configs/metadata.json", "Name a bundle's folder.")
    zipped = destination.suffix.lower() == ".zip"
    with ExitStack() as stack:
        if zipped:
            archive = stack.enter_context(atomic_path(destination))
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / destination.stem
            folder.mkdir()
        else:
            folder = stack.enter_context(atomic_folder(destination))
        name = destination.stem if zipped else destination.name
        left_out = _fill(folder, name, run, source, files, figure, data_license, large_files)
        if large_files:
            _set_aside(folder, stack.enter_context(atomic_folder(aside)), large_files)
            left_out.append(f"{aside}: put its content to {large_files}")
        if zipped:
            shutil.make_archive(str(archive.with_suffix("")), "zip", folder.parent, folder.name)
    return left_out


def _set_aside(folder: Path, aside: Path, url: str) -> None:
    """Move the weights out of a bundle, and list them as the model zoo does."""
    listed = []
    for path in sorted(path for path in (folder / "models").rglob("*") if path.suffix in _WEIGHTS):
        name = path.relative_to(folder).as_posix()
        address = f"{url.rstrip('/')}/{name}"
        listed.append({"path": name, "url": address, "hash_val": content_hash(str(path)), "hash_type": "sha256"})
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, aside / name)
    (folder / "large_files.yml").write_text(yaml.safe_dump({"large_files": listed}, sort_keys=False), encoding="utf-8")


def detector_metadata(shipped: dict[str, Any], files: DetectorFiles, eval_metrics: dict[str, float]) -> dict[str, Any]:
    """``metadata.json`` of one detector.

    Args:
        shipped: that of the bundle that it was trained with.
        files: the detector.
        eval_metrics: its figures by name; empty where it was not evaluated.

    Returns:
        The same with the size and channels of what this detector takes and gives, and the versions that are installed.
    """
    metadata = copy.deepcopy(shipped)
    size, channels = files.preprocessing.config["image_size"], files.network.in_channels
    image = metadata["network_data_format"]["inputs"]["image"]
    names = ["image"] if channels == 1 else [f"image {i + 1}" for i in range(channels)]
    image.update(num_channels=channels, spatial_shape=size, channel_def={str(i): name for i, name in enumerate(names)})
    metadata["network_data_format"]["outputs"]["pred"].update(
        num_channels=1, spatial_shape=size, channel_def={"0": "background", "1": "anomaly"}
    )
    metadata["eval_metrics"] = eval_metrics
    for key, package in (("monai_version", "monai"), ("pytorch_version", "torch"), ("numpy_version", "numpy")):
        metadata[key] = _version(package)
    metadata["required_packages_version"] = {name: _version(name) for name in metadata["required_packages_version"]}
    if (sides := _sides(files)) is not None:
        metadata["data_source"] = f"{sides}; they are not part of the bundle"
    return metadata


def export_onnx(network: AnomalyDetector, size: list[int], path: str | Path, properties: dict[str, str]) -> None:
    """Write a detector as one ONNX file: input ``image`` (B, C, *size), output ``anomaly_map`` (B, 1, *size).

    Args:
        network: the detector, in eval mode on the CPU.
        size: spatial shape of its input; the batch size stays free.
        path: the file to write.
        properties: go into the file's ``metadata_props``.
    """
    import onnx
    from monai.networks import convert_to_onnx

    # two images: a batch of one would be taken for a constant
    sample = torch.rand(2, network.in_channels, *size, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as place:  # the exporter may lay the weights beside its file
        model = convert_to_onnx(
            network,
            [sample],
            input_names=["image"],
            output_names=["anomaly_map"],
            dynamic_axes={"image": {0: "batch"}, "anomaly_map": {0: "batch"}},
            filename=str(Path(place) / "model.onnx"),
            verbose=False,
        )
    # where this machine keeps its sources
    for node in model.graph.node:
        del node.metadata_props[:]
    onnx.helper.set_model_props(model, properties)
    onnx.save(model, str(path))


def _fill(
    folder: Path,
    name: str,
    run: Path,
    source: Path,
    files: DetectorFiles,
    figure: str | Path | None,
    data_license: str | Path | None,
    large_files: str | None,
) -> list[str]:
    import monai.bundle

    configs, models, docs = (folder / part for part in ("configs", "models", "docs"))
    shutil.copytree(source / "configs", configs)
    for config in (configs / "inference.yaml", configs / "evaluate.yaml"):
        text = config.read_text(encoding="utf-8")
        if text.count(_OF_A_RUN) != 1:
            raise InputError(source / "configs" / config.name, f"has no line {_OF_A_RUN}", "Give it that line.")
        config.write_text(text.replace(_OF_A_RUN, _OF_A_BUNDLE), encoding="utf-8")
    shutil.copytree(run / "models", models)
    if (source / "LICENSE").is_file():
        shutil.copy(source / "LICENSE", folder)
    figures = _figures(run, files)
    shipped = json.loads((configs / "metadata.json").read_text(encoding="utf-8"))
    told = {f"{row.level}_{row.metric}": round(row.value, 4) for row in figures if row.value is not None}
    metadata = detector_metadata(shipped, files, told)
    write_json(configs / "metadata.json", metadata)
    monai.bundle.ckpt_export(
        net_id="network_def",
        filepath=str(models / "model.ts"),
        ckpt_file=str(models / "model.pt"),
        meta_file=str(configs / "metadata.json"),
        config_file=str(configs / "inference.yaml"),
        bundle_root=str(folder),
    )
    left_out = []
    if find_spec("onnx") is None or find_spec("onnxscript") is None:
        left_out.append('models/model.onnx is left out: it needs onnx (pip install "monai-anomaly[onnx]").')
    else:
        size = files.preprocessing.config["image_size"]
        export_onnx(files.network, size, models / "model.onnx", _properties(metadata, files))
    docs.mkdir()
    images = {}
    if (run / "training" / "losses.png").is_file():
        images["losses.png"] = "Loss curves of the training"
        shutil.copy(run / "training" / "losses.png", docs)
    if figure is not None:
        shown = f"figure{Path(figure).suffix.lower()}"
        images[shown] = "A result"
        shutil.copy(figure, docs / shown)
    if data_license is None:
        (docs / "data_license.txt").write_text(_data_license(files), encoding="utf-8")
    else:
        shutil.copy(data_license, docs / "data_license.txt")
    page = source / "docs" / "README.md"
    method = _section(page.read_text(encoding="utf-8"), "Model") if page.is_file() else ""
    text = _page(name, metadata, method, files, figures, images, large_files)
    (docs / "README.md").write_text(text, encoding="utf-8")
    return left_out


def _bundle_of(files: DetectorFiles) -> Path:
    """Our bundle that trains a network of this kind: the one whose default it is, else one with a config for it."""
    name = files.description["network"]["name"]
    kind = re.compile(rf"_target_: monai_anomaly\.networks\.{re.escape(name)}\s")
    bundles = sorted(path for path in bundles_folder().iterdir() if (path / "configs").is_dir())
    for files_of_a_kind in ("train.yaml", "*.yaml"):
        for bundle in bundles:
            if any(kind.search(path.read_text("utf-8")) for path in (bundle / "configs").glob(files_of_a_kind)):
                return bundle
    raise InputError(f"network {name}", "none of our bundles trains it", "Name its bundle: --bundle FOLDER.")


def _figures(run: Path, files: DetectorFiles) -> list[Figure]:
    """What the run's evaluation says of this very detector; nothing where there is none."""
    path = run / "metrics.json"
    if not path.is_file():
        return []
    metrics = json.loads(path.read_text(encoding="utf-8"))
    method = metrics["settings"]["method"]
    if files.description["model_sha256"] not in method["weights"]:
        return []
    table = FigureTable(metrics["figures"])
    found = [table.find(method["name"], level, metric) for level, names in _TOLD.items() for metric in names]
    return [figure for figure in found if figure is not None]


def _properties(metadata: dict[str, Any], files: DetectorFiles) -> dict[str, str]:
    """What goes with the ONNX file, whose calibration is no part of its graph."""
    calibration = files.network.calibration
    patients = int(calibration.scores.numel())
    thresholds = {
        f"{rate:g}": {
            "map": calibration.map_threshold(rate),
            "map_per_voxel": calibration.voxel_threshold(rate),
            "score": calibration.score_threshold(rate),
        }
        for rate in _RATES
    }
    rules = (
        "By alpha. map: at most alpha of normal patients have any voxel above it, on the scan's own grid. "
        "map_per_voxel: about alpha of normal tissue voxels lie above it. score: at most alpha of normal patients have "
        "a score above it. null: the calibration patients are too few."
    )
    return {
        "name": metadata["name"],
        "description": metadata["description"],
        "version": metadata["version"],
        "intended_use": metadata["intended_use"],
        "preprocessing": json.dumps(files.preprocessing.config),
        "calibration_patients": str(patients),
        "thresholds": json.dumps(thresholds),
        "thresholds_are": rules,
        "model_sha256": files.description["model_sha256"],
    }


def _version(package: str) -> str:
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        if package != "monai-anomaly":
            raise InputError(package, "is not installed", f"pip install {package}") from None
        return __version__  # a checkout that is not installed


def _sides(files: DetectorFiles) -> str | None:
    """How many scans a detector was trained and calibrated on, in words; None for one of an older version."""
    split = files.description["training"].get("split")
    if split is None:
        return None
    words = [
        f"{split['sides'][side]['scans']} of {split['sides'][side]['patients']} patients for {side}"
        for side in ("training", "validation", "calibration")
        if split["sides"].get(side, {}).get("scans")
    ]
    return f"normal scans: {', '.join(words)}"


def _section(page: str, title: str) -> str:
    """The text below a heading of a page, up to the next one."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return found[1].strip() if found else ""


def _data_license(files: DetectorFiles) -> str:
    lines = ["Data", "----", f"Made from {_sides(files) or 'normal scans'}."]
    lines += ["Their licence was not stated when this bundle was made. State it here before you pass the bundle on."]
    if borrowed := files.network.borrowed_weights():
        lines += ["", "Weights", "-------", borrowed]
    return "\n".join(lines) + "\n"


def _page(
    name: str,
    metadata: dict[str, Any],
    method: str,
    files: DetectorFiles,
    figures: list[Figure],
    images: dict[str, str],
    large_files: str | None,
) -> str:
    """The bundle's page, from the files of the run alone."""
    training, config = files.description["training"], files.preprocessing.config
    size = " x ".join(map(str, config["image_size"]))
    patients = files.description["calibration_patients"]
    unit = "volumes" if files.preprocessing.spatial_dims == 3 else f"{config['slice_axis']} slices or 2-D images"
    channels = metadata["network_data_format"]["inputs"]["image"]["num_channels"]
    stages = [
        f"- {stage['stage']}: epochs {epochs}, batch size {stage['batch_size']}"
        for stage, epochs in zip(training.get("stages", []), training.get("epochs", []))
    ]
    if figures:
        rows = [
            f"| {row.level} | {row.metric} | {_number(row.value)} | {_interval(row)} | {row.n} |" for row in figures
        ]
        performance = ["| level | metric | value | 95 % interval | n |", "|---|---|---|---|---|", *rows]
        performance += ["", "On test scans of other patients; n: scans or pixels; `best_dice`: an oracle."]
    else:
        performance = ["Not evaluated."]
    least = f"{1 / (patients + 1):.3g}" if patients else ""
    rate = f"Calibrated on {patients} normal patients: masks at `alpha` {least} and above."
    if patients < least_normals(0.05):
        rate += " The default, 0.05, needs 19 and is rejected." if patients else ""
    if not patients:
        rate = "Not calibrated: maps and scores alone, no masks."
    parts = [
        f"# {metadata['name']}",
        metadata["description"],
        *[f"![{text}]({file})" for file, text in images.items()],
        *(["## Model", method] if method else []),
        "## Data",
        f"Made from {_sides(files) or 'normal scans'}. See `data_license.txt`.",
        "## System configuration",
        "\n".join(
            [
                f"- input: {channels} channel(s), {unit} of {size}, percentiles {config['percentiles']} of the "
                "foreground to [0, 1]",
                "- output: the anomaly map, on the same grid; the configs lay it on the scan's own voxels",
                *stages,
                f"- seed {training.get('seed')}",
                f"- monai-anomaly {files.description['version']} (training); at packaging MONAI "
                f"{metadata['monai_version']}, PyTorch {metadata['pytorch_version']}",
                "- the hardware and the duration of the training were not recorded",
            ]
        ),
        "## Performance",
        "\n".join(performance),
        rate,
        "## How to run",
        "`B` is this folder."
        + " Get the weights: `python -m monai.bundle download_large_files --bundle_path B`." * bool(large_files),
        "```bash\n"
        f'pip install "monai-anomaly=={metadata["required_packages_version"].get("monai-anomaly", "")}"\n'
        "python -m monai.bundle run --config_file B/configs/inference.yaml --bundle_root B --dataset_dir SCANS "
        "--output_dir OUT\n```",
        f"In MONAI Label copy it to `model/{name}` of the app `monaibundle`.",
        "## References",
        "\n\n".join(f"[{i + 1}] {text}" for i, text in enumerate(metadata.get("references", []))),
        "## License",
        f"The code and configs: Apache License 2.0, see `LICENSE`. {metadata['intended_use']}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _interval(row: Figure) -> str:
    return "" if row.low is None or row.high is None else f"{row.low:.3f} to {row.high:.3f}"
