"""The class-incremental streams for CLIP: protocols, orders and prompts, and a run of each to its pictures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clgym
from clgym.env import ContinualEnv
from clgym.errors import SettingError
from clgym.increments import ICARL, class_order
from clgym.record import RunRecord
from clgym.scenario import Task
from clgym.scenarios.clip_cil import PROTOCOLS, ClipCIFAR100, ClipImageNet100
from clgym.sources import HUB_CLIP, TINY_CLIP, embedded_classes
from clgym.worlds.pictures import DOMAINS, domain
from tests.conftest import cli, loaded

CIFAR, IMAGENET = "CLIP-CIFAR100-CIL-v0", "CLIP-ImageNet100-CIL-v0"


def bare(id: str, **settings: Any) -> ContinualEnv:
    env = clgym.make(id, disable_env_checker=True, **settings).unwrapped
    assert isinstance(env, ContinualEnv)
    return env


def tasks(id: str, **settings: Any) -> list[Task]:
    return list(bare(id, **settings).scenario.tasks(np.random.default_rng(0)))


def test_cifar_comes_in_zscls_order() -> None:
    (whole,) = embedded_classes("cifar100")
    assert [name for task in tasks(CIFAR) for name in task.classes] == [whole.classes[c] for c in ICARL]
    pilot = class_order("pilot", 100, 0, np.random.default_rng(0))
    assert [name for task in tasks(CIFAR, order="pilot") for name in task.classes] == [whole.classes[c] for c in pilot]


@pytest.mark.parametrize("splits", [10, 20, 50])
def test_cifars_numbers_of_tasks(splits: int) -> None:
    assert [len(task.classes) for task in tasks(CIFAR, splits=splits)] == [100 // splits] * splits


@pytest.mark.parametrize(
    ("protocol", "sizes"), [("10-10", [10] * 10), ("50-5", [50, *[5] * 10]), ("50-10", [50, *[10] * 5])]
)
def test_protocols_of_imagenet100(protocol: str, sizes: list[int]) -> None:
    (whole,) = embedded_classes("imagenet100")
    made = tasks(IMAGENET, protocol=protocol)
    assert [len(task.classes) for task in made] == sizes
    pilot = class_order("pilot", 100, 0, np.random.default_rng(0))
    assert [name for task in made for name in task.classes] == [whole.classes[c] for c in pilot]
    assert bare(IMAGENET, protocol=protocol).scenario.classes == 100


def test_the_embedded_imagenet100_is_the_worlds_first_hundred() -> None:
    (whole,) = embedded_classes("imagenet100")
    names = [name for each in DOMAINS for name in domain(each).classes][:100]
    assert len(set(whole.classes)) == 100
    assert all(new.startswith(old) for new, old in zip(whole.classes, names, strict=True))
    assert whole.classes[0] == "ginger cat aircraft"
    assert whole.prompts[0] == ("a photo of a ginger cat aircraft.",)


def test_constants_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clgym.hub.require", lambda *_: None)
    for kind, batch_size in ((ClipCIFAR100, 64), (ClipImageNet100, 128)):
        real = kind(source="hub")
        assert (real.backbone, real.shape, real.classes) == (HUB_CLIP, (224, 224, 3), 100)
        assert (real.teaching.batch_size, real.teaching.passes) == (batch_size, 1)
        assert kind().backbone == TINY_CLIP


@pytest.mark.parametrize(
    ("id", "settings", "words"),
    [
        (CIFAR, {"splits": 5}, "Expected splits as one of 10, 20, 50, those of the paper; got 5."),
        (IMAGENET, {"protocol": "20-20"}, "Expected protocol as one of 10-10, 50-5, 50-10; got '20-20'."),
        (IMAGENET, {"order": "zscl"}, "Expected order as one of 'pilot', 'coda', 'drawn'; got 'zscl'."),
        (
            IMAGENET,
            {"protocol": "50-5", "shift": "domain"},
            "Expected tasks of one size and no order of classes with shift 'domain', as every task has all classes;",
        ),
        (CIFAR, {"order": "coda", "shift": "instance"}, "no order of classes with shift 'instance'"),
    ],
)
def test_settings_out_of_range(id: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=re.escape(words)):
        bare(id, **settings)


def test_a_folder_has_half_of_its_classes_first_and_pilots_order(tmp_path: Path) -> None:
    from PIL import Image

    for split in ("train", "test"):
        for c in range(12):
            (tmp_path / split / f"c{c:02d}").mkdir(parents=True)
            Image.new("RGB", (40, 40), (20 * c, 0, 0)).save(tmp_path / split / f"c{c:02d}" / "0.png")
    with pytest.raises(
        SettingError, match="Expected at most 6 tasks of 12 classes, two or more each; got 11 tasks, the"
    ):
        bare(IMAGENET, source=str(tmp_path), protocol="50-5")
    order = class_order("pilot", 12, 0, np.random.default_rng(0))
    made = tasks(CIFAR, source=str(tmp_path), splits=4)
    assert [name for task in made for name in task.classes] == [f"c{c:02d}" for c in order]
    with pytest.raises(SettingError, match="Expected 100 classes for order 'zscl'; got 12"):
        bare(CIFAR, source=str(tmp_path), splits=4, order="zscl")
    assert PROTOCOLS["50-10"] == (6, 50)


def test_a_run_is_recorded_scored_and_drawn_without_the_cells_that_are_not_asked(tmp_path: Path) -> None:
    chosen = {"tasks": 3, "steps": 2, "probe_every": 1}
    record = clgym.run(CIFAR, "zero_shot", scenario_settings=chosen, out=tmp_path / "runs")
    hole = np.isnan(record.matrix)
    assert hole.tolist() == [[j >= t for j in range(3)] for t in range(4)]
    assert record.metrics["mtil_transfer"] is None
    assert record.metrics["forgetting"] is not None
    assert record.metrics["worst_case_accuracy"] is not None
    (folder,) = (tmp_path / "runs").rglob("seed-0")
    assert RunRecord.load(folder).R == record.R

    scored = loaded("score", tmp_path / "runs")
    assert scored["runs"][0]["R"] == record.R
    assert "average_incremental_accuracy" in cli("score", tmp_path / "runs").stdout
    files = loaded("plot", tmp_path / "runs", "--out", tmp_path / "plots")["files"]
    assert len(files) == 6
    assert all(Path(file).stat().st_size > 1000 for file in files)


def test_what_can_be_rendered_before_anything_is_asked() -> None:
    env = clgym.make(CIFAR, render_mode="rgb_array", tasks=2, steps=1).unwrapped
    env.reset(seed=0)
    picture: Any = env.render()
    assert picture.ndim == 3
    assert "-" in str(env.report())  # type: ignore[attr-defined]
