"""The memory: a fair reservoir that can be put away and taken back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from clgym import checkpoint
from clgym.memory import SampleMemory


def fill(memory: SampleMemory, n: int, batch: int = 7, start: int = 0) -> SampleMemory:
    """Offer samples whose image, label and id are their number."""
    for first in range(start, start + n, batch):
        ids = torch.arange(first, min(first + batch, start + n))
        memory.add(ids.to(torch.uint8)[:, None, None, None].expand(-1, 2, 2, 3), ids % 5, ids)
    return memory


def made(size: int, seed: int = 0) -> SampleMemory:
    return SampleMemory(size, torch.Generator().manual_seed(seed))


def tasks(memory: SampleMemory, *sizes: int) -> SampleMemory:
    start = 0
    for t, n in enumerate(sizes):
        memory.begin_task(((f"task {t}",),))
        fill(memory, n, start=start)
        start += n
    return memory


def test_every_sample_is_held_with_the_same_probability() -> None:
    n, size, trials = 40, 10, 2000
    held = torch.zeros(n)
    for seed in range(trials):
        held[tasks(made(size, seed), n)["ids"]] += 1
    p = size / n
    # Exactly `size` of n are held, so the counts' covariance is trials p (1 - p) n / (n - 1) times a projection, and
    # the sum below is chi-square with n - 1 = 39 degrees of freedom: its 0.1 and 99.9 percentiles are 16.3 and 72.1.
    chi = ((held - trials * p) ** 2).sum() / (trials * p * (1 - p)) * (n - 1) / n
    assert held.sum() == size * trials
    assert 16.3 < chi < 72.1


def test_early_and_late_samples_are_equally_likely() -> None:
    halves = torch.zeros(2)
    for seed in range(500):
        halves += torch.bincount(tasks(made(8, seed), 20, 60)["tasks"], minlength=2)
    # 4000 places, each from task 0 with probability 1/4; sampling without replacement makes the spread smaller than
    # the binomial's sqrt(4000 * 3 / 16) = 27.4, of which four are allowed.
    assert abs(halves[0] - 1000) < 4 * 27.4


def test_samples_stay_whole() -> None:
    memory = tasks(made(16), 50, 70, 90)
    ids = memory["ids"]
    assert len(memory) == 16
    assert len(set(ids.tolist())) == 16
    assert torch.equal(memory["images"][:, 0, 0, 0].long(), ids)
    assert torch.equal(memory["images"], memory["images"][:, :1, :1, :1].expand(-1, 2, 2, 3))
    assert torch.equal(memory["targets"], ids % 5)
    assert torch.equal(memory["tasks"], (ids >= 50).long() + (ids >= 120).long())
    assert memory["images"].dtype == torch.uint8


def test_a_sample_met_twice_is_offered_once() -> None:
    memory, other = made(10), made(10)
    for m in (memory, other):
        m.begin_task((("a",),))
        fill(m, 30)
    fill(memory, 30)
    fill(memory, 30, batch=30)
    assert torch.equal(memory["ids"], other["ids"])
    fill(memory, 5, start=30)
    fill(other, 5, start=30)
    assert torch.equal(memory["ids"], other["ids"])


def test_the_batch_size_does_not_matter() -> None:
    held = []
    for batch in (1, 7, 100):
        memory = made(10)
        memory.begin_task((("a",),))
        held.append(fill(memory, 100, batch=batch)["ids"])
    assert all(torch.equal(ids, held[0]) for ids in held)


def test_size_zero_holds_all() -> None:
    memory = tasks(made(0), 100, 150)
    assert memory["ids"].tolist() == list(range(250))


def test_the_first_samples_fill_it_in_order() -> None:
    assert tasks(made(100), 64, 36)["ids"].tolist() == list(range(100))


def test_what_is_held_is_a_copy() -> None:
    memory = made(4)
    memory.begin_task((("a",),))
    images = torch.ones(2, 2, 2, 3, dtype=torch.uint8)
    memory.add(images, torch.zeros(2, dtype=torch.int64), torch.arange(2))
    images.zero_()
    assert memory["images"].min() == 1


def test_bytes_are_those_of_the_images_held() -> None:
    memory = made(10)
    assert memory.sample_bytes == 0
    assert tasks(memory, 3).sample_bytes == 3 * 2 * 2 * 3
    fill(memory, 50, start=3)
    assert memory.sample_bytes == 10 * 2 * 2 * 3


def test_nothing_to_draw() -> None:
    memory = made(10)
    assert memory.draw(4) is None
    assert tasks(memory, 5).draw(4, before=0) is None


def drawn(memory: SampleMemory, size: int, before: int | None = None) -> tuple[Tensor, Tensor, int]:
    batch = memory.draw(size, before=before)
    assert batch is not None
    images, targets, prompts = batch
    return images, targets, memory.prompts.index(prompts)


def test_a_draw_is_of_one_task_with_its_prompts() -> None:
    memory = tasks(made(0), 20, 30, 40)
    for _ in range(50):
        images, targets, task = drawn(memory, 8)
        ids = images[:, 0, 0, 0].long()
        assert len(set(ids.tolist())) == 8
        assert torch.equal(targets, ids % 5)
        assert ids.min() >= [0, 20, 50][task]
        assert ids.max() < [20, 50, 90][task]


def test_draws_are_short_where_a_task_is() -> None:
    assert len(drawn(tasks(made(0), 3), 8)[0]) == 3


def test_before_leaves_out_later_tasks() -> None:
    memory = tasks(made(0), 5, 5, 5)
    assert {drawn(memory, 2, before=2)[2] for _ in range(60)} == {0, 1}
    assert {drawn(memory, 2, before=1)[2] for _ in range(20)} == {0}


def test_tasks_are_drawn_uniformly_whatever_their_size() -> None:
    memory = tasks(made(0), 5, 100, 20)
    counts = torch.zeros(3)
    for _ in range(900):
        counts[drawn(memory, 1)[2]] += 1
    # Binomial with n = 900 and p = 1/3 has a standard deviation of 14.1; four are allowed.
    assert (counts - 300).abs().max() < 4 * 14.1


@pytest.mark.parametrize("size", [0, 10])
@pytest.mark.parametrize("sizes", [(), (4,), (30, 20)])
def test_a_memory_taken_back_goes_on_as_the_other(tmp_path: Path, size: int, sizes: tuple[int, ...]) -> None:
    memory = tasks(made(size), *sizes)
    checkpoint.write(tmp_path, 0, {"memory": memory.state_dict()})
    states = checkpoint.read(tmp_path)
    assert states is not None
    other = made(size, seed=1)
    other.load_state_dict(states["memory"])
    other._generator.set_state(memory._generator.get_state())
    for m in (memory, other):
        m.begin_task((("next", "templates"), ("two",)))
        fill(m, 100, start=10)
    assert memory.prompts == other.prompts
    assert all(torch.equal(memory[name], other[name]) for name in ("images", "targets", "tasks", "ids"))
    assert all(torch.equal(a, b) for a, b in zip(drawn(memory, 5)[:2], drawn(other, 5)[:2], strict=True))


def test_a_state_does_not_follow_later_tasks() -> None:
    memory = tasks(made(10), 5)
    state = memory.state_dict()
    memory.begin_task((("later",),))
    assert state["memory.prompts"] == [(("task 0",),)]


def test_dropped_samples_leave_no_trace_and_no_hole() -> None:
    memory = tasks(made(8), 12)
    gone = memory["ids"][:3].clone()
    kept = memory["ids"][3:].tolist()
    memory.drop(torch.cat([gone, torch.tensor([999])]))
    assert memory["ids"].tolist() == kept
    assert memory["images"][:, 0, 0, 0].tolist() == kept
    assert not set(gone.tolist()) & set(memory.state_dict()["memory.seen"].tolist())
    fill(memory, 3, start=12)
    assert memory["ids"].tolist() == [*kept, 12, 13, 14]
    fill(memory, 30, start=15)
    assert len(memory) == 8
    memory.drop(memory["ids"].clone())
    assert len(memory) == 0
    assert memory.draw(4) is None


def test_dropping_from_an_empty_memory_does_nothing() -> None:
    memory = made(8)
    memory.drop(torch.tensor([1]))
    assert len(memory) == 0


def test_mixed_draws_are_classified_among_the_classes_of_all_tasks() -> None:
    memory = made(0)
    memory.begin_task((("cat",), ("dog",)))
    memory.add(torch.zeros(2, 1, 1, 3, dtype=torch.uint8), torch.tensor([0, 1]), torch.tensor([0, 1]))
    memory.begin_task((("dog",), ("bird",)))
    memory.add(torch.ones(2, 1, 1, 3, dtype=torch.uint8), torch.tensor([0, 1]), torch.tensor([2, 3]))
    prompts, places = memory.union()
    assert prompts == (("cat",), ("dog",), ("bird",))
    assert [place.tolist() for place in places] == [[0, 1], [1, 2]]
    images, targets, _ = memory.draw_mixed(9) or pytest.fail("nothing drawn")
    assert sorted(zip(images[:, 0, 0, 0].tolist(), targets.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 1), (1, 2)]
    images, targets, _ = memory.draw_mixed(9, before=1) or pytest.fail("nothing drawn")
    assert (images.sum().item(), sorted(targets.tolist())) == (0, [0, 1])
    assert made(0).draw_mixed(1) is None


def test_what_is_offered_at_each_showing_may_be_held_twice() -> None:
    memory = SampleMemory(6, torch.Generator().manual_seed(0), distinct=False)
    memory.begin_task((("a",),))
    for _ in range(3):
        fill(memory, 4)
    assert len(memory) == 6
    assert set(memory["ids"].tolist()) == {0, 1, 2, 3}
    # Of 12 showings each is held with probability 1/2, so the last four fill a third of the places.
    late = torch.zeros(())
    for seed in range(300):
        memory = SampleMemory(6, torch.Generator().manual_seed(seed), distinct=False)
        memory.begin_task((("a",),))
        for time in range(3):
            ids = torch.arange(4)
            memory.add(torch.zeros(4, 1, 1, 3, dtype=torch.uint8), ids, ids, time=torch.full((4,), time))
        late += (memory["time"] == 2).sum()
    # 1,800 places; the spread is below the binomial's sqrt(1800 * 2 / 9) = 20, of which four are allowed.
    assert abs(late - 600) < 80


def test_extras_stay_with_their_sample_and_widen(tmp_path: Path) -> None:
    memory = made(5)
    memory.begin_task((("a",),))
    ids = torch.arange(40)
    memory.add(torch.zeros(40, 1, 1, 3, dtype=torch.uint8), ids, ids, said=torch.stack([ids, -ids], dim=1).float())
    assert torch.equal(memory["said"], torch.stack([memory["ids"], -memory["ids"]], dim=1).float())
    memory.widen("said", 3)
    assert memory["said"][:, 2].isnan().all()
    assert torch.equal(memory["said"][:, 0], memory["ids"].float())
    checkpoint.write(tmp_path, 0, {"memory": memory.state_dict()})
    other = made(5)
    other.load_state_dict((checkpoint.read(tmp_path) or {})["memory"])
    assert torch.equal(other["said"].nan_to_num(7.0), memory["said"].nan_to_num(7.0))
