"""Which path a call takes, what it says of it, and that nothing falls back in silence."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from clgym import backend as module
from clgym import ops
from clgym.backend import KERNELS, Choice, choose
from clgym.errors import BackendError, NotRegisteredError, SettingError

x, W, A, Bt = torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(1, 3), torch.zeros(1, 4)
p, packed, absmax = torch.ones(2, 5), torch.zeros(6, dtype=torch.uint8), torch.ones(6)
flat, step, index = torch.zeros(3), torch.zeros(()), torch.zeros(2, dtype=torch.int64)

CALLS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = {
    "lora_linear": (ops.lora_linear, (x, W, None, A, Bt), {"scale": 2.0}),
    "stacked_lora": (ops.stacked_lora, (x, W, None, A, Bt), {"offsets": (0, 1)}),
    "rank_gate": (ops.rank_gate, (p, 2, 0.1), {}),
    "router_gate": (ops.router_gate, (p, p, p[0], 2), {}),
    "batched_lora": (ops.batched_lora, (x, W, None, A[None], Bt[None], index), {}),
    "adamw_prox": (ops.adamw_prox_, (flat, flat, flat.clone(), flat.clone(), step), {"lr": 0.1}),
    "project_out": (ops.project_out, (W, torch.eye(4)[:, :1]), {}),
    "nf4_linear": (ops.nf4_linear, (x, packed, absmax), {"block": 2}),
    "merge_stochastic": (ops.merge_stochastic, (W.bfloat16(), A, Bt), {"seed": 1}),
}


def on_cuda(dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return cast(Tensor, SimpleNamespace(is_cuda=True, dtype=dtype, device=torch.device("cuda")))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A machine with a GPU of some capability and some packages, as far as the choice can see."""
    machine: dict[str, Any] = {"capability": (9, 0), "packages": {"triton"}}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: machine["capability"])
    monkeypatch.setattr(module, "installed", lambda name: name in machine["packages"])
    monkeypatch.delenv(module.VARIABLE, raising=False)
    return machine


def test_every_op_has_a_call_here_and_a_kernel_file() -> None:
    assert set(CALLS) == set(KERNELS)
    files = {path.stem for path in (Path(module.__file__).parents[1] / "kernels").glob("*.py")}
    assert files == set(KERNELS) - {"router_gate"}  # which lies beside rank_gate


@pytest.mark.parametrize("op", CALLS)
def test_explain_takes_the_arguments_of_the_call(op: str) -> None:
    _, args, settings = CALLS[op]
    assert ops.explain(op, *args, **settings) == Choice("torch", "the tensors are on cpu, kernels run on CUDA")
    with ops.backend("torch"):
        assert ops.explain(op, *args, **settings).reason == "backend('torch') was asked for"


@pytest.mark.parametrize("name", ["triton", "interpret", "bitsandbytes"])
@pytest.mark.parametrize("op", CALLS)
def test_a_backend_that_cannot_serve_a_call_is_an_error_and_no_fallback(
    op: str, name: ops.Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "installed", lambda package: package == "triton")
    why = {
        "triton": "the tensors are on cpu, kernels run on CUDA",
        "interpret": "a process without TRITON_INTERPRET=1",
        "bitsandbytes": "no bitsandbytes: it is not installed"
        if op == "nf4_linear"
        else "an op that bitsandbytes does not have",
    }[name]
    words = f"Expected {op} to run on backend {name!r}; got {why}. Use backend 'auto', which takes what there is."
    function, args, settings = CALLS[op]
    with ops.backend(name):
        for call in (lambda: ops.explain(op, *args, **settings), lambda: function(*args, **settings)):
            with pytest.raises(BackendError, match=re.escape(words)):
                call()


def test_the_backward_pass_obeys_too() -> None:
    leaf = A.clone().requires_grad_()
    y = ops.lora_linear(x, W, None, leaf, Bt)
    with ops.backend("triton"), pytest.raises(BackendError, match="Expected lora_linear to run on backend 'triton'"):
        torch.autograd.backward(y.sum())


