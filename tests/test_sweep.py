"""Sweeps on this machine; what a child does is done in this process where nothing depends on its being one."""

from __future__ import annotations

import _thread
import shutil
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from clgym import checkpoint
from clgym.errors import SettingError
from clgym.grid import Cell, cell, grid
from clgym.record import RunRecord
from clgym.runner import run
from clgym.sweep import Outcome, Watch, finished, sweep
from clgym.sweep_here import cores, slots_of
from clgym.worker import Ending, Order, Player, Progress

MTIL = "CLIP-MTIL-v0"
SMALL = {"tasks": 2, "steps": 3}
swept = partial(sweep, jobs=1, threads=1, device="cpu")

pytestmark = pytest.mark.usefixtures("drilled")


def small(agents: str | Sequence[str], seeds: Sequence[int] = (0,), **chosen: Sequence[Any]) -> list[Cell]:
    """A small grid; ``chosen`` are settings of the agent ``drill``."""
    stage = {MTIL: {name: [value] for name, value in SMALL.items()}}
    return grid(MTIL, agents, seeds, scenario_settings=stage, agent_settings={"drill": chosen} if chosen else None)


def told(record: RunRecord) -> dict[str, Any]:
    """What a record says but for circumstances."""
    return record.model_dump(exclude={"resources", "hardware"})


class Diary(Watch):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def on_plan(self, finished: Sequence[Cell], waiting: Sequence[Cell]) -> None:
        self.words.append(f"{len(finished)} finished, {len(waiting)} waiting")

    def on_progress(self, cell: Cell, progress: Progress) -> None:
        self.words.append(f"{cell.seed} at {progress.position}")

    def on_outcome(self, outcome: Outcome) -> None:
        self.words.append(f"{outcome.cell.seed} {'failed' if outcome.error else 'finished'}")

    def on_stop(self) -> None:
        self.words.append("stop")


def test_a_sweep_plays_what_is_not_finished_and_nothing_twice(here: list[str], tmp_path: Path) -> None:
    diary = Diary()
    first = swept(small("drill", [0, 1]), tmp_path, watch=diary)
    assert diary.words == ["0 finished, 2 waiting", "0 at 1", "0 finished", "1 at 1", "1 finished"]
    assert [outcome.folder for outcome in first] == [tmp_path / path for path in here]
    diary.words.clear()
    cells = small("drill", [2, 1, 0])
    again = swept(cells, tmp_path, watch=diary)
    assert [outcome.cell for outcome in again] == cells
    assert diary.words == ["2 finished, 1 waiting", "2 at 1", "2 finished"]
    assert len(here) == 3
    assert again[2].record == first[0].record
    swept(cells, tmp_path)
    assert len(here) == 3


def test_a_cells_path_is_where_its_run_is(here: list[str], tmp_path: Path) -> None:
    cells = small("drill", betas=[(0.5, 0.9)], say=["a, b", "1"])
    outcomes = swept(cells, tmp_path)
    assert [outcome.record and outcome.record.agent_settings for outcome in outcomes] == [
        {"betas": [0.5, 0.9], "say": "a, b"},
        {"betas": [0.5, 0.9], "say": "1"},
    ]
    assert {path.parent.relative_to(tmp_path) for path in tmp_path.rglob("run.json")} == {one.path for one in cells}


def test_a_failing_cell_stops_no_other(here: list[str], tmp_path: Path) -> None:
    cells = small("drill", fail=["no such thing", ""])
    failed, good = swept(cells, tmp_path)
    assert (failed.record, failed.kind, failed.error) == (None, "ValueError", "no such thing")
    assert failed.log == tmp_path / cells[0].path / "log.txt"
    assert good.record is not None
    assert good.record.status == "finished"
    assert len(here) == 2
    swept(cells, tmp_path)
    assert here[2:] == [str(cells[0].path)]


def test_a_damaged_run_fails_with_the_name_of_the_file(here: list[str], tmp_path: Path) -> None:
    (one,) = small("drill")
    swept([one], tmp_path)
    (tmp_path / one.path / "predictions.parquet").write_bytes(b"PAR1")
    assert finished(one, tmp_path) is None
    (outcome,) = swept([one], tmp_path)
    assert outcome.kind == "RecordError"
    assert "predictions.parquet with sha256" in outcome.error


