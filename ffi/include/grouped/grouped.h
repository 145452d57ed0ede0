/* SPDX-License-Identifier: Apache-2.0
 *
 * grouped.h: the C interface of the grouped-GEMM core. Plain C, no framework, no CUDA headers.
 *
 * Words (every comment below uses them):
 *   T rows, tail included    G groups (experts)    K in-features    N out-features    F hidden features
 *   group_sizes [G]: rows of each group, one group after another from row 0; S = sum(group_sizes) <= T
 *   tail: rows S..T
 *
 * Four promises that hold for every function here:
 *   tail         reaches no result; never written under GROUPED_TAIL_KEEP, zeroed under GROUPED_TAIL_ZERO
 *   empty groups legal anywhere; a weight gradient of one is zero (overwrite) or unchanged (accumulate)
 *   aliasing     results go straight into the caller's memory; no result may overlap an input
 *   determinism  bitwise repeatable, for any thread count; a row needs itself and its group's weight only
 *
 * Nothing here allocates device memory or waits for the device, except under GROUPED_CHECK=1.
 */
#ifndef GROUPED_GROUPED_H_
#define GROUPED_GROUPED_H_

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define GROUPED_API
#else
#define GROUPED_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Changes when a structure or a meaning changes. Structures only grow at their end. */
#define GROUPED_ABI_VERSION 1

/* What a call returns, and what it maps to in Python. */
enum {
  GROUPED_OK = 0,
  GROUPED_BAD_VALUE = 1,   /* shape, layout, device, alignment, overlap, sizes: ValueError */
  GROUPED_BAD_TYPE = 2,    /* dtype: TypeError */
  GROUPED_UNSUPPORTED = 3, /* a build without that device: NotImplementedError */
  GROUPED_INTERNAL = 4     /* a failed launch, a misused structure: RuntimeError */
};

typedef struct grouped_status {
  size_t struct_size;
  int32_t code;
  char message[1012]; /* empty when code is GROUPED_OK */
} grouped_status;

/* The core computes on F16..F64 and reads sizes as I32 or I64; the others exist to be named in messages. */
enum {
  GROUPED_OTHER = 0,
  GROUPED_F16 = 1,
  GROUPED_BF16 = 2,
  GROUPED_F32 = 3,
  GROUPED_F64 = 4,
  GROUPED_I32 = 5,
  GROUPED_I64 = 6,
  GROUPED_BOOL = 7,
  GROUPED_I8 = 8,
  GROUPED_U8 = 9,
  GROUPED_I16 = 10,
  GROUPED_U16 = 11,
  GROUPED_U32 = 12,
  GROUPED_U64 = 13,
  GROUPED_C64 = 14,
  GROUPED_C128 = 15,
  GROUPED_F8E4M3 = 16,
  GROUPED_F8E5M2 = 17
};

/* Devices; from 0 on CUDA ordinals. */
enum {
  GROUPED_DEVICE_CPU = -1,
  GROUPED_DEVICE_META = -2 /* nowhere: a shape alone, in checks */
};

enum {
  GROUPED_TENSOR_REQUIRES_GRAD = 1u, /* refused for buffers */
  GROUPED_TENSOR_NO_DATA = 2u        /* shape and dtype only (tracing): pointer rules are skipped */
};

enum { GROUPED_MAX_RANK = 8 };

typedef struct grouped_tensor {
  const char* name; /* how messages call it; NULL: the name of the argument */
  void* data;
  int32_t dtype;
  int32_t rank; /* a rank above GROUPED_MAX_RANK is refused; its dims are not read */
  int64_t shape[8];
  int64_t strides[8]; /* in elements */
  int32_t device;
  uint32_t flags;
} grouped_tensor;

/* Runs body(arg, i) for i in 0..count, in any order and on any threads, and returns when all are done. */
typedef struct grouped_executor {
  void* context;
  void (*parallel_for)(void* context, int64_t count, void (*body)(void* arg, int64_t i), void* arg);
  int32_t num_threads;
} grouped_executor;

enum { GROUPED_GNK = 0 /* weight [G,N,K] */, GROUPED_GKN = 1 /* weight [G,K,N] */ };
enum { GROUPED_SIZES = 0 /* rows of each group */, GROUPED_ENDS = 1 /* inclusive running sums */ };
enum { GROUPED_TAIL_KEEP = 0, GROUPED_TAIL_ZERO = 1 };

/* Which operation a query is about. */
enum {
  GROUPED_OP_MM = 0,
  GROUPED_OP_WGRAD = 1,
  GROUPED_OP_BIAS_GRAD = 2,
  GROUPED_OP_ACTIVATION = 3,
  GROUPED_OP_ACTIVATION_GRAD = 4,
  GROUPED_OP_ROW_SCALE = 5,
  GROUPED_OP_ROW_DOT = 6,
  GROUPED_OP_LINEAR = 7, /* a check only: all arguments of a linear layer, its gradient buffers included */
  GROUPED_OP_COUNT = 8
};