@pytest.mark.parametrize(
    ("change", "dtype", "ranks", "expected"),
    [
        ({}, torch.bfloat16, 16, Choice("triton", "a kernel serves this call")),
        ({}, torch.float32, 256, Choice("triton", "a kernel serves this call")),
        ({}, torch.float64, 16, Choice("torch", "torch.float64, the kernel takes torch.bfloat16, torch.float16,")),
        ({}, torch.bfloat16, 257, Choice("torch", "257 ranks, the kernel takes 1 to 256")),
        ({"capability": (7, 5)}, torch.float16, 16, Choice("torch", "compute capability (7, 5), kernels need (8, 0)")),
        ({"packages": set()}, torch.float16, 16, Choice("torch", "triton is not installed")),
    ],
)
def test_where_there_is_a_gpu(
    gpu: dict[str, Any], change: dict[str, Any], dtype: torch.dtype, ranks: int, expected: Choice
) -> None:
    gpu |= change
    choice = choose("lora_linear", on_cuda(dtype), ranks)
    assert choice.path == expected.path
    assert choice.reason.startswith(expected.reason)
    with ops.backend("triton"):
        if expected.path == "torch":
            with pytest.raises(BackendError, match=re.escape(expected.reason)):
                choose("lora_linear", on_cuda(dtype), ranks)
        else:
            assert choose("lora_linear", on_cuda(dtype), ranks).reason == "backend('triton') was asked for"


def test_bitsandbytes_goes_before_the_kernel_on_a_gpu_and_waits_to_be_asked_on_a_cpu(gpu: dict[str, Any]) -> None:
    gpu["packages"] = {"triton", "bitsandbytes"}
    assert choose("nf4_linear", on_cuda()) == Choice("bitsandbytes", "bitsandbytes is installed")
    assert choose("nf4_linear", packed, dtype=torch.float32).path == "torch"
    with ops.backend("bitsandbytes"):
        assert choose("nf4_linear", packed).path == "bitsandbytes"
    with ops.backend("triton"):
        assert choose("nf4_linear", on_cuda()).path == "triton"


def test_the_variable_asks_and_the_context_overrides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLGYM_BACKEND", "triton")
    with pytest.raises(BackendError, match="Expected lora_linear to run on backend 'triton'"):
        ops.lora_linear(x, W, None, A, Bt)
    with ops.backend("auto"):
        assert ops.lora_linear(x, W, None, A, Bt).shape == (2, 4)
    monkeypatch.setenv("CLGYM_BACKEND", "metal")
    with pytest.raises(SettingError, match=re.escape("Expected a backend in ('auto', 'torch', 'triton', 'interpret',")):
        ops.lora_linear(x, W, None, A, Bt)


def test_a_context_ends_with_an_error_too() -> None:
    with pytest.raises(ValueError, match="stop"), ops.backend("triton"):
        raise ValueError("stop")
    assert module.asked() == "auto"


@pytest.mark.parametrize("call", [lambda: ops.explain("lora_liner", x), lambda: choose("lora_liner", x)])
def test_an_unknown_op_is_refused_with_the_nearest(call: Callable[[], Any]) -> None:
    with pytest.raises(NotRegisteredError, match="Did you mean 'lora_linear'"):
        call()


def test_the_doctor_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from clgym.doctor import kernels

    (found,) = kernels()
    assert (found.name, found.mark, found.fix) == ("ops on torch", "ok", "")
    assert found.found == f"the tensors are on cpu, kernels run on CUDA: {', '.join(KERNELS)}"
    monkeypatch.setenv("CLGYM_BACKEND", "triton")
    with pytest.raises(BackendError, match="Expected lora_linear to run on backend 'triton'"):
        list(kernels())


def test_nothing_of_triton_is_imported_before_a_kernel_runs() -> None:
    code = """
import sys, clgym
assert not {"torch", "triton"} & set(sys.modules)
import torch
from clgym import ops
one = torch.ones(3, 3)
ops.lora_linear(one, one, None, one, one)
assert not [name for name in sys.modules if name.startswith("clgym.kernels.")]
"""
    subprocess.run([sys.executable, "-c", code], check=True)
