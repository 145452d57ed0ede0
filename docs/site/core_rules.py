# SPDX-License-Identifier: Apache-2.0
"""The core's rules and refusals in its own words: every table here is made by asking the core, none is written down."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

import grouped_core
from grouped_core import CPU_DEVICE, NO_DATA, REQUIRES_GRAD, DType, Op, Options

_LENGTHS = {"T": 6, "K": 4, "N": 8, "G": 2, "F": 8, "H": 16}
PUBLIC = {Op.LINEAR: "grouped_linear", Op.ACTIVATION: "grouped_activation"}

Fields = tuple[str, int, int, tuple[int, ...], tuple[int, ...] | None, int, int]


@dataclass(frozen=True)
class Refusal:
    """One rule that is not about an argument's shape or dtype: a call that breaks it, and what it means."""

    error: str
    message: str
    cause: str


def _call(op: Op, layout: int = 0) -> dict[str, Fields]:
    """A good call in bf16, of tensors without data at addresses that are apart."""
    addresses = count(1 << 20, 1 << 20)
    found = {}
    for name, letters in grouped_core.argument_dims(op, layout):
        dtype = DType.I32 if name == "group_sizes" else DType.BF16
        shape = tuple(_LENGTHS[letter] for letter in letters)
        found[name] = (name, next(addresses), int(dtype), shape, None, CPU_DEVICE, NO_DATA)
    return found


def _refused(op: Op, call: dict[str, Fields | None], layout: int = 0) -> tuple[str, str]:
    """The exception's name and message."""
    try:
        grouped_core.check(op, tuple(call.values()), tuple(Options(weight_layout=layout)))
    except Exception as error:
        return type(error).__name__, str(error)
    raise AssertionError(f"{op.name} was not refused")


def argument_rules(op: Op) -> Iterator[tuple[str, str]]:
    """Every argument of an operation and what it must be, in the words of the message that says it is not."""
    for name, _ in grouped_core.argument_dims(op, 0):
        sentences = []
        for layout in (0, 1):
            call: dict[str, Fields | None] = {**_call(op, layout)}
            fields = _call(op, layout)[name]
            call[name] = (*fields[:3], (), *fields[4:])
            _, message = _refused(op, call, layout)
            found = re.fullmatch(rf"{name} must be (.*?); got .*", message)
            if found is None:
                raise AssertionError(f"{op.name}: {message}")
            sentences.append(re.sub(r"=\d+", "", found.group(1)))
        yield name, sentences[0] if sentences[0] == sentences[1] else f'{sentences[0]}; as "gkn" {sentences[1]}'


def refusals() -> list[Refusal]:
    """The rules that all arguments share, in the order in which they are checked."""
    good: dict[str, Fields | None] = {**_call(Op.MM)}
    x, weight, out = (_call(Op.MM)[name] for name in ("x", "weight", "out"))
    with_data = {name: (*fields[:6], 0) for name, fields in _call(Op.MM).items()}
    changes: list[tuple[dict[str, Fields | None], str]] = [
        ({**good, "x": None}, "A required argument is missing."),
        (
            {**good, "weight": (*weight[:3], (2, 8, 5), *weight[4:])},
            "A shape does not go with those of the arguments before it, whose lengths are filled in. With a weight, "
            "most often the layout: JAX's default is `gkn`, PyTorch's `gnk`.",
        ),
        (
            {**good, "weight": (*weight[:2], int(DType.F32), *weight[3:])},
            "Dtypes are never converted for you: a copy would be made in each step without a word.",
        ),
        ({**good, "out": (*out[:5], 0, NO_DATA)}, "Tensors of one call lie on one device."),
        (
            {**good, "out": (*out[:4], (2 * out[3][1], 2), *out[5:])},
            "A slice or a transpose: the kernels read rows that lie one after another.",
        ),
        (
            {**good, "out": (*out[:6], NO_DATA | REQUIRES_GRAD)},
            "A buffer is memory, not a value: it has no gradient.",
        ),
        (
            {**with_data, "weight": (weight[0], 0, *weight[2:6], 0)},
            "The framework freed the memory and kept the tensor, as sharded parameters and discarded activations are.",
        ),
        (
            {**with_data, "out": (out[0], out[1] + 2, *out[2:6], 0)},
            "A view that begins in the middle of an allocation.",
        ),
        (
            {**with_data, "out": (out[0], x[1], *out[2:6], 0)},
            "The buffer is also an input or another buffer, in whole or in part.",
        ),
    ]
    found = [Refusal(*_refused(Op.MM, call), cause) for call, cause in changes]
    return [*found, *_bad_sizes()]


def _bad_sizes() -> list[Refusal]:
    """What `group_sizes` may not hold: known at run time only."""
    cases = [
        ([4, 3], 0, "The sizes sum to more rows than there are."),
        ([4, -1], 0, "Usually an uninitialised or overflowed count."),
        ([4, 2], 1, "Inclusive ends were given where they do not ascend."),
    ]
    return [Refusal(*_run_with(sizes, kind), cause) for sizes, kind, cause in cases]


def _run_with(sizes: list[int], kind: int) -> tuple[str, str]:
    arrays = {}
    for name, letters in grouped_core.argument_dims(Op.MM, 0):
        arrays[name] = np.zeros([_LENGTHS[letter] for letter in letters], np.float32)
    arrays["group_sizes"] = np.array(sizes, np.int32)
    tensors = []
    for name, array in arrays.items():
        dtype = DType.I32 if name == "group_sizes" else DType.F32
        address = array.__array_interface__["data"][0]
        tensors.append((name, address, int(dtype), array.shape, None, CPU_DEVICE, 0))
    options = Options(sizes_kind=kind)
    workspace = np.zeros(1 << 16, np.uint8)
    place = workspace.__array_interface__["data"][0]
    try:
        grouped_core.run(Op.MM, tuple(tensors), tuple(options), place, workspace.nbytes, 0, 1)
    except Exception as error:
        return type(error).__name__, str(error)
    raise AssertionError(f"sizes {sizes} were not refused")


def rules_page(public_only: bool = False) -> str:
    """Markdown: a table for each operation that users call, then those that run inside."""
    lines = []
    for op in PUBLIC if public_only else sorted(Op, key=lambda op: op not in PUBLIC):
        title = f"`{PUBLIC[op]}`" if op in PUBLIC else f"`grouped_{op.name.lower()}` of the core"
        lines += [f"### {title}", "", "| argument | must be |", "| --- | --- |"]
        lines += [f"| `{name}` | {rule} |" for name, rule in argument_rules(op)]
        lines.append("")
    return "\n".join(lines)


def refusals_page() -> str:
    """Markdown: the messages as they appear, and why."""
    lines = []
    for refusal in refusals():
        lines += [f"```text\n{refusal.error}: {refusal.message}\n```", "", refusal.cause, ""]
    return "\n".join(lines)
