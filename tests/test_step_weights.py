from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clgym.attention import UnfoldedAttention, side_by_side
from clgym.lora import Gate, LoRALinear, LoRASet, adapt
from clgym.optim import AdamWProx


class Net(nn.Module):
    """Three layers of one shape, one of which not every loss uses, and one of another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.side = (
            nn.Linear(6, 6),
            nn.Linear(6, 6),
            nn.Linear(6, 8, bias=False),
            nn.Linear(6, 6),
        )

    def forward(self, x: Tensor, *, side: bool = True) -> Tensor:
        y: Tensor = self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))
        return y + self.side(x).sum() if side else y


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def adapted(gate: Gate = "none", alpha: float | None = None) -> LoRASet:
    torch.manual_seed(0)
    lora = adapt(Net(), r=3, targets=["a", "b", "c", "side"], generator=seeded(), gate=gate, alpha=alpha)
    with torch.no_grad():
        lora.arena().normal_(0, 0.5, generator=seeded(1))
    return lora


def inputs(seed: int = 2) -> Tensor:
    return torch.randn(5, 6, generator=seeded(seed))


def by_hand(lora: LoRASet, x: Tensor, **how: Any) -> Tensor:
    """Return what the model says if every layer is written out for autograd."""
    plain = copy.deepcopy(lora.model)
    for name, layer in lora.layers:

        def forward(x: Tensor, layer: LoRALinear = layer) -> Tensor:
            up = layer.Bt if layer.gate is None else layer.gate[:, None] * layer.Bt
            return F.linear(x, layer.weight + layer.scale * up.mT @ layer.A, layer.base.bias)

        plain.get_submodule(name).forward = forward
    said: Tensor = plain(x, **how)
    return said


def gradient(lora: LoRASet, loss: Callable[[], Tensor]) -> Tensor:
    lora.zero_grad()
    torch.autograd.backward(loss())
    grad = lora.arena().grad
    assert grad is not None
    return grad.clone()


def weights(lora: LoRASet) -> Any:
    return lora.layers[0][1].together


@pytest.mark.parametrize("gate", ["none", "normal"])
@pytest.mark.parametrize("alpha", [None, 12.0])
def test_outputs_and_gradients_are_those_of_the_branches(gate: Gate, alpha: float | None) -> None:
    lora = adapted(gate, alpha)
    assert [len(group) for group in weights(lora).groups] == [3, 1]  # runs of one layer each
    torch.testing.assert_close(lora.model(inputs()), by_hand(lora, inputs()))
    assert weights(lora)._made is not None
    ours = gradient(lora, lambda: lora.model(inputs()).square().mean())
    theirs = gradient(lora, lambda: by_hand(lora, inputs()).square().mean())
    torch.testing.assert_close(ours, theirs)
    assert (ours != 0).all()


def test_a_layer_that_a_loss_did_not_use_gets_no_gradient() -> None:
    lora = adapted("normal")
    ours = gradient(lora, lambda: lora.model(inputs(), side=False).square().mean())
    theirs = gradient(lora, lambda: by_hand(lora, inputs(), side=False).square().mean())
    torch.testing.assert_close(ours, theirs)
    assert dict(lora.layers)["side"].A.grad.count_nonzero() == 0  # type: ignore[union-attr]


def test_what_is_frozen_gets_no_gradient_and_is_free_again() -> None:
    lora = adapted()
    layer = lora.layers[0][1]
    whole = gradient(lora, lambda: lora.model(inputs()).square().mean())
    lora.model(inputs())  # its weights are kept, and no backward pass follows
    layer.A.requires_grad_(False)
    ours = gradient(lora, lambda: lora.model(inputs()).square().mean())
    frozen = layer.A.numel()
    assert ours[:frozen].count_nonzero() == 0
    torch.testing.assert_close(ours[frozen:], whole[frozen:])
    for leaf in lora.parameters():
        leaf.requires_grad_(False)
    assert not lora.model(inputs()).requires_grad
    for leaf in lora.parameters():
        leaf.requires_grad_(True)
    assert torch.equal(gradient(lora, lambda: lora.model(inputs()).square().mean()), whole)


def test_passes_of_a_step_share_the_weights_and_a_backward_pass_ends_them() -> None:
    lora = adapted()
    kept = weights(lora)
    first, second = lora.model(inputs()).square().mean(), lora.model(inputs(3)).square().mean()
    made = kept._made
    lora.model(inputs(4))
    assert kept._made is made
    lora.zero_grad()
    torch.autograd.backward(first)
    assert kept._made is None
    torch.autograd.backward(second)  # through the same node once more
    grad = lora.arena().grad
    assert grad is not None
    both = grad.clone()
    apart = [gradient(lora, lambda seed=seed: lora.model(inputs(seed)).square().mean()) for seed in (2, 3)]  # type: ignore[misc]
    torch.testing.assert_close(both, apart[0] + apart[1])


def test_the_weights_follow_every_change() -> None:
    lora = adapted("normal")
    layer = lora.layers[0][1]
    assert layer.gate is not None
    changes: list[Callable[[], object]] = [
        lambda: lora.arena().add_(0.1),
        lambda: lora.gates().mul_(2),
        lambda: layer.Bt.add_(0.1),
        lambda: layer.weight.add_(0.1),
        lambda: lora.load_tensors({name: t + 0.1 for name, t in lora.named_tensors(with_base=True).items()}),
        lora.merge_,
        lambda: lora.reset(seeded(9)),
    ]
    for change in changes:
        lora.model(inputs())
        with torch.no_grad():
            change()
        torch.testing.assert_close(lora.model(inputs()), by_hand(lora, inputs()))
    optimizer = AdamWProx([lora.arena()], lr=0.1)
    for _ in range(3):
        gradient(lora, lambda: lora.model(inputs()).square().mean())
        optimizer.step()
        torch.testing.assert_close(lora.model(inputs()), by_hand(lora, inputs()))


def test_the_gradient_is_that_of_the_forward_pass_even_if_branches_changed_since() -> None:
    lora = adapted()
    expected = gradient(lora, lambda: lora.model(inputs()).square().mean())
    loss = lora.model(inputs()).square().mean()
    with torch.no_grad():
        lora.arena().add_(1.0)
    assert torch.equal(gradient(lora, lambda: loss), expected)


def test_a_copy_is_on_its_own() -> None:
    lora = adapted()
    lora.model(inputs())
    copies: list[Any] = [copy.deepcopy(lora.model), pickle.loads(pickle.dumps(lora.model))]
    for other in copies:
        assert torch.allclose(other(inputs()), lora.model(inputs()), atol=1e-6)
        with torch.no_grad():
            other.a.Bt.add_(1.0)
        assert not torch.allclose(other(inputs()), lora.model(inputs()))


def test_nothing_is_kept_alive() -> None:
    lora = adapted()
    lora.model(inputs())
    gone = weakref.ref(weights(lora))
    del lora
    gc.collect()
    assert gone() is None


def test_wide_layers_many_rows_and_other_types_go_their_own_way() -> None:
    lora = adapted()
    layer = lora.layers[0][1]
    for x in (inputs(), torch.zeros(2, 1024, 6)):
        assert weights(lora).weight(x, layer) is not None
    assert weights(lora).weight(torch.zeros(2049, 6), layer) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert weights(lora).weight(inputs(), layer) is None
    assert weights(lora).weight(inputs(), LoRALinear(nn.Linear(6, 6), 3)) is None
    for base, r in ((nn.Linear(64, 64), 1), (nn.Linear(8, 8, dtype=torch.float64), 2), (nn.Linear(8, 8).bfloat16(), 2)):
        other = adapt(nn.Sequential(base), r=r, targets="0", generator=seeded()).layers[0][1]
        x = torch.zeros(5, base.in_features, dtype=base.weight.dtype)
        assert other.together.weight(x, other) is None
        assert other(x).shape == (5, base.out_features)


class Attending(nn.Module):
    """Attention of all tokens to all, or of the first alone, as in a last block."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = UnfoldedAttention(nn.MultiheadAttention(8, 2, batch_first=True))

    def forward(self, x: Tensor, *, one: bool = False) -> Tensor:
        out: Tensor = self.attn(x[:, :1], x, x)[0] if one else self.attn(x)[0]
        return out


