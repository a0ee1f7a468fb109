#include "model/decoder.h"
#include "model/model.h"

namespace lb {

// LlamaForCausalLM. Published checkpoints have no biases; `attention_bias` configs have them on all four projections.
Graph llama_layer(const ModelConfig& config) {
  return decoder_layer(config, {.qkv_bias = config.qkv_bias, .output_bias = config.output_bias});
}

}  // namespace lb
