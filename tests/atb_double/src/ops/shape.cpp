// Split, Concat, Slice and Transpose: kernels that move bytes.

#include <algorithm>
#include <cstring>
#include <numeric>

#include "atb/base.h"

namespace atb_double {
namespace {

using atb::infer::ConcatParam;
using atb::infer::SliceParam;
using atb::infer::SplitParam;
using atb::infer::TransposeParam;

Status invalid(const char* who, const std::string& why) { return refuse(atb::ERROR_INVALID_PARAM, who, why); }

// Copies extent [first, first + count) of `along` of the whole tensor to or from a part with `count` there.
void copy_part(const View& whole, const View& part, uint64_t along, int64_t first, bool to_part) {
  const int64_t count = dim(part.desc, along);
  const uint64_t inner =
      static_cast<uint64_t>(product(whole.desc, along + 1, rank(whole.desc))) * element_bytes(whole.desc.dtype);
  const int64_t outer = product(whole.desc, 0, along);
  for (int64_t i = 0; i < outer; ++i) {
    std::byte* at = whole.data + static_cast<uint64_t>(i * dim(whole.desc, along) + first) * inner;
    std::byte* other = part.data + static_cast<uint64_t>(i * count) * inner;
    const uint64_t bytes = static_cast<uint64_t>(count) * inner;
    to_part ? std::memcpy(other, at, bytes) : std::memcpy(at, other, bytes);
  }
}

Status check(const SplitParam& param) {
  if (!all_zero(param.rsv) || (param.splitNum != 2 && param.splitNum != 3)) {
    return invalid("Split", "splitNum is 2 or 3, rsv zero");
  }
  const auto count = param.splitSizes.size();
  if (count != 0 && (count != static_cast<std::size_t>(param.splitNum) || param.splitDim < 0)) {
    return invalid("Split", "splitSizes needs splitNum entries and a splitDim that is not negative");
  }
  return atb::NO_ERROR;
}

class Split final : public LeafOp {
 public:
  explicit Split(const SplitParam& param)
      : LeafOp(
            "SplitOperation", 1, static_cast<uint32_t>(param.splitNum),
            param.splitNum == 2 ? uniform({ACL_FLOAT16, ACL_INT64, ACL_BF16}, 3) : uniform({ACL_FLOAT16, ACL_BF16}, 4)),
        param_(param) {}

 private:
  Status infer(Descs ins, std::span<TensorDesc> outs) const override {
    const TensorDesc& x = ins[0];
    const int64_t along = param_.splitDim < 0 ? param_.splitDim + static_cast<int64_t>(rank(x)) : param_.splitDim;
    if (along < 0 || along >= static_cast<int64_t>(rank(x))) {
      return refuse(atb::ERROR_INVALID_TENSOR_DIM, "splitDim is beyond the rank of " + to_string(x));
    }
    const int64_t extent = dim(x, static_cast<uint64_t>(along));
    const auto& sizes = param_.splitSizes;
    const int64_t sum = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
    if (sizes.empty() ? extent % param_.splitNum != 0 : sum != extent) {
      return refuse(atb::ERROR_INVALID_TENSOR_DIM, to_string(x) + " does not split that way");
    }
    for (std::size_t i = 0; i < outs.size(); ++i) {
      outs[i] = x;
      outs[i].shape.dims[along] = sizes.empty() ? extent / param_.splitNum : sizes[i];
      if (outs[i].shape.dims[along] <= 0) {
        return refuse(atb::ERROR_INVALID_TENSOR_DIM, "a split size is not positive");
      }
    }
    return atb::NO_ERROR;
  }

  Status prepare(std::span<const Slot> ins, Program&, Launch& launch) const override {
    const auto along = static_cast<uint64_t>(
        param_.splitDim < 0 ? param_.splitDim + static_cast<int64_t>(rank(ins[0].desc)) : param_.splitDim);
    launch.kernel = [along](std::span<const View> in, std::span<const View> outs) {
      int64_t first = 0;
      for (const View& out : outs) {
        copy_part(in[0], out, along, first, /*to_part=*/true);
        first += dim(out.desc, along);
      }
    };
    return atb::NO_ERROR;
  }

