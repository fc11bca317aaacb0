"""Callbacks: what they show, write and send, and that they say so when a package is missing."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from clgym.callbacks import Callback, ProgressBar, TensorBoard, WeightsAndBiases, named_row, need
from clgym.env import ContinualEnv
from clgym.errors import DependencyError, SettingError
from clgym.events import Event, Query, TaskEnd, TaskStart, Train
from clgym.record import RunRecord

Toy = Callable[..., ContinualEnv]

RECORD = RunRecord(
    clgym="",
    scenario="Toy-v0",
    scenario_settings={"tasks": 2},
    source="embedded",
    backbone="none",
    agent="a-v0",
    agent_settings={"lr": 0.1},
    seed=3,
    tasks=["task 0", "task 1"],
    metrics={"average_accuracy": 0.25, "forward_transfer": None},
)


def play(env: ContinualEnv, callback: Callback, folder: Path | None = None, until: int = 10**6) -> None:
    """Play as the runner does, labelling every question 0."""
    event, _ = env.reset(seed=0)
    callback.on_start(env, RECORD, folder)
    while env.position < min(env.length - 1, until):
        seen: Event = event
        answer = np.zeros(len(seen.inputs), np.int64) if isinstance(seen, Query) else None
        event, reward, *_ = env.step(answer)
        callback.on_event(env, seen, reward)
        if isinstance(seen, Query) and not isinstance(event, Query | Train):
            callback.on_point(env, env.tasks_learned)
    if env.position == env.length - 1:
        callback.on_end(env, RECORD)


def test_the_base_does_nothing(toy: Toy) -> None:
    play(toy(), Callback())


def test_a_row_by_name(toy: Toy) -> None:
    env = toy(test=6)
    play(env, Callback())
    # Always 0: right for half of two classes and a third of three.
    assert named_row(env, 2) == {"accuracy/task 0": 0.5, "accuracy/task 1": 1 / 3, "accuracy": (0.5 + 1 / 3) / 2}


def shown(bar: ProgressBar) -> str:
    """Return what the bar's line says now."""
    console = Console(file=io.StringIO(), width=140, force_terminal=True, record=True)
    console.print(bar._progress.get_renderable())
    return console.export_text()


def test_progress_shows_task_events_and_accuracy(toy: Toy) -> None:
    console = Console(file=io.StringIO(), width=140, force_terminal=True, record=True)
    env = toy(test=6)
    lines: list[str] = []

    class Watched(ProgressBar):
        def on_event(self, env: ContinualEnv, event: Event, reward: float) -> None:
            super().on_event(env, event, reward)
            lines.append(shown(self))

    with Watched(console) as bar:
        play(env, bar)
    length = env.length
    assert re.search(rf"a-v0 · seed 3 .* 1/{length} +asking task 0 +acc .*% ", lines[0])
    # The zero-shot round: half of two classes and a third of three, six questions each.
    assert f"4/{length} asking task 1" in lines[3]
    assert "acc 41.7 %" in lines[3]
    assert f"6/{length} learning task 0" in lines[5]
    assert any("learning task 1" in line for line in lines)
    assert "acc 41.7 %" in lines[-1]
    assert "a-v0 · seed 3" in console.export_text(styles=False)
    assert shown(bar).strip() == ""


def test_progress_begins_where_a_resumed_run_does(toy: Toy) -> None:
    env, again = toy(), toy()
    play(env, Callback(), until=7)
    again.reset(options={"resume": env.get_state()})
    bar = ProgressBar(Console(file=io.StringIO()))
    bar.on_start(again, RECORD, None)
    assert f" 7/{again.length} " in shown(bar)


def test_progress_takes_names_as_they_are(toy: Toy) -> None:
    env = toy()
    env.reset(seed=0)
    bar = ProgressBar(Console(file=io.StringIO()))
    bar.on_start(env, RECORD.model_copy(update={"agent": "[/red]"}), None)
    bar.on_event(env, TaskStart(0, "[/bold] [red]x", "", ("a",), (("a",),), 1, 1), 0.0)
    bar.on_event(env, Train(np.zeros((1, 2, 2, 3), np.uint8), np.zeros(1, np.int64), np.zeros(1, np.int64)), 0.0)
    assert "[/red] · seed 3" in shown(bar)
    assert "learning [/bold] [red]x" in shown(bar)


