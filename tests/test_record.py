"""The record: what is written comes back, and what was damaged is named."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clgym.errors import RecordError, SettingError
from clgym.record import (
    RunRecord,
    _checksum,
    nullable,
    parquet,
    same_circumstances,
    same_run,
    sha256_of,
    sweep,
    write_atomic,
)


def record(**changes: Any) -> RunRecord:
    values: dict[str, Any] = {
        "clgym": "0.1.0",
        "scenario": "S-v0",
        "source": "embedded",
        "backbone": "none",
        "agent": "a-v0",
        "agent_settings": {"lr": 0.1},
        "seed": 3,
        "R": [[0.5, None], [1 / 3, 1.0]],
        "metrics": {"average_accuracy": 2 / 3, "forward_transfer": None},
        "versions": {"python": "3.11.0", "torch": "2.8.0"},
        "hardware": {"machine": "x86_64", "cores": 2, "threads": 1, "device": "cpu"},
    }
    return RunRecord(**{**values, **changes})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return the folder of a finished run with its files."""
    contents = {"predictions.parquet": parquet({"a": np.arange(9)}), "matrix.png": b"picture"}
    for name, content in contents.items():
        write_atomic(tmp_path / name, content)
    files = {name: sha256_of(tmp_path / name) for name in contents}
    record(status="finished", files=files).save(tmp_path)
    return tmp_path


def test_a_record_comes_back(run: Path) -> None:
    found = RunRecord.load(run)
    assert found == record(status="finished", files=found.files)
    assert found.metrics["average_accuracy"] == 2 / 3
    assert found.matrix.dtype == np.float64
    assert np.array_equal(found.matrix, [[0.5, np.nan], [1 / 3, 1.0]], equal_nan=True)


def test_run_json_is_strict_json(run: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert json.loads((run / "run.json").read_text(), parse_constant=refuse)["R"] == [[0.5, None], [1 / 3, 1.0]]
    with pytest.raises(ValueError, match="not JSON compliant"):
        record(metrics={"a": float("nan")}, R=[[float("inf")]]).save(run)
    assert RunRecord.load(run).status == "finished"


@pytest.mark.parametrize("digit", range(5))
def test_one_changed_digit_is_noticed(run: Path, digit: int) -> None:
    path = run / "run.json"
    text = path.read_text()
    at = [m.start() for m in re.finditer(r"\d", text)]
    place = at[len(at) * digit // 5]
    path.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
    words = (
        f"Expected {path} as clgym wrote it; got other content. Restore it from a copy, or delete it and add --resume"
    )
    with pytest.raises(RecordError, match=re.escape(words)):
        RunRecord.load(run)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"5", b"null", b'"run"', b"{}", b"\xff\xfe", b"[1, 2]"])
def test_no_whole_record(run: Path, content: bytes) -> None:
    path = run / "run.json"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=re.escape(f"Expected whole JSON in {path}; got ")):
        RunRecord.load(run)


def test_every_truncation_of_run_json_is_noticed(run: Path) -> None:
    path = run / "run.json"
    whole = path.read_bytes()
    for size in range(0, len(whole) - 2, 7):
        path.write_bytes(whole[:size])
        with pytest.raises(RecordError, match=r"Expected whole JSON in .*run\.json"):
            RunRecord.load(run)


@pytest.mark.parametrize("name", ["predictions.parquet", "matrix.png"])
@pytest.mark.parametrize("damage", ["truncated", "tampered", "gone"])
def test_a_damaged_file_is_named(run: Path, name: str, damage: str) -> None:
    path = run / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
        words = f"Expected the file {path}; got none. Restore it from a copy, or run again with --overwrite."
    else:
        path.write_bytes(content[:-1] if damage == "truncated" else bytes([content[0] ^ 1]) + content[1:])
        words = f"Expected {path} with sha256 {RunRecord.model_validate(body(run)).files[name][:12]}…; got "
    with pytest.raises(RecordError, match=re.escape(words)):
        RunRecord.load(run)


def body(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "run.json").read_text())
    del content["checksum"]
    return content


