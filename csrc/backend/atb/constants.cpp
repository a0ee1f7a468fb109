#include "backend/atb/constants.h"

#include <algorithm>
#include <limits>

#include "base/convert.h"
#include "base/error.h"

namespace lb::npu {
namespace {

std::vector<std::byte> stored(const std::vector<float>& values, Element element) {
  std::vector<std::byte> bytes(values.size() * static_cast<std::size_t>(size_bytes(element)));
  from_floats(values.data(), static_cast<std::int64_t>(values.size()), dtype_of(element), bytes.data());
  return bytes;
}

}  // namespace

std::vector<std::byte> rope_table(const std::vector<float>& half, std::int64_t half_dim, Element element) {
  std::vector<float> values;
  values.reserve(2 * half.size());
  for (auto row = half.begin(); row != half.end(); row += half_dim) {
    for (int copy = 0; copy < 2; ++copy) values.insert(values.end(), row, row + half_dim);
  }
  return stored(values, element);
}

float hiding_value(const GraphPlan& plan) {
  for (const Node& node : plan.nodes) {
    const auto* attention = std::get_if<Encode>(&node.op);
    if (attention == nullptr) continue;
    const bool is_float_kernel = attention->high_precision || plan.tensor(node.ins.front()).element == Element::kBF16;
    return is_float_kernel ? 1.0F : -std::numeric_limits<float>::infinity();
  }
  LB_CHECK(false, plan.name, " has no mask that stays the same");
}

std::vector<std::byte> triangle_mask(const Tensor& mask, float value) {
  const bool tiled = mask.shape.size() == 4;  // [1, columns / 16, rows, 16]
  const std::int64_t side = tiled ? mask.shape[2] : mask.shape[0];
  std::vector<float> values(static_cast<std::size_t>(side * side));
  for (std::int64_t row = 0; row < side; ++row) {
    for (std::int64_t column = row + 1; column < side; ++column) {
      const std::int64_t at = tiled ? (column / 16 * side + row) * 16 + column % 16 : row * side + column;
      values[static_cast<std::size_t>(at)] = value;
    }
  }
  return stored(values, mask.element);
}

}  // namespace lb::npu
