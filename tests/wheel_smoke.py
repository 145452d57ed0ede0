# SPDX-License-Identifier: Apache-2.0
"""`python tests/wheel_smoke.py WHEEL...`: each wheel in a bare environment, with no compiler on PATH.

First with NumPy alone, then, where this interpreter has them, beside JAX and beside PyTorch: the frameworks are lent to
the bare environment, the wheel is its own. Prints what was checked and how large the wheels are.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from importlib.util import find_spec
from pathlib import Path

CORE = """
import numpy as np
import grouped_core
from grouped_core import CPU_DEVICE, DType, Op, Options

T, K, N, G = 5, 3, 4, 2
x = np.arange(T * K, dtype=np.float32).reshape(T, K)
w = np.linspace(-1, 1, G * N * K, dtype=np.float32).reshape(G, N, K)
sizes = np.array([1, 3], np.int32)  # the last row is tail
out = np.full((T, N), 7, np.float32)
workspace = np.zeros(grouped_core.workspace_size(Op.MM, DType.F32, CPU_DEVICE, K, N, G) + 64, np.uint8)
address = lambda a: a.__array_interface__["data"][0]
named = {"x": x, "weight": w, "group_sizes": sizes, "out": out}
tensors = tuple(
    None if name not in named else
    (name, address(named[name]), int(DType.I32 if name == "group_sizes" else DType.F32), named[name].shape, None,
     CPU_DEVICE, 0)
    for name, _ in grouped_core.argument_dims(Op.MM, 0)
)
grouped_core.run(Op.MM, tensors, tuple(Options()), address(workspace), workspace.nbytes, 0, 1)
want = np.concatenate([x[:1] @ w[0].T, x[1:4] @ w[1].T, np.full((1, N), 7)])
np.testing.assert_allclose(out, want, rtol=1e-5)
try:
    grouped_core.check(Op.MM, (None,) * len(tensors), tuple(Options()))
except ValueError as error:
    if "grouped_mm needs x" not in str(error):
        raise
else:
    raise SystemExit("a call without x was not refused")
print("core", grouped_core.__version__, "CUDA" if grouped_core.has_cuda() else "CPU", grouped_core.__file__)
"""

JAX = """
import jax, jax.numpy as jnp, numpy as np
from jax_grouped import grouped_linear

x, w, sizes = jnp.ones((5, 3)), jnp.ones((2, 3, 4)), jnp.array([1, 3])
step = jax.jit(jax.value_and_grad(lambda w: grouped_linear(x, w, sizes).sum()))
value, dw = step(w)
assert float(value) == 48.0, value
np.testing.assert_array_equal(dw, np.broadcast_to(np.array([1.0, 3.0])[:, None, None], (2, 3, 4)))
print("jax", jax.__version__)
"""

TORCH = """
import torch
from torch_grouped import GroupedLinear

layer = GroupedLinear(2, 3, 4, bias=False)
x, out = torch.ones(5, 3, requires_grad=True), torch.full((5, 4), 7.0)
y = layer(x, torch.tensor([1, 3]), out=out)
y[:4].sum().backward()
assert y.data_ptr() == out.data_ptr() and bool((out[4] == 7).all())
assert torch.allclose(layer.weight.grad[1], torch.full((4, 3), 3.0))
print("torch", torch.__version__)
"""


def _bare_environment(folder: Path, wheel: Path) -> Path:
    """The interpreter of a new environment with the wheel and NumPy, nothing else."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "numpy"], check=True)
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
    return python


def _run(python: Path, code: str, home: Path, lent: str | None = None) -> str:
    """One program there. PATH holds the environment alone, so nothing can be compiled."""
    environment = {"PATH": str(python.parent), "HOME": str(home), "JAX_PLATFORMS": "cpu"}
    if lent is not None:  # behind what the environment itself has
        code = f"import sys; sys.path.append({lent!r})\n" + code
    result = subprocess.run([str(python), "-c", code], env=environment, cwd=home, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{result.stdout}{result.stderr}")
    return result.stdout.strip()


def check(wheel: Path) -> list[str]:
    """What was found; ends the program where something fails."""
    lent = sysconfig.get_paths()["purelib"]
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        python = _bare_environment(home / "venv", wheel)
        found = [_run(python, CORE, home)]
        if str(home) not in found[0]:
            raise SystemExit(f"another grouped_core was imported: {found[0]}")
        found = [found[0].rpartition(" ")[0]]
        for framework, code in (("jax", JAX), ("torch", TORCH)):
            found.append(_run(python, code, home, lent) if find_spec(framework) else f"{framework} is not here")
    return found


def main() -> int:
    """0 if all wheels work."""
    wheels = [Path(a).resolve() for a in sys.argv[1:]]
    if not wheels:
        raise SystemExit(__doc__)
    os.environ.pop("PYTHONPATH", None)  # else the bare environments would see this one's packages
    for wheel in wheels:
        print(f"{wheel.stat().st_size / 2**20:7.2f} MiB  {wheel.name}: {', '.join(check(wheel))}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
