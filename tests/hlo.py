# SPDX-License-Identifier: Apache-2.0
"""Proof that a compiled JAX step copies none of its donated buffers.

A step takes its buffers first and returns them first: ``step(*buffers, *rest) -> (*buffers, *others)``.

The compiled program is searched for arrays of a buffer's shape and dtype, so a test must choose shapes that nothing
else in its program has. An objective on the flat view of y keeps its gradient out of the way, because a bitcast is
no copy.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import grouped_core

TARGETS = frozenset(grouped_core.xla_registrations(False, True))
# What passes arrays on without making one. The computations that loops and calls run are searched as well.
PLUMBING = frozenset(
    ("parameter", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call", "opt-barrier")
)
_HLO_DTYPES = {"float16": "f16", "bfloat16": "bf16", "float32": "f32", "float64": "f64"}
_DTYPE_AND_DIMS = re.compile(r"\b[a-z]\w*\[[\d,]*\]")

# Each clause of the proof, as `faults` names them.
PRODUCER = "producer"  # only plumbing and our calls yield an array of the buffer's shape
CALL = "call"  # and our calls yield it in the memory of an operand
PROGRAM = "program"  # the program's parameter is the memory of its result
ALIASED = "aliased"  # XLA counts the buffers' bytes as aliased
TEMPORARY = "temporary"  # no temporary memory could hold a copy of a buffer


class Instruction(NamedTuple):
    """One line of an HLO computation. shapes: of its result, as "f32[2,3]"; several for a tuple."""

    name: str
    opcode: str
    shapes: tuple[str, ...]
    text: str
    in_entry: bool


def _result_type(text: str) -> tuple[str, str]:
    """Splits "TYPE opcode(...)" after TYPE, which is a parenthesised list for a tuple."""
    if not text.startswith("("):
        kind, _, rest = text.partition(" ")
        return kind, rest
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[: i + 1], text[i + 2 :]
    raise ValueError(f"unbalanced type: {text}")


def instructions(hlo: str) -> Iterator[Instruction]:
    """Those whose results are in memory: what lies inside a fusion is not."""
    fused = set(re.findall(r" fusion\(.*?calls=(%?[\w.-]+)", hlo))
    computation, in_entry = "", False
    for line in hlo.splitlines():
        header = re.match(r"(ENTRY )?(%?[\w.-]+) \(.*\{$", line)
        if header:
            in_entry, computation = header[1] is not None, header[2]
            continue
        found = re.match(r"\s+(?:ROOT )?(%?[\w.-]+) = (.*)$", line)
        if found is None or computation in fused:
            continue
        kind, rest = _result_type(found[2])
        shapes = tuple(_DTYPE_AND_DIMS.findall(kind))
        yield Instruction(found[1], rest.partition("(")[0], shapes, line.strip(), in_entry)


def shape_in_hlo(buffer: jax.Array) -> str:
    """As HLO writes the shape of one device's shard."""
    dims = buffer.sharding.shard_shape(buffer.shape)
    return f"{_HLO_DTYPES[np.dtype(buffer.dtype).name]}[{','.join(map(str, dims))}]"


def bytes_per_device(buffer: jax.Array) -> int:
    return int(np.prod(buffer.sharding.shard_shape(buffer.shape))) * buffer.dtype.itemsize


def _aliased_results(text: str) -> set[int]:
    """Indices of a custom call's results that are operands' memory."""
    return {int(i) for i in re.findall(r"[{ ]\{(\d+)\}: \(\d+, \{\}", text.partition("output_to_operand_aliasing=")[2])}


def _is_of(scopes: Sequence[str], i: Instruction) -> bool:
    """Whether a named scope of the program's own made it; a copy is of no scope."""
    found = re.search(r'op_name="([^"]*)"', i.text)
    if found is None or "copy" in i.name or i.opcode.startswith("copy"):
        return False
    return any(re.search(rf"\b{scope}\b", found[1]) for scope in scopes)


