// Vec, the 16-lane f32 vector that kernel bodies are written against, in plain C++. The other simd_*.h files give the
// same names for one instruction set each. Included by kernel files only, inside their instruction set namespace.

struct Vec {
  float lane[16];
};

// Two vectors: the even and the odd elements of 16 two-element words.
struct VecPair {
  Vec even;
  Vec odd;
};

template <class F>
LB_INLINE Vec make_vec(F f) {
  Vec v;
  for (int i = 0; i < 16; ++i) v.lane[i] = f(i);
  return v;
}

LB_INLINE Vec zero() {
  return make_vec([](int) { return 0.0F; });
}
LB_INLINE Vec set1(float x) {
  return make_vec([x](int) { return x; });
}
LB_INLINE Vec load(const float* p) {
  return make_vec([p](int i) { return p[i]; });
}
LB_INLINE void store(float* p, Vec v) {
  for (int i = 0; i < 16; ++i) p[i] = v.lane[i];
}
LB_INLINE Vec add(Vec a, Vec b) {
  return make_vec([&](int i) { return a.lane[i] + b.lane[i]; });
}
LB_INLINE Vec sub(Vec a, Vec b) {
  return make_vec([&](int i) { return a.lane[i] - b.lane[i]; });
}
LB_INLINE Vec mul(Vec a, Vec b) {
  return make_vec([&](int i) { return a.lane[i] * b.lane[i]; });
}
LB_INLINE Vec div(Vec a, Vec b) {
  return make_vec([&](int i) { return a.lane[i] / b.lane[i]; });
}
// a * b + c, rounded twice here and once where the instruction set has it
LB_INLINE Vec fma(Vec a, Vec b, Vec c) {
  return make_vec([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
}
LB_INLINE Vec max(Vec a, Vec b) {
  return make_vec([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
LB_INLINE Vec min(Vec a, Vec b) {
  return make_vec([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}

// Lanes [0, n) of v, the others `fill`; any n.
LB_INLINE Vec keep_first(Vec v, std::int64_t n, float fill) {
  return make_vec([&](int i) { return i < n ? v.lane[i] : fill; });
}
// Bit i tells whether a[i] >= b[i].
LB_INLINE std::uint32_t mask_ge(Vec a, Vec b) {
  std::uint32_t mask = 0;
  for (int i = 0; i < 16; ++i) mask |= static_cast<std::uint32_t>(a.lane[i] >= b.lane[i]) << i;
  return mask;
}

// v where a >= b, 0 elsewhere.
LB_INLINE Vec keep_ge(Vec v, Vec a, Vec b) {
  return make_vec([&](int i) { return a.lane[i] >= b.lane[i] ? v.lane[i] : 0.0F; });
}

// Sum by halves: lanes i and i + 8 first, then i and i + 4, so on every instruction set.
LB_INLINE float reduce_add(Vec v) {
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) v.lane[i] += v.lane[i + width];
  }
  return v.lane[0];
}
LB_INLINE float reduce_max(Vec v) {
  for (int i = 1; i < 16; ++i) v.lane[0] = v.lane[i] > v.lane[0] ? v.lane[i] : v.lane[0];
  return v.lane[0];
}

// Nearest integer, ties to even; |v| < 2^22.
LB_INLINE Vec round_nearest(Vec v) {
  constexpr float kMagic = 12582912.0F;  // 1.5 * 2^23: adding it leaves no fraction bits
  return make_vec([&](int i) { return (v.lane[i] + kMagic) - kMagic; });
}
// v * 2^n for integral n in [-126, 127]
LB_INLINE Vec scale_exponent(Vec v, Vec n) {
  return make_vec([&](int i) {
    return v.lane[i] *
           __builtin_bit_cast(float, static_cast<std::uint32_t>(static_cast<std::int32_t>(n.lane[i]) + 127) << 23);
  });
}

// A word for each lane.
struct Words {
  std::uint32_t lane[16];
};

LB_INLINE Words load_lanes(const std::uint32_t* p) {
  Words words;
  for (int i = 0; i < 16; ++i) words.lane[i] = p[i];
  return words;
}
LB_INLINE void store_lanes(std::uint32_t* p, const Words& words) {
  for (int i = 0; i < 16; ++i) p[i] = words.lane[i];
}
LB_INLINE VecPair bf16_pairs(const Words& words) {
  return {make_vec([&](int i) { return __builtin_bit_cast(float, words.lane[i] << 16); }),
          make_vec([&](int i) { return __builtin_bit_cast(float, words.lane[i] & 0xffff0000U); })};
}
LB_INLINE VecPair load_f16_pairs(const std::uint32_t* words) {
  const auto half = [](std::uint32_t bits) {
    return static_cast<float>(__builtin_bit_cast(NativeF16, static_cast<std::uint16_t>(bits)));
  };
  return {make_vec([&](int i) { return half(words[i] & 0xffffU); }),
          make_vec([&](int i) { return half(words[i] >> 16); })};
}
LB_INLINE Vec round_to_bf16(Vec v) {
  return make_vec([&](int i) { return to_float(to_bf16(v.lane[i])); });
}
LB_INLINE void store_bf16(std::uint16_t* p, Vec v) {
  for (int i = 0; i < 16; ++i) p[i] = to_bf16(v.lane[i]).bits;
}

// What turns coded weights (coded_panel.h) into words; `upper` has the 16 bytes that nibbles stand for.
struct Decoder {
  std::uint8_t base;  // computed with, because nothing here looks up many bytes at once
};

LB_INLINE Decoder load_decoder(const std::uint8_t* upper) { return {upper[0]}; }
// The lane groups of a pair of coded steps: both of the first step, both of the second.
LB_INLINE void decode(const Decoder& decoder, const std::uint8_t* pair, Words (&words)[4]) {
  for (int step = 0; step < 2; ++step) {
    const std::uint8_t* lower = pair + 64 * step;
    std::uint8_t upper[64];
    for (int i = 0; i < 64; ++i) {
      const int nibble = pair[128 + i] >> (4 * step) & 15;
      const int code = nibble & 7;
      upper[i] = static_cast<std::uint8_t>((nibble & 8) << 4 | (code == kZeroCode ? 0 : decoder.base + code));
    }
    for (int group = 0; group < 2; ++group) {
      for (int i = 0; i < 16; ++i) {
        const int at = coded_byte(32 * group + 2 * i);
        words[2 * step + group].lane[i] = static_cast<std::uint32_t>(lower[at]) | std::uint32_t{upper[at]} << 8 |
                                          std::uint32_t{lower[at + 1]} << 16 | std::uint32_t{upper[at + 1]} << 24;
      }
    }
  }
}

// target[i * target_stride + j] = source[j * source_stride + i] for i, j < 16
LB_INLINE void transpose_words(const std::uint32_t* source, std::int64_t source_stride, std::uint32_t* target,
                               std::int64_t target_stride) {
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) target[i * target_stride + j] = source[j * source_stride + i];
  }
}

#include "backend/cpu/simd_first.inc"