def test_a_run_that_is_not_here_is_said_to_be_elsewhere(
    here: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clgym.sweep_here.Player.follow", lambda self, tell: Ending("finished"))
    (outcome,) = swept(small("drill"), tmp_path)
    assert outcome.error == (
        f"Expected the finished run in {outcome.folder}; got none. Choose a folder that all nodes share."
    )


def test_a_folder_that_cannot_be_written_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (outcome,) = swept(small("drill"), tmp_path / "file")
    assert outcome.kind == "NotADirectoryError"


def test_an_error_of_our_own_is_raised_once_nothing_is_played(
    here: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object, tell: object) -> Ending:
        raise ZeroDivisionError

    monkeypatch.setattr("clgym.sweep_here.Player.follow", broken)
    with pytest.raises(ZeroDivisionError):
        swept(small("drill"), tmp_path)


def test_an_empty_sweep(tmp_path: Path) -> None:
    assert sweep([], tmp_path) == []


@pytest.mark.parametrize("name", ["jobs", "threads", "gpus"])
def test_numbers_are_not_negative(name: str, tmp_path: Path) -> None:
    wrong: dict[str, Any] = {name: -1}
    with pytest.raises(SettingError, match=f"Expected {name} of 0 or more; got -1. Leave it out for the default."):
        sweep([], tmp_path, **wrong)


def test_an_unknown_device_is_refused_before_anything_is_played(here: list[str], tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="Expected device 'auto', 'cpu' or 'cuda'; got 'tpu'"):
        sweep(small("drill"), tmp_path, device="tpu")
    assert here == []


def test_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    assert slots_of(0, "cpu") == [""] * cores()
    assert slots_of(3, "cpu") == ["", "", ""]
    monkeypatch.setattr("clgym.sweep_here.pick_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert slots_of(0, "auto") == ["0", "1"]
    assert slots_of(3, "auto") == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-5,6")
    assert slots_of(0, "cuda") == ["4", "GPU-5", "6"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    assert slots_of(2, "cuda") == ["", ""]


def test_an_order_names_threads_and_gpu() -> None:
    order = Order("runs", "cpu", "fp32", 60.0, 3, ".", gpu="4")
    assert order.environment["OMP_NUM_THREADS"] == "3"
    assert order.environment["CUDA_VISIBLE_DEVICES"] == "4"


@pytest.mark.parametrize(("jobs", "threads", "each"), [(1, 0, cores()), (1, 5, 5), (2 * cores(), 0, 1)])
def test_threads_are_cores_by_jobs(
    jobs: int, threads: int, each: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[Order] = []
    monkeypatch.setattr("clgym.sweep.play_here", lambda found, *more: orders.extend(found) or 1 / 0)  # type: ignore[func-returns-value]
    with pytest.raises(ZeroDivisionError):
        sweep(small("drill"), tmp_path, jobs=jobs, threads=threads, device="cpu")
    assert [order.threads for order in orders] == [each]


@pytest.fixture(scope="module")
def interrupted(drilled: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Cell, Path, list[str]]:
    """A run of 60 steps, played by a child with one thread and stopped by Ctrl-C; what the sweep said of it."""
    out = tmp_path_factory.mktemp("interrupted")
    one = cell(MTIL, "drill", scenario_settings={"tasks": 2, "steps": 60}, agent_settings={"pause": 0.02})

    class Hand(Diary):
        def on_progress(self, cell: Cell, progress: Progress) -> None:
            if progress.position > 20 and "ctrl-c" not in self.words:
                self.words.append("ctrl-c")
                _thread.interrupt_main()

    diary = Hand()
    with pytest.raises(KeyboardInterrupt):
        swept([one, small("drill")[0]], out, watch=diary)
    return one, out, diary.words


def test_ctrl_c_leaves_a_checkpoint_and_starts_nothing_more(interrupted: tuple[Cell, Path, list[str]]) -> None:
    one, out, words = interrupted
    assert words == ["0 finished, 2 waiting", "ctrl-c", "stop"]
    newest = max(path.name for path in (out / one.path / "checkpoint").iterdir())
    assert 20 < int(newest[:9]) < 134
    assert [path.parent for path in out.rglob("run.json")] == [out / one.path]
    assert not list(out.rglob("log.txt"))


def test_a_sweep_continues_with_the_threads_it_began_with(
    interrupted: tuple[Cell, Path, list[str]], here: list[str]
) -> None:
    one, out, _ = interrupted
    with pytest.raises(SettingError) as caught:
        sweep([one], out, jobs=1, threads=2, device="cpu")
    assert str(caught.value) == (
        f"Expected 1 threads, as the unfinished run in {out / one.path} began with; got 2. "
        "Add --threads 1 (threads=1), or delete that folder to start it again."
    )
    assert here == []


def test_an_interrupted_sweep_ends_as_if_nothing_had_happened(
    interrupted: tuple[Cell, Path, list[str]], here: list[str], tmp_path: Path
) -> None:
    one, out, _ = interrupted
    shutil.copytree(out, tmp_path / "copy")
    (outcome,) = swept([one], tmp_path / "copy")
    whole = run(MTIL, "drill", 0, scenario_settings={"tasks": 2, "steps": 60}, out=tmp_path, device="cpu", pause=0.02)
    assert outcome.record is not None
    assert told(outcome.record) == told(whole)


def test_a_damaged_checkpoint_is_told_by_its_run(
    interrupted: tuple[Cell, Path, list[str]], here: list[str], tmp_path: Path
) -> None:
    one, out, _ = interrupted
    shutil.copytree(out, tmp_path / "copy")
    (tmp_path / "copy" / one.path / "run.json").write_text("{")
    (outcome,) = swept([one], tmp_path / "copy")
    assert outcome.kind == "RecordError"
    assert checkpoint.exists(tmp_path / "copy" / one.path / "checkpoint")


@pytest.mark.parametrize("second", ["stop", "on_stop", "wait"])
def test_a_second_ctrl_c_does_not_wait(second: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it comes: while runs are told to stop, while that is said, or while they are waited for."""

    def ctrl_c(*args: object) -> None:
        raise KeyboardInterrupt

    class Stubborn:
        killed = threading.Event()

        def __init__(self, order: Order) -> None:
            self.order = order

        def follow(self, tell: Callable[[Progress], None]) -> Ending:
            tell(Progress(1, 20, "asking", 0.5))
            assert self.killed.wait(timeout=20)
            return Ending("died")

        def stop(self) -> None:
            if second == "stop":
                ctrl_c()

        def kill(self) -> None:
            self.killed.set()

    monkeypatch.setattr("clgym.sweep_here.Player", Stubborn)
    if second == "wait":
        monkeypatch.setattr("clgym.sweep_here.wait", ctrl_c)
    watch = Watch()
    monkeypatch.setattr(watch, "on_progress", ctrl_c)
    if second == "on_stop":
        monkeypatch.setattr(watch, "on_stop", ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        swept(small("drill"), tmp_path, watch=watch)
    assert Stubborn.killed.is_set()


@pytest.fixture(scope="module")
def children(drilled: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """What comes of three runs, each in a process of its own with two threads, by what they do."""
    out = tmp_path_factory.mktemp("children")
    told = {"say": "heard", "fail": "no such thing", "die": str(out / "died")}
    settings: list[dict[str, Any]] = [{name: [value]} for name, value in told.items()]
    cells = [small("drill", **chosen)[0] for chosen in settings]
    outcomes = sweep(cells, out, jobs=3, threads=2, device="cpu")
    return dict(zip(told, outcomes, strict=True))


def test_a_child_plays_with_its_own_threads_and_its_words_in_its_log(
    children: dict[str, Outcome], tmp_path: Path
) -> None:
    alone = children["say"]
    assert alone.record is not None
    assert alone.record.hardware["threads"] == 2
    assert (alone.folder / "log.txt").read_text() == "heard\n"
    assert told(alone.record) == told(run(MTIL, "drill", 0, scenario_settings=SMALL, out=tmp_path, say="heard"))


def test_a_child_that_fails_tells_its_parent_and_its_log(children: dict[str, Outcome]) -> None:
    outcome = children["fail"]
    assert (outcome.record, outcome.kind, outcome.error) == (None, "ValueError", "no such thing")
    assert outcome.log is not None
    assert "Traceback" in outcome.log.read_text()


def test_a_child_that_is_killed_is_told_of(children: dict[str, Outcome]) -> None:
    assert children["die"].kind == "WorkerError"
    assert children["die"].error == (
        "Expected a process that plays to the end; got one that SIGKILL ended. Start the sweep again. "
        "If memory ran out, play fewer runs at a time."
    )


def test_a_child_without_its_parent_ends(tmp_path: Path) -> None:
    one = cell(MTIL, "drill", scenario_settings=SMALL, agent_settings={"pause": 60.0})
    of_stream, of_agent = (
        [f"{name}={value}" for name, value in c.items()] for c in (one.scenario_settings, one.agent_settings)
    )
    nowhere = str(tmp_path / "not here")
    order = Order(
        str(tmp_path), "cpu", "fp32", 60.0, 1, nowhere, one.scenario, one.agent, 0, of_stream, of_agent, str(one.path)
    )
    player = Player(order)
    player._child.stdin.close()  # type: ignore[union-attr]  # as the system does where a process is gone
    assert player.follow(lambda progress: None).error == (
        "Expected a process that plays to the end; got exit code 1. Read its log."
    )
    player.stop()
