#include "bench/presets.h"

#include <cmath>

#include "base/error.h"

namespace lb::bench {
namespace {

struct Preset {
  const char* name;
  const char* architecture;
  std::int64_t hidden, ffn, layers, heads, kv_heads, head_dim, vocab;
  bool tied;
  float rope_theta;
};

// From the config.json of each model's first publisher. "tiny" is for tests.
constexpr Preset kPresets[] = {
    {"llama2-7b", "llama", 4096, 11008, 32, 32, 32, 128, 32000, false, 10000},
    {"llama3-8b", "llama", 4096, 14336, 32, 32, 8, 128, 128256, false, 500000},
    {"qwen2-7b", "qwen2", 3584, 18944, 28, 28, 4, 128, 152064, false, 1000000},
    {"qwen2-1.5b", "qwen2", 1536, 8960, 28, 12, 2, 128, 151936, true, 1000000},
    {"qwen2-0.5b", "qwen2", 896, 4864, 24, 14, 2, 64, 151936, true, 1000000},
    {"tinyllama-1.1b", "llama", 2048, 5632, 22, 32, 4, 64, 32000, false, 10000},
    {"smollm2-135m", "llama", 576, 1536, 30, 9, 3, 64, 49152, true, 100000},
    {"tiny", "qwen2", 64, 96, 2, 4, 2, 16, 1000, true, 10000},
};

}  // namespace

std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (const Preset& each : kPresets) names.emplace_back(each.name);
  return names;
}

ModelConfig preset(std::string_view name, std::int64_t num_layers, std::int64_t max_positions) {
  std::string known;
  for (const Preset& each : kPresets) {
    known += cat(known.empty() ? "" : ", ", each.name);
    if (name != each.name) continue;
    ModelConfig config{.architecture = each.architecture,
                       .hidden_size = each.hidden,
                       .intermediate_size = each.ffn,
                       .num_layers = num_layers > 0 ? num_layers : each.layers,
                       .num_heads = each.heads,
                       .num_kv_heads = each.kv_heads,
                       .head_dim = each.head_dim,
                       .vocab_size = each.vocab,
                       .max_positions = max_positions,
                       .rms_norm_eps = 1e-6F,
                       .tie_word_embeddings = each.tied,
                       .rope_inv_freq = {}};
    for (std::int64_t i = 0; i < each.head_dim / 2; ++i) {
      config.rope_inv_freq.push_back(
          std::pow(each.rope_theta, static_cast<float>(-2 * i) / static_cast<float>(each.head_dim)));
    }
    return config;
  }
  throw ConfigError(cat("there is no preset '", name, "'; there are ", known));
}

}  // namespace lb::bench
