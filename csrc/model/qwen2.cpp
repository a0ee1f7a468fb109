#include "model/decoder.h"
#include "model/model.h"

namespace lb {

// Qwen2ForCausalLM: the q, k and v projections always have a bias, the output projection never.
Graph qwen2_layer(const ModelConfig& config) { return decoder_layer(config, {.qkv_bias = true, .output_bias = false}); }

}  // namespace lb
