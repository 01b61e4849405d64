"""A page with a viewer for each case, as a transform of ``postprocessing``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import Transform

from monai_anomaly.report.viewer import niivue_script, viewer_page

__all__ = ["SaveViewerd"]

logger = logging.getLogger(__name__)


class SaveViewerd(Transform):
    """Have ``SaveCased`` write ``viewer.html`` into the case of a volume: scan and map to be scrolled through offline.

    The page names its case, and has the map's values and the scan's grey levels in 8 bits (the first channel). For 2-D
    images nothing is written, and the log says so.

    Args:
        niivue: see ``niivue_script``.

    Raises:
        InputError: if NiiVue can neither be read nor downloaded.
    """

    def __init__(self, niivue: str | Path | None = None) -> None:
        self.niivue = niivue_script(niivue)

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        if data["scan"].meta["scan_kind"] == "image":
            logger.warning(f"{data['item']['case']}: no viewer, since it is a 2-D image.")
            return data
        return {**data, "case_files": [*data.get("case_files", ()), partial(self._write, data)]}

    def _write(self, data: Mapping[str, Any], case: Path) -> None:
        threshold, highest = data.get("mask_settings", {}).get("threshold"), float(data["anomaly_map"].max())
        top = max(2 * threshold, 1e-6) if threshold else highest or 1.0
        p_value = data.get("p_value")
        page = viewer_page(
            data["scan"].as_tensor()[0].numpy(),
            data["anomaly_map"],
            np.asarray(data["scan"].affine, dtype=np.float64),
            top=top,
            shown_above=threshold or top / 10,
            title=data["item"]["case"],
            facts=f"score {data['anomaly_score']:.4g}" + ("" if p_value is None else f", p {p_value:.3g}"),
            niivue=self.niivue,
        )
        (case / "viewer.html").write_text(page, encoding="utf-8")
