"""What ``monai.bundle run`` leaves unchecked: the command line, the bundle's folder, and plain error lines."""

from __future__ import annotations

import ast
import csv
import difflib
import inspect
import json
import logging
import pydoc
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from monai_anomaly.exceptions import InputError

__all__ = [
    "bundles_folder",
    "check_overrides",
    "check_run",
    "check_values",
    "literal",
    "setup_process",
    "tell_results",
    "train_and_evaluate",
]

logger = logging.getLogger(__name__)

# Arguments of `monai.bundle.run` itself, and those that MONAI's experiment tracking reads from the command line.
_RUN_ARGUMENTS = {"run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file"}
_TRACKING_ARGUMENTS = {"tracking_uri", "experiment_name", "run_name", "save_execute_config"}

# How MONAI wraps what a component's constructor raised.
_COMPONENT = re.compile(r"Failed to instantiate component '([^']+)'")


def bundles_folder() -> Path:
    """Where the package's bundles lie: in the wheel, or beside the package in a checkout.

    Raises:
        InputError: if they are in neither place.
    """
    package = Path(__file__).parent
    for folder in (package / "_bundles", package.parent / "bundles"):
        if folder.is_dir():
            return folder
    raise InputError(package, "the bundles are missing", "Install the package again.")


def check_run(bundle_root: str | Path, **required: Any) -> None:
    """Reject a run that could only go wrong later or, worse, go wrong unseen.

    Called first by every config. Errors of the input then end the program with one line and exit code 1.

    Args:
        bundle_root: must be the folder of a bundle (hold ``configs/metadata.json``).
        **required: options that must be given, by name.

    Raises:
        InputError: for a wrong ``bundle_root``, a missing option, or an override that names nothing in the configs or
            is of another kind than what it replaces.
    """
    _install_error_line()
    if _is_bundle_run(sys.argv) and (truths := _check_argv(sys.argv)):
        # MONAI has taken them for texts, and "false" would count as true: the run starts again with what they mean
        import fire
        from monai.bundle import run

        sys.argv += truths
        fire.Fire(run, command=sys.argv[2:])
        sys.exit()
    if not (Path(bundle_root) / "configs" / "metadata.json").is_file():
        raise InputError(
            f"bundle_root {bundle_root}", "not a bundle: it has no configs/metadata.json", "Pass --bundle_root FOLDER."
        )
    for name, value in required.items():
        if value is None:
            raise InputError(f"--{name}", "is not given", f"Pass --{name} PATH.")


def setup_process(seed: int, backend: str | None = None) -> None:
    """Seed everything once and, under torchrun, join the other processes.

    Args:
        seed: of the run.
        backend: of ``torch.distributed``; None for a single process.
    """
    from monai.utils import set_determinism

    set_determinism(seed)
    if backend is not None:
        import ignite.distributed as idist
        import torch.distributed as dist

        if not dist.is_initialized():
            dist.init_process_group(backend)
        # ignite asks all processes at once or it waits for ever.
        idist.sync()


def train_and_evaluate(
    bundle_root: str | Path,
    dataset_dir: str | Path,
    output_dir: str | Path,
    options: dict[str, Any],
    *,
    override_configs: Sequence[str] = (),
    seed: int = 0,
    num_workers: int = 2,
) -> None:
    """Run a bundle's ``train.yaml`` and ``evaluate.yaml``, and say what came out.

    Args:
        bundle_root: the bundle.
        dataset_dir: the cohort.
        output_dir: gets what both write.
        options: of the training.
        override configs: names of config files of the bundle that are merged over ``train.yaml``.
        seed: of the training.
        num_workers: threads.
    """
    import monai.bundle

    where = {"bundle_root": str(bundle_root), "dataset_dir": str(dataset_dir), "output_dir": str(output_dir)}
    train, *over, evaluate = (
        str(Path(bundle_root) / "configs" / f"{name}.yaml") for name in ("train", *override_configs, "evaluate")
    )
    # MONAI passes over overrides that are None.
    given = {name: "$None" if value is None else value for name, value in options.items()}
    monai.bundle.run(config_file=[train, *over], seed=seed, num_workers=num_workers, **where, **given)
    monai.bundle.run(config_file=evaluate, **where)
    tell_results(output_dir)


