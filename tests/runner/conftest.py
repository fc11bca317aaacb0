"""Runs of a light agent in a small stream, what must not depend on interruptions, and what interrupts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest

from clgym import registry
from clgym.agent import Agent, AgentSpec, Footprint, Setup
from clgym.callbacks import Callback
from clgym.env import ContinualEnv
from clgym.events import Array, Event, Inputs, Query, Train
from clgym.record import RunRecord
from clgym.runner import run
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


def interrupt(out: Path, position: int = 8, **settings: Any) -> Path:
    """Play up to an event as if killed there; return the run's folder."""
    with pytest.raises(Stop):
        run("Toy-v0", "walker", out=out, callbacks=[At(position, throw(Stop()))], checkpoint_seconds=0, **settings)
    return out / "Toy-v0" / "walker-v0" / "seed-0"
