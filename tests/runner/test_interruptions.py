"""Stops, failures and Ctrl-C at any moment: a run that is resumed ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from clgym import checkpoint, runner
from clgym.callbacks import Callback
from clgym.env import ContinualEnv
from clgym.record import RunRecord
from clgym.runner import run
from tests.runner.conftest import At, Stop, Walker, contents, interrupt, throw


@pytest.mark.parametrize("checkpoint_seconds", [0.0, 60.0])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_stop_at_any_write_changes_nothing(
    tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch, when: str, checkpoint_seconds: float
) -> None:
    real = os.replace
    last, writes = 1, 0
    while last > writes:
        out = tmp_path / str(last)
        writes = 0

        def replace(a: str, b: str, last: int = last) -> None:
            nonlocal writes
            writes += 1
            if when == "before" and writes == last:
                raise Stop
            real(a, b)
            if when == "after" and writes == last:
                raise Stop

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            try:
                run("Toy-v0", "walker", out=out, checkpoint_seconds=checkpoint_seconds)
                break
            except Stop:
                pass
        run("Toy-v0", "walker", out=out, resume=True)
        assert contents(out) == whole
        last, writes = last + 1, 0
    # The record twice, three files, and a checkpoint at every event or boundary: the zero-shot round, and per task
    # its end and its round.
    assert last - 1 == 2 + 3 + (22 if checkpoint_seconds == 0 else 5)


@pytest.mark.parametrize("batch", range(6))
def test_an_agent_that_fails_in_the_middle_of_a_batch(
    tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(Walker, "disturb", lambda now: throw(RuntimeError("boom"))() if now == batch else None)
    with pytest.raises(RuntimeError, match="boom"):
        run("Toy-v0", "walker", out=tmp_path / "b")
    monkeypatch.setattr(Walker, "disturb", None)
    run("Toy-v0", "walker", out=tmp_path / "b", resume=True)
    assert contents(tmp_path / "b") == whole


@pytest.mark.parametrize("batch", range(6))
def test_ctrl_c_in_the_middle_of_a_batch_finishes_it(
    tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    def press(now: int) -> None:
        if now == batch:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Walker, "disturb", staticmethod(press))
    with pytest.raises(KeyboardInterrupt):
        run("Toy-v0", "walker", out=tmp_path / "b")
    states = checkpoint.read(tmp_path / "b" / "Toy-v0" / "walker-v0" / "seed-0" / "checkpoint")
    assert states is not None
    assert states["agent"]["batches"] == batch + 1
    monkeypatch.setattr(Walker, "disturb", None)
    run("Toy-v0", "walker", out=tmp_path / "b", resume=True)
    assert contents(tmp_path / "b") == whole


def test_a_second_ctrl_c_leaves_the_last_checkpoint(
    tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(now: int) -> None:
        if now == 1:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Walker, "disturb", staticmethod(press))
    with pytest.raises(KeyboardInterrupt):
        run("Toy-v0", "walker", out=tmp_path / "b")
    monkeypatch.setattr(Walker, "disturb", None)
    run("Toy-v0", "walker", out=tmp_path / "b", resume=True)
    assert contents(tmp_path / "b") == whole


def test_ctrl_c_again_and_again(tmp_path: Path, whole: dict[str, Any]) -> None:
    for position in range(1, 22):
        press = At(position, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            run("Toy-v0", "walker", out=tmp_path / "b", resume=True, callbacks=[press])
    run("Toy-v0", "walker", out=tmp_path / "b", resume=True)
    assert contents(tmp_path / "b") == whole


def test_ctrl_c_while_the_record_is_written(
    tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clgym.plots.matrix_figure", lambda R, tasks: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run("Toy-v0", "walker", out=tmp_path / "b")
    assert contents(tmp_path / "b") == whole


@pytest.mark.parametrize("method", ["on_start", "on_event", "on_point", "on_end"])
def test_a_callback_that_raises_damages_nothing(
    tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    bad = Callback()
    monkeypatch.setattr(bad, method, throw(ValueError("mine")))
    with pytest.raises(ValueError, match="mine"):
        run("Toy-v0", "walker", out=tmp_path / "b", callbacks=[bad], checkpoint_seconds=0)
    run("Toy-v0", "walker", out=tmp_path / "b", resume=True)
    assert contents(tmp_path / "b") == whole


@pytest.mark.parametrize("position", [3, 8, 15])
def test_a_run_is_known_by_its_checkpoint_alone(tmp_path: Path, whole: dict[str, Any], position: int) -> None:
    folder = interrupt(tmp_path, position)
    (folder / "run.json").unlink()
    started: list[int] = []

    class Watch(Callback):
        def on_start(self, env: ContinualEnv, record: RunRecord, folder: Path | None) -> None:
            started.append(env.position)
            assert folder is not None
            assert RunRecord.load(folder).status == "running"

    run("Toy-v0", "walker", out=tmp_path, resume=True, callbacks=[Watch()])
    assert started == [position - 1]
    assert contents(tmp_path) == whole


def test_an_agent_without_state_resumes(tmp_path: Path) -> None:
    stop = At(8, throw(Stop()))
    with pytest.raises(Stop):
        run("Toy-v0", "zero", out=tmp_path, callbacks=[stop], checkpoint_seconds=0)
    assert run("Toy-v0", "zero", out=tmp_path, resume=True).R == run("Toy-v0", "zero").R


def test_drafts_of_a_killed_process_are_removed(tmp_path: Path, whole: dict[str, Any]) -> None:
    folder = interrupt(tmp_path)
    for name in (".predictions.parquet-x1.draft", ".run.json-x2.draft", "checkpoint/.00-x3.draft"):
        (folder / name).touch()
    run("Toy-v0", "walker", out=tmp_path, resume=True)
    assert contents(tmp_path) == whole


def test_costs_accumulate_over_interruptions(tmp_path: Path) -> None:
    slow, press = At(3, lambda: time.sleep(0.2)), At(4, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run("Toy-v0", "walker", out=tmp_path, callbacks=[slow, press])
    slow = At(10, lambda: time.sleep(0.2))
    resources = run("Toy-v0", "walker", out=tmp_path, resume=True, callbacks=[slow]).resources
    assert 0.4 <= resources["seconds"] < 2
    assert resources["samples"] == 10
    assert len(resources["per_task"]) == 2
    assert resources["train_seconds"] + resources["query_seconds"] < 0.2


def test_the_peak_is_that_of_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "peak_memory", lambda: 10**15)
    interrupt(tmp_path)
    monkeypatch.setattr(runner, "peak_memory", lambda: 7)
    assert run("Toy-v0", "walker", out=tmp_path, resume=True).resources["peak_memory_bytes"] == 10**15
    assert run("Toy-v0", "walker").resources["peak_memory_bytes"] == 7
    monkeypatch.setattr(runner, "peak_memory", lambda: None)
    assert run("Toy-v0", "walker").resources["peak_memory_bytes"] is None


@pytest.mark.parametrize(
    "settings", [{"prequential": True}, {"probe_every": 1}, {"tasks": 3}, {"labels": "seen", "boundaries": "hidden"}]
)
@pytest.mark.parametrize("position", [2, 9, 14])
def test_other_streams_resume_too(tmp_path: Path, settings: dict[str, Any], position: int) -> None:
    expected = run("Toy-v0", "walker", scenario_settings=settings)
    stop = At(position, throw(Stop()))
    with pytest.raises(Stop):
        run("Toy-v0", "walker", out=tmp_path, scenario_settings=settings, callbacks=[stop], checkpoint_seconds=0)
    record = run("Toy-v0", "walker", out=tmp_path, scenario_settings=settings, resume=True)
    assert record.R == expected.R
    assert record.metrics == expected.metrics
