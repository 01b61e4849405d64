"""Write the bundles' configs from one source, so that what they share is written once.

python .ci/make_bundles.py [--check]

``.ci/bundles/shared`` has what all bundles share, ``.ci/bundles/NAME`` what is one bundle's own; what a bundle shares
with none lies in its ``configs`` alone. A line ``#include PART`` stands for the file ``PART.yaml`` of the shared
folder, else of the bundle's own. Lines from ``#only FILE`` to ``#end`` go into that file alone, those
from ``#not FILE`` into all others.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import yaml

SOURCE = Path(__file__).parent / "bundles"
BUNDLES = Path(__file__).parents[1] / "bundles"
SHARED = SOURCE / "shared"
# Parts of files, which are no files of a bundle by themselves.
PARTS = {"network", "network_options"}


def expanded(text: str, own: Path, target: str) -> str:
    """A source's text with its parts put in."""
    lines: list[str] = []
    wanted = True
    for line in text.splitlines(keepends=True):
        word, _, name = line.strip().partition(" ")
        if word in ("#only", "#not"):
            wanted = (name == target) == (word == "#only")
        elif word == "#end":
            wanted = True
        elif not wanted:
            continue
        elif word == "#include":
            part = next(path for path in (SHARED / f"{name}.yaml", own / f"{name}.yaml") if path.is_file())
            lines.append(expanded(part.read_text(encoding="utf-8"), own, target))
        else:
            lines.append(line)
    return "".join(lines)


def metadata(own: Path) -> str:
    """``metadata.json``: the shared one with the bundle's own entries, and the image size of its options."""
    found = copy.deepcopy(json.loads((SHARED / "metadata.json").read_text(encoding="utf-8")))
    size = yaml.safe_load((own / "network_options.yaml").read_text(encoding="utf-8"))["image_size"]
    for end, key in (("inputs", "image"), ("outputs", "pred")):
        found["network_data_format"][end][key]["spatial_shape"] = size
    entries = json.loads((own / "metadata.json").read_text(encoding="utf-8"))
    return json.dumps({**found, **entries}, indent=4, ensure_ascii=False) + "\n"


def made() -> dict[Path, str]:
    """By file its content."""
    files: dict[Path, str] = {}
    for own in sorted(path for path in SOURCE.iterdir() if path != SHARED):
        configs = BUNDLES / own.name / "configs"
        sources = {path.name: path for path in own.glob("*.yaml") if path.stem not in PARTS}
        sources |= {"inference.yaml": SHARED / "detect.yaml", "evaluate.yaml": SHARED / "detect.yaml"}
        sources |= {name: SHARED / name for name in ("multi_gpu_train.yaml", "logging.conf")}
        for name, path in sources.items():
            files[configs / name] = expanded(path.read_text(encoding="utf-8"), own, name)
        files[configs / "metadata.json"] = metadata(own)
    return files


def main() -> int:
    """Write the files, or with ``--check`` name those that differ."""
    files = made()
    stale = [path for path, text in files.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(BUNDLES.parent)} is not what .ci/bundles says: run python .ci/make_bundles.py")
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[path], encoding="utf-8")
        print(path.relative_to(BUNDLES.parent))
    return 0


if __name__ == "__main__":
    sys.exit(main())
