// Element types of stored weights, activations and caches, and exact scalar conversions between them.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace lb {

enum class DType : std::uint8_t { kF32, kF16, kBF16 };

constexpr std::size_t size_bytes(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

// The name that configs and messages use: "float32", "float16", "bfloat16".
std::string_view name(DType dtype);

// Inverse of name(); throws ConfigError naming `what` for any other text.
DType parse_dtype(std::string_view text, std::string_view what);

// The upper half of an IEEE 754 binary32 number.
struct Bf16 {
  std::uint16_t bits;
};

// IEEE 754 binary16.
struct F16 {
  std::uint16_t bits;
};

// The compiler's own binary16. GCC 12 knows _Float16 in C++ on x86 only; AArch64 has __fp16.
#if defined(__aarch64__)
using NativeF16 = __fp16;
#else
using NativeF16 = _Float16;
#endif

constexpr float to_float(Bf16 x) { return std::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16); }

// Round to nearest, ties to even; a NaN stays a (quiet) NaN.
constexpr Bf16 to_bf16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return {static_cast<std::uint16_t>((bits >> 16) | 0x40U)};
  return {static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16)};
}

float to_float(F16 x);

// Round to nearest, ties to even; overflow becomes infinity.
F16 to_f16(float x);

// `x` as a tensor of this type would hold it.
float round_to(DType dtype, float x);

}  // namespace lb
