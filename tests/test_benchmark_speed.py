"""What `examples/speed` measures: its structure and its arithmetic, never the seconds of this machine."""

from __future__ import annotations

import json
import multiprocessing
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import get_track_meta
from monai.transforms import Compose, RandFlipd

import measure_speed
import speed
import speed_cohort
import speed_growth
import speed_tables
from measure_speed import main
from monai_anomaly.benchmarks import load_methods
from monai_anomaly.benchmarks.images import ImageSetDataset
from monai_anomaly.data import ScanPreprocessing
from monai_anomaly.data.slices import SliceDataset
from monai_anomaly.exceptions import InputError
from monai_anomaly.transforms import SuperpixelImage
from speed_tables import render_speed

TINY = ["--size", "64", "--batches", "1", "--repeats", "1"]


@pytest.fixture(autouse=True)
def _threads_as_they_were() -> Iterator[None]:
    """What is measured sets the number of threads; sums of other tests come out otherwise with another number."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes of a measurement are forked: to start one anew takes seconds."""
    for module in (speed, speed_cohort):
        monkeypatch.setattr(module, "get_context", lambda _: multiprocessing.get_context("fork"))


def measure(folder: Path, *arguments: str) -> dict[str, Any]:
    assert main(["--out", str(folder), *TINY, *arguments]) == 0
    return json.loads((folder / "speed.json").read_text())["sections"]


@given(
    st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)), min_size=1, max_size=9),
)
@settings(deadline=None, max_examples=50)
def test_a_ratio_is_the_median_of_the_rounds(rounds: list[tuple[float, float]]) -> None:
    found = speed.ratio({"a": [a for a, _ in rounds], "b": [b for _, b in rounds]}, "a", "b")
    expected = sorted(a / b for a, b in rounds)
    assert found == {"ratio": statistics.median(expected), "least": expected[0], "most": expected[-1]}


def test_targets_are_those_of_device_and_batch() -> None:
    seconds = {
        name: [1.0, 2.0, 3.0] for name in ("encoder", "encoder_decoder", "itae_one_pass", "hfrae", "proxyano_map")
    }
    seconds |= {"itae": [4.2, 8.4, 12.6], "proxyano": [2.8, 5.6, 8.4]}
    rows = {(row["contender"], row["reference"]): row for row in speed.speed_targets(seconds, "cpu", 8)}
    # the external baselines and DAAD were not measured
    assert set(rows) == {
        ("hfrae", "encoder"),
        ("itae", "itae_one_pass"),
        ("proxyano_map", "encoder_decoder"),
        ("proxyano", "encoder_decoder"),
    }
    assert {pair for pair, row in rows.items() if not row["met"]} == {("proxyano", "encoder_decoder")}
    assert rows["itae", "itae_one_pass"]["at_most"] == 4.2
    on_gpu = {batch: speed.speed_targets(seconds, "cuda", batch) for batch in (1, 8)}
    assert [[row["at_most"] for row in rows if row["contender"] == "itae"] for rows in on_gpu.values()] == [[2.0], []]
    assert speed.section_target("epoch", 0.1, "cpu") is None
    assert speed.section_target("epoch", 0.2, "cuda:0")["met"] is False  # type: ignore[index]
    assert speed.section_target("proxies", 1.7)["met"] is True  # type: ignore[index]


def test_rounds_take_turns_and_the_first_does_not_count() -> None:
    order: list[str] = []
    seconds = speed.compare({name: lambda name=name: order.append(name) for name in "ab"}, 2)  # type: ignore[misc]
    assert order == list("ababab")
    assert {name: len(rounds) for name, rounds in seconds.items()} == {"a": 2, "b": 2}


def test_everything_named_is_there() -> None:
    plan = speed.speed_plan()
    known = set(plan["contenders"])
    assert {name for row in plan["targets"] for name in (row["contender"], row["reference"])} <= known
    assert {name for part in ("volume", "cohort", "processes", "growth", "items") for name in plan[part]} <= known
    assert set(plan["epoch"]) | set(plan["training"]) | {plan["growth_epoch"]["method"]} <= set(load_methods())


