# SPDX-License-Identifier: Apache-2.0
"""The same bits: twice, on any number of threads, in both storages, under any floating-point mode of the caller, and
for a row or a group whoever else is in the call."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
import threading

import numpy as np
import pytest
from cases import BY_NAME, CASES, draw, poison_tail
from core_call import mm, poisoned, run, sizes_of, transposed, wgrad
from core_operations import every_operation
from tolerances import DTYPES, assert_bits

from grouped_core import Op

by_dtype = pytest.mark.parametrize("dtype", list(DTYPES))
by_case = pytest.mark.parametrize("case", CASES, ids=str)


def run_all(calls, num_threads=1):
    return {
        f"{name}.{buffer}": value
        for name, (op, arrays, options) in calls.items()
        for buffer, value in run(op, arrays, num_threads=num_threads, **options).items()
    }


def assert_same(found, expected):
    for name, value in expected.items():
        assert_bits(found[name], value, name)


@by_dtype
@pytest.mark.parametrize("case", [BY_NAME["crosses_tiles"], BY_NAME["many_groups"]], ids=str)
def test_twice(rng, case, dtype):
    calls = every_operation(rng, case, dtype)
    assert_same(run_all(calls), run_all(calls))


@by_dtype
@by_case
def test_any_number_of_threads(rng, case, dtype):
    calls = every_operation(rng, case, dtype)
    alone = run_all(calls)
    for num_threads in (2, 3, 7):
        assert_same(run_all(calls, num_threads), alone)


@by_dtype
@by_case
def test_both_storages(rng, case, dtype):
    x = poison_tail(draw(rng, (case.T, case.K), dtype), case.S)
    dy = poison_tail(draw(rng, (case.T, case.N), dtype), case.S)
    weight, bias = draw(rng, (case.G, case.N, case.K), dtype), draw(rng, (case.G, case.N), dtype)
    other = transposed(weight)
    assert_bits(mm(x, other, case.sizes, bias, layout="gkn"), mm(x, weight, case.sizes, bias), "forward")
    assert_bits(
        mm(dy, other, case.sizes, layout="gnk"), mm(dy, weight, case.sizes, layout="gkn"), "dgrad, read transposed"
    )
    dw = wgrad(x, dy, case.sizes)
    assert_bits(transposed(wgrad(x, dy, case.sizes, layout="gkn")), dw, "wgrad")
    for_accumulation = draw(rng, dw.shape, dtype)
    assert_bits(
        transposed(wgrad(x, dy, case.sizes, layout="gkn", out=transposed(for_accumulation), accumulate=1)),
        wgrad(x, dy, case.sizes, out=for_accumulation, accumulate=1),
        "wgrad, accumulating",
    )


@by_dtype
def test_a_row_does_not_depend_on_its_company(rng, dtype):
    # One row alone, first, last, and in the middle of groups of sizes on either side of a tile.
    K, N = 150, 300
    weight, bias = draw(rng, (3, N, K), dtype), draw(rng, (3, N), dtype)
    row, scale = draw(rng, (1, K), dtype), draw(rng, (1,), dtype)
    alone = mm(row, weight[1:2], [1], bias[1:2], scale)
    for sizes in [(0, 1, 0), (3, 2, 1), (64, 131, 5), (7, 13, 90), (1, 64, 1)]:
        begin, end = sizes[0], sizes[0] + sizes[1]
        for position in {begin, (begin + end) // 2, end - 1}:
            x, scales = draw(rng, (sum(sizes) + 4, K), dtype), draw(rng, (sum(sizes) + 4,), dtype)
            x[position], scales[position] = row[0], scale[0]
            for layout, stored in (("gnk", weight), ("gkn", transposed(weight))):
                y = mm(x, stored, sizes, bias, scales, layout=layout, num_threads=3)
                assert_bits(y[position], alone[0], f"row {position} of {sizes}, {layout}")


@by_dtype
def test_a_column_does_not_depend_on_the_others(rng, dtype):
    # Not promised across N, which chooses the kernel family; inside the portable CPU family it holds.
    x, weight = draw(rng, (40, 100), dtype), draw(rng, (1, 300, 100), dtype)
    whole = mm(x, weight, [40])
    for columns in (slice(0, 7), slice(123, 124), slice(250, 300)):
        assert_bits(mm(x, np.ascontiguousarray(weight[:, columns]), [40]), np.ascontiguousarray(whole[:, columns]))


@by_dtype
def test_a_groups_gradient_does_not_depend_on_its_company(rng, dtype):
    K, N = 90, 70
    for rows in (1, 33, 700):
        x, dy = draw(rng, (rows, K), dtype), draw(rng, (rows, N), dtype)
        alone = wgrad(x, dy, [rows])[0]
        db_alone = run(Op.BIAS_GRAD, bias_arrays(dy, [rows]))["out"][0]
        for before, after in ((0, 5), (1, 0), (130, 77)):
            sizes = (before, rows, 0, after)
            x_all, dy_all = draw(rng, (sum(sizes) + 3, K), dtype), draw(rng, (sum(sizes) + 3, N), dtype)
            x_all[before : before + rows], dy_all[before : before + rows] = x, dy
            assert_bits(wgrad(x_all, dy_all, sizes, num_threads=2)[1], alone, f"{rows} rows in {sizes}")
            db = run(Op.BIAS_GRAD, bias_arrays(dy_all, sizes), num_threads=2)["out"][1]
            assert_bits(db, db_alone, f"bias, {rows} rows in {sizes}")


def bias_arrays(dy, sizes):
    return {"dy": dy, "group_sizes": sizes_of(sizes)[0], "out": poisoned((len(sizes), dy.shape[1]), dy.dtype)}


@pytest.fixture(scope="module")
def control_register(tmp_path_factory):
    """get() and set(value) of the calling thread's MXCSR."""
    compiler = shutil.which("cc")
    if compiler is None or platform.machine() != "x86_64":
        pytest.skip("needs a C compiler and x86-64's MXCSR")
    folder = tmp_path_factory.mktemp("mxcsr")
    source = folder / "mxcsr.c"
    source.write_text(
        "#include <xmmintrin.h>\n"
        "unsigned get(void) { return _mm_getcsr(); }\n"
        "void set(unsigned value) { _mm_setcsr(value); }\n"
    )
    library = folder / "mxcsr.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return ctypes.CDLL(str(library))


