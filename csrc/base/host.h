// What this process may use of the machine it runs on.
#pragma once

#include <cstdint>
#include <string>

namespace lb {

// Threads that make sense here: the size of the affinity mask, or the CPU quota of the control group where that is less
// (rounded down: a thread that is throttled makes all others wait at the next barrier).
// At least 1. `root` is where /proc and /sys are looked for; tests point it elsewhere.
int usable_threads(const std::string& root = "");

// Bytes of memory that can be allocated without swapping: MemAvailable, or what the control group still allows where
// that is less.
std::int64_t available_memory(const std::string& root = "");

// Bytes of the first-level data cache of a core, or 0 where the system does not tell.
std::int64_t l1_data_bytes();

}  // namespace lb