def test_an_unknown_contender_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, word in (
        (["--methods", "hfrae", "nosuch"], "nosuch"),
        (["--batches", "0"], "--batches"),
        (["--repeats", "0"], "--repeats"),
        (["--size", "64", "--what", "inference", "--methods", "daad"], "--size 64: does not suit DAAD"),
        (["--what", "volume", "--methods", "encoder"], "a part of a network"),
        (["--forms", "fp8"], "fp8"),
        (["--device", "toaster"], "toaster"),
        (["--show"], "speed.json"),
    ):
        assert main(["--out", str(tmp_path), *arguments]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert word in error
    assert not list(tmp_path.iterdir())
    (tmp_path / "speed.json").write_text("{}")
    assert main(["--out", str(tmp_path), "--what", "memory"]) == 1
    assert "is no result" in capsys.readouterr().err


def test_peers_without_anomalib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_peers_installed", lambda: False)
    assert "stfpm" not in speed.contenders()
    with pytest.raises(InputError, match="anomalib"):
        speed.contenders(["stfpm"])


@pytest.mark.slow
def test_sections_are_kept_until_measured_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = measure(tmp_path, "--what", "inference", "--methods", "encoder", "hfrae", "--note", "a test")
    (target,) = first["inference"]["targets"]
    one, other = (
        next(row["seconds"] for row in first["inference"]["rows"] if row["contender"] == name)
        for name in ("hfrae", "encoder")
    )
    assert target["ratio"] == pytest.approx(one[0] / other[0])
    assert target["met"] is (one[0] <= 1.5 * other[0])
    context = first["inference"]["context"]
    assert (context["machine"]["threads"], context["clock"], context["note"]) == (1, "CPU seconds", "a test")
    assert context["versions"]["torch"]
    output = capsys.readouterr().out
    assert "| HFR-AE, ResNet18 / ResNet18 to layer3, bare | 1 | at most 1.5 |" in output
    second = measure(tmp_path, "--what", "training", "--methods", "autoencoder", "hfrae")
    assert second["inference"] == first["inference"]
    assert [row["method"] for row in second["training"]["rows"]] == ["autoencoder"]
    assert "random weights" in second["training"]["reasons"]["hfrae, batch 1"]
    assert "inference" not in capsys.readouterr().out.replace("inference_", "")
    assert main(["--out", str(tmp_path), "--show"]) == 0
    shown = capsys.readouterr().out
    assert "### inference" in shown
    assert "### training" in shown


@pytest.mark.slow
def test_a_network_without_its_memories_is_the_rest_of_it() -> None:
    chosen = speed.contenders(["daad", "daad_without_memory"])
    networks = {name: speed.network_of(entry, 128) for name, entry in chosen.items()}
    parameters = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    memories = {name: [k for k in network.state_dict() if "memor" in k] for name, network in networks.items()}
    assert memories["daad"]
    assert not memories["daad_without_memory"]
    of_memories = sum(networks["daad"].state_dict()[key].numel() for key in memories["daad"])
    assert parameters["daad"] - parameters["daad_without_memory"] == of_memories


def test_forms_are_the_same_network() -> None:
    entry = {"network": {"_target_": "monai_anomaly.networks.Autoencoder", "channels": [4, 8], "latent_channels": 4}}
    rows = speed.compare_forms(
        {"a": entry, "part": {**entry, "call": "encode"}}, ["channels_last", "amp"], 32, 1, "cpu", 1
    )
    assert [(row["contender"], row["form"]) for row in rows] == [("a", "channels_last"), ("a", "amp")]
    assert rows[0]["same"]
    assert rows[0]["use"] is (rows[0]["ratio"] <= 0.95)
    assert "GPU" in rows[1]["reason"]


def test_a_form_that_changes_the_map_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def calls(chosen: Any, size: int, batch: int, device: str, form: str = "plain") -> dict[str, Any]:
        value = {"plain": 1.0, "channels_last": 1.0 + 2 * speed.TOLERANCE}[form]
        return {"a": lambda: torch.full((2,), value)}

    monkeypatch.setattr(speed, "inference_calls", calls)
    monkeypatch.setattr(speed, "_map_of", lambda output: output)
    monkeypatch.setattr(speed, "compare", lambda *_: {"plain": [2.0], "channels_last": [1.0]})
    (row,) = speed.compare_forms({"a": {}}, ["channels_last"], 8, 1, "cpu", 1)
    assert row["ratio"] == 0.5
    assert row["difference"] == pytest.approx(2 * speed.TOLERANCE, rel=1e-3)
    assert (row["same"], row["use"]) == (False, False)


def _arrays(megabytes: int) -> speed.Call:
    held: list[np.ndarray] = []
    return lambda: held.append(np.ones(megabytes * 1_000_000, dtype=np.uint8))


@pytest.mark.usefixtures("forked")
@pytest.mark.slow
def test_memory_is_that_of_the_call() -> None:
    cost = speed.cost_apart(_arrays, 200, repeats=1)
    assert 190e6 < cost["peak_bytes"] < 250e6
    assert cost["seconds"] is not None


@given(
    st.floats(-2, 3),
    st.floats(1e-6, 1e3),
    st.lists(st.integers(1, 10**6), min_size=2, max_size=8, unique=True),
)
@settings(deadline=None, max_examples=50)
def test_exponents_of_powers_are_found(exponent: float, factor: float, sizes: list[int]) -> None:
    found = speed_growth.fitted_exponent(sizes, [factor * size**exponent for size in sizes])
    assert found["exponent"] == pytest.approx(exponent, abs=1e-6)
    assert found["last"] == pytest.approx(exponent, abs=1e-6)
    assert found["residual"] == pytest.approx(0, abs=1e-6)


def test_a_constant_part_weighs_least_in_the_last_exponent() -> None:
    sizes = [1, 10, 100, 1000]
    found = speed_growth.fitted_exponent(sizes, [100 + size**2 for size in sizes])
    assert found["exponent"] < found["last"] < 2
    assert found["residual"] > 0.1
    assert speed_growth.fitted_exponent(sizes, [None, 0, 3.0, None])["reason"]


def test_growth_names_what_it_could_not_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    # here and not in processes of their own, whose start takes seconds
    monkeypatch.setattr(
        speed_growth,
        "cost_apart",
        lambda build, *arguments, device, repeats: speed._cost(build, arguments, device, repeats, 1),
    )
    plan = speed_growth.growth_plan(["daad", "autoencoder"], 256, "cpu", largest=1000)
    kinds = [(entry["of"], entry["sizes"]) for entry in plan]
    assert kinds.count(("images", [100, 1000])) == 5
    assert ("memory items", speed.speed_plan()["items"]["daad"]["values"]) in kinds
    assert [of for of, _ in kinds].count("side") == 2
    assert [of for of, _ in kinds].count("slices") == 1
    chosen = {**plan[0], "sizes": [10, 100]}
    broken = {**plan[0], "what": "broken", "build": _broken, "sizes": [10, 20]}
    good, bad = speed_growth.growth([chosen, broken], repeats=1)
    assert all(seconds is not None for seconds in good["seconds"])
    assert bad["seconds"] == [None, None]
    assert bad["reasons"] == {"10": "no such size", "20": "no such size"}
    text = render_speed({"sections": {"growth": {"context": _context(), "rows": [good, bad]}}})
    assert "broken, 10: not measured: no such size" in text
    assert "None" not in text


def _broken(size: int) -> speed.Call:
    raise ValueError("no such size")


def _context() -> dict[str, Any]:
    machine = {"processor": "p", "threads": 1, "cores": 2}
    return {"machine": machine, "versions": {}, "clock": "CPU seconds", "load_before": 0, "when": "", "note": ""}


@pytest.mark.parametrize(
    "build",
    [
        speed_growth._metrics_call,
        speed_growth._intervals_call,
        speed_growth._calibration_call,
        speed_growth._pixel_metrics_call,
    ],
)
def test_simulated_sizes_run(build: Any) -> None:
    build(40)()


def test_an_epoch_of_any_size_runs() -> None:
    small = speed.speed_plan()["growth_epoch"]
    speed_growth._epoch_call(130, small["method"], {**small["options"], "network_def#channels": [4, 4]}, side=8)()


def test_parts_are_timed_without_what_they_call() -> None:
    now = [0.0]

    class Work:
        @staticmethod
        def wait(seconds: float) -> None:
            now[0] += seconds

        def outer(self) -> str:
            self.wait(1.0)
            self.inner()
            self.wait(2.0)
            return "done"

        def inner(self) -> None:
            self.wait(10.0)
            raise_at = now[0] > 1e3
            assert not raise_at

    before = dict(Work.__dict__)
    with speed_cohort.timed_parts({"a": [(Work, "outer")], "b": [(Work, "inner")]}, lambda: now[0]) as parts:
        assert Work().outer() == "done"
        Work.wait(100.0)
        Work().inner()
        now[0] = 2e3
        with pytest.raises(AssertionError):
            Work().inner()
    assert parts == {"a": 3.0, "b": 30.0}
    assert dict(Work.__dict__) == before


@pytest.mark.slow
def test_a_cohorts_time_is_the_sum_of_its_parts(tmp_path: Path) -> None:
    sections = measure(tmp_path, "--what", "breakdown", "volume", "--methods", "hfrae", "--scans", "1", "--slices", "2")
    (row,) = sections["breakdown"]["rows"]
    assert list(row["parts"]) == ["loading", "transforms", "network", "writing", "pictures", "other"]
    assert sum(row["parts"].values()) == pytest.approx(row["seconds"])
    assert min(row["parts"].values()) > 0
    assert row["input_bytes"] > 2 * 240 * 240 * 0.5  # noise of 16 bits hardly shrinks
    assert row["output_bytes"] > row["input_bytes"]
    assert [(r["contender"], len(r["seconds"])) for r in sections["volume"]["rows"]] == [("hfrae", 1)]


def test_an_epochs_share_is_what_the_step_leaves() -> None:
    options = {"network_def#channels": [4, 4], "batch_size": 8}
    (row,) = speed_cohort.epoch_shares({"autoencoder": {"sides": [16], "options": options}}, "cpu", pictures=20)
    assert (row["side"], row["steps"]) == (16, 3)
    assert 0 < row["share"] < 1
    assert row["outside"] == pytest.approx(row["share"] * row["seconds"])
    assert row["outside_per_step"] == pytest.approx(row["outside"] / 3)


def test_pictures_are_transformed_without_metadata_to_the_same_values() -> None:
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    flips = Compose([RandFlipd(keys="image", prob=0.5, spatial_axis=axis) for axis in (0, 1)])
    dataset = ImageSetDataset(images, list("abcdef"), transform=flips)
    dataset.set_random_state(3)
    assert get_track_meta()
    drawn = [dataset[index]["image"] for index in range(6)]
    assert get_track_meta()
    flips.set_random_state(3)
    expected = [flips({"image": image})["image"].as_tensor() for image in images]
    assert all(type(image) is torch.Tensor for image in drawn)
    torch.testing.assert_close(torch.stack(drawn), torch.stack(expected), rtol=0, atol=0)
    assert not torch.equal(torch.stack(drawn), images)


def test_the_loop_makes_the_proxies_of_the_dataset(tmp_path: Path) -> None:
    items = speed_cohort.simulated_cohort(tmp_path, 1, 2, side=64)
    preprocessing, proxy = ScanPreprocessing((64, 64)), SuperpixelImage()
    (arrays,) = SliceDataset(items, preprocessing, proxy, num_workers=2, progress=False).arrays
    assert len(arrays["image"]) == 2
    for image, made in zip(arrays["image"], arrays["proxy"]):
        np.testing.assert_allclose(speed_cohort._superpixels(image[0], proxy), made[0], atol=1e-6)


@pytest.mark.usefixtures("forked")
@pytest.mark.slow
def test_proxies_and_processes_take_turns() -> None:
    found = speed_cohort.proxy_speed(scans=2, slices=1, size=64, rounds=2)
    assert found["ratio"] == pytest.approx(
        statistics.median(a / b for a, b in zip(found["seconds"]["loop"], found["seconds"]["threads"]))
    )
    assert found["target"]["met"] is (found["ratio"] >= 1.7)
    shared = speed_cohort.shared_inference("hfrae", size=64, scans=2, slices=1, rounds=1)
    assert {name: len(rounds) for name, rounds in shared["seconds"].items()} == {"one": 1, "several": 1}
    sections = {"proxies": {"context": _context(), **found}, "processes": {"context": _context(), "rows": [shared]}}
    text = render_speed({"sections": sections})
    assert text.count("Target: ") == 2


def test_every_section_can_be_measured_and_printed() -> None:
    assert set(measure_speed.SECTIONS) == set(measure_speed._MEASURES) == set(speed_tables._SECTIONS)