def tell_results(output_dir: str | Path) -> None:
    """Print what an evaluated run found and where to look.

    Args:
        output_dir: of the run; holds ``metrics.json``, ``predictions.csv`` and ``models``.
    """
    folder = Path(output_dir)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    method = metrics["settings"]["method"]["name"]
    values = {
        (row["level"], row["metric"]): row["value"]
        for row in metrics["figures"]
        if row["detector"] == method and not row["group"]
    }
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    most = max(rows, key=lambda row: float(row["anomaly_score"]))["case"]
    figures = "; ".join(
        f"{level} "
        + ", ".join(f"{name} {values[level, name]:.3f}" for name in names if values[level, name] is not None)
        for level, names in (("image", ("auroc", "ap")), ("pixel", ("auroc", "ap", "best_dice")))
    )
    # where borrowed weights are from stands wherever figures do
    borrowed = metrics["settings"]["method"]["borrowed_weights"]
    encoder = f" Weights: {borrowed}." if borrowed else ""
    print(
        f"""
{len(rows)} scans scored. {figures} (best_dice is an oracle over thresholds).{encoder}
Research use only, not for diagnosis. Where to look:
  {folder / "report.html"}  the evaluation as one page
  {folder / "predictions.csv"}  a score for each scan
  {folder / "metrics.json"}  the figures above
  {folder / "training" / "losses.png"}  the loss curves
  {folder / most / "overview.png"}  the most anomalous scan; its anomaly_map.nii.gz opens in 3D Slicer
  {folder / "models"}  the trained detector""",
        flush=True,
    )


def check_overrides(overrides: Sequence[str], config: dict[str, Any], where: str) -> None:
    """Reject an override that names nothing.

    Args:
        overrides: ids such as ``dataset_dir`` or ``network_def#channels``.
        config: the merged content of the config files.
        where: the config files, for the message.

    Raises:
        InputError: for the first id that is neither in the config nor an argument of a component there.
    """
    for override in overrides:
        at: Any = config
        for part in override.replace("::", "#").split("#"):
            known = (
                list(at) if isinstance(at, dict) else [str(i) for i in range(len(at))] if isinstance(at, list) else []
            )
            if isinstance(at, dict) and part not in at and "_target_" in at:
                arguments = _arguments(str(at["_target_"]))
                if arguments is None or part in arguments:
                    break
                known = arguments
            if part not in known:
                near = difflib.get_close_matches(part, known, n=1)
                hint = f"Did you mean {near[0]}?" if near else f"Known here: {', '.join(sorted(known))}."
                raise InputError(f"--{override}", f"{part} names nothing in {where}", hint)
            at = at[part] if isinstance(at, dict) else at[int(part)]


def check_values(values: dict[str, Any], config: dict[str, Any]) -> None:
    """Reject an override of another kind than the value that it replaces.

    Args:
        values: by id, such as ``{"max_epochs": 10}``; texts that MONAI evaluates (``$...``, ``@...``, ``%...``) pass.
        config: the merged content of the config files.

    Raises:
        InputError: for what is no truth value, number or list where the config has one, for a negative number of
            workers, and for a CUDA device where PyTorch finds none.
    """
    for name, value in values.items():
        if isinstance(value, str) and value[:1] in ("$", "@", "%"):
            continue
        default = _replaced(name, config)
        if isinstance(default, bool):
            wanted, fits = "True or False", isinstance(value, bool)
        elif isinstance(default, (int, float)):
            # a list of several levels is taken where one will do
            wanted, fits = f"a number such as {default}", not isinstance(value, (str, bool))
        elif isinstance(default, list):
            wanted, fits = f"a list such as {json.dumps(default)}", isinstance(value, (list, tuple, dict))
        else:
            continue
        if not fits:
            raise InputError(f"--{name}", f"cannot be {value!r}", f"Pass {wanted}.")
    if isinstance(workers := values.get("num_workers"), (int, float)) and workers < 0:
        raise InputError("--num_workers", f"cannot be {workers}", "Pass 0 or more.")
    if str(values.get("device", "")).startswith("cuda"):
        import torch

        if not torch.cuda.is_available():
            problem, remedy = "PyTorch finds no CUDA device here", "Pass --device cpu, or install a build with CUDA."
            raise InputError(f"--device {values['device']}", problem, remedy)


