"""What can stand in a table of runs, and where its numbers are read."""

from __future__ import annotations

import math
from io import StringIO

import pytest
from rich.console import Console

from clgym.columns import COSTS, chosen, columns, explain, shown, values
from clgym.console import whitebox_table
from clgym.errors import NotRegisteredError, SettingError
from clgym.metrics import METRICS
from clgym.record import RunRecord
from clgym.whitebox import WHITEBOX


def record(**other: object) -> RunRecord:
    base = {"clgym": "0", "scenario": "S-v0", "source": "", "backbone": "", "agent": "a-v0", "seed": 0}
    return RunRecord.model_validate({**base, "R": [[0.1, 0.2], [0.8, 0.3], [0.6, 0.9]], **other})


def test_no_two_columns_have_one_id() -> None:
    assert len(columns()) == len(METRICS) + len(WHITEBOX) + len(COSTS)


@pytest.mark.parametrize("id", columns())
def test_every_column_says_what_it_is_and_what_it_is_not(id: str) -> None:
    text = explain(id)
    assert text.startswith(f"{id}: ")
    assert all(word in text for word in ("  formula  ", "  range    [", "  source   ", "  inputs   "))
    if id in COSTS:
        assert "lower is better. " in text.splitlines()[-1]


def test_values_worked_by_hand() -> None:
    tasks = [{"trainable": 5, "stored": 1, "added_at_inference": 2, "sample_bytes": 3, "state_bytes": 4}] * 2
    tasks[1] = {**tasks[1], "stored": 7}
    found = values(
        record(
            metrics={"last": 1.0, "min_accuracy": 0.25, "stability_gap": None, "of_another_version": 0.5},
            resources={"per_task": tasks, "train_seconds": 1.5, "whitebox": [{"srank": 1.0}, {"srank": 2.0}]},
        )
    )
    assert found["last"] == pytest.approx(0.75)  # of the matrix, whatever a record says
    assert found["min_accuracy"] == 0.25
    assert math.isnan(found["stability_gap"])
    assert found["srank"] == 2
    assert (found["trainable"], found["stored"], found["state_bytes"], found["train_seconds"]) == (5, 7, 4, 1.5)
    assert "effective_rank" not in found


def test_values_of_a_record_without_costs() -> None:
    found = values(record())
    assert all(math.isnan(found[id]) for id in COSTS)
    undefined = values(record(resources={"whitebox": [{"srank": None}]}))
    assert math.isnan(undefined["srank"])


def test_what_is_shown_of_a_run() -> None:
    there = {"micro_accuracy": 0.1, "last": 0.2, "min_accuracy": 0.3, "of_another_version": 0.4, "mtil_last": 0.5}
    assert shown(("mtil_last", "last"), there) == ("mtil_last", "last", "min_accuracy")


def test_columns_are_chosen_by_id() -> None:
    assert chosen("last,last, stored") == ("last", "stored")
    with pytest.raises(SettingError, match=r"Expected ids of columns parted by commas; got ''\. See clgym explain\."):
        chosen("")
    with pytest.raises(NotRegisteredError, match=r"metric or column; got 'stord'\. Did you mean 'stored'"):
        chosen("last,stord")


def test_looks_are_shown_by_task_or_of_the_whole_stream() -> None:
    def text(rows: list[dict[str, float | None]]) -> str:
        out = Console(width=120, file=StringIO())
        out.print(whitebox_table(rows, ["birds", "tools"]))
        return out.file.getvalue()  # type: ignore[attr-defined,no-any-return]

    rows: list[dict[str, float | None]] = [
        {"srank": 3.0, "dormant_units": 0.125},
        {"srank": 2.5, "dormant_units": None},
    ]
    told = text([*rows, {"srank": 2.0, "dormant_units": 0.0}]).splitlines()
    assert [line.split() for line in told[:4]] == [
        ["after", "learning", "srank", "dormant_units"],
        ["untrained", "3", "12.5"],
        ["1", "birds", "2.5", "-"],
        ["2", "tools", "2", "0.0"],
    ]
    assert "dormant_units in %" in told[4]
    assert text(rows).splitlines()[2].split() == ["the", "whole", "stream", "2.5", "-"]
    assert "This agent offers no look inside" in text([{}, {}, {}])
