// ATB operations: from a plan to an operation object, and its tensors.
#pragma once

#include <atb/atb_infer.h>

#include <array>
#include <cstdint>
#include <memory>

#include "backend/atb/plan.h"

namespace lb::npu {

struct DestroyOperation {
  void operator()(atb::Operation* operation) const noexcept { static_cast<void>(atb::DestroyOperation(operation)); }
};
using OperationPtr = std::unique_ptr<atb::Operation, DestroyOperation>;

// Creates the graph operation of a plan. Throws BackendError that names the node which ATB refuses.
OperationPtr create_operation(const GraphPlan& plan, const Target& target);

// Values of the symbolic extents.
class Extents {
 public:
  std::int64_t& operator[](Symbol symbol) { return values_[static_cast<std::size_t>(-symbol - 1)]; }
  std::int64_t of(std::int64_t extent) const {
    return extent >= 0 ? extent : values_[static_cast<std::size_t>(-extent - 1)];
  }

 private:
  std::array<std::int64_t, 8> values_{};
};

// Sets type, format, shape and size of an ATB tensor.
void describe(const Tensor& tensor, const Extents& extents, atb::Tensor& out);
std::int64_t size_bytes(const Tensor& tensor, const Extents& extents);

// Compares the outputs that ATB infers with those of the plan, which it would write without a look at their size.
void check_outputs(const GraphPlan& plan, const atb::Operation& operation, const Extents& extents);

}  // namespace lb::npu
