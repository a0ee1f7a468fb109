// bf16 weights in 12 bits, without loss.
//
// The lower byte of a weight, seven bits of mantissa and the exponent's lowest, is nearly random, and kept. The upper
// byte is the sign and the upper seven bits of the exponent, which is nearly the same for neighbouring weights: seven
// values in a row, which are fourteen powers of two, and 0 cover all but a few weights in ten thousand of a panel. So
// the upper byte becomes a nibble: the sign, and the value less the panel's `base`, or kZeroCode for 0. The few others,
// escapes, are kept in a list beside the panel and put back when it is read. A panel with many of them is not coded.
//
// Two steps, 128 weights, take 192 bytes: the lower bytes of the first step, those of the second, then 64 bytes that
// hold a nibble of the first step below and one of the second above. Within a step, bytes are ordered so that
// interleaving the two halves of each 16 of them gives the words of lane group 0 and of lane group 1; see coded_byte().
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/cpu/kernels.h"

namespace lb::cpu {

inline constexpr int kZeroCode = 7;  // the upper exponent bits of zero, of subnormal numbers and of 2^-126 to 2^-125
inline constexpr int kMaxCodeBase = 128 - kZeroCode;
inline constexpr int kStepElements = 2 * kPanel;
inline constexpr int kCodedPairBytes = 2 * kStepElements * 12 / 8;

struct Escape {
  std::uint32_t element = 0;  // kStepElements * step + element of the step
  std::uint16_t bits = 0;     // of the weight
};

inline constexpr std::uint32_t kNoElement = 0xffffffff;

// What a coded panel begins with; the code of steps 0, 1, then 2, 3, ... follows.
struct alignas(64) CodedPanel {
  const std::uint32_t* plain = nullptr;  // the words of the panel where it is not coded
  const Escape* escapes = nullptr;       // ascending; the last one is an end mark, of kNoElement
  std::int32_t base = 1;

  const std::uint8_t* code() const { return reinterpret_cast<const std::uint8_t*>(this + 1); }
};

// The upper byte that a nibble stands for.
constexpr int coded_upper(int base, int nibble) {
  const int code = nibble % 8;
  return nibble / 8 * 128 + (code == kZeroCode ? 0 : base + code);
}

// A matrix can be coded where its panels have an even number of steps.
constexpr bool can_be_coded(DType dtype, std::int64_t in_columns) {
  return dtype == DType::kBF16 && in_columns % 4 == 0;
}

// Bytes of one panel, and of what precedes its first step.
constexpr std::int64_t panel_bytes(DType dtype, bool coded, std::int64_t in_columns) {
  const std::int64_t steps = in_columns / elements_per_step(dtype);
  return coded ? static_cast<std::int64_t>(sizeof(CodedPanel)) + steps / 2 * kCodedPairBytes : steps * kPanel * 4;
}
constexpr std::int64_t panel_header_bytes(bool coded) {
  return coded ? static_cast<std::int64_t>(sizeof(CodedPanel)) : 0;
}

// Where the byte of an element of a step lies among the 64 of that step, and its nibble among those of the pair.
constexpr int coded_byte(int element) { return element % kPanel / 8 * 16 + element / kPanel * 8 + element % 8; }

}  // namespace lb::cpu
