// Vec for AVX-512 (F, BW, DQ, VL): one register. See simd_scalar.h for what each function means.

struct Vec {
  __m512 v;
};

struct VecPair {
  Vec even;
  Vec odd;
};

LB_INLINE Vec zero() { return {_mm512_setzero_ps()}; }
LB_INLINE Vec set1(float x) { return {_mm512_set1_ps(x)}; }
LB_INLINE Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
LB_INLINE void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
LB_INLINE Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
LB_INLINE Vec sub(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
LB_INLINE Vec mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
LB_INLINE Vec div(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
LB_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
LB_INLINE Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
LB_INLINE Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }

LB_INLINE __mmask16 first_lanes(std::int64_t n) {
  return n >= 16 ? __mmask16(0xffff) : n <= 0 ? __mmask16(0) : static_cast<__mmask16>((1U << n) - 1U);
}
LB_INLINE Vec keep_first(Vec a, std::int64_t n, float fill) {
  return {_mm512_mask_mov_ps(_mm512_set1_ps(fill), first_lanes(n), a.v)};
}
LB_INLINE std::uint32_t mask_ge(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }
LB_INLINE Vec keep_ge(Vec v, Vec a, Vec b) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ), v.v)};
}

LB_INLINE float reduce_add(Vec a) { return _mm512_reduce_add_ps(a.v); }
LB_INLINE float reduce_max(Vec a) { return _mm512_reduce_max_ps(a.v); }

LB_INLINE Vec load_first(const float* p, std::int64_t n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
LB_INLINE void store_first(float* p, Vec v, std::int64_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), v.v); }

// Halves the lanes of up to 8 rows at once, by quarters of 128 bits as long as a row has several.
template <int kRows, class Op>
LB_INLINE Vec reduce_rows(const Vec (&rows)[kRows], const Op& op) {
  static_assert(kRows <= 8);
  const auto row = [&](int r) { return rows[r < kRows ? r : 0].v; };
  const auto quarters = [&](int first) {  // of rows first .. first + 3
    const auto halves = [&](int r) {
      return op(_mm512_shuffle_f32x4(row(r), row(r + 1), 0x44), _mm512_shuffle_f32x4(row(r), row(r + 1), 0xee));
    };
    const __m512 a = halves(first);
    const __m512 b = halves(first + 2);
    return op(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  };
  const __m512 low = quarters(0);
  const __m512 high = kRows > 4 ? quarters(4) : low;
  const __m512 pairs = op(_mm512_shuffle_ps(low, high, 0x44), _mm512_shuffle_ps(low, high, 0xee));
  const __m512 ones = op(_mm512_shuffle_ps(pairs, pairs, 0x88), _mm512_shuffle_ps(pairs, pairs, 0xdd));
  // Row r is now in quarter r % 4, lane r / 4.
  return {_mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 0, 0, 0, 0, 0, 0, 0), ones)};
}
template <int kRows>
LB_INLINE Vec reduce_add_rows(const Vec (&rows)[kRows]) {
  return reduce_rows(rows, [](__m512 a, __m512 b) { return _mm512_add_ps(a, b); });
}
template <int kRows>
LB_INLINE Vec reduce_max_rows(const Vec (&rows)[kRows]) {
  return reduce_rows(rows, [](__m512 a, __m512 b) { return _mm512_max_ps(a, b); });
}

LB_INLINE Vec round_nearest(Vec a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
LB_INLINE Vec scale_exponent(Vec a, Vec n) { return {_mm512_scalef_ps(a.v, n.v)}; }

struct Words {
  __m512i v;
};

LB_INLINE Words load_lanes(const std::uint32_t* p) { return {_mm512_loadu_si512(p)}; }
LB_INLINE void store_lanes(std::uint32_t* p, Words words) { _mm512_storeu_si512(p, words.v); }
LB_INLINE VecPair bf16_pairs(Words words) {
  return {{_mm512_castsi512_ps(_mm512_slli_epi32(words.v, 16))},
          {_mm512_castsi512_ps(_mm512_and_si512(words.v, _mm512_set1_epi32(static_cast<int>(0xffff0000U))))}};
}
LB_INLINE VecPair load_f16_pairs(const std::uint32_t* words) {
  const __m512i w = _mm512_loadu_si512(words);
  return {{_mm512_cvtph_ps(_mm512_cvtepi32_epi16(w))},
          {_mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(w, 16)))}};
}
// The upper halves after rounding to nearest even, in the low 16 bits of each lane. NaN becomes a quiet NaN.
LB_INLINE __m512i bf16_bits(Vec a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  return _mm512_mask_or_epi32(rounded, nan, _mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
}
LB_INLINE Vec round_to_bf16(Vec a) { return {_mm512_castsi512_ps(_mm512_slli_epi32(bf16_bits(a), 16))}; }
LB_INLINE void store_bf16(std::uint16_t* p, Vec a) {
#ifdef __AVX512BF16__  // takes subnormal numbers for zero
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a.v)));
#else
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(bf16_bits(a)));
#endif
}

