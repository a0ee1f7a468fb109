#include "backend/cpu/step_runner.h"

#include <algorithm>
#include <cstring>

#include "backend/cpu/linear_pieces.h"

namespace lb::cpu {

template <class F>
void StepRunner::share(std::int64_t count, std::int64_t chunk, F&& f) const {
  shares_.run(member_, ceil_div(count, chunk),
              [&](std::int64_t piece) { f(piece * chunk, std::min((piece + 1) * chunk, count)); });
}

const PackedWeight& StepRunner::weight(int index) const {
  return program_.packed_->weights()[first_weight_ + static_cast<std::size_t>(index)];
}

// Where this thread's range begins in the matrix that is used after this one, or null behind the last. Weights lie in
// the order of their use.
const std::byte* StepRunner::first_read_of_next(const PackedWeight& matrix, std::int64_t rows) const {
  const std::vector<PackedWeight>& all = program_.packed_->weights();
  const auto next = std::find_if(all.begin() + (&matrix - all.data()) + 1, all.end(),
                                 [](const PackedWeight& weight) { return weight.packing != Packing::kVector; });
  if (next == all.end()) return nullptr;
  const LinearPieces pieces(rows, num_panels(*next), program_.pool_.size());
  LinearArgs args;
  pieces.select(shares_.first_piece(member_, pieces.count()), args);
  return next->data + args.panel_begin * panel_bytes(next->dtype, next->coded, next->columns);
}

std::byte* StepRunner::at(View view) const {
  const BufferSpec& buffer = spec(view);
  return const_cast<std::byte*>(program_.arena_.data()) + buffer.offset + view.column * buffer.element_bytes;
}

std::int64_t StepRunner::num_rows(Rows rows) const {
  return static_cast<std::int64_t>(rows == Rows::kTokens ? program_.batch_->token_ids.size()
                                                         : program_.batch_->logit_rows.size());
}

RopeRow StepRunner::rope_at(std::int64_t position) const {
  const std::int64_t offset = position * program_.rope_.half_dim;
  return {program_.rope_.cos.data() + offset, program_.rope_.sin.data() + offset};
}

HeadContext StepRunner::context_of(const AttentionPieces::Piece& piece) const {
  const StepBatch& batch = *program_.batch_;
  return {.cache = program_.cache_view(layer_, piece.kv_head),
          .block_table = batch.block_table.data() +
                         piece.queries.sequence * static_cast<std::size_t>(program_.options_.max_blocks),
          .length = batch.context_len[piece.queries.sequence],
          .begin = piece.begin()};
}

void StepRunner::operator()(const EmbedStep& step) const {
  auto* out = reinterpret_cast<float*>(at(step.out));
  const std::int64_t ld = spec(step.out).ld;
  share(num_rows(Rows::kTokens), 8, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      unpack_row(weight(step.table), program_.batch_->token_ids[static_cast<std::size_t>(t)], out + t * ld);
    }
  });
}

void StepRunner::operator()(const NormStep& step) const {
  const auto* x = reinterpret_cast<const float*>(at(step.x));
  const std::int64_t ldx = spec(step.x).ld;
  const BufferSpec& out = spec(step.out);
  share(num_rows(step.rows), 8, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      program_.kernels_.rms_norm({.x = x + row * ldx,
                                  .weight = reinterpret_cast<const float*>(weight(step.weight).data),
                                  .columns = step.columns,
                                  .epsilon = step.epsilon,
                                  .operand = program_.operand_,
                                  .out = at(step.out) + row * out.ld * out.element_bytes});
    }
  });
}

void StepRunner::operator()(const LinearStep& step) const {
  const PackedWeight& matrix = weight(step.weight);
  LinearArgs args{.x = at(step.x),
                  .ldx = spec(step.x).ld,
                  .rows = num_rows(step.rows),
                  .operand = program_.operand_,
                  .weight = matrix.data,
                  .weight_dtype = matrix.dtype,
                  .coded = matrix.coded,
                  .in_columns = matrix.columns,
                  .out_columns = step.out_columns,
                  .bias = step.bias < 0 ? nullptr : reinterpret_cast<const float*>(weight(step.bias).data),
                  .epilogue = step.epilogue,
                  .out = at(step.out),
                  .ldo = spec(step.out).ld};
  const std::int64_t first_panel = step.first_column / kPanel;
  const std::int64_t end_panel =
      step.epilogue == Epilogue::kSwiGlu ? num_panels(matrix) : ceil_div(step.out_columns, std::int64_t{kPanel});
  const LinearPieces pieces(args.rows, end_panel - first_panel, program_.pool_.size());
  const std::int64_t last_piece = shares_.first_piece(member_ + 1, pieces.count()) - 1;
  const auto* x = at(step.x);
  auto* out = at(step.out);
  shares_.run(member_, pieces.count(), [&](std::int64_t piece) {
    const std::int64_t first_row = pieces.first_row(piece);
    args.x = x + first_row * args.ldx * spec(step.x).element_bytes;
    args.out = out + first_row * args.ldo * spec(step.out).element_bytes;
    pieces.select(piece, args);
    args.panel_begin += first_panel;
    args.panel_end += first_panel;
    args.next = piece == last_piece ? first_read_of_next(matrix, num_rows(step.rows)) : nullptr;
    program_.kernels_.linear(args);
  });
}

