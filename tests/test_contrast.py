"""The two-way loss, by hand, and its weight by backbone."""

from __future__ import annotations

import math

import pytest
import torch

from clgym.agent import Setup
from clgym.contrast import text_to_image_weight, two_way_loss


def test_two_way_loss_by_hand() -> None:
    # Image 0 is of class 0 with even odds, image 1 of class 0 with odds 3 to 1; class 1 has no image.
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    targets = torch.tensor([0, 0])
    to_text = (math.log(2) + math.log(4 / 3)) / 2
    to_image = (math.log(4) + math.log(4 / 3)) / (2 + 3)  # class 0 picks image 1 with odds 3 to 1; 3 old rows count
    got = two_way_loss(logits, targets, old_classes=3, text_to_image=0.5)
    assert float(got) == pytest.approx(to_text + 0.5 * to_image)
    assert float(two_way_loss(logits, targets, old_classes=3, text_to_image=0.0)) == pytest.approx(to_text)


def test_the_weight_is_the_papers_but_on_the_tiny_clip() -> None:
    real, tiny = (Setup("image", (224, 224, 3), name) for name in ("ViT-B-16/openai", "embedded/tiny-clip"))
    assert (text_to_image_weight(None, real), text_to_image_weight(None, tiny)) == (1.0, 0.2)
    assert text_to_image_weight(0.7, tiny) == 0.7
