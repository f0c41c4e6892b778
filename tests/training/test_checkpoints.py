"""Checkpoints alone: from any division to any other, whole after whatever happens, no wait for the disk."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from nemorun.training import CheckpointConfig, TrainerConfig, TrainingError
from nemorun.training.checkpoint import Checkpointer, checkpointer, complete, damage, folder, writer
from nemorun.training.distributed import Ranks, join
from tests.training.forks import Forks


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 10, bias=False)
        self.down = nn.Linear(10, 6, bias=False)
        self.norm = nn.LayerNorm(6)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return x + self.down(F.relu(self.up(self.norm(x))))


class Net(nn.Module):
    """Some of the blocks of a model, by their number in the whole."""

    def __init__(self, numbers: list[int], seed: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict()
        for number in numbers:
            torch.manual_seed(seed * 100 + number)
            self.blocks[str(number)] = Block()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks.values():
            x = block(x)
        return x


def adam(model: nn.Module, **changes: Any) -> torch.optim.AdamW:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, **{"lr": 0.1, "fused": True} | changes)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    torch.set_num_threads(1)  # as in the forks: other numbers of threads round differently
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
    model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def whole(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every weight, buffer and moment by name, gathered from the ranks."""
    found: dict[str, Any] = dict(model.state_dict(keep_vars=True))
    for name, parameter in model.named_parameters():
        found |= {f"{name}.{key}": value for key, value in optimizer.state[parameter].items()}
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
        for name, value in found.items()
    }


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def joined(world: int = 1) -> Any:
    return join(TrainerConfig(accelerator="cpu", devices=world))


@pytest.fixture
def alone() -> Iterator[Ranks]:
    with joined() as ranks:
        yield ranks


# Resharding


