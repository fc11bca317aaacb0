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


class Case(NamedTuple):
    """A call of a launcher, and whether its kernel must reach the tensor cores."""

    file: str
    launcher: str
    args: tuple[Any, ...]
    settings: dict[str, Any]
    tensor_cores: bool


def case(at: str, *args: Any, tensor_cores: bool = False, **settings: Any) -> Case:
    file, _, launcher = at.partition(".")
    return Case(file, launcher, args, settings, tensor_cores)


def by_rank(r: int) -> dict[str, Case]:
    x, A, s, B, g = tensor(M, K), tensor(r, K), tensor(M, r), tensor(r, N), tensor(r, dtype=torch.float32)
    pool, low, samples, index = tensor(5, r, K), tensor(8, 65, r), tensor(8, 65, K), torch.zeros(8, dtype=torch.int64)
    return {
        "shrink": case("lora_linear.shrink", x, A.float(), tensor_cores=True),
        "expand": case("lora_linear.expand", s, B, tensor(N), g, 0.5, tensor_cores=True),
        "down": case("lora_linear.backward_down", s, x, tensor_cores=True),
        "pool shrink": case("batched_lora.shrink", samples, pool, index, tensor_cores=True),
        "pool expand": case("batched_lora.expand", low, pool, index, tensor_cores=True),
        "pool outer": case("batched_lora.outer", low, samples, index, 5, tensor_cores=True),
        "merge": case("merge_stochastic.merge", tensor(N, K), A, B, g, 1.0, 7),
        "gate": case("rank_gate.self_forward", s, 16, 0.01, 0.2),
        "gate back": case("rank_gate.self_backward", s, s, s.float(), 0.01, None),
        "router": case("rank_gate.router_forward", s, s, g, 8),
        "router back": case("rank_gate.router_backward", s, s, s, g, s.float()),
    }


def others() -> dict[str, Case]:
    x, A, s, dy, B = tensor(M, K), tensor(16, K), tensor(M, 16), tensor(M, N), tensor(16, N)
    f = [t.float() for t in (x, A, s, dy, B)]
    flat, order = tensor(4096, dtype=torch.float32), tensor(4096, dtype=torch.int64)
    adam = (flat, flat, flat, flat, tensor(1, dtype=torch.float32), 1e-3, 0.9, 0.999, 1e-8, 0.1, 0.01, 5, 4000)
    packed = tensor(2048, dtype=torch.uint8)
    return {
        "shrink dropout": case("lora_linear.shrink", x, A, dropout=0.1, seed=2**40, tensor_cores=True),
        "expand dropout": case("lora_linear.expand", s, A, dropout=0.1, seed=5, tensor_cores=True),
        "down dropout": case("lora_linear.backward_down", s, x, dropout=0.1, seed=5, tensor_cores=True),
        "up": case("lora_linear.backward_up", dy, B, s, tensor(16), 0.5, tensor_cores=True),
        "up 32": case("lora_linear.backward_up", dy, tensor(32, N), tensor(M, 32), tensor_cores=True),
        "up atomic": case("lora_linear.backward_up", dy, B, s, atomic=True, tensor_cores=True),
        "shrink fp32": case("lora_linear.shrink", f[0], f[1]),
        "expand fp32": case("lora_linear.expand", f[2], f[4]),
        "up fp32": case("lora_linear.backward_up", f[3], f[4], f[2]),
        "down fp32": case("lora_linear.backward_down", f[2], f[0]),
        "weigh": case("stacked_lora.weigh", s, tensor(8, 4), tensor(16, dtype=torch.int32)),
        "weigh back": case("stacked_lora.weigh_backward", s, s, 8),
        "adamw": case("adamw_prox.adamw", *adam),
        "groups": case("adamw_prox.group_threshold", flat, order, order[:9], 0.1),
        "project": case("project_out.project", tensor(K, N), tensor(K, 32), True),
        "project right": case("project_out.project", flat.view(64, 64), tensor(64, 100), False),
        "nf4": case("nf4_linear.dequantize", packed, flat[:64], 64, torch.bfloat16, flat[:16]),
    }


CASES = {
    **{f"{name} 200": case for name, case in by_rank(200).items()},
    **{f"{name} 16": case for name, case in by_rank(16).items() if name in ("shrink", "expand", "down")},
    **others(),
}


def recorded(case: Case, monkeypatch: pytest.MonkeyPatch) -> Launch:
    module, launches = import_module(f"clgym.kernels.{case.file}"), list[Launch]()
    for name in [name for name in vars(module) if name.endswith("_kernel")]:
        monkeypatch.setattr(module, name, Recorder(getattr(module, name), launches))
    getattr(module, case.launcher)(*case.args, **case.settings)
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
    launch = recorded(CASES[name], monkeypatch)
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
    assert bool(re.search(r"wgmma\.mma_async|mma\.sync", made.asm["ptx"])) >= CASES[name].tensor_cores
