"""The tiny detector and its pre-training."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import YolosForObjectDetection

from clgym.errors import SourceError, SourceMissingError
from clgym.precision import average_precision
from clgym.worlds import composed, pretrain_yolos, tiny_clip, tiny_vit, tiny_yolos


def test_load_gives_transformers_own_class_without_touching_the_global_generator() -> None:
    before = torch.random.get_rng_state()
    model = tiny_yolos.load()
    assert type(model) is YolosForObjectDetection
    assert not model.training
    assert torch.equal(before, torch.random.get_rng_state())
    assert tiny_yolos.WEIGHTS.stat().st_size < 2_200_000


def test_shipped_weights_see_scenes_as_well_as_their_card_says() -> None:
    scenes = composed.draw("test", 200)
    score = average_precision(pretrain_yolos.detect(tiny_yolos.load(), scenes.pictures), scenes.boxes)
    card = tiny_clip.card(tiny_yolos.WEIGHTS)
    assert card["AP50"] >= 0.5
    assert score.AP50.mean() == pytest.approx(card["AP50"], abs=0.06)
    assert score.AP.mean() == pytest.approx(card["mAP"], abs=0.06)


def test_tampered_and_missing_weights_are_named(tmp_path: Path) -> None:
    copy = tmp_path / "tiny_yolos.safetensors"
    shutil.copy(tiny_yolos.WEIGHTS.with_suffix(".json"), tmp_path)
    with pytest.raises(SourceMissingError, match=r"tiny detector's weights at .*tiny_yolos\.safetensors; got no file"):
        tiny_yolos.load(copy)
    blob = bytearray(tiny_yolos.WEIGHTS.read_bytes())
    blob[-1] ^= 1
    copy.write_bytes(bytes(blob))
    with pytest.raises(SourceError, match=r"tiny_yolos\.safetensors with sha256"):
        tiny_yolos.load(copy)


@torch.no_grad()
def test_it_starts_as_the_tiny_vision_transformer() -> None:
    model: Any = tiny_yolos.build()
    source: Any = tiny_vit.load()
    model.train(False)
    tiny_yolos.start_from_vit(model)
    stream = torch.randn(2, 7, 96, generator=torch.Generator().manual_seed(0))
    ours = stream
    for block in model.vit.encoder.layer:
        out = block(ours)
        ours = out[0] if isinstance(out, tuple) else out
    torch.testing.assert_close(ours, source.blocks(stream), atol=1e-4, rtol=1e-4)
    picture = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    patches = model.vit.embeddings.patch_embeddings.projection(picture)
    torch.testing.assert_close(patches.flatten(2).mT, source.patch_embed(picture))
    # A slot is a class token; its position is near the class token's, moved by the mean of its quarter.
    assert torch.equal(model.vit.embeddings.detection_tokens[0, 3], source.cls_token[0, 0])
    positions = model.vit.embeddings.position_embeddings[0]
    grid = positions[1:65].view(8, 8, -1)
    moved = positions[65 + 1] - positions[0]
    quarters = [grid[y : y + 4, x : x + 4].mean((0, 1)) for y in (0, 4) for x in (0, 4)]
    assert int(torch.stack([(moved - quarter).norm() for quarter in quarters]).argmin()) == 1


def test_objects_belong_to_the_slots_of_their_quarters() -> None:
    boxes = torch.tensor([[[5, 0.8, 0.2, 0.1, 0.1], [7, 0.2, 0.9, 0.3, 0.1], [-1, 0, 0, 0, 0]]])
    classes, places = pretrain_yolos.settled(boxes)
    assert classes.tolist() == [[12, 5, 7, 12, 12, 12]]
    assert torch.equal(places[0, 2], boxes[0, 1, 1:])
    # No two things of a scene share a quarter, and none is lost.
    scenes = composed.draw("train", 64)
    classes, _ = pretrain_yolos.settled(torch.from_numpy(scenes.boxes))
    assert int((classes < 12).sum()) == int((scenes.boxes[..., 0] >= 0).sum())


def test_the_loss_on_a_worked_case() -> None:
    # One object, seen where it is with even odds; the other slots too hold nothing at even odds.
    logits = torch.full((1, 6, 13), -torch.inf)
    logits[..., 12] = 0.0
    logits[0, 0, 3] = 0.0
    classes, places = torch.full((1, 6), 12), torch.zeros(1, 6, 4)
    classes[0, 0], places[0, 0] = 3, torch.tensor([0.25, 0.25, 0.2, 0.2])
    found = SimpleNamespace(logits=logits, pred_boxes=places.clone())
    # Weights: 1 for the object and 0.1 for each of five slots, of which none errs. The library adds 1e-7 to areas.
    assert pretrain_yolos.loss_of(found, classes, places).item() == pytest.approx(math.log(2) / 1.5, abs=2e-5)
    found.pred_boxes[0, 0, 0] = 0.35  # half of it beside: IoU 1/3, the hull is filled
    more = 5 * 0.1 + 2 * (1 - 1 / 3)
    assert pretrain_yolos.loss_of(found, classes, places).item() == pytest.approx(math.log(2) / 1.5 + more, abs=2e-5)


def test_pre_training_is_a_function_of_its_settings_and_lowers_the_loss() -> None:
    settings = {"batch": 8, "images": 64, "seed": 3, "rate": 1e-3}
    first, loss = pretrain_yolos.train(steps=2, **settings)  # type: ignore[arg-type]
    again, same = pretrain_yolos.train(steps=2, **settings)  # type: ignore[arg-type]
    assert loss == same
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    _, later = pretrain_yolos.train(steps=30, **settings)  # type: ignore[arg-type]
    assert later < 0.8 * loss
