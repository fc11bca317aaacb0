"""Sweeps on a Ray cluster of two nodes on this machine, one of which is killed while it plays."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from clgym.errors import WorkerError
from clgym.grid import Cell, cell
from clgym.record import RunRecord
from clgym.sweep import Outcome, Watch, sweep
from clgym.sweep_ray import _ending, play_on_ray
from clgym.worker import Ending, Order, Progress

ray = pytest.importorskip("ray")
pytest.importorskip("ray.cluster_utils")

MTIL = "CLIP-MTIL-v0"
LONG, SHORT = ({"tasks": 2, "steps": steps} for steps in (40, 3))
LENGTH = 94  # events of the long stream

# Ray leaves sockets, files and processes to the interpreter's end, and says what will change in it.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray.*"),
]


@pytest.fixture(scope="module")
def cluster(drilled: None) -> Iterator[Any]:
    """A cluster of two nodes with one CPU each, whose runs take their time; this process is its driver."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("DRILL_PAUSE", "0.05")
        from ray.cluster_utils import Cluster

        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
        made.other = made.add_node(num_cpus=1, num_gpus=0)
        ray.init(address=made.address, log_to_driver=False)
        patch.delenv("DRILL_PAUSE")
        yield made
        ray.shutdown()
        made.shutdown()


class Until(Watch):
    """Does something once, as soon as all of some cells are beyond an event."""

    def __init__(self, cells: Sequence[Cell], position: int, act: Callable[[], None]) -> None:
        self.at = dict.fromkeys((one.path for one in cells), 0)
        self.position, self.act, self.acted, self.stopped = position, act, False, False

    def on_progress(self, cell: Cell, progress: Progress) -> None:
        if cell.path in self.at:
            self.at[cell.path] = progress.position
        if not self.acted and min(self.at.values()) > self.position:
            self.acted = True
            self.act()

    def on_stop(self) -> None:
        self.stopped = True


def told(record: RunRecord | None) -> dict[str, Any]:
    """What a record says but for circumstances."""
    assert record is not None
    return record.model_dump(exclude={"resources"})


def continued(outcome: Outcome) -> list[int]:
    """The events after which a run was continued, as its log says."""
    log = outcome.folder / "log.txt"
    return [int(n) for n in re.findall(r"Continued after event (\d+)", log.read_text())] if log.exists() else []


def test_runs_survive_ctrl_c_and_the_death_of_a_node(
    cluster: Any, here: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = [cell(MTIL, "drill", seed, scenario_settings=LONG) for seed in (0, 1)]
    dies = cell(MTIL, "drill", scenario_settings=SHORT, agent_settings={"die": str(tmp_path / "died")})
    options: dict[str, Any] = {"threads": 1, "device": "cpu", "checkpoint_seconds": 0}

    def ctrl_c() -> None:
        raise KeyboardInterrupt

    watch = Until(long, 10, ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        sweep(long, tmp_path / "ray", ray=cluster.address, watch=watch, **options)
    assert watch.stopped
    kept = [max((tmp_path / "ray" / one.path / "checkpoint").iterdir()) for one in long]
    assert all(10 < int(path.name[:9]) < LENGTH for path in kept)
    time.sleep(0.5)
    assert all(path.exists() for path in kept)  # nothing plays on

    watch = Until(long, 40, lambda: cluster.remove_node(cluster.other, allow_graceful=False))
    outcomes = sweep([*long, dies], tmp_path / "ray", ray=cluster.address, watch=watch, **options)
    assert watch.acted
    assert [outcome.error for outcome in outcomes] == ["", "", ""]
    lives = sorted(continued(outcome) for outcome in outcomes[:2])
    assert sorted(map(len, lives)) == [1, 2]  # one of the two was on the node that died
    assert max(max(life) for life in lives) > 40
    assert len(continued(outcomes[2])) == 1
    alone = sweep([*long, dies], tmp_path / "here", jobs=1, **options)
    assert [told(outcome.record) for outcome in outcomes] == [told(outcome.record) for outcome in alone]


def test_what_ray_raises_is_told_as_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(reference: Exception) -> None:
        raise reference

    monkeypatch.setattr(ray, "get", lost)
    failed = ray.exceptions.RayTaskError("play", "Traceback", WorkerError("Expected a process; got none. Wait."))
    assert _ending(ray, failed) == Ending("failed", "WorkerError", "Expected a process; got none. Wait.")
    ending = _ending(ray, ray.exceptions.NodeDiedError("gone\n away"))
    assert (ending.state, ending.kind) == ("died", "WorkerError")
    assert ending.error == (
        "Expected a worker that plays to the end; got NodeDiedError: gone away. "
        "Look at the cluster, and start the sweep again."
    )


def test_without_a_cluster_one_is_started_here(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: asked.append(options["address"]))
    monkeypatch.setattr(ray, "shutdown", lambda: asked.append("shutdown"))
    monkeypatch.setattr("clgym.sweep_ray._play_all", lambda *args: asked.append("play"))
    for address in ("", "head:6379"):
        play_on_ray([], address, None, lambda order, news: None, lambda: None)
    assert asked == [None, "play", "shutdown", "head:6379", "play", "shutdown"]


def test_a_cluster_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(**options: object) -> None:
        raise ConnectionError("no answer")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", unreachable)
    with pytest.raises(WorkerError) as caught:
        play_on_ray([Order("", "cpu", "fp32", 60.0, 1, "")], "head:1", None, lambda order, news: None, lambda: None)
    assert str(caught.value) == (
        "Expected a Ray cluster at 'head:1'; got no answer. Start one with ray start --head, or leave the address out."
    )
