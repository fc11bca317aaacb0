"""What requests came to, of answers that a test dictates, on a stream of four small domains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clgym
from clgym.env import ContinualEnv
from clgym.erasure_gallery import divergences, marks_of, said, words_of_points
from clgym.erasure_scores import Answers, RequestScore, permutation_p, point_of, scored, until
from clgym.events import Array
from clgym.lifetime import Lifetime
from clgym.reference_runs import judged, stages

# Whether an agent is right about (evaluation point, task, question).
Right = Callable[[int, int, int], bool]
SURE = 0.98


@contextmanager
def life_of(four_domains: Path, **settings: Any) -> Iterator[Lifetime]:
    usual = {"source": str(four_domains), "backbone": "embedded/tiny-clip", "amount": 1, "steps": 1, "erase_steps": 1}
    made = clgym.make("CLIP-Erasure-v0", **{**usual, **settings})
    env = made.unwrapped
    assert isinstance(env, ContinualEnv)
    env.reset(seed=0)
    yield env.lifetime
    made.close()


def answers(life: Lifetime, right: Right, sure: float = SURE) -> Answers:
    """Return the answers of an agent that is ``sure`` of its answers, right or not."""
    parts: list[tuple[int, int, int]] = []
    for step in life.plan.steps:
        if step.kind == "query":
            parts += [(step.point, step.task, int(q)) for q in life.asked(step)]
    labels = life.labels()
    true = np.array([labels[t][q] for _, t, q in parts])
    said_ = np.array([label if right(*part) else 1 - label % 2 for part, label in zip(parts, true, strict=True)])
    log: dict[str, Array] = dict(zip(("point", "task", "question"), np.array(parts).T, strict=True))
    width = max(len(task.classes) for task in life.tasks)
    probs = np.full((len(parts), width), (1 - sure) / (width - 1))
    probs[np.arange(len(parts)), said_] = sure
    return Answers(life, log | {"prediction": said_}, {**log, "log_probs": np.log(probs)})


def in_scope(life: Lifetime, r: int = 0) -> Callable[[int, int], bool]:
    assert life.probing is not None
    sets = life.probing.sets(r)
    wanted = {(t, q) for parts in (sets.erased, sets.unseen) for t, part in enumerate(parts) for q in part.tolist()}
    return lambda t, q: (t, q) in wanted


def always(point: int, t: int, q: int) -> bool:
    return True


def test_an_agent_that_ignored_a_request_against_agents_that_never_learned_the_class(four_domains: Path) -> None:
    with life_of(four_domains, requests=1) as life:
        mine = in_scope(life)
        never = answers(life, lambda p, t, q: not mine(t, q))
        (score,) = scored(life, "embedded/tiny-clip", answers(life, always), [never, never])
        assert (score.kind, score.goal, len(score.scope)) == ("class", "counterfactual", 1)
        found = score.metrics
        assert found["gap_forget"] == 1
        assert found["tug_of_war"] == found["erasure_index"] == 0
        assert [found[name] for name in ("gap_retain", "gap_near", "plasticity_after")] == [0, 0, 0]
        assert found["relapse_mean"] == found["relapse_max"] == 1
        # 0.98 and 0.01 change places: m has 0.495 twice, and the third term is nothing.
        across = 0.98 * np.log2(0.98 / 0.495) + 0.01 * np.log2(0.01 / 0.495)
        assert found["js_excess"] == pytest.approx(across)
        assert found["ks_excess"] == 1
        assert score.footnotes["js_floor"] == pytest.approx(0, abs=1e-12)
        assert (score.footnotes["erased_low"], score.footnotes["erased_high"]) == (0, 0)
        # A class has no held-out twins.
        assert "mia_gap" not in found
        assert set(score.curves) == {"erased", "near", "tested"}
        assert score.curves["erased"].shape == (3, len(life.plan.points))
        assert score.curves["erased"].tolist() == [[1] * 6, [0] * 6, [0] * 6]


def test_an_agent_like_its_references(four_domains: Path) -> None:
    with life_of(four_domains, requests=1) as life:
        mine = in_scope(life)
        never = answers(life, lambda p, t, q: not mine(t, q))
        (score,) = scored(life, "embedded/tiny-clip", never, [never, never, never])
        found = {name: value for name, value in score.metrics.items() if value}
        assert found == {"tug_of_war": 1, "erasure_index": 1}
        assert score.footnotes["ks_p"] == 1


def test_one_reference_knows_no_noise(four_domains: Path) -> None:
    with life_of(four_domains, requests=1) as life:
        (score,) = scored(life, "embedded/tiny-clip", answers(life, always), [answers(life, always)])
        assert np.isnan(score.metrics["js_excess"])
        assert set(score.footnotes) == {"erased_low", "erased_high"}


def test_without_references_only_removal_is_scored(four_domains: Path) -> None:
    with life_of(four_domains) as life:
        assert scored(life, "embedded/tiny-clip", answers(life, always), []) == []


def test_removal_is_held_against_the_agent_before_the_first_request(four_domains: Path) -> None:
    with life_of(four_domains, goal="removal", missing=1) as life:
        first, second = in_scope(life, 0), in_scope(life, 1)
        points = [point_of(life, r) for r in (0, 1)]

        def right(point: int, t: int, q: int) -> bool:
            if first(t, q) and point >= points[0]:
                return False
            if second(t, q):
                return q % 2 == 0 if point < points[1] else False
            return True

        one, two = scored(life, "embedded/tiny-clip", answers(life, right), [])
        assert one.metrics["acc_f"] == two.metrics["acc_f"] == two.metrics["acc_o"] == 0
        assert "acc_o" not in one.metrics
        assert two.metrics["acc_r"] == two.metrics["acc_m"] == 1
        unseen = life.probing.sets(1).unseen[1]  # type: ignore[union-attr]
        before = float((unseen % 2 == 0).mean())
        # Five classes of the two domains learned by then remain, of four test items each.
        assert one.metrics["acc_r"] == pytest.approx((16 + 4 * before) / 20)
        assert two.metrics["h_mean"] == pytest.approx(2 * before / (1 + before))
        assert not {"gap_forget", "erasure_index"} & set(two.metrics)
        assert judged(life) == []


def test_members_are_told_from_twins_by_confidence(four_domains: Path) -> None:
    with life_of(four_domains, kind="sample", amount=12, requests=1) as life:
        assert life.probing is not None
        sets = life.probing.sets(0)
        erased = {(t, q) for t, part in enumerate(sets.erased) for q in part.tolist()}
        assert len(erased) == 12
        # The run is right about the erased samples alone, and surely; references are never right.
        run = answers(life, lambda p, t, q: (t, q) in erased)
        never = answers(life, lambda p, t, q: False)
        (score,) = scored(life, "embedded/tiny-clip", run, [never, never])
        assert score.metrics["mia_gap"] == 0.5
        assert (score.footnotes["mia_low"], score.footnotes["mia_high"]) == (1, 1)
        assert np.isnan(score.metrics["mia_found"])  # too few for one false alarm in a hundred
        assert score.metrics["gap_forget"] == 1
        assert set(score.curves) == {"erased", "tested"}
        assert np.isnan(score.curves["erased"][0, 0])  # erased training samples are asked about once learned
        assert said(score) == "12 samples · counterfactual"


def test_mislabelled_samples_have_scores_of_their_own(four_domains: Path) -> None:
    with life_of(four_domains, kind="sample", amount=8, requests=1, noise=0.3) as life:
        scores = scored(life, "embedded/tiny-clip", answers(life, always), [answers(life, always)] * 2)
        assert [score.subset for score in scores] == ["", "atypical"]
        assert scores[1].metrics["gap_forget"] == 0
        assert {"js_excess", "ks_excess", "mia_gap"} <= set(scores[1].metrics)
        assert "gap_retain" not in scores[1].metrics


def test_users_are_members_as_a_whole(four_domains: Path) -> None:
    with life_of(four_domains, kind="user", amount=60, requests=1) as life:
        assert life.probing is not None
        sets = life.probing.sets(0)
        assert any(map(len, sets.groups))
        (score,) = scored(life, "embedded/tiny-clip", answers(life, always), [answers(life, always)] * 2)
        assert score.metrics["mia_gap"] == 0
        assert score.footnotes["mia_low"] <= 0.5 <= score.footnotes["mia_high"]


def test_what_is_welcome_again_is_no_relapse(four_domains: Path) -> None:
    with life_of(four_domains, kind="relearn") as life:
        mine, end = in_scope(life), until(life, 0)
        assert end == point_of(life, 1)
        assert judged(life) == [0]
        # Right about the scope before the request, and again from its return on.
        run = answers(life, lambda p, t, q: not mine(t, q) or not point_of(life, 0) <= p < end)
        never = answers(life, lambda p, t, q: not mine(t, q))
        (score,) = scored(life, "embedded/tiny-clip", run, [never, never])
        assert score.metrics["gap_forget"] == score.metrics["relapse_max"] == 0
        assert score.metrics["gap_relearned"] == 1


def test_every_kind_of_stream_is_scored(four_domains: Path) -> None:
    for kind, judged_ in (
        ("class", 2),
        ("sample", 2),
        ("domain", 2),
        ("task", 2),
        ("temporary", 1),
        ("batch", 2),
        ("conflict", 2),
    ):
        with life_of(four_domains, kind=kind) as life:
            agents = [answers(life, always)] * 3
            scores = scored(life, "embedded/tiny-clip", agents[0], agents[1:])
            assert len(scores) == judged_, kind
            assert all(score.metrics["erasure_index"] == 1 for score in scores), kind


def test_stages_part_where_what_is_shown_does(four_domains: Path) -> None:
    made = clgym.make(
        "CLIP-Erasure-v0", source=str(four_domains), backbone="embedded/tiny-clip", amount=1, steps=2, erase_steps=1
    )
    env = made.unwrapped
    assert isinstance(env, ContinualEnv)
    (first, second), envs = stages(env, 0)
    assert (first.absent, second.absent) == ((0,), (0, 1))
    assert (first.fork, first.points, second.points) == (0, (3, 4), (5, 6))
    # They share the first domain and the questions after it, and part at the start of the second.
    steps = envs[1].lifetime.plan.steps
    assert (steps[second.fork].kind, steps[second.fork].task) == ("start", 1)
    last = envs[0].lifetime.plan.steps[first.stop - 1]
    assert (last.kind, last.point) == ("query", 4)
    made.close()


def test_points_and_requests_have_words(four_domains: Path) -> None:
    with life_of(four_domains, kind="batch") as life:
        assert words_of_points(life) == ["zero-shot", "pets", "tools", "toys", "trees", "after requests 0, 1"]
        assert marks_of(life) == [(5, "0: class"), (5, "1: class")]


def test_a_permutation_finds_a_shift_and_no_shift() -> None:
    rng = np.random.default_rng(0)
    assert permutation_p(rng.normal(size=50), rng.normal(3, 1, 50)) == 1 / 201
    same = rng.normal(size=50)
    assert permutation_p(same, same) == 1


def test_divergences_are_means_over_seeds() -> None:
    def score(js: float, subset: str = "") -> RequestScore:
        notes = {"js_floor": 0.1, "ks_floor": 0.2}
        return RequestScore(1, "class", "counterfactual", (), {"js_excess": js, "ks_excess": 0.5}, notes, {}, subset)

    class Named:
        agent, agent_settings = "a-v0", {"lr": 1}

    rows = divergences([(Named, [score(0.2), score(9, "atypical")]), (Named, [score(0.4)])])  # type: ignore[list-item]
    ((name, values),) = rows
    assert name == "a-v0, lr=1 · request 1 · 2 seeds"
    assert values["Jensen-Shannon, bits"] == pytest.approx((0.1, 0.3))
    assert values["Kolmogorov-Smirnov, D"] == pytest.approx((0.2, 0.5))
