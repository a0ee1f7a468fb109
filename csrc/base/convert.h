// Conversions of whole arrays between element types.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"

namespace lb {

// Gives `count` elements as f32: exact.
void to_floats(DType from, const std::byte* source, std::int64_t count, float* target);

// Rounds `count` f32 elements to nearest, ties to even.
void from_floats(const float* source, std::int64_t count, DType to, std::byte* target);

// Converts `count` elements, rounding to nearest, and returns the index of the first finite one that became infinite,
// or -1. The arrays need no alignment and must not overlap.
std::int64_t convert(DType from, const std::byte* source, std::int64_t count, DType to, std::byte* target);

}  // namespace lb
