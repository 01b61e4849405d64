"""Every switch that docs/fidelity.md names is an option that ``train.yaml`` takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from bundle_runs import BUNDLES
from monai.bundle import ConfigParser

from monai_anomaly.bundle import check_overrides

PAGE = (Path(__file__).parents[1] / "docs" / "fidelity.md").read_text(encoding="utf-8")
# Per section: the bundle, and the override config that its switches are options of.
SECTIONS = {
    "All methods": ("dae", []),
    "Denoising autoencoder": ("dae", []),
    "ProxyAno": ("proxyano", []),
    "DDR-ID": ("ddrid", []),
    "DCAE and Deep SVDD": ("ddrid", ["deep_svdd_soft_boundary"]),
    "ITAE": ("itae", []),
    "HFR-AE": ("hfrae", []),
    "DAAD": ("daad", []),
    "Autoencoder": ("baselines", []),
    "MemAE": ("baselines", ["memae"]),
    "GANomaly": ("baselines", ["ganomaly"]),
    "Intensity and z-score": ("baselines", ["zscore"]),
}
# Switches of another override config of the same section.
ELSEWHERE = {"network_def#bright": "intensity"}
NAME = re.compile(r"`(#?[a-z_]+(?:#[a-z_]+)*)`")


def switches(section: str) -> list[str]:
    """Ids in the last column of a section's first kind of table; ``#x`` repeats the prefix of the id before it."""
    text = re.split(r"^#{2,3} ", PAGE.split(f"# {section}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    found: list[str] = []
    for row in re.findall(r"^\|(.+)\|$", text, flags=re.MULTILINE):
        cells = re.split(r"(?<!\\)\|", row)
        if len(cells) != 3:
            continue
        prefix = ""
        for name in NAME.findall(re.sub(r"\([^)]*\)", "", cells[2])):
            whole = name if name[0] != "#" else prefix + name
            prefix = whole.rpartition("#")[0]
            found.append(whole)
    return found


@pytest.mark.parametrize("section", SECTIONS)
def test_the_switches_of_a_section_are_options(section: str) -> None:
    bundle, over = SECTIONS[section]
    # of inference.yaml, not of train.yaml
    names = [name for name in switches(section) if name not in ("alpha", "mask_rule")]
    assert len(names) >= 4
    for name in names:
        files = ["train", *([ELSEWHERE[name]] if name in ELSEWHERE else over)]
        paths = [str(BUNDLES / bundle / "configs" / f"{file}.yaml") for file in files]
        check_overrides([name], ConfigParser.load_config_files(paths), f"{bundle}: {' + '.join(files)}")


def test_a_switch_that_is_none_is_told() -> None:
    config = ConfigParser.load_config_file(str(BUNDLES / "dae" / "configs" / "train.yaml"))
    with pytest.raises(Exception, match="names nothing"):
        check_overrides(["network_def#no_such"], config, "train.yaml")
