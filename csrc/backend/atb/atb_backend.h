// The Ascend backend: layer graphs run on NPUs through ATB. Two source files define what is declared here: one where
// CANN was found when the library was built, and one where it was not.
#pragma once

#include <memory>

#include "backend/backend.h"

namespace lb::npu {

inline constexpr const char* kBackendName = "atb";

// Whether this build has the backend.
bool is_built();

// Throws BackendError where the device cannot be used, or the build lacks the backend; ConfigError for options that
// make no sense. Its compile() takes an empty WeightLookup for a dry run: every graph is made, and what it computes
// does not matter.
std::unique_ptr<Backend> make_atb_backend(ThreadPool& pool, const DeviceOptions& options);

// Whether `auto` should choose this backend. Does not touch a device.
bool has_device();

// What is there, for people. Never throws.
DeviceReport probe_devices();

}  // namespace lb::npu
