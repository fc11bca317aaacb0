from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from clgym.errors import NotRegisteredError, RecordError, SettingError, SourceError, SourceMissingError
from clgym.exchange import export_peft, import_peft
from clgym.lora import Gate, LoRALinear, LoRASet, adapt
from clgym.ops import lora_linear, soft_threshold_
from clgym.optim import AdamWProx

torch.set_num_threads(1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network() -> nn.Sequential:
    """Nested, with one layer name that ends in another layer's whole name, as CLIP's two encoders do."""
    inner = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 6, bias=False))
    model = nn.Sequential(nn.Linear(6, 6), inner, nn.Linear(6, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=seeded(parameter.numel()))
    return model


def adapted(gate: Gate = "normal", *, fill: bool = True, alpha: float | None = None) -> LoRASet:
    lora = adapt(network(), r=2, alpha=alpha, targets=r"0|1\.[02]", gate=gate, generator=seeded(1))
    if fill:
        with torch.no_grad():
            for _, layer in lora.layers:
                layer.Bt.normal_(0, 0.3, generator=seeded(2))
    return lora


def inputs(rows: int = 7) -> Tensor:
    return torch.randn(rows, 6, generator=seeded(3))


def test_adapting_freezes_the_model_and_changes_nothing() -> None:
    lora = adapted(fill=False)
    assert torch.equal(lora.model(inputs()), network()(inputs()))
    assert [name for name, _ in lora.layers] == ["0", "1.0", "1.2"]
    learned = {name for name, parameter in lora.model.named_parameters() if parameter.requires_grad}
    assert learned == {f"{layer}.{part}" for layer in ("0", "1.0", "1.2") for part in ("A", "Bt", "gate")}


def test_forward_is_the_equation() -> None:
    layer = LoRALinear(nn.Linear(6, 5), 2, scale=0.5, gate="normal")
    layer.reset(seeded())
    with torch.no_grad():
        layer.Bt.normal_(generator=seeded(1))
    assert layer.gate is not None
    delta = 0.5 * layer.Bt.T @ layer.gate.diag() @ layer.A
    torch.testing.assert_close(layer.delta(), delta)
    expected = inputs() @ (layer.base.weight + delta).T + layer.base.bias
    torch.testing.assert_close(layer(inputs()), expected, rtol=0, atol=1e-5)


def test_without_gradients_the_merged_weight_answers_and_follows_every_change() -> None:
    lora = adapted()
    layer = lora.layers[0][1]
    assert layer.gate is not None

    def answers() -> None:
        split = lora_linear(inputs(), layer.weight, layer.base.bias, layer.A, layer.Bt, layer.gate, layer.scale)
        for context in (torch.no_grad, torch.inference_mode):
            with context():
                torch.testing.assert_close(layer(inputs()), split.detach(), rtol=1e-5, atol=1e-6)
                assert torch.equal(layer(inputs()), F.linear(inputs(), layer._merged_weight(), layer.base.bias))

    answers()
    kept = layer._merged_weight()
    assert layer._merged_weight() is kept
    with torch.no_grad():
        for change in (
            lambda: lora.arena().add_(0.1),
            lambda: lora.gates().mul_(2),
            lambda: layer.Bt.add_(0.1),
            lambda: layer.A.mul_(0.5),
            lambda: layer.gate.fill_(0.3),
            lambda: layer.weight.add_(0.1),
            lambda: lora.load_tensors({name: t + 0.1 for name, t in lora.named_tensors(with_base=True).items()}),
            lora.merge_,
            lambda: lora.reset(seeded(9)),
        ):
            change()
            answers()
    optimizer = AdamWProx([lora.arena()], lr=0.1)
    train(lora.model, optimizer, 2)
    answers()
    assert layer(inputs()).requires_grad
    assert layer._merged is None  # training keeps no copy


def test_a_bf16_layer_and_a_large_model_answer_with_their_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not LoRALinear(nn.Linear(6, 5, dtype=torch.bfloat16), 2).keeps_merged
    monkeypatch.setattr("clgym.lora.MERGED_AT_MOST", 4 * (36 + 30 + 30) - 1)
    lora = adapted()
    with torch.no_grad():
        lora.model(inputs())
    assert not any(layer.keeps_merged or layer._merged for _, layer in lora.layers)


@pytest.mark.parametrize(
    ("rows", "dtype", "autocast", "mode"),
    [
        (9, torch.float32, False, "merged"),
        (8, torch.float32, False, "split"),
        (9, torch.bfloat16, False, "split"),
        (9, torch.float32, True, "split"),
    ],
)
def test_training_goes_through_the_merged_weight_where_that_is_small_and_exact(
    monkeypatch: pytest.MonkeyPatch, rows: int, dtype: torch.dtype, autocast: bool, mode: str
) -> None:
    taken: list[str] = []

    def spy(*args: Any, **kwargs: Any) -> Tensor:
        taken.append(kwargs["mode"])
        return lora_linear(*args, **kwargs)

    monkeypatch.setattr("clgym.lora.lora_linear", spy)
    layer = LoRALinear(nn.Linear(4, 8, dtype=dtype), r=2)
    x = torch.randn(rows, 4, generator=seeded()).to(dtype)
    with torch.no_grad():
        layer.A.normal_(generator=seeded(1))
        layer.Bt.normal_(generator=seeded(2))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = layer(x)
    assert taken == [mode]
    W, b = layer.base.weight.float(), layer.base.bias.float()
    exact = x.float() @ W.T + b + x.float() @ layer.A.T @ layer.Bt
    tolerance = 1e-5 if dtype == torch.float32 and not autocast else 5e-2
    torch.testing.assert_close(y.float(), exact, rtol=tolerance, atol=tolerance)


def test_a_merge_reports_what_it_lost() -> None:
    lora = adapted()
    assert lora.merge_() < 1e-5
    assert lora.merge_() == 0.0  # there is nothing to merge any more
    half = LoRALinear(nn.Linear(64, 64, dtype=torch.bfloat16), 2)
    half.reset(seeded())
    with torch.no_grad():
        half.Bt.normal_(0, 1e-3, generator=seeded(1))
    before, delta = half.weight.detach().clone(), half.delta().detach()
    assert 0.1 < half.merge_(seed=3) < 10
    realised = half.weight.float() - before.float()
    assert float((realised * delta).sum() / delta.square().sum()) == pytest.approx(1, abs=0.2)


def test_equal_branches_are_rounded_alike() -> None:
    ends = []
    for _ in range(2):
        model = nn.Sequential(nn.Linear(64, 64)).bfloat16()
        with torch.no_grad():
            nn.init.ones_(model[0].weight)  # type: ignore[arg-type]
        lora = adapt(model, r=2, targets="0", generator=seeded())
        with torch.no_grad():
            lora.layers[0][1].Bt.normal_(0, 1e-3, generator=seeded(1))
        lora.merge_()
        ends.append(lora.layers[0][1].weight)
    assert torch.equal(*ends)


def test_reset_draws_from_the_generator_alone() -> None:
    models = [network() for _ in range(3)]
    before = torch.get_rng_state()
    first, second, other = (
        adapt(model, r=2, targets="0", gate="normal", generator=seeded(seed))
        for model, seed in zip(models, (4, 4, 5), strict=True)
    )
    assert torch.equal(first.arena(), second.arena())
    assert not torch.equal(first.arena(), other.arena())
    assert torch.equal(torch.get_rng_state(), before)


def test_fresh_branches_have_the_published_distributions() -> None:
    lora = adapt(nn.Sequential(nn.Linear(400, 400)), r=400, targets="0", gate="normal", generator=seeded())
    layer = lora.layers[0][1]
    bound = 400**-0.5  # Kaiming-uniform with a = sqrt(5): sqrt(6 / (1 + 5)) / sqrt(fan-in)
    assert bound * 0.999 < layer.A.abs().max() <= bound
    assert layer.A.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
    assert layer.Bt.count_nonzero() == 0
    assert abs(lora.gates().mean()) < 0.15
    assert lora.gates().std().item() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("gate", ["none", "normal", "ones"])
def test_the_arena_holds_everything_in_order(gate: Gate) -> None:
    lora = adapted(gate)
    flat = torch.cat([p.detach().flatten() for p in lora.parameters()])
    assert torch.equal(lora.arena().detach(), flat)
    assert lora.trainable_count == flat.numel() == 2 * (12 + 11 + 11) + (0 if gate == "none" else 6)
    assert lora.gates().numel() == (0 if gate == "none" else 6)
    with torch.no_grad():
        lora.arena().fill_(3.0)
    assert all(bool((p == 3).all()) for p in lora.parameters())


def test_gates_are_a_writable_view() -> None:
    lora = adapted("ones")
    soft_threshold_(lora.gates(), 0.25)
    gates = [layer.gate for _, layer in lora.layers if layer.gate is not None]
    assert torch.equal(torch.cat(tuple(gates)).detach(), torch.full((6,), 0.75))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 10) -> None:
    for number in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward((model(inputs()) - number).square().mean())
        optimizer.step()


