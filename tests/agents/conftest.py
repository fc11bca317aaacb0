"""An agent at work in a short stream, and one on a ViT-B/16, of timm or CLIP, without weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from open_clip.model import CLIP

import clgym
from clgym.agent import EMBEDDED_CLIP, EMBEDDED_VIT, Setup
from clgym.backbones import ClipBackbone
from clgym.events import Erase, EraseRequest, Query, TaskEnd, TaskStart, Train
from clgym.registry import build_agent, find
from clgym.vit import ViTBackbone


class Play:
    """Two short tasks and an agent in them; questions are guessed to save time."""

    def __init__(self, agent: str, scenario: str = "CLIP-MTIL-v0", steps: int = 4, **settings: Any) -> None:
        self.env = clgym.make(scenario, tasks=2, steps=steps)
        self.agent: Any = clgym.make_agent(agent, self.env, device="cpu", **settings)
        self.event: Any = self.env.reset(seed=0)[0]

    def step(self) -> bool:
        guess = isinstance(self.event, Query)
        answer = self.env.action_space.sample() if guess else self.agent.act(self.event)
        self.event, _, done, _, _ = self.env.step(answer)
        return not done

    def until(self, kind: type, number: int = 1) -> Any:
        """Play until the ``number``-th event of a kind waits to be acted on, and return it."""
        while number := number - isinstance(self.event, kind):
            self.step()
        return self.event

    def batch(self, number: int = 1) -> Any:
        """Play until the ``number``-th batch waits, and return its images and targets."""
        event = self.until(Train, number)
        return self.agent.to_device(event.inputs, event.targets)

    def to_the_end(self) -> Any:
        """Play the rest, and return the agent."""
        while self.step():
            pass
        return self.agent


@pytest.fixture
def play() -> type[Play]:
    """Return what plays a short stream."""
    return Play


@pytest.fixture
def on_vit_b_16(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return what builds an agent, by name, on a ViT-B/16 whose weights are shapes alone."""

    def build(agent: str, **settings: Any) -> Any:
        with torch.device("meta"):
            model = timm.create_model("vit_base_patch16_224", num_classes=0)
        backbone = ViTBackbone("timm/vit_base_patch16_224", model)
        monkeypatch.setattr("clgym.learner.load_backbone", lambda name, device: backbone)
        setup = Setup("image", (224, 224, 3), "timm/vit_base_patch16_224.augreg_in21k_ft_in1k", device="cpu")
        return build_agent(agent, setup, settings)

    return build


@pytest.fixture
def on_clip_b_16(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return what builds an agent, by name, on a CLIP ViT-B/16 whose weights are shapes alone."""

    def build(agent: str, **settings: Any) -> Any:
        config = open_clip.get_model_config("ViT-B-16")
        with torch.device("meta"):
            model = CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
        model.logit_scale = torch.nn.Parameter(torch.tensor(100.0).log())
        backbone = ClipBackbone("ViT-B-16/openai", model, None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        monkeypatch.setattr("clgym.learner.load_backbone", lambda name, device: backbone)
        return build_agent(agent, Setup("image", (224, 224, 3), "ViT-B-16/openai", device="cpu"), settings)

    return build


class Asked:
    """An agent, and hand-made events of noise: tasks of two classes with two batches, then requests to forget.

    Args:
        agent: Its name.
        backbone: ``"embedded/tiny-vit"`` or ``"embedded/tiny-clip"``.
        **settings: Its settings.
    """

    classes: tuple[str, ...] = ("cat", "dog", "eel", "fox")
    prompts: tuple[tuple[str, ...], ...] = tuple((f"a photo of a {name}.",) for name in classes)

    def __init__(self, agent: str, backbone: str = EMBEDDED_VIT, **settings: Any) -> None:
        self.setup = Setup("image", (32, 32, 3), backbone, device="cpu")
        self.kind, self.settings = find("agents", agent).load(), settings
        self.agent: Any = self.fresh()

    def fresh(self) -> Any:
        """Build the agent anew."""
        return self.kind(self.setup, **self.settings)

    def batch(self, ids: Sequence[int], labels: Sequence[int]) -> Train:
        images = [np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8) for i in ids]
        return Train(np.stack(images), np.array(labels), np.array(ids))

    def task(self, t: int) -> list[Any]:
        """Return the events of task ``t`` of two: samples ``8 t`` to ``8 t + 7``, of its classes in turn."""
        mine = slice(2 * t, 2 * t + 2)
        batches = [self.batch(range(start, start + 4), [0, 1, 0, 1]) for start in (8 * t, 8 * t + 4)]
        start = TaskStart(t, f"task {t}", "", self.classes[mine], self.prompts[mine], 8, 2)
        return [start, *batches, TaskEnd(t)]

    def request(self, ids: Sequence[int], classes: Sequence[str] = (), number: int = 0, **more: Any) -> EraseRequest:
        kind: Any = "class" if classes else "sample"
        return EraseRequest(number, kind, tuple(classes), np.array(ids), tuple(classes), budget=3, **more)

    def phase(self, steps: int = 3, forget: Train | None = None, retain: Train | None = None) -> list[Erase]:
        """Return a phase that brings the same batches at every step; labels are among all four classes."""
        return [Erase((0,), self.classes, self.prompts, forget, retain, k, steps) for k in range(steps)]

    def play(self, *events: Any) -> Any:
        """Act on events in turn, and return the agent."""
        for event in events:
            self.agent.act(event)
        return self.agent

    def learned(self) -> Any:
        """Play both tasks, and return the agent."""
        return self.play(*self.task(0), *self.task(1))

    def ask(self, agent: Any = None) -> Any:
        """Return the answers to four questions among all classes, as probabilities."""
        images = self.batch(range(100, 104), [0] * 4).inputs
        return np.exp((agent or self.agent).act(Query(images, self.classes, self.prompts, "scores", None)))


@pytest.fixture(params=[EMBEDDED_VIT, EMBEDDED_CLIP])
def asked(request: pytest.FixtureRequest) -> Callable[..., Asked]:
    """Return what builds :class:`Asked` on either backbone."""
    return lambda agent, **settings: Asked(agent, request.param, **settings)


@pytest.fixture
def asked_vit() -> type[Asked]:
    """Return what builds :class:`Asked` on the vision transformer."""
    return Asked
