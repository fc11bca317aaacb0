"""Cost of a LoRA step on the tiny CLIP's vision encoder, as ratios within one run.

Every variant runs the same batch on one thread, in interleaved rounds; the least CPU time of each counts. The
A/A row compares the floor with itself: no other row is known better than that. The floor is a frozen forward
and its input gradient, which goes down to the pixels; the LoRA steps stop at the first adapter.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from clgym.attention import lora_targets, unfold_attention
from clgym.lora import adapt
from clgym.worlds import tiny_clip

BATCH, ROUNDS = 64, 12


def floor(model: nn.Module, images: Tensor) -> Callable[[], None]:
    model = copy.deepcopy(model).requires_grad_(False)
    images = images.clone().requires_grad_()

    def step() -> None:
        torch.autograd.backward(model(images).square().mean())

    return step


def ours(model: nn.Module, images: Tensor, r: int) -> Callable[[], None]:
    model = copy.deepcopy(model)
    lora = adapt(model, r=r, targets=lora_targets(model), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW([lora.arena()], fused=True)

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(model(images).square().mean())
        optimizer.step()

    return step


def real_peft(model: nn.Module, images: Tensor, r: int, fused: bool) -> Callable[[], None]:
    targets = "|".join(lora_targets(model))
    wrapped = get_peft_model(copy.deepcopy(model), LoraConfig(r=r, lora_alpha=r, target_modules=targets))
    learned = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, fused=fused)

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(wrapped(images).square().mean())
        optimizer.step()

    return step


def least_times(steps: dict[str, Callable[[], None]]) -> dict[str, float]:
    least = dict.fromkeys(steps, float("inf"))
    for number in range(ROUNDS + 1):
        for name, step in steps.items():
            start = time.process_time()
            step()
            if number:  # the first round warms up
                least[name] = min(least[name], time.process_time() - start)
    return least


def main() -> None:
    torch.set_num_threads(1)
    fused = tiny_clip.build().visual.eval()
    model = unfold_attention(copy.deepcopy(fused))
    images = torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for r in (4, 16):
        steps = {
            "floor": floor(model, images),
            "A/A": floor(model, images),
            "fused attention": floor(fused, images),
            "ours": ours(model, images, r),
            "peft": real_peft(model, images, r, fused=False),
            "peft, fused AdamW": real_peft(model, images, r, fused=True),
        }
        least = least_times(steps)
        print(f"r={r}: floor (frozen forward + input gradient) {1e3 * least['floor']:.1f} ms")
        for name, seconds in least.items():
            print(f"  {name:18} {seconds / least['floor']:.2f} x floor, {seconds / least['ours']:.2f} x ours")


if __name__ == "__main__":
    main()
