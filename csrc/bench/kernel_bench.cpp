#include "bench/kernel_bench.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "bench/kernel_cases.h"

namespace lb::bench {
namespace {

using Clock = std::chrono::steady_clock;

// A sample is as many calls as take this long, so that reading the clock and waking the team are small beside it.
constexpr double kSampleSeconds = 2e-3;
constexpr int kSamples = 20;  // for each of --repeat

double time_calls(const KernelCase& kernel, std::int64_t calls) {
  const Clock::time_point start = Clock::now();
  for (std::int64_t i = 0; i < calls; ++i) kernel.call();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// The names of a shape's extents, in lower case: "ROWSxOUT" gives {"rows", "out"}.
std::vector<std::string> extent_names(std::string_view shape) {
  std::vector<std::string> names(1);
  for (const char c : shape) {
    if (c == 'x') {
      names.emplace_back();
    } else {
      names.back() += c == '_' ? '_' : static_cast<char>(c - 'A' + 'a');
    }
  }
  return names;
}

Result bench_case(const std::string& name, const Shape& shape, int repeat, const KernelContext& context) {
  const KernelCase kernel = make_case(name, shape, context);
  std::int64_t calls = 1;
  for (double seconds = time_calls(kernel, 1); seconds < kSampleSeconds; seconds = time_calls(kernel, calls))
    calls = std::max(2 * calls, static_cast<std::int64_t>(static_cast<double>(calls) * kSampleSeconds / seconds) + 1);
  Result result{.kind = name,
                .name = "",
                .shape = {},
                .unit = "calls",
                .units = 1,
                .work = kernel.work,
                .seconds = {},
                .ops = {},
                .logits_hash = {},
                .fraction_beside = {}};
  const std::vector<std::string> names = extent_names(kernel_shape(name));
  for (std::size_t i = 0; i < shape.size(); ++i) result.shape.emplace_back(names[i], shape[i]);
  for (int sample = 0; sample < repeat * kSamples; ++sample)
    result.seconds.push_back(time_calls(kernel, calls) / static_cast<double>(calls));
  return result;
}

}  // namespace

void bench_kernels(const Options& options, const KernelContext& context, Report& report) {
  for (const std::string& name : options.names.empty() ? kernel_names() : options.names) {
    for (const Shape& shape : options.shapes.empty() ? usual_shapes(name) : options.shapes)
      report.add(bench_case(name, shape, options.repeat, context));
  }
}

}  // namespace lb::bench
