# SPDX-License-Identifier: Apache-2.0
"""One mixture-of-experts classifier, written three times: on jax_grouped, on torch_grouped, and without either."""
