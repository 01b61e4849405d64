"""The memories against plain computations of their equations, item by item."""

from __future__ import annotations

import inspect
import math
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from monai_anomaly.networks.blocks import NearestMemory, ShrinkageMemory


class PlainMemory:
    """Eq. 2 to 6 in plain Python, in double precision."""

    def __init__(self, items: np.ndarray, gamma: float) -> None:
        self.gamma = gamma
        self.m = [[float(v) for v in item] for item in items]
        self.e = [list(item) for item in self.m]
        self.n = [1.0 for _ in self.m]

    def nearest(self, z: list[float]) -> int:
        distances = [math.sqrt(sum((a - b) ** 2 for a, b in zip(z, m))) for m in self.m]
        return distances.index(min(distances))

    def look_up(self, features: list[list[float]], update: bool) -> list[list[float]]:
        chosen = [self.nearest(z) for z in features]
        answer = [list(self.m[j]) for j in chosen]
        if update:
            for i in range(len(self.m)):
                mine = [z for z, j in zip(features, chosen) if j == i]
                self.n[i] = self.n[i] * self.gamma + len(mine) * (1 - self.gamma)
                for a in range(len(self.m[i])):
                    self.e[i][a] = self.e[i][a] * self.gamma + sum(z[a] for z in mine) * (1 - self.gamma)
                    self.m[i][a] = self.e[i][a] / self.n[i]
        return answer


def features_of(z: Tensor) -> list[list[float]]:
    """The latent vectors of (B, d, *spatial), row by row."""
    return z.flatten(2).transpose(1, 2).reshape(-1, z.shape[1]).double().tolist()


def started(memory: NearestMemory, items: Tensor) -> NearestMemory:
    memory.items.copy_(items)
    memory.sums.copy_(items)
    memory.started.fill_(True)
    return memory


