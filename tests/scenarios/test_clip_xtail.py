"""CLIP-XTAIL-v0: ten domains, one answer space of distinct names, and no word of the task."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import clgym
from clgym.env import ContinualEnv
from clgym.errors import SettingError, SourceError, SourceMissingError
from clgym.events import Query, TaskEnd, TaskStart, Train
from clgym.labels import distinct
from clgym.scenarios.clip_xtail import ClipXTAIL
from clgym.sources import WORDS as ALL_WORDS
from clgym.sources import embedded_task
from clgym.worlds.pictures import DOMAINS, domain

TEN, WORDS = (tuple(name for i, name in enumerate(names) if i != 2) for names in (DOMAINS, ALL_WORDS))


def bare(**settings: Any) -> ContinualEnv:
    env = clgym.make("CLIP-XTAIL-v0", disable_env_checker=True, **settings).unwrapped
    assert isinstance(env, ContinualEnv)
    return env


def folder(root: Path, **tasks: tuple[str, ...]) -> Path:
    rng = np.random.default_rng(0)
    for task, classes in tasks.items():
        for split in ("train", "test"):
            for name in classes:
                (root / task / split / name).mkdir(parents=True)
                for i in range(3):
                    image = Image.fromarray(rng.integers(0, 255, (40, 30, 3), np.uint8))
                    image.save(root / task / split / name / f"{i}.png")
    return root


def test_ten_domains_of_mtil_without_cifar() -> None:
    from clgym.hub_sets import MTIL

    assert [name for i, name in enumerate(MTIL) if i != 2] == [name for name in MTIL if name != "cifar100"]
    env = bare()
    env.reset(seed=0)
    assert env.task_names == TEN
    assert len(WORDS) == len(set(WORDS)) == 10


def test_every_question_offers_every_class_and_says_nothing_of_its_task() -> None:
    env = bare()
    event, _ = env.reset(seed=0)
    assert isinstance(event, Query)
    assert event.task is None
    assert len(event.candidates) == env.scenario.classes == sum(len(domain(name).classes) for name in TEN)
    assert len({name.casefold() for name in event.candidates}) == len(event.candidates)
    assert len({prompts[0] for prompts in event.prompts}) == len(event.candidates)
    assert all(name in text for name, texts in zip(event.candidates, event.prompts, strict=True) for text in texts)
    candidates = event.candidates
    short = bare(tasks=2, steps=1)
    event, done = short.reset(seed=0)[0], False
    while not done:
        assert not isinstance(event, TaskStart | TaskEnd | Query) or event.task is None
        assert not isinstance(event, TaskStart) or not (event.name or event.description)
        assert not isinstance(event, Query) or len(event.candidates) == short.scenario.classes < len(candidates)
        event, _, done, _, _ = short.step(short.action_space.sample())


def test_labels_are_counted_through_the_union() -> None:
    env = bare(tasks=2, steps=1)
    event, done = env.reset(seed=0)[0], False
    first = len(domain(TEN[0]).classes)
    while not done:
        answer = np.full(len(event.inputs), first) if isinstance(event, Query) else None
        event, _, done, _, _ = env.step(answer)
    # Always the first class of the second domain: never right in the first, once in every class in the second.
    assert env.report().R.tolist() == [[0.0, pytest.approx(1 / len(domain(TEN[1]).classes))]] * 3


def test_only_shared_names_get_the_word_of_their_domain() -> None:
    loaded = [embedded_task(name) for name in TEN]
    renamed = distinct(loaded, dict(zip(TEN, WORDS, strict=True)))
    owners: dict[str, list[str]] = {}
    for task in loaded:
        for name in task.classes:
            owners.setdefault(name, []).append(task.name)
    assert any(len(of) > 1 for of in owners.values())
    for before, after, word in zip(loaded, renamed, WORDS, strict=True):
        for old, new in zip(before.classes, after.classes, strict=True):
            assert new == (f"{old} {word}" if len(owners[old]) > 1 else old)


def test_prompts_follow_and_do_not_stutter() -> None:
    task = embedded_task(TEN[0])
    names = ("Sunflower", "pizza")
    texts = tuple((f"a photo of a {name}.", f"the {name} object.") for name in names)
    objects = replace(task, name="objects", classes=names, prompts=texts)
    flowers = replace(task, name="flowers", classes=("sunflower",), prompts=(("a sunflower, a type of flower.",),))
    one, two = distinct([objects, flowers], {"objects": "object", "flowers": "flower"})
    assert one.classes == ("Sunflower object", "pizza")
    assert one.prompts == (("a photo of a Sunflower object.", "the Sunflower object."), texts[1])
    assert (two.classes, two.prompts) == (("sunflower flower",), (("a sunflower flower, a type of flower.",),))


def test_constants_of_the_embedded_stream() -> None:
    env = bare(tasks=1)
    event, done = env.reset(seed=0)[0], False
    trains: list[Train] = []
    start = None
    while not done:
        if isinstance(event, Train):
            trains.append(event)
        start = event if isinstance(event, TaskStart) else start
        event, _, done, _, _ = env.step(env.action_space.sample())
    assert start is not None
    assert (start.steps, start.samples) == (100, 16 * len(start.classes))
    assert (len(trains), len(trains[0].inputs)) == (100, 32)
    assert len({id for train in trains for id in train.ids.tolist()}) == start.samples


def test_constants_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clgym.hub.require", lambda *_: None)
    scenario = ClipXTAIL(source="hub")
    assert (scenario.teaching.batch_size, scenario.teaching.steps) == (64, 500)
    assert scenario.classes == 1101  # the paper's 1,100, and one more class of Caltech101
    assert scenario.backbone == "ViT-B-16/openai"


@pytest.mark.parametrize(("shots", "samples"), [(0, 40), (5, 5), (100, 40)])
def test_shots(shots: int, samples: int) -> None:
    env = bare(tasks=1, shots=shots, steps=1)
    event: Any = env.reset(seed=0)[0]
    while not isinstance(event, TaskStart):
        event = env.step(env.action_space.sample())[0]
    assert event.samples == samples * len(event.classes)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shots": -1}, "Expected shots to be 0 or more; got -1."),
        ({"backbone": "ViT-B-16/openai"}, "Expected no backbone with source 'embedded', which has its own;"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=re.escape(words)):
        bare(**settings)


def test_the_hub_without_data_fails_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLGYM_DATA", str(tmp_path))
    with pytest.raises(SourceMissingError, match=r"10 missing: mteb/FGVCAircraft@3ae0e4e9") as caught:
        bare(source="hub")
    assert "clgym download CLIP-XTAIL-v0" in str(caught.value)
    assert "cifar100" not in str(caught.value)


def test_a_folder_plays_to_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLGYM_DATA", str(tmp_path / "data"))
    path = folder(tmp_path / "mine", birds=("robin", "wren"), fish=("cod", "eel"), tools=("saw", "axe"))
    record = clgym.run("CLIP-XTAIL-v0", "rail", scenario_settings={"source": str(path), "steps": 2})
    assert record.tasks == ["birds", "fish", "tools"]
    assert not np.isnan(record.matrix).any()


def test_domains_of_a_folder_that_share_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLGYM_DATA", str(tmp_path / "data"))
    path = folder(tmp_path / "mine", birds=("crane", "wren"), machines=("Crane", "lorry"))
    words = "got 1 shared: 'crane' in birds and machines. Rename the class in all but one domain, such as 'crane bird'"
    with pytest.raises(SourceError, match=re.escape(words)):
        bare(source=str(path))
    assert bare(source=str(path), tasks=1).scenario.classes == 2
