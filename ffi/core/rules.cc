// SPDX-License-Identifier: Apache-2.0
// The checker. Order of the checks: shape, dtype, device, contiguous, requires no grad; then, over all
// arguments, alignment and overlap.
#include "core/rules.h"

#include <string_view>

#include "core/words.h"

namespace grouped {
namespace {

constexpr int kBufferAlignment = 16;

struct Argument {
  const ArgumentRule* rule;
  const grouped_tensor* tensor;
  const char* dims;
  const char* name() const { return tensor->name != nullptr ? tensor->name : rule->name; }
};

const grouped_tensor* tensor_at(const void* args, size_t offset) {
  return *reinterpret_cast<const grouped_tensor* const*>(static_cast<const char*>(args) + offset);
}

int64_t item_size(int32_t dtype) {
  switch (dtype) {
    case GROUPED_F64:
    case GROUPED_I64:
      return 8;
    case GROUPED_F32:
    case GROUPED_I32:
      return 4;
    default:
      return 2;
  }
}

int64_t bytes_of(const grouped_tensor& t) {
  int64_t n = item_size(t.dtype);
  for (int i = 0; i < t.rank; ++i) n *= t.shape[i];
  return n;
}

bool computes_on(int32_t dtype) { return dtype >= GROUPED_F16 && dtype <= GROUPED_F64; }

class Checker {
 public:
  Checker(const OperationRule& rule, const void* args, int32_t layout, bool gated, Checked* out)
      : rule_(rule), args_(args), layout_(layout), gated_(gated), out_(*out) {}

  Status run() {
    for (int32_t i = 0; i < rule_.count; ++i) {
      const ArgumentRule& r = rule_.arguments[i];
      const Argument a{&r, tensor_at(args_, r.offset), r.dims[layout_]};
      if (a.tensor == nullptr) {
        if (r.optional) continue;
        return Status(GROUPED_BAD_VALUE, std::string(rule_.name) + " needs " + r.name + "; got none.");
      }
      arguments_[count_++] = a;
    }
    // The base is looked up before the walk, because an earlier argument's rule may speak of it.
    const grouped_tensor* base = tensor_at(args_, rule_.arguments[rule_.base].offset);
    base_dtype_ = base->dtype;
    out_.device = arguments_[0].tensor->device;
    for (int i = 0; i < count_; ++i) {
      const Argument& a = arguments_[i];
      if (!(shape(a) && dtype(a) && device(a) && contiguous(a) && no_grad(a))) return std::move(refusal_);
    }
    out_.base = static_cast<DType>(base_dtype_);
    if (!(all(&Checker::allocated) && all(&Checker::aligned) && all(&Checker::apart)))
      return std::move(refusal_);
    return Status();
  }

 private:
  // The checks say whether all is well, and keep what they refuse: a Status each would be most of their cost.
  bool refuse(int32_t code, std::string message) {
    refusal_ = Status(code, std::move(message));
    return false;
  }

  bool all(bool (Checker::*check)(const Argument&)) {
    for (int i = 0; i < count_; ++i) {
      if (!(this->*check)(arguments_[i])) return false;
    }
    return true;
  }

  bool shape(const Argument& a) {
    const int rank = static_cast<int>(std::char_traits<char>::length(a.dims));
    bool fits = a.tensor->rank == rank;
    for (int i = 0; fits && i < rank; ++i) {
      const int64_t given = a.tensor->shape[i];
      fits = given >= 0 && (!out_.dims.has(a.dims[i]) || out_.dims[a.dims[i]] == given);
      if (a.dims[i] == 'H' && gated_ && given % 2 != 0) fits = false;
    }
    if (!fits) return fail(GROUPED_BAD_VALUE, a);
    for (int i = 0; i < rank; ++i) {
      out_.dims.bind(a.dims[i], a.tensor->shape[i]);
      if (a.dims[i] == 'H') out_.dims.bind('F', gated_ ? a.tensor->shape[i] / 2 : a.tensor->shape[i]);
    }
    return true;
  }

  bool dtype(const Argument& a) {
    const int32_t given = a.tensor->dtype;
    const bool narrow = base_dtype_ == GROUPED_F16 || base_dtype_ == GROUPED_BF16;
    bool fits = false;
    switch (a.rule->dtype) {
      case DTypeRule::kBase:
        fits = computes_on(given);
        break;
      case DTypeRule::kSame:
        fits = given == base_dtype_;
        break;
      case DTypeRule::kSameOrAccumulator:
        // A base that is itself unfit is reported at its own argument, which may come later.
        fits = computes_on(given) &&
               (given == base_dtype_ || (narrow && given == GROUPED_F32) || !computes_on(base_dtype_));
        if (std::string_view(a.rule->name) == "row_scale") row_scale_dtype_ = given;
        break;
      case DTypeRule::kSizes:
        fits = given == GROUPED_I32 || given == GROUPED_I64;
        break;
      case DTypeRule::kRowScale:
        fits = given == row_scale_dtype_;
        break;
    }
    return fits || fail(GROUPED_BAD_TYPE, a);
  }

  bool device(const Argument& a) {
    if (a.tensor->device == out_.device) return true;
    return refuse(GROUPED_BAD_VALUE, std::string(a.name()) + " must be on " + device_words(out_.device) +
                                         ", as " + arguments_[0].name() + " is; got " +
                                         device_words(a.tensor->device) + ". Move it before the call.");
  }

