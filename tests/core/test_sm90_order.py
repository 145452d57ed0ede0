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
    if (what == "walk" || what == "pairs") {  // rows, columns, rows of a band
      BandWalk walk(a, b, c);
      for (int tile = 0; tile < a * b; tile += what == "pairs" ? 2 : 1) {
        walk.go_to(tile);
        std::cout << walk.row << ',' << walk.column << ' ';
        if (what == "pairs" && tile + 1 < a * b) {
          walk.advance();
          std::cout << walk.row << ',' << walk.column << ' ';
        }
      }
    } else {  // groups, pieces of each
      for (int64_t id = 0; id < a * b; ++id) {
        const WgradPiece p = what == "staggered" ? staggered_piece(id, b, a) : piece_in_order(id, b);
        std::cout << p.place << ',' << p.in_group << ' ';
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

    def ask(what: str, a: int, b: int, c: int = 0) -> list[tuple[int, int]]:
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


@pytest.mark.parametrize("shape", list(itertools.product((1, 2, 3, 17), (1, 2, 3, 66))))
def test_staggered_pieces_are_each_taken_once(order, shape):
    groups, pieces = shape
    everyone = sorted(itertools.product(range(groups), range(pieces)))
    assert order("in_order", groups, pieces) == everyone
    taken = order("staggered", groups, pieces)
    assert sorted(taken) == everyone
    for place in range(groups):
        assert [p for g, p in taken if g == place] == list(range(pieces)), "a group's pieces keep their order"


def test_half_of_a_group_meets_half_of_the_next(order):
    taken = order("staggered", 3, 6)
    assert [g for g, _ in taken] == [0] * 3 + [1, 0] * 3 + [2, 1] * 3 + [2] * 3
