# SPDX-License-Identifier: Apache-2.0
"""FSDP2 and DTensor parameters on two GPUs: the work that tests/torch does on CPU."""

from __future__ import annotations

import two_ranks


def test_fsdp_trains_as_one_process():
    two_ranks.spawn("cuda", two_ranks.fsdp_trains_as_one_process, two_ranks.dtensor_parameters_through_local_tensors)
