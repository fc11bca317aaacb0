"""The numerical operations of the methods: one door to plain torch on any device and to kernels on CUDA.

Each op is written in torch for every dtype, with its gradient in closed form, registered with torch's dispatcher, and
served by a Triton kernel of ``kernels/`` where one can serve the call. :func:`explain` says which path a call takes
and why; :func:`backend` asks for one, and a backend that cannot serve a call is an error.
"""

from __future__ import annotations

from clgym.backend import Backend, Choice, backend, choose, explain
from clgym.bank import expert_linear
from clgym.batching import batched_lora
from clgym.gating import activations, rank_gate, router_gate
from clgym.lowrank import lora_linear
from clgym.merging import MergeError, merge_error, merge_stochastic
from clgym.nf4 import nf4_dequantize, nf4_linear, nf4_quantize
from clgym.projection import checked_basis, project_out, project_out_, project_update_
from clgym.prox import (
    adamw_prox_,
    double_soft_threshold_,
    group_segments,
    group_threshold_,
    soft_threshold,
    soft_threshold_,
)
from clgym.stacking import stacked_lora

__all__ = [
    "Backend",
    "Choice",
    "MergeError",
    "activations",
    "adamw_prox_",
    "backend",
    "batched_lora",
    "checked_basis",
    "choose",
    "double_soft_threshold_",
    "expert_linear",
    "explain",
    "group_segments",
    "group_threshold_",
    "lora_linear",
    "merge_error",
    "merge_stochastic",
    "nf4_dequantize",
    "nf4_linear",
    "nf4_quantize",
    "project_out",
    "project_out_",
    "project_update_",
    "rank_gate",
    "router_gate",
    "soft_threshold",
    "soft_threshold_",
    "stacked_lora",
]