  bool contiguous(const Argument& a) {
    if (is_contiguous(*a.tensor)) return true;
    return refuse(GROUPED_BAD_VALUE,
                  std::string(a.name()) + " must be contiguous; got shape " +
                      list_words(a.tensor->shape, a.tensor->rank) + " with strides " +
                      list_words(a.tensor->strides, a.tensor->rank) + ". " +
                      (a.rule->buffer ? "Pass a contiguous buffer" : "Pass a contiguous copy") + ".");
  }

  bool no_grad(const Argument& a) {
    if (!a.rule->buffer || (a.tensor->flags & GROUPED_TENSOR_REQUIRES_GRAD) == 0) return true;
    return refuse(GROUPED_BAD_VALUE,
                  std::string(a.name()) +
                      " must not require grad: it is memory to write into; got a tensor that "
                      "does. Pass " +
                      a.name() + ".detach().");
  }

  bool has_bytes(const Argument& a) const {
    return (a.tensor->flags & GROUPED_TENSOR_NO_DATA) == 0 && bytes_of(*a.tensor) > 0;
  }

  // A framework can free what a tensor points to and keep the tensor.
  bool allocated(const Argument& a) {
    if (!has_bytes(a) || a.tensor->data != nullptr) return true;
    return refuse(GROUPED_BAD_VALUE, std::string(a.name()) +
                                         " must have memory; got a tensor whose storage was freed. "
                                         "Allocate or gather it before the call.");
  }

  bool aligned(const Argument& a) {
    if (!a.rule->buffer || !has_bytes(a)) return true;
    const auto address = reinterpret_cast<uintptr_t>(a.tensor->data);
    if (address % kBufferAlignment == 0) return true;
    return refuse(GROUPED_BAD_VALUE,
                  std::string(a.name()) + " must be 16-byte aligned; got an address " +
                      std::to_string(address % kBufferAlignment) +
                      " bytes past a multiple of 16. Begin it at the start of an allocation.");
  }

  bool apart(const Argument& a) {
    if (!a.rule->buffer || !has_bytes(a)) return true;
    const auto begin = reinterpret_cast<uintptr_t>(a.tensor->data);
    const auto end = begin + static_cast<uintptr_t>(bytes_of(*a.tensor));
    for (int i = 0; i < count_; ++i) {
      const Argument& other = arguments_[i];
      if (&other == &a || !has_bytes(other)) continue;
      const auto other_begin = reinterpret_cast<uintptr_t>(other.tensor->data);
      const auto other_end = other_begin + static_cast<uintptr_t>(bytes_of(*other.tensor));
      if (begin < other_end && other_begin < end) {
        return refuse(GROUPED_BAD_VALUE, std::string(a.name()) + " must not overlap " + other.name() +
                                             "; got memory that they share. Pass memory of its own.");
      }
    }
    return true;
  }

  bool fail(int32_t code, const Argument& a) {
    return refuse(code, std::string(a.name()) + " must be " + expected_words(a) + "; got " +
                            given_words(*a.tensor) + "." + way_out(a));
  }

  std::string expected_words(const Argument& a) const {
    std::string text = "[";
    for (const char* d = a.dims; *d != '\0'; ++d) {
      if (d != a.dims) text += ", ";
      text += *d == 'H' && gated_ ? "2F" : *d == 'H' ? "F" : std::string(1, *d);
      if (out_.dims.has(*d)) text += "=" + std::to_string(out_.dims[*d]);
    }
    text += "] " + dtype_rule_words(a.rule->dtype, base_dtype_, row_scale_dtype_);
    return a.rule->buffer ? text + ", contiguous, 16-byte aligned" : text;
  }

  std::string way_out(const Argument& a) const {
    std::string text;
    if (std::string_view(a.rule->dims[GROUPED_GNK]) != a.rule->dims[GROUPED_GKN]) {
      text = layout_ == GROUPED_GNK
                 ? " The layout assumed is weight_layout=\"gnk\"; \"gkn\" reads [G, K, N]."
                 : " The layout assumed is weight_layout=\"gkn\"; \"gnk\" reads [G, N, K].";
    }
    if (a.rule->buffer && a.rule->optional)
      text += std::string(" Pass ") + a.name() + "=None to do without it.";
    return text;
  }

  const OperationRule& rule_;
  const void* args_;
  const int32_t layout_;
  const bool gated_;
  Checked& out_;
  Argument arguments_[8];
  int count_ = 0;
  int32_t base_dtype_ = GROUPED_OTHER;
  int32_t row_scale_dtype_ = GROUPED_OTHER;
  Status refusal_;
};

}  // namespace

bool is_contiguous(const grouped_tensor& t) {
  int64_t expected = 1;
  for (int i = 0; i < t.rank; ++i) {
    if (t.shape[i] == 0) return true;
  }
  for (int i = t.rank - 1; i >= 0; --i) {
    if (t.shape[i] != 1 && t.strides[i] != expected) return false;
    expected *= t.shape[i];
  }
  return true;
}

Status check_arguments(const OperationRule& rule, const void* args, int32_t weight_layout, bool gated,
                       Checked* out) {
  *out = Checked();
  return Checker(rule, args, weight_layout, gated, out).run();
}

}  // namespace grouped