@pytest.mark.parametrize("fused", [True, False])
def test_one_flat_parameter_equals_adamw_on_separate_tensors(fused: bool) -> None:
    ours, theirs = adapted(alpha=3.0), adapted(alpha=3.0)
    for _, layer in theirs.layers:
        for part, value in [(part, value.detach().clone()) for part, value in layer.named_parameters(recurse=False)]:
            delattr(layer, part)
            setattr(layer, part, nn.Parameter(value))
    apart = [p for p in theirs.model.parameters() if p.requires_grad]
    assert len(apart) == 9
    train(ours.model, torch.optim.AdamW([ours.arena()], lr=0.01, weight_decay=0.1, fused=fused))
    train(theirs.model, torch.optim.AdamW(apart, lr=0.01, weight_decay=0.1, foreach=False, fused=fused))
    for (name, a), (_, b) in zip(ours.layers, theirs.layers, strict=True):
        for part in ("A", "Bt", "gate"):
            torch.testing.assert_close(getattr(a, part), getattr(b, part), rtol=0, atol=1e-7, msg=f"{name}.{part}")
    assert not torch.equal(ours.arena(), adapted(alpha=3.0).arena())


def test_gradients_land_in_the_flat_buffer_and_stay_there() -> None:
    lora = adapted()
    arena = lora.arena()
    assert arena.grad is not None
    at = arena.grad.data_ptr()
    loss = lora.model(inputs()).square().sum()
    torch.autograd.backward(loss, retain_graph=True)
    once = arena.grad.clone()
    torch.testing.assert_close(once, torch.cat([g.flatten() for p in lora.parameters() if (g := p.grad) is not None]))
    assert once.count_nonzero() == once.numel()
    torch.autograd.backward(loss)
    torch.testing.assert_close(arena.grad, 2 * once)
    torch.optim.AdamW([arena]).zero_grad(set_to_none=True)
    assert arena.grad.count_nonzero() == 0
    torch.autograd.backward(lora.model(inputs()).square().sum())
    lora.model.zero_grad(set_to_none=True)
    assert arena.grad.count_nonzero() == 0
    torch.autograd.backward(lora.model(inputs()).square().sum())
    torch.testing.assert_close(arena.grad, once)
    lora.zero_grad()
    assert arena.grad.count_nonzero() == 0
    assert arena.grad.data_ptr() == at


