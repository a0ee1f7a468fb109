// Times single kernels.
#pragma once

#include "bench/kernel_cases.h"
#include "bench/options.h"
#include "bench/report.h"

namespace lb::bench {

// Runs the kernels that `options` names, or all of them, and adds the results to `report`.
void bench_kernels(const Options& options, const KernelContext& context, Report& report);

}  // namespace lb::bench
