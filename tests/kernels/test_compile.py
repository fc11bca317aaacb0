"""Compiles every kernel for sm_80 and sm_90 with what its launcher passes: no GPU is needed, and none is touched.

What the interpreter cannot see: shapes that tensor cores refuse, types, shared memory, spilled registers.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget  # noqa: E402

SHARED = {80: 166_912, 90: 232_448}  # bytes a block may have; the compiler does not refuse more
TYPES = {
    **{torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"},
    **{torch.int16: "i16", torch.int32: "i32", torch.int64: "i64", torch.uint8: "u8"},
}
M, K, N = 512, 768, 3072


class Launch(NamedTuple):
    """What a launcher passed to a kernel."""

    kernel: Any
    values: dict[str, Any]
    options: dict[str, int]


class Recorder:
    """Stands in the place of a kernel and keeps what it is launched with."""

    def __init__(self, kernel: Any, into: list[Launch]) -> None:
        self.kernel, self.into = kernel, into

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert 1 <= len(grid) <= 3
        assert all(isinstance(n, int) and 0 < n < 2**31 for n in grid)

        def launch(*args: Any, **kwargs: Any) -> None:
            options = {name: kwargs.pop(name) for name in ("num_warps", "num_stages")}
            names = self.kernel.arg_names
            self.into.append(Launch(self.kernel, dict(zip(names, args, strict=False)) | kwargs, options))

        return launch


def tensor(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def cases() -> Iterator[tuple[str, str, Callable[[Any], object], bool]]:
    """Yield a name, a kernel file, a call of a launcher, and whether it must reach the tensor cores."""
    index = torch.zeros(8, dtype=torch.int64)
    for r in (16, 200):
        x, A, s, dy, B = tensor(M, K), tensor(r, K), tensor(M, r), tensor(M, N), tensor(r, N)
        master, g = A.float(), tensor(r, dtype=torch.float32)
        pool, low, tokens, wide = tensor(5, r, K), tensor(8, 65, r), tensor(8, 65, K), tensor(N, K)
        yield f"shrink {r}", "lora_linear", lambda k, x=x, A=master: k.shrink(x, A), True
        yield f"expand {r}", "lora_linear", lambda k, s=s, B=B, g=g: k.expand(s, B, tensor(N), g, 0.5), True
        yield f"down {r}", "lora_linear", lambda k, s=s, x=x: k.backward_down(s, x), True
        yield f"shrink pool {r}", "batched_lora", lambda k, x=tokens, A=pool: k.shrink(x, A, index), True
        yield f"expand pool {r}", "batched_lora", lambda k, s=low, A=pool: k.expand(s, A, index), True
        yield f"outer {r}", "batched_lora", lambda k, s=low, x=tokens: k.outer(s, x, index, 5), True
        yield f"merge {r}", "merge_stochastic", lambda k, W=wide, A=A, B=B, g=g: k.merge(W, A, B, g, 1.0, 7), False
        yield f"gate {r}", "rank_gate", lambda k, s=s: k.self_forward(s, 16, 0.01, 0.2), False
        yield f"gate back {r}", "rank_gate", lambda k, s=s: k.self_backward(s, s, s.float(), 0.01, None), False
        yield f"router {r}", "rank_gate", lambda k, s=s, g=g: k.router_forward(s, s, g, 8), False
        yield f"router back {r}", "rank_gate", lambda k, s=s, g=g: k.router_backward(s, s, s, g, s.float()), False
    x, A, s, dy, B = tensor(M, K), tensor(16, K), tensor(M, 16), tensor(M, N), tensor(16, N)
    yield "shrink dropout", "lora_linear", lambda k: k.shrink(x, A, dropout=0.1, seed=2**40), True
    yield "expand dropout", "lora_linear", lambda k: k.expand(s, A, dropout=0.1, seed=5), True
    yield "down dropout", "lora_linear", lambda k: k.backward_down(s, x, dropout=0.1, seed=5), True
    yield "up", "lora_linear", lambda k: k.backward_up(dy, B, s, tensor(16), 0.5), True
    yield "up 32", "lora_linear", lambda k: k.backward_up(dy, tensor(32, N), tensor(M, 32)), True
    yield "up atomic", "lora_linear", lambda k: k.backward_up(dy, B, s, atomic=True), True
    f = [t.float() for t in (x, A, s, dy, B)]
    yield "shrink fp32", "lora_linear", lambda k: k.shrink(f[0], f[1]), False
    yield "expand fp32", "lora_linear", lambda k: k.expand(f[2], f[4]), False
    yield "up fp32", "lora_linear", lambda k: k.backward_up(f[3], f[4], f[2]), False
    yield "down fp32", "lora_linear", lambda k: k.backward_down(f[2], f[0]), False
    task, gate = tensor(16, dtype=torch.int32), tensor(8, 4)
    yield "weigh", "stacked_lora", lambda k: k.weigh(s, gate, task), False
    yield "weigh back", "stacked_lora", lambda k: k.weigh_backward(s, s, 8), False
    flat = tensor(4096, dtype=torch.float32)
    steps = (flat, flat, flat, flat, tensor(1, dtype=torch.float32))
    yield "adamw", "adamw_prox", lambda k: k.adamw(*steps, 1e-3, 0.9, 0.999, 1e-8, 0.1, 0.01, 5, 4000), False
    order = tensor(4096, dtype=torch.int64)
    yield "groups", "adamw_prox", lambda k: k.group_threshold(flat, order, order[:9], 0.1), False
    yield "project", "project_out", lambda k: k.project(tensor(K, N), tensor(K, 32), True), False
    yield "project right", "project_out", lambda k: k.project(flat.view(64, 64), tensor(64, 100), False), False
    packed = tensor(2048, dtype=torch.uint8)
    yield "nf4", "nf4_linear", lambda k: k.dequantize(packed, flat[:64], 64, torch.bfloat16, flat[:16]), False


CASES = {name: rest for name, *rest in cases()}


def recorded(file: str, call: Callable[[Any], object], monkeypatch: pytest.MonkeyPatch) -> Launch:
    module, launches = import_module(f"clgym.kernels.{file}"), list[Launch]()
    for name in [name for name in vars(module) if name.endswith("_kernel")]:
        monkeypatch.setattr(module, name, Recorder(getattr(module, name), launches))
    call(module)
    (launch,) = launches
    return launch


def source(launch: Launch) -> Any:
    """Describe a launch to the compiler as ``triton.jit`` would: divisible by 16 is noted, 1 is built in."""
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(launch.kernel.params):
        value = launch.values[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            signature[parameter.name], constants[(i,)] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[parameter.name] = f"*{TYPES[value.dtype]}"
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(value, int):
            signature[parameter.name] = "i32" if abs(value) < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            assert isinstance(value, float)
            signature[parameter.name] = "fp32"
    return triton.compiler.ASTSource(launch.kernel, signature, constants, attributes)


@cache
def dumper() -> Path:
    (found,) = Path(triton.__file__).parent.glob("backends/nvidia/bin/cuobjdump")
    return found


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", CASES)
def test_it_compiles_and_fits(name: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, call, tensor_cores = CASES[name]
    launch = recorded(file, call, monkeypatch)
    made = triton.compile(source(launch), target=GPUTarget("cuda", capability, 32), options=launch.options)
    assert made.metadata.shared <= SHARED[capability]
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(made.asm["cubin"])
    usage = subprocess.run([dumper(), "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    spilled = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert spilled is not None
    print(
        name,
        capability,
        made.metadata.shared,
        usage.split("REG")[1].split("\n")[0],
        "wgmma" in made.asm["ptx"],
        "mma.sync" in made.asm["ptx"],
    )
    assert int(spilled[2]) == 0, usage
    assert bool(re.search(r"wgmma\.mma_async|mma\.sync", made.asm["ptx"])) >= tensor_cores
