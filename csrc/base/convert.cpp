#include "base/convert.h"

#include <bit>
#include <cstring>

namespace lb {
namespace {

template <class T>
T at(const std::byte* source, std::int64_t i) {
  T element;
  std::memcpy(&element, source + static_cast<std::size_t>(i) * sizeof(T), sizeof(T));
  return element;
}

// to_float(F16) without a call, so that loops over it become vector code: the bits of a half, moved to where a float
// has them, are the number times 2^-112, subnormals included; infinity and NaN need all bits of the exponent set.
float widen(F16 x) {
  const std::uint32_t magnitude = x.bits & 0x7fffU;
  const auto scaled = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude << 13) * 0x1p112F);
  const std::uint32_t exponent = magnitude >= 0x7c00U ? 0x7f800000U : 0U;
  return std::bit_cast<float>(scaled | exponent | (static_cast<std::uint32_t>(x.bits & 0x8000U) << 16));
}

}  // namespace

void to_floats(DType from, const std::byte* source, std::int64_t count, float* target) {
  switch (from) {
    case DType::kF32: std::memcpy(target, source, static_cast<std::size_t>(count) * sizeof(float)); break;
    case DType::kF16:
      for (std::int64_t i = 0; i < count; ++i) target[i] = widen(at<F16>(source, i));
      break;
    case DType::kBF16:
      for (std::int64_t i = 0; i < count; ++i) target[i] = to_float(at<Bf16>(source, i));
      break;
  }
}

void from_floats(const float* source, std::int64_t count, DType to, std::byte* target) {
  const auto store = [target](std::int64_t i, auto element) {
    std::memcpy(target + static_cast<std::size_t>(i) * sizeof(element), &element, sizeof(element));
  };
  switch (to) {
    case DType::kF32: std::memcpy(target, source, static_cast<std::size_t>(count) * sizeof(float)); break;
    case DType::kF16:
      for (std::int64_t i = 0; i < count; ++i) store(i, to_f16(source[i]));
      break;
    case DType::kBF16:
      for (std::int64_t i = 0; i < count; ++i) store(i, to_bf16(source[i]));
      break;
  }
}

}  // namespace lb
