#include "base/convert.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

namespace lb {
namespace {

constexpr std::int32_t kInfinity = 0x7f800000;  // bits of a float; larger ones are NaN

template <class T>
T at(const std::byte* source, std::int64_t i) {
  T element;
  std::memcpy(&element, source + static_cast<std::size_t>(i) * sizeof(T), sizeof(T));
  return element;
}

template <class T>
void put(std::byte* target, std::int64_t i, T element) {
  std::memcpy(target + static_cast<std::size_t>(i) * sizeof(T), &element, sizeof(T));
}

// to_float(F16) without a call, so that loops over it become vector code: the bits of a half, moved to where a float
// has them, are the number times 2^-112, subnormals included; infinity and NaN need all bits of the exponent set.
float widen(F16 x) {
  const std::uint32_t magnitude = x.bits & 0x7fffU;
  const auto scaled = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude << 13) * 0x1p112F);
  const std::uint32_t exponent = magnitude >= 0x7c00U ? 0x7f800000U : 0U;
  return std::bit_cast<float>(scaled | exponent | (static_cast<std::uint32_t>(x.bits & 0x8000U) << 16));
}

// `yes` if the condition holds, else `no`; by masks, because the compiler makes branches of ?:, and no vector code of
// those.
std::int32_t choose(bool condition, std::int32_t yes, std::int32_t no) {
  const std::int32_t mask = -static_cast<std::int32_t>(condition);
  return (yes & mask) | (no & ~mask);
}

// to_f16() without a call, for the same reason. Signed integers, because old vector instructions compare only those.
F16 narrow(float x) {
  const auto bits = std::bit_cast<std::int32_t>(x);
  const std::int32_t magnitude = bits & 0x7fffffff;
  // The exponent's bias becomes 15; 13 bits of the fraction go, to nearest, ties to even; beyond the largest is
  // infinity.
  const std::int32_t rounded = (magnitude - ((127 - 15) << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const std::int32_t normal = choose(rounded < 0x7c00, rounded, 0x7c00);
  // The last bit of 0.5 is worth as much as a subnormal half's, so that adding it rounds.
  const std::int32_t subnormal =
      std::bit_cast<std::int32_t>(std::bit_cast<float>(magnitude) + 0.5F) - std::bit_cast<std::int32_t>(0.5F);
  const std::int32_t number = choose(magnitude < ((127 - 14) << 23), subnormal, normal);
  const std::int32_t half = choose(magnitude > kInfinity, 0x7e00 | ((magnitude >> 13) & 0x3ff), number);
  return {static_cast<std::uint16_t>(half | ((bits >> 16) & 0x8000))};
}

bool all_finite(const std::byte* halves, std::int64_t count) {
  std::int16_t largest = 0;
  for (std::int64_t i = 0; i < count; ++i)
    largest = std::max(largest, static_cast<std::int16_t>(at<F16>(halves, i).bits & 0x7fff));
  return largest < 0x7c00;
}

// The nearest half of every bf16 number: looking it up is faster than working it out.
const std::vector<F16>& halves() {
  static const std::vector<F16> table = [] {
    std::vector<F16> all(1U << 16);
    for (std::uint32_t bits = 0; bits < all.size(); ++bits)
      all[bits] = narrow(to_float(Bf16{static_cast<std::uint16_t>(bits)}));
    return all;
  }();
  return table;
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
  switch (to) {
    case DType::kF32: std::memcpy(target, source, static_cast<std::size_t>(count) * sizeof(float)); break;
    case DType::kF16:
      for (std::int64_t i = 0; i < count; ++i) put(target, i, narrow(source[i]));
      break;
    case DType::kBF16:
      for (std::int64_t i = 0; i < count; ++i) put(target, i, to_bf16(source[i]));
      break;
  }
}

std::int64_t convert(DType from, const std::byte* source, std::int64_t count, DType to, std::byte* target) {
  constexpr std::int64_t kBlock = 2048;  // 8 KiB of floats: with both arrays' share, a third of a first-level cache
  std::array<float, kBlock> floats;
  const F16* const table = halves().data();
  for (std::int64_t begin = 0; begin < count; begin += kBlock) {
    const std::int64_t block = std::min(kBlock, count - begin);
    const std::byte* const in = source + static_cast<std::size_t>(begin) * size_bytes(from);
    std::byte* const out = target + static_cast<std::size_t>(begin) * size_bytes(to);
    if (from == DType::kBF16 && to == DType::kF16) {
      for (std::int64_t i = 0; i < block; ++i) put(out, i, table[at<Bf16>(in, i).bits]);
    } else {
      to_floats(from, in, block, floats.data());
      from_floats(floats.data(), block, to, out);
    }
    if (to != DType::kF16 || all_finite(out, block)) continue;
    to_floats(from, in, block, floats.data());
    for (std::int64_t i = 0; i < block; ++i) {
      if (std::isfinite(floats[static_cast<std::size_t>(i)]) && (at<F16>(out, i).bits & 0x7fff) == 0x7c00)
        return begin + i;
    }
  }
  return -1;
}

}  // namespace lb
