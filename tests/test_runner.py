"""The runner: what a run leaves behind, how it goes on after any interruption, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
import pytest
import torch

from clgym import checkpoint, registry, runner
from clgym.agent import Agent, AgentSpec, Footprint, Setup
from clgym.callbacks import Callback, named_row
from clgym.env import ContinualEnv
from clgym.errors import NotRegisteredError, RecordError, SettingError
from clgym.events import Array, Event, Inputs, Query, Train
from clgym.record import RunRecord
from clgym.runner import folder_of, run
from clgym.scenario import Scenario

FILES = ["events.parquet", "matrix.png", "predictions.parquet", "run.json"]


class Walker(Agent):
    """Labels by a walk that every training batch moves, so that one step lost or taken twice shows."""

    spec = AgentSpec(id="walker-v0", title="For tests")
    disturb: Callable[[int], None] | None = None

    def __init__(
        self, setup: Setup, *, stride: int = 1, pair: tuple[float, float] = (0.5, 1.0), note: str = ""
    ) -> None:
        super().__init__(setup)
        self.rng = np.random.default_rng(setup.seed)
        self.place = np.array(0)
        self.batches = 0
        self.stride, self.pair, self.note = stride, pair, note

    def learn(self, event: Train) -> None:
        self.place = self.place + self.rng.integers(1000)
        if Walker.disturb is not None:
            Walker.disturb(self.batches)
        self.place = self.place * 3 + int(event.ids.sum()) * self.stride
        self.batches += 1

    def answer(self, event: Query) -> np.ndarray[Any, Any]:
        rng = np.random.default_rng([int(self.place) % 2**32, len(event.inputs)])
        return rng.integers(0, len(event.candidates), len(event.inputs))

    def features(self, inputs: Inputs) -> Array | None:
        return np.diag([float(self.place), *range(1, len(inputs))])

    def footprint(self) -> Footprint:
        return Footprint(trainable=1)

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place % 2**32, "rng": self.rng.bit_generator.state, "batches": self.batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place, self.batches = state["place"], state["batches"]
        self.rng.bit_generator.state = state["rng"]


class Zero(Agent):
    """Has no state and no backbone."""

    spec = AgentSpec(id="zero-v0", title="For tests")

    def answer(self, event: Query) -> np.ndarray[Any, Any]:
        return np.zeros(len(event.inputs), np.int64)


@pytest.fixture(autouse=True)
def registered(toy: Callable[..., ContinualEnv], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Enter a small stream and two light agents in the registry, and draw no pictures."""

    def stream(
        *,
        tasks: int = 2,
        prequential: bool = False,
        probe_every: int = 0,
        labels: str = "task",
        boundaries: str = "given",
        note: str = "",
        extra: float = 0.0,
    ) -> Scenario:
        probes = {"probe_every": probe_every, "probe_size": 2}
        return toy(tasks=tasks, prequential=prequential, labels=labels, boundaries=boundaries, **probes).scenario

    known: dict[str, dict[str, Any]] = {
        "scenarios": {"Toy-v0": SimpleNamespace(spec=toy().scenario.spec, load=lambda: stream)},
        "agents": {
            kind.spec.id: SimpleNamespace(spec=kind.spec, load=lambda kind=kind: kind) for kind in (Walker, Zero)
        },
    }
    monkeypatch.setattr(registry, "entries", lambda room: known[room])
    monkeypatch.setattr("clgym.plots.matrix_figure", lambda R, tasks: None)
    monkeypatch.setattr("clgym.plots.png_bytes", lambda figure: b"picture")
    monkeypatch.setattr(Walker, "disturb", None)
    gymnasium.register("clgym/Toy-v0", entry_point="clgym.registry:build", kwargs={"scenario": "Toy-v0"})
    yield
    del gymnasium.registry["clgym/Toy-v0"]


def contents(out: Path, *, seed: int = 0) -> dict[str, Any]:
    """Return what must not depend on interruptions: the logs' bytes, the matrix, the metrics, the samples."""
    folder = out / "Toy-v0" / "walker-v0" / f"seed-{seed}"
    record = RunRecord.load(folder)
    assert record.status == "finished"
    assert sorted(os.listdir(folder)) == FILES
    resources = record.resources["samples"], record.resources["per_task"]
    logs = [(folder / name).read_bytes() for name in ("predictions.parquet", "events.parquet")]
    return {"logs": logs, "R": record.R, "metrics": record.metrics, "resources": resources}


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, Any]:
    """Return the contents of a run that nothing interrupted."""
    run("Toy-v0", "walker", out=tmp_path / "whole")
    return contents(tmp_path / "whole")


