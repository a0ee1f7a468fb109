// What the Ascend backend tells ATB, without ATB.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "backend/atb/model_plan.h"
#include "model/model.h"

namespace py = pybind11;
using namespace py::literals;
using namespace lb;

void bind_atb(py::module_& m) {
  m.def(
      "atb_plan",
      [](const ModelConfig& config, std::string_view dtype, std::int64_t rank, std::int64_t ranks, bool nz_weights,
         bool is_310p, std::int64_t block_size, std::string communication) {
        npu::Target target;
        target.dtype = parse_dtype(dtype, "dtype");
        target.ranks = {rank, ranks};
        target.communication = std::move(communication);
        target.nz_weights = nz_weights;
        target.is_310p = is_310p;
        ProgramOptions options;
        options.block_size = block_size;
        target.max_tokens = options.max_tokens;
        return to_string(npu::plan_model(build_model(config), target, options));
      },
      "config"_a, "dtype"_a = "float16", py::kw_only(), "rank"_a = 0, "ranks"_a = 1, "nz_weights"_a = false,
      "is_310p"_a = false, "block_size"_a = 128, "communication"_a = "lccl");
}
