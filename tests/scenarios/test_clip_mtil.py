"""CLIP-MTIL-v0: orders, few-shot draws, sources and the faults they name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import clgym
from clgym.env import ContinualEnv
from clgym.errors import SettingError, SourceError, SourceMissingError
from clgym.events import Query, TaskStart, Train

# ZSCL's two orders (arXiv:2303.06628), by the data sets' names.
ORDER_I = "aircraft caltech101 cifar100 dtd eurosat flowers food mnist oxford_pet stanford_cars sun397".split()
ORDER_II = "stanford_cars food mnist oxford_pet flowers sun397 aircraft caltech101 dtd eurosat cifar100".split()
REAL = Path(__file__).parents[3] / "shared" / "data" / "images"


def bare(**settings: Any) -> ContinualEnv:
    env = clgym.make("CLIP-MTIL-v0", disable_env_checker=True, **settings).unwrapped
    assert isinstance(env, ContinualEnv)
    return env


def test_orders_of_the_paper() -> None:
    from clgym.hub_sets import MTIL
    from clgym.scenarios.clip_mtil import ORDER_II as RANKS

    assert list(MTIL) == ORDER_I
    assert [ORDER_I[i] for i in RANKS] == ORDER_II


def test_embedded_domains_keep_the_papers_kinds_in_order() -> None:
    env = bare()
    env.reset(seed=0)
    assert len(env.task_names) == 11
    assert (env.task_names[0], env.task_names[7]) == ("aircraft", "digits")
    other = bare(order="II")
    other.reset(seed=0)
    assert other.task_names[0] == env.task_names[9]
    assert sorted(other.task_names) == sorted(env.task_names)


def test_constants_of_the_embedded_stream() -> None:
    env = bare(tasks=2)
    event, _ = env.reset(seed=0)
    assert isinstance(event, Query)
    assert event.inputs.shape[1:] == (32, 32, 3)  # type: ignore[union-attr]
    assert all(len(p) >= 1 and c in p[0] for c, p in zip(event.candidates, event.prompts, strict=True))
    starts, trains = [], 0
    done = False
    while not done:
        event, _, done, _, _ = env.step(env.action_space.sample())
        trains += isinstance(event, Train)
        if isinstance(event, TaskStart):
            starts.append(event)
    assert [s.steps for s in starts] == [100, 100]
    assert trains == 200


def test_few_shot_takes_so_many_of_every_class_and_the_seed_draws_them() -> None:
    env = bare(tasks=1, shots=5, steps=1)

    def shown(seed: int) -> tuple[int, Any]:
        event: Any = env.reset(seed=seed)[0]
        while not isinstance(event, TaskStart):
            event = env.step(env.action_space.sample())[0]
        batch: Any = env.step(None)[0]
        return event.samples // len(event.classes), batch.inputs

    assert shown(0)[0] == shown(1)[0] == 5
    assert np.array_equal(shown(0)[1], shown(0)[1])
    assert not np.array_equal(shown(0)[1], shown(1)[1])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"order": "III"}, "Expected order 'I' or 'II'; got 'III'."),
        ({"shots": -1}, "Expected shots to be 0 or more; got -1."),
        ({"backbone": "ViT-B-16/openai"}, "Expected no backbone with source 'embedded', which has its own;"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=re.escape(words)):
        bare(**settings)


def test_the_hub_without_data_fails_at_once_with_the_list_and_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLGYM_DATA", str(tmp_path))
    with pytest.raises(SourceMissingError, match=r"11 missing: mteb/FGVCAircraft@3ae0e4e9") as caught:
        bare(source="hub")
    assert "clgym download CLIP-MTIL-v0" in str(caught.value)
    with pytest.raises(SourceMissingError, match=r"2 missing"):
        bare(source="hub", tasks=2)


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


def test_a_folder_plays_to_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLGYM_DATA", str(tmp_path / "data"))
    path = folder(tmp_path / "mine", birds=("robin", "wren"), tools=("saw", "axe", "claw_hammer"))
    record = clgym.run("CLIP-MTIL-v0", "codyra", scenario_settings={"source": str(path), "steps": 2})
    assert record.tasks == ["birds", "tools"]
    assert record.source == "mine"
    assert not np.isnan(record.matrix).any()


def test_order_ii_needs_the_eleven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLGYM_DATA", str(tmp_path / "data"))
    path = folder(tmp_path / "mine", birds=("robin", "wren"))
    with pytest.raises(SettingError, match="Expected order 'I' for a folder of 1 domains; got 'II'"):
        bare(source=str(path), order="II")


def test_a_bad_folder_fails_when_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=re.escape(f"Expected a folder at {tmp_path / 'none'}; got nothing.")):
        bare(source=str(tmp_path / "none"))


@pytest.mark.skipif(not REAL.is_dir(), reason="the real images are not beside the project")
def test_real_photographs_play_to_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLGYM_DATA", str(tmp_path))
    record = clgym.run("CLIP-MTIL-v0", "codyra", scenario_settings={"source": str(REAL), "steps": 3})
    assert record.tasks == ["cifar10", "clothing", "sign_digits"]
    assert not np.isnan(record.matrix).any()
