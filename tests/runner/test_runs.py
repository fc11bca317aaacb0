"""What a run leaves behind, what callbacks see of it, and the seeds of its generators."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from clgym import checkpoint, runner
from clgym.callbacks import Callback, named_row
from clgym.env import ContinualEnv
from clgym.errors import SettingError
from clgym.events import Event, Query
from clgym.record import RunRecord
from clgym.runner import folder_of, run
from tests.runner.conftest import FILES, contents


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


def test_a_run_outside_the_main_thread(tmp_path: Path, whole: dict[str, Any]) -> None:
    thread = threading.Thread(target=run, args=("Toy-v0", "walker"), kwargs={"out": tmp_path / "b"})
    thread.start()
    thread.join()
    assert contents(tmp_path / "b") == whole


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


def test_hardware_and_peak_memory() -> None:
    found = runner.hardware("cpu")
    assert found["device"] == "cpu"
    assert found["threads"] == torch.get_num_threads()
    assert found["cores"] == os.cpu_count()
    peak = runner.peak_memory()
    assert peak is None or 1e7 < peak < 1e12


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
