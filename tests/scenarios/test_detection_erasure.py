"""Detection-Erasure-v0: what a request takes and shows, what it comes to, and the faults it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clgym
from clgym.boxes import Boxed
from clgym.env import ContinualEnv
from clgym.erasure_results import results
from clgym.errors import ErasedError, RecordError, SettingError
from clgym.events import Erase, EraseEnd, Guess, Query, Train
from clgym.record import RunRecord
from clgym.rescore import rescored
from clgym.runner import folder_of, run

ID = "Detection-Erasure-v0"
FAST = {"steps": 2, "erase_steps": 2, "requests": 2}


def bare(**settings: Any) -> ContinualEnv:
    env = clgym.make(ID, disable_env_checker=True, **settings).unwrapped
    assert isinstance(env, ContinualEnv)
    return env


def test_three_times_two_of_twelve_classes_go_in_an_order_that_no_seed_changes() -> None:
    env = bare()
    env.reset(seed=0)
    first = [request.classes for request in env.lifetime.ledger.requests]
    assert [len(classes) for classes in first] == [2, 2, 2]
    assert len({name for classes in first for name in classes}) == 6
    env.reset(seed=1)
    assert [request.classes for request in env.lifetime.ledger.requests] == first


def test_pictures_with_a_class_go_and_show_only_its_objects_to_forget() -> None:
    env = bare(**FAST)
    event, _ = env.reset(seed=0)
    life = env.lifetime
    names, data = life.tasks[0].classes, life.tasks[0].train
    assert isinstance(data, Boxed)
    gone: set[int] = set()
    seen, served = [], 0
    while True:
        if isinstance(event, Query):
            assert event.wants == "boxes"
        if isinstance(event, Erase):
            classes = life.ledger.requests[served].classes
            assert event.forget is not None
            assert event.retain is not None
            for batch, inside in ((event.forget, True), (event.retain, False)):
                assert isinstance(batch.targets, np.ndarray)
                of = batch.targets[..., 0]
                assert ((of >= 0).sum(axis=1) > 0).all()
                assert {names[int(c)] in classes for c in of[of >= 0]} == {inside}
            gone.update(event.forget.ids.tolist())
            seen += event.retain.ids.tolist()
            # What went before is not rehearsed either.
            assert not gone & set(event.retain.ids.tolist())
        was = event
        event, _, done, _, _ = env.step(Guess(0))
        if isinstance(was, EraseEnd):
            served += 1
            with pytest.raises(ErasedError):
                env.look_up(np.array(sorted(gone)[:1]))
        if done:
            break
    assert served == 2
    assert len(seen) == 2 * 2 * 16
    request = life.ledger.requests[0]
    assert request.train[0].tolist() == np.flatnonzero(data.holds([names.index(c) for c in request.classes])).tolist()


def test_few_shots_count_pictures_with_the_class() -> None:
    env = bare(shots=3, **FAST)
    env.reset(seed=0)
    ledger, data = env.lifetime.ledger, env.lifetime.tasks[0].train
    assert isinstance(data, Boxed)
    forget, retain = ledger.grants(0)
    assert forget is not None
    assert retain is not None
    assert 3 <= len(forget.ids) <= 2 * 3
    assert 3 <= len(retain.ids) <= 10 * 3


def test_a_looked_up_sample_has_its_boxes() -> None:
    env = bare(**FAST)
    event, _ = env.reset(seed=0)
    while not isinstance(event, Train):
        event, *_ = env.step(Guess(0))
    again = env.look_up(event.ids[:2])
    assert isinstance(again.targets, np.ndarray)
    assert isinstance(event.targets, np.ndarray)
    width = again.targets.shape[1]
    assert np.array_equal(again.targets, event.targets[:2, :width])
    assert np.array_equal(again.inputs, event.inputs[:2])


def test_missing_classes_are_in_no_picture_that_may_be_read() -> None:
    env = bare(missing=2, **FAST)
    env.reset(seed=0)
    life = env.lifetime
    (missing,) = {request.missing for request in life.ledger.requests}
    erase = life.ledger.erase(0, 0)
    assert erase.retain is not None
    assert isinstance(erase.retain.targets, np.ndarray)
    of = erase.retain.targets[..., 0]
    assert not {life.tasks[0].classes[int(c)] for c in of[of >= 0]} & set(missing)


def test_a_run_is_scored_by_classes_and_again_from_its_log(tmp_path: Path) -> None:
    record = run(ID, "gs_lora", out=tmp_path, scenario_settings=FAST)
    folder = tmp_path / folder_of(record)
    assert record.status == "finished"
    assert record.matrix[0, 0] > 0.4  # the detector that is handed over
    loaded = RunRecord.load(folder)
    assert np.array_equal(rescored(folder, loaded).R, record.matrix)
    scores = results(folder, loaded)
    assert [set(score.metrics) for score in scores] == [
        {"acc_r", "acc_f", "h_mean"},
        {"acc_r", "acc_f", "acc_o", "h_mean"},
    ]
    assert scores[0].curves["erased"].shape == (1, 4)  # before, after the task, after each request
    (folder / "predictions.parquet").unlink()
    with pytest.raises(RecordError, match=r"Expected the file .*predictions"):
        results(folder, loaded)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"forget": "own"}, "Expected forget as one of 'none', 'few', 'full'; got 'own'"),
        ({"retain": "all"}, "Expected retain as one of"),
        ({"requests": 6}, "leave some of 12 classes, the 0 missing ones among them; got 12 classes to remove"),
        ({"missing": 7}, "the 7 missing ones among them; got 6 classes to remove"),
        ({"requests": 0}, "got 0 classes to remove"),
        ({"amount": -1}, "Expected amount to be 0 or more; got -1"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        bare(**settings)
