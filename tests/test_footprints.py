"""What each method costs on ViT-B/16, from closed forms; the models have shapes and no values, so none are needed.

Two tasks of 110 classes are begun and ended. Numbers written out are those of papers and of the cards that study them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from open_clip.model import CLIP

import clgym
from clgym.agent import Setup
from clgym.backbones import ClipBackbone
from clgym.events import End, TaskEnd, TaskStart, Train
from clgym.images import ArrayImages
from clgym.learner import Learner
from clgym.registry import find
from clgym.runner import footprint
from clgym.vit import ViTBackbone

CLIP_NAME, VIT_NAME = "ViT-B-16/openai", "timm/vit_base_patch16_224.augreg_in21k_ft_in1k"
CLASSES, TASKS = 110, 2

# LoRA of rank 16 on q, k, v, out, c_fc and c_proj of 12 blocks of width 768 (vision) and of width 512 (text).
VISION_LORA = 12 * 16 * (4 * (768 + 768) + 2 * (768 + 3072))
TEXT_LORA = 12 * 16 * (4 * (512 + 512) + 2 * (512 + 2048))
LORA = 4_423_680  # the "4.4M" of CoDyRA's table 3
GATES = 2_304  # 144 layers of 16
LINEARS = 12 * (4 * 768 * 768 + 2 * 768 * 3072) + 12 * (4 * 512 * 512 + 2 * 512 * 2048)  # what is merged into
QKV = 12 * 768 * 2304  # without the 12 * 2304 biases, which stay fixed
WHOLE = 149_620_736  # all of CLIP but the logit scale
WHOLE_VIT = 85_798_656
GENERATOR = 5_056  # bytes of the state of torch's generator


def clip_without_values() -> ClipBackbone:
    config = open_clip.get_model_config("ViT-B-16")
    with torch.device("meta"):
        model = CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    model.logit_scale = torch.nn.Parameter(torch.tensor(100.0).log())
    return ClipBackbone(CLIP_NAME, model, None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def vit_without_values() -> ViTBackbone:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=0)
    return ViTBackbone(VIT_NAME, model)


BACKBONES: dict[str, Callable[[], Any]] = {CLIP_NAME: clip_without_values, VIT_NAME: vit_without_values}


@pytest.fixture
def taught(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, int]]:
    """Return what gives an agent's costs after two tasks without a batch."""
    reference = ArrayImages(np.zeros((10, 224, 224, 3), np.uint8), np.zeros(10, np.int64)), ("a cat", "a dog")
    monkeypatch.setattr("clgym.agents.zscl.read_reference", lambda *args: reference)
    monkeypatch.setattr("clgym.learner.load_backbone", lambda name, device: BACKBONES[name]())
    monkeypatch.setattr(Learner, "start_optimizer", lambda self, parameters, steps: None)

    def play(id: str, backbone: str = CLIP_NAME, tasks: int = TASKS, **settings: Any) -> dict[str, int]:
        agent = find("agents", id).load()(Setup("image", (224, 224, 3), backbone, device="cpu"), **settings)
        for t in range(tasks):
            names = tuple(f"{t} {c}" for c in range(CLASSES))
            agent.begin_task(TaskStart(None, "", "", names, tuple((name,) for name in names), 100, 10))
            agent.end_task(TaskEnd(None))
        return footprint(agent)

    return play


def test_the_closed_forms_are_the_published_ones() -> None:
    assert VISION_LORA + TEXT_LORA == LORA
    assert GATES == 144 * 16
    # Both encoders. Tables of MTIL print 129.6M for ZSCL and LwF, which no sum of these parts is.
    visual = 768 * 3 * 16 * 16 + 768 + 197 * 768 + 2 * (2 * 768) + 768 * 512
    text = 49_408 * 512 + 77 * 512 + 2 * 512 + 512 * 512
    blocks = sum(12 * (4 * d * d + 4 * d + 8 * d * d + 5 * d + 4 * d) for d in (768, 512))
    assert visual + text + blocks == WHOLE
    assert 768 * 3 * 16 * 16 + 768 + 768 + 197 * 768 + 2 * 768 + 12 * (12 * 768 * 768 + 13 * 768) == WHOLE_VIT


