"""White-box columns: each number worked by hand, and what an agent offers of them."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import clgym
from clgym.agent import Agent
from clgym.env import ContinualEnv
from clgym.registry import make_agent
from clgym.whitebox import BATCH, WHITEBOX, dormant_units, effective_rank, look, srank, stable_rank, weight_norm

# Rotations leave singular values alone, so this has those of diag(4, 2, 2), in four dimensions.
TURN = np.array([[0.6, 0.8, 0, 0], [-0.8, 0.6, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]])
FEATURES = np.diag([4.0, 2.0, 2.0, 0.0])[:3] @ TURN


def test_effective_rank_worked_by_hand() -> None:
    # p = 1/2, 1/4, 1/4: entropy = 1/2 ln 2 + 2/4 ln 4 = 3/2 ln 2
    assert effective_rank(FEATURES) == pytest.approx(2**1.5)
    assert effective_rank(np.ones((5, 3))) == pytest.approx(1)
    assert effective_rank(np.eye(7)[:4]) == pytest.approx(4)


def test_stable_rank_worked_by_hand() -> None:
    assert stable_rank(FEATURES) == pytest.approx((16 + 4 + 4) / 16)
    assert stable_rank(np.ones((5, 3))) == pytest.approx(1)
    assert stable_rank(100 * FEATURES) == pytest.approx(stable_rank(FEATURES))


def test_srank_worked_by_hand() -> None:
    assert srank(FEATURES) == 3
    assert srank(FEATURES, delta=0.25) == 2  # 4 + 2 = 6 = (1 - 1/4) 8, which is enough
    assert srank(FEATURES, delta=0.5) == 1
    assert srank(np.diag([99.0, 1.0])) == 1
    assert srank(np.diag([98.9, 1.1])) == 2


@pytest.mark.parametrize("rank", [effective_rank, stable_rank, srank])
@pytest.mark.parametrize("empty", [np.zeros((4, 3)), np.full((4, 3), np.nan), np.array([[np.inf, 1.0]])])
def test_there_is_no_rank_of_nothing(rank: object, empty: np.ndarray) -> None:
    assert callable(rank)
    assert math.isnan(rank(empty))


def test_dormant_units_worked_by_hand() -> None:
    # Means of |h| are 2, 0.04, 3.96 and 2 in a layer whose mean is 2: the second scores 0.02.
    layer = np.array([[2.0, -0.04, 3.96, -2.0], [-2.0, 0.04, 3.96, 2.0]])
    assert dormant_units([layer]) == 1 / 4
    assert dormant_units([layer], tau=0.01) == 0
    assert dormant_units([layer], tau=1.0) == 3 / 4  # a score of exactly tau is dormant
    # Units weigh the same over layers, and a silent layer is dormant as a whole.
    assert dormant_units([layer, np.zeros((2, 1))]) == 2 / 5
    assert math.isnan(dormant_units([]))
    assert math.isnan(dormant_units([np.array([[np.nan, 1.0]])]))


def test_weight_norm_worked_by_hand() -> None:
    assert weight_norm([np.array([[1.0, 2.0], [2.0, 4.0]]), np.full(11, 1.0)]) == 6.0
    assert weight_norm(iter([np.array(3.0), np.array([4.0])])) == 5.0


@pytest.mark.parametrize("id", sorted(WHITEBOX))
def test_docstring_and_table_agree(id: str) -> None:
    column = WHITEBOX[id]
    doc = inspect.getdoc(column.function) or ""
    direction = {None: "neither( direction)? is better", False: "lower is better"}[column.higher_is_better]
    assert re.fullmatch(rf".*, in \[{column.low:g}, {column.high:g}\]; {direction}\.", doc.splitlines()[0])
    assert re.search(r"\bNot\b", doc), "say what it is not"
    assert column.source


def test_a_gradient_method_offers_all_and_a_mixture_no_weights() -> None:
    env: Any = clgym.make("CLIP-MTIL-v0", tasks=2)
    env.reset(seed=0)
    inputs = env.unwrapped.held_out(200)
    assert inputs.shape == (200, 32, 32, 3)
    agent = make_agent("sequential_lora", env)
    seen = look(agent, inputs)
    assert set(seen) == set(WHITEBOX)
    assert 1 < seen["stable_rank"] < seen["effective_rank"] < 128
    # Passes of 128 inputs are put together: the columns are those of one pass.
    features, layers = agent.features(inputs), agent.activations(inputs)
    assert features is not None
    assert layers is not None
    assert seen["effective_rank"] == pytest.approx(effective_rank(features))
    assert seen["dormant_units"] == pytest.approx(dormant_units(layers))
    assert set(look(make_agent("mora", env), inputs)) == set(WHITEBOX) - {"weight_norm"}


def test_an_agent_need_not_offer_anything() -> None:
    class Closed(Agent):
        def answer(self, event: object) -> np.ndarray:
            raise NotImplementedError

    assert look(Closed.__new__(Closed), np.zeros((3, 2, 2, 3), np.uint8)) == {}


def test_the_batch_is_the_first_questions_of_every_task_whatever_the_seed() -> None:
    env: Any = clgym.make("CLIP-XTAIL-v0", tasks=3)
    batches = []
    for seed in (0, 1):
        event, _ = env.reset(seed=seed)
        batches.append(env.unwrapped.held_out(BATCH))
    assert np.array_equal(*batches)
    share = -(-BATCH // 3)
    assert np.array_equal(batches[0][:share], event.inputs[:share])
    assert share < len(batches[0]) <= 3 * share


def test_texts_are_put_together_as_texts(toy: Callable[..., ContinualEnv], monkeypatch: pytest.MonkeyPatch) -> None:
    env = toy()
    env.reset(seed=0)
    for task in env._playing().tasks:
        monkeypatch.setattr(type(task.test), "batch", lambda self, index: tuple(f"{self.shade} {i}" for i in index))
    texts = env.held_out(4)
    assert sorted(texts[:2]) != sorted(texts[2:])
    assert [text.split()[0] for text in texts] == ["0", "0", "10", "10"]