  SplitParam param_;
};

Status check(const ConcatParam& param) {
  return all_zero(param.rsv) ? atb::NO_ERROR : invalid("Concat", "rsv is not zero");
}

class Concat final : public LeafOp {
 public:
  explicit Concat(const ConcatParam& param)
      : LeafOp("ConcatOperation", 2, 1, uniform({ACL_FLOAT16, ACL_BF16}, 3)), along_(param.concatDim) {}

 private:
  uint64_t along(const TensorDesc& x) const {
    return static_cast<uint64_t>(along_ < 0 ? along_ + static_cast<int64_t>(rank(x)) : along_);
  }

  Status infer(Descs ins, std::span<TensorDesc> outs) const override {
    const uint64_t at = along(ins[0]);
    TensorDesc expected = ins[0];
    if (at >= rank(ins[0]) || rank(ins[0]) != rank(ins[1])) {
      return refuse(atb::ERROR_INVALID_TENSOR_DIM, to_string(ins[0]) + " and " + to_string(ins[1]) + " do not concat");
    }
    expected.shape.dims[at] = dim(ins[1], at);
    if (!same(expected, ins[1])) {
      return refuse(atb::ERROR_INVALID_TENSOR_DIM, to_string(ins[0]) + " and " + to_string(ins[1]) + " do not concat");
    }
    outs[0] = ins[0];
    outs[0].shape.dims[at] += dim(ins[1], at);
    return atb::NO_ERROR;
  }

  Status prepare(std::span<const Slot> slots, Program&, Launch& launch) const override {
    launch.kernel = [at = along(slots[0].desc)](std::span<const View> ins, std::span<const View> outs) {
      copy_part(outs[0], ins[0], at, 0, /*to_part=*/false);
      copy_part(outs[0], ins[1], at, dim(ins[0].desc, at), /*to_part=*/false);
    };
    return atb::NO_ERROR;
  }

  int64_t along_;
};

// Writes the output element by element; `source` maps output coordinates to input coordinates.
template <typename Source>
void move_elements(const View& in, const View& out, Source source) {
  const uint64_t bytes = element_bytes(in.desc.dtype);
  int64_t at[atb::MAX_DIM] = {};
  for (int64_t i = 0; i < num_elements(out.desc); ++i) {
    int64_t rest = i;
    for (uint64_t d = rank(out.desc); d-- > 0;) {
      at[d] = rest % dim(out.desc, d);
      rest /= dim(out.desc, d);
    }
    int64_t from[atb::MAX_DIM] = {};
    source(at, from);
    int64_t index = 0;
    for (uint64_t d = 0; d < rank(in.desc); ++d) {
      index = index * dim(in.desc, d) + from[d];
    }
    std::memcpy(out.data + static_cast<uint64_t>(i) * bytes, in.data + static_cast<uint64_t>(index) * bytes, bytes);
  }
}

Status check(const TransposeParam& param) {
  return all_zero(param.rsv) ? atb::NO_ERROR : invalid("Transpose", "rsv is not zero");
}

class Transpose final : public LeafOp {
 public:
  explicit Transpose(const TransposeParam& param)
      : LeafOp("TransposeOperation", 1, 1, uniform({ACL_FLOAT16, ACL_INT64, ACL_BF16, ACL_INT8, ACL_INT32}, 2)),
        perm_(param.perm.begin(), param.perm.end()) {}

 private:
  Status infer(Descs ins, std::span<TensorDesc> outs) const override {
    std::vector<int32_t> identity(rank(ins[0]));
    std::iota(identity.begin(), identity.end(), 0);
    if (!std::is_permutation(perm_.begin(), perm_.end(), identity.begin(), identity.end())) {
      return refuse(atb::ERROR_INVALID_TENSOR_DIM,
                    "perm is not a permutation of the dimensions of " + to_string(ins[0]));
    }
    outs[0] = ins[0];
    for (std::size_t i = 0; i < perm_.size(); ++i) {
      outs[0].shape.dims[i] = ins[0].shape.dims[perm_[i]];
    }
    return atb::NO_ERROR;
  }