def divided(ranks: Ranks, tensor_parallel: int, seed: int) -> Net:
    model = Net([0, 1], seed)
    mesh = init_device_mesh(
        "cpu", (ranks.world_size // tensor_parallel, tensor_parallel), mesh_dim_names=("data", "tensor")
    )
    for block in model.blocks.values():
        if tensor_parallel > 1:
            plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
            parallelize_module(block, mesh["tensor"], plan)
        fully_shard(block, mesh=mesh["data"])
    return fully_shard(model, mesh=mesh["data"])


def save_divided(path: str, world: int, tensor_parallel: int) -> None:
    with joined(world) as ranks:
        model = divided(ranks, tensor_parallel, seed=1)
        optimizer = adam(model)
        for step in (1, 2):
            train(model, optimizer, step)
        saver = Checkpointer(Path(path), CheckpointConfig(), model, optimizer, ranks)
        saver.save(2, {"tokens": 7})
        reference = whole(model, optimizer)
        if ranks.first:
            torch.save(reference, Path(path) / "reference.pt")
        saver.finish()


def load_divided(path: str, world: int, tensor_parallel: int) -> None:
    with joined(world) as ranks:
        model = divided(ranks, tensor_parallel, seed=2)
        optimizer = adam(model)
        state = Checkpointer(Path(path), CheckpointConfig(), model, optimizer, ranks).restore()
        assert state and (state["step"], state["tokens"]) == (2, 7)
        assert optimizer.param_groups[0]["lr"] == 0.1
        assert_same(whole(model, optimizer), torch.load(Path(path) / "reference.pt"))


@pytest.mark.parametrize(("saved", "loaded"), [((4, 2), (2, 1)), slow((2, 1), (4, 2))])
def test_what_one_division_saved_another_loads_exactly(
    forks: Forks, tmp_path: Path, saved: tuple[int, int], loaded: tuple[int, int]
) -> None:
    forks.check(save_divided, saved[0], str(tmp_path), *saved)
    forks.check(load_divided, loaded[0], str(tmp_path), *loaded)


def save_stages(path: str) -> None:
    """As a pipeline has it: each rank some pieces of the model, each piece its optimizer."""
    with joined(2) as ranks:
        pieces = [Net([number], seed=1) for number in (ranks.rank, ranks.rank + 2)]
        optimizers = [adam(piece) for piece in pieces]
        for piece, optimizer in zip(pieces, optimizers, strict=True):
            train(piece, optimizer, step=1)
        Checkpointer(Path(path), CheckpointConfig(), pieces, optimizers, ranks).save(1, {}, needed=True)


def load_stages(path: str, numbers: list[list[int]]) -> None:
    with joined(2) as ranks:
        piece = Net(numbers[ranks.rank], seed=2)
        Checkpointer(Path(path), CheckpointConfig(), piece, adam(piece), ranks).restore()


def test_stages_of_a_pipeline_make_one_checkpoint(forks: Forks, tmp_path: Path, alone: Ranks) -> None:
    forks.check(save_stages, 2, str(tmp_path))
    expected: dict[str, Tensor] = {}
    for number in range(4):
        piece = Net([number], seed=1)
        optimizer = adam(piece)
        train(piece, optimizer, step=1)
        expected |= whole(piece, optimizer)
    model = Net([0, 1, 2, 3], seed=2)
    optimizer = adam(model)
    Checkpointer(tmp_path, CheckpointConfig(), model, optimizer, alone).restore()
    assert_same(whole(model, optimizer), expected)

    # Whether it is the same model is asked of all ranks together.
    forks.check(load_stages, 2, str(tmp_path), [[0, 1, 2], [3]])
    for outcome in forks.run(load_stages, 2, str(tmp_path), [[0, 1], [3]]):
        assert outcome.code == 1
        assert "another model: blocks.2.seen is () there and missing here" in outcome.output


# Interruptions


def at(point: str, action: Any) -> None:
    """Have `action()` called at a point of every save from the second on."""
    saves = 0

    def wrap(owner: Any, name: str, counts: bool = False) -> None:
        original = getattr(owner, name)

        def with_action(*args: Any) -> Any:
            nonlocal saves
            saves += counts
            if saves > 1 and not counts:
                action()
            return original(*args)

        setattr(owner, name, with_action)

    wrap(checkpointer.Checkpointer, "_write", counts=True)
    owners = {
        "in a tensor": (writer, "_write"),
        "before the index": (writer, "to_json"),
        "before the state": (folder, "publish"),
        "before the new name": (folder, "sync_folder"),
        "after the new name": (folder, "tidy"),
    }
    wrap(*owners[point])


def run_to(path: str, end: int, point: str | None) -> None:
    """Two ranks that train to step `end` and save every second step; the first one is killed at `point`."""
    with joined(2) as ranks:
        if point and ranks.first:
            at(point, lambda: os.kill(os.getpid(), signal.SIGKILL))
        model = divided(ranks, 1, seed=1)
        optimizer = adam(model)
        saver = Checkpointer(Path(path), CheckpointConfig(keep_last=2), model, optimizer, ranks)
        state = saver.restore() or {"step": 0}
        print("goes on from", state["step"])
        for step in range(state["step"] + 1, end + 1):
            train(model, optimizer, step)
            if step % 2 == 0:
                saver.save(step, {"torch": 0})
        saver.finish()
        reference = whole(model, optimizer)
        if ranks.first:
            torch.save(reference, Path(path) / "end.pt")


@pytest.mark.parametrize(
    ("point", "left"),
    [
        ("in a tensor", 2),
        slow("before the index", 2),
        slow("before the state", 2),
        ("before the new name", 2),
        ("after the new name", 4),
    ],
)
def test_killed_at_any_moment_of_a_save_it_goes_on_exactly(
    forks: Forks, tmp_path: Path, whole_run: dict[str, Tensor], point: str, left: int
) -> None:
    outcomes = forks.run(run_to, 2, str(tmp_path), 6, point)
    assert outcomes[0].code == -signal.SIGKILL, outcomes
    assert outcomes[1].code == 1  # it does not wait for ever
    assert f"goes on from {left}" in forks.check(run_to, 2, str(tmp_path), 6, None)
    assert_same(torch.load(tmp_path / "end.pt"), whole_run)
    assert [path.name for path in complete(tmp_path)] == ["step-00000004", "step-00000006"]
    assert not list(tmp_path.glob("*.tmp"))


@pytest.fixture(scope="module")
def whole_run(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    path = tmp_path_factory.mktemp("whole")
    forks.check(run_to, 2, str(path), 6, None)
    return torch.load(path / "end.pt")


def fail_in_background(path: str) -> None:
    with joined(2) as ranks:
        model = divided(ranks, 1, seed=1)
        optimizer = adam(model)
        saver = Checkpointer(Path(path), CheckpointConfig(), model, optimizer, ranks)
        train(model, optimizer, 1)
        saver.save(1, {})
        saver.finish()
        original = writer._write
        if ranks.rank == 1:

            def full(*args: Any) -> int:
                raise OSError(28, "No space left on device")

            writer._write = full
        saver.save(2, {})
        with pytest.raises(TrainingError, match=r"step-00000002 could not be written: .*No space left"):
            saver.finish()
        writer._write = original
        assert [p.name for p in Path(path).iterdir()] == ["step-00000001"] or not ranks.first
        ranks.all(True)
        saver.save(3, {})  # and the next one can succeed
        saver.finish()


def test_a_full_disk_on_one_rank_is_told_to_all(forks: Forks, tmp_path: Path) -> None:
    output = forks.check(fail_in_background, 2, str(tmp_path))
    assert output.count("warning: checkpoint") == 1 and "Training goes on" in output
    assert [path.name for path in complete(tmp_path)] == ["step-00000001", "step-00000003"]


# One rank


class Run:
    """A model of one rank with its checkpoints."""

    def __init__(self, path: Path, ranks: Ranks, seed: int = 1, **config: Any) -> None:
        self.model = Net([0], seed)
        self.optimizer = adam(self.model)
        self.saver = Checkpointer(path, CheckpointConfig(**config), self.model, self.optimizer, ranks)

    def train(self, step: int) -> None:
        train(self.model, self.optimizer, step)

    def state(self) -> dict[str, Tensor]:
        return whole(self.model, self.optimizer)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_training_goes_on_while_a_checkpoint_is_written(
    alone: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    run = Run(tmp_path, alone, asynchronous=asynchronous)
    run.train(1)
    saved, go_on = run.state(), threading.Event()
    original = writer._write

    def late(*args: Any) -> int:
        assert not asynchronous or go_on.wait(60)
        return original(*args)

    monkeypatch.setattr(writer, "_write", late)
    held_up = run.saver.save(1, {})
    assert 0 < held_up == run.saver.stall() < 60
    assert complete(tmp_path) == ([] if asynchronous else [tmp_path / "step-00000001"])
    run.train(2)  # what it changes must not come into the checkpoint
    go_on.set()
    run.saver.finish()
    other = Run(tmp_path, alone, seed=2)
    other.saver.restore()
    assert_same(other.state(), saved)


def test_random_numbers_go_on(alone: Ranks, tmp_path: Path) -> None:
    run = Run(tmp_path, alone)
    run.saver.save(1, {}, needed=True)
    expected = torch.rand(3)
    Run(tmp_path, alone, seed=2).saver.restore()
    assert torch.equal(torch.rand(3), expected)


def test_one_flipped_bit_anywhere_is_found(
    alone: Ranks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path, alone)
    run.train(1)
    run.saver.save(1, {}, needed=True)
    good = run.state()
    files = ["rank-00000.0.safetensors", "index.json", "state.json"]
    for number, name in enumerate(files):
        run.train(2)
        run.saver.save(2, {}, needed=True)
        path = tmp_path / "step-00000002" / name
        assert damage(path.parent) is None
        content = bytearray(path.read_bytes())
        place = content.index(b'"step": 2') + 8 if name == "state.json" else (len(content) * 3) // 4
        content[place] ^= 1
        path.write_bytes(content)
        assert "does not match its checksum" in str(damage(path.parent))
        state = run.saver.restore()
        assert state and state["step"] == 1
        assert_same(run.state(), good)
        said = capsys.readouterr().out
        assert f"is damaged ({name} does not match" in said and "step-00000002.damaged" in said, number
    (tmp_path / "step-00000001" / "index.json").unlink()
    with pytest.raises(TrainingError, match=r"every checkpoint in .* is damaged"):
        run.saver.restore()


def test_milestones_are_kept_for_good(alone: Ranks, tmp_path: Path) -> None:
    run = Run(tmp_path, alone, keep_last=2, keep_every=4)
    for step in range(1, 11):
        run.saver.save(step, {})
    run.saver.finish()
    assert [folder.step_of(path) for path in complete(tmp_path)] == [4, 8, 9, 10]


def test_the_base_of_an_adapter_need_not_be_saved(alone: Ranks, tmp_path: Path) -> None:
    def made(seed: int, trainable_only: bool) -> tuple[Net, Checkpointer, torch.optim.Optimizer]:
        model = Net([0, 1], seed)
        for parameter in model.blocks["0"].parameters():
            parameter.requires_grad_(False)
        optimizer = adam(model)
        config = CheckpointConfig()
        saver = Checkpointer(tmp_path, config, model, optimizer, alone, trainable_only=trainable_only)
        return model, saver, optimizer

    model, saver, optimizer = made(1, trainable_only=True)
    train(model, optimizer, 1)
    saver.save(1, {}, needed=True)
    index = json.loads((tmp_path / "step-00000001" / "index.json").read_text())
    assert not any("blocks.0" in name and "seen" not in name for name in index["tensors"])
    for trainable_only in (True, False):
        other, saver, moments = made(2, trainable_only)
        base = other.blocks["0"].up.weight.clone()
        saver.restore()
        assert torch.equal(other.blocks["0"].up.weight, base)
        assert torch.equal(other.blocks["1"].up.weight, model.blocks["1"].up.weight)
        key, ours = model.blocks["1"].up.weight, other.blocks["1"].up.weight
        assert torch.equal(moments.state[ours]["exp_avg"], optimizer.state[key]["exp_avg"])
    # A weight that is trained must be there.
    other.blocks["0"].up.weight.requires_grad_(True)
    with pytest.raises(TrainingError, match=r"blocks.0.up.weight is missing there and \(10, 6\) here"):
        saver.restore()


def test_another_optimizer_starts_afresh_where_it_remembers_other_things(
    alone: Ranks, tmp_path: Path
) -> None:
    """Numbers that are no tensors are kept as well; what was not saved begins at nothing."""

    class Counting(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        state = self.state[parameter]
                        state["count"] = state.get("count", 0) + 1

    model = Net([0], 1)
    for count in (3, 1):
        optimizer = Counting(model.parameters())
        saver = Checkpointer(tmp_path, CheckpointConfig(), model, optimizer, alone)
        saver.restore()
        for step in range(count):
            train(model, optimizer, step)
        if count == 3:
            saver.save(3, {}, needed=True)
    assert [state["count"] for state in optimizer.state.values()] == [4] * 4
    adams = adam(model)
    Checkpointer(tmp_path, CheckpointConfig(), model, adams, alone).restore()
    train(model, adams, 9)
    assert all(state["step"] == 1 for state in adams.state.values())


def test_a_strangers_checkpoint_runs_nothing_and_reads_only_its_own_files(
    alone: Ranks, tmp_path: Path
) -> None:
    run = Run(tmp_path, alone)
    run.saver.save(1, {}, needed=True)
    path = tmp_path / "step-00000001"
    index = (path / "index.json").read_text().replace("rank-00000.0", "../../rank-00000.0")
    (path / "index.json").write_text(index)
    state = json.loads((path / "state.json").read_text())
    del state["checksum"]
    state["files"]["index.json"] = [len(index), folder.checksum_of_file(path / "index.json")]
    (path / "state.json").write_text(json.dumps({**state, "checksum": folder._checksum_of(state)}))
    with pytest.raises(TrainingError, match="which is not beside it: do not trust it"):
        run.saver.restore()


def test_any_reader_of_safetensors_reads_a_checkpoint(alone: Ranks, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    run = Run(tmp_path, alone)
    run.train(1)
    run.saver.save(1, {}, needed=True)
    found = safetensors.load_file(tmp_path / "step-00000001" / "rank-00000.0.safetensors")
    assert torch.equal(found["model.blocks.0.up.weight"], run.model.blocks["0"].up.weight)