MODE = 0xFFC0  # without the six sticky exception flags
FLUSH = 0x8040  # flush-to-zero, denormals-are-zero
ROUND_DOWN = 0x2000


def in_thread_with_mode(register, mode, body):
    """body() in a thread of its own under `mode`; (result, mode afterwards)."""
    found = {}

    def work():
        register.set((register.get() & ~(FLUSH | 0x6000)) | mode)
        found["before"] = register.get() & MODE
        try:
            found["result"] = body()
        except BaseException as e:
            found["error"] = e
        found["after"] = register.get() & MODE

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if "error" in found:
        raise found["error"]
    assert found["before"] & (FLUSH | 0x6000) == mode
    assert found["after"] == found["before"], "the caller's mode was not restored"
    return found["result"]


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("mode", [FLUSH, ROUND_DOWN], ids=["flushes_denormals", "rounds_down"])
@by_dtype
def test_the_callers_floating_point_mode_changes_no_bit(rng, control_register, dtype, mode, num_threads):
    tiny = {"f16": 2.0**-16, "bf16": 2.0**-128, "f32": 2.0**-128, "f64": 2.0**-1024}[dtype]
    calls = every_operation(rng, BY_NAME["odd_everything"], dtype)
    small = every_operation(rng, BY_NAME["odd_everything"], dtype)
    # Scaled by an exact power of two on bits that the test's own mode cannot flush: numpy runs outside the thread.
    for _, arrays, _ in small.values():
        for name in {"x", "a", "h", "bias"} & set(arrays):
            arrays[name] = (arrays[name].astype(np.float64) * tiny).astype(arrays[name].dtype)
    expected, expected_small = run_all(calls), run_all(small)
    scaled = expected_small["row_scale.out"].astype(np.float64)
    smallest_normal = {"f16": 2.0**-14, "bf16": 2.0**-126, "f32": 2.0**-126, "f64": 2.0**-1022}[dtype]
    assert ((scaled != 0) & (np.abs(scaled) < smallest_normal)).any(), "the data has no denormals to flush"
    found, found_small = in_thread_with_mode(
        control_register, mode, lambda: (run_all(calls, num_threads), run_all(small, num_threads))
    )
    assert_same(found, expected)
    assert_same(found_small, expected_small)


def test_the_callers_mode_is_restored_after_an_error(rng, control_register):
    x, weight = draw(rng, (2, 3), "f32"), draw(rng, (1, 4, 3), "f32")

    def fails():
        with pytest.raises(ValueError, match="does not fit"):
            mm(x, weight, np.array([3], np.int32))

    in_thread_with_mode(control_register, FLUSH, fails)