class Stop(BaseException):
    """Ends a run as a kill would: nothing catches it."""


class At(Callback):
    """Does something at an event."""

    def __init__(self, position: int, act: Callable[[], object]) -> None:
        self.position, self.act = position, act

    def on_event(self, env: ContinualEnv, event: Event, reward: float) -> None:
        if env.position == self.position:
            self.act()


def throw(error: BaseException) -> Callable[..., None]:
    def raise_it(*args: object) -> None:
        raise error

    return raise_it


def test_what_a_run_leaves_behind(tmp_path: Path, toy: Callable[..., ContinualEnv]) -> None:
    record = run("Toy-v0", "walker", 5, out=tmp_path)
    folder = tmp_path / "Toy-v0" / "walker-v0" / "seed-5"
    assert sorted(os.listdir(folder)) == FILES
    assert RunRecord.load(folder) == record
    assert record.status == "finished"
    assert record.tasks == ["task 0", "task 1"]
    assert record.matrix.shape == (3, 2)
    assert set(record.fingerprints) == {"spec", "stream", "data"}
    assert set(record.files) == set(FILES) - {"run.json"}
    assert record.resources["samples"] == 10
    assert [task["trainable"] for task in record.resources["per_task"]] == [1, 1]
    assert record.resources["per_task"][0]["state_bytes"] == 8
    assert 0 < record.resources["train_seconds"] + record.resources["query_seconds"] < record.resources["seconds"]
    assert record.resources["peak_memory_bytes"] > 1e7
    log = pd.read_parquet(folder / "predictions.parquet")
    env = toy()
    env.reset(seed=5)
    assert np.array_equal(env.rescore({str(name): log[name].to_numpy() for name in log}).R, record.matrix)
    events = pd.read_parquet(folder / "events.parquet")
    assert events["kind"].iloc[-1] == "End"
    asked = events["kind"] == "Query"
    assert (events["reward"][~asked] == 0).all()
    assert events["reward"][asked].mean() > 0


def test_the_same_seed_gives_the_same_logs(tmp_path: Path, whole: dict[str, Any]) -> None:
    run("Toy-v0", "walker-v0", 0, out=tmp_path / "b")
    run("Toy-v0", "walker-v0", 1, out=tmp_path / "b")
    assert contents(tmp_path / "b") == whole
    assert contents(tmp_path / "b", seed=1) != whole


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders: list[Path | None] = []

    class Watch(Callback):
        def on_start(self, env: ContinualEnv, record: RunRecord, folder: Path | None) -> None:
            folders.append(folder)

    assert run("Toy-v0", "walker", callbacks=[Watch()]).status == "finished"
    assert folders == [None]
    assert not list(tmp_path.iterdir())


def test_resume_on_nothing_starts(tmp_path: Path, whole: dict[str, Any]) -> None:
    run("Toy-v0", "walker", out=tmp_path / "new", resume=True)
    assert contents(tmp_path / "new") == whole


def test_resume_on_a_finished_run_plays_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = run("Toy-v0", "walker", out=tmp_path)
    folder = tmp_path / folder_of(record)
    checkpoint.write(folder / "checkpoint", 1, {"a": {}})  # as a kill after the record's last line leaves it
    monkeypatch.setattr(Walker, "__init__", throw(AssertionError()))
    assert run("Toy-v0", "walker", out=tmp_path, resume=True) == record
    assert sorted(os.listdir(folder)) == FILES


def test_a_run_that_is_there_is_not_touched(tmp_path: Path) -> None:
    record = run("Toy-v0", "walker", out=tmp_path)
    folder = tmp_path / folder_of(record)
    words = f"Expected a new run; got {folder}, which holds one that is finished. Add --resume to continue it or "
    with pytest.raises(SettingError, match=re.escape(words)):
        run("Toy-v0", "walker", out=tmp_path)
    assert RunRecord.load(folder) == record