@pytest.mark.parametrize("gate", ["none", "normal"])
@pytest.mark.parametrize("alpha", [None, 3.0])
def test_merging_keeps_the_outputs(gate: Gate, alpha: float | None) -> None:
    lora = adapted(gate, alpha=alpha)
    before = lora.model(inputs())
    assert (before - network()(inputs())).abs().max() > 0.01
    deltas = [layer.delta() for _, layer in lora.layers]
    lora.merge_()
    torch.testing.assert_close(lora.model(inputs()), before, rtol=0, atol=1e-5)
    assert all(layer.Bt.count_nonzero() == 0 for _, layer in lora.layers)
    assert [int(torch.linalg.matrix_rank(delta)) for delta in deltas] == [2, 2, 2]
    lora.reset(seeded(9))
    torch.testing.assert_close(lora.model(inputs()), before, rtol=0, atol=1e-5)
    plain = lora.remove()
    assert not any(isinstance(module, LoRALinear) for module in plain.modules())
    torch.testing.assert_close(plain(inputs()), before, rtol=0, atol=1e-5)


def test_rank_of_the_delta_is_the_number_of_open_gates() -> None:
    lora = adapted("ones")
    lora.gates()[0] = 0.0
    assert [int(torch.linalg.matrix_rank(layer.delta())) for _, layer in lora.layers] == [1, 2, 2]


def test_removing_without_merging_gives_the_old_model_back() -> None:
    lora = adapted()
    assert torch.equal(lora.remove()(inputs()), network()(inputs()))


@pytest.mark.parametrize("with_base", [False, True])
def test_checkpoint_round_trip(tmp_path: Path, with_base: bool) -> None:
    lora, fresh = adapted(), adapted(fill=False)
    if with_base:
        lora.merge_()
        lora.reset(seeded(11))
    save_file(lora.named_tensors(with_base=with_base), tmp_path / "state.safetensors")
    fresh.load_tensors(load_file(tmp_path / "state.safetensors"))
    assert torch.equal(fresh.arena(), lora.arena())
    assert torch.equal(fresh.model(inputs()), lora.model(inputs()))