# Per agent: trainable, stored, added at inference, and values in the state (4 bytes each) with other bytes.
Counts = tuple[int, int, int, int, int]
SEEN = TASKS * CLASSES
L2P_POOL = 10 * (10 * 768 + 512)  # ten prompts of ten tokens, and keys
GENERAL, EXPERT = 2 * 2 * 5 * 768, 3 * 2 * 20 * 768 + 512  # DualPrompt: blocks, key and value, tokens, width; and a key
CODA = 10 * 5 * (8 * 768 + 2 * 512)  # components of a task, blocks, tokens of width 768, a key and an attention
ON_CLIP: dict[str, Counts] = {
    "zero_shot": (0, 0, 0, 0, GENERATOR),
    "random_guess": (0, 0, 0, 0, 0),
    "simplecil": (0, SEEN * 512, SEEN * 512, 2 * SEEN * 512, 8 * SEEN + GENERATOR),  # sums in fp64, and counts
    "sequential_lora": (LORA, 0, 0, LINEARS + LORA, GENERATOR),
    "single_task": (LORA, TASKS * LORA, LORA, TASKS * LORA, GENERATOR),
    "replay": (LORA, 0, 0, LINEARS + LORA, GENERATOR),
    "joint": (LORA, 0, 0, LINEARS + LORA, GENERATOR),
    "codyra": (LORA + GATES, 0, 0, LINEARS + LORA + GATES, 8 + GENERATOR),
    "mora": (LORA, TASKS * LORA, TASKS * LORA, TASKS * LORA, 16 + GENERATOR),
    "full_finetune": (WHOLE, 0, 0, WHOLE, GENERATOR),
    "wise_ft": (WHOLE, WHOLE, 0, WHOLE, GENERATOR),  # the anchor is the pre-trained model
    "lwf": (WHOLE, WHOLE, 0, 2 * WHOLE, GENERATOR),
    "zscl": (WHOLE, 3 * WHOLE, 0, 3 * WHOLE, 8 + GENERATOR),  # teacher (pre-trained), last weights and mean
    "l2": (QKV, QKV, 0, 2 * QKV, GENERATOR),
    "pred_kd": (QKV, QKV, 0, 2 * QKV, GENERATOR),
    "feat_kd": (QKV, QKV, 0, 2 * QKV, GENERATOR),
    "ewc": (QKV, 2 * QKV, 0, 4 * QKV, 8 + GENERATOR),  # and the Fisher information, twice while it is summed up
    "l2p": (L2P_POOL, L2P_POOL, L2P_POOL, L2P_POOL, GENERATOR),
    "dualprompt": (
        *(GENERAL + EXPERT, GENERAL + TASKS * EXPERT, GENERAL + TASKS * EXPERT),
        *(GENERAL + TASKS * EXPERT, 8 + GENERATOR),
    ),
    "coda_prompt": (CODA, TASKS * CODA, TASKS * CODA, TASKS * CODA, 8 + GENERATOR),
}
HEAD = SEEN * (768 + 1)  # the classifier of a vision transformer: in the state, and in no other count
ON_VIT: dict[str, Counts] = {
    "sequential_lora": (VISION_LORA, 0, 0, 12 * 12 * 768 * 768 + VISION_LORA + HEAD, GENERATOR),
    "codyra": (
        *(VISION_LORA + GATES // 2, 0, 0),
        *(12 * 12 * 768 * 768 + VISION_LORA + GATES // 2 + HEAD, 8 + GENERATOR),
    ),
    "mora": (VISION_LORA, TASKS * VISION_LORA, TASKS * VISION_LORA, TASKS * VISION_LORA + HEAD, 16 + GENERATOR),
    "full_finetune": (WHOLE_VIT, 0, 0, WHOLE_VIT + HEAD, GENERATOR),
    "l2": (QKV, QKV, 0, 2 * QKV + HEAD, GENERATOR),
    "ewc": (QKV, 2 * QKV, 0, 4 * QKV + HEAD, 8 + GENERATOR),
    "simplecil": (0, SEEN * 768, SEEN * 768, 2 * SEEN * 768, 8 * SEEN + GENERATOR),
}


@pytest.mark.parametrize(
    ("backbone", "id"),
    [(name, id) for name, known in ((CLIP_NAME, ON_CLIP), (VIT_NAME, ON_VIT)) for id in known],
)
def test_costs_follow_from_closed_forms(taught: Callable[..., dict[str, int]], backbone: str, id: str) -> None:
    trainable, stored, added, values, more = (ON_CLIP if backbone == CLIP_NAME else ON_VIT)[id]
    assert taught(id, backbone) == {
        "trainable": trainable,
        "stored": stored,
        "added_at_inference": added,
        "sample_bytes": 0,
        "state_bytes": 4 * values + more,
    }


def test_mora_after_ten_tasks(taught: Callable[..., dict[str, int]]) -> None:
    assert taught("mora", tasks=10)["added_at_inference"] == 44_236_800  # the card's 44.2M


def test_rail_after_the_ten_sets_of_its_paper(
    taught: Callable[..., dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its inverse takes 1.8 GB, so this agent is without values too; PyTorch has no autocast for that.
    monkeypatch.setattr("clgym.learner.pick_device", lambda name: torch.device("meta"))
    monkeypatch.setattr("clgym.learner.torch.autocast", lambda *args, **settings: None)
    cost = taught("rail", tasks=10)
    assert cost["trainable"] == 15_000 * 1_100
    assert cost["added_at_inference"] == 15_000 * 1_100 + 15_000 * 512 == 24_180_000  # the printed 24.18M
    assert cost["stored"] == 15_000 * 1_100 + 15_000 * 15_000
    assert cost["state_bytes"] == 8 * cost["stored"] + GENERATOR


@pytest.mark.parametrize("id", ["replay", "joint"])
def test_stored_samples_are_counted_in_bytes(id: str) -> None:
    env = clgym.make("CLIP-MTIL-v0", tasks=1, steps=2)
    agent = clgym.make_agent(id, env, device="cpu")
    event, _ = env.reset(seed=0)
    met: set[int] = set()
    while not isinstance(event, End):
        if isinstance(event, Train):
            met |= set(event.ids.tolist())
        event, *_ = env.step(agent.act(event))
    assert footprint(agent)["sample_bytes"] == len(met) * 32 * 32 * 3