def test_progress_where_tasks_are_hidden(toy: Toy) -> None:
    env = toy(task_given=False, labels="union")
    bar = ProgressBar(Console(file=io.StringIO()))
    play(env, bar, until=1)
    assert "asking all" in shown(bar)
    bar.on_event(env, TaskStart(None, "", "", ("a",), (("a",),), 1, 1), 0.0)
    bar.on_event(env, TaskEnd(None), 0.0)
    bar.on_event(env, Train(np.zeros((1, 2, 2, 3), np.uint8), np.zeros(1, np.int64), np.zeros(1, np.int64)), 0.0)
    assert "learning a task" in shown(bar)


def test_one_bar_for_several_runs(toy: Toy) -> None:
    bar = ProgressBar(Console(file=io.StringIO()))
    play(toy(), bar)
    play(toy(), bar, until=2)
    assert shown(bar).count("a-v0 · seed 3") == 1


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(s.step, s.value) for s in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


@pytest.mark.parametrize("own", [False, True])
def test_tensorboard_scalars_can_be_read_back(toy: Toy, tmp_path: Path, own: bool) -> None:
    env = toy(test=6)
    play(env, TensorBoard(tmp_path / "mine" if own else None), None if own else tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine" if own else "tensorboard"]
    found = scalars(tmp_path / ("mine" if own else "tensorboard"))
    assert set(found) == {"accuracy/task 0", "accuracy/task 1", "accuracy", "metrics/average_accuracy"}
    assert found["accuracy/task 0"] == [(0, 0.5), (1, 0.5), (2, 0.5)]
    assert found["accuracy/task 1"] == [(t, float(np.float32(1 / 3))) for t in range(3)]
    assert found["metrics/average_accuracy"] == [(2, 0.25)]


def test_tensorboard_needs_a_folder(toy: Toy) -> None:
    words = "Expected a folder for TensorBoard; got a run that writes none. Pass TensorBoard(folder) or out=."
    with pytest.raises(SettingError, match=re.escape(words)):
        play(toy(), TensorBoard())


class Wandb(ModuleType):
    """Stands in for the wandb package and notes what it is told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.asked: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.finished = 0

    def init(self, **asked: Any) -> Wandb:
        self.asked = asked
        return self

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def finish(self) -> None:
        self.finished += 1


@pytest.mark.parametrize("folder", [Path("here"), None])
def test_weights_and_biases_is_told_rows_and_metrics(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, folder: Path | None
) -> None:
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    play(toy(test=6), WeightsAndBiases("lab"), folder)
    assert wandb.asked == {
        "project": "lab",
        "name": "Toy-v0/a-v0/3",
        "group": "Toy-v0/a-v0/3",
        "dir": folder and "here",
        "config": {
            "scenario": "Toy-v0",
            "scenario_settings": {"tasks": 2},
            "source": "embedded",
            "agent": "a-v0",
            "agent_settings": {"lr": 0.1},
            "seed": 3,
        },
    }
    assert [row["tasks learned"] for row in wandb.rows] == [0, 1, 2]
    assert wandb.rows[0]["accuracy/task 0"] == 0.5
    assert wandb.summary == {"average_accuracy": 0.25}
    assert wandb.finished == 1


@pytest.mark.parametrize(("make", "package"), [(TensorBoard, "tensorboard"), (WeightsAndBiases, "wandb")])
def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], Callback], package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    words = f"Expected the package {package!r}; got none. Install it with pip install 'clgym-suite[{package}]'."
    with pytest.raises(DependencyError, match=re.escape(words)):
        make()


def test_need_returns_the_module() -> None:
    assert need("json", "none").dumps(1) == "1"