struct Decoder {
  __m512i upper;
};

LB_INLINE Decoder load_decoder(const std::uint8_t* upper) {
  return {_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(upper)))};
}
LB_INLINE void decode_step(const Decoder& decoder, const std::uint8_t* bytes, __m512i nibbles, Words* words) {
  const __m512i lower = _mm512_loadu_si512(bytes);
  const __m512i upper = _mm512_shuffle_epi8(decoder.upper, nibbles);
  words[0] = {_mm512_unpacklo_epi8(lower, upper)};
  words[1] = {_mm512_unpackhi_epi8(lower, upper)};
}
LB_INLINE void decode(const Decoder& decoder, const std::uint8_t* pair, Words (&words)[4]) {
  const __m512i nibbles = _mm512_loadu_si512(pair + 128);
  const __m512i low = _mm512_set1_epi8(15);
  decode_step(decoder, pair, _mm512_and_si512(nibbles, low), words);
  decode_step(decoder, pair + 64, _mm512_and_si512(_mm512_srli_epi16(nibbles, 4), low), words + 2);
}

LB_INLINE void transpose_words(const std::uint32_t* source, std::int64_t source_stride, std::uint32_t* target,
                               std::int64_t target_stride) {
  __m512i r[16];
  __m512i t[16];
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(source + i * source_stride);
  // Within each 128-bit quarter: rows 4b .. 4b+3 become a 4 x 4 transpose.
  for (int b = 0; b < 16; b += 4) {
    const __m512i lo01 = _mm512_unpacklo_epi32(r[b], r[b + 1]);
    const __m512i hi01 = _mm512_unpackhi_epi32(r[b], r[b + 1]);
    const __m512i lo23 = _mm512_unpacklo_epi32(r[b + 2], r[b + 3]);
    const __m512i hi23 = _mm512_unpackhi_epi32(r[b + 2], r[b + 3]);
    t[b] = _mm512_unpacklo_epi64(lo01, lo23);
    t[b + 1] = _mm512_unpackhi_epi64(lo01, lo23);
    t[b + 2] = _mm512_unpacklo_epi64(hi01, hi23);
    t[b + 3] = _mm512_unpackhi_epi64(hi01, hi23);
  }
  // t[4b + c] holds in quarter q the words (rows 4b .. 4b+3, column 4q + c): a 4 x 4 transpose of quarters is left.
  for (int c = 0; c < 4; ++c) {
    const __m512i a = _mm512_shuffle_i32x4(t[c], t[4 + c], 0x88);
    const __m512i b = _mm512_shuffle_i32x4(t[8 + c], t[12 + c], 0x88);
    const __m512i d = _mm512_shuffle_i32x4(t[c], t[4 + c], 0xdd);
    const __m512i e = _mm512_shuffle_i32x4(t[8 + c], t[12 + c], 0xdd);
    _mm512_storeu_si512(target + c * target_stride, _mm512_shuffle_i32x4(a, b, 0x88));
    _mm512_storeu_si512(target + (4 + c) * target_stride, _mm512_shuffle_i32x4(d, e, 0x88));
    _mm512_storeu_si512(target + (8 + c) * target_stride, _mm512_shuffle_i32x4(a, b, 0xdd));
    _mm512_storeu_si512(target + (12 + c) * target_stride, _mm512_shuffle_i32x4(d, e, 0xdd));
  }
}
