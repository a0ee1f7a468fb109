// Elewise and Activation.

#include <cmath>
#include <algorithm>

#include "atb/base.h"

namespace atb_double {
namespace {

using atb::infer::ActivationParam;
using atb::infer::ElewiseParam;
using Binary = float (*)(float, float);
using Unary = std::function<float(float)>;

bool is_binary(ElewiseParam::ElewiseType type) {
  return type == ElewiseParam::ELEWISE_ADD || type == ElewiseParam::ELEWISE_MUL ||
         type == ElewiseParam::ELEWISE_REALDIV || type == ElewiseParam::ELEWISE_SUB;
}

std::vector<Column> cast_columns(aclDataType to) {
  switch (to) {
    case ACL_FLOAT: return columns({{ACL_FLOAT16, ACL_FLOAT}, {ACL_BF16, ACL_FLOAT}});
    case ACL_FLOAT16:
    case ACL_BF16: return columns({{ACL_FLOAT, to}});
    case ACL_INT32: return columns({{ACL_INT64, to}});
    case ACL_INT64: return columns({{ACL_INT32, to}});
    default: return {};
  }
}

std::vector<Column> elewise_columns(const ElewiseParam& param) {
  switch (param.elewiseType) {
    case ElewiseParam::ELEWISE_CAST: return cast_columns(param.outTensorType);
    case ElewiseParam::ELEWISE_ADD: return uniform({ACL_FLOAT16, ACL_FLOAT, ACL_BF16, ACL_INT32, ACL_INT64}, 3);
    case ElewiseParam::ELEWISE_MUL: return uniform({ACL_FLOAT16, ACL_BF16}, 3);
    case ElewiseParam::ELEWISE_SUB: return uniform({ACL_FLOAT16, ACL_BF16, ACL_INT64}, 3);
    case ElewiseParam::ELEWISE_REALDIV: return uniform({ACL_FLOAT16, ACL_FLOAT, ACL_BF16}, 3);
    case ElewiseParam::ELEWISE_MULS:
    case ElewiseParam::ELEWISE_COS:
    case ElewiseParam::ELEWISE_SIN:
    case ElewiseParam::ELEWISE_NEG:
    case ElewiseParam::ELEWISE_TANH: return uniform({ACL_FLOAT16, ACL_FLOAT, ACL_BF16}, 2);
    default: return {};
  }
}

Status check(const ElewiseParam& param) {
  const auto refused = [](const std::string& why) { return refuse(atb::ERROR_INVALID_PARAM, "Elewise", why); };
  if (!opapi_is_there()) {
    return refuse(atb::ERROR_CANN_ERROR, "Elewise", "$ASCEND_HOME_PATH/lib64/libopapi.so cannot be loaded");
  }
  if (!all_zero(param.rsv) || !all_zero(param.quantParam.rsv) || !all_zero(param.mulsParam.rsv)) {
    return refused("rsv is not zero");
  }
  if (elewise_columns(param).empty()) {
    return refused("the double does not run type " + std::to_string(param.elewiseType) + " with outTensorType " +
                   std::to_string(param.outTensorType));
  }
  return atb::NO_ERROR;
}

Unary unary_function(const ElewiseParam& param) {
  switch (param.elewiseType) {
    case ElewiseParam::ELEWISE_MULS: return [factor = param.mulsParam.varAttr](float x) { return x * factor; };
    case ElewiseParam::ELEWISE_COS: return [](float x) { return std::cos(x); };
    case ElewiseParam::ELEWISE_SIN: return [](float x) { return std::sin(x); };
    case ElewiseParam::ELEWISE_NEG: return [](float x) { return -x; };
    case ElewiseParam::ELEWISE_TANH: return [](float x) { return std::tanh(x); };
    default: return [](float x) { return x; };
  }
}

Binary binary_function(ElewiseParam::ElewiseType type) {
  switch (type) {
    case ElewiseParam::ELEWISE_MUL: return [](float a, float b) { return a * b; };
    case ElewiseParam::ELEWISE_REALDIV: return [](float a, float b) { return a / b; };
    case ElewiseParam::ELEWISE_SUB: return [](float a, float b) { return a - b; };
    default: return [](float a, float b) { return a + b; };
  }
}

// The extent of a dimension counted from the last; 1 beyond the rank.
int64_t extent_from_end(const TensorDesc& desc, uint64_t i) {
  return i < rank(desc) ? dim(desc, rank(desc) - 1 - i) : 1;
}

std::size_t broadcast_index(const TensorDesc& out, const TensorDesc& in, int64_t index) {
  int64_t position = 0;
  int64_t stride = 1;
  for (uint64_t i = 0; i < rank(out); ++i) {
    const int64_t extent = extent_from_end(in, i);
    position += extent == 1 ? 0 : index % extent_from_end(out, i) * stride;
    index /= extent_from_end(out, i);
    stride *= extent;
  }
  return static_cast<std::size_t>(position);
}

class Elewise final : public LeafOp {
 public:
  explicit Elewise(const ElewiseParam& param)
      : LeafOp("ElewiseOperation", is_binary(param.elewiseType) ? 2 : 1, 1, elewise_columns(param)), param_(param) {}

