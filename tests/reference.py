# SPDX-License-Identifier: Apache-2.0
"""The truth: every operation as an fp64 loop over groups, on numpy arrays of any dtype (ml_dtypes for bf16).

Each function returns ``(value, scale)``: the result in fp64, and per element the sum of the absolute values of all
terms, which bounds what rounding can do (see tolerances.py). Tail rows are never read; in results they are zeros.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pair = tuple[NDArray, NDArray]


def groups(group_sizes):
    """Yields (g, slice of its rows)."""
    begin = 0
    for g, size in enumerate(np.asarray(group_sizes).tolist()):
        yield g, slice(begin, begin + size)
        begin += size


def _f64(a):
    return np.asarray(a).astype(np.float64)


def grouped_mm(x, weight, group_sizes, bias=None, row_scale=None, *, layout="gnk") -> Pair:
    """weight is [G,N,K] for "gnk", [G,K,N] for "gkn"."""
    w = _f64(weight) if layout == "gkn" else _f64(weight).transpose(0, 2, 1)
    y = np.zeros((x.shape[0], w.shape[2]))
    scale = np.zeros_like(y)
    for g, rows in groups(group_sizes):
        xg = _f64(x[rows])
        y[rows], scale[rows] = xg @ w[g], np.abs(xg) @ np.abs(w[g])
        if bias is not None:
            y[rows] += _f64(bias[g])
            scale[rows] += np.abs(_f64(bias[g]))
        if row_scale is not None:
            y[rows] *= _f64(row_scale[rows])[:, None]
            scale[rows] *= np.abs(_f64(row_scale[rows]))[:, None]
    return y, scale


def grouped_wgrad(x, dy, group_sizes, *, layout="gnk", old=None) -> Pair:
    """`old` is what the target held, for accumulation."""
    shape = (len(group_sizes), dy.shape[1], x.shape[1])
    dw, scale = np.zeros(shape), np.zeros(shape)
    for g, rows in groups(group_sizes):
        xg, dyg = _f64(x[rows]), _f64(dy[rows])
        dw[g], scale[g] = dyg.T @ xg, np.abs(dyg).T @ np.abs(xg)
    if layout == "gkn":
        dw, scale = dw.transpose(0, 2, 1), scale.transpose(0, 2, 1)
    if old is not None:
        dw, scale = dw + _f64(old), scale + np.abs(_f64(old))
    return dw, scale


def grouped_bias_grad(dy, group_sizes, *, old=None) -> Pair:
    db, scale = np.zeros((2, len(group_sizes), dy.shape[1]))
    for g, rows in groups(group_sizes):
        db[g], scale[g] = _f64(dy[rows]).sum(0), np.abs(_f64(dy[rows])).sum(0)
    if old is not None:
        db, scale = db + _f64(old), scale + np.abs(_f64(old))
    return db, scale


def split_gate(h, gate_layout):
    """(gate, up) of h [T, 2F]."""
    h = _f64(h)
    if gate_layout == "interleaved":
        return h[:, 0::2], h[:, 1::2]
    half = h.shape[1] // 2
    return h[:, :half], h[:, half:]


def join_gate(d_gate, d_up, gate_layout):
    if gate_layout == "interleaved":
        return np.stack([d_gate, d_up], axis=2).reshape(d_gate.shape[0], 2 * d_gate.shape[1])
    return np.concatenate([d_gate, d_up], axis=1)


def _sigmoid(z):
    e = np.exp(-np.abs(z))
    return np.where(z >= 0, 1, e) / (1 + e)


def activation_parts(h, kind, gate_layout="concatenated", alpha=1.702, limit=7.0, offset=1.0):
    """(value, d value/d gate, d value/d up or None) in fp64, on the rows given."""
    if kind == "squared_relu":
        r = np.maximum(_f64(h), 0)
        return r * r, 2 * r, None
    gate, up = split_gate(h, gate_layout)
    if kind == "swiglu":
        s = _sigmoid(gate)
        return gate * s * up, up * s * (1 + gate * (1 - s)), gate * s
    if kind == "clamped_swiglu":
        g, u = np.minimum(gate, limit), np.clip(up, -limit, limit) + offset
        s = _sigmoid(alpha * g)
        d_gate = np.where(gate <= limit, u * s * (1 + alpha * g * (1 - s)), 0)
        return g * s * u, d_gate, np.where(np.abs(up) <= limit, g * s, 0)
    if kind == "geglu":
        c = np.sqrt(2 / np.pi)
        s = _sigmoid(2 * c * (gate + 0.044715 * gate**3))  # (1 + tanh u) / 2 without the cancellation far left
        slope = s + gate * 2 * s * (1 - s) * c * (1 + 3 * 0.044715 * gate**2)
        return gate * s * up, up * slope, gate * s
    raise ValueError(kind)


def _sigmoid_argument(h, kind, gate_layout="concatenated", alpha=1.702, limit=7.0, offset=1.0):
    """(a, b): the value has a factor sigmoid(a), its slope towards the gate sigmoid(a) (1 + b (1 - sigmoid(a)))."""
    gate, _ = split_gate(h, gate_layout)
    if kind == "swiglu":
        return gate, gate
    if kind == "clamped_swiglu":
        a = alpha * np.minimum(gate, limit)
        return a, a
    c = np.sqrt(8 / np.pi)
    return c * (gate + 0.044715 * gate**3), c * (gate + 3 * 0.044715 * gate**3)


def activation_condition(h, kind, **options):
    """Relative rounding of a value, in units of one rounding: sigmoid(a) multiplies that of a by |a| (1 - sigmoid)."""
    if kind == "squared_relu":
        return np.ones(h.shape)
    a, _ = _sigmoid_argument(h, kind, **options)
    return 1 + np.abs(a) * (1 - _sigmoid(a))


def slope_bound(h, kind, **options):
    """What rounding can do to the slope towards the gate, without the factor up, in units of one rounding.

    1 + b (1 - sigmoid) cancels near its zero, so it is bounded by its parts; sigmoid(a) and its complement multiply the
    rounding of a by at most |a|. Below fp32's normal numbers sigmoid errs like the smallest of them.
    """
    a, b = _sigmoid_argument(h, kind, **options)
    s = _sigmoid(a)
    return np.maximum(s, 2.0**-126) * (1 + np.abs(b) * (1 - s)) * (1 + np.abs(a))


def grouped_activation(h, group_sizes, kind, row_scale=None, **options) -> Pair:
    S = int(np.sum(group_sizes))
    value, _, _ = activation_parts(h[:S], kind, **options)
    y, scale = np.zeros((2, h.shape[0], value.shape[1]))
    y[:S] = value if row_scale is None else value * _f64(row_scale[:S])[:, None]
    scale[:S] = np.abs(y[:S]) * activation_condition(h[:S], kind, **options)
    return y, scale


def grouped_activation_grad(h, dy, group_sizes, kind, row_scale=None, **options) -> tuple[Pair, Pair]:
    """(dh, scale), (d_row_scale, scale)."""
    S = int(np.sum(group_sizes))
    value, d_gate, d_up = activation_parts(h[:S], kind, **options)
    g = _f64(dy[:S])
    dscale, dscale_bound = np.zeros((2, h.shape[0]))
    condition = activation_condition(h[:S], kind, **options)
    dscale[:S], dscale_bound[:S] = (g * value).sum(1), (np.abs(g * value) * condition).sum(1)
    if row_scale is not None:
        g = g * _f64(row_scale[:S])[:, None]
    dh = np.zeros(h.shape)
    dh[:S] = d_gate * g if d_up is None else join_gate(d_gate * g, d_up * g, options.get("gate_layout"))
    bound = np.zeros(h.shape)
    if d_up is None:
        bound[:S] = np.abs(dh[:S])
    else:
        layout = options.get("gate_layout")
        _, up = split_gate(h[:S], layout)
        up_bound = np.abs(up)
        if kind == "clamped_swiglu":
            up_bound = np.minimum(up_bound, options.get("limit", 7.0)) + abs(options.get("offset", 1.0))
        bound[:S] = join_gate(
            slope_bound(h[:S], kind, **options) * up_bound * np.abs(g),
            np.abs(np.asarray(d_up) * g) * condition,
            layout,
        )
    return (dh, bound), (dscale, dscale_bound)


def grouped_row_scale(x, group_sizes, row_scale) -> Pair:
    S = int(np.sum(group_sizes))
    y = np.zeros(x.shape)
    y[:S] = _f64(x[:S]) * _f64(row_scale[:S])[:, None]
    return y, np.abs(y)


def grouped_row_dot(a, b, group_sizes, dy=None, bias=None) -> Pair:
    S = int(np.sum(group_sizes))
    value, scale = np.zeros((2, a.shape[0]))
    products = _f64(a[:S]) * _f64(b[:S])
    value[:S], scale[:S] = products.sum(1), np.abs(products).sum(1)
    if dy is not None and bias is not None:
        for g, rows in groups(group_sizes):
            terms = _f64(dy[rows]) * _f64(bias[g])
            value[rows] += terms.sum(1)
            scale[rows] += np.abs(terms).sum(1)
    return value, scale
