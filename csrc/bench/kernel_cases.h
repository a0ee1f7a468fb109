// Single kernels over made-up operands, shared out over a team as the CPU backend does.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "backend/cpu/kernels.h"
#include "base/dtype.h"
#include "base/thread_pool.h"
#include "bench/floor.h"

namespace lb::bench {

using Shape = std::vector<std::int64_t>;

struct KernelContext {
  ThreadPool& pool;
  const cpu::Kernels& kernels;
  DType dtype;             // of weights
  DType activation_dtype;  // of the KV cache
  cpu::Operand operand;    // of products
};

// One kernel at one shape. It owns its operands; the context must outlive it.
struct KernelCase {
  Work work;  // of a call; nothing where there is no floor worth the name
  std::function<void()> call;
};

std::vector<std::string> kernel_names();

// What the extents of a kernel's shape are: "ROWSxOUTxIN".
std::string kernel_shape(std::string_view kernel);

// Shapes of the presets.
std::vector<Shape> usual_shapes(std::string_view kernel);

// Throws ConfigError for a kernel that kernel_names() does not list or a shape with other extents than it has.
void check_shape(std::string_view kernel, const Shape& shape);

// Likewise, and for extents that contradict one another.
KernelCase make_case(std::string_view kernel, const Shape& shape, const KernelContext& context);

}  // namespace lb::bench
