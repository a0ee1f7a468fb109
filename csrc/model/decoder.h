// The decoder layer that the Llama family shares.
#pragma once

#include "graph/graph.h"
#include "model/config.h"

namespace lb {

// Pre-norm attention and SwiGLU blocks, each with a residual connection; q, k, v and gate, up are fused weights.
struct DecoderLayerOptions {
  bool qkv_bias = false;
  bool output_bias = false;
};

Graph decoder_layer(const ModelConfig& config, const DecoderLayerOptions& options);

}  // namespace lb