  Status prepare(std::span<const Slot>, Program&, Launch& launch) const override {
    launch.kernel = [perm = perm_](std::span<const View> ins, std::span<const View> outs) {
      move_elements(ins[0], outs[0], [&perm](const int64_t* at, int64_t* from) {
        for (std::size_t i = 0; i < perm.size(); ++i) {
          from[perm[i]] = at[i];
        }
      });
    };
    return atb::NO_ERROR;
  }

  std::vector<int32_t> perm_;
};

Status check(const SliceParam& param) {
  return all_zero(param.rsv) ? atb::NO_ERROR : invalid("Slice", "rsv is not zero");
}

class Slice final : public LeafOp {
 public:
  explicit Slice(const SliceParam& param)
      : LeafOp("SliceOperation", 1, 1, uniform({ACL_FLOAT16, ACL_BF16, ACL_INT8, ACL_INT32, ACL_INT64}, 2)),
        offsets_(param.offsets.begin(), param.offsets.end()),
        sizes_(param.size.begin(), param.size.end()) {}

 private:
  int64_t offset(const TensorDesc& x, std::size_t i) const {
    return offsets_[i] < 0 ? offsets_[i] + dim(x, i) : offsets_[i];
  }

  Status infer(Descs ins, std::span<TensorDesc> outs) const override {
    const TensorDesc& x = ins[0];
    if (offsets_.size() != rank(x) || sizes_.size() != rank(x)) {
      return refuse(atb::ERROR_INVALID_TENSOR_DIM,
                    "offsets and size need an entry for each dimension of " + to_string(x));
    }
    outs[0] = x;
    for (std::size_t i = 0; i < sizes_.size(); ++i) {
      const int64_t size = sizes_[i] == -1 ? dim(x, i) - offset(x, i) : sizes_[i];
      if (offset(x, i) < 0 || size <= 0 || offset(x, i) + size > dim(x, i)) {
        return refuse(atb::ERROR_INVALID_TENSOR_DIM, "the slice leaves " + to_string(x));
      }
      outs[0].shape.dims[i] = size;
    }
    return atb::NO_ERROR;
  }

  Status prepare(std::span<const Slot> slots, Program&, Launch& launch) const override {
    std::vector<int64_t> first;
    for (std::size_t i = 0; i < offsets_.size(); ++i) {
      first.push_back(offset(slots[0].desc, i));
    }
    launch.kernel = [first](std::span<const View> ins, std::span<const View> outs) {
      move_elements(ins[0], outs[0], [&first](const int64_t* at, int64_t* from) {
        for (std::size_t i = 0; i < first.size(); ++i) {
          from[i] = at[i] + first[i];
        }
      });
    };
    return atb::NO_ERROR;
  }

  std::vector<int64_t> offsets_;
  std::vector<int64_t> sizes_;
};

}  // namespace
}  // namespace atb_double

namespace atb {

using namespace atb_double;

template <>
Status CreateOperation(const infer::SplitParam& param, Operation** operation) {
  return create_operation<infer::SplitParam>(param, operation, check, [&] { return new Split(param); });
}

template <>
Status CreateOperation(const infer::ConcatParam& param, Operation** operation) {
  return create_operation<infer::ConcatParam>(param, operation, check, [&] { return new Concat(param); });
}

template <>
Status CreateOperation(const infer::TransposeParam& param, Operation** operation) {
  return create_operation<infer::TransposeParam>(param, operation, check, [&] { return new Transpose(param); });
}

template <>
Status CreateOperation(const infer::SliceParam& param, Operation** operation) {
  return create_operation<infer::SliceParam>(param, operation, check, [&] { return new Slice(param); });
}

}  // namespace atb
