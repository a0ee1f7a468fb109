#include "matmul.h"

namespace atb_double {
namespace {

using atb::infer::LinearParam;

Status check(const LinearParam& param) {
  const auto refused = [](const std::string& why) { return refuse(atb::ERROR_INVALID_PARAM, "Linear", why); };
  if (!all_zero(param.rsv)) {
    return refused("rsv is not zero");
  }
  if (param.enAccum && param.hasBias) {
    return refused("enAccum excludes bias");
  }
  if (param.matmulType == LinearParam::MATMUL_EIN_SUM && (param.hasBias || param.transposeA)) {
    return refused("MATMUL_EIN_SUM excludes bias and transposeA");
  }
  bool quantised = param.outDataType != ACL_DT_UNDEFINED;
#if ATB_DOUBLE_RELEASE >= 820
  quantised = quantised || param.quantMode != LinearParam::QUANT_UNDEFINED;
#endif
  if (quantised || param.enAccum || param.matmulType != LinearParam::MATMUL_UNDEFINED) {
    return refused("the double runs neither quantisation, nor enAccum, nor MATMUL_EIN_SUM");
  }
  return atb::NO_ERROR;
}

class Linear final : public LeafOp {
 public:
  explicit Linear(const LinearParam& param)
      : LeafOp("LinearOperation", param.hasBias ? 3 : 2, 1, matmul_columns(param.hasBias, is_910b())),
        matmul_{param.transposeA, param.transposeB} {}

 private:
  Status infer(Descs ins, std::span<TensorDesc> outs) const override {
    return matmul_.infer(name_, ins[0], ins[1], ins.size() == 3 ? &ins[2] : nullptr, outs[0]);
  }

  Status prepare(std::span<const Slot>, Program&, Launch& launch) const override {
    launch.kernel = [matmul = matmul_](std::span<const View> ins, std::span<const View> outs) {
      store(outs[0], 0, matmul.run(ins[0], ins[1], ins.size() == 3 ? &ins[2] : nullptr));
    };
    return atb::NO_ERROR;
  }

  Matmul matmul_;
};

}  // namespace
}  // namespace atb_double

template <>
atb::Status atb::CreateOperation(const infer::LinearParam& param, Operation** operation) {
  using namespace atb_double;
  return create_operation(param, operation, check, [&] { return new Linear(param); });
}