/* Passed beside every argument structure. `workspace`: grouped_workspace_size() bytes, 16-byte aligned. */
typedef struct grouped_launch {
  const grouped_executor* executor; /* CPU: NULL runs on the calling thread */
  void* workspace;
  size_t workspace_size;
  void* stream; /* cudaStream_t */
} grouped_launch;

/* out[t] = round((x[t] @ W[g(t)] + bias[g(t)]) * row_scale[t]) */
typedef struct grouped_mm_args {
  size_t struct_size;
  const grouped_tensor* x;           /* [T,K] f16|bf16|f32|f64 */
  const grouped_tensor* weight;      /* [G,N,K] or [G,K,N], dtype of x */
  const grouped_tensor* group_sizes; /* [G] i32|i64 */
  const grouped_tensor* bias;        /* [G,N] or NULL; dtype of x, or f32 beside 16-bit x */
  const grouped_tensor* row_scale;   /* [T] or NULL; likewise */
  const grouped_tensor* out;         /* [T,N] dtype of x, or f32 beside 16-bit x */
  int32_t weight_layout;
  int32_t sizes_kind;
  int32_t tail;
  int32_t reserved;
} grouped_mm_args;

/* out[g] (+)= x_g^T dy_g over the rows of group g, in the weight's storage */
typedef struct grouped_wgrad_args {
  size_t struct_size;
  const grouped_tensor* x;           /* [T,K] */
  const grouped_tensor* dy;          /* [T,N] dtype of x */
  const grouped_tensor* group_sizes; /* [G] */
  const grouped_tensor* out;         /* [G,N,K] or [G,K,N]; dtype of x, or f32 beside 16-bit x */
  int32_t weight_layout;
  int32_t sizes_kind;
  int32_t accumulate; /* 1: add in fp32 (fp64 for fp64) to what out holds, round once */
  int32_t reserved;
} grouped_wgrad_args;

/* out[g] (+)= sum of dy over the rows of group g */
typedef struct grouped_bias_grad_args {
  size_t struct_size;
  const grouped_tensor* dy;          /* [T,N] */
  const grouped_tensor* group_sizes; /* [G] */
  const grouped_tensor* out;         /* [G,N] dtype of dy, or f32 beside 16-bit dy */
  int32_t sizes_kind;
  int32_t accumulate;
} grouped_bias_grad_args;

enum {
  GROUPED_SWIGLU = 0,         /* silu(gate) * up */
  GROUPED_CLAMPED_SWIGLU = 1, /* gate' = min(gate, limit), up' = clamp(up, -limit, limit); gate' *
                                 sigmoid(alpha gate') * (up' + offset) */
  GROUPED_GEGLU = 2,          /* gelu(gate) * up, tanh form */
  GROUPED_SQUARED_RELU = 3,   /* max(h, 0)^2, no gate */
  GROUPED_ACTIVATION_COUNT = 4
};
enum {
  GROUPED_CONCATENATED = 0 /* h = [gate | up] */,
  GROUPED_INTERLEAVED = 1 /* h = gate0, up0, gate1, up1, ... */
};

typedef struct grouped_activation_options {
  int32_t kind;
  int32_t gate_layout;
  double alpha, limit, offset; /* read by GROUPED_CLAMPED_SWIGLU alone */
} grouped_activation_options;

/* out[t] = round(activation(h[t]) * row_scale[t]) */
typedef struct grouped_activation_args {
  size_t struct_size;
  const grouped_tensor* h;           /* [T,2F] with a gate, else [T,F] */
  const grouped_tensor* group_sizes; /* [G] */
  const grouped_tensor* row_scale;   /* [T] or NULL; dtype of h, or f32 beside 16-bit h */
  const grouped_tensor* out;         /* [T,F] dtype of h */
  grouped_activation_options options;
  int32_t sizes_kind;
  int32_t tail;
} grouped_activation_args;

/* dh = d activation / dh * (dy * row_scale); d_row_scale[t] = sum_f dy[t,f] * activation(h[t])[f] */
typedef struct grouped_activation_grad_args {
  size_t struct_size;
  const grouped_tensor* h;           /* as forward */
  const grouped_tensor* dy;          /* [T,F] dtype of h */
  const grouped_tensor* group_sizes; /* [G] */
  const grouped_tensor* row_scale;   /* [T] or NULL */
  const grouped_tensor* dh;          /* shape and dtype of h */
  const grouped_tensor* d_row_scale; /* [T] dtype of row_scale, or NULL; needs row_scale */
  grouped_activation_options options;
  int32_t sizes_kind;
  int32_t tail;
} grouped_activation_grad_args;

