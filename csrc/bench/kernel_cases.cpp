#include "bench/kernel_cases.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>

#include "backend/cpu/attention_pieces.h"
#include "backend/cpu/cache_layout.h"
#include "backend/cpu/linear_pieces.h"
#include "backend/cpu/panel_coder.h"
#include "backend/cpu/work_shares.h"
#include "base/error.h"
#include "base/memory.h"
#include "bench/scheduler_case.h"
#include "engine/sampler.h"

namespace lb::bench {
namespace {

using cpu::kLanes;
using cpu::kPanel;

// Weights that a call reads come from memory, not from a cache, when calls go through so many bytes of them in turn.
constexpr std::size_t kColdBytes = std::size_t{256} << 20;

// Random words whose 16-bit halves, and the whole as a float, are numbers around 0.01 of either sign.
void fill_random(Buffer& buffer) {
  std::mt19937 random(1);
  auto* words = reinterpret_cast<std::uint32_t*>(buffer.data());
  const std::size_t count = buffer.size() / sizeof(std::uint32_t);
  const std::size_t period = std::min(count, std::size_t{1} << 20);
  for (std::size_t i = 0; i < period; ++i) words[i] = 0x3c003c00U | (random() & 0x80ff80ffU);
  for (std::size_t i = period; i < count; ++i) words[i] = words[i - period];
}

std::shared_ptr<Buffer> random_buffer(std::int64_t bytes) {
  auto buffer = std::make_shared<Buffer>(static_cast<std::size_t>(bytes));
  fill_random(*buffer);
  return buffer;
}

Work work_of(std::int64_t bytes, std::int64_t flops) {
  return {static_cast<double>(bytes), static_cast<double>(flops)};
}

std::int64_t operand_bytes(const KernelContext& context) {
  return static_cast<std::int64_t>(cpu::size_bytes(context.operand));
}

// Weights as a model has them, packed as the backend does: copies of a matrix of `panels` panels.
struct Matrix {
  Matrix(std::int64_t panels, std::int64_t in_columns, const KernelContext& context)
      : coded(context.kernels.decodes && cpu::can_be_coded(context.dtype, in_columns)),
        bytes(panels * cpu::panel_bytes(context.dtype, coded, in_columns)),
        copies(std::max<std::int64_t>(static_cast<std::int64_t>(kColdBytes) / bytes, 1)),
        memory(static_cast<std::size_t>(copies * bytes)),
        coder(context.kernels) {
    if (!coded) {
      fill_random(memory);
      return;
    }
    const std::int64_t steps = in_columns / cpu::elements_per_step(context.dtype);
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0.0F, 0.02F);
    std::vector<Bf16> elements(static_cast<std::size_t>(steps) * cpu::kStepElements);
    for (Bf16& element : elements) element = to_bf16(normal(random));
    for (std::int64_t panel = 0; panel < copies * panels; ++panel)
      coder.code(reinterpret_cast<const std::uint32_t*>(elements.data()), steps,
                 memory.data() + panel * (bytes / panels));
  }

  bool coded;
  std::int64_t bytes;
  std::int64_t copies;
  Buffer memory;
  cpu::PanelCoder coder;
};

KernelCase linear_case(const Shape& shape, const KernelContext& context) {
  const std::int64_t rows = shape[0];
  const std::int64_t out_columns = shape[1];
  const std::int64_t in_columns = round_up(shape[2], std::int64_t{2});
  const std::int64_t panels = ceil_div(out_columns, std::int64_t{kPanel});
  auto x = random_buffer(rows * in_columns * operand_bytes(context));
  auto matrix = std::make_shared<Matrix>(panels, in_columns, context);
  auto out = random_buffer(rows * panels * kPanel * 4);
  auto copy = std::make_shared<std::int64_t>(0);
  auto shares = std::make_shared<cpu::WorkShares>(context.pool.size());
  KernelCase result;
  result.work = work_of(matrix->bytes, 2 * rows * out_columns * in_columns);
  result.call = [=, &context] {
    const std::byte* weight = matrix->memory.data() + *copy * matrix->bytes;
    *copy = (*copy + 1) % matrix->copies;
    const cpu::LinearPieces pieces(rows, panels, context.pool.size());
    shares->reset();
    context.pool.run([&](int member) {
      shares->run(member, pieces.count(), [&](std::int64_t piece) {
        const std::int64_t first_row = pieces.first_row(piece);
        cpu::LinearArgs args{.x = x->data() + first_row * in_columns * operand_bytes(context),
                             .ldx = in_columns,
                             .operand = context.operand,
                             .weight = weight,
                             .weight_dtype = context.dtype,
                             .coded = matrix->coded,
                             .in_columns = in_columns,
                             .out_columns = out_columns,
                             .out = out->data() + first_row * panels * kPanel * 4,
                             .ldo = panels * kPanel};
        pieces.select(piece, args);
        context.kernels.linear(args);
      });
    });
  };
  return result;
}

// The caches of some sequences of one layer, as the CPU backend lays them out, and a rope table, of cosines and sines.
struct CacheMemory {
  CacheMemory(std::int64_t sequences, std::int64_t context_len, std::int64_t kv_heads, std::int64_t head_size,
              DType dtype)
      : layout(1, kv_heads, head_size, dtype), head_dim(head_size), sequence_words(layout.words(context_len)) {
    memory = random_buffer(sequences * sequence_words * 4);
    rope = random_buffer(context_len * head_dim / 2 * 4);
    block_table.resize(static_cast<std::size_t>(ceil_div(context_len, kBlock)));
    std::iota(block_table.begin(), block_table.end(), 0);
  }

