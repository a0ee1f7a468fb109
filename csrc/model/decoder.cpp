#include "model/decoder.h"

#include <array>
#include <cmath>
#include <string>

#include "graph/builder.h"

namespace lb {

Graph decoder_layer(const ModelConfig& config, const DecoderLayerOptions& options) {
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t q_size = config.num_heads * config.head_dim;
  const std::int64_t kv_size = config.num_kv_heads * config.head_dim;
  const std::int64_t ffn = config.intermediate_size;

  GraphBuilder b("layer");
  const ValueId x = b.input("x", hidden);
  const ValueId k_cache = b.cache("k_cache", config.num_kv_heads, config.head_dim);
  const ValueId v_cache = b.cache("v_cache", config.num_kv_heads, config.head_dim);

  const ValueId attention_norm = b.weight("attention_norm.weight", {hidden});
  const ValueId w_qkv = b.weight("attention.w_qkv.weight", {q_size + 2 * kv_size, hidden});
  const ValueId b_qkv = options.qkv_bias ? b.weight("attention.w_qkv.bias", {q_size + 2 * kv_size}) : kNoValue;
  const ValueId w_o = b.weight("attention.wo.weight", {hidden, q_size});
  const ValueId b_o = options.output_bias ? b.weight("attention.wo.bias", {hidden}) : kNoValue;
  const ValueId h = b.rms_norm("attention_in", x, attention_norm, config.rms_norm_eps);
  const ValueId qkv = b.linear("qkv", h, w_qkv, b_qkv);
  const auto parts = b.split(std::array<std::string, 3>{"q", "k", "v"}, qkv, std::array{q_size, kv_size, kv_size});
  const auto [q, k] = b.rope(parts[0], parts[1], config.head_dim);
  const ValueId context =
      b.paged_attention("context", {.q = q,
                                    .k = k,
                                    .v = parts[2],
                                    .k_cache = k_cache,
                                    .v_cache = v_cache,
                                    .out = kNoValue,
                                    .num_heads = config.num_heads,
                                    .num_kv_heads = config.num_kv_heads,
                                    .head_dim = config.head_dim,
                                    .scale = 1.0F / std::sqrt(static_cast<float>(config.head_dim))});
  const ValueId attention_out = b.add("attention_out", x, b.linear("o", context, w_o, b_o));

  const ValueId ffn_norm = b.weight("ffn_norm.weight", {hidden});
  const ValueId w_gate_up = b.weight("feed_forward.w_gate_hidden.weight", {2 * ffn, hidden});
  const ValueId w_down = b.weight("feed_forward.w2.weight", {hidden, ffn});
  const ValueId ffn_in = b.rms_norm("ffn_in", attention_out, ffn_norm, config.rms_norm_eps);
  const ValueId gated = b.swiglu("gated", b.linear("gate_up", ffn_in, w_gate_up));
  return b.finish(b.add("y", attention_out, b.linear("down", gated, w_down)));
}

}  // namespace lb