def _replaced(name: str, config: dict[str, Any]) -> Any:
    """What an override replaces; None where the config leaves it to a default."""
    at: Any = config
    for part in name.replace("::", "#").split("#"):
        at = at.get(part) if isinstance(at, dict) else at[int(part)] if isinstance(at, list) else None
    return at


def literal(text: str) -> Any:
    """A value as it is written on a command line.

    Args:
        text: a truth value in any case, another value as Python writes it, or any text.

    Returns:
        The value; the text itself where it is none.
    """
    truth = text.strip().capitalize()
    try:
        return ast.literal_eval(truth if truth in ("True", "False") else text)
    except (ValueError, SyntaxError):
        return text


def _arguments(target: str) -> list[str] | None:
    """The arguments of a component; None where they are not known or any will do."""
    from monai.bundle.config_item import ComponentLocator

    module = ComponentLocator().get_component_module_name(target)
    kind = pydoc.locate(f"{module}.{target}" if isinstance(module, str) else target)
    if not callable(kind):
        return None
    names: list[str] = []
    # what a class hands on as keywords is its base's
    for owner in [base for base in kind.__mro__ if "__init__" in vars(base)] if isinstance(kind, type) else [kind]:
        try:
            parameters = inspect.signature(owner).parameters.values()
        except (TypeError, ValueError):
            return None
        names += [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return names
    return None


def _is_bundle_run(argv: Sequence[str]) -> bool:
    return Path(argv[0]).parts[-3:] == ("monai", "bundle", "__main__.py") and argv[1:2] == ["run"]


def _check_argv(argv: Sequence[str]) -> list[str]:
    """Check the overrides of a command line; the truth values that MONAI takes for texts, as it understands them."""
    from monai.bundle import ConfigParser

    given: dict[str, str] = {}
    for argument, after in zip(argv, [*argv[1:], "--"]):
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            # an option without a value is true
            given[name.replace("-", "_")] = value if equals else "True" if after.startswith("--") else after
    arguments = dict(ConfigParser.load_config_files(literal(given["args_file"]))) if "args_file" in given else {}
    values = {**arguments, **{name: literal(text) for name, text in given.items()}}
    if (config_file := values.get("config_file")) is None:
        return []
    passed = _RUN_ARGUMENTS | (_TRACKING_ARGUMENTS if "tracking" in values else set())
    values = {name: value for name, value in values.items() if name not in passed and not name.startswith("_meta_")}
    for name, value in values.items():
        if value is None:
            raise InputError(f"--{name}", "MONAI passes over None on the command line", "Write '$None', in quotes.")
    names = [Path(f).name for f in ([config_file] if isinstance(config_file, str) else config_file)]
    config = ConfigParser.load_config_files(config_file)
    check_overrides(list(values), config, " + ".join(names))
    check_values(values, config)
    return [
        f"--{name}={value}"
        for name, value in values.items()
        if isinstance(value, bool)
        and given.get(name, str(value)) != str(value)
        and isinstance(_replaced(name, config), bool | None)
    ]


def _install_error_line() -> None:
    if getattr(sys.excepthook, "_of_monai_anomaly", False):
        return
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        chain: list[BaseException] = [error]
        while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
            chain.append(cause)
        for outer, cause in zip([None, *chain], chain):
            if isinstance(cause, InputError):
                print(f"error: {cause}", file=sys.stderr)
                return
            # A component that rejects a value was given a wrong option.
            if isinstance(cause, ValueError) and (component := _COMPONENT.match(str(outer))):
                print(f"error: {component[1]}: {' '.join(str(cause).split())}", file=sys.stderr)
                return
        previous(kind, error, trace)

    hook._of_monai_anomaly = True  # type: ignore[attr-defined]
    sys.excepthook = hook
