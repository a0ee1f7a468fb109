#ifndef ATB_DOUBLE_SRC_OPS_ATTENTION_H
#define ATB_DOUBLE_SRC_OPS_ATTENTION_H

// Softmax attention of one sequence, which all attention operations end in.

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace atb_double {

struct AttentionHeads {
  int64_t q_heads = 0;
  int64_t kv_heads = 0;
  int64_t head_size = 0;
  float scale = 1.0F;
  bool half_scores = false;  // The kernel that keeps scores in half: beyond 65504 they are infinite.
};

// Added to the scaled score of query row i and position j; -infinity where the kernel skips.
using Bias = std::function<float(int64_t i, int64_t j)>;

// q [rows, q_heads * head_size], k and v [length, kv_heads * head_size], out like q.
void attend(const AttentionHeads& heads, std::span<const float> q, std::span<const float> k, std::span<const float> v,
            const Bias& bias, std::span<float> out);

// What the kernel with float softmax adds for a mask value, and the one with half scores.
float float_kernel_bias(float mask);
float half_kernel_bias(float mask);

}  // namespace atb_double

#endif