  cpu::CacheView head(std::int64_t sequence, std::int64_t kv_head) const {
    return layout.view(reinterpret_cast<std::uint32_t*>(memory->data()) + sequence * sequence_words, 0, kv_head,
                       kBlock);
  }
  cpu::RopeRow rope_at(std::int64_t position) const {
    const auto* row = reinterpret_cast<const float*>(rope->data()) + position * head_dim / 2;
    return {row, row};
  }

  static constexpr std::int64_t kBlock = 16;
  cpu::CacheLayout layout;
  std::int64_t head_dim;
  std::int64_t sequence_words;
  std::vector<std::int32_t> block_table;
  std::shared_ptr<Buffer> memory;
  std::shared_ptr<Buffer> rope;
};

// How the backend shares out a step in which each sequence has so many tokens.
std::shared_ptr<cpu::AttentionPieces> attention_pieces(std::int64_t sequences, std::int64_t tokens,
                                                       std::int64_t context_len, std::int64_t heads,
                                                       const cpu::CacheLayout& layout, int threads) {
  ProgramOptions options;
  options.max_sequences = sequences;
  options.max_blocks = ceil_div(context_len, CacheMemory::kBlock);
  options.block_size = CacheMemory::kBlock;
  auto pieces = std::make_shared<cpu::AttentionPieces>(heads, layout, options, sequences, threads);
  const std::vector<std::int32_t> context_lens(static_cast<std::size_t>(sequences),
                                               static_cast<std::int32_t>(context_len));
  std::vector<std::int32_t> seq_begin;
  for (std::int64_t i = 0; i <= sequences; ++i) seq_begin.push_back(static_cast<std::int32_t>(i * tokens));
  StepBatch batch;
  batch.seq_begin = seq_begin;
  batch.context_len = context_lens;
  pieces->prepare(batch, Rows::kTokens);
  return pieces;
}

// The last tokens of each sequence attend to its context.
KernelCase attention_case(const Shape& shape, const KernelContext& context) {
  const std::int64_t sequences = shape[0], tokens = shape[1], context_len = shape[2], heads = shape[3],
                     kv_heads = shape[4], head_dim = shape[5];
  if (tokens > context_len || heads % kv_heads != 0 || head_dim % 2 != 0 || head_dim > cpu::kMaxHeadDim)
    throw ConfigError("attention: expected tokens <= context, heads a multiple of kv heads, an even head size");
  auto cache = std::make_shared<CacheMemory>(sequences, context_len, kv_heads, head_dim, context.activation_dtype);
  const std::int64_t ld = heads * head_dim;
  auto q = random_buffer(sequences * tokens * ld * 4);
  auto out = random_buffer(sequences * tokens * ld * 4);
  const std::size_t scratch_bytes = round_up(cpu::attention_scratch_bytes(head_dim), std::size_t{4096});
  auto scratch = std::make_shared<Buffer>(scratch_bytes * static_cast<std::size_t>(context.pool.size()));
  auto pieces = attention_pieces(sequences, tokens, context_len, heads, cache->layout, context.pool.size());
  auto shares = std::make_shared<cpu::WorkShares>(context.pool.size());
  const std::int64_t group = heads / kv_heads;
  const std::int64_t positions = tokens * context_len - tokens * (tokens - 1) / 2;  // pairs of a token and a position
  KernelCase result;
  result.work = work_of(sequences * 2 * kv_heads * head_dim * context_len *
                            static_cast<std::int64_t>(size_bytes(context.activation_dtype)),
                        4 * sequences * heads * head_dim * positions);
  result.call = [=, &context] {
    const auto context_of = [&](const cpu::AttentionPieces::Piece& piece) {
      return cpu::HeadContext{.cache = cache->head(static_cast<std::int64_t>(piece.queries.sequence), piece.kv_head),
                              .block_table = cache->block_table.data(),
                              .length = context_len,
                              .begin = piece.begin()};
    };
    shares->reset();
    context.pool.run([&](int member) {
      shares->run(member, pieces->count(), [&](std::int64_t index) {
        const cpu::AttentionPieces::Piece piece = (*pieces)[index];
        const std::int64_t offset = piece.queries.first_row * ld + piece.kv_head * group * head_dim;
        const cpu::AttentionArgs args{
            .context = context_of(piece),
            .next = index + 1 < pieces->count() ? context_of((*pieces)[index + 1]) : cpu::HeadContext{},
            .q = reinterpret_cast<const float*>(q->data()) + offset,
            .ldq = ld,
            .rope = cache->rope_at(0),
            .first_position = piece.queries.first_position,
            .group = group,
            .row_begin = piece.row_begin,
            .row_end = piece.row_end,
            .scale = 1.0F / std::sqrt(static_cast<float>(head_dim)),
            .operand = context.operand,
            .out = out->data() + offset * operand_bytes(context),
            .ldo = ld,
            .scratch = scratch->data() + static_cast<std::size_t>(member) * scratch_bytes,
            .tile = piece.tile,
            .num_tiles = piece.num_tiles,
            .tiles = piece.tiles};
        context.kernels.attend(args);
        if (piece.tile >= 0 && pieces->finish_tile(piece)) context.kernels.merge_tiles(args);
      });
    });
  };
  return result;
}

// Rotates keys and writes them and values to the cache.
KernelCase rope_case(const Shape& shape, const KernelContext& context) {
  const std::int64_t tokens = shape[0], kv_heads = shape[1], head_dim = round_up(shape[2], std::int64_t{2});
  auto cache = std::make_shared<CacheMemory>(1, tokens, kv_heads, head_dim, context.activation_dtype);
  auto kv = random_buffer(2 * tokens * kv_heads * head_dim * 4);
  KernelCase result;
  const auto cached = static_cast<std::int64_t>(size_bytes(context.activation_dtype));
  result.work = work_of(2 * tokens * kv_heads * head_dim * (4 + cached), 0);
  result.call = [=, &context] {
    const auto* keys = reinterpret_cast<const float*>(kv->data());
    const std::int64_t runs = ceil_div(tokens, std::int64_t{kLanes});
    parallel_for(context.pool, runs * kv_heads, [&](std::int64_t piece) {
      const std::int64_t first = piece / kv_heads * kLanes, head = piece % kv_heads;
      const std::int64_t row = first * kv_heads + head;
      context.kernels.cache_write({.cache = cache->head(0, head),
                                   .key = keys + row * head_dim,
                                   .ldk = kv_heads * head_dim,
                                   .value = keys + (tokens * kv_heads + row) * head_dim,
                                   .ldv = kv_heads * head_dim,
                                   .rope = cache->rope_at(first),
                                   .slot = first,
                                   .tokens = std::min(tokens - first, std::int64_t{kLanes}),
                                   .last_of_sequence = first + kLanes >= tokens});
    });
  };
  return result;
}

KernelCase norm_case(const Shape& shape, const KernelContext& context) {
  const std::int64_t rows = shape[0], columns = shape[1];
  const std::int64_t padded = round_up(columns, std::int64_t{kLanes});
  auto x = random_buffer(rows * padded * 4);
  auto weight = random_buffer(padded * 4);
  auto out = random_buffer(rows * padded * 4);
  KernelCase result;
  result.work = work_of(rows * columns * (4 + operand_bytes(context)), 0);
  result.call = [=, &context] {
    parallel_for(context.pool, ceil_div(rows, std::int64_t{8}), [&](std::int64_t piece) {
      for (std::int64_t row = piece * 8; row < std::min((piece + 1) * 8, rows); ++row) {
        context.kernels.rms_norm({.x = reinterpret_cast<const float*>(x->data()) + row * padded,
                                  .weight = reinterpret_cast<const float*>(weight->data()),
                                  .columns = columns,
                                  .epsilon = 1e-6F,
                                  .operand = context.operand,
                                  .out = out->data() + row * padded * operand_bytes(context)});
      }
    });
  };
  return result;
}

// One row of logits on one thread, as the engine samples it.
KernelCase sampler_case(const Shape& shape, const KernelContext& context) {
  const std::int64_t vocab = shape[0];
  auto request = std::make_shared<Request>();
  request->params.top_k = static_cast<std::int32_t>(shape[1]);
  request->params.top_p = static_cast<float>(shape[2]) / 100;
  if (shape[2] < 1 || shape[2] > 100) throw ConfigError("sampler: expected a top_p of 1 to 100 per cent");
  request->prompt = {1, 2, 3};
  auto sequence = std::make_shared<Sequence>();
  sequence->request = request;
  sequence->tokens = request->prompt;
  auto sampler = std::make_shared<Sampler>(context.kernels, vocab, std::span<const std::int32_t>{});
  auto logits = std::make_shared<std::vector<float>>(static_cast<std::size_t>(vocab));
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0F, 3.0F);  // about what models give
  for (float& x : *logits) x = normal(random);
  KernelCase result;
  result.work = work_of(vocab * 4, 0);
  result.call = [=] {
    ++sequence->seed;
    LB_CHECK(sampler->choose(*logits, *sequence) >= 0);
  };
  return result;
}