@pytest.mark.parametrize("spatial", [(4, 3), (2, 3, 2)])
def test_updates_follow_equations_2_to_6(spatial: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(7, 5, generator=generator)
    items[6] += 100.0  # never chosen
    memory = started(NearestMemory(7, 5, decay=0.9, restart_below=0.0), items).train()
    plain = PlainMemory(items.numpy(), 0.9)
    for _ in range(12):
        z = torch.randn(2, 5, *spatial, generator=generator)
        retrieved, auxiliary = memory(z)
        expected = plain.look_up(features_of(z), update=True)
        np.testing.assert_allclose(features_of(retrieved), expected, rtol=0, atol=2e-6)
        assert float(auxiliary) == 0.0
        np.testing.assert_allclose(memory.items.numpy(), plain.m, rtol=2e-6, atol=2e-6)
        np.testing.assert_allclose(memory.sums.numpy(), plain.e, rtol=2e-6, atol=2e-6)
        np.testing.assert_allclose(memory.counts.numpy(), plain.n, rtol=2e-6)


def test_eval_retrieves_items_to_the_bit_and_changes_nothing() -> None:
    torch.manual_seed(0)
    memory = NearestMemory(6, 4).train()
    memory(torch.randn(2, 4, 3, 3))
    memory.eval()
    before = {name: value.clone() for name, value in memory.state_dict().items()}
    z = torch.randn(2, 4, 3, 3)
    retrieved, auxiliary = memory(z)
    plain = PlainMemory(memory.items.numpy(), 0.99)
    assert features_of(retrieved) == plain.look_up(features_of(z), update=False)
    assert float(auxiliary) == 0.0
    assert all(torch.equal(value, before[name]) for name, value in memory.state_dict().items())


def test_start_takes_features_of_the_first_batch() -> None:
    torch.manual_seed(3)
    memory = NearestMemory(8, 4, decay=0.9, restart_below=0.0).train()
    z = torch.randn(2, 4, 5, 5)
    features = np.float32(features_of(z))
    memory._start(torch.from_numpy(features))
    rows = [next(i for i, f in enumerate(features) if np.array_equal(f, item)) for item in memory.items.numpy()]
    assert len(set(rows)) == 8  # drawn without replacement
    assert torch.equal(memory.sums, memory.items)
    assert torch.equal(memory.counts, torch.ones(8))
    plain = PlainMemory(memory.items.numpy(), 0.9)
    memory(z)  # started already: an ordinary update
    plain.look_up(features_of(z), update=True)
    np.testing.assert_allclose(memory.items.numpy(), plain.m, rtol=2e-6, atol=2e-6)


def test_start_with_fewer_features_than_items() -> None:
    memory = NearestMemory(50, 3).train()
    z = torch.randn(1, 3, 2, 2)
    retrieved, _ = memory(z)
    assert bool(memory.started)
    # every feature is its own nearest item
    torch.testing.assert_close(retrieved, z, rtol=0, atol=1e-6)


def test_start_and_restart_follow_the_seed() -> None:
    def run() -> Tensor:
        torch.manual_seed(11)
        memory = NearestMemory(16, 4, decay=0.5, restart_below=0.2).train()
        for _ in range(8):
            memory(torch.randn(1, 4, 3, 3))
        return memory.items

    assert torch.equal(run(), run())


def test_gradient_is_copied_straight_through() -> None:
    torch.manual_seed(0)
    weight = torch.randn(2, 4, 3, 3)
    z = torch.randn(2, 4, 3, 3, requires_grad=True)
    memory = NearestMemory(5, 4).train()
    retrieved, auxiliary = memory(z)
    retrieved.retain_grad()
    ((retrieved * weight).sin().sum() + auxiliary).backward()
    assert torch.equal(z.grad, retrieved.grad)
    assert float(z.grad.abs().sum()) > 0


def test_commitment_pulls_features_to_their_items() -> None:
    items = torch.tensor([[0.0, 0.0], [10.0, 10.0]])
    memory = started(NearestMemory(2, 2, commitment=0.25), items).train()
    z = torch.tensor([[1.0, -2.0], [9.0, 10.0]]).reshape(2, 2, 1, 1).requires_grad_()
    _, auxiliary = memory(z)
    assert auxiliary.item() == pytest.approx(0.25 * (1 + 4 + 1 + 0) / 4)
    auxiliary.backward()
    np.testing.assert_allclose(z.grad.flatten(1).numpy(), 0.25 * 2 / 4 * np.array([[1.0, -2.0], [-1.0, 0.0]]))


def test_dead_items_stay_in_place_or_restart() -> None:
    torch.manual_seed(0)
    items = torch.tensor([[0.0, 0.0], [50.0, -30.0]])
    kept = started(NearestMemory(2, 2, decay=0.5, restart_below=0.0), items).train()
    moved = started(NearestMemory(2, 2, decay=0.5, restart_below=0.05), items).train()
    for step in range(1, 200):
        z = torch.randn(1, 2, 4, 4)
        kept(z)
        torch.testing.assert_close(kept.items[1], items[1], rtol=1e-5, atol=0)  # e_i / N_i does not change
        if step > 5:
            continue
        moved(z)
        if step < 5:  # 0.5 ** 4 = 0.0625 is not below 0.05 yet
            assert torch.equal(moved.items[1], items[1])
        else:
            assert moved.items[1].tolist() in [list(map(float, np.float32(f))) for f in features_of(z)]
            assert torch.equal(moved.sums[1], moved.items[1])
            assert float(moved.counts[1]) == 1.0
    assert torch.isfinite(kept.items).all()


def test_state_round_trip() -> None:
    torch.manual_seed(0)
    first = NearestMemory(6, 4).train()
    first(torch.randn(2, 4, 3, 3))
    second = NearestMemory(6, 4).train()
    second.load_state_dict(first.state_dict())
    assert bool(second.started)  # or it would start anew and forget
    z = torch.randn(2, 4, 3, 3)
    assert torch.equal(first(z)[0], second(z)[0])
    assert all(torch.equal(a, b) for a, b in zip(first.buffers(), second.buffers()))


PROCESS = """
import runpy, sys
from pathlib import Path
import torch
import torch.distributed as dist
rank, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
NearestMemory = runpy.run_path(sys.argv[4])["NearestMemory"]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
saved = torch.load(folder / "in.pt")
memory = NearestMemory(6, 4, decay=0.9, restart_below=0.0).train()
memory.load_state_dict(saved["memory"])
for batch in saved["batches"]:
    memory(batch[rank::2])
torch.manual_seed(rank)
other = NearestMemory(6, 4, decay=0.3, restart_below=0.5).train()
for batch in saved["batches"]:
    other(batch[rank::2])
torch.save({"memory": memory.state_dict(), "other": other.state_dict()}, folder / f"out{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_are_one_process_on_the_joined_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    single = started(NearestMemory(6, 4, decay=0.9, restart_below=0.0), torch.randn(6, 4)).train()
    batches = [torch.randn(4, 4, 3, 3) for _ in range(5)]
    torch.save({"memory": single.state_dict(), "batches": batches}, tmp_path / "in.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", PROCESS]
    # the file alone needs only torch, which starts much faster than the whole package
    arguments = [port, str(tmp_path), inspect.getfile(NearestMemory)]
    processes = [subprocess.Popen([*command, str(rank), *arguments]) for rank in range(2)]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    for batch in batches:
        single(batch)
    zero, one = (torch.load(tmp_path / f"out{rank}.pt") for rank in range(2))
    for name, value in single.state_dict().items():
        assert torch.equal(zero["memory"][name], one["memory"][name])
        torch.testing.assert_close(zero["memory"][name], value, rtol=2e-6, atol=2e-6)
    # start and restarts draw the same items in every process, whatever its seed
    assert all(torch.equal(zero["other"][name], one["other"][name]) for name in zero["other"])


@pytest.mark.parametrize("threshold", [None, 0.25])
def test_shrinkage_memory_is_memae(threshold: float | None) -> None:
    torch.manual_seed(0)
    memory = ShrinkageMemory(5, 4, shrink_threshold=threshold, entropy_weight=0.5)
    with torch.no_grad():
        memory.items.mul_(3.0)
    z = torch.randn(2, 4, 2, 3)
    retrieved, auxiliary = memory(z)
    items = memory.items.detach().double().numpy()
    limit = 1 / 5 if threshold is None else threshold
    answer, entropies = [], []
    for feature in np.array(features_of(z)):
        # Eq. 5, cosine; Eq. 4, softmax; Eq. 6, hard shrinkage; then the rest is scaled to a sum of 1; Eq. 3
        cosine = [feature @ m / (np.linalg.norm(feature) * np.linalg.norm(m)) for m in items]
        weight = np.exp(cosine) / np.exp(cosine).sum()
        weight = np.array([w if w > limit else 0.0 for w in weight])
        if weight.sum() > 0:
            weight = weight / weight.sum()
        answer.append(sum(w * m for w, m in zip(weight, items)))
        entropies.append(-sum(w * math.log(w) for w in weight if w > 0))
    np.testing.assert_allclose(features_of(retrieved), answer, rtol=1e-5, atol=1e-5)
    assert auxiliary.item() == pytest.approx(0.5 * np.mean(entropies), abs=1e-5)


def test_shrinkage_memory_learns() -> None:
    torch.manual_seed(0)
    memory = ShrinkageMemory(10, 4)
    z = torch.randn(2, 4, 3, 3, requires_grad=True)
    retrieved, auxiliary = memory(z)
    (retrieved.square().sum() + auxiliary).backward()
    for gradient in (z.grad, memory.items.grad):
        assert torch.isfinite(gradient).all()
        assert float(gradient.abs().sum()) > 0
    assert set(memory.state_dict()) == {"items"}
