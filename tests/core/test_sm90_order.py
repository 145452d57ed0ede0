# SPDX-License-Identifier: Apache-2.0
"""The order in which the Hopper kernels take the tiles of weight gradients: each exactly once, neighbours together."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
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
def order(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[tuple[int, int]]]:
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler on PATH")
    folder = tmp_path_factory.mktemp("sm90_order")
    source = folder / "order.cc"
    source.write_text(PROGRAM)
    includes = [f"-I{ROOT / 'ffi' / part}" for part in ("", "include", "cuda")]
    subprocess.run([compiler, "-std=c++17", *includes, str(source), "-o", str(folder / "order")], check=True)

    def ask(what: str, a: int, b: int, c: int) -> list[tuple[int, int]]:
        words = subprocess.run(
            [folder / "order"], input=f"{what} {a} {b} {c}", capture_output=True, text=True, check=True
        )
        return [(int(x), int(y)) for x, y in (word.split(",") for word in words.stdout.split())]

    return ask


@pytest.mark.parametrize("shape", list(itertools.product((1, 2, 3, 5, 45), (1, 2, 15), (4, 8, 16))))
def test_a_walk_meets_each_tile_once_and_goes_on_where_it_would_begin_anew(order, shape):
    rows, columns, band = shape
    tiles = order("walk", rows, columns, band)
    assert sorted(tiles) == sorted(itertools.product(range(rows), range(columns)))
    assert order("pairs", rows, columns, band) == tiles
    whole = [(row // band, column, row) for row, column in tiles]
    assert whole == sorted(whole), "down a band, then one column right, then the next band"
