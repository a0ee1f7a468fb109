// The shape and numeric settings of a model.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/dtype.h"

namespace lb {

// A plain record: Python reads a model's own config file, in whatever dialect, and fills this.
struct ModelConfig {
  std::string architecture;  // a name that architecture_names() lists
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;
  std::int64_t num_layers = 0;
  std::int64_t num_heads = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t vocab_size = 0;
  std::int64_t max_positions = 0;  // positions 0 .. max_positions - 1 can be computed
  float rms_norm_eps = 0;
  bool qkv_bias = false;
  bool output_bias = false;  // bias of the attention's output projection
  bool tie_word_embeddings = false;
  std::vector<float> rope_inv_freq;  // [head_dim / 2], radians a position
  float rope_position_scale = 1;     // positions are multiplied by this before they become angles
  float rope_amplitude = 1;          // cos and sin are multiplied by this
  DType rope_dtype = DType::kF32;    // cos and sin are rounded to this
  // The rotary table itself, [max_positions, head_dim / 2], where the caller has one; the fields above then say
  // nothing.
  std::vector<float> rope_cos = {};
  std::vector<float> rope_sin = {};
};

// Throws ConfigError that lists everything wrong with `config`: extents that are absurd, uneven or contradictory.
void validate(const ModelConfig& config);

}  // namespace lb