struct Kernel {
  const char* name;
  const char* shape;
  KernelCase (*make)(const Shape& shape, const KernelContext& context);
  std::vector<Shape> usual;
};

const std::vector<Kernel>& all_kernels() {
  static const std::vector<Kernel> all = {
      {"gemv",
       "ROWSxOUTxIN",
       linear_case,
       {{1, 896, 896}, {1, 9728, 896}, {1, 151936, 896}, {1, 12288, 4096}, {1, 4096, 11008}}},
      {"gemm",
       "ROWSxOUTxIN",
       linear_case,
       {{8, 9728, 896}, {32, 9728, 896}, {512, 1152, 896}, {512, 9728, 896}, {512, 896, 4864}, {512, 12288, 4096}}},
      {"attention",
       "SEQUENCESxTOKENSxCONTEXTxHEADSxKV_HEADSxHEAD_DIM",
       attention_case,
       {{1, 1, 4096, 14, 2, 64},
        {32, 1, 256, 14, 2, 64},
        {1, 512, 512, 14, 2, 64},
        {1, 512, 2048, 14, 2, 64},
        {1, 512, 2048, 32, 32, 128}}},
      {"rope", "TOKENSxKV_HEADSxHEAD_DIM", rope_case, {{1, 2, 64}, {512, 2, 64}, {512, 32, 128}}},
      {"norm", "ROWSxCOLUMNS", norm_case, {{1, 896}, {512, 896}, {512, 4096}}},
      {"sampler",
       "VOCABxTOP_KxTOP_P_PERCENT",
       sampler_case,
       {{151936, 1, 100}, {151936, 0, 100}, {151936, 50, 100}, {151936, 0, 90}}},
      {"scheduler", "SEQUENCESxCONTEXT", scheduler_case, {{1, 512}, {64, 512}, {64, 4096}}},
  };
  return all;
}

