#include <cmath>

#include "atb/base.h"

namespace atb_double {
namespace {

using atb::infer::RmsNormParam;

Status check(const RmsNormParam& param) {
  const auto refused = [](const std::string& why) { return refuse(atb::ERROR_INVALID_PARAM, "RmsNorm", why); };
  if (!all_zero(param.rsv) || !all_zero(param.normParam.rsv) || !all_zero(param.preNormParam.rsv) ||
      !all_zero(param.postNormParam.rsv)) {
    return refused("rsv is not zero");
  }
  if (param.layerType < RmsNormParam::RMS_NORM_NORM || param.layerType > RmsNormParam::RMS_NORM_POSTNORM) {
    return refused("layerType " + std::to_string(param.layerType));
  }
  if (param.normParam.epsilon == 0.0F || param.normParam.layerNormEps == 0.0 || param.preNormParam.epsilon == 0.0F ||
      param.postNormParam.epsilon == 0.0F) {
    return refused("an epsilon is zero; those of unused layer types count too");
  }
  if (param.normParam.quantType != atb::infer::QUANT_UNQUANT ||
      param.preNormParam.quantType != atb::infer::QUANT_UNQUANT ||
      param.postNormParam.quantType != atb::infer::QUANT_UNQUANT || param.normParam.rstd ||
      param.normParam.dynamicQuantType != atb::infer::DYNAMIC_QUANT_UNDEFINED ||
      param.normParam.modelType != RmsNormParam::LLAMA_MODEL) {
    return refused("the double runs neither quantisation, nor rstd, nor the Gemma variant");
  }
  return atb::NO_ERROR;
}

bool adds_residual(const RmsNormParam& param) { return param.layerType != RmsNormParam::RMS_NORM_NORM; }
bool has_bias(const RmsNormParam& param) { return param.preNormParam.hasBias || param.postNormParam.hasBias; }
uint32_t num_ins(const RmsNormParam& param) { return adds_residual(param) ? (has_bias(param) ? 4 : 3) : 2; }
uint32_t num_outs(const RmsNormParam& param) { return param.layerType == RmsNormParam::RMS_NORM_PRENORM ? 2 : 1; }

std::vector<Column> norm_columns(const RmsNormParam& param) {
  const std::size_t tensors = num_ins(param) + num_outs(param);
  return param.normParam.precisionMode == RmsNormParam::HIGH_PERFORMANCE_MODE
             ? uniform({ACL_FLOAT16}, tensors)
             : uniform({ACL_FLOAT16, ACL_BF16}, tensors);
}

class RmsNorm final : public LeafOp {
 public:
  explicit RmsNorm(const RmsNormParam& param)
      : LeafOp("RmsNormOperation", num_ins(param), num_outs(param), norm_columns(param)), param_(param) {}

 private:
  Status infer(Descs ins, std::span<TensorDesc> outs) const override {
    const TensorDesc& x = ins[0];
    const int64_t width = last_dim(x);
    const auto fits_width = [&](const TensorDesc& desc) {
      return last_dim(desc) == width && num_elements(desc) == width;
    };
    if (!fits_width(ins.back())) {
      return refuse(atb::ERROR_INVALID_TENSOR_DIM, "gamma is " + to_string(ins.back()) + " for x " + to_string(x));
    }
    if (static_cast<uint64_t>(width) * element_bytes(x.dtype) % 32 != 0) {
      return refuse(atb::ERROR_INVALID_TENSOR_DIM, "the last dimension of " + to_string(x) + " is not 32-byte aligned");
    }
    if (adds_residual(param_) && !same(x, ins[ins.size() - 2])) {
      return refuse(atb::ERROR_INVALID_TENSOR_DIM,
                    "the residual is " + to_string(ins[ins.size() - 2]) + " for x " + to_string(x));
    }
    if (ins.size() == 4 && !fits_width(ins[1])) {
      return refuse(atb::ERROR_INVALID_TENSOR_DIM, "bias is " + to_string(ins[1]) + " for x " + to_string(x));
    }
    for (TensorDesc& out : outs) {
      out = x;
    }
    return atb::NO_ERROR;
  }

  Status prepare(std::span<const Slot>, Program&, Launch& launch) const override {
    const float epsilon = param_.layerType == RmsNormParam::RMS_NORM_NORM      ? param_.normParam.epsilon
                          : param_.layerType == RmsNormParam::RMS_NORM_PRENORM ? param_.preNormParam.epsilon
                                                                               : param_.postNormParam.epsilon;
    launch.kernel = [epsilon, residual = adds_residual(param_)](std::span<const View> ins, std::span<const View> outs) {
      std::vector<float> x = load_all(ins[0]);
      const std::vector<float> gamma = load_all(ins.back());
      const std::size_t width = gamma.size();
      const std::vector<float> bias = ins.size() == 4 ? load_all(ins[1]) : std::vector<float>(width, 0.0F);
      if (residual) {
        const std::vector<float> added = load_all(ins[ins.size() - 2]);
        for (std::size_t i = 0; i < x.size(); ++i) {
          x[i] += bias[i % width] + added[i];
        }
      }
      std::vector<float> y(x.size());
      for (std::size_t row = 0; row < x.size(); row += width) {
        double squares = 0;
        for (std::size_t i = 0; i < width; ++i) {
          squares += double{x[row + i]} * double{x[row + i]};
        }
        const auto factor = static_cast<float>(1.0 / std::sqrt(squares / static_cast<double>(width) + double{epsilon}));
        for (std::size_t i = 0; i < width; ++i) {
          y[row + i] = x[row + i] * factor * gamma[i];
        }
      }
      store(outs[0], 0, y);
      if (outs.size() == 2) {
        store(outs[1], 0, x);
      }
    };
    return atb::NO_ERROR;
  }

  RmsNormParam param_;
};

}  // namespace
}  // namespace atb_double

template <>
atb::Status atb::CreateOperation(const infer::RmsNormParam& param, Operation** operation) {
  using namespace atb_double;
  return create_operation(param, operation, check, [&] { return new RmsNorm(param); });
}
