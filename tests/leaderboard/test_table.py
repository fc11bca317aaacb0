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


def test_chosen_columns_and_the_order_they_give() -> None:
    def costing(stored: int, agent: str) -> RunRecord:
        task = {"trainable": 4423680, "stored": stored, "added_at_inference": 0, "sample_bytes": 0, "state_bytes": 8}
        look = [{"effective_rank": 9.0}, {"effective_rank": 3.14159, "dormant_units": 0.25}]
        return record(agent=agent, resources={"per_task": [task], "train_seconds": 2.5, "whitebox": look})

    ids = ["stored", "trainable", "effective_rank", "dormant_units", "train_seconds", "query_seconds", "last"]
    rows = summarise([costing(20, "codyra-v0"), costing(10, "mora-v0")], ids)
    assert [row.agent for row in rows] == ["mora-v0", "codyra-v0"]  # the first column, lower is better
    assert [str(one) for one in rows[0].metrics.values()] == [
        *("10", "4,423,680", "3.142", "25.0", "2.5", "n/a", "62.5"),
    ]
    assert "| agent | seeds | stored ↓ | trainable ↓ | effective_rank | dormant_units ↓ |" in markdown(rows)
    table = rich_tables(rows)[-1]
    assert str(table.caption) == "shares in %, mean ± 95 % t-interval over seeds"


def test_numbers_that_are_no_shares_have_an_interval_unless_it_is_empty() -> None:
    # 1, 2, 3: s = 1, half = 4.302653 / sqrt(3) = 2.484138
    assert str(estimate([1.0, 2.0, 3.0], percent=False)) == "2 ± 2.484"
    assert str(estimate([2000.0, 2000.0], percent=False)) == "2,000"


def test_what_needs_more_than_the_matrix_is_read_in_the_metrics_and_what_does_not_is_not() -> None:
    claimed = {"worst_case_accuracy": 0.25, "last": 1.0, "negative_flip_rate": None}
    ids = ["worst_case_accuracy", "last", "negative_flip_rate", "min_accuracy"]
    (row,) = summarise([record(metrics=claimed)], ids)
    assert [str(one) for one in row.metrics.values()] == ["25.0", "62.5", "n/a", "n/a"]


def test_more_columns_stand_behind_the_scenarios_own() -> None:
    (row,) = summarise([record()], more=["plasticity_gap", "mtil_last"])
    assert list(row.metrics)[:3] == ["mtil_transfer", "mtil_avg", "mtil_last"]
    assert list(row.metrics)[-1] == "plasticity_gap"


def test_baselines_stand_last_and_are_marked() -> None:
    better = [[0.2, 0.3], [0.8, 0.9], [0.5, 0.75]]
    rows = summarise([record(agent="zero_shot-v0", R=better), record(), record(agent="nobodys-v0", R=better)])
    assert [(row.agent, row.baseline) for row in rows] == [
        ("nobodys-v0", False),
        ("codyra-v0", False),
        ("zero_shot-v0", True),
    ]
    lines = markdown(rows).splitlines()
    assert [line.split(" | ")[0] for line in lines[4:7]] == ["| nobodys-v0", "| codyra-v0", "| *zero_shot-v0*"]
    assert lines[8] == "In italics: baselines."
    (table, *_) = rich_tables(rows)
    assert [row.style for row in table.rows] == [None, None, "dim"]
    assert str(rich_tables(rows)[-1].caption).endswith("; dim: baselines")
    assert "baselines" not in markdown(rows[:2])
    assert "baselines" not in str(rich_tables(rows[:2])[-1].caption)


def test_the_honest_baselines_are_marked() -> None:
    honest = ["random_guess-v0", "zero_shot-v0", "simplecil-v0", "single_task-v0", "sequential_lora-v0", "joint-v0"]
    assert [row.agent for row in summarise([record(agent=id) for id in honest]) if not row.baseline] == []


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
