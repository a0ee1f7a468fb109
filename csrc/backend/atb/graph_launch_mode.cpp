// CANN 8.2 and later; see graph_launch_absent.cpp.
#include "backend/atb/graph_launch.h"
#include "backend/atb/status.h"

namespace lb::npu {

void use_graph_launch(atb::Context& context) {
  check_atb(context.SetLaunchMode(atb::GRAPH_LAUNCH_MODE), "SetLaunchMode", "decoding");
}

}  // namespace lb::npu
