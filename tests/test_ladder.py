from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from clgym.errors import SettingError
from clgym.grid import Axes, Cell, grid
from clgym.ladder import choose, ladders, settled, tuned
from clgym.record import RunRecord
from clgym.sweep import Outcome

MTIL = "CLIP-MTIL-v0"
RATES: Axes = {"replay": {"lr": [0.001, 0.01, 0.1]}}


def outcome(one: Cell, accuracy: float | None = None, kind: str = "") -> Outcome:
    """A run of two tasks that ends at an accuracy, or fails; its last row is the accuracy plus and minus 0.1."""
    if accuracy is None:
        return Outcome(one, Path("x"), None, kind, "it says", Path("x/log.txt"))
    R = [[0.5, 0.5], [0.9, 0.5], [accuracy + 0.1, accuracy - 0.1]]
    names = {"clgym": "0", "source": "", "backbone": "", "agent": one.agent, "seed": one.seed}
    return Outcome(one, Path("x"), RunRecord(scenario=one.scenario, R=R, status="finished", **names))  # type: ignore[arg-type]


class Played:
    """Plays by looking up accuracies by rate; keeps what it was asked to play."""

    def __init__(self, accuracies: dict[float, float | str]) -> None:
        self.accuracies = accuracies
        self.asked: list[str] = []

    def __call__(self, cells: Sequence[Cell]) -> list[Outcome]:
        self.asked += [str(one) for one in cells]
        found = [self.accuracies.get(one.agent_settings.get("lr", -1.0), 0.3) for one in cells]
        return [
            outcome(one, None, a) if isinstance(a, str) else outcome(one, a)
            for one, a in zip(cells, found, strict=True)
        ]


def test_a_ladder_is_tried_on_the_tuning_seed_and_reported_at_its_best() -> None:
    cells = grid(MTIL, ["zero_shot", "replay"], [0, 1])
    play = Played({0.001: 0.4, 0.01: 0.6, 0.1: 0.5})
    outcomes, (choice,) = tuned(cells, ladders(cells, RATES, 100), play)
    assert play.asked == [
        "CLIP-MTIL-v0 · replay-v0, lr=0.001 · seed 100",
        "CLIP-MTIL-v0 · replay-v0, lr=0.01 · seed 100",
        "CLIP-MTIL-v0 · replay-v0, lr=0.1 · seed 100",
        "CLIP-MTIL-v0 · zero_shot-v0 · seed 0",
        "CLIP-MTIL-v0 · zero_shot-v0 · seed 1",
        "CLIP-MTIL-v0 · replay-v0, lr=0.01 · seed 0",
        "CLIP-MTIL-v0 · replay-v0, lr=0.01 · seed 1",
    ]
    assert [str(o.cell) for o in outcomes] == play.asked[3:]
    assert choice.accuracies == pytest.approx([0.4, 0.6, 0.5])
    assert choice.settings == {"lr": 0.01}


def test_every_scenario_and_choice_of_other_settings_has_its_own_ladder() -> None:
    other: Axes = {"replay": {"size": [50, 100]}}
    cells = grid([MTIL, "CLIP-XTAIL"], ["replay"], [0], agent_settings=other)
    found = ladders(cells, {"replay": {"lr": [0.1, 1.0], "r": [4, 8]}}, 7)
    assert len(found) == 4
    assert list(found) == [one.group for one in cells]
    first = found[cells[0].group]
    assert list(first.steps) == [{"lr": lr, "r": r} for lr in (0.1, 1.0) for r in (4, 8)]
    assert str(first.rungs[1]) == "CLIP-MTIL-v0 · replay-v0, lr=0.1, r=8, size=50 · seed 7"


def test_the_first_of_equals_is_chosen() -> None:
    cells = grid(MTIL, "replay")
    (ladder,) = ladders(cells, RATES, 100).values()
    assert choose(ladder, {rung.path: outcome(rung, 0.5) for rung in ladder.rungs}).best == 0


def test_a_rung_whose_answers_are_none_has_lost() -> None:
    cells = grid(MTIL, "replay")
    play = Played({0.001: 0.4, 0.01: 0.6, 0.1: "InvalidAnswerError"})
    outcomes, (choice,) = tuned(cells, ladders(cells, RATES, 100), play)
    assert choice.best == 1
    assert choice.accuracies[2] is None
    assert all(o.record for o in outcomes)


@pytest.mark.parametrize(
    "accuracies",
    [{0.001: 0.4, 0.01: 0.6, 0.1: "WorkerError"}, dict.fromkeys((0.001, 0.01, 0.1), "InvalidAnswerError")],
)
def test_nothing_is_chosen_where_a_rung_is_missing_or_all_have_lost(accuracies: dict[float, Any]) -> None:
    cells = grid(MTIL, ["zero_shot", "replay"])
    play = Played(accuracies)
    outcomes, (choice,) = tuned(cells, ladders(cells, RATES, 100), play)
    assert choice.settings is None
    assert play.asked[3:] == ["CLIP-MTIL-v0 · zero_shot-v0 · seed 0"]
    failed = [o for o in outcomes if o.record is None]
    assert [o.kind for o in failed] == [a for a in accuracies.values() if isinstance(a, str)]
    assert len(outcomes) == 1 + len(failed)


def test_settled_leaves_those_without_a_ladder_as_they_are() -> None:
    cells = grid(MTIL, ["zero_shot"], [0, 1])
    assert settled(cells, {}) == cells


@pytest.mark.parametrize(
    ("seeds", "chosen", "words"),
    [
        ([0, 100], None, "Expected a tuning seed that is not reported; got 100, which is. Give another --tuning-seed."),
        ([0], {"replay": {"lr": [1.0]}}, "Expected lr of replay-v0 from the ladder or from --set; got both. Leave one"),
    ],
)
def test_what_is_wrong_with_a_ladder(seeds: list[int], chosen: Axes | None, words: str) -> None:
    cells = grid(MTIL, "replay", seeds, agent_settings=chosen)
    with pytest.raises(SettingError) as caught:
        ladders(cells, RATES, 100)
    assert words in str(caught.value)
