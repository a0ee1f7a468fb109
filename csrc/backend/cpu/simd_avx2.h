// Vec for AVX2 with FMA and F16C: two registers. See simd_scalar.h for what each function means.

struct Vec {
  __m256 lo;
  __m256 hi;
};

struct VecPair {
  Vec even;
  Vec odd;
};

LB_INLINE Vec zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
LB_INLINE Vec set1(float x) {
  const __m256 v = _mm256_set1_ps(x);
  return {v, v};
}
LB_INLINE Vec load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
LB_INLINE void store(float* p, Vec a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
LB_INLINE Vec add(Vec a, Vec b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
LB_INLINE Vec sub(Vec a, Vec b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
LB_INLINE Vec mul(Vec a, Vec b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
LB_INLINE Vec div(Vec a, Vec b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
LB_INLINE Vec fma(Vec a, Vec b, Vec c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
LB_INLINE Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
LB_INLINE Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }

LB_INLINE Vec keep_first(Vec a, std::int64_t n, float fill) {
  const __m256i count = _mm256_set1_epi32(n >= 16 ? 16 : n <= 0 ? 0 : static_cast<int>(n));
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256 keep_lo = _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, lanes));
  const __m256 keep_hi = _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, _mm256_add_epi32(lanes, _mm256_set1_epi32(8))));
  const __m256 other = _mm256_set1_ps(fill);
  return {_mm256_blendv_ps(other, a.lo, keep_lo), _mm256_blendv_ps(other, a.hi, keep_hi)};
}
LB_INLINE std::uint32_t mask_ge(Vec a, Vec b) {
  const int lo = _mm256_movemask_ps(_mm256_cmp_ps(a.lo, b.lo, _CMP_GE_OQ));
  const int hi = _mm256_movemask_ps(_mm256_cmp_ps(a.hi, b.hi, _CMP_GE_OQ));
  return static_cast<std::uint32_t>(lo) | static_cast<std::uint32_t>(hi) << 8;
}
LB_INLINE Vec keep_ge(Vec v, Vec a, Vec b) {
  return {_mm256_and_ps(v.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_GE_OQ)),
          _mm256_and_ps(v.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_GE_OQ))};
}

LB_INLINE float reduce_add(Vec a) {
  const __m256 v8 = _mm256_add_ps(a.lo, a.hi);
  const __m128 v4 = _mm_add_ps(_mm256_castps256_ps128(v8), _mm256_extractf128_ps(v8, 1));
  const __m128 v2 = _mm_add_ps(v4, _mm_movehl_ps(v4, v4));
  return _mm_cvtss_f32(_mm_add_ss(v2, _mm_movehdup_ps(v2)));
}
LB_INLINE float reduce_max(Vec a) {
  const __m256 v8 = _mm256_max_ps(a.lo, a.hi);
  const __m128 v4 = _mm_max_ps(_mm256_castps256_ps128(v8), _mm256_extractf128_ps(v8, 1));
  const __m128 v2 = _mm_max_ps(v4, _mm_movehl_ps(v4, v4));
  return _mm_cvtss_f32(_mm_max_ss(v2, _mm_movehdup_ps(v2)));
}

LB_INLINE Vec round_nearest(Vec a) {
  constexpr int kMode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.lo, kMode), _mm256_round_ps(a.hi, kMode)};
}
LB_INLINE __m256 power_of_two(__m256 n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
LB_INLINE Vec scale_exponent(Vec a, Vec n) {
  return {_mm256_mul_ps(a.lo, power_of_two(n.lo)), _mm256_mul_ps(a.hi, power_of_two(n.hi))};
}

LB_INLINE __m256i load_8_words(const std::uint32_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

struct Words {
  __m256i lo;
  __m256i hi;
};

LB_INLINE Words load_lanes(const std::uint32_t* p) { return {load_8_words(p), load_8_words(p + 8)}; }
LB_INLINE void store_lanes(std::uint32_t* p, Words words) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), words.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), words.hi);
}
LB_INLINE VecPair bf16_pairs(Words words) {
  const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000U));
  return {
      {_mm256_castsi256_ps(_mm256_slli_epi32(words.lo, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(words.hi, 16))},
      {_mm256_castsi256_ps(_mm256_and_si256(words.lo, upper)), _mm256_castsi256_ps(_mm256_and_si256(words.hi, upper))}};
}
// The low 16 bits of 8 words, as one 128-bit register.
LB_INLINE __m128i narrow_words(__m256i w) {
  return _mm_packus_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
}
LB_INLINE VecPair load_f16_pairs(const std::uint32_t* words) {
  const __m256i a = load_8_words(words);
  const __m256i b = load_8_words(words + 8);
  const __m256i lower = _mm256_set1_epi32(0xffff);
  return {{_mm256_cvtph_ps(narrow_words(_mm256_and_si256(a, lower))),
           _mm256_cvtph_ps(narrow_words(_mm256_and_si256(b, lower)))},
          {_mm256_cvtph_ps(narrow_words(_mm256_srli_epi32(a, 16))),
           _mm256_cvtph_ps(narrow_words(_mm256_srli_epi32(b, 16)))}};
}
LB_INLINE __m256i bf16_bits(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded =
      _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
  const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(rounded, quiet, nan);
}
LB_INLINE Vec round_to_bf16(Vec a) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(bf16_bits(a.lo), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(bf16_bits(a.hi), 16))};
}
LB_INLINE void store_bf16(std::uint16_t* p, Vec a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow_words(bf16_bits(a.lo)));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), narrow_words(bf16_bits(a.hi)));
}