def faults(compiled: Any, buffers: Sequence[jax.Array], scopes: Sequence[str] = ()) -> dict[str, str]:
    """The clauses that do not hold, each with what was found.

    Scopes: of the program, where it makes arrays that have a buffer's shape and are none: the rows that a layer
    reads, say. What is found there passes, unless it is a copy, and nothing is said of the size of temporaries.
    """
    hlo = compiled.as_text()
    found: dict[str, str] = {}
    shapes = Counter(shape_in_hlo(b) for b in buffers)
    parameters: dict[int, str] = {}
    for i in instructions(hlo):
        if i.in_entry and i.opcode == "parameter":
            parameters[int(re.findall(r"parameter\((\d+)\)", i.text)[0])] = i.shapes[0]
        held = [n for n, shape in enumerate(i.shapes) if shape in shapes]
        if not held or i.opcode in PLUMBING or _is_of(scopes, i):
            continue
        target = re.search(r'custom_call_target="(\w+)"', i.text)
        if i.opcode != "custom-call" or target is None or target[1] not in TARGETS:
            found.setdefault(PRODUCER, f"another producer of a buffer's shape: {i.text}")
        elif not _aliased_results(i.text).issuperset(held):
            found.setdefault(CALL, f"a call whose result is memory of its own: {i.text}")

    header = hlo.partition("\n")[0]
    aliases = re.search(r"input_output_alias=\{(.*?)\}, entry_computation_layout", header)
    numbers = re.findall(r"\((\d+), \{\}", aliases[1]) if aliases else []
    aliased = Counter(parameters[int(n)] for n in numbers)
    if shapes - aliased:
        found[PROGRAM] = f"no input_output_alias for {dict(shapes - aliased)} in: {header}"

    memory, sizes = compiled.memory_analysis(), [bytes_per_device(b) for b in buffers]
    if memory.alias_size_in_bytes < sum(sizes):
        found[ALIASED] = f"{memory.alias_size_in_bytes} bytes aliased of {sum(sizes)}"
    if not scopes and memory.temp_size_in_bytes >= min(sizes):
        found[TEMPORARY] = f"{memory.temp_size_in_bytes} bytes of temporaries, the smallest buffer has {min(sizes)}"
    return found


def assert_no_copy(compiled: Any, buffers: Sequence[jax.Array], scopes: Sequence[str] = ()) -> None:
    """Every clause holds for a step compiled with `buffers` donated, judged before it runs."""
    found = faults(compiled, buffers, scopes)
    if found:
        raise AssertionError("\n".join(f"{clause}: {text}" for clause, text in found.items()))


def compile_donating(step: Callable, buffers: Sequence[jax.Array], *rest: Any) -> Any:
    """The step compiled with its buffers donated; a buffer that XLA cannot use is an error, not a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Some donated buffers were not usable")
        return jax.jit(step, donate_argnums=tuple(range(len(buffers)))).lower(*buffers, *rest).compile()


def pointers(array: jax.Array | jax.Ref) -> list[int]:
    if isinstance(array, jax.Ref):  # JAX tells those of one device only
        return [array.unsafe_buffer_pointer()] if len(array.sharding.device_set) == 1 else []
    return [shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards]


def run_in_place(compiled: Any, buffers: Sequence[jax.Array], *rest: Any, steps: int = 5) -> tuple:
    """Runs the step again and again on its own buffers; the last results. Each must stay where it was."""
    first = [pointers(b) for b in buffers]
    results: tuple = ()
    for step in range(steps):
        results = compiled(*buffers, *rest)
        for n, old in enumerate(buffers):
            if not old.is_deleted():
                raise AssertionError(f"step {step} did not take buffer {n}: it is still alive")
        buffers = results[: len(buffers)]
        for n, (new, before) in enumerate(zip(buffers, first, strict=True)):
            if pointers(new) != before:
                raise AssertionError(f"step {step} moved buffer {n} from {before} to {pointers(new)}")
    return results


def assert_in_place(step: Callable, buffers: Sequence[jax.Array], *rest: Any) -> tuple:
    """The whole proof, before and during five steps; the last results. Consumes the buffers."""
    compiled = compile_donating(step, buffers, *rest)
    assert_no_copy(compiled, buffers)
    return run_in_place(compiled, buffers, *rest)


def assert_refs_in_place(step: Callable, refs: Sequence[jax.Ref], *rest: Any, steps: int = 3) -> Any:
    """The same proof for Refs, which nothing donates or hands back: ``step(*refs, *rest) -> results``; the last."""
    alike = [ref[...] for ref in refs]  # arrays of their own, for shape, dtype and sharding
    before = [pointers(ref) for ref in refs]
    compiled = jax.jit(step)
    assert_no_copy(compiled.lower(*refs, *rest).compile(), alike)
    results = None
    for n in range(steps):
        results = compiled(*refs, *rest)
        if [pointers(ref) for ref in refs] != before:
            raise AssertionError(f"step {n} moved a Ref")
    return results
