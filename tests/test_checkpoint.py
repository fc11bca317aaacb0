"""Checkpoints: every bit comes back, damage is named, and Ctrl-C waits for the event in hand."""

from __future__ import annotations

import math
import re
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clgym import checkpoint
from clgym.checkpoint import Patience
from clgym.errors import RecordError

DTYPES = ["uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64", "bool"]


def again(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    checkpoint.write(folder, 0, {"part": state})
    states = checkpoint.read(folder)
    assert states is not None
    return states["part"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (7,), (2, 3, 4)])
def test_tensors_come_back_bit_by_bit(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    size = math.prod(shape)
    whole = torch.randint(0, 2 if dtype == "bool" else 120, (size,), generator=torch.Generator().manual_seed(0))
    tensor = whole.to(getattr(torch, dtype)).reshape(shape)
    found = again(tmp_path, {"x": tensor})["x"]
    assert found.dtype == tensor.dtype
    assert found.shape == tensor.shape
    assert torch.equal(found, tensor)


def test_floats_that_arithmetic_would_change(tmp_path: Path) -> None:
    bits = torch.tensor([0x7FC00001, -0x80000000, 1, 0x7F800000], dtype=torch.int32)  # a NaN's payload, -0, tiny, inf
    assert torch.equal(again(tmp_path, {"x": bits.view(torch.float32)})["x"].view(torch.int32), bits)


def test_views_and_parameters_are_written_as_seen(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    state = {"turned": base.T, "part": base[:, 1:3], "again": base, "weight": torch.nn.Parameter(base)}
    found = again(tmp_path, state)
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert not found["weight"].requires_grad


@pytest.mark.parametrize(
    "array",
    [
        np.array(5),
        np.zeros((0, 2), np.uint8),
        np.arange(6).reshape(2, 3).T,
        np.array([True]),
        np.array([1.5], np.float16),
    ],
)
def test_arrays_come_back_as_arrays(tmp_path: Path, array: np.ndarray[Any, Any]) -> None:
    array.flags.writeable = False
    found = again(tmp_path, {"x": array})["x"]
    assert type(found) is np.ndarray
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert np.array_equal(found, array)


def test_json_values_come_back(tmp_path: Path) -> None:
    state = {
        "a/b/c": {"deep": [{"er": [None, True, 1.5e-300, "ü\n"]}]},
        "": 0,
        "big": 2**200,
        "third": 1 / 3,
        "infinite": math.inf,
        "none": None,
    }
    assert again(tmp_path, state) == state
    assert math.isnan(again(tmp_path, {"x": math.nan})["x"])
    assert again(tmp_path, {"x": (1, (2, "a"))}) == {"x": [1, [2, "a"]]}


@pytest.mark.parametrize("value", [np.int64(3), np.float32(0.1), np.float64(0.1), np.True_])
def test_numpy_scalars_come_back_as_arrays_without_dimensions(tmp_path: Path, value: Any) -> None:
    found = again(tmp_path, {"x": value})["x"]
    assert found.shape == ()
    assert found.dtype == value.dtype
    assert found == value


def test_parts_without_state_come_back_empty(tmp_path: Path) -> None:
    states: checkpoint.States = {"agent": {}, "a": {"x/y": torch.ones(1), "x": 1}, "b": {"x": torch.zeros(1)}}
    checkpoint.write(tmp_path, 0, states)
    assert checkpoint.read(tmp_path) == states


@pytest.mark.parametrize(
    ("value", "got"),
    [
        ({1, 2}, "agent/x = {1, 2}"),
        ({1: 2}, "agent/x = {1: 2}"),
        ([{"a": object}], "agent/x = [{'a': <class 'object'>}]"),
        (np.datetime64("2020"), "agent/x = ndarray of datetime64[Y], which safetensors does not hold"),
        (np.array(["a"]), "agent/x = ndarray of <U1, which safetensors does not hold"),
        (np.array([1], ">i4"), "agent/x = ndarray of >i4, which safetensors does not hold"),
        (
            torch.ones(1, dtype=torch.complex128),
            "agent/x = Tensor of torch.complex128, which safetensors does not hold",
        ),
    ],
)
def test_what_would_come_back_changed_is_refused(tmp_path: Path, value: Any, got: str) -> None:
    words = f"Expected arrays, tensors and JSON values in a state; got {got}. Convert it in state_dict()."
    with pytest.raises(RecordError, match=re.escape(words)):
        checkpoint.write(tmp_path, 0, {"agent": {"x": value}})
    assert not list(tmp_path.iterdir())


def test_the_same_states_give_the_same_file(tmp_path: Path) -> None:
    state = {name: torch.arange(5.0) for name in "zyxabc"} | {"k": 1, "j": [2]}
    first = checkpoint.write(tmp_path / "a", 7, {"p": state, "q": {}}).name
    turned = dict(reversed(state.items()))
    assert checkpoint.write(tmp_path / "b", 7, {"p": turned, "q": {}}).name == first


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    assert checkpoint.read(tmp_path / "none") is None
    assert not checkpoint.exists(tmp_path / "none")
    for position in (2, 10, 9, 100):
        checkpoint.write(tmp_path, position, {"a": {"x": position}})
        assert checkpoint.exists(tmp_path)
    assert [path.name[:9] for path in sorted(tmp_path.iterdir())] == ["000000010", "000000100"]
    assert checkpoint.read(tmp_path) == {"a": {"x": 100}}


def test_a_second_one_of_the_same_event_replaces_the_first_only(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, 1, {"a": {"x": 1}})
    for seconds in range(5):
        checkpoint.write(tmp_path, 2, {"a": {"x": seconds}})
        assert checkpoint.read(tmp_path) == {"a": {"x": seconds}}
    assert [path.name[:9] for path in sorted(tmp_path.iterdir())] == ["000000001", "000000002"]


@pytest.mark.parametrize("damage", ["truncated", "emptied", "tampered", "renamed"])
def test_damage_is_named_and_the_one_before_stands(tmp_path: Path, damage: str) -> None:
    before = checkpoint.write(tmp_path, 1, {"a": {"x": torch.ones(3)}})
    path = checkpoint.write(tmp_path, 2, {"a": {"x": torch.zeros(3)}})
    content = path.read_bytes()
    if damage == "renamed":
        path = path.rename(tmp_path / f"{2:09d}-{'0' * 16}.safetensors")
    else:
        changed = {"truncated": content[:-1], "emptied": b"", "tampered": content[:-1] + b"\1"}[damage]
        path.write_bytes(changed)
    with pytest.raises(RecordError) as caught:
        checkpoint.read(tmp_path)
    assert str(caught.value).startswith(f"Expected {path} as clgym wrote it; got sha256 ")
    assert str(caught.value).endswith(f"Delete that file to continue from {before.name}.")
    path.unlink()
    states = checkpoint.read(tmp_path)
    assert states is not None
    assert states["a"]["x"].tolist() == [1, 1, 1]


def test_damage_to_the_only_one(tmp_path: Path) -> None:
    path = checkpoint.write(tmp_path, 1, {"a": {}})
    path.write_bytes(b"")
    with pytest.raises(RecordError, match=r"Delete that file to start again\.$"):
        checkpoint.read(tmp_path)


def test_a_foreign_file_under_its_own_hash(tmp_path: Path) -> None:
    import hashlib

    content = b"not safetensors"
    path = tmp_path / f"{1:09d}-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=re.escape(f"Expected {path} as clgym wrote it; got ")):
        checkpoint.read(tmp_path)


def test_clear_removes_all(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    checkpoint.clear(folder)
    checkpoint.write(folder, 1, {"a": {}})
    checkpoint.clear(folder)
    assert not folder.exists()


def test_ctrl_c_waits_and_is_raised_at_the_end() -> None:
    patience = Patience()
    done = []

    def work() -> None:
        with patience:
            signal.raise_signal(signal.SIGINT)
            assert patience.asked
            done.append("all")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_does_not_wait() -> None:
    def work() -> None:
        with Patience():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("not reached")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_errors_pass_through() -> None:
    def work() -> None:
        with Patience():
            signal.raise_signal(signal.SIGINT)
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        work()


def test_another_handler_and_other_threads_are_left_alone() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        with Patience() as patience:
            signal.raise_signal(signal.SIGINT)
        assert heard == [signal.SIGINT]
        assert not patience.asked
    finally:
        signal.signal(signal.SIGINT, before)

    def elsewhere() -> None:
        with Patience():
            heard.append(0)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert heard == [signal.SIGINT, 0]
