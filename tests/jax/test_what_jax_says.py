# SPDX-License-Identifier: Apache-2.0
"""The messages of JAX itself that docs/jax.md explains: each still comes, and each stands in the page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax import export

from jax_grouped import grouped_linear

PAGE = (Path(__file__).parents[2] / "docs" / "jax.md").read_text()
x, weight, sizes = jnp.ones((8, 4)), jnp.ones((2, 4, 5)), jnp.array([4, 2], jnp.int32)


def into(out):
    return grouped_linear(x, weight, sizes, out=out)


def donated_twice() -> None:
    out = jnp.zeros((8, 5))
    jax.block_until_ready(jax.jit(lambda a, b: (into(a), into(b)), donate_argnums=(0, 1))(out, out))


def used_again() -> None:
    step, out = jax.jit(into, donate_argnums=0), jnp.zeros((8, 5))
    step(out)
    step(out)


def not_returned() -> None:
    jax.jit(lambda out: into(out).sum(), donate_argnums=0)(jnp.zeros((8, 5)))


def forward_mode() -> None:
    jax.jvp(lambda x: grouped_linear(x, weight, sizes), (x,), (x,))


def other_dtype_in_a_carry() -> None:
    jax.jit(lambda out: jax.lax.scan(lambda o, _: (into(o).astype(jnp.float16), None), out, length=2))(
        jnp.zeros((8, 5))
    )


def one_ref_for_two() -> None:
    ref = jax.new_ref(jnp.zeros((8, 5)))
    jax.jit(lambda a, b: into(a) + into(b))(ref, ref)


def ref_beside_vmap() -> None:
    call = jax.vmap(lambda x, ref: grouped_linear(x, weight, sizes, out=ref), in_axes=(0, None))
    jax.jit(lambda ref: call(jnp.stack([x, x]), ref))(jax.new_ref(jnp.zeros((8, 5))))


def derivative_of_a_cond_with_a_ref() -> None:
    ref = jax.new_ref(jnp.zeros((2, 4, 5)))

    def branch(x):
        return grouped_linear(x, weight, sizes, wgrad_out=ref).sum()

    jax.jit(jax.grad(lambda x: jax.lax.cond(x[0, 0] > 0, branch, lambda x: 0.0, x)))(x)


def export_untold() -> None:
    export.export(jax.jit(grouped_linear))(x, weight, sizes)


DELETED = "Array has been deleted" if jax.__version_info__ >= (0, 11) else "Buffer has been deleted or donated"
SAYS = [
    (donated_twice, jax.errors.JaxRuntimeError, "Attempt to donate the same buffer twice"),
    (used_again, (ValueError, RuntimeError), DELETED),
    (not_returned, UserWarning, "Some donated buffers were not usable"),
    (forward_mode, TypeError, "can't apply forward-mode autodiff (jvp) to a custom_vjp function"),
    (other_dtype_in_a_carry, TypeError, "carry input and carry output must have equal types"),
    (one_ref_for_two, ValueError, "only one reference to a mutable array may be passed"),
    (ref_beside_vmap, Exception, "performing a set/swap operation with vmapped value on an unbatched array reference"),
    (derivative_of_a_cond_with_a_ref, KeyError, "<class 'jax._src.state.types.AbstractRef'>"),
    (export_untold, ValueError, "custom calls whose targets have no compatibility guarantees"),
]


@pytest.mark.parametrize(("mistake", "kind", "words"), SAYS, ids=lambda v: getattr(v, "__name__", None))
def test_the_message_comes_and_is_explained(mistake: Callable, kind: type, words: str) -> None:
    with pytest.raises(kind) as caught:
        mistake()
    assert words in str(caught.value)
    assert words in PAGE