 private:
  Status infer(Descs ins, std::span<TensorDesc> outs) const override {
    outs[0] = ins[0];
    if (param_.elewiseType == ElewiseParam::ELEWISE_CAST) {
      outs[0].dtype = param_.outTensorType;
    }
    if (ins.size() == 2) {
      Dims& shape = outs[0].shape;
      shape.dimNum = std::max(rank(ins[0]), rank(ins[1]));
      for (uint64_t i = 0; i < shape.dimNum; ++i) {
        const int64_t a = extent_from_end(ins[0], i);
        const int64_t b = extent_from_end(ins[1], i);
        if (a != b && a != 1 && b != 1) {
          return refuse(atb::ERROR_INVALID_TENSOR_DIM,
                        to_string(ins[0]) + " and " + to_string(ins[1]) + " do not broadcast");
        }
        shape.dims[shape.dimNum - 1 - i] = std::max(a, b);
      }
    }
    return atb::NO_ERROR;
  }

  Status prepare(std::span<const Slot> slots, Program&, Launch& launch) const override {
    if (slots.size() == 2) {
      launch.kernel = [apply = binary_function(param_.elewiseType)](std::span<const View> ins,
                                                                    std::span<const View> outs) {
        const std::vector<float> a = load_all(ins[0]);
        const std::vector<float> b = load_all(ins[1]);
        std::vector<float> y(static_cast<std::size_t>(num_elements(outs[0].desc)));
        for (std::size_t i = 0; i < y.size(); ++i) {
          const auto index = static_cast<int64_t>(i);
          y[i] = apply(a[broadcast_index(outs[0].desc, ins[0].desc, index)],
                       b[broadcast_index(outs[0].desc, ins[1].desc, index)]);
        }
        store(outs[0], 0, y);
      };
    } else {
      launch.kernel = [apply = unary_function(param_)](std::span<const View> ins, std::span<const View> outs) {
        std::vector<float> x = load_all(ins[0]);
        for (float& value : x) {
          value = apply(value);
        }
        store(outs[0], 0, x);
      };
    }
    return atb::NO_ERROR;
  }

  ElewiseParam param_;
};

float silu(float x) { return x / (1.0F + std::exp(-x)); }

Status check(const ActivationParam& param) {
  const auto refused = [](const std::string& why) { return refuse(atb::ERROR_INVALID_PARAM, "Activation", why); };
  if (!all_zero(param.rsv) || param.dim != -1) {
    return refused("dim -1 and zero rsv expected");
  }
  switch (param.activationType) {
    case atb::infer::ACTIVATION_RELU:
    case atb::infer::ACTIVATION_SWISH:
    case atb::infer::ACTIVATION_SIGMOID: return atb::NO_ERROR;
    case atb::infer::ACTIVATION_SWIGLU_FORWARD:
      return is_910b() ? atb::NO_ERROR : refused("SWIGLU_FORWARD needs a 910B");
    default: return refused("the double does not run type " + std::to_string(param.activationType));
  }
}

class Activation final : public LeafOp {
 public:
  explicit Activation(const ActivationParam& param)
      : LeafOp("ActivationOperation", 1, 1,
               param.activationType == atb::infer::ACTIVATION_SWISH ? uniform({ACL_FLOAT16, ACL_BF16}, 2)
                                                                    : uniform({ACL_FLOAT16, ACL_BF16, ACL_FLOAT}, 2)),
        param_(param) {}

 private:
  bool is_swiglu() const { return param_.activationType == atb::infer::ACTIVATION_SWIGLU_FORWARD; }

  Status infer(Descs ins, std::span<TensorDesc> outs) const override {
    outs[0] = ins[0];
    if (is_swiglu()) {
      if (last_dim(ins[0]) % 2 != 0) {
        return refuse(atb::ERROR_INVALID_TENSOR_DIM, "the last dimension of " + to_string(ins[0]) + " is odd");
      }
      outs[0].shape.dims[rank(ins[0]) - 1] /= 2;
    }
    return atb::NO_ERROR;
  }

  Status prepare(std::span<const Slot>, Program&, Launch& launch) const override {
    launch.kernel = [swiglu = is_swiglu(), param = param_](std::span<const View> ins, std::span<const View> outs) {
      const std::vector<float> x = load_all(ins[0]);
      std::vector<float> y(static_cast<std::size_t>(num_elements(outs[0].desc)));
      const auto width = static_cast<std::size_t>(last_dim(outs[0].desc));
      for (std::size_t i = 0; i < y.size(); ++i) {
        const std::size_t gate = swiglu ? i / width * 2 * width + i % width : i;
        switch (param.activationType) {
          case atb::infer::ACTIVATION_SWIGLU_FORWARD: y[i] = silu(x[gate]) * x[gate + width]; break;
          case atb::infer::ACTIVATION_SWISH: y[i] = x[i] / (1.0F + std::exp(-param.scale * x[i])); break;
          case atb::infer::ACTIVATION_SIGMOID: y[i] = 1.0F / (1.0F + std::exp(-x[i])); break;
          default: y[i] = std::fmax(x[i], 0.0F); break;
        }
      }
      store(outs[0], 0, y);
    };
    return atb::NO_ERROR;
  }

  ActivationParam param_;
};

}  // namespace
}  // namespace atb_double

namespace atb {

using namespace atb_double;

template <>
Status CreateOperation(const infer::ElewiseParam& param, Operation** operation) {
  return create_operation<infer::ElewiseParam>(param, operation, check, [&] { return new Elewise(param); });
}

template <>
Status CreateOperation(const infer::ActivationParam& param, Operation** operation) {
  return create_operation<infer::ActivationParam>(param, operation, check, [&] { return new Activation(param); });
}

}  // namespace atb
