"""A case as one page with a viewer of its own: scan and map, offline, in any browser with WebGL 2."""

from __future__ import annotations

import base64
import gzip
import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from monai_anomaly.exceptions import InputError
from monai_anomaly.io.image_files import display_window
from monai_anomaly.io.weights import download_weights

__all__ = ["niivue_script", "viewer_page"]

# NiiVue of this version is what the page was tried with.
_NIIVUE = "https://registry.npmjs.org/@niivue/niivue/-/niivue-0.69.0.tgz"
_SHA256 = "6e9a6a471b428eb3b258a0086beca9187d95e43a781a39e8a519c6da246af485"
_SCRIPT = "package/dist/niivue.umd.js"
# Larger volumes are shown coarser, so that a page stays a few megabytes.
_MOST_VOXELS = 2_000_000


def niivue_script(source: str | Path | None = None) -> str:
    """NiiVue as one JavaScript file.

    Args:
        source: its ``niivue.umd.js``, or npm's package of it (``.tgz``); None: version 0.69.0 of npm, downloaded once
            into the user's cache and checked by its SHA-256.

    Raises:
        InputError: if there is no such file, it holds no NiiVue, or the download fails.
    """
    if source is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "monai_anomaly"
        try:
            path = download_weights("niivue", cache, _NIIVUE, _SHA256)
        except InputError as error:
            raise InputError(error.where, error.problem, "Fetch it elsewhere and pass --niivue FILE.") from error
    else:
        path = Path(source)
    try:
        if path.suffix == ".js":
            script = path.read_text(encoding="utf-8")
        else:
            with tarfile.open(path) as package:
                member = package.extractfile(_SCRIPT)
                script = "" if member is None else member.read().decode("utf-8")
    except (OSError, KeyError, UnicodeDecodeError, tarfile.TarError) as error:
        raise InputError(path, f"holds no NiiVue ({error})", "Pass niivue.umd.js or npm's .tgz of it.") from error
    # the page's own script ends where the parser sees this
    return script.replace("</script", "<\\/script")


def viewer_page(
    scan: np.ndarray,
    anomaly_map: np.ndarray,
    affine: np.ndarray,
    *,
    top: float,
    shown_above: float,
    title: str,
    facts: str,
    niivue: str,
) -> str:
    """The page.

    Args:
        scan: (X, Y, Z), shown between its usual percentiles.
        anomaly_map: (X, Y, Z); the page opens where it is highest.
        affine: (4, 4), voxel indices to RAS millimetres.
        top: the map's value at the top of the colours, which begin at 0.
        shown_above: where the slider stands at first: lower values are transparent.
        title: of the page.
        facts: one line, such as the score.
        niivue: the script.

    Returns:
        HTML. Volumes are in it as 8 bits, coarser where they have more than two million voxels: scans as means, maps
        as maxima of blocks.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    factors = _block(scan.shape)
    low, high = display_window(scan)
    coarse, found = (_reduced(array, factors, how) for array, how in ((scan, np.mean), (anomaly_map, np.max)))
    placed = affine @ np.diag([*map(float, factors), 1.0])
    placed[:3, 3] = (affine @ [*((np.array(factors) - 1) / 2), 1.0])[:3]
    peak = np.unravel_index(int(np.argmax(anomaly_map)), anomaly_map.shape)
    folder = Path(__file__).parent
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(
        (folder / "viewer.html.j2").read_text(encoding="utf-8")
    )
    return template.render(
        title=title,
        facts=facts,
        top=float(top),
        shown_above=float(shown_above),
        place=Markup([round(float(value), 3) for value in (affine @ [*peak, 1.0])[:3]]),
        scan=_volume(coarse, placed, float(low), float(max(high, low + 1e-6))),
        anomaly_map=_volume(found, placed, 0.0, float(top)),
        niivue=Markup(niivue),
        licence=Markup((folder / "niivue_license.txt").read_text(encoding="utf-8")),
    )


def _block(shape: Sequence[int]) -> tuple[int, ...]:
    """How many voxels along each axis become one: the finest axes first, until the volume is small enough."""
    factors, sizes = [1] * len(shape), list(shape)
    while np.prod(sizes) > _MOST_VOXELS:
        axis = int(np.argmax(sizes))
        factors[axis] += 1
        sizes[axis] = -(-shape[axis] // factors[axis])
    return tuple(factors)


def _reduced(array: np.ndarray, factors: tuple[int, ...], how: Callable[..., np.ndarray]) -> np.ndarray:
    from skimage.measure import block_reduce

    if max(factors) == 1:
        return array
    padded = np.pad(array, [(0, -size % factor) for size, factor in zip(array.shape, factors)], mode="edge")
    return block_reduce(padded, factors, how)


def _volume(array: np.ndarray, affine: np.ndarray, low: float, high: float) -> str:
    """8 bits between two values, as base64 of a compressed NIfTI file."""
    import nibabel

    levels = np.round(255 * np.clip((array - low) / (high - low), 0.0, 1.0)).astype(np.uint8)
    image = nibabel.Nifti1Image(levels, affine)
    image.header.set_slope_inter((high - low) / 255, low)
    image.header["cal_min"], image.header["cal_max"] = low, high
    return base64.b64encode(gzip.compress(image.to_bytes(), mtime=0)).decode()
