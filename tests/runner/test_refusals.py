"""What a run refuses: wrong arguments, damaged files, and to go on where something else began."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from clgym import runner
from clgym.callbacks import Callback
from clgym.env import ContinualEnv
from clgym.errors import NotRegisteredError, RecordError, SettingError
from clgym.record import RunRecord
from clgym.runner import folder_of, run
from tests.runner.conftest import Walker, contents, interrupt


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"resume": True, "overwrite": True}, "Expected resume or overwrite; got both. Leave one out."),
        ({"seed": -1}, "Expected a seed of 0 or more; got -1. Choose another."),
        ({"stride": {1}}, "Expected stride to be a JSON value; got {1}. Pass a finite number, text, truth value or"),
        ({"stride": float("nan")}, "Expected stride to be a JSON value; got nan. Pass a finite number"),
        ({"scenario_settings": {"note": Path("a")}}, "Expected note to be a JSON value; got PosixPath('a'). Pass"),
    ],
)
def test_arguments_that_are_refused(tmp_path: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=re.escape(words)):
        run("Toy-v0", "walker", out=tmp_path, **arguments)
    assert not list(tmp_path.iterdir())


def test_unknown_ids(tmp_path: Path) -> None:
    with pytest.raises(NotRegisteredError, match="Expected a registered agent; got 'walkr'"):
        run("Toy-v0", "walkr", out=tmp_path)


@pytest.mark.parametrize("name", ["run.json", "checkpoint"])
def test_a_damaged_file_is_refused_and_the_rest_continues(tmp_path: Path, whole: dict[str, Any], name: str) -> None:
    folder = interrupt(tmp_path, 10)
    path = max(folder.glob("checkpoint/*")) if name == "checkpoint" else folder / name
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(RecordError, match=re.escape(str(path))):
        run("Toy-v0", "walker", out=tmp_path, resume=True)
    path.unlink()
    begun: list[int] = []

    class Watch(Callback):
        def on_start(self, env: ContinualEnv, record: RunRecord, folder: Path | None) -> None:
            begun.append(env.position)

    run("Toy-v0", "walker", out=tmp_path, resume=True, callbacks=[Watch()])
    assert begun == [9 if name == "run.json" else 8]
    assert contents(tmp_path) == whole


def test_a_damaged_finished_run_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / folder_of(run("Toy-v0", "walker", out=tmp_path))
    path = folder / "predictions.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RecordError, match=re.escape(f"Expected {path} with sha256 ")):
        run("Toy-v0", "walker", out=tmp_path, resume=True)


@pytest.mark.parametrize("keep", [("run.json", "checkpoint"), ("checkpoint",), ("run.json",)])
def test_another_run_in_the_folder_is_refused(tmp_path: Path, keep: tuple[str, ...]) -> None:
    folder = interrupt(tmp_path)
    wrong = folder.with_name("seed-1")
    wrong.mkdir()
    for name in keep:
        copy: Any = shutil.copytree if name == "checkpoint" else shutil.copy
        copy(folder / name, wrong / name)
    with pytest.raises(RecordError, match=r"Expected the run .*'1'\) in .*seed-1.*'0'\)\. Add --overwrite to replace"):
        run("Toy-v0", "walker", 1, out=tmp_path, resume=True)


def test_other_threads_are_refused(tmp_path: Path, whole: dict[str, Any]) -> None:
    interrupt(tmp_path)
    torch.set_num_threads(2)
    try:
        words = "Expected 1 threads, as this run began with; got 2. Set OMP_NUM_THREADS=1, or sums differ in their last"
        with pytest.raises(SettingError, match=words):
            run("Toy-v0", "walker", out=tmp_path, resume=True)
    finally:
        torch.set_num_threads(1)
    run("Toy-v0", "walker", out=tmp_path, resume=True)
    assert contents(tmp_path) == whole


def test_other_versions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(tmp_path)
    real = runner.versions()
    monkeypatch.setattr(runner, "versions", lambda: {**real, "torch": "1.0"})
    with pytest.raises(SettingError, match=r"Expected torch .*, as this run began with; got 1\.0\. Continue it as it"):
        run("Toy-v0", "walker", out=tmp_path, resume=True)


def test_other_data_are_refused(
    tmp_path: Path, toy: Callable[..., ContinualEnv], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(tmp_path)
    pixels = type(toy().scenario.tasks(np.random.default_rng(0))[0].train)
    monkeypatch.setattr(pixels, "fingerprint", lambda self: "other")
    words = r"Expected the data with sha256 \w{12} that this run began with; got \w{12}\. Restore what has changed, or"
    with pytest.raises(RecordError, match=words):
        run("Toy-v0", "walker", out=tmp_path, resume=True)


def test_another_backbone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Walker, "backbone", SimpleNamespace(sha256="a" * 64), raising=False)
    interrupt(tmp_path)
    monkeypatch.setattr(Walker, "backbone", SimpleNamespace(sha256="b" * 64))
    with pytest.raises(
        RecordError, match=r"Expected the backbone with sha256 a{12} that this run began with; got b{12}"
    ):
        run("Toy-v0", "walker", out=tmp_path, resume=True)
