"""Which path a call of an op takes: plain torch, a Triton kernel or a library; and why."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from clgym.errors import BackendError, NotRegisteredError, SettingError

Backend = Literal["auto", "torch", "triton", "interpret", "bitsandbytes"]

VARIABLE = "CLGYM_BACKEND"
CAPABILITY = (8, 0)  # bf16 on tensor cores
WIDEST = 256  # ranks; a wider product is no thin one, and cuBLAS is as good at it
_FLOATS = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True, slots=True)
class Choice:
    """The path of one call.

    Attributes:
        path: ``"torch"``, ``"triton"``, ``"interpret"`` (Triton's interpreter, for tests) or ``"bitsandbytes"``.
        reason: Why this one.
    """

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Kernel:
    """What an op's kernel can serve.

    Attributes:
        dtypes: Of the tensor that leads the call.
        ranks: Most ranks; 0 where none are counted.
        library: A package that serves the op too, or ``""``.
    """

    dtypes: tuple[torch.dtype, ...] = _FLOATS
    ranks: int = WIDEST
    library: str = ""


KERNELS: dict[str, Kernel] = {
    "lora_linear": Kernel(),
    "stacked_lora": Kernel(),
    "rank_gate": Kernel(),
    "router_gate": Kernel(),
    "batched_lora": Kernel(),
    "adamw_prox": Kernel(dtypes=(torch.float32,), ranks=0),
    "project_out": Kernel(),
    "nf4_linear": Kernel(ranks=0, library="bitsandbytes"),
    "merge_stochastic": Kernel(dtypes=(torch.bfloat16,)),
}

_asked: list[Backend] = []


def asked() -> Backend:
    """Return the backend that is asked for: by :func:`backend`, else by ``CLGYM_BACKEND``, else ``"auto"``.

    Raises:
        SettingError: The variable names no backend.
    """
    return _asked[-1] if _asked else _checked(os.environ.get(VARIABLE, "auto"))


@contextmanager
def backend(name: Backend) -> Iterator[None]:
    """Ask for a backend, in all threads; calls that it cannot serve raise :class:`BackendError`.

    Args:
        name: ``"auto"`` takes a kernel where one can serve the call and torch elsewhere.

    Raises:
        SettingError: The name is unknown.

    Example:
        >>> with backend("torch"):
        ...     choose("lora_linear", torch.zeros(1)).reason
        "backend('torch') was asked for"
    """
    _asked.append(_checked(name))
    try:
        yield
    finally:
        _asked.pop()


def choose(op: str, x: Tensor, ranks: int = 0, dtype: torch.dtype | None = None) -> Choice:
    """Return the path of a call.

    Args:
        op: Its name in :data:`KERNELS`.
        x: The tensor that leads the call.
        ranks: Stacked ranks of the call, 0 where it has none.
        dtype: What is computed in, where it is not the dtype of ``x``.

    Raises:
        BackendError: A backend was asked for that cannot serve the call.
        NotRegisteredError: There is no such op.

    Example:
        >>> choose("lora_linear", torch.zeros(2, 3), ranks=4)
        Choice(path='torch', reason='the tensors are on cpu, kernels run on CUDA')
    """
    name = asked()
    if name == "torch":
        return Choice("torch", "backend('torch') was asked for")
    if op not in KERNELS:
        raise NotRegisteredError.among("op", op, KERNELS)
    kernel = KERNELS[op]
    if kernel.library and name in ("auto", kernel.library):
        if installed(kernel.library) and (x.is_cuda or name != "auto"):
            return Choice(kernel.library, f"{kernel.library} is installed")
        if name != "auto":
            raise _refusal(op, name, f"no {kernel.library}: it is not installed")
    elif name not in ("auto", "triton", "interpret"):
        raise _refusal(op, name, f"an op that {name} does not have")
    lacking = _kernel_lacks(kernel, x, ranks, dtype or x.dtype, interpreted=name == "interpret")
    if name == "auto":
        return Choice("torch", lacking) if lacking else Choice("triton", "a kernel serves this call")
    if lacking:
        raise _refusal(op, name, lacking)
    return Choice(name, f"backend({name!r}) was asked for")


def uses_kernel(op: str, x: Tensor, ranks: int = 0, dtype: torch.dtype | None = None) -> bool:
    """Whether a call goes to the op's Triton kernel; quick where the answer is plainly no.

    Raises:
        BackendError: See :func:`choose`.
    """
    if not _asked and not x.is_cuda and VARIABLE not in os.environ:
        return False
    return choose(op, x, ranks, dtype).path in ("triton", "interpret")


_library: Any = torch.library.Library("clgym", "FRAGMENT")  # type: ignore[no-untyped-call]


def register(schema: str, function: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Register an op of the dispatcher, on CPU and CUDA, and return what calls it.

    Where nobody watches, in plain eager code without gradients, the call goes straight to ``function``: on CPU the way
    through the dispatcher and back into Python takes as long as a thin product.

    Args:
        schema: ``name(arguments) -> results``, in torch's schema language.
        function: Computes it; no gradient is recorded.
        fake: Returns tensors of the same shapes, dtypes and strides for inputs without data.
    """
    name = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        _library.impl(name, function, key)
    torch.library.register_fake(f"clgym::{name}", fake, lib=_library)
    op = getattr(torch.ops.clgym, name).default

    def call(*args: Any) -> Any:
        return op(*args) if watched() or torch.is_grad_enabled() else function(*args)

    return call


def watched() -> bool:
    """Whether somebody sees every operation of a call: a compiler, or a mode that counts or fakes."""
    return bool(torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack())


Facts = Callable[..., tuple[Tensor, int, torch.dtype]]
_FACTS: dict[str, Facts] = {}


def facts(op: str) -> Callable[[Facts], Facts]:
    """Register what decides an op's path: from its arguments, the leading tensor, the ranks and the dtype."""

    def register(function: Facts) -> Facts:
        _FACTS[op] = function
        return function

    return register


def explain(op: str, *args: Any, **kwargs: Any) -> Choice:
    """Say which path a call would take and why, without making it.

    Args:
        op: Name of the op.
        *args: Those of the call.
        **kwargs: Those of the call.

    Raises:
        BackendError: A backend was asked for that cannot serve the call.
        NotRegisteredError: There is no such op.
    """
    if op not in _FACTS:
        raise NotRegisteredError.among("op", op, _FACTS)
    x, ranks, dtype = _FACTS[op](*args, **kwargs)
    return choose(op, x, ranks, dtype)


@cache
def installed(package: str) -> bool:
    """Whether a package can be imported; it is not imported."""
    return importlib.util.find_spec(package) is not None


def _kernel_lacks(kernel: Kernel, x: Tensor, ranks: int, dtype: torch.dtype, *, interpreted: bool) -> str:
    """Say what keeps a call from the kernel; empty if nothing does."""
    if not installed("triton"):
        return "triton is not installed"
    if interpreted:
        if os.environ.get("TRITON_INTERPRET") != "1":
            return "a process without TRITON_INTERPRET=1"
    elif not x.is_cuda:
        return f"the tensors are on {x.device.type}, kernels run on CUDA"
    elif torch.cuda.get_device_capability(x.device) < CAPABILITY:
        return f"compute capability {torch.cuda.get_device_capability(x.device)}, kernels need {CAPABILITY}"
    if dtype not in kernel.dtypes:
        return f"{dtype}, the kernel takes {', '.join(map(str, kernel.dtypes))}"
    if kernel.ranks and not 1 <= ranks <= kernel.ranks:
        return f"{ranks} ranks, the kernel takes 1 to {kernel.ranks}"
    return ""


def _refusal(op: str, name: str, lacking: str) -> BackendError:
    return BackendError(
        f"Expected {op} to run on backend {name!r}; got {lacking}. Use backend 'auto', which takes what there is."
    )


def _checked(name: str) -> Backend:
    if name not in get_args(Backend):
        raise SettingError(f"Expected a backend in {get_args(Backend)}; got {name!r}. Choose one of them.")
    return cast(Backend, name)
