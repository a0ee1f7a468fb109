// Softmax over the last dimension, and Sort: the k largest of each row.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "atb/base.h"

namespace atb_double {
namespace {

using atb::infer::SoftmaxParam;
using atb::infer::SortParam;

Status check(const SoftmaxParam& param) {
  if (!all_zero(param.rsv) || param.axes.size() != 1 || param.axes[0] != -1) {
    return refuse(atb::ERROR_INVALID_PARAM, "Softmax", "zero rsv expected; the double runs axes {-1} alone");
  }
  return atb::NO_ERROR;
}

Status check(const SortParam& param) {
  if (!all_zero(param.rsv) || param.num.size() != 1 || param.num[0] <= 0) {
    return refuse(atb::ERROR_INVALID_PARAM, "Sort", "one positive num and zero rsv expected");
  }
  return atb::NO_ERROR;
}

class Softmax final : public LeafOp {
 public:
  Softmax() : LeafOp("SoftmaxOperation", 1, 1, uniform({ACL_FLOAT16, ACL_FLOAT, ACL_BF16}, 2)) {}

 private:
  Status infer(Descs ins, std::span<TensorDesc> outs) const override {
    outs[0] = ins[0];
    return atb::NO_ERROR;
  }
  Status prepare(std::span<const Slot>, Program&, Launch& launch) const override {
    launch.kernel = [](std::span<const View> ins, std::span<const View> outs) {
      std::vector<float> x = load_all(ins[0]);
      const int64_t width = last_dim(ins[0].desc);
      for (auto row = x.begin(); row != x.end(); row += width) {
        const float top = *std::max_element(row, row + width);
        std::transform(row, row + width, row, [top](float value) { return std::exp(value - top); });
        const float sum = std::accumulate(row, row + width, 0.0F);
        std::transform(row, row + width, row, [sum](float value) { return value / sum; });
      }
      store(outs[0], 0, x);
    };
    return atb::NO_ERROR;
  }
};

std::vector<Column> sort_columns() {
  return columns(
      {{ACL_FLOAT16, ACL_FLOAT16, ACL_INT32}, {ACL_BF16, ACL_BF16, ACL_INT32}, {ACL_FLOAT, ACL_FLOAT, ACL_INT32}});
}

class Sort final : public LeafOp {
 public:
  explicit Sort(int64_t count) : LeafOp("SortOperation", 1, 2, sort_columns()), count_(count) {}

 private:
  Status infer(Descs ins, std::span<TensorDesc> outs) const override {
    if (count_ > last_dim(ins[0])) {
      return refuse(atb::ERROR_INVALID_TENSOR_DIM, "num is beyond " + to_string(ins[0]));
    }
    outs[0] = ins[0];
    outs[0].shape.dims[rank(ins[0]) - 1] = count_;
    outs[1] = outs[0];
    outs[1].dtype = ACL_INT32;
    return atb::NO_ERROR;
  }
  Status prepare(std::span<const Slot>, Program&, Launch& launch) const override {
    launch.kernel = [count = count_](std::span<const View> ins, std::span<const View> outs) {
      const std::vector<float> x = load_all(ins[0]);
      const int64_t width = last_dim(ins[0].desc);
      std::vector<int32_t> order(static_cast<std::size_t>(width));
      for (int64_t row = 0; row * width < static_cast<int64_t>(x.size()); ++row) {
        const float* values = x.data() + row * width;
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [values](int32_t a, int32_t b) { return values[a] > values[b]; });
        for (int64_t i = 0; i < count; ++i) {
          const int32_t at = order[static_cast<std::size_t>(i)];
          store(outs[0], row * count + i, {values + at, 1});
          std::memcpy(outs[1].data + (row * count + i) * 4, &at, sizeof(at));
        }
      }
    };
    return atb::NO_ERROR;
  }

  int64_t count_;
};

}  // namespace
}  // namespace atb_double

namespace atb {

using namespace atb_double;

template <>
Status CreateOperation(const infer::SoftmaxParam& param, Operation** operation) {
  return create_operation<infer::SoftmaxParam>(param, operation, check, [] { return new Softmax; });
}

template <>
Status CreateOperation(const infer::SortParam& param, Operation** operation) {
  return create_operation<infer::SortParam>(param, operation, check, [&] { return new Sort(param.num[0]); });
}

}  // namespace atb
