# SPDX-License-Identifier: Apache-2.0
"""Which configuration the Hopper kernels take: pure functions of the shape, so their answers are written down here."""

from __future__ import annotations

from collections.abc import Callable

import pytest

PROGRAM = """
#include <cstdint>
#include <cstdio>
#include <iostream>
#include "sm90/heuristic.h"
using namespace grouped::cuda::sm90;
int main() {
  std::string op;
  int64_t T, K, N, G;
  int memory;
  while (std::cin >> op >> T >> K >> N >> G >> memory)
    std::cout << to_string(op == "mm" ? mm_config(T, K, N, G, memory)
                                      : wgrad_config(T, K, N, G, op == "wgrad_acc", memory)) << "\\n";
}
"""
TURNS = "sm90 128x192, multipliers take turns"
SHARE = "sm90 128x256, multipliers share"
EVEN = ", groups cut evenly"
ORDER = ", in order"
DEMAND = ", on demand"
AHEAD = " ahead"
ENDS = " ahead from both ends"
BUFFERS = ", large buffers"
LINES = ", lines sent whole"
# Bytes of memory for each cycle of a multiprocessor, without fractions: 12.8 by the data sheet, 18.4 by the device.
H100, H200 = 12, 18


def bands(rows: int) -> str:
    return f", in bands of {rows}"


SLOW = {
    ("mm", 65536, 2048, 1536, 128): TURNS + EVEN + ORDER + DEMAND,
    ("mm", 65536, 768, 2048, 128): TURNS + EVEN + ORDER + DEMAND,
    ("mm", 65536, 1024, 2048, 64): TURNS + EVEN + DEMAND,  # many rows a group
    ("mm", 16384, 1024, 2048, 32): TURNS + EVEN + DEMAND,  # few groups
    ("mm", 16384, 1024, 2047, 32): TURNS + EVEN,  # little work
    ("mm", 32768, 4096, 7168, 8): TURNS + EVEN + DEMAND,
    ("mm", 16384, 4096, 28672, 8): TURNS + EVEN + DEMAND,
    ("mm", 500_000, 256, 256, 1): TURNS + EVEN,
    ("mm", 2**31 - 513, 2**31 - 513, 2**31 - 513, 1): SHARE + DEMAND,
    ("mm", 32768, 7168, 4096, 8): TURNS + EVEN + DEMAND,
    ("mm", 16384, 8192, 5120, 8): TURNS + EVEN + DEMAND,
    ("mm", 16384, 8193, 5120, 8): SHARE + DEMAND,  # long sums
    ("mm", 16384, 28672, 4096, 8): SHARE + DEMAND,
    ("mm", 32768, 5760, 2880, 128): SHARE + EVEN + ORDER + DEMAND,
    ("mm", 16, 16384, 32768, 1): SHARE,
    ("mm", 32768, 2880, 5760, 128): SHARE + EVEN + ORDER + DEMAND,  # few rows a group
    ("mm", 81920, 512, 2048, 512): SHARE + EVEN + ORDER + DEMAND,
    ("mm", 8192, 2048, 1536, 128): SHARE + EVEN + ORDER,
    ("mm", 16, 256, 256, 1024): SHARE + EVEN + ORDER,
    ("wgrad", 65536, 2048, 1536, 128): TURNS + DEMAND + ENDS + bands(4),
    ("wgrad", 65536, 1024, 2048, 64): TURNS + DEMAND + ENDS + bands(16),
    ("wgrad", 32768, 7168, 4096, 8): TURNS + DEMAND + bands(8),  # many rows a group
    ("wgrad", 32768, 2880, 5760, 128): TURNS + DEMAND + ENDS + bands(4),
    ("wgrad", 32767, 2880, 5760, 128): SHARE + DEMAND + ENDS + bands(4),  # few rows a group
    ("wgrad", 81920, 512, 2048, 512): SHARE + DEMAND + ENDS + bands(4),
    ("wgrad", 8192, 2048, 1536, 128): SHARE + DEMAND + ENDS + bands(4),  # few products, much to write
    ("wgrad", 1024, 256, 256, 1): TURNS + bands(16),  # little of either
    ("wgrad", 2**31 - 513, 2**31 - 513, 2**31 - 513, 1): TURNS + DEMAND + bands(8),
    ("wgrad_acc", 65536, 2048, 1536, 128): SHARE + DEMAND + ENDS + bands(4),
    ("wgrad_acc", 8192, 7168, 4096, 8): SHARE + DEMAND + ENDS + bands(8),
    # Many rows a group: time to fetch what the result held.
    ("wgrad_acc", 8193, 7168, 4096, 8): TURNS + DEMAND + bands(8),
    ("wgrad_acc", 32768, 7168, 4096, 8): TURNS + DEMAND + bands(8),
}
FAST = {
    ("mm", 65536, 2048, 1536, 128): TURNS + EVEN + ORDER + DEMAND,
    ("mm", 16384, 28672, 4096, 8): TURNS + EVEN + DEMAND,  # long sums
    ("mm", 81920, 512, 2048, 512): TURNS + EVEN + ORDER + DEMAND,  # few rows a group
    ("mm", 16, 256, 256, 1024): TURNS + EVEN + ORDER,
    ("wgrad", 65536, 2048, 1536, 128): TURNS + DEMAND + AHEAD + bands(4),
    ("wgrad", 32768, 7168, 4096, 8): TURNS + DEMAND + bands(8),  # many rows a group
    ("wgrad", 384 * 128, 2048, 1536, 128): TURNS + DEMAND + AHEAD + bands(4),
    ("wgrad", 384 * 128 - 1, 2048, 1536, 128): TURNS + BUFFERS + DEMAND + AHEAD + bands(4),  # few rows a group
    ("wgrad", 128 * 128 + 1, 2048, 1536, 128): TURNS + BUFFERS + DEMAND + AHEAD + bands(4),
    ("wgrad", 128 * 128, 2048, 1536, 128): SHARE + LINES + DEMAND + AHEAD + bands(4),  # still fewer
    ("wgrad", 128 * 128, 2048, 1504, 128): TURNS + BUFFERS + DEMAND + AHEAD + bands(4),  # N is no multiple of 64,
    ("wgrad", 128 * 128, 2016, 1536, 128): TURNS + BUFFERS + DEMAND + AHEAD + bands(4),  # nor is K
    ("wgrad", 16, 256, 256, 1): SHARE + LINES + bands(4),
    ("wgrad_acc", 8192, 2048, 1536, 128): SHARE + DEMAND + ENDS + bands(4),
    ("wgrad_acc", 32767, 2048, 1536, 128): SHARE + DEMAND + ENDS + bands(4),
    ("wgrad_acc", 32768, 2048, 1536, 128): TURNS + BUFFERS + DEMAND + AHEAD + bands(4),
    ("wgrad_acc", 32768, 7168, 4096, 8): TURNS + BUFFERS + DEMAND + bands(8),
}
GOLDEN = {(*case, H100): choice for case, choice in SLOW.items()} | {(*case, H200): c for case, c in FAST.items()}


@pytest.fixture(scope="module")
def choices(compiled: Callable[[str], Callable[[str], str]]) -> dict[tuple, str]:
    lines = compiled(PROGRAM)("\n".join(" ".join(map(str, case)) for case in GOLDEN)).splitlines()
    return dict(zip(GOLDEN, lines, strict=True))


@pytest.mark.parametrize("case", GOLDEN, ids=lambda c: "-".join(map(str, c)))
def test_golden(case: tuple, choices: dict[tuple, str]) -> None:
    assert choices[case] == GOLDEN[case]
