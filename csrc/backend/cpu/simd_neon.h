// Vec for AArch64 Advanced SIMD: four registers. See simd_scalar.h for what each function means.

struct Vec {
  float32x4_t q[4];
};

struct VecPair {
  Vec even;
  Vec odd;
};

template <class F>
LB_INLINE Vec make_vec(F f) {
  return {{f(0), f(1), f(2), f(3)}};
}

LB_INLINE Vec zero() {
  return make_vec([](int) { return vdupq_n_f32(0.0F); });
}
LB_INLINE Vec set1(float x) {
  return make_vec([x](int) { return vdupq_n_f32(x); });
}
LB_INLINE Vec load(const float* p) {
  return make_vec([p](int i) { return vld1q_f32(p + 4 * i); });
}
LB_INLINE void store(float* p, Vec a) {
  for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, a.q[i]);
}
LB_INLINE Vec add(Vec a, Vec b) {
  return make_vec([&](int i) { return vaddq_f32(a.q[i], b.q[i]); });
}
LB_INLINE Vec sub(Vec a, Vec b) {
  return make_vec([&](int i) { return vsubq_f32(a.q[i], b.q[i]); });
}
LB_INLINE Vec mul(Vec a, Vec b) {
  return make_vec([&](int i) { return vmulq_f32(a.q[i], b.q[i]); });
}
LB_INLINE Vec div(Vec a, Vec b) {
  return make_vec([&](int i) { return vdivq_f32(a.q[i], b.q[i]); });
}
LB_INLINE Vec fma(Vec a, Vec b, Vec c) {
  return make_vec([&](int i) { return vfmaq_f32(c.q[i], a.q[i], b.q[i]); });
}
// a where a > b, else b: as the other instruction sets treat NaN and signed zeros
LB_INLINE Vec max(Vec a, Vec b) {
  return make_vec([&](int i) { return vbslq_f32(vcgtq_f32(a.q[i], b.q[i]), a.q[i], b.q[i]); });
}
LB_INLINE Vec min(Vec a, Vec b) {
  return make_vec([&](int i) { return vbslq_f32(vcltq_f32(a.q[i], b.q[i]), a.q[i], b.q[i]); });
}

LB_INLINE Vec keep_first(Vec a, std::int64_t n, float fill) {
  const std::int32_t count = n >= 16 ? 16 : n <= 0 ? 0 : static_cast<std::int32_t>(n);
  const std::int32_t first[4] = {0, 1, 2, 3};
  const int32x4_t lanes = vld1q_s32(first);
  return make_vec([&](int i) {
    return vbslq_f32(vcltq_s32(vaddq_s32(lanes, vdupq_n_s32(4 * i)), vdupq_n_s32(count)), a.q[i], vdupq_n_f32(fill));
  });
}
LB_INLINE std::uint32_t mask_ge(Vec a, Vec b) {
  const std::uint32_t bit[4] = {1, 2, 4, 8};
  const uint32x4_t bits = vld1q_u32(bit);
  std::uint32_t mask = 0;
  for (int i = 0; i < 4; ++i) mask |= vaddvq_u32(vandq_u32(vcgeq_f32(a.q[i], b.q[i]), bits)) << (4 * i);
  return mask;
}
LB_INLINE Vec keep_ge(Vec v, Vec a, Vec b) {
  return make_vec([&](int i) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v.q[i]), vcgeq_f32(a.q[i], b.q[i])));
  });
}

LB_INLINE float reduce_add(Vec a) {
  const float32x4_t v4 = vaddq_f32(vaddq_f32(a.q[0], a.q[2]), vaddq_f32(a.q[1], a.q[3]));
  const float32x2_t v2 = vadd_f32(vget_low_f32(v4), vget_high_f32(v4));
  return vget_lane_f32(v2, 0) + vget_lane_f32(v2, 1);
}
LB_INLINE float reduce_max(Vec a) {
  return vmaxnmvq_f32(vmaxnmq_f32(vmaxnmq_f32(a.q[0], a.q[2]), vmaxnmq_f32(a.q[1], a.q[3])));
}

