#include "atb/base.h"

namespace atb_double {
namespace {

using atb::infer::RopeParam;

Status check(const RopeParam& param) {
  if (!all_zero(param.rsv) || param.cosFormat != 0) {
    return refuse(atb::ERROR_INVALID_PARAM, "Rope", "zero rsv expected; the double runs cosFormat 0 alone");
  }
  return atb::NO_ERROR;
}

// q, k, cos, sin, seqLen -> q, k.
std::vector<Column> rope_columns() {
  std::vector<Column> made;
  for (const aclDataType length : {ACL_INT32, ACL_UINT32}) {
    for (const auto& [x, table] :
         {std::pair{ACL_FLOAT16, ACL_FLOAT16}, {ACL_FLOAT16, ACL_FLOAT}, {ACL_BF16, ACL_BF16}}) {
      made.push_back({{x}, {x}, {table}, {table}, {length}, {x}, {x}});
    }
  }
  return made;
}

// [T, heads * D], or [b, s, heads, D]: one row a token.
int64_t row_width(const TensorDesc& x) { return rank(x) == 4 ? dim(x, 2) * dim(x, 3) : dim(x, 1); }

// Rotates pairs (i, i + half) for coefficient 2; pairs (2i, 2i + 1) when it equals the head size.
void rotate(const View& x, const View& out, const std::vector<float>& cos, const std::vector<float>& sin,
            std::size_t head, bool halves) {
  const std::vector<float> in = load_all(x);
  std::vector<float> y(in.size());
  const auto width = static_cast<std::size_t>(row_width(x.desc));
  for (std::size_t i = 0; i < in.size(); ++i) {
    const std::size_t d = i % head;
    const std::size_t row = i / width;
    const bool first = halves ? d < head / 2 : d % 2 == 0;
    const std::size_t distance = halves ? head / 2 : 1;
    const float partner = first ? -in[i + distance] : in[i - distance];
    y[i] = in[i] * cos[row * head + d] + partner * sin[row * head + d];
  }
  store(out, 0, y);
}

class Rope final : public LeafOp {
 public:
  explicit Rope(const RopeParam& param) : LeafOp("RopeOperation", 5, 2, rope_columns()), param_(param) {}

 private:
  Status infer(Descs ins, std::span<TensorDesc> outs) const override {
    for (std::size_t i = 0; i < 2; ++i) {
      if (rank(ins[i]) != 2 && rank(ins[i]) != 4) {
        return refuse(atb::ERROR_INVALID_TENSOR_DIM_NUM, "q and k need rank 2 or 4, found " + to_string(ins[i]));
      }
    }
    if (rank(ins[2]) != 2 || !same(ins[2], ins[3]) || rank(ins[4]) != 1) {
      return refuse(atb::ERROR_INVALID_TENSOR_DIM_NUM,
                    "cos " + to_string(ins[2]) + " and sin " + to_string(ins[3]) + " [T, D] and seqLen [b] expected");
    }
    const int64_t head = dim(ins[2], 1);
    const int64_t q_width = row_width(ins[0]);
    const int64_t k_width = row_width(ins[1]);
    if (q_width % head != 0 || k_width % head != 0 || (q_width / head) % (k_width / head) != 0) {
      return refuse(atb::ERROR_INVALID_TENSOR_DIM, "q " + to_string(ins[0]) + " and k " + to_string(ins[1]) +
                                                       " are not heads of " + std::to_string(head));
    }
    if (param_.rotaryCoeff != 2 && param_.rotaryCoeff != head) {
      return refuse(atb::ERROR_INVALID_PARAM,
                    "rotaryCoeff " + std::to_string(param_.rotaryCoeff) + ": the double runs 2 and the head size");
    }
    outs[0] = ins[0];
    outs[1] = ins[1];
    return atb::NO_ERROR;
  }

  Status prepare(std::span<const Slot> ins, Program&, Launch& launch) const override {
    const TensorDesc& q = ins[0].desc;
    const int64_t tokens = num_elements(q) / row_width(q);
    if (dim(ins[2].desc, 0) != tokens || num_elements(ins[1].desc) / row_width(ins[1].desc) != tokens) {
      warn_silent("cos has " + std::to_string(dim(ins[2].desc, 0)) + " rows for " + std::to_string(tokens) + " tokens");
      launch.kernel = [](std::span<const View>, std::span<const View>) { throw DeviceFault("rows of cos != tokens"); };
      return atb::NO_ERROR;
    }
    launch.kernel = [halves = param_.rotaryCoeff == 2](std::span<const View> in, std::span<const View> outs) {
      const std::vector<float> cos = load_all(in[2]);
      const std::vector<float> sin = load_all(in[3]);
      const auto head = static_cast<std::size_t>(dim(in[2].desc, 1));
      rotate(in[0], outs[0], cos, sin, head, halves);
      rotate(in[1], outs[1], cos, sin, head, halves);
    };
    return atb::NO_ERROR;
  }

  RopeParam param_;
};

}  // namespace
}  // namespace atb_double

template <>
atb::Status atb::CreateOperation(const infer::RopeParam& param, Operation** operation) {
  using namespace atb_double;
  return create_operation(param, operation, check, [&] { return new Rope(param); });
}
