"""Which detector to take for one's own scans: equal short trainings, compared by lesions put into held-out normals."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import torch
from ignite.engine import Events
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score
from tqdm import tqdm

from monai_anomaly.bundle import setup_process
from monai_anomaly.data.slices import SliceDataset, describe_failure
from monai_anomaly.engines import SyntheticLesionSelection, read_evaluations, still_improving, train_stages
from monai_anomaly.exceptions import InputError
from monai_anomaly.io.atomic import ensure_writable
from monai_anomaly.io.tables import write_csv

from .suites import Method, load_methods
from .training import merged_config

__all__ = ["DEFAULT_METHODS", "Candidate", "recommend", "recommendation_text"]

logger = logging.getLogger(__name__)

# By key of methods.yaml; with a file of ImageNet weights, hfrae and patchcore take the place of the ..._own_encoder.
DEFAULT_METHODS = (
    "dae",
    "patchcore_own_encoder",
    "hfrae_own_encoder",
    "proxyano",
    "itae",
    "daad",
    "ddrid",
    "autoencoder",
    "intensity",
    "zscore",
)
# Options of a train.yaml that count epochs; they are scaled alike, so that a schedule keeps its form.
_EPOCHS = ("max_epochs", "pretrain_epochs", "pretraining_epochs", "proxy_epochs", "lr_milestones", "halving_interval")
_RESAMPLES = 200
# Pixels of an image that the resampled AP is of.
_PIXELS = 4096


@dataclass
class Candidate:
    """A detector of the comparison.

    Attributes:
        method: its key.
        title: its name.
        minutes: of training; CPU time on a CPU.
        epochs: of its stages.
        under_trained: stages that were stopped while they still improved.
        pixel_ap: average precision on the pixels of synthetic lesions; None where the detector failed.
        low: of its 95 % bootstrap interval over validation scans.
        high: of it.
        best: share of the resamples in which it is the best.
        labelled_auroc: image AUROC on the labelled scans, where there are any.
        labelled_ap: pixel AP on them.
        error: why it failed, or empty.
    """

    method: str
    title: str
    minutes: float = 0.0
    epochs: str = ""
    under_trained: str = ""
    pixel_ap: float | None = None
    low: float | None = None
    high: float | None = None
    best: float | None = None
    labelled_auroc: float | None = None
    labelled_ap: float | None = None
    error: str = ""


def recommend(
    dataset_dir: str | Path,
    out: str | Path,
    methods: Sequence[str] = DEFAULT_METHODS,
    *,
    minutes: float = 5.0,
    labelled: str | Path | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    scale: str = "small",
    seed: int = 0,
    progress: bool = True,
) -> list[Candidate]:
    """Train detectors for the same time on the same normals, and compare them.

    The validation scans are held out by patient and are the same for all. No diseased scan is needed, and those of
    ``labelled`` choose nothing here.

    Args:
        dataset_dir: the cohort, as for ``train.yaml``.
        out: gets a folder for each detector, and ``recommend.csv``.
        methods: keys of ``methods.yaml``.
        minutes: of training for each.
        labelled: a further cohort whose ``test`` has labels, and masks or not: each detector is evaluated on it.
        options: by method, or ``"*"``, overrides of its ``train.yaml``.
        scale: of widths: ``"small"`` (CPU) or ``"paper"``.
        seed: of the split and the trainings.
        progress: show a bar over the detectors.

    Returns:
        The candidates, best first.

    Raises:
        InputError: for an unknown method, or a cohort without validation patients.
    """
    known, out = load_methods(), Path(out)
    for key in methods:
        if key not in known:
            raise InputError("--methods", f"{key!r} is no method", f"Choose of {', '.join(known)}.")
    ensure_writable(out)
    candidates, pixels = [], {}
    for key in tqdm(methods, desc="detectors", unit="detector", disable=not progress):
        given = {**(options or {}).get("*", {}), **(options or {}).get(key, {})}
        folder, candidate = out / key, Candidate(key, known[key].title)
        candidates.append(candidate)
        common = {
            "dataset_dir": str(dataset_dir),
            "output_dir": str(folder),
            "cache_dir": str(out / "cache"),
            "calibration_fraction": 0.0,
            "validation_fraction": 0.25,
            "seed": seed,
            "num_workers": 1,
            "progress": False,
        }
        try:
            training = _trained(known[key], {**common, **given}, candidate, 60 * minutes, scale, seed)
            held_out = training.data.held_out
            selection = SyntheticLesionSelection(held_out, training.data.train_dataset, training.inferer.batch_size)
            pixels[key] = (selection, *selection.pixels(training.network))
            if labelled is not None:
                _evaluate(known[key], folder, labelled, candidate)
        except (Exception, SystemExit) as error:
            # one detector that fails, for want of weights or memory, does not keep the others from being compared
            candidate.error = describe_failure(error)
            logger.error(f"{key} failed: {candidate.error}")
    if not pixels:
        raise InputError(dataset_dir, f"no detector could be compared ({candidates[0].error})", "Correct that first.")
    _compare(candidates, pixels, seed)
    candidates.sort(key=lambda c: (c.pixel_ap is None, -(c.pixel_ap or 0.0)))
    write_csv(out / "recommend.csv", [asdict(c) for c in candidates], list(Candidate.__dataclass_fields__))
    return candidates


def _trained(
    method: Method, overrides: Mapping[str, Any], candidate: Candidate, seconds: float, scale: str, seed: int
) -> Any:
    """The training of a method, run for about so many seconds."""
    base = {**method.options, **method.scales.get(scale, {}), **overrides}
    parser = merged_config(method.files, base)
    counts = {name: parser.get_parsed_content(name) for name in _EPOCHS if name in parser.config}
    whole = [stage.state.max_epochs for stage in parser.get_parsed_content("stages")]
    if whole:
        # the second epoch of each stage tells how many there is time for: a first one may fill caches
        single = {name: 2 for name in counts if name not in ("lr_milestones", "halving_interval")}
        trial = merged_config(method.files, {**base, **single})
        setup_process(seed)
        stages, spent = trial.get_parsed_content("stages"), []
        for stage in stages:
            second = Events.EPOCH_STARTED(once=2), Events.EPOCH_COMPLETED(once=2)
            stage.add_event_handler(second[0], lambda _: spent.append(-_clock()))
            stage.add_event_handler(second[1], lambda _: spent.append(spent.pop() + _clock()))
        network = trial.get_parsed_content("network")
        folder = Path(base["output_dir"]) / "trial"
        train_stages(stages, network, folder, seed=seed, resume=False, progress=False)
        factor = seconds / max(1e-6, sum(epochs * one for epochs, one in zip(whole, spent)))
        base |= {name: _scaled(value, factor) for name, value in counts.items()}
        parser = merged_config(method.files, base)
    setup_process(seed)
    training = parser.get_parsed_content("training")
    if training.data.held_out is None:
        raise InputError(base["dataset_dir"], "has no validation patients", "Give at least two normal patients.")
    start = _clock()
    history = training.run()
    candidate.minutes = (_clock() - start) / 60
    candidate.epochs = " + ".join(str(stage.state.max_epochs) for stage in training.stages)
    candidate.under_trained = ", ".join(still_improving(history))
    return training


def _scaled(value: Any, factor: float) -> Any:
    if isinstance(value, list):
        return [max(1, round(epoch * factor)) for epoch in value]
    return max(1, round(value * factor))


def _clock() -> float:
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def _evaluate(method: Method, folder: Path, labelled: str | Path, candidate: Candidate) -> None:
    root = method.files[0].parents[1]
    found = folder / "labelled"
    monai.bundle.run(
        config_file=str(root / "configs" / "evaluate.yaml"),
        bundle_root=str(root),
        dataset_dir=str(labelled),
        model_dir=str(folder / "models"),
        output_dir=str(found),
        progress=False,
    )
    (evaluation,) = read_evaluations([found]).values()
    name, figures = evaluation["settings"]["method"]["name"], evaluation["figures"]
    candidate.labelled_auroc = figures.value(name, "image", "auroc")
    candidate.labelled_ap = figures.value(name, "pixel", "ap")


def _compare(candidates: Sequence[Candidate], pixels: Mapping[str, tuple[Any, ...]], seed: int) -> None:
    """Pixel AP of each, its interval, and how often it is the best when validation scans are drawn anew."""
    random = np.random.default_rng(seed)
    selection = next(iter(pixels.values()))[0]
    dataset: SliceDataset = selection.held_out
    scans = dataset.scan_of[selection.indices]
    members = [np.flatnonzero(scans == scan) for scan in np.unique(scans)]
    draws = [
        np.concatenate([members[i] for i in random.integers(len(members), size=len(members))])
        for _ in range(_RESAMPLES)
    ]
    kept = [random.permutation(len(mask))[:_PIXELS] for mask in next(iter(pixels.values()))[1]]
    resampled = {}
    for candidate in candidates:
        if candidate.method not in pixels:
            continue
        _, truth, (found,) = pixels[candidate.method]
        candidate.pixel_ap = float(average_precision_score(np.concatenate(truth), np.concatenate(found)))
        few_truth = [mask[places] for mask, places in zip(truth, kept)]
        few_found = [values[places] for values, places in zip(found, kept)]
        values = []
        for draw in draws:
            mask = np.concatenate([few_truth[i] for i in draw])
            values.append(
                average_precision_score(mask, np.concatenate([few_found[i] for i in draw])) if mask.any() else 0.0
            )
        resampled[candidate.method] = np.array(values)
        low, high = np.quantile(values, [0.025, 0.975])
        candidate.low, candidate.high = float(low), float(high)
    winners = np.array(list(resampled))[np.stack(list(resampled.values())).argmax(axis=0)]
    for candidate in candidates:
        if candidate.method in resampled:
            candidate.best = float((winners == candidate.method).mean())


def recommendation_text(candidates: Sequence[Candidate]) -> str:
    """The comparison as a table, and one sentence that says which to take and how sure that is.

    Args:
        candidates: of ``recommend``.
    """
    lines = [
        f"{'detector':34} {'synthetic-lesion AP':>24} {'best in':>8} {'minutes':>8} {'labelled AUROC / AP':>20}",
    ]
    for one in candidates:
        if one.pixel_ap is None:
            lines.append(f"{one.title:34} failed: {one.error}")
            continue
        interval = f"{one.pixel_ap:.3f} ({one.low:.3f} to {one.high:.3f})"
        shown = " / ".join("-" if v is None else f"{v:.3f}" for v in (one.labelled_auroc, one.labelled_ap))
        title = one.title + (" †" if one.under_trained else "")
        lines.append(f"{title:34} {interval:>24} {one.best:>8.0%} {one.minutes:>8.1f} {shown:>20}")
    best = candidates[0]
    sure = "clearly" if (best.best or 0) >= 0.95 else "probably" if (best.best or 0) >= 0.8 else "by a narrow margin"
    lines += [
        "",
        "† stopped while it still improved (under-trained): more minutes may change its rank.",
        f"Take {best.title}: {sure} the best on synthetic lesions (first in {best.best:.0%} of the resamples). Real "
        "lesions may rank the detectors otherwise; compare on labelled scans where there are some (--labelled).",
    ]
    pairs = [(c.pixel_ap, c.labelled_ap) for c in candidates if c.pixel_ap is not None and c.labelled_ap is not None]
    if len(pairs) > 2:
        synthetic, real = np.array(pairs).T
        rank, regret = float(spearmanr(synthetic, real).statistic), float(real.max() - real[0])
        lines.append(
            f"On the labelled scans: rank correlation {rank:.2f}; the one recommended has a pixel AP "
            f"{regret:.3f} below the best."
        )
    return "\n".join(lines)
