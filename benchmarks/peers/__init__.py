# SPDX-License-Identifier: Apache-2.0
"""Everything that is timed: one adapter a library. `registry.py` lists them."""
