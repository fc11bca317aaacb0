"""The environment: what it shows, what it refuses, and that a stream can be rewound and resumed anywhere."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from clgym.env import ContinualEnv
from clgym.errors import InvalidAnswerError, RecordError, SettingError, StreamEndedError
from clgym.events import Array, End, Event, Guess, Query, TaskEnd, TaskStart, Train
from clgym.scorer import Scorer

Toy = Callable[..., ContinualEnv]


def answer(event: Event) -> Any:
    """Label every question 0."""
    return np.zeros(len(event.inputs), np.int64) if isinstance(event, Query) else None


def images(event: Train | Query) -> Array:
    assert isinstance(event.inputs, np.ndarray)
    return event.inputs


def play(env: ContinualEnv, seed: int | None = 0) -> list[tuple[Event, float, dict[str, Any]]]:
    event, info = env.reset(seed=seed)
    seen = [(event, 0.0, info)]
    done = False
    while not done:
        event, reward, done, truncated, info = env.step(answer(event))
        assert truncated is False
        assert type(reward) is float
        seen.append((event, reward, info))
    return seen


def test_a_lifetime_in_order(toy: Toy) -> None:
    events = [event for event, _, _ in play(toy(tasks=2, train=5, test=4))]
    kinds = "".join({TaskStart: "s", Train: "t", TaskEnd: "e", Query: "q", End: "."}[type(e)] for e in events)
    # Four questions in batches of three make two queries per task; five samples in twos make three batches.
    assert kinds == "qqqq" + "sttteqqqq" * 2 + "."


def test_queries_name_their_task_and_its_classes_only(toy: Toy) -> None:
    queries = [e for e, _, _ in play(toy()) if isinstance(e, Query)]
    assert {(q.task, q.candidates) for q in queries} == {(0, ("t0c0", "t0c1")), (1, ("t1c0", "t1c1", "t1c2"))}


def test_no_event_of_a_query_holds_a_label(toy: Toy) -> None:
    query = next(e for e, _, _ in play(toy()) if isinstance(e, Query))
    assert {f for f in dir(query) if not f.startswith("_")} == {"inputs", "candidates", "prompts", "wants", "task"}


def test_hidden_tasks_are_hidden_everywhere(toy: Toy) -> None:
    for event, _, info in play(toy(task_given=False, labels="union")):
        assert getattr(event, "task", None) is None
        assert getattr(event, "name", "") == ""
        assert "task" not in info


def test_union_candidates_and_their_labels(toy: Toy) -> None:
    env = toy(labels="union", tasks=2, test=6)
    play(env)
    assert env.scorer.predictions()["task"].max() == 1
    # Always answering 0 is right for half of task 0 (two classes) and never for task 1, whose labels start at 2.
    assert env.report().R.tolist() == [[0.5, 0.0]] * 3


def test_seen_candidates_grow_and_only_tasks_met_are_asked(toy: Toy) -> None:
    env = toy(labels="seen", tasks=3, task_given=False)
    events = [event for event, _, _ in play(env)]
    assert isinstance(events[0], TaskStart)
    sizes = [len(e.candidates) for e in events if isinstance(e, Query)]
    # Two, three and four classes; four questions in batches of three make two queries per task asked.
    assert sizes == [2] * 2 + [5] * 4 + [9] * 6
    R = env.report().R
    assert np.isnan(R).tolist() == [[True] * 3, [False, True, True], [False, False, True], [False] * 3]
    # Always answering 0 is right for half of task 0 and never later.
    assert R[~np.isnan(R)].tolist() == [0.5, 0.5, 0.0, 0.5, 0.0, 0.0]
    assert np.isnan(env.report().metrics["forward_transfer"])
    assert env.report().metrics["average_incremental_accuracy"] == pytest.approx((0.5 + 0.25 + 0.5 / 3) / 3)


def test_seen_candidates_inside_a_task_hold_the_running_one(toy: Toy) -> None:
    env = toy(labels="seen", tasks=2, train=4, prequential=True, probe_every=1, probe_size=2)
    queries = [(e.task, len(e.candidates)) for e, _, _ in play(env) if isinstance(e, Query)]
    # Two batches a task: ask, probe the tasks so far after the first, ask; then all tasks so far in two queries each.
    assert queries[:5] == [(0, 2), (0, 2), (0, 2), (0, 2), (0, 2)]
    assert queries[5:] == [(1, 5), (0, 5), (1, 5), (1, 5), (0, 5), (0, 5), (1, 5), (1, 5)]


@pytest.mark.parametrize(("labels", "sizes"), [("union", [3]), ("seen", [2, 3])])
def test_a_name_that_recurs_is_one_candidate_with_its_first_prompt(toy: Toy, labels: str, sizes: list[int]) -> None:
    env = toy(labels=labels, tasks=2, test=6, shared=True)
    events = [event for event, _, _ in play(env)]
    assert [len(e.candidates) for e in events if isinstance(e, Query)] == [
        size for size in sizes for _ in range(4 if labels == "seen" and size == 3 else 2 if labels == "seen" else 12)
    ]
    starts = [e for e in events if isinstance(e, TaskStart)]
    first = [f"t0c{c} in task {int(c == 2)}" for c in range(3)]
    assert [[p[0] for p in e.prompts] for e in starts] == [first[:2], first]
    assert {e.prompts[-1][0] for e in events if isinstance(e, Query)} == {first[size - 1] for size in sizes}
    # Answering 0 is right for half of task 0 and a third of task 1: both call the class "t0c0".
    assert env.report().R[-1].tolist() == [0.5, pytest.approx(1 / 3)]


def test_hidden_boundaries_show_one_start_and_one_end(toy: Toy) -> None:
    env = toy(boundaries="hidden", labels="union", tasks=2)
    events = [event for event, _, _ in play(env)]
    kinds = "".join({TaskStart: "s", Train: "t", TaskEnd: "e", Query: "q", End: "."}[type(e)] for e in events)
    assert kinds == "qqqq" + "s" + "ttt" + "qqqq" + "ttt" + "e" + "qqqq" + "."
    start = events[4]
    assert start == TaskStart(None, "", "", ("t0c0", "t0c1", "t1c0", "t1c1", "t1c2"), start.prompts, 10, 6)  # type: ignore[attr-defined]
    assert {getattr(e, "task", None) for e in events} == {None}
    shown = [e for e in events if isinstance(e, Train)]
    for task, batches in enumerate((shown[:3], shown[3:])):
        for batch in batches:
            pixel = images(batch)[:, 0, 0, 0].astype(np.int64)
            assert np.array_equal(batch.targets, pixel % (2 + task) + 2 * task)


def test_hidden_boundaries_are_still_where_tasks_are_learned_and_asked(toy: Toy) -> None:
    env = toy(boundaries="hidden", labels="seen", tasks=2)
    event, _ = env.reset(seed=0)
    learned, over = [env.tasks_learned], []
    done = False
    while not done:
        event, _, done, _, _ = env.step(answer(event))
        learned.append(env.tasks_learned)
        over += [env.tasks_learned] if env.round_over else []
    assert learned == [0] * 4 + [1] * 2 + [1] * 3 + [2] * 6
    assert over == [1, 2]
    assert np.isnan(env.report().R).tolist() == [[True, True], [False, True], [False, False]]


def test_hidden_boundaries_hide_the_task_whatever_the_scenario_says(toy: Toy) -> None:
    events = [e for e, _, _ in play(toy(boundaries="hidden", task_given=True))]
    assert {getattr(e, "task", None) for e in events} == {None}
    # The questions are still about one task's classes, which are all that "task" offers.
    assert {len(e.candidates) for e in events if isinstance(e, Query)} == {2, 3}


@pytest.mark.parametrize("batches", [1, 2, 3])
def test_n_batches_give_n_train_events(toy: Toy, batches: int) -> None:
    events = [e for e, _, _ in play(toy(tasks=1, train=2 * batches))]
    assert sum(isinstance(e, Train) for e in events) == batches
    shown = [int(i) for e in events if isinstance(e, Train) for i in images(e)[:, 0, 0, 0]]
    assert sorted(shown) == list(range(2 * batches))


@pytest.mark.parametrize("passes", [1, 2])
def test_each_pass_shows_every_sample_once(toy: Toy, passes: int) -> None:
    ids = [e.ids for e, _, _ in play(toy(tasks=1, train=5, passes=passes)) if isinstance(e, Train)]
    assert sorted(np.concatenate(ids).tolist()) == sorted(list(range(5)) * passes)


def test_steps_make_every_batch_full_and_spread_evenly(toy: Toy) -> None:
    trains = [e for e, _, _ in play(toy(tasks=1, train=5, steps=10)) if isinstance(e, Train)]
    assert [len(e.ids) for e in trains] == [2] * 10
    assert np.bincount(np.concatenate([e.ids for e in trains])).tolist() == [4] * 5


def test_the_same_sample_has_the_same_id_and_label(toy: Toy) -> None:
    known: dict[int, tuple[int, int]] = {}
    for event, _, _ in play(toy(passes=3)):
        if isinstance(event, Train):
            assert isinstance(event.targets, np.ndarray)
            for id, y, pixel in zip(event.ids, event.targets, images(event)[:, 0, 0], strict=True):
                assert known.setdefault(int(id), (int(y), int(pixel[1]))) == (int(y), int(pixel[1]))
    assert sorted(known) == list(range(10))


def test_a_seeded_reset_rewinds_and_lifetimes_are_identical(toy: Toy) -> None:
    env = toy()
    first, second, other = play(env), play(env), play(env, seed=1)
    assert first == second
    assert first != other
    assert play(toy()) == first


def test_an_unseeded_reset_draws_the_next_lifetime(toy: Toy) -> None:
    env = toy()
    first = play(env, seed=0)
    second = play(env, seed=None)
    assert first != second
    play(env, seed=0)
    assert play(env, seed=None) == second


def test_reward_is_the_mean_score(toy: Toy) -> None:
    env = toy(tasks=1, test=4)
    event, _ = env.reset(seed=0)
    assert isinstance(event, Query)
    labels = images(event)[:, 0, 0, 0] % 2  # the toy's label is its index modulo the classes
    _, reward, *_ = env.step(labels.astype(np.int64))
    assert reward == 1.0
    _, reward, *_ = env.step(Guess(0))
    assert reward in (0.0, 1.0)


def test_log_probabilities_are_scored_and_described(toy: Toy) -> None:
    env = toy(tasks=1, test=3, train=2)
    env.reset(seed=0)
    scores = np.log(np.array([[0.9, 0.1], [0.4, 0.6], [0.5, 0.5]], np.float32))
    env.step(scores)
    log = env.scorer.predictions()
    assert log["prediction"].tolist() == [0, 1, 0]
    assert np.allclose(log["log_prob"], np.log([0.9, 0.6, 0.5]), atol=1e-6)
    assert np.allclose(log["margin"], np.log([9, 1.5, 1]), atol=1e-5)
    assert np.allclose(log["entropy"], [0.3251, 0.6730, 0.6931], atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (None, "got None. Return agent.act(event)."),
        ([0, 0, 0], "got list. Convert it to a NumPy array."),
        (np.zeros(2, np.int64), "got int64 of shape (2,). Give one label per question, with dtype int64."),
        (np.zeros(3, np.int32), "got int32 of shape (3,). Give one label per question, with dtype int64."),
        (np.full(3, 2), "got labels from 2 to 2. Labels index event.candidates."),
        (np.full(3, -1), "got labels from -1 to -1. Labels index event.candidates."),
        (np.zeros((3, 3), np.float32), "got float32 of shape (3, 3). Give one row per question"),
        (np.zeros((3, 2), np.int64), "got int64 of shape (3, 2). Give one row per question"),
        (np.full((3, 2), np.nan), "got NaN in row 0. Apply log_softmax over the candidates."),
        (np.zeros((3, 2)), "got rows whose exponentials sum to between 2 and 2. Apply log_softmax"),
    ],
)
def test_wrong_answers_are_named_and_change_nothing(toy: Toy, wrong: Any, words: str) -> None:
    env = toy()
    env.reset(seed=0)
    expected = "Expected int64 labels of shape (3,) in [0, 2) or float log-probabilities of shape (3, 2); "
    with pytest.raises(InvalidAnswerError, match=re.escape(expected + words)):
        env.step(wrong)
    assert len(env.scorer.predictions()["point"]) == 0
    event, reward, *_ = env.step(np.zeros(3, np.int64))
    assert isinstance(event, Query)
    assert 0 <= reward <= 1


def test_labels_where_scores_are_needed(toy: Toy) -> None:
    env = toy(needs_scores=True)
    event, _ = env.reset(seed=0)
    assert isinstance(event, Query)
    assert event.wants == "scores"
    with pytest.raises(InvalidAnswerError, match=r"Expected float log-probabilities of shape \(3, 2\); got int64"):
        env.step(np.zeros(3, np.int64))


def test_an_answer_nobody_asked_for(toy: Toy) -> None:
    env = toy(tasks=1, test=1)
    event, _ = env.reset(seed=0)
    event, *_ = env.step(answer(event))
    assert isinstance(event, TaskStart)
    with pytest.raises(InvalidAnswerError, match="Expected None after TaskStart, which asks nothing; got int64"):
        env.step(np.zeros(1, np.int64))
    event, *_ = env.step(None)
    assert isinstance(event, Train)


def test_steps_outside_a_lifetime(toy: Toy) -> None:
    env = toy(tasks=1)
    with pytest.raises(StreamEndedError, match=r"got one at the first reset\. Call reset"):
        env.step(None)
    with pytest.raises(StreamEndedError, match="Call reset"):
        env.report()
    with pytest.raises(StreamEndedError, match="Call reset"):
        env.get_state()
    play(env)
    with pytest.raises(StreamEndedError, match=r"got one at the end of the stream\. Call reset"):
        env.step(None)
    assert isinstance(env.reset(seed=0)[0], Query)


def test_unknown_reset_options(toy: Toy) -> None:
    with pytest.raises(SettingError, match=r"Expected the option 'resume' or none; got \['resum'\]"):
        toy().reset(options={"resum": {}})


def test_unknown_render_mode(toy: Toy) -> None:
    with pytest.raises(SettingError, match="Expected render_mode to be None, 'ansi' or 'rgb_array'; got 'human'"):
        toy("human")


def test_guesses_play_any_stream(toy: Toy) -> None:
    env = toy()
    env.reset(seed=0)
    env.action_space.seed(0)
    done = False
    while not done:
        _, _, done, _, _ = env.step(env.action_space.sample())
    assert not np.isnan(env.report().R).any()


@pytest.mark.parametrize("prequential", [False, True])
@pytest.mark.parametrize("kind", [{}, {"labels": "seen"}, {"labels": "seen", "boundaries": "hidden", "shared": True}])
def test_resume_at_every_position(toy: Toy, prequential: bool, kind: dict[str, Any]) -> None:
    settings = {"passes": 2, "prequential": prequential, "probe_every": 2, "probe_size": 3, **kind}
    whole, env = toy(**settings), toy(**settings)
    rest = play(whole)
    event, _ = env.reset(seed=0)
    for position in range(len(rest) - 1):
        state = env.get_state()
        other = toy(**settings)
        assert other.reset(options={"resume": state})[0] == rest[position][0]
        event, reward, *_, info = other.step(answer(event))
        assert (event, reward, info) == rest[position + 1]
        env = other
    mine, theirs = env.scorer.predictions(), whole.scorer.predictions()
    assert all(np.array_equal(mine[k], theirs[k], equal_nan=True) for k in mine)
    assert str(env.report()) == str(whole.report())


def test_resume_continues_the_generator(toy: Toy) -> None:
    env, other = toy(), toy()
    env.reset(seed=0)
    other.reset(options={"resume": env.get_state()})
    assert env.reset()[0] == other.reset()[0]


def test_a_state_of_another_stream_is_refused(toy: Toy) -> None:
    env = toy(train=7)
    env.reset(seed=0)
    with pytest.raises(RecordError, match=r"Expected the state of a stream of \d+ events; got one of"):
        toy().reset(options={"resume": env.get_state()})


def test_prequential_asks_each_batch_before_showing_it(toy: Toy) -> None:
    env = toy(tasks=2, prequential=True)
    events = [e for e, _, _ in play(env)]
    for before, event in itertools.pairwise(events):
        if isinstance(event, Train):
            assert isinstance(before, Query)
            assert np.array_equal(before.inputs, event.inputs)
    assert isinstance(env.scorer, Scorer)
    online = env.scorer.online()
    assert online is not None
    assert len(online) == 6
    assert env.report().metrics["prequential_auc"] == pytest.approx(online.mean())


def test_probes_inside_tasks_ask_tasks_seen_so_far(toy: Toy) -> None:
    env = toy(tasks=2, steps=4, probe_every=2, probe_size=2)
    play(env)
    assert isinstance(env.scorer, Scorer)
    probes = env.scorer.probes()
    assert probes is not None
    assert probes.task_learning.tolist() == [1, 2]
    assert probes.step.tolist() == [2, 2]
    assert np.isnan(probes.accuracy).tolist() == [[False, True], [False, False]]
    assert "worst_case_accuracy" in env.report().metrics


def test_slow_data_are_read_ahead_and_unchanged(toy: Toy) -> None:
    slow = toy(slow=True)
    assert play(slow) == play(toy())
    slow.close()


def test_ansi_prints_one_line_per_event(toy: Toy) -> None:
    env = toy("ansi", tasks=1, test=3, train=2)
    event, _ = env.reset(seed=0)
    lines = [env.render()]
    done = False
    while not done:
        event, _, done, _, _ = env.step(answer(event))
        lines.append(env.render())
    assert "".join(lines) == (
        "     0 Query      3 questions of task 0, 2 candidates\n"
        "     1 TaskStart  task 0: 2 classes, 2 samples\n"
        "     2 Train      2 samples\n"
        "     3 TaskEnd\n"
        "     4 Query      3 questions of task 0, 2 candidates\n"
        "     5 End\n"
    )


@pytest.mark.parametrize("labels", ["task", "union", "seen"])
def test_rescoring_the_log_gives_the_same_matrix(toy: Toy, labels: str) -> None:
    env = toy(labels=labels, shared=labels != "task")
    play(env)
    log = env.scorer.predictions()
    assert np.array_equal(env.rescore(log).R, env.report().R, equal_nan=True)
    with pytest.raises(RecordError, match=r"got point [01], task 0, question 99 in row 1\."):
        env.rescore({**log, "question": np.where(np.arange(len(log["point"])) == 1, 99, log["question"])})


def test_fingerprints_follow_what_they_name(toy: Toy) -> None:
    env = toy()
    env.reset(seed=0)
    first = env.fingerprints()
    env.reset(seed=1)
    second = env.fingerprints()
    assert {name: first[name] == second[name] for name in first} == {"data": True, "spec": True, "stream": False}
