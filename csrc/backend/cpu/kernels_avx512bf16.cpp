// AVX-512 with the bf16 dot product. This file alone is compiled with those flags.
#include <immintrin.h>

#include "backend/cpu/coded_panel.h"
#include "backend/cpu/kernels.h"

#define LB_INLINE inline __attribute__((always_inline))

namespace lb::cpu::avx512bf16 {
namespace {

#include "backend/cpu/simd_avx512.h"
#include "backend/cpu/shapes_avx512.inc"
#include "backend/cpu/kernels_body.inc"

// bf16 activations x words of two bf16, with the instruction that adds both products to an f32 sum.
struct Bf16xBf16 {
  using Lhs = std::uint16_t;
  using Rhs = __m512bh;
  static constexpr int kLhsPerStep = 2;
  static constexpr bool kCanBeCoded = true;
  static constexpr int kQuickRows = 1;
  LB_INLINE static Rhs from_words(Words words) { return reinterpret_cast<__m512bh>(words.v); }
  LB_INLINE static Rhs load_words(const std::uint32_t* words) { return from_words(load_lanes(words)); }
  LB_INLINE static Vec mac(Vec acc, const Lhs* x, const Rhs& w) {
    int pair;
    __builtin_memcpy(&pair, x, sizeof(pair));
    return {_mm512_dpbf16_ps(acc.v, reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair)), w)};
  }

  // x = 2^x for x <= 0 that becomes bf16: as the general one, but of degree 4, with a relative error of at most 3e-6,
  // and without its clamp: what is less than 2^-126 becomes 0.
  template <int kCount>
  LB_INLINE static void exp2(Vec (&x)[kCount]) {
    Vec n[kCount];
    Vec p[kCount];
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) n[i] = round_nearest(x[i]);
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) x[i] = sub(x[i], n[i]);
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) p[i] = set1(9.58285e-3F);
    for (const float c : {5.590643e-2F, 2.4024099e-1F, 6.9312419e-1F, 1.0F}) {
#pragma GCC unroll 8
      for (int i = 0; i < kCount; ++i) p[i] = fma(p[i], x[i], set1(c));
    }
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) x[i] = scale_exponent(p[i], n[i]);
  }
  LB_INLINE static void store_two(Lhs* p, Vec first, Vec second) {
    _mm512_storeu_si512(p, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second.v, first.v)));
  }
};

// Latency 6 at one a cycle asks for at least 6 sums; 24 of the 32 registers hold sums. With many rows, 6 x 4 needs 10
// loads for 24 products. With few, the whole height passes over a panel at once, so that it is read only once;
// attention of 7 heads to a kv head then has 28 sums.
struct DotShape {
  static constexpr int kFewLimit = 36, kFewRows = 12, kFewVecs = 2;
  static constexpr int kManyRows = 6, kManyVecs = 4;
  static constexpr int kAttentionRows = 6, kAttentionVecs = 4;
  static constexpr int kAttentionFewRows = 8, kAttentionFewSums = 28;
};

inline void linear(const LinearArgs& args) {
  if (args.operand == Operand::kBf16) {
    linear_with<DotShape, Bf16xBf16>(args);
  } else {
    linear_f32(args);
  }
}

inline void attend(const AttentionArgs& args) {
  if (args.operand == Operand::kBf16 && streams_into_l1) {
    Attention<Bf16xBf16, DotShape, true>(args).run();
  } else if (args.operand == Operand::kBf16) {
    Attention<Bf16xBf16, DotShape, false>(args).run();
  } else {
    attend_f32(args);
  }
}

}  // namespace
}  // namespace lb::cpu::avx512bf16

namespace lb::cpu {

const Kernels* avx512bf16_kernels() {
  using namespace avx512bf16;
  static constexpr Kernels kernels{"avx512bf16", true,    true,        linear,       rms_norm,
                                   cache_write,  attend,  merge_tiles, pack_rows,    code_panel,
                                   max_value,    sum_exp, exp_weights, sum_at_least, collect_between};
  return &kernels;
}

}  // namespace lb::cpu
