// Whole models with random weights, driven through the engine.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/thread_pool.h"
#include "bench/limits.h"
#include "bench/options.h"
#include "bench/report.h"

namespace lb::bench {

// Compiles a preset, computes every workload once unmeasured (hashing its logits and noting its tokens) and then
// `options.repeat` times measured, and adds the results to `report`. `limits`, which may be null, are measured again
// beside the repetitions. Throws BackendError when logits are not numbers or a repetition gives other tokens than the
// first.
void bench_model(const std::string& preset_name, const Options& options, Backend& backend, ThreadPool& pool,
                 Limits* limits, Report& report);

}  // namespace lb::bench
