#include "model/model.h"

#include <cmath>

#include "base/error.h"
#include "graph/builder.h"

namespace lb {
namespace {

struct Architecture {
  std::string name;
  Graph (*layer)(const ModelConfig&);
};

const std::vector<Architecture>& architectures() {
  static const std::vector<Architecture> all = {{"llama", llama_layer}, {"qwen2", qwen2_layer}};
  return all;
}

constexpr const char* kEmbeddingName = "model.tok_embeddings.embedding_weight";

Graph embed_graph(const ModelConfig& config) {
  GraphBuilder b("embed");
  return b.finish(b.embed("x", b.weight(kEmbeddingName, {config.vocab_size, config.hidden_size})));
}

Graph head_graph(const ModelConfig& config) {
  GraphBuilder b("head");
  const ValueId x = b.gather_rows("rows", b.input("x", config.hidden_size));
  const ValueId norm = b.weight("model.norm_out.weight", {config.hidden_size});
  // Tied embeddings: the same weight under the same name, which a backend stores once.
  const ValueId lm_head =
      b.weight(config.tie_word_embeddings ? kEmbeddingName : "lm_head.weight", {config.vocab_size, config.hidden_size});
  return b.finish(b.linear("logits", b.rms_norm("final", x, norm, config.rms_norm_eps), lm_head));
}

// As the reference implementations compute it: the angle is a float32 product, its cosine and sine are rounded once.
RopeTable rope_table(const ModelConfig& config) {
  RopeTable table{config.max_positions, config.head_dim / 2, config.rope_cos, config.rope_sin};
  if (!table.cos.empty()) return table;
  const auto size = static_cast<std::size_t>(table.num_positions * table.half_dim);
  table.cos.reserve(size);
  table.sin.reserve(size);
  for (std::int64_t position = 0; position < table.num_positions; ++position) {
    const float scaled = static_cast<float>(position) * config.rope_position_scale;
    for (const float frequency : config.rope_inv_freq) {
      const double angle = scaled * frequency;
      table.cos.push_back(round_to(config.rope_dtype, static_cast<float>(std::cos(angle)) * config.rope_amplitude));
      table.sin.push_back(round_to(config.rope_dtype, static_cast<float>(std::sin(angle)) * config.rope_amplitude));
    }
  }
  return table;
}

}  // namespace

const std::vector<std::string>& architecture_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> list;
    for (const Architecture& architecture : architectures()) list.push_back(architecture.name);
    return list;
  }();
  return names;
}

ModelGraph build_model(const ModelConfig& config) {
  validate(config);
  for (const Architecture& architecture : architectures()) {
    if (architecture.name != config.architecture) continue;
    return {embed_graph(config), architecture.layer(config), head_graph(config), config.num_layers, rope_table(config)};
  }
  LB_CHECK(false, config.architecture);
}

}  // namespace lb
