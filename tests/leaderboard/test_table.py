import math
from io import StringIO
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from clgym.errors import NotRegisteredError, RecordError
from clgym.leaderboard.table import (
    estimate,
    markdown,
    named,
    rich_tables,
    student_quantile,
    summarise,
)
from clgym.record import RunRecord, nullable


def record(last: float = 0.5, **other: Any) -> RunRecord:
    """A run of two tasks whose average accuracy is ``(last + 0.75) / 2``."""
    R = np.array([[0.2, 0.3], [0.8, 0.4], [last, 0.75]])
    values: dict[str, Any] = {
        "clgym": "0",
        "scenario": "CLIP-MTIL-v0",
        "source": "embedded",
        "backbone": "b",
        "agent": "codyra-v0",
        "seed": 0,
        "status": "finished",
        "tasks": ["a", "b"],
        "R": nullable(R),
        **other,
    }
    return RunRecord(**values)


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    # scipy.stats.t.ppf(0.975, freedom)
    [
        (1, 12.706204736432095),
        (2, 4.302652729911275),
        (3, 3.182446305284263),
        (4, 2.7764451051977987),
        (9, 2.2621571628540993),
        (30, 2.0422724563012373),
        (500, 1.9647198374673438),
    ],
)
def test_quantiles_of_student(freedom: int, quantile: float) -> None:
    assert student_quantile(freedom) == pytest.approx(quantile, rel=1e-10)


def test_interval_by_hand() -> None:
    # 0.5, 0.6, 0.7: s = 0.1, t(0.975, 2) = 4.302653, half = 4.302653 * 0.1 / sqrt(3) = 0.248414
    found = estimate([0.5, 0.6, 0.7])
    assert found.n == 3
    assert [found.mean, found.half] == pytest.approx([0.6, 0.2484137712])


def test_one_seed_has_no_interval() -> None:
    found = estimate([0.5])
    assert math.isnan(found.half)
    assert str(found) == "50.0"


def test_an_undefined_seed_makes_the_mean_undefined() -> None:
    assert str(estimate([0.5, math.nan])) == "n/a"


def test_a_row_is_an_agent_and_its_metrics_are_the_scenarios() -> None:
    (row,) = summarise([record(0.5), record(0.7, seed=1)])
    # average accuracy: (0.5 + 0.75) / 2 = 0.625 and 0.725; s = 0.0707107, t(0.975, 1) = 12.7062, half = 0.635310
    average = row.metrics["average_accuracy"]
    assert [average.mean, average.half] == pytest.approx([0.675, 0.6353102368])
    # backward transfer: 0.5 - 0.8 and 0.7 - 0.8
    assert row.metrics["backward_transfer"].mean == pytest.approx(-0.2)
    assert list(row.metrics)[:3] == ["mtil_transfer", "mtil_avg", "mtil_last"]
    assert row.seeds == (0, 1)


def test_what_a_record_claims_is_not_read() -> None:
    (row,) = summarise([record(metrics={"average_accuracy": 1.0})])
    assert row.metrics["average_accuracy"].mean == pytest.approx(0.625)


def test_sources_and_settings_never_share_a_table() -> None:
    rows = summarise(
        [
            record(),
            record(source="hub", scenario_settings={"source": "hub"}),
            record(scenario_settings={"tasks": 2}),
            record(agent_settings={"r": 8}),
        ]
    )
    assert len({row.table for row in rows}) == 3
    assert sorted(row.label for row in rows if row.table == "CLIP-MTIL-v0 · source: embedded") == [
        "codyra-v0",
        "codyra-v0, r=8",
    ]
    assert len(rich_tables(rows)) == 3


def test_the_best_agent_by_the_first_metric_stands_first() -> None:
    R = [[0.2, 0.3], [0.8, 0.9], [0.5, 0.75]]
    rows = summarise([record(), record(agent="replay-v0", R=R)])
    assert [row.agent for row in rows] == ["replay-v0", "codyra-v0"]


def test_markdown() -> None:
    text = markdown(summarise([record(0.5, agent_settings={"x": "a|b"}), record(0.7, seed=1)]))
    lines = text.splitlines()
    assert lines[0] == "### CLIP-MTIL-v0 · source: embedded"
    assert lines[2].startswith("| agent | seeds | mtil_transfer ↑ |")
    assert "forgetting ↓" in lines[2]
    assert "| codyra-v0, x=a\\|b | n=1 | 40.0 |" in text
    assert "| codyra-v0 | n=1 | 40.0 |" in text
    assert "±" not in text


def test_a_wide_table_goes_on_below() -> None:
    rows = summarise([record(), record(0.7, seed=1)])
    parts = rich_tables(rows, width=60)
    assert len(parts) > 1
    assert sum(len(part.columns) - 2 for part in parts) == len(rows[0].metrics)
    shown = StringIO()
    for part in parts:
        Console(file=shown, width=60).print(part)
    assert "…" not in shown.getvalue()
    assert max(map(len, shown.getvalue().splitlines())) <= 60
    assert shown.getvalue().count("source: embedded") == 1


def test_named_sorts_settings() -> None:
    assert named("a-v0", {"z": 1, "b": "c"}) == "a-v0, b=c, z=1"


def test_a_seed_twice_is_refused() -> None:
    with pytest.raises(RecordError, match=r"each seed of codyra-v0 on CLIP-MTIL-v0 once; got 0, 0\. Leave"):
        summarise([record(), record()])


def test_an_unfinished_run_is_refused() -> None:
    with pytest.raises(RecordError, match=r"Expected finished runs; got codyra-v0 .* which is running\."):
        summarise([record(status="running")])


def test_another_stream_under_one_heading_is_refused() -> None:
    runs = [record(fingerprints={"data": "1" * 64}), record(agent="replay-v0", fingerprints={"data": "2" * 64})]
    with pytest.raises(RecordError, match=r"seed 0 that share the data; got 1+ from codyra-v0 and 2+ from"):
        summarise(runs)


def test_an_unknown_scenario_is_refused() -> None:
    with pytest.raises(NotRegisteredError, match="Expected a registered scenario; got 'X-v0'"):
        summarise([record(scenario="X-v0")])
