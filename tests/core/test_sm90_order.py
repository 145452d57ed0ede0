# SPDX-License-Identifier: Apache-2.0
"""The order in which the Hopper kernels take the tiles of weight gradients: each exactly once, neighbours together."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

PROGRAM = """
#include <iostream>
#include <string>
#include "sm90/wgrad_order.h"
using namespace grouped::cuda::sm90;
int main() {
  std::string what;
  int64_t a, b, c;
  while (std::cin >> what >> a >> b >> c) {
    BandWalk walk(a, b, c);  // rows, columns, rows of a band
    for (int tile = 0; tile < a * b; tile += what == "pairs" ? 2 : 1) {
      walk.go_to(tile);
      std::cout << walk.row << ',' << walk.column << ' ';
      if (what == "pairs" && tile + 1 < a * b) {
        walk.advance();
        std::cout << walk.row << ',' << walk.column << ' ';
      }
    }
    std::cout << std::endl;
  }
}
"""


@pytest.fixture(scope="module")
def order(compiled: Callable[[str], Callable[[str], str]]) -> Callable[..., list[tuple[int, int]]]:
    run = compiled(PROGRAM)

    def ask(what: str, rows: int, columns: int, band: int) -> list[tuple[int, int]]:
        words = run(f"{what} {rows} {columns} {band}").split()
        return [(int(x), int(y)) for x, y in (word.split(",") for word in words)]

    return ask


@pytest.mark.parametrize("shape", list(itertools.product((1, 2, 3, 5, 45), (1, 2, 15), (4, 8, 16))))
def test_a_walk_meets_each_tile_once_and_goes_on_where_it_would_begin_anew(order, shape):
    rows, columns, band = shape
    tiles = order("walk", rows, columns, band)
    assert sorted(tiles) == sorted(itertools.product(range(rows), range(columns)))
    assert order("pairs", rows, columns, band) == tiles
    whole = [(row // band, column, row) for row, column in tiles]
    assert whole == sorted(whole), "down a band, then one column right, then the next band"