def interrupt(out: Path, position: int = 8, **settings: Any) -> Path:
    """Play up to an event as if killed there; return the run's folder."""
    with pytest.raises(Stop):
        run("Toy-v0", "walker", out=out, callbacks=[At(position, throw(Stop()))], checkpoint_seconds=0, **settings)
    return out / "Toy-v0" / "walker-v0" / "seed-0"


@pytest.mark.parametrize("gone", [False, True])
def test_an_unfinished_run_is_not_touched(tmp_path: Path, gone: bool) -> None:
    folder = interrupt(tmp_path)
    if gone:
        (folder / "run.json").unlink()
    before = sorted(folder.rglob("*"))
    with pytest.raises(SettingError, match=r"which holds one that is running\. Add --resume to continue it or --overw"):
        run("Toy-v0", "walker", out=tmp_path)
    assert sorted(folder.rglob("*")) == before


def test_overwrite_removes_that_run_and_no_other(tmp_path: Path, whole: dict[str, Any]) -> None:
    folder = interrupt(tmp_path)
    run("Toy-v0", "walker", 1, out=tmp_path)
    other = contents(tmp_path, seed=1)
    (folder / "old" / "deep").mkdir(parents=True)
    (folder / "old" / "deep" / "file").touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    (folder / "link").symlink_to(elsewhere)
    run("Toy-v0", "walker", out=tmp_path, overwrite=True)
    assert contents(tmp_path) == whole
    assert contents(tmp_path, seed=1) == other
    assert (elsewhere / "precious").exists()


def test_a_bad_setting_overwrites_nothing(tmp_path: Path) -> None:
    record = run("Toy-v0", "walker", out=tmp_path)
    with pytest.raises(SettingError, match=r"Expected a registered setting of walker-v0; got 'strife'\. Did you mean"):
        run("Toy-v0", "walker", out=tmp_path, overwrite=True, strife=1)
    assert RunRecord.load(tmp_path / folder_of(record)) == record


def test_a_killed_overwrite_leaves_no_run_that_looks_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / folder_of(run("Toy-v0", "walker", out=tmp_path))
    real = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        real(path, missing_ok)
        raise Stop

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(Stop):
        run("Toy-v0", "walker", out=tmp_path, overwrite=True)
    monkeypatch.undo()
    with pytest.raises(RecordError, match=r"Expected the file .*; got none\. Restore it"):
        RunRecord.load(folder)


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


def test_a_run_outside_the_main_thread(tmp_path: Path, whole: dict[str, Any]) -> None:
    thread = threading.Thread(target=run, args=("Toy-v0", "walker"), kwargs={"out": tmp_path / "b"})
    thread.start()
    thread.join()
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
    "settings", [{}, {"prequential": True}, {"probe_every": 1}, {"prequential": True, "probe_every": 1}]
)
def test_points_and_checkpoints_come_at_boundaries_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    written: list[int] = []
    points: list[tuple[int, bool]] = []
    monkeypatch.setattr(checkpoint, "write", lambda folder, position, states: written.append(position))

    class Watch(Callback):
        def on_point(self, env: ContinualEnv, after: int) -> None:
            points.append((after, bool(np.isnan(env.report().R[after]).any())))

    run("Toy-v0", "walker", out=tmp_path, callbacks=[Watch()], scenario_settings={"tasks": 3, **settings})
    assert points == [(t, False) for t in range(4)]
    assert len(written) == 7


@pytest.mark.parametrize("boundaries", ["given", "hidden"])
def test_points_of_a_stream_that_asks_seen_tasks_only(tmp_path: Path, boundaries: str) -> None:
    rows: list[dict[str, float]] = []

    class Watch(Callback):
        def on_point(self, env: ContinualEnv, after: int) -> None:
            rows.append(named_row(env, after))

    settings = {"tasks": 3, "labels": "seen", "boundaries": boundaries}
    record = run("Toy-v0", "walker", out=tmp_path, callbacks=[Watch()], scenario_settings=settings)
    assert [len(row) - 1 for row in rows] == [1, 2, 3]
    assert [row["accuracy"] for row in rows] == pytest.approx([np.nanmean(row) for row in record.matrix[1:]])
    assert record.R[0] == [None, None, None]
    assert record.metrics["forward_transfer"] is None
    found = RunRecord.load(tmp_path / folder_of(record))
    assert np.array_equal(found.matrix, record.matrix, equal_nan=True)
    assert found.metrics == record.metrics


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


