# SPDX-License-Identifier: Apache-2.0
"""What the demo claims about buffers, looked up where it can be seen: in addresses and in the compiled step."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from moe_digits import config as c
from moe_digits.data import Split
from moe_digits.jax_model import JaxModel, train_step
from moe_digits.torch_model import TorchModel

# Instructions that hand arrays on. What a call, a loop or a branch does is looked at inside it.
_PLUMBING = ("parameter", "get-tuple-element", "tuple", "bitcast", "call", "while", "conditional")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%(?P<name>\S+) = (?P<type>.*?) (?P<opcode>[a-z][\w\-]*)\(")


def compiled_step(model: JaxModel, batch: Split) -> str:
    """The HLO text of the train step as XLA compiled it."""
    text = train_step.lower(model.state, model.outs, model.dgrads, *batch).compile().as_text()
    if text is None:
        raise RuntimeError("this jaxlib does not show what it compiled, so copies cannot be counted.")
    return text


def buffer_copies(hlo: str) -> list[str]:
    """Instructions that make an array like one of the buffers: what is neither a kernel nor plumbing is a copy.

    Two arrays are the model's own and happen to have the shape `[rows, D]` of a buffer: the rows gathered for the
    experts ("dispatch") and, on the way back, the gradients gathered for them ("combine").
    """
    buffers = [*c.OUT_SHAPES.values(), *c.DGRAD_SHAPES.values()]
    shapes = {f"f32[{rows},{width}]" for rows, width in buffers}
    fused = set(re.findall(r" fusion\(.*?calls=%([\w.\-]+)", hlo))  # what happens inside a fusion takes no memory
    inside_fusion, found = False, []
    for line in hlo.splitlines():
        if line.endswith("{"):
            inside_fusion = line.removeprefix("%").split(" ")[0] in fused
            continue
        match = _INSTRUCTION.match(line)
        if match is None or inside_fusion or not any(shape in match["type"] for shape in shapes):
            continue
        if match["opcode"] in _PLUMBING or 'custom_call_target="grouped_' in line:
            continue
        own = re.search(r'op_name="[^"]*\b(dispatch|combine)\b', line)
        if own is None or "copy" in match["name"] or match["opcode"].startswith("copy"):
            found.append(line.strip())
    return found


def count_kernels(hlo: str) -> int:
    """Kernel calls of the core that write straight into a donated buffer."""
    calls = [line for line in hlo.splitlines() if 'custom_call_target="grouped_' in line]
    return sum("output_to_operand_aliasing" in line for line in calls)


class JaxAddresses:
    """Whether every buffer that a step returns lies where it lay before the first."""

    def __init__(self, model: JaxModel) -> None:
        self.model = model
        self.expected = self._now()
        self.steps = 0
        self.moved = 0

    def _now(self) -> dict[tuple[str, str], int]:
        # Only the address: a numpy view of a buffer would stop XLA from reusing it.
        given = {"outs": self.model.outs, "dgrads": self.model.dgrads}
        return {(kind, n): b.unsafe_buffer_pointer() for kind, group in given.items() for n, b in group.items()}

    def after_step(self) -> None:
        """Compares and counts."""
        now = self._now()
        self.steps += 1
        self.moved += sum(now[key] != address for key, address in self.expected.items())


class TorchAddresses:
    """Whether results and gradients that pass between the layers are the caller's tensors.

    Hooks see both: forward ones a layer's input and result, tensor ones the gradient that is handed upstream.
    """

    def __init__(self, model: TorchModel) -> None:
        self.expected = {("outs", n): t.data_ptr() for n, t in model.outs.items()}
        self.expected |= {("dgrads", n): t.data_ptr() for n, t in model.dgrads.items()}
        self.seen: dict[tuple[str, str], int] = {}
        self.steps = 0
        self.moved = 0
        model.module.mixture.fc1.register_forward_hook(self._around_fc1)
        model.module.mixture.fc2.register_forward_hook(self._around_fc2)

    def _watch(self, tensor: Tensor, gradient_of: str) -> None:
        if tensor.requires_grad:
            tensor.register_hook(lambda g: self.seen.update({("dgrads", gradient_of): g.data_ptr()}))

    def _around_fc1(self, _: Any, inputs: tuple, h: Tensor) -> None:
        self.seen["outs", "fc1"] = h.data_ptr()
        self._watch(inputs[0], "fc1")
        self._watch(h, "swiglu")

    def _around_fc2(self, _: Any, inputs: tuple, y: Tensor) -> None:
        self.seen["outs", "swiglu"], self.seen["outs", "fc2"] = inputs[0].data_ptr(), y.data_ptr()
        self._watch(inputs[0], "fc2")

    def after_step(self) -> None:
        """Compares and counts; a gradient that was not seen counts as moved."""
        self.steps += 1
        self.moved += sum(self.seen.get(key) != address for key, address in self.expected.items())
        self.seen.clear()
