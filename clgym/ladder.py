"""Chooses settings on a seed that is not reported: every rung of a ladder is played there, and the best is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clgym.errors import SettingError
from clgym.grid import Axes, Cell, cell, choices, ids
from clgym.metrics import average_accuracy
from clgym.sweep import Outcome

Play = Callable[[Sequence[Cell]], Sequence[Outcome]]


@dataclass(frozen=True, slots=True)
class Ladder:
    """What one agent, with one choice of its other settings, tries on one scenario.

    Attributes:
        base: A cell of it as it was before it is tuned.
        steps: The settings of each rung.
        rungs: The cells of each rung, on the tuning seed.
    """

    base: Cell
    steps: tuple[Mapping[str, Any], ...]
    rungs: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """What a ladder came to.

    Attributes:
        ladder: Which one.
        outcomes: What came of each rung.
        best: Number of the rung with the highest ``average_accuracy``, the first of equals; ``None`` where none
            finished, or one is missing for another reason than answers that are no answers.
    """

    ladder: Ladder
    outcomes: tuple[Outcome, ...]
    best: int | None

    @property
    def accuracies(self) -> tuple[float | None, ...]:
        """``average_accuracy`` of each rung on the tuning seed, in [0, 1]; ``None`` where it did not finish."""
        return tuple(average_accuracy(o.record.matrix) if o.record else None for o in self.outcomes)

    @property
    def settings(self) -> Mapping[str, Any] | None:
        """The settings of the best rung."""
        return None if self.best is None else self.ladder.steps[self.best]


def ladders(cells: Sequence[Cell], axes: Axes, tuning_seed: int) -> dict[Path, Ladder]:
    """Return the ladder of each group of cells whose agent has one.

    Args:
        cells: Cells to be reported, not yet tuned.
        axes: For each agent id the values that its settings try; of several settings every choice is a rung.
        tuning_seed: Seed on which rungs are played.

    Raises:
        SettingError: The tuning seed is among the seeds to be reported, or a setting is chosen already.
    """
    if axes and any(one.seed == tuning_seed for one in cells):
        raise SettingError(
            f"Expected a tuning seed that is not reported; got {tuning_seed}, which is. Give another --tuning-seed."
        )
    tried = {ids("agents", [name])[0]: values for name, values in axes.items()}
    out: dict[Path, Ladder] = {}
    for one in cells:
        if one.group in out or not tried.get(one.agent):
            continue
        if twice := sorted(set(one.agent_settings) & set(tried[one.agent])):
            raise SettingError(
                f"Expected {twice[0]} of {one.agent} from the ladder or from --set; got both. Leave one out."
            )
        steps = tuple(choices(tried[one.agent]))
        out[one.group] = Ladder(one, steps, tuple(_with(one, step, tuning_seed) for step in steps))
    return out


def _with(one: Cell, step: Mapping[str, Any], seed: int) -> Cell:
    return cell(
        one.scenario,
        one.agent,
        seed,
        scenario_settings=one.scenario_settings,
        agent_settings={**one.agent_settings, **step},
    )


def choose(ladder: Ladder, outcomes: Mapping[Path, Outcome]) -> Choice:
    """Return the best rung, given what came of the rungs by path."""
    came = tuple(outcomes[rung.path] for rung in ladder.rungs)
    accuracies = Choice(ladder, came, None).accuracies
    # Answers of NaN are what too high a learning rate gives: such a rung has lost. Any other failure might have won.
    unsettled = any(o.record is None and o.kind != "InvalidAnswerError" for o in came)
    scored = {number: accuracy for number, accuracy in enumerate(accuracies) if accuracy is not None}
    best = None if unsettled or not scored else max(scored, key=lambda number: scored[number])
    return Choice(ladder, came, best)


def settled(cells: Sequence[Cell], made: Mapping[Path, Choice]) -> list[Cell]:
    """Return the cells with what was chosen for them, in order; those whose choice is open are left out."""
    out = []
    for one in cells:
        if one.group not in made:
            out.append(one)
        elif (best := made[one.group].settings) is not None:
            out.append(_with(one, best, one.seed))
    return out


def tuned(cells: Sequence[Cell], climbed: Mapping[Path, Ladder], play: Play) -> tuple[list[Outcome], list[Choice]]:
    """Play the rungs of all ladders, then the cells with the best of them.

    Args:
        cells: Cells to be reported.
        climbed: Their ladders, as :func:`ladders` returns them.
        play: :func:`clgym.sweep.sweep` with all but its cells.

    Returns:
        What came of the cells that are reported and then of rungs that failed; and the choices.
    """
    tried = {o.cell.path: o for o in play([rung for ladder in climbed.values() for rung in ladder.rungs])}
    made = {group: choose(ladder, tried) for group, ladder in climbed.items()}
    reported = list(play(settled(cells, made)))
    lost = {rung.path for choice in made.values() if choice.best is not None for rung in choice.ladder.rungs}
    failed = [o for path, o in tried.items() if o.record is None and path not in lost]
    return [*reported, *failed], list(made.values())