const Kernel& kernel_named(std::string_view name) {
  std::string known;
  for (const Kernel& kernel : all_kernels()) {
    if (name == kernel.name) return kernel;
    known += cat(known.empty() ? "" : ", ", kernel.name);
  }
  throw ConfigError(cat("there is no kernel '", name, "'; there are ", known));
}

}  // namespace

std::vector<std::string> kernel_names() {
  std::vector<std::string> names;
  for (const Kernel& kernel : all_kernels()) names.emplace_back(kernel.name);
  return names;
}

std::string kernel_shape(std::string_view kernel) { return kernel_named(kernel).shape; }

std::vector<Shape> usual_shapes(std::string_view kernel) { return kernel_named(kernel).usual; }

void check_shape(std::string_view name, const Shape& shape) {
  const std::string_view letters = kernel_named(name).shape;
  const auto extents = static_cast<std::size_t>(std::count(letters.begin(), letters.end(), 'x')) + 1;
  if (shape.size() != extents)
    throw ConfigError(cat(name, " has shapes ", letters, ", found ", shape.size(), " extents"));
  for (std::size_t i = 0; i < shape.size(); ++i) {
    const bool may_be_zero = name == "sampler" && i == 1;  // top_k
    if (shape[i] < 1 && !may_be_zero) throw ConfigError(cat(name, ": extents must be at least 1"));
  }
}

KernelCase make_case(std::string_view name, const Shape& shape, const KernelContext& context) {
  check_shape(name, shape);
  return kernel_named(name).make(shape, context);
}

}  // namespace lb::bench
