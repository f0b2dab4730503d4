"""Compile the kernels for a GPU, which need not exist; print their registers per thread."""

import re
import sys
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compile_source

from trajstore.format.layout import BLOCK
from trajstore.format.run_spec import RunSpec
from trajstore.sketch.fold import SHIFT
from trajstore.sketch.signs import Role
from trajstore.tracking.backends import triton_kernels
from trajstore.tracking.backends.columns import measured_columns
from trajstore.tracking.backends.triton_tables import (
    FOUR_WARPS,
    ONE_WARP,
    SEGMENT,
    column_constants,
)

SPEC = RunSpec.from_json(
    {
        "names": ("a",),
        "shapes": ((5,),),
        "seed": 3,
        "sketch_bits": 1024,
        "basis": 3,
        "probes": 64,
        "steps_per_epoch": None,
        "reference_every": None,
        "total_steps": None,
        "exact": False,
    }
)
COLUMNS = measured_columns(SPEC)

TYPES = {
    "*i64": ("gradients", "parameters", "ends", "checks", "past"),
    "*i32": ("segments", "layer_of_block", "bounds"),
    "*i8": ("columns", "probe_columns"),
    "i32": (
        *(
            "n_layers",
            "size",
            "n_codes",
            "n_rows",
            "n_rows_each",
            "width",
            "out_stride",
        ),
        *("n", "seed", "step"),
    ),
}
"""Names of arguments by type; all other arguments are float32 arrays."""


def registers(
    name: str,
    options: Any,
    *,
    ones: tuple[str, ...] = (),
    types: dict[str, str] | None = None,
    **constant_arguments: Any,
) -> int:
    """Compile a kernel and return its registers per thread.

    Arguments in `ones` are constants 1, as Triton makes them when it starts a kernel.
    """
    kernel = getattr(triton_kernels, name)
    constant_arguments |= dict.fromkeys(ones, 1)
    default_types = {
        argument: kind for kind, names in TYPES.items() for argument in names
    }
    types = default_types | (types or {})
    signature = {
        argument: "constexpr"
        if argument in constant_arguments
        else types.get(argument, "*fp32")
        for argument in kernel.arg_names
    }
    constants = {
        (kernel.arg_names.index(n),): value for n, value in constant_arguments.items()
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    compiled = compile_source(source, target=target, options=options)
    return registers_of(compiled.asm["cubin"])


def registers_of(cubin: bytes) -> int:
    """Read the number of registers per thread from an attribute of the compiled code."""
    # Format 4, attribute 0x2f, 8 bytes: the index of the kernel, and the number of registers.
    match = re.search(rb"\x04\x2f\x08\x00.{4}(.{4})", cubin, re.DOTALL)
    if match is None:
        raise ValueError(
            "The compiled code has no attribute with a number of registers."
        )
    return int.from_bytes(match[1], "little")


def main() -> None:
    """Compile all kernels."""
    before: dict[str, Any] = {
        "N_BASIS": SPEC.basis,
        **column_constants(COLUMNS.before),
        "WITH_FOLDS": True,
        "SHIFT": SHIFT,
        "BLOCK": BLOCK,
        "SEGMENT": SEGMENT,
    }
    float32_only: dict[str, Any] = {"HAS_GRADIENTS": 1, "HAS_PARAMETERS": 1}
    print(
        "measure_before",
        registers("measure_before", ONE_WARP, **before, **float32_only),
    )
    halves: dict[str, Any] = {"HAS_GRADIENTS": 6, "HAS_PARAMETERS": 2}
    count = registers("measure_before", ONE_WARP, **before, **halves)
    print("measure_before_halves", count)
    ones = ("n_layers", "n_rows", "n_rows_each")
    count = registers("measure_before", ONE_WARP, ones=ones, **before, **float32_only)
    print("measure_before_small", count)
    all_kinds: dict[str, Any] = {"HAS_PARAMETERS": 7, "BLOCK": BLOCK}
    after = all_kinds | column_constants(COLUMNS.after)
    print("measure_after", registers("measure_after", FOUR_WARPS, **after))
    print("subtract_anchor", registers("subtract_anchor", FOUR_WARPS, **all_kinds))
    print("fold", registers("fold", ONE_WARP, SHIFT=SHIFT, SEGMENT=SEGMENT))
    shape: dict[str, Any] = {
        "N_COLUMNS": COLUMNS.before.n_columns,
        "COLUMNS": 16,
        "ROWS": 32,
    }
    print("add_up", registers("add_up", FOUR_WARPS, **shape))
    float64_values = {"values": "*fp64"}
    count = registers("add_up", FOUR_WARPS, types=float64_values, **shape)
    print("add_up_doubles", count)
    signs: dict[str, Any] = {"ROLE": int(Role.STEP), "BLOCK": BLOCK}
    print("draw_signs", registers("draw_signs", FOUR_WARPS, **signs))
    wide_integers = {"seed": "u64", "step": "i64"}
    print(
        "draw_signs_large",
        registers("draw_signs", FOUR_WARPS, types=wide_integers, **signs),
    )


if __name__ == "__main__":
    main()
