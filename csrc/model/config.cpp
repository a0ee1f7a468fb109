#include "model/config.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "model/model.h"

namespace lb {
namespace {

// Far above any published model, and small enough that no product of three of them overflows 63 bits.
constexpr std::int64_t kMaxExtent = std::int64_t{1} << 20;
constexpr std::int64_t kMaxVocab = std::int64_t{1} << 24;
constexpr std::int64_t kMaxPositions = std::int64_t{1} << 24;

bool all_finite(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); });
}

// What is wrong with the rotary table or with the settings that it is made from; nothing: "".
std::string rope_problem(const ModelConfig& config) {
  const std::int64_t half_dim = config.head_dim / 2;
  const bool has_table = !config.rope_cos.empty() || !config.rope_sin.empty();
  const auto has_size = [](const std::vector<float>& values, std::int64_t size) {
    return static_cast<std::int64_t>(values.size()) == size;
  };
  if (has_table && !(has_size(config.rope_cos, config.max_positions * half_dim) &&
                     has_size(config.rope_sin, config.max_positions * half_dim))) {
    return cat("rope tables have ", config.rope_cos.size(), " and ", config.rope_sin.size(), " elements, expected ",
               config.max_positions, " positions x ", half_dim);
  }
  if (!has_table && !has_size(config.rope_inv_freq, half_dim)) {
    return cat("rope has ", config.rope_inv_freq.size(), " frequencies, expected head_dim / 2 = ", half_dim);
  }
  const bool finite = all_finite(config.rope_cos) && all_finite(config.rope_sin) && all_finite(config.rope_inv_freq) &&
                      std::isfinite(config.rope_position_scale) && std::isfinite(config.rope_amplitude);
  return finite ? "" : "rope settings are not finite numbers";
}

}  // namespace

void validate(const ModelConfig& config) {
  std::string problems;
  const auto require = [&problems](bool holds, const std::string& problem) {
    if (!holds) problems += "\n  " + problem;
  };
  const auto in_range = [&](const char* field, std::int64_t value, std::int64_t maximum) {
    require(value >= 1 && value <= maximum, cat(field, " is ", value, ", expected 1 to ", maximum));
  };
  const std::vector<std::string>& names = architecture_names();
  require(std::find(names.begin(), names.end(), config.architecture) != names.end(),
          cat("architecture is '", config.architecture, "', which is not supported"));
  in_range("hidden_size", config.hidden_size, kMaxExtent);
  in_range("intermediate_size", config.intermediate_size, kMaxExtent);
  in_range("num_layers", config.num_layers, 4096);
  in_range("num_heads", config.num_heads, 4096);
  in_range("num_kv_heads", config.num_kv_heads, 4096);
  in_range("head_dim", config.head_dim, 1024);
  in_range("vocab_size", config.vocab_size, kMaxVocab);
  in_range("max_positions", config.max_positions, kMaxPositions);
  require(config.num_kv_heads < 1 || config.num_heads % config.num_kv_heads == 0,
          cat("num_heads is ", config.num_heads, ", which is not a multiple of num_kv_heads ", config.num_kv_heads));
  require(config.head_dim % 2 == 0, cat("head_dim is ", config.head_dim, ", expected an even number"));
  // Weights are packed in pairs along the input dimension.
  require(config.hidden_size % 2 == 0, cat("hidden_size is ", config.hidden_size, ", expected an even number"));
  require(config.intermediate_size % 2 == 0,
          cat("intermediate_size is ", config.intermediate_size, ", expected an even number"));
  require(config.rms_norm_eps > 0 && config.rms_norm_eps < 1,
          cat("rms_norm_eps is ", config.rms_norm_eps, ", expected a number between 0 and 1"));
  if (const std::string problem = rope_problem(config); !problem.empty()) problems += "\n  " + problem;
  if (!problems.empty()) throw ConfigError("the model config cannot be used:" + problems);
}

}  // namespace lb
