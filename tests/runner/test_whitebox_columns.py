"""White-box columns of a run: when they are taken, and that a run has all of them or none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from clgym.errors import SettingError
from clgym.record import RunRecord
from clgym.runner import folder_of, run
from tests.runner.conftest import contents, interrupt


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