TOKENS = torch.randn(3, 5, 8, generator=seeded(4))


def attending(*targets: str, gate: Gate = "none") -> LoRASet:
    torch.manual_seed(0)
    model = Attending()
    for bias in (model.attn.q_proj.bias, model.attn.k_proj.bias, model.attn.v_proj.bias):
        nn.init.normal_(bias)
    lora = adapt(model, r=2, targets=targets, generator=seeded(), gate=gate)
    with torch.no_grad():
        lora.arena().normal_(0, 0.5, generator=seeded(1))
    return lora


@pytest.mark.parametrize("gate", ["none", "normal"])
@pytest.mark.parametrize("one", [False, True])
def test_layers_that_read_the_same_tokens_are_one_product(gate: Gate, one: bool) -> None:
    lora = attending("q_proj", "k_proj", "v_proj", "out_proj", gate=gate)
    layers = lora.model.attn.same_inputs  # type: ignore[union-attr]
    assert [[len(run) for run in group] for group in weights(lora).groups] == [[3, 1]]
    for some in (layers, layers[1:], layers[:2]):  # type: ignore[index]
        joint = side_by_side(TOKENS, *some)  # type: ignore[misc]
        assert joint is not None
        torch.testing.assert_close(joint, torch.cat([layer(TOKENS) for layer in some], -1))  # type: ignore[union-attr]
    torch.testing.assert_close(lora.model(TOKENS, one=one), by_hand(lora, TOKENS, one=one))
    ours = gradient(lora, lambda: lora.model(TOKENS, one=one).square().mean())
    theirs = gradient(lora, lambda: by_hand(lora, TOKENS, one=one).square().mean())
    torch.testing.assert_close(ours, theirs)
    assert (ours != 0).all()


def test_layers_that_are_not_alike_or_watched_are_asked_one_by_one() -> None:
    some = attending("q_proj", "v_proj")
    assert side_by_side(TOKENS, *some.model.attn.same_inputs) is None  # type: ignore[union-attr, misc]
    torch.testing.assert_close(some.model(TOKENS), by_hand(some, TOKENS))

    lora = attending("q_proj", "k_proj", "v_proj")
    q, k, v = (layer for _, layer in lora.layers)
    assert side_by_side(TOKENS, k, q) is None
    with torch.no_grad():
        assert side_by_side(TOKENS, q, k, v) is None
    heard: list[Tensor] = []
    hook = k.register_forward_hook(lambda layer, args, out: heard.append(out))
    watched = lora.model(TOKENS)
    hook.remove()
    assert len(heard) == 1
    torch.testing.assert_close(watched, lora.model(TOKENS))
    with lora.put_aside() as plain:
        aside = plain(TOKENS)
    with torch.no_grad():
        lora.arena().zero_()
    torch.testing.assert_close(aside, lora.model(TOKENS))