def rewrite(folder: Path, content: dict[str, Any]) -> None:
    (folder / "run.json").write_text(json.dumps({**content, "checksum": _checksum(content)}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"note": "mine"}, "got note: Extra inputs are not permitted. Read it with the clgym that wrote it."),
        ({"layout": 2}, "got layout: Input should be 1. Read it with the clgym that wrote it."),
        ({"status": "done"}, "got status: Input should be 'running' or 'finished'. Read it"),
        ({"seed": None}, "got seed: Input should be a valid integer. Read it"),
    ],
)
def test_another_layout_is_refused(run: Path, change: dict[str, Any], words: str) -> None:
    rewrite(run, {**body(run), **change})
    with pytest.raises(RecordError, match=re.escape(f"Expected layout 1 in {run / 'run.json'}; {words}")):
        RunRecord.load(run)


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    words = f"Expected a run folder with run.json; got {tmp_path}. Pass a folder that clgym run wrote."
    with pytest.raises(RecordError, match=re.escape(words)):
        RunRecord.load(tmp_path)


def test_identity_is_scenario_agent_settings_and_seed() -> None:
    assert record().identity == record(R=[], status="finished", versions={}).identity
    assert (
        record(agent_settings={"b": [1, 2], "a": 1}).identity == record(agent_settings={"a": 1, "b": (1, 2)}).identity
    )
    others: list[dict[str, Any]] = [
        {"seed": 4},
        {"source": "hub"},
        {"agent": "b-v0"},
        {"agent_settings": {"lr": 0.2}},
        {"scenario": "T-v0"},
    ]
    assert len({record(**change).identity for change in [{}, *others]}) == 6


def test_another_run_is_refused() -> None:
    same_run(Path("f"), record(), record(R=[]))
    with pytest.raises(RecordError, match=r"Expected the run .*'4'\) in f; got .*'3'\)\. Add --overwrite to replace"):
        same_run(Path("f"), record(), record(seed=4))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"threads": 8}, "Expected 1 threads, as this run began with; got 8. Set OMP_NUM_THREADS=1, or sums differ"),
        ({"device": "H100"}, "Expected device cpu, as this run began with; got H100. Continue it as it began, or add"),
        ({"machine": "arm64"}, "Expected machine x86_64, as this run began with; got arm64. Continue it as it began"),
    ],
)
def test_other_hardware_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=re.escape(words)):
        same_circumstances(record(), record(hardware={**record().hardware, **change}))


def test_other_versions_are_refused_but_for_python() -> None:
    same_circumstances(record(), record(versions={"python": "3.13.0", "torch": "2.8.0"}))
    same_circumstances(record(), record(hardware={**record().hardware, "cores": 64}))
    with pytest.raises(
        SettingError, match=r"Expected torch 2\.8\.0, as this run began with; got 2\.9\.0\. Continue it"
    ):
        same_circumstances(record(), record(versions={"python": "3.11.0", "torch": "2.9.0"}))
    with pytest.raises(
        SettingError, match=r"Expected clgym 0\.1\.0, as this run began with; got 0\.2\.0\. Continue it"
    ):
        same_circumstances(record(), record(clgym="0.2.0"))


@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException
) -> None:
    def fail(*args: object) -> None:
        raise error

    path = tmp_path / "file"
    write_atomic(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail)
        with pytest.raises(type(error)):
            write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_writes_make_folders_that_others_may_read(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    write_atomic(path, b"x")
    assert path.stat().st_mode & 0o777 == 0o644


def test_drafts_of_killed_processes_are_swept_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "run.json", b"x")
    (tmp_path / ".mine").touch()
    with monkeypatch.context() as patch:
        # A killed process neither renames its draft nor removes it.
        patch.setattr(Path, "replace", lambda self, target: None)
        write_atomic(tmp_path / "run.json", b"y")
    assert len(list(tmp_path.iterdir())) == 3
    sweep(tmp_path)
    sweep(tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine", "run.json"]


def test_nullable_keeps_shape_and_values() -> None:
    assert nullable(np.array([[0.1, np.nan], [1.0, 0.0]])) == [[0.1, None], [1.0, 0.0]]
    assert nullable(np.zeros((0, 2))) == []


def test_parquet_is_the_same_for_the_same_columns() -> None:
    columns: dict[str, np.ndarray[Any, Any]] = {
        "a": np.arange(1000),
        "b": np.full(1000, np.nan, np.float32),
        "c": np.array(["x"] * 1000),
    }
    assert parquet(columns) == parquet({name: column.copy() for name, column in columns.items()})
