// What a program keeps on the device besides weights and cache and never changes: rope tables and masks.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/atb/plan.h"
#include "graph/graph.h"

namespace lb::npu {

// [positions, D]: the angles of the first half of a head, and again for the second.
std::vector<std::byte> rope_table(const std::vector<float>& half, std::int64_t half_dim, Element element);

// What hides a later token in the kernel that a plan's attention takes: the half kernel adds minus infinity to its
// score; the float kernel multiplies the mask with a large negative number first, so that it must be 1.
float hiding_value(const GraphPlan& plan);

// The strict upper triangle of `value` in the shape of the plan's mask.
std::vector<std::byte> triangle_mask(const Tensor& mask, float value);

}  // namespace lb::npu
