#include "attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace atb_double {
namespace {

constexpr float kHalfMax = 65504.0F;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

float saturate_half(float value) { return std::fabs(value) > kHalfMax ? std::copysign(kInfinity, value) : value; }

}  // namespace

float float_kernel_bias(float mask) { return mask == 0.0F ? 0.0F : mask * -3e38F; }
float half_kernel_bias(float mask) { return mask; }

void attend(const AttentionHeads& heads, std::span<const float> q, std::span<const float> k, std::span<const float> v,
            const Bias& bias, std::span<float> out) {
  const int64_t q_width = heads.q_heads * heads.head_size;
  const int64_t kv_width = heads.kv_heads * heads.head_size;
  const int64_t rows = static_cast<int64_t>(q.size()) / q_width;
  const int64_t length = static_cast<int64_t>(k.size()) / kv_width;
  std::vector<float> added(static_cast<std::size_t>(length));
  std::vector<float> scores(static_cast<std::size_t>(length));
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < length; ++j) {
      added[static_cast<std::size_t>(j)] = bias(i, j);
    }
    for (int64_t head = 0; head < heads.q_heads; ++head) {
      const int64_t kv_offset = head / (heads.q_heads / heads.kv_heads) * heads.head_size;
      const float* query = q.data() + i * q_width + head * heads.head_size;
      for (int64_t j = 0; j < length; ++j) {
        const float* key = k.data() + j * kv_width + kv_offset;
        float score = 0;
        for (int64_t d = 0; d < heads.head_size; ++d) {
          score += query[d] * key[d];
        }
        const auto at = static_cast<std::size_t>(j);
        const bool skipped = added[at] == -kInfinity;
        const float scaled = (heads.half_scores ? saturate_half(score) : score) * heads.scale;
        const float biased = scaled + added[at];
        scores[at] = skipped ? -kInfinity : heads.half_scores ? saturate_half(biased) : biased;
      }
      const float top = *std::max_element(scores.begin(), scores.end());
      float sum = 0;
      for (float& score : scores) {
        score = std::exp(score - top);
        sum += score;
      }
      float* y = out.data() + i * q_width + head * heads.head_size;
      std::fill_n(y, heads.head_size, 0.0F);
      for (int64_t j = 0; j < length; ++j) {
        const float weight = scores[static_cast<std::size_t>(j)] / sum;
        for (int64_t d = 0; d < heads.head_size; ++d) {
          y[d] += weight * v[static_cast<std::size_t>(j * kv_width + kv_offset + d)];
        }
      }
    }
  }
}

}  // namespace atb_double
