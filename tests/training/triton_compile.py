"""Compiles the kernels of the engine sparse-cuda for GPUs that are not here, where its interpreter takes too much.

python tests/training/triton_compile.py
"""

from __future__ import annotations

import itertools
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gsae_ray.training.engines import triton_kernels, triton_sums
from gsae_ray.training.engines.sparse_cuda import BLOCK, ENTRIES, SCAN

CAPABILITIES = (75, 80, 90)
TYPES = {
    **dict.fromkeys(["n_in", "n_features"], "i32"),
    **dict.fromkeys(["underflow", "rounding", "two_over_rows", "penalty"], "fp32"),
    **dict.fromkeys(["candidates", "columns", "rows"], "*i32"),
    **dict.fromkeys(["counts_B", "surely_B", "row_starts", "row_ends"], "*i64"),
    **dict.fromkeys(["feature_starts", "entries", "fired_F"], "*i64"),
    **dict.fromkeys(["rounded_BD", "rounded_FD"], "*bf16"),
}
"""Of arguments that are no array of float32."""
CHOICES: dict[str, list[Any]] = {
    **{name: [False, True] for name in ("SCALED", "UNTIED", "LIST", "WEIGHTS", "WEIGHTED")},
    "AUXILIARY": [0, 1, 2],
    "ENTRIES": [ENTRIES],
    "BLOCK": [BLOCK],
}
KERNELS = ("row_terms", "feature_terms", "find_candidates", "list_active", "decode_rows", "rows_back")


def compile_for(capability: int, kernel: Any) -> int:
    """Compiles all variants of a kernel. Returns how many there are."""
    bfloat16 = capability >= 80
    scan = kernel is triton_kernels.find_candidates
    choices = {**CHOICES, "BFLOAT16": [bfloat16], **({"BLOCK": [SCAN]} if scan else {})}
    scores = {"scores_BF": "*bf16" if bfloat16 else "*fp32"}
    own = [name for name in kernel.arg_names if name in choices]
    combinations = list(itertools.product(*(choices[name] for name in own)))
    for values in combinations:
        constants = dict(zip(own, values, strict=True))
        types = {**dict.fromkeys(kernel.arg_names, "*fp32"), **TYPES, **scores, **dict.fromkeys(own, "constexpr")}
        source = ASTSource(kernel, {name: types[name] for name in kernel.arg_names}, constexprs=constants)
        options = {"enable_fp_fusion": False} if scan else {}
        triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return len(combinations)


def main() -> None:
    kernels = [getattr(triton_kernels, name) for name in KERNELS] + [triton_sums.feature_gradients]
    for capability in CAPABILITIES:
        count = sum(compile_for(capability, kernel) for kernel in kernels)
        print(f"compute capability {capability / 10}: {count} variants of {len(kernels)} kernels")  # noqa: T201


if __name__ == "__main__":
    main()
