# SPDX-License-Identifier: Apache-2.0
"""Fresh data in every run: the seed is drawn, shown, and set by GROUPED_TEST_SEED to repeat a run."""

from __future__ import annotations

import hashlib
import os
import secrets

import numpy as np
import pytest

# Workers of pytest-xdist inherit the environment, so all of them share the seed.
SEED = os.environ.setdefault("GROUPED_TEST_SEED", str(secrets.randbits(32)))

# Read when jax is imported, by whichever suite imports it first. Four devices on one host serve the sharding tests.
_DEVICES = "--xla_force_host_platform_device_count"
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=4".strip()


def pytest_report_header() -> str:
    return f"GROUPED_TEST_SEED={SEED}"


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    digest = hashlib.sha256(f"{SEED}/{request.node.nodeid}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))
