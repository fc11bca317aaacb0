"""The classifier of slots, its loss, and detectors by name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import YolosConfig, YolosForObjectDetection

from clgym.attention import lora_targets, part_of
from clgym.backbones import detects, load_backbone
from clgym.detection_head import DetectionHead, head_for
from clgym.detector import Detector
from clgym.errors import NotRegisteredError, RecordError, SettingError, SourceMissingError
from clgym.head import GrowingHead
from clgym.lora import adapt

CPU = torch.device("cpu")
TINY = "embedded/tiny-yolos"


def head() -> DetectionHead:
    """Two features and two classes; a class has the logit of its feature, nothing has 0."""
    return DetectionHead(2, CPU, ["cat", "dog"], torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 0]]))


def slots(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor([rows])


HERE, THERE = (0.3, 0.3, 0.2, 0.2), (0.7, 0.7, 0.2, 0.2)


def test_logits_are_between_boxes_and_nothing() -> None:
    one = head()
    found = one.classify(slots((3.0, 5.0, *HERE)), one.rows(["dog", "cat"]))
    assert found.tolist()[0][0] == pytest.approx([*HERE, 5.0, 3.0, 0.0])
    answer = one.answer(found)
    assert answer.shape == (1, 1, 6)
    assert answer[0, 0, 4].item() == pytest.approx(math.exp(5) / (math.exp(5) + math.exp(3) + 1))


def test_classes_without_a_row_are_never_seen() -> None:
    one = head()
    found = one.spread(one.classify(slots((3.0, 5.0, *HERE)), one.rows(["dog"])), torch.tensor([False, True]))
    assert one.answer(found)[0, 0, 4:].tolist() == pytest.approx([0.0, math.exp(5) / (math.exp(5) + 1)])
    assert one.answer(one.unmet(3, 2)).shape == (3, 1, 6)
    assert one.answer(one.unmet(3, 2))[..., 4:].max() == 0


def test_the_loss_on_a_worked_case() -> None:
    # The second slot sees the cat where it is; it is matched, though the first is a cat's too and stronger.
    one = head()
    found = one.classify(slots((2.0, 0.0, *THERE), (0.0, 0.0, *HERE)), one.rows(["cat", "dog"]))
    boxes = torch.tensor([[[0, *HERE], [-1, 0, 0, 0, 0]]])
    right = -math.log(1 / 3)
    wrong = -math.log(1 / (math.exp(2) + 2))
    assert one.loss(found, boxes).item() == pytest.approx((right + 0.1 * wrong) / 1.1, rel=1e-5)
    beside = torch.tensor([[[0, 0.4, 0.3, 0.2, 0.2]]])  # 0.1 to the right: IoU 1/3, and the hull is filled
    more = 5 * 0.1 + 2 * (1 - 1 / 3)
    assert one.loss(found, beside).item() == pytest.approx((right + 0.1 * wrong) / 1.1 + more, rel=1e-5)


def test_a_picture_without_an_object_teaches_nothing_else() -> None:
    one = head()
    found = one.classify(slots((0.0, 0.0, *THERE)), one.rows(["cat", "dog"])).requires_grad_()
    loss = one.loss(found, torch.tensor([[[-1.0, 0, 0, 0, 0]]]))
    assert loss.item() == pytest.approx(math.log(3))
    (gradient,) = torch.autograd.grad(loss, found)
    assert gradient[..., :4].abs().max() == 0


def test_a_state_comes_back_and_must_be_a_detectors() -> None:
    one, other = head(), head()
    one.grow(["eel"], torch.Generator().manual_seed(0))
    with torch.no_grad():
        one.nothing.add_(1)
    other.restore(one.groups, one.state())
    assert list(other.names) == ["cat", "dog", "eel"]
    assert torch.equal(other.rows(["eel"]), one.rows(["eel"]))
    assert torch.equal(other.nothing, one.nothing)
    assert list(other.empty().names) == ["cat", "dog"]
    plain = GrowingHead(2, CPU)
    plain.grow(["cat"], torch.Generator())
    with pytest.raises(RecordError, match="Expected the row of nothing of a detector's head"):
        other.restore(plain.groups, plain.state())


def test_the_tiny_detector_answers_as_its_library_does() -> None:
    backbone = load_backbone(TINY, CPU)
    assert isinstance(backbone, Detector)
    own = head_for(backbone, backbone.embed_dim, CPU)
    pictures = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        answer = own.answer(own.classify(backbone.encode_images(pictures), own.rows(list(own.names))))
        theirs = backbone.model(backbone.pixels(pictures))
    torch.testing.assert_close(answer[..., :4], theirs.pred_boxes)
    torch.testing.assert_close(answer[..., 4:], theirs.logits.softmax(-1)[..., :-1])
    assert list(own.names) == list(backbone.classes)


def test_every_linear_of_a_block_takes_an_adapter() -> None:
    backbone = load_backbone(TINY, CPU)
    names = lora_targets(backbone.model, "vision")
    assert len(names) == 4 * 6
    assert [part_of(name) for name in names[:6]] == ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    pictures = np.zeros((1, 64, 64, 3), np.uint8)
    before = backbone.encode_images(pictures)
    lora = adapt(backbone.model, r=2, targets=names, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(backbone.encode_images(pictures), before)
    backbone.encode_images(pictures).sum().backward()  # type: ignore[no-untyped-call]
    gradients = [layer.Bt.grad for _, layer in lora.layers]
    # Boxes and features are read off the slots alone, so that what the last block makes of patches does not matter.
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)
    with pytest.raises(SettingError, match="reads no text"):
        lora_targets(backbone.model, "text")


def test_gaps_in_the_numbering_of_classes_are_no_classes(tmp_path: Path) -> None:
    names = {0: "N/A", 1: "person", 2: "N/A", 3: "car"}
    config = YolosConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=[16, 16],
        patch_size=8, num_detection_tokens=3, id2label=names, label2id={"N/A": 0, "person": 1, "car": 3},
    )  # fmt: skip
    model: Any = YolosForObjectDetection(config)
    backbone = Detector("x", model, image_size=16, mean=(0, 0, 0), std=(1, 1, 1))
    own = head_for(backbone, 8, CPU)
    assert list(own.names) == ["person", "car"]
    assert torch.equal(own.rows(["car"])[0, :-1], model.class_labels_classifier.layers[-1].weight[3])
    assert torch.equal(own.state()["nothing"][0, :-1], model.class_labels_classifier.layers[-1].weight[4])


def test_detectors_are_known_by_name_and_never_fetched() -> None:
    assert detects(TINY)
    assert detects("transformers/hustvl/yolos-tiny")
    assert not detects("timm/vit_base_patch16_224.augreg_in21k_ft_in1k")
    with pytest.raises(SourceMissingError, match=r"got no config\.json and no model\.safetensors"):
        load_backbone("transformers/hustvl/yolos-tiny", CPU)
    with pytest.raises(NotRegisteredError, match="Did you mean 'transformers/hustvl/yolos-small'"):
        load_backbone("transformers/hustvl/yolos-smal", CPU)