LB_INLINE Vec round_nearest(Vec a) {
  return make_vec([&](int i) { return vrndnq_f32(a.q[i]); });
}
LB_INLINE Vec scale_exponent(Vec a, Vec n) {
  return make_vec([&](int i) {
    const int32x4_t biased = vaddq_s32(vcvtq_s32_f32(n.q[i]), vdupq_n_s32(127));
    return vmulq_f32(a.q[i], vreinterpretq_f32_s32(vshlq_n_s32(biased, 23)));
  });
}

struct Words {
  uint32x4_t q[4];
};

LB_INLINE Words load_lanes(const std::uint32_t* p) {
  Words words;
  for (int i = 0; i < 4; ++i) words.q[i] = vld1q_u32(p + 4 * i);
  return words;
}
LB_INLINE void store_lanes(std::uint32_t* p, const Words& words) {
  for (int i = 0; i < 4; ++i) vst1q_u32(p + 4 * i, words.q[i]);
}
LB_INLINE VecPair bf16_pairs(const Words& words) {
  return {make_vec([&](int i) { return vreinterpretq_f32_u32(vshlq_n_u32(words.q[i], 16)); }),
          make_vec([&](int i) { return vreinterpretq_f32_u32(vandq_u32(words.q[i], vdupq_n_u32(0xffff0000U))); })};
}
LB_INLINE VecPair load_f16_pairs(const std::uint32_t* words) {
  const auto widen = [](uint32x4_t w) { return vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(w))); };
  return {make_vec([&](int i) { return widen(vld1q_u32(words + 4 * i)); }),
          make_vec([&](int i) { return widen(vshrq_n_u32(vld1q_u32(words + 4 * i), 16)); })};
}
LB_INLINE uint32x4_t bf16_bits(float32x4_t a) {
  const uint32x4_t bits = vreinterpretq_u32_f32(a);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vshrq_n_u32(vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd), 16);
  const uint32x4_t quiet = vorrq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(0x40));
  return vbslq_u32(vceqq_f32(a, a), rounded, quiet);
}
LB_INLINE Vec round_to_bf16(Vec a) {
  return make_vec([&](int i) { return vreinterpretq_f32_u32(vshlq_n_u32(bf16_bits(a.q[i]), 16)); });
}
LB_INLINE void store_bf16(std::uint16_t* p, Vec a) {
  for (int i = 0; i < 4; ++i) vst1_u16(p + 4 * i, vmovn_u32(bf16_bits(a.q[i])));
}

struct Decoder {
  uint8x16_t upper;
};

LB_INLINE Decoder load_decoder(const std::uint8_t* upper) { return {vld1q_u8(upper)}; }
LB_INLINE void decode(const Decoder& decoder, const std::uint8_t* pair, Words (&words)[4]) {
  for (int i = 0; i < 8; ++i) {  // a quarter of a step
    const uint8x16_t lower = vld1q_u8(pair + 16 * i);
    const uint8x16_t both = vld1q_u8(pair + 128 + i % 4 * 16);
    const uint8x16_t nibbles = i < 4 ? vandq_u8(both, vdupq_n_u8(15)) : vshrq_n_u8(both, 4);
    const uint8x16_t upper = vqtbl1q_u8(decoder.upper, nibbles);
    words[i / 4 * 2].q[i % 4] = vreinterpretq_u32_u8(vzip1q_u8(lower, upper));
    words[i / 4 * 2 + 1].q[i % 4] = vreinterpretq_u32_u8(vzip2q_u8(lower, upper));
  }
}

LB_INLINE void transpose_words(const std::uint32_t* source, std::int64_t source_stride, std::uint32_t* target,
                               std::int64_t target_stride) {
  for (int j = 0; j < 16; j += 4) {
    for (int i = 0; i < 16; i += 4) {
      uint32x4x4_t block;
      for (int r = 0; r < 4; ++r) block.val[r] = vld1q_u32(source + (j + r) * source_stride + i);
      std::uint32_t columns[16];
      vst4q_u32(columns, block);  // interleaves: word r of column c at 4 * c + r
      for (int c = 0; c < 4; ++c) vst1q_u32(target + (i + c) * target_stride + j, vld1q_u32(columns + 4 * c));
    }
  }
}

#include "backend/cpu/simd_first.inc"