struct Decoder {
  __m256i upper;
};

LB_INLINE Decoder load_decoder(const std::uint8_t* upper) {
  return {_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(upper)))};
}
LB_INLINE void decode_half(const Decoder& decoder, const std::uint8_t* bytes, __m256i nibbles, __m256i& group0,
                           __m256i& group1) {
  const __m256i lower = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
  const __m256i upper = _mm256_shuffle_epi8(decoder.upper, nibbles);
  group0 = _mm256_unpacklo_epi8(lower, upper);
  group1 = _mm256_unpackhi_epi8(lower, upper);
}
LB_INLINE void decode(const Decoder& decoder, const std::uint8_t* pair, Words (&words)[4]) {
  const __m256i low = _mm256_set1_epi8(15);
  const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pair + 128));
  const __m256i second = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pair + 160));
  decode_half(decoder, pair, _mm256_and_si256(first, low), words[0].lo, words[1].lo);
  decode_half(decoder, pair + 32, _mm256_and_si256(second, low), words[0].hi, words[1].hi);
  decode_half(decoder, pair + 64, _mm256_and_si256(_mm256_srli_epi16(first, 4), low), words[2].lo, words[3].lo);
  decode_half(decoder, pair + 96, _mm256_and_si256(_mm256_srli_epi16(second, 4), low), words[2].hi, words[3].hi);
}

LB_INLINE void transpose_8x8(const std::uint32_t* source, std::int64_t source_stride, std::uint32_t* target,
                             std::int64_t target_stride) {
  __m256i r[8];
  __m256i t[8];
  for (int i = 0; i < 8; ++i) r[i] = load_8_words(source + i * source_stride);
  for (int b = 0; b < 8; b += 4) {
    const __m256i lo01 = _mm256_unpacklo_epi32(r[b], r[b + 1]);
    const __m256i hi01 = _mm256_unpackhi_epi32(r[b], r[b + 1]);
    const __m256i lo23 = _mm256_unpacklo_epi32(r[b + 2], r[b + 3]);
    const __m256i hi23 = _mm256_unpackhi_epi32(r[b + 2], r[b + 3]);
    t[b] = _mm256_unpacklo_epi64(lo01, lo23);
    t[b + 1] = _mm256_unpackhi_epi64(lo01, lo23);
    t[b + 2] = _mm256_unpacklo_epi64(hi01, hi23);
    t[b + 3] = _mm256_unpackhi_epi64(hi01, hi23);
  }
  for (int c = 0; c < 4; ++c) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target + c * target_stride),
                        _mm256_permute2x128_si256(t[c], t[4 + c], 0x20));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target + (4 + c) * target_stride),
                        _mm256_permute2x128_si256(t[c], t[4 + c], 0x31));
  }
}
LB_INLINE void transpose_words(const std::uint32_t* source, std::int64_t source_stride, std::uint32_t* target,
                               std::int64_t target_stride) {
  for (int i = 0; i < 16; i += 8) {
    for (int j = 0; j < 16; j += 8)
      transpose_8x8(source + j * source_stride + i, source_stride, target + i * target_stride + j, target_stride);
  }
}

#include "backend/cpu/simd_first.inc"