void StepRunner::operator()(const CacheStep& step) const {
  const StepBatch& batch = *program_.batch_;
  const auto* k = reinterpret_cast<const float*>(at(step.k));
  const auto* v = reinterpret_cast<const float*>(at(step.v));
  const std::int64_t ldk = spec(step.k).ld;
  const std::int64_t ldv = spec(step.v).ld;
  const std::int64_t runs = std::ssize(program_.cache_runs_);
  const std::int64_t chunk = ceil_div(8 * runs, num_rows(Rows::kTokens));  // about 8 tokens of a head
  share(runs * step.num_kv_heads, chunk, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const auto& run = program_.cache_runs_[static_cast<std::size_t>(i / step.num_kv_heads)];
      const std::int64_t head = i % step.num_kv_heads;
      const auto token = static_cast<std::int64_t>(run.first_token);
      program_.kernels_.cache_write({.cache = program_.cache_view(layer_, head),
                                     .key = k + token * ldk + head * step.head_dim,
                                     .ldk = ldk,
                                     .value = v + token * ldv + head * step.head_dim,
                                     .ldv = ldv,
                                     .rope = rope_at(batch.positions[run.first_token]),
                                     .slot = batch.slots[run.first_token],
                                     .tokens = run.tokens,
                                     .last_of_sequence = run.last_of_sequence});
    }
  });
}

void StepRunner::operator()(const AttentionStep& step) const {
  const BufferSpec& out = spec(step.out);
  AttentionPieces& pieces = step.rows == Rows::kTokens ? program_.attention_ : program_.attention_of_logit_rows_;
  shares_.run(member_, pieces.count(), [&](std::int64_t index) {
    const AttentionPieces::Piece piece = pieces[index];
    const QueryRun& queries = piece.queries;
    const std::int64_t group = step.num_heads / step.num_kv_heads;
    const std::int64_t column = piece.kv_head * group * step.head_dim;
    const AttentionArgs args{
        .context = context_of(piece),
        .next = index + 1 < pieces.count() ? context_of(pieces[index + 1]) : HeadContext{},
        .q = reinterpret_cast<const float*>(at(step.q)) + queries.first_row * spec(step.q).ld + column,
        .ldq = spec(step.q).ld,
        .rope = rope_at(0),
        .first_position = queries.first_position,
        .group = group,
        .row_begin = piece.row_begin,
        .row_end = piece.row_end,
        .scale = step.scale,
        .operand = program_.operand_,
        .out = at(step.out) + (queries.first_row * out.ld + column) * out.element_bytes,
        .ldo = out.ld,
        .scratch = const_cast<std::byte*>(program_.scratch_.data()) +
                   static_cast<std::size_t>(member_) * program_.scratch_stride_,
        .tile = piece.tile,
        .num_tiles = piece.num_tiles,
        .tiles = piece.tiles};
    program_.kernels_.attend(args);
    if (piece.tile >= 0 && pieces.finish_tile(piece)) program_.kernels_.merge_tiles(args);
  });
}

void StepRunner::operator()(const GatherStep& step) const {
  auto* x = reinterpret_cast<float*>(at(step.x));
  const std::int64_t ld = spec(step.x).ld;
  // By one thread, because a row may be moved to where a later one is moved from.
  share(1, 1, [&](std::int64_t /*begin*/, std::int64_t /*end*/) {
    for (std::int64_t row = 0; const std::int32_t source : program_.batch_->logit_rows) {
      if (source != row)
        std::memcpy(x + row * ld, x + source * ld, static_cast<std::size_t>(step.columns) * sizeof(float));
      ++row;
    }
  });
}

}  // namespace lb::cpu
