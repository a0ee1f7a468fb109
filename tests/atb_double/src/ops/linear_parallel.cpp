#include "acl/state.h"
#include "collectives.h"
#include "matmul.h"

namespace atb_double {
namespace {

using Param = atb::infer::LinearParallelParam;

bool is_power_of_two(int value) { return value > 0 && (value & (value - 1)) == 0; }

Status check(const Param& param) {
  const auto refused = [](const std::string& why) { return refuse(atb::ERROR_INVALID_PARAM, "LinearParallel", why); };
  if (!opapi_is_there()) {
    return refuse(atb::ERROR_CANN_ERROR, "LinearParallel", "$ASCEND_HOME_PATH/lib64/libopapi.so cannot be loaded");
  }
  if (param.backend != "hccl" && param.backend != "lccl" && param.backend != "lcoc") {
    return refused("backend '" + param.backend + "': hccl, lccl or lcoc expected");
  }
  if (param.backend == "lcoc" && (!is_910b() || !is_power_of_two(param.rankSize))) {
    return refused("lcoc needs a 910B and a power of two of ranks");
  }
  if (param.type != Param::LINEAR_ALL_REDUCE || param.keepIntermediate ||
      param.quantType != Param::QUANT_TYPE_UNQUANT || param.outDataType != ACL_DT_UNDEFINED) {
    return refused("the double runs LINEAR_ALL_REDUCE without quantisation");
  }
  return check_ranks("LinearParallel", param);
}

std::vector<Column> parallel_columns(bool has_residual) {
  std::vector<Column> made = matmul_columns(has_residual, /*float_without_bias=*/false);
  std::erase_if(made, [](const Column& column) { return column.size() == 4 && column[2].dtype == ACL_FLOAT; });
  return made;
}

class LinearParallel final : public LeafOp {
 public:
  explicit LinearParallel(const Param& param)
      : LeafOp("LinearParallelOperation", param.hasResidual ? 3 : 2, 1, parallel_columns(param.hasResidual)),
        ranks_(Ranks::of(param)),
        matmul_{false, param.transWeight} {}

 private:
  Status infer(Descs ins, std::span<TensorDesc> outs) const override {
    return matmul_.infer(name_, ins[0], ins[1], ins.size() == 3 ? &ins[2] : nullptr, outs[0]);
  }

  // The "residual" is a bias, added once, after the sum.
  Status prepare(std::span<const Slot>, Program&, Launch& launch) const override {
    Status status = atb::NO_ERROR;
    launch.kernel = [comm = ranks_.join(name_, status), matmul = matmul_](std::span<const View> ins,
                                                                          std::span<const View> outs) {
      std::vector<float> y = all_reduce(comm.get(), "LinearParallel", "sum", matmul.run(ins[0], ins[1], nullptr));
      if (ins.size() == 3) {
        const std::vector<float> bias = load_all(ins[2]);
        for (std::size_t i = 0; i < y.size(); ++i) {
          y[i] += bias[i % bias.size()];
        }
      }
      store(outs[0], 0, y);
    };
    return status;
  }

  Ranks ranks_;
  Matmul matmul_;
};

}  // namespace
}  // namespace atb_double

template <>
atb::Status atb::CreateOperation(const infer::LinearParallelParam& param, Operation** operation) {
  using namespace atb_double;
  return create_operation(param, operation, check, [&] { return new LinearParallel(param); });
}
