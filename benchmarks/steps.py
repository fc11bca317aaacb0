"""The models and training steps that the kernel benchmarks compare: ours, PEFT's, and the frozen floor."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from clgym.attention import lora_targets, unfold_attention
from clgym.lora import LoRASet, adapt
from clgym.optim import AdamWProx

Work = Callable[[], object]
Answer = Callable[[nn.Module, Tensor], Tensor]


def vision_model(width: int, layers: int, patch: int, *, pixels: int = 32, head: int = 32) -> nn.Module:
    """Return open_clip's vision transformer, random weights, attention unfolded, frozen."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vision = CLIPVisionCfg(image_size=pixels, patch_size=patch, width=width, layers=layers, head_width=head)
        text = CLIPTextCfg(context_length=8, vocab_size=16, width=32, heads=2, layers=1)
        model = CLIP(embed_dim=64, vision_cfg=vision, text_cfg=text).visual.eval()
    return unfold_attention(model).requires_grad_(False)


def adapted(model: nn.Module, r: int, targets: Sequence[str] | None = None) -> LoRASet:
    """Put branches on a copy of the model, with a B that is not zero, so that they have something to say."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    lora = adapt(model, r=r, targets=targets or lora_targets(model), generator=generator)
    with torch.no_grad():
        for _, layer in lora.layers:
            layer.Bt.copy_(torch.randn(layer.Bt.shape, generator=generator) * 0.02)
    return lora


def peft_like(lora: LoRASet, model: nn.Module, dropout: float = 0.0) -> nn.Module:
    """Wrap a copy of the plain model in PEFT, with our branches in the dtype of the model."""
    r, names = lora.layers[0][1].r, [name for name, _ in lora.layers]
    config = LoraConfig(r=r, lora_alpha=r, lora_dropout=dropout, target_modules="|".join(names))
    wrapped: nn.Module = get_peft_model(copy.deepcopy(model), config, autocast_adapter_dtype=False)
    with torch.no_grad():
        for name, layer in lora.layers:
            other = wrapped.base_model.model.get_submodule(name)
            other.lora_A["default"].weight.copy_(layer.A)
            other.lora_B["default"].weight.copy_(layer.Bt.t())
    return wrapped


def plain(model: nn.Module, inputs: Tensor) -> Tensor:
    """Answer with what the model returns."""
    answer: Tensor = model(inputs)
    return answer


def gradients(model: nn.Module, inputs: Tensor, answer: Answer) -> None:
    """Run a forward and a backward pass; gradients are added to those there are, but for the inputs'."""
    inputs.grad = None
    torch.autograd.backward(answer(model, inputs).float().square().mean())


def floor_step(model: nn.Module, inputs: Tensor, answer: Answer = plain) -> Work:
    """A frozen forward and its input gradient, down to the pixels; a LoRA step stops at the first adapter."""
    model, inputs = copy.deepcopy(model), inputs.clone().requires_grad_()
    return lambda: gradients(model, inputs, answer)


def our_step(lora: LoRASet, inputs: Tensor, answer: Answer = plain) -> Work:
    """A training step of clgym."""
    optimizer = AdamWProx([lora.arena()], lr=1e-3)

    def step() -> None:
        lora.zero_grad()
        gradients(lora.model, inputs, answer)
        optimizer.step()

    return step


def peft_step(wrapped: nn.Module, inputs: Tensor, answer: Answer = plain, *, capturable: bool = False) -> Work:
    """A training step of PEFT with torch's AdamW as it comes, as its examples have it."""
    learned = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-3, weight_decay=0.0, capturable=capturable)

    def step() -> None:
        optimizer.zero_grad()
        gradients(wrapped, inputs, answer)
        optimizer.step()

    return step
