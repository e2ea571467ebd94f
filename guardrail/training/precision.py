"""Whether to compute in bfloat16: a CPU without instructions for it is many times slower at it than in 32 bits."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

__all__ = ["has_bfloat16", "mixed_precision"]


def has_bfloat16() -> bool:
    """Whether this CPU computes in bfloat16; x86 does from AVX-512 on. Below, torch does it in software."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def mixed_precision() -> AbstractContextManager[object]:
    """bfloat16 for the matrix products inside it, on a CPU that has it; else 32 bits."""
    return torch.autocast("cpu", dtype=torch.bfloat16) if has_bfloat16() else nullcontext()
