"""Odd folders of the user's: each works, or is refused with what to do."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import clgym
from clgym.env import ContinualEnv
from clgym.errors import SettingError, SourceError
from clgym.events import Query, TaskStart, Train

STREAMS = ("CLIP-MTIL-v0", "CLIP-XTAIL-v0", "CLIP-CIFAR100-CIL-v0", "ViT-CIFAR100-CIL-v0")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLGYM_DATA", str(tmp_path / "data"))


def bare(id: str, **settings: Any) -> ContinualEnv:
    env = clgym.make(id, disable_env_checker=True, **settings).unwrapped
    assert isinstance(env, ContinualEnv)
    return env


def play(env: ContinualEnv) -> list[Any]:
    """Guess through a lifetime and return its events."""
    event, done = env.reset(seed=0)[0], False
    seen: list[Any] = [event]
    while not done:
        event, _, done, _, _ = env.step(env.action_space.sample())
        seen.append(event)
    return seen


def task(root: Path, **classes: list[Image.Image]) -> Path:
    """Write a task whose classes have these images, in training and test data alike."""
    for split in ("train", "test"):
        for name, images in classes.items():
            (root / split / name).mkdir(parents=True)
            for i, image in enumerate(images):
                image.save(root / split / name / f"{i}.{'jpg' if image.mode == 'CMYK' else 'png'}")
    return root


def plain(shade: int = 128, side: int = 8) -> list[Image.Image]:
    return [Image.new("RGB", (side, side), (shade, shade, shade))] * 2


@pytest.mark.parametrize("id", STREAMS)
def test_a_folder_stream_with_one_task(tmp_path: Path, id: str) -> None:
    task(tmp_path / "mine" / "only", a=plain(10), b=plain(200))
    env = bare(id, source=str(tmp_path / "mine"), steps=2)
    play(env)
    report = env.report()
    assert report.R.shape == (2, 1)
    assert np.isnan(report.metrics["backward_transfer"])
    assert not np.isnan(report.metrics["last"])


def test_one_task_has_no_boundary_to_blur(tmp_path: Path) -> None:
    task(tmp_path / "mine" / "only", a=plain(10), b=plain(200))
    with pytest.raises(SettingError, match="Expected two tasks or more to blur the boundaries between; got one"):
        bare("CLIP-MTIL-v0", source=str(tmp_path / "mine"), blur=0.1).reset(seed=0)


@pytest.mark.parametrize("id", STREAMS)
def test_a_task_with_one_class(tmp_path: Path, id: str) -> None:
    task(tmp_path / "mine" / "good", a=plain(), b=plain())
    task(tmp_path / "mine" / "poor", c=plain())
    with pytest.raises(SourceError, match=r"Expected at least two classes in .*poor.*; got only 'c'\. Add images of"):
        bare(id, source=str(tmp_path / "mine"))


def test_a_division_into_tasks_of_one_class(tmp_path: Path) -> None:
    path = task(tmp_path / "mine", a=plain(), b=plain(), c=plain())
    with pytest.raises(SettingError, match="Expected at most 1 tasks of 3 classes, two or more each; got 2 tasks"):
        bare("ViT-CIFAR100-CIL-v0", source=str(path), splits=2)


def test_class_names_that_two_tasks_share(tmp_path: Path) -> None:
    task(tmp_path / "mine" / "birds", crane=plain(), wren=plain())
    task(tmp_path / "mine" / "tools", crane=plain(), saw=plain())
    path = str(tmp_path / "mine")
    words = re.escape("Expected class names that differ between domains; got 1 shared: 'crane' in birds and tools.")
    for id, settings in (
        ("CLIP-XTAIL-v0", {}),
        ("CLIP-MTIL-v0", {"boundaries": "hidden"}),
        ("CLIP-MTIL-v0", {"blur": 0.1}),
    ):
        with pytest.raises(SourceError, match=words):
            bare(id, source=path, **settings)
    questions = [e for e in play(bare("CLIP-MTIL-v0", source=path, steps=1)) if isinstance(e, Query)]
    assert {query.candidates for query in questions} == {("crane", "wren"), ("crane", "saw")}
    last = [e for e in play(bare("CLIP-CIFAR100-CIL-v0", source=path, steps=1)) if isinstance(e, Query)][-1]
    assert last.candidates == ("crane", "wren", "saw")


def deep(shade: int) -> Image.Image:
    return Image.fromarray(np.full((8, 8), shade, np.uint16))


@pytest.mark.parametrize("id", ["CLIP-MTIL-v0", "ViT-CIFAR100-CIL-v0"])
def test_images_that_are_not_rgb(tmp_path: Path, id: str) -> None:
    grey = Image.new("L", (8, 8), 128)
    palette = Image.new("RGB", (8, 8), (128, 128, 128)).convert("P")
    clear = Image.new("RGBA", (8, 8), (128, 128, 128, 255))
    odd = {"grey": grey, "palette": palette, "clear": clear, "ink": Image.new("CMYK", (8, 8), (0, 0, 0, 127))}
    odd |= {"deep": deep(128 * 257), "one_bit": Image.new("1", (8, 8), 1), "alpha": Image.new("LA", (8, 8), (128, 255))}
    task(tmp_path / "mine" / "t1", **{name: [image] for name, image in odd.items()})
    task(tmp_path / "mine" / "t2", a=plain(), b=plain())
    event = next(e for e in play(bare(id, source=str(tmp_path / "mine"), steps=1)) if isinstance(e, Query))
    names = sorted(odd)
    pixels = {}
    for shade in np.asarray(event.inputs)[:, 16, 16].tolist():
        pixels[max(shade) - min(shade), round(np.mean(shade))] = shade
    assert np.shape(event.inputs) == (len(names), 32, 32, 3)
    # All are grey of 128 or so, but for the white of one bit.
    assert {round(np.mean(shade)) for shade in pixels.values()} <= {*range(124, 132), 255}
    assert all(max(shade) - min(shade) < 4 for shade in pixels.values())


@pytest.mark.parametrize("id", ["CLIP-MTIL-v0", "ViT-CIFAR100-CIL-v0"])
def test_an_image_of_one_pixel(tmp_path: Path, id: str) -> None:
    task(tmp_path / "mine" / "t1", dot=[Image.new("RGB", (1, 1), (10, 20, 30))], sliver=[Image.new("RGB", (1, 90))])
    task(tmp_path / "mine" / "t2", a=plain(), b=plain())
    events = play(bare(id, source=str(tmp_path / "mine"), steps=3))
    for event in (e for e in events if isinstance(e, Query | Train)):
        assert np.shape(event.inputs)[1:] == (32, 32, 3)
    pixels = {tuple(p) for e in events if isinstance(e, Query) for p in np.asarray(e.inputs)[:, 5, 5].tolist()}
    assert (10, 20, 30) in pixels


def parquet(path: Path, names: list[str]) -> None:
    dot = io.BytesIO()
    Image.new("RGB", (1, 1)).save(dot, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": [{"bytes": dot.getvalue()}] * len(names), "label": names}), path)


@pytest.mark.parametrize("id", ["CLIP-XTAIL-v0", "ViT-CIFAR100-CIL-v0"])
def test_five_thousand_classes(tmp_path: Path, id: str) -> None:
    for t in range(2):
        for split in ("train", "test"):
            parquet(tmp_path / "mine" / f"t{t}" / f"{split}.parquet", [f"t{t} class {c}" for c in range(2_500)])
    env = bare(id, source=str(tmp_path / "mine"), steps=2, blur=0.1)
    events = play(env)
    starts = [e for e in events if isinstance(e, TaskStart)]
    assert [len(start.classes) for start in starts] == [2_750, 2_750]
    assert len(events[-2].candidates) == env.scenario.classes == 5_000
    assert env.report().R[-1].max() < 0.01
