# SPDX-License-Identifier: Apache-2.0
"""The benchmark suite: `python -m benchmarks run|compare|plot`; how it measures is in protocol.md."""