/* out[t] = round(x[t] * row_scale[t]) */
typedef struct grouped_row_scale_args {
  size_t struct_size;
  const grouped_tensor* x;           /* [T,K] */
  const grouped_tensor* group_sizes; /* [G] */
  const grouped_tensor* row_scale;   /* [T] dtype of out, or f32 beside 16-bit out */
  const grouped_tensor* out;         /* [T,K] dtype of x, or 16-bit beside f32 x */
  int32_t sizes_kind;
  int32_t tail;
} grouped_row_scale_args;

/* out[t] = round(sum_k a[t,k] b[t,k] + sum_n dy[t,n] bias[g(t),n]): the gradient of a linear layer's
 * row_scale */
typedef struct grouped_row_dot_args {
  size_t struct_size;
  const grouped_tensor* a;           /* [T,K] */
  const grouped_tensor* b;           /* [T,K] dtype of a, or f32 beside 16-bit a */
  const grouped_tensor* group_sizes; /* [G] */
  const grouped_tensor* dy;          /* [T,N] dtype of a; NULL exactly when bias is */
  const grouped_tensor* bias;        /* [G,N] dtype of a, or f32 beside 16-bit a; or NULL */
  const grouped_tensor* out;         /* [T] dtype of a, or f32 beside 16-bit a */
  int32_t sizes_kind;
  int32_t tail;
} grouped_row_dot_args;

/* Checks every argument of y = grouped_linear(x, ...) and of its backward before anything runs. */
typedef struct grouped_linear_args {
  size_t struct_size;
  const grouped_tensor* x;           /* [T,K] */
  const grouped_tensor* weight;      /* [G,N,K] or [G,K,N] */
  const grouped_tensor* group_sizes; /* [G] */
  const grouped_tensor* bias;        /* [G,N] or NULL */
  const grouped_tensor* row_scale;   /* [T] or NULL */
  const grouped_tensor* out;         /* [T,N] dtype of x, or NULL */
  const grouped_tensor* dgrad_out;   /* [T,K] dtype of x, or NULL */
  const grouped_tensor* wgrad_out;   /* the weight's shape; dtype of x, or f32 beside 16-bit x; or NULL */
  int32_t weight_layout;
  int32_t sizes_kind;
} grouped_linear_args;

/* Every operation: check, then launch. Each returns status->code; status may be NULL. */
GROUPED_API int32_t grouped_mm(const grouped_mm_args*, const grouped_launch*, grouped_status*);
GROUPED_API int32_t grouped_wgrad(const grouped_wgrad_args*, const grouped_launch*, grouped_status*);
GROUPED_API int32_t grouped_bias_grad(const grouped_bias_grad_args*, const grouped_launch*, grouped_status*);
GROUPED_API int32_t grouped_activation(const grouped_activation_args*, const grouped_launch*,
                                       grouped_status*);
GROUPED_API int32_t grouped_activation_grad(const grouped_activation_grad_args*, const grouped_launch*,
                                            grouped_status*);
GROUPED_API int32_t grouped_row_scale(const grouped_row_scale_args*, const grouped_launch*, grouped_status*);
GROUPED_API int32_t grouped_row_dot(const grouped_row_dot_args*, const grouped_launch*, grouped_status*);

/* The same rules without a launch; with GROUPED_TENSOR_NO_DATA they serve tracing. `args` is the structure of
 * `op`. */
GROUPED_API int32_t grouped_check(int32_t op, const void* args, grouped_status*);

/* The dims of argument `index` of `op` as letters, "TK" or "GNK"; its name in *name. NULL past the last
 * argument. H is 2F with a gate, else F. Tracers with symbolic sizes compare dims by letter and leave the
 * verdict to grouped_check(). */
GROUPED_API const char* grouped_argument_dims(int32_t op, int32_t weight_layout, int32_t index,
                                              const char** name);

typedef struct grouped_workspace_query {
  size_t struct_size;
  int32_t op;
  int32_t dtype;  /* of x (or h, or dy) */
  int32_t device; /* GROUPED_DEVICE_CPU or any CUDA ordinal */
  int32_t reserved;
  int64_t K, N, G; /* independent of T, so that tracing with a symbolic T works */
} grouped_workspace_query;
GROUPED_API size_t grouped_workspace_size(const grouped_workspace_query*);

GROUPED_API int32_t grouped_abi_version(void);
GROUPED_API const char* grouped_version(void);   /* "0.1.0+cu130" */
GROUPED_API int32_t grouped_has_cuda(void);      /* built with the CUDA kernels */
GROUPED_API int32_t grouped_check_enabled(void); /* GROUPED_CHECK=1 when the library was loaded */

/* Calls of `op` that reached a backend since the process began; for tests that must see the core run. */
GROUPED_API uint64_t grouped_call_count(int32_t op);

#ifdef __cplusplus
}
#endif
#endif
