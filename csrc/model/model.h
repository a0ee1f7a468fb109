// Architectures: from a config to the graphs that compute the model.
#pragma once

#include <string>
#include <vector>

#include "graph/graph.h"
#include "model/config.h"

namespace lb {

// The architectures that build_model() knows.
const std::vector<std::string>& architecture_names();

// Validates `config` and builds the model's graphs and rope table. Throws ConfigError.
ModelGraph build_model(const ModelConfig& config);

// One small file each. A layer graph takes and gives [T, E].
Graph llama_layer(const ModelConfig& config);
Graph qwen2_layer(const ModelConfig& config);

}  // namespace lb
