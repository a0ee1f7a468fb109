// CANN before 8.2; see graph_launch_mode.cpp.
#include "backend/atb/graph_launch.h"
#include "base/error.h"

namespace lb::npu {

void use_graph_launch(atb::Context& /*context*/) {
  throw BackendError(
      "atb backend: LLM_BOOST_ATB_GRAPH_LAUNCH is set, but the CANN that llm_boost was built with has no graph launch "
      "mode; unset it, or build with CANN 8.2 or later");
}

}  // namespace lb::npu
