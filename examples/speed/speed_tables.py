"""The measurements as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from speed import speed_plan

__all__ = ["render_speed", "section_text"]


def render_speed(report: Mapping[str, Any]) -> str:
    """All sections of a report, one table or more each.

    Args:
        report: the content of ``speed.json``.
    """
    return "\n\n".join(f"### {name}\n\n{section_text(report, name)}" for name in report["sections"]) + "\n"


def section_text(report: Mapping[str, Any], name: str) -> str:
    """One section of a report: on what it was measured, and its tables.

    Args:
        report: the content of ``speed.json``.
        name: of the section.

    Raises:
        KeyError: if it is not in the report.
    """
    section = report["sections"][name]
    return f"{_where(section['context'])}\n\n{_SECTIONS[name](section)}"


def _where(context: Mapping[str, Any]) -> str:
    machine = context["machine"]
    where = machine.get("gpu") or f"{machine['processor']}, {machine['threads']} of {machine['cores']} cores"
    versions = context["versions"]
    # the file has those of the other libraries
    packages = ", ".join(f"{name} {versions[name]}" for name in ("monai-anomaly", "torch") if versions.get(name))
    facts = [where, context["clock"], f"load {context['load_before']:g} before", context["when"], packages]
    return "; ".join([*facts, context["note"]] if context["note"] else facts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def _title(name: str) -> str:
    return speed_plan()["contenders"].get(name, {}).get("title", name)


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}g}"


def _ratio(row: Mapping[str, Any]) -> str:
    return f"{row['ratio']:.2f} ({row['least']:.2f} to {row['most']:.2f})"


def _limit(target: Mapping[str, Any]) -> str:
    return f"at most {target['at_most']:g}" if "at_most" in target else f"at least {target['at_least']:g}"


def _met(target: Mapping[str, Any]) -> str:
    return "met" if target["met"] else "**not met**"


def _section_target(target: Mapping[str, Any] | None) -> str:
    if target is None:
        return "No target on this device."
    return f"Target: {target['title']}, {_limit(target)}: {target['value']:.2f}, {_met(target)}."


def _by_batch(rows: Sequence[Mapping[str, Any]], key: str, text: Callable[[Mapping[str, Any]], str], unit: str) -> str:
    batches = sorted({row["batch"] for row in rows})
    cells = {(row[key], row["batch"]): text(row) for row in rows}
    names = list(dict.fromkeys(row[key] for row in rows))
    head = [key, *(f"{unit}, batch {batch}" for batch in batches)]
    return _table(head, [[_title(name), *(cells.get((name, batch), "–") for batch in batches)] for name in names])


def _median_an_image(row: Mapping[str, Any]) -> str:
    return _number(statistics.median(row["seconds"]) / row["batch"])


def _inference(section: Mapping[str, Any]) -> str:
    parts = [_by_batch(section["rows"], "contender", _median_an_image, "seconds an image")]
    if section["targets"]:
        head = ["target", "batch", "limit", "ratio (range of the rounds)", ""]
        rows = [
            [f"{_title(t['contender'])} / {_title(t['reference'])}", str(t["batch"]), _limit(t), _ratio(t), _met(t)]
            for t in section["targets"]
        ]
        parts.append(_table(head, rows))
    return "\n\n".join(parts)


def _training(section: Mapping[str, Any]) -> str:
    parts = [_by_batch(section["rows"], "method", _median_an_image, "seconds an image of one step")]
    parts += [f"{name}: not measured: {reason}" for name, reason in section["reasons"].items()]
    return "\n\n".join(parts)


def _memory(section: Mapping[str, Any]) -> str:
    return _by_batch(section["rows"], "contender", lambda row: f"{row['peak_bytes'] / 1e6:.0f}", "peak MB")


def _forms(section: Mapping[str, Any]) -> str:
    rows = []
    for row in section["rows"]:
        if "reason" in row:
            cells = ["–", "–", f"not measured: {row['reason']}"]
        else:
            outcome = "use" if row["use"] else "does not pay" if row["same"] else "off: changes the map"
            cells = [_ratio(row), f"{row['difference']:.1e}", outcome]
        rows.append([_title(row["contender"]), str(row["batch"]), row["form"], *cells])
    head = ["contender", "batch", "form", "seconds / plain", "largest difference", ""]
    note = f"Differences of maps relative to the plain map's largest value; tolerance {section['tolerance']:g}."
    return f"{_table(head, rows)}\n\n{note}"


def _volume(section: Mapping[str, Any]) -> str:
    rows = [[_title(row["contender"]), _number(statistics.median(row["seconds"]))] for row in section["rows"]]
    return _table(["contender", f"seconds a volume of 240 x 240 x {section['slices']}"], rows)


def _breakdown(section: Mapping[str, Any]) -> str:
    parts = list(section["rows"][0]["parts"]) if section["rows"] else []
    rows = [
        [
            _title(row["contender"]),
            f"{row['scans']} x {row['slices']}",
            _number(row["seconds"] / row["scans"]),
            *(f"{100 * row['parts'][part] / row['seconds']:.0f} %" for part in parts),
            *(f"{row[key] / row['scans'] / 1e6:.1f}" for key in ("input_bytes", "output_bytes")),
        ]
        for row in section["rows"]
    ]
    return _table(["contender", "scans x slices", "seconds a scan", *parts, "MB a scan", "MB of results"], rows)


def _epoch(section: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{_title(row['method'])}, {row['stage']}",
            str(row["side"]),
            str(row["steps"]),
            _number(row["seconds"]),
            f"{100 * row['share']:.1f} %",
            f"{1e3 * row['outside_per_step']:.2f}",
        ]
        for row in section["rows"]
    ]
    head = ["method, stage", "side", "steps", "seconds an epoch", "outside the step", "ms outside a step"]
    return f"{_table(head, rows)}\n\n{_section_target(section['target'])}"


def _proxies(section: Mapping[str, Any]) -> str:
    head = ["", f"seconds for {section['slices']} slices"]
    rows = [[name, _number(statistics.median(rounds))] for name, rounds in section["seconds"].items()]
    return f"{_table(head, rows)}\n\nSpeed-up {_ratio(section)}. {_section_target(section['target'])}"


def _processes(section: Mapping[str, Any]) -> str:
    rows = [
        [
            _title(row["contender"]),
            f"{row['scans']} x {row['slices']}",
            *(_number(statistics.median(rounds)) for rounds in row["seconds"].values()),
            _ratio(row),
        ]
        for row in section["rows"]
    ]
    notes = [_section_target(row["target"]) for row in section["rows"]]
    return "\n\n".join([_table(["contender", "scans x slices", "one", "several", "speed-up"], rows), *notes])


def _growth(section: Mapping[str, Any]) -> str:
    parts = []
    for of in dict.fromkeys(row["of"] for row in section["rows"]):
        rows = []
        for row in (row for row in section["rows"] if row["of"] == of):
            low, high = row["sizes"][0], row["sizes"][-1]
            found = [row["seconds_exponent"], row["memory_exponent"]]
            rows.append(
                [
                    row["what"],
                    f"{low:,} to {high:,}",
                    f"{_number(row['seconds'][0])} to {_number(row['seconds'][-1])}",
                    *(f"{_number(found[0][key], 2)}" for key in ("exponent", "last")),
                    f"{_megabytes(row['peak_bytes'][0])} to {_megabytes(row['peak_bytes'][-1])}",
                    *(f"{_number(found[1][key], 2)}" for key in ("exponent", "last")),
                ]
            )
        head = ["what", of, "seconds", "exponent", "of the last step", "peak MB", "exponent", "of the last step"]
        parts.append(_table(head, rows))
    for row in section["rows"]:
        parts += [f"{row['what']}, {size}: not measured: {reason}" for size, reason in row["reasons"].items()]
    return "\n\n".join(parts)


def _megabytes(value: int | None) -> str:
    return "–" if value is None else f"{value / 1e6:.0f}"


_SECTIONS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "inference": _inference,
    "training": _training,
    "memory": _memory,
    "forms": _forms,
    "volume": _volume,
    "breakdown": _breakdown,
    "epoch": _epoch,
    "proxies": _proxies,
    "processes": _processes,
    "growth": _growth,
}
