# SPDX-License-Identifier: Apache-2.0
"""check_symbolic: the core's rules on sizes of which some are known to the tracer by name only."""

from __future__ import annotations

import re

import pytest

from grouped_core import CPU_DEVICE, NO_DATA, DType, Op, Options, activation_options, check_symbolic


class Symbol:
    """A size known by name; `value` is what it will be. Comparing records the assumption, as tracers do."""

    assumptions: list[tuple[str, str]] = []  # noqa: RUF012  (cleared by a fixture)

    def __init__(self, name, value):
        self.name = name
        self.value = value

    def __eq__(self, other):
        Symbol.assumptions.append((self.name, getattr(other, "name", str(other))))
        return self.value == getattr(other, "value", other)

    def __hash__(self):
        raise TypeError("a symbol must not be hashed")

    def __bool__(self):
        raise TypeError("a symbol must not be turned into a bool")

    def __floordiv__(self, divisor):
        return Symbol(f"{self.name}//{divisor}", self.value // divisor)

    def __int__(self):
        raise TypeError("a symbol must not be made concrete")


@pytest.fixture(autouse=True)
def no_assumptions():
    Symbol.assumptions.clear()


def tensor(*shape, dtype=DType.F32, name=""):
    return name, 0, int(dtype), shape, None, CPU_DEVICE, NO_DATA


def mm_tensors(x, weight, sizes, out, bias=None):
    return (
        tensor(*x),
        tensor(*weight),
        tensor(*sizes, dtype=DType.I32),
        bias and tensor(*bias),
        None,
        tensor(*out),
    )


T, K, N, G = Symbol("T", 50), Symbol("K", 24), Symbol("N", 40), Symbol("G", 3)


def test_all_symbols_that_agree():
    check_symbolic(Op.MM, mm_tensors((T, K), (G, N, K), (G,), (T, N), (G, N)), Options())


def test_plain_numbers():
    check_symbolic(Op.MM, mm_tensors((5, 4), (2, 3, 4), (2,), (5, 3)), Options())
    with pytest.raises(ValueError, match=re.escape("weight must be [G, N, K=4] f32; got [2, 3, 5] f32.")):
        check_symbolic(Op.MM, mm_tensors((5, 4), (2, 3, 5), (2,), (5, 3)), Options())


def test_symbol_beside_a_number_is_assumed_to_be_it():
    check_symbolic(Op.MM, mm_tensors((T, K), (3, 40, 24), (3,), (T, 40)), Options())
    assert any({"K", "24"} == set(pair) for pair in Symbol.assumptions)


def test_symbols_of_one_letter_are_compared_so_that_the_tracer_learns():
    other = Symbol("T2", 50)
    check_symbolic(Op.MM, mm_tensors((T, 4), (2, 3, 4), (2,), (other, 3)), Options())
    assert any({"T", "T2"} == set(pair) for pair in Symbol.assumptions)


def test_symbols_of_different_letters_are_not_compared():
    check_symbolic(Op.MM, mm_tensors((T, 4), (2, N, 4), (2,), (T, N)), Options())
    assert not any({"T", "N"} == set(pair) for pair in Symbol.assumptions)


def test_symbol_that_differs_is_refused_even_without_a_number_to_show():
    with pytest.raises(ValueError, match=r"^weight must be \[G, N, K=\d+\] f32; got \[3, 40, \d+\] f32\."):
        check_symbolic(Op.MM, mm_tensors((T, K), (3, 40, Symbol("K2", 25)), (3,), (T, 40)), Options())


def test_hints_are_shown():
    with pytest.raises(ValueError, match=re.escape("weight must be [G, N, K=24] f32; got [3, 40, 25] f32.")):
        check_symbolic(
            Op.MM,
            mm_tensors((T, K), (3, 40, Symbol("K2", 25)), (3,), (T, 40)),
            Options(),
            hint=lambda symbol: symbol.value,
        )


def test_equal_hints_of_sizes_that_differ_do_not_hide_the_difference():
    # A tracer's hint is one example; sizes it cannot prove equal stay different.
    with pytest.raises(ValueError, match="weight must be"):
        check_symbolic(
            Op.MM,
            mm_tensors((T, K), (3, 40, Symbol("K2", 25)), (3,), (T, 40)),
            Options(),
            same=lambda a, b: a is b,
            hint=lambda symbol: 24,
        )


def test_same_decides():
    asked = []

    def same(a, b):
        asked.append((a, b))
        return True

    check_symbolic(Op.MM, mm_tensors((T, K), (G, N, Symbol("K2", 1)), (G,), (T, N)), Options(), same=same)
    assert asked


def test_wrong_rank_of_symbols():
    with pytest.raises(ValueError, match=r"^x must be \[T, K\] f16, bf16, f32 or f64; got \[\d+, \d+, 4\] f32\.$"):
        check_symbolic(Op.MM, mm_tensors((T, K, 4), (3, 40, 4), (3,), (T, 40)), Options())


def test_wrong_dtype():
    tensors = list(mm_tensors((T, K), (G, N, K), (G,), (T, N)))
    tensors[1] = tensor(G, N, K, dtype=DType.BF16)
    with pytest.raises(TypeError, match="weight must be"):
        check_symbolic(Op.MM, tensors, Options())


def test_layout_is_respected():
    check_symbolic(Op.MM, mm_tensors((T, K), (G, K, N), (G,), (T, N)), Options(weight_layout=1))
    with pytest.raises(ValueError, match="weight must be"):
        check_symbolic(Op.MM, mm_tensors((T, 4), (G, 4, 5), (G,), (T, 5)), Options())


@pytest.mark.parametrize("kind", ["swiglu", "squared_relu"])
@pytest.mark.parametrize("width", [6, Symbol("H", 6)], ids=["number", "symbol"])
def test_activation_ties_the_widths_together(kind, width):
    choice = activation_options(kind, "concatenated", 0, 0, 0)
    right = width // 2 if choice.gated else width

    def tensors(out_columns):
        return tensor(T, width), tensor(2, dtype=DType.I64), None, tensor(T, out_columns)

    check_symbolic(Op.ACTIVATION, tensors(right), choice.options(0))
    with pytest.raises(ValueError, match="out must be"):
        check_symbolic(Op.ACTIVATION, tensors(4), choice.options(0))


def test_a_name_given_is_the_name_in_the_message():
    tensors = list(mm_tensors((T, 4), (2, 3, 4), (2,), (T, 3)))
    tensors[5] = tensor(T, 4, name="dgrad_out")
    with pytest.raises(ValueError, match=r"^dgrad_out must be \[T=\d+, N=3\]"):
        check_symbolic(Op.MM, tensors, Options())