def test_callbacks_see_every_event_once_and_the_reward(tmp_path: Path) -> None:
    seen: list[tuple[int, float]] = []

    class Watch(Callback):
        def on_event(self, env: ContinualEnv, event: Event, reward: float) -> None:
            seen.append((env.position, reward))
            assert isinstance(event, Query) or reward == 0

    record = run("Toy-v0", "walker", out=tmp_path, callbacks=[Watch()])
    events = pd.read_parquet(tmp_path / folder_of(record) / "events.parquet")
    assert [position for position, _ in seen] == list(range(1, len(events)))
    assert [reward for _, reward in seen] == events["reward"].tolist()[:-1]


def test_metrics_that_are_no_numbers_are_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clgym.scorer.scores", lambda R, **kw: {"a": np.float64(0.5), "b": np.nan, "c": np.inf})
    record = run("Toy-v0", "walker", out=tmp_path)
    assert record.metrics == {"a": 0.5, "b": None, "c": None}
    assert RunRecord.load(tmp_path / folder_of(record)) == record


def named(**settings: Any) -> str:
    record = RunRecord(clgym="", scenario="S-v0", source="", backbone="", agent="a-v0", seed=0, agent_settings=settings)
    return folder_of(record).as_posix()


def test_settings_stand_in_the_name() -> None:
    assert named(lr=1e-5, order="II", deep=True, r=16) == "S-v0/a-v0,deep=true,lr=1e-05,order=II,r=16/seed-0"


NASTY = [
    "../../etc/passwd",
    "..",
    "/",
    "",
    "a/b",
    "a~b",
    "a:b",
    "a,b=c",
    "1",
    "true",
    "null",
    "ü",
    "u\u0308",
    "a b",
    "a\nb",
    "a\0b",
    "x" * 300,
    "x" * 301,
    1,
    1.0,
    "1.0",
    True,
    None,
    [1, 2],
    [1, "2"],
    "[1, 2]",
    {"a": 1},
    "C:\\data",
]


def test_nasty_settings_are_safe_names_and_never_share_one() -> None:
    names = [named(note=value) for value in NASTY]
    assert len(set(names)) == len(NASTY)
    for name in names:
        scenario, agent, seed = name.split("/")
        assert (scenario, seed) == ("S-v0", "seed-0")
        assert re.fullmatch(r"a-v0,note=[A-Za-z0-9_.,=+~-]*", agent)
        assert len(agent) <= 200


def test_separators_in_values_are_not_those_of_settings() -> None:
    assert named(a="x,b=y") != named(a="x", b="y")
    assert named(**{f"k{i}": i for i in range(60)}) != named(**{f"k{i}": i for i in range(59)}, k59=60)


@pytest.mark.parametrize("note", ["a/b", "II", "x" * 400])
def test_a_run_is_found_again_by_its_settings(tmp_path: Path, note: str) -> None:
    chosen: dict[str, Any] = {"scenario_settings": {"note": note}, "note": note, "pair": (0.1, 1), "stride": 1}
    record = run("Toy-v0", "walker", out=tmp_path, **chosen)
    assert record.scenario_settings == {"note": note}
    assert record.agent_settings == {"note": note, "pair": [0.1, 1]}
    loaded = RunRecord.load(tmp_path / folder_of(record))
    assert loaded == record
    assert folder_of(loaded) == folder_of(record)
    assert run("Toy-v0", "walker", out=tmp_path, resume=True, **chosen) == record
    assert json.loads((tmp_path / folder_of(record) / "run.json").read_text())["agent_settings"]["note"] == note


def test_settings_that_are_the_defaults_are_not_noted(tmp_path: Path) -> None:
    record = run("Toy-v0", "walker", stride=1, pair=[0.5, 1.0], scenario_settings={"tasks": 2, "extra": 0})
    assert record.agent_settings == {}
    assert record.scenario_settings == {}


def test_hardware_and_peak_memory() -> None:
    found = runner.hardware("cpu")
    assert found["device"] == "cpu"
    assert found["threads"] == torch.get_num_threads()
    assert found["cores"] == os.cpu_count()
    peak = runner.peak_memory()
    assert peak is None or 1e7 < peak < 1e12


