#include "backend/atb/agreement.h"

#include <algorithm>
#include <cstring>

#include "backend/atb/operations.h"

namespace lb::npu {
namespace {

constexpr std::int64_t kBytes = sizeof(std::int32_t);

GraphPlan gather_numbers(const Target& target) {
  GraphPlan plan;
  plan.name = "agreement";
  plan.inputs = {{"mine", Element::kI32, {1}, false, Feed::kLogits}};
  plan.outputs = {{"all", Element::kI32, {target.ranks.size, 1}, false, Feed::kLogits}};
  plan.nodes = {{"gather", GatherRanks{}, {0}, {1}, {}}};
  return plan;
}

}  // namespace

Agreement::Agreement(const Target& target, Slab& slab)
    : target_(target), offset_(slab.add(Slab::kAlignment + target.ranks.size * kBytes)) {}

void Agreement::prepare(const Slab& slab) {
  if (target_.ranks.size == 1) return;
  device_numbers_ = slab.at(offset_);
  staging_ = PinnedMemory(target_.ranks.size * kBytes, "the agreement of the ranks");
  const GraphPlan plan = gather_numbers(target_);
  launch_.name = "the agreement of the ranks";
  launch_.operation = create_operation(plan, target_);
  atb::Tensor in;
  describe(plan.inputs.front(), {}, in);
  in.deviceData = device_numbers_;
  launch_.tensors.inTensors.push_back(in);
  atb::Tensor out;
  describe(plan.outputs.front(), {}, out);
  out.deviceData = device_numbers_ + Slab::kAlignment;
  launch_.tensors.outTensors.push_back(out);
}

std::int64_t Agreement::smallest(std::int64_t mine, const Device& device, Executor& executor) {
  if (target_.ranks.size == 1) return mine;
  auto* numbers = reinterpret_cast<std::int32_t*>(staging_.data());
  numbers[0] = static_cast<std::int32_t>(mine);
  device.upload(device_numbers_, kBytes, numbers, kBytes, launch_.name);
  executor.run(launch_);
  executor.finish();
  const auto bytes = static_cast<std::size_t>(target_.ranks.size * kBytes);
  device.download(numbers, bytes, device_numbers_ + Slab::kAlignment, bytes, launch_.name);
  device.synchronize(launch_.name);
  return *std::min_element(numbers, numbers + target_.ranks.size);
}

}  // namespace lb::npu
