#include <cstring>

#include "atb/base.h"

namespace atb_double {
namespace {

using atb::infer::GatherParam;

Status check(const GatherParam& param) {
  if (!all_zero(param.rsv) || param.axis < 0 || param.batchDims < 0 || param.batchDims > param.axis) {
    return refuse(atb::ERROR_INVALID_PARAM, "Gather", "0 <= batchDims <= axis and zero rsv expected");
  }
  return atb::NO_ERROR;
}

std::vector<Column> gather_columns() {
  std::vector<Column> made;
  for (const aclDataType x : {ACL_FLOAT16, ACL_BF16, ACL_FLOAT, ACL_INT32, ACL_UINT32, ACL_INT64}) {
    for (const aclDataType indices : {ACL_INT64, ACL_INT32, ACL_UINT32}) {
      made.push_back({{x}, {indices}, {x}});
    }
  }
  return made;
}

class Gather final : public LeafOp {
 public:
  explicit Gather(const GatherParam& param) : LeafOp("GatherOperation", 2, 1, gather_columns()), param_(param) {}

 private:
  Status infer(Descs ins, std::span<TensorDesc> outs) const override {
    const TensorDesc& x = ins[0];
    const TensorDesc& indices = ins[1];
    const auto axis = static_cast<uint64_t>(param_.axis);
    const auto batch = static_cast<uint64_t>(param_.batchDims);
    if (axis >= rank(x) || batch > rank(indices)) {
      return refuse(atb::ERROR_INVALID_TENSOR_DIM, "axis is beyond the rank of " + to_string(x));
    }
    const uint64_t out_rank = rank(x) - 1 + rank(indices) - batch;
    if (out_rank > atb::MAX_DIM) {
      return refuse(atb::ERROR_INVALID_TENSOR_DIM, "the output would have rank " + std::to_string(out_rank));
    }
    outs[0] = described(x.dtype, x.format, {});
    Dims& shape = outs[0].shape;
    const auto add = [&shape](const TensorDesc& from, uint64_t begin, uint64_t end) {
      for (uint64_t i = begin; i < end; ++i) {
        shape.dims[shape.dimNum++] = dim(from, i);
      }
    };
    add(x, 0, axis);
    add(indices, batch, rank(indices));
    add(x, axis + 1, rank(x));
    return atb::NO_ERROR;
  }

  Status prepare(std::span<const Slot>, Program&, Launch& launch) const override {
    const auto axis = static_cast<uint64_t>(param_.axis);
    const auto batch_dims = static_cast<uint64_t>(param_.batchDims);
    launch.kernel = [axis, batch_dims](std::span<const View> ins, std::span<const View> outs) {
      const TensorDesc& x = ins[0].desc;
      const std::vector<int64_t> indices = load_integers(ins[1]);
      const int64_t batches = product(x, 0, batch_dims);
      const int64_t middle = product(x, batch_dims, axis);
      const int64_t count = static_cast<int64_t>(indices.size()) / batches;
      const uint64_t bytes = static_cast<uint64_t>(product(x, axis + 1, rank(x))) * element_bytes(x.dtype);
      std::byte* to = outs[0].data;
      for (int64_t outer = 0; outer < batches * middle; ++outer) {
        for (int64_t i = 0; i < count; ++i) {
          const int64_t index = indices[static_cast<std::size_t>(outer / middle * count + i)];
          if (index < 0 || index >= dim(x, axis)) {
            throw DeviceFault("index " + std::to_string(index) + " is outside " + to_string(x));
          }
          std::memcpy(to, ins[0].data + static_cast<uint64_t>(outer * dim(x, axis) + index) * bytes, bytes);
          to += bytes;
        }
      }
    };
    return atb::NO_ERROR;
  }

  GatherParam param_;
};

}  // namespace
}  // namespace atb_double

template <>
atb::Status atb::CreateOperation(const infer::GatherParam& param, Operation** operation) {
  using namespace atb_double;
  return create_operation(param, operation, check, [&] { return new Gather(param); });
}