def test_checkpoint_of_other_layers_is_refused_and_changes_nothing() -> None:
    lora = adapted()
    before, state = lora.arena().detach().clone(), adapted(fill=False).named_tensors()
    with pytest.raises(RecordError, match=r"other names or shapes: 0\.gate \(1 in all\)"):
        lora.load_tensors({name: t for name, t in state.items() if name != "0.gate"})
    with pytest.raises(RecordError, match=r"Expected the tensors of 3 adapted layers.*0\.A"):
        lora.load_tensors(state | {"0.A": torch.zeros(3, 6)})
    assert torch.equal(lora.arena(), before)


def test_moving_the_model_afterwards_is_refused() -> None:
    lora = adapted()
    lora.model.to("cpu", torch.float32)
    assert lora.arena().numel() == lora.trainable_count
    lora.model.double()
    with pytest.raises(SettingError, match="moved or cast since"):
        lora.arena()


def test_targets() -> None:
    def names(targets: str | list[str]) -> list[str]:
        return [name for name, _ in adapt(network(), r=1, targets=targets, generator=seeded()).layers]

    assert names(r"1\.[02]") == ["1.0", "1.2"]
    assert names("[02]") == ["0", "2"]
    assert names(["2"]) == ["1.2", "2"]
    assert names(["1.2"]) == ["1.2"]
    with pytest.raises(NotRegisteredError, match=r"Expected a registered layer; got '1\.3'"):
        names(["1.2", "1.3"])
    with pytest.raises(NotRegisteredError, match="got 'proj'"):
        names("proj")
    with pytest.raises(SettingError, match=r"Expected nn\.Linear; '1\.1' is a GELU"):
        names(["1.1"])


def test_settings_out_of_range() -> None:
    linear = nn.Linear(6, 3)
    for r in (0, 4):
        with pytest.raises(SettingError, match=f"Expected 1 <= r <= 3.*got r={r}"):
            LoRALinear(linear, r)
    with pytest.raises(SettingError, match="Expected 1 <= r"):
        adapt(network(), r=0, alpha=1.0, targets="0", generator=seeded())
    with pytest.raises(SettingError, match="got 'sigmoid'"):
        LoRALinear(linear, 1, gate="sigmoid")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match=r"Expected gate in \('none',\) for this layer; got 'ones'"):
        LoRALinear(linear, 1).reset(seeded(), "ones")
    with pytest.raises(SettingError, match="got 'none'"):
        LoRALinear(linear, 1, gate="ones").reset(seeded(), "none")


@pytest.mark.parametrize("gate", ["none", "normal"])
def test_peft_reads_our_export(tmp_path: Path, gate: Gate) -> None:
    lora = adapted(gate, alpha=3.0)
    export_peft(lora, tmp_path / "new" / "folder", "a/name")
    theirs = PeftModel.from_pretrained(network(), str(tmp_path / "new" / "folder"))
    torch.testing.assert_close(theirs(inputs()), lora.model(inputs()), rtol=0, atol=1e-6)
    config = LoraConfig.from_pretrained(str(tmp_path / "new" / "folder"))
    assert (config.r, config.lora_alpha, config.base_model_name_or_path) == (2, 3.0, "a/name")


@pytest.mark.parametrize("rslora", [False, True])
def test_we_read_an_export_of_peft(tmp_path: Path, rslora: bool) -> None:
    config = LoraConfig(r=2, lora_alpha=5, target_modules=r"0|1\.[02]", use_rslora=rslora)
    theirs = get_peft_model(network(), config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3, generator=seeded(parameter.numel()))
    theirs.save_pretrained(str(tmp_path))
    lora = adapted("normal", alpha=3.0)
    import_peft(tmp_path, lora)
    expected = theirs(inputs())
    torch.testing.assert_close(lora.model(inputs()), expected, rtol=1e-6, atol=1e-6)


def test_our_export_comes_back(tmp_path: Path) -> None:
    lora, other = adapted(alpha=3.0), adapted(fill=False)
    export_peft(lora, tmp_path, "")
    import_peft(tmp_path, other)
    torch.testing.assert_close(other.model(inputs()), lora.model(inputs()), rtol=0, atol=1e-6)


def test_import_refuses_what_does_not_fit(tmp_path: Path) -> None:
    lora = adapted("none")
    with pytest.raises(SourceMissingError, match=r"Expected adapter_model\.safetensors"):
        import_peft(tmp_path, lora)
    export_peft(adapt(network(), r=3, targets="0", generator=seeded()), tmp_path, "")
    with pytest.raises(SourceError, match=r"Expected an adapter of 3 adapted layers.*\(6 in all\)"):
        import_peft(tmp_path, lora)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_dora": True}))
    with pytest.raises(SourceError, match=r"Expected a plain LoRA adapter.*use_dora"):
        import_peft(tmp_path, lora)