def test_whitebox_columns_are_kept_before_training_and_at_each_task_end(tmp_path: Path, whole: dict[str, Any]) -> None:
    record = run("Toy-v0", "walker", out=tmp_path, whitebox=True)
    rows = record.resources["whitebox"]
    assert [sorted(row) for row in rows] == [["effective_rank", "srank", "stable_rank"]] * 3
    # Eight held-out inputs: before training the singular values are 0, 1, ..., 7.
    assert rows[0]["stable_rank"] == pytest.approx(sum(k * k for k in range(8)) / 49)
    assert contents(tmp_path) == whole
    assert RunRecord.load(tmp_path / folder_of(record)) == record


def test_whitebox_columns_of_an_interrupted_run_are_those_of_a_whole_one(tmp_path: Path) -> None:
    whole = run("Toy-v0", "walker", whitebox=True)
    for position in range(1, 20, 3):
        interrupt(tmp_path / str(position), position, whitebox=True)
        record = run("Toy-v0", "walker", out=tmp_path / str(position), resume=True, whitebox=True)
        assert record.resources["whitebox"] == whole.resources["whitebox"]


@pytest.mark.parametrize(("began", "now"), [(True, False), (False, True)])
def test_whitebox_columns_are_kept_from_the_start_or_not_at_all(tmp_path: Path, began: bool, now: bool) -> None:
    interrupt(tmp_path, whitebox=began)
    words = {True: "with", False: "without"}
    match = (
        f"Expected a run {words[began]} white-box columns, as it began; got one {words[now]} them. "
        f"Continue it {words[began]} --whitebox, or add --overwrite to start again."
    )
    with pytest.raises(SettingError, match=re.escape(match)):
        run("Toy-v0", "walker", out=tmp_path, resume=True, whitebox=now)


def test_a_finished_run_without_whitebox_columns_gets_none(tmp_path: Path) -> None:
    run("Toy-v0", "walker", out=tmp_path)
    with pytest.raises(
        SettingError, match=r"columns; got .*seed-0, which is finished without them\. Add --overwrite to"
    ):
        run("Toy-v0", "walker", out=tmp_path, resume=True, whitebox=True)
    with_them = run("Toy-v0", "walker", out=tmp_path, overwrite=True, whitebox=True)
    assert run("Toy-v0", "walker", out=tmp_path, resume=True) == with_them


def test_an_agent_that_offers_nothing_has_no_whitebox_columns() -> None:
    assert run("Toy-v0", "zero", whitebox=True).resources["whitebox"] == [{}, {}, {}]
    assert "whitebox" not in run("Toy-v0", "zero").resources


def test_each_generator_can_have_a_seed_of_its_own(tmp_path: Path) -> None:
    def played(**seeds: int) -> tuple[str, str, list[float | None]]:
        stream = {name: seed for name, seed in seeds.items() if name != "agent_seed"}
        agent: dict[str, Any] = {name: seed for name, seed in seeds.items() if name == "agent_seed"}
        record = run("Toy-v0", "walker", 0, out=tmp_path, scenario_settings=stream, **agent)
        log = (tmp_path / folder_of(record) / "predictions.parquet").read_bytes()
        return hashlib.sha256(log).hexdigest(), record.fingerprints["stream"], record.R[-1]

    plain = played()
    assert played(agent_seed=7)[0] != plain[0]
    assert played(agent_seed=7, data_seed=0)[1] == plain[1]  # of another name, but the same stream
    assert played(order_seed=0, data_seed=0, agent_seed=0) == plain
    assert len({played(order_seed=7)[1], played(data_seed=7)[1], plain[1]}) == 3
    assert sorted(path.name for path in (tmp_path / "Toy-v0").iterdir()) == ["walker-v0", "walker-v0,agent_seed=7"]


def test_a_seed_of_a_generator_is_a_whole_number() -> None:
    words = "Expected {} as a whole number of 0 or more; got {}. Leave it out to follow the run's seed."
    for bad in (-1, 0.5, True, "3"):
        with pytest.raises(SettingError, match=re.escape(words.format("agent_seed", repr(bad)))):
            run("Toy-v0", "walker", agent_seed=bad)
        with pytest.raises(SettingError, match=re.escape(words.format("order_seed", repr(bad)))):
            run("Toy-v0", "walker", scenario_settings={"order_seed": bad})
