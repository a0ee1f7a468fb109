#include <algorithm>
#include <numeric>

#include "acl/state.h"
#include "attention.h"
#include "kv_cache.h"

namespace atb_double {
namespace {

using atb::infer::PagedAttentionParam;

constexpr int64_t kMaxTile = 128 * 128;  // Head size times block size that a 910B kernel holds.

bool is_spec(const PagedAttentionParam& param) { return param.calcType == PagedAttentionParam::CALC_TYPE_SPEC; }

Status check(const PagedAttentionParam& param) {
  const auto refused = [](const std::string& why) { return refuse(atb::ERROR_INVALID_PARAM, "PagedAttention", why); };
  if (!all_zero(param.rsv)) {
    return refused("rsv is not zero");
  }
  if (param.headNum <= 0 || param.kvHeadNum < 0 || (param.kvHeadNum > 0 && param.headNum % param.kvHeadNum != 0)) {
    return refused("headNum > 0 and a kvHeadNum that divides it expected");
  }
  bool unusual = param.batchRunStatusEnable || param.quantType != PagedAttentionParam::TYPE_QUANT_UNDEFINED ||
                 param.outDataType != ACL_DT_UNDEFINED || param.hasQuantOffset ||
                 param.compressType != PagedAttentionParam::COMPRESS_TYPE_UNDEFINED ||
                 param.scaleType != PagedAttentionParam::SCALE_TYPE_TOR || param.inputLayout != atb::infer::TYPE_BSND ||
                 param.mlaVHeadSize != 0;
#if ATB_DOUBLE_RELEASE >= 850
  unusual = unusual || (param.qScale != 0.0F && param.qScale != 1.0F);
#endif
  if (unusual) {
    return refused("the double runs plain heads: no quantisation, compression, MLA, BNSD, batch status or qScale");
  }
  const bool has_spec_mask =
      param.maskType == PagedAttentionParam::MASK_TYPE_NORM || param.maskType == PagedAttentionParam::MASK_TYPE_SPEC;
  if (is_spec(param) && !(has_spec_mask && is_910b())) {
    return refused("CALC_TYPE_SPEC needs maskType NORM or SPEC and a 910B");
  }
  if (!is_spec(param) && param.maskType != PagedAttentionParam::UNDEFINED) {
    return refused("the double runs masks with CALC_TYPE_SPEC alone");
  }
  return atb::NO_ERROR;
}

// query, keyCache, valueCache, blockTables, contextLens[, mask, qSeqLen] -> out.
std::vector<Column> attention_columns(bool spec) {
  std::vector<Column> made;
  for (const aclDataType dtype : {ACL_FLOAT16, ACL_BF16}) {
    const Cell cache{dtype, !is_310p(), true};
    Column column = {{dtype}, cache, cache, {ACL_INT32}, {ACL_INT32}};
    if (spec) {
      column.push_back({dtype});
      column.push_back({ACL_INT32});
    }
    column.push_back({dtype});
    made.push_back(std::move(column));
  }
  return made;
}

class PagedAttention final : public LeafOp {
 public:
  explicit PagedAttention(const PagedAttentionParam& param)
      : LeafOp("PagedAttentionOperation", is_spec(param) ? 7 : 5, 1, attention_columns(is_spec(param))),
        param_(param),
        kv_heads_(param.kvHeadNum == 0 ? param.headNum : param.kvHeadNum) {}

 private:
  Status infer(Descs ins, std::span<TensorDesc> outs) const override;
  Status prepare(std::span<const Slot> ins, Program& program, Launch& launch) const override;
  void check_tiling(std::span<const Slot> ins, std::span<const int32_t> q_lens, Program& program) const;
  std::string find_garbage(std::span<const Slot> ins, std::span<const int32_t> lens,
                           std::span<const int32_t> q_lens) const;

  PagedAttentionParam param_;
  int64_t kv_heads_;
};

Status PagedAttention::infer(Descs ins, std::span<TensorDesc> outs) const {
  if (rank(ins[0]) != 3 || rank(ins[1]) != 4 || rank(ins[2]) != 4 || rank(ins[3]) != 2 || rank(ins[4]) != 1) {
    return refuse(atb::ERROR_INVALID_TENSOR_DIM_NUM,
                  "query of rank 3, caches 4, blockTables 2, contextLens 1 expected, found " + to_string(ins[0]) +
                      ", " + to_string(ins[1]) + ", " + to_string(ins[3]) + ", " + to_string(ins[4]));
  }
  const int64_t head = dim(ins[0], 2);
  const bool nd = ins[1].format == ACL_FORMAT_ND;
  const CacheLayout layout = cache_layout(ins[1]);
  const bool cache_fits =
      layout.width == kv_heads_ * head && (nd ? dim(ins[1], 2) == kv_heads_ : last_dim(ins[1]) == 16);
  if (dim(ins[0], 1) != param_.headNum || !cache_fits || !same(ins[1], ins[2])) {
    return refuse(atb::ERROR_INVALID_TENSOR_DIM,
                  "query " + to_string(ins[0]) + " and caches " + to_string(ins[1]) + ", " + to_string(ins[2]) +
                      " do not fit " + std::to_string(param_.headNum) + "/" + std::to_string(kv_heads_) + " heads");
  }
  if (is_spec(param_)) {
    const bool norm = param_.maskType == PagedAttentionParam::MASK_TYPE_NORM;
    if (rank(ins[5]) != 2 || (norm ? dim(ins[5], 0) != dim(ins[5], 1) : dim(ins[5], 0) != dim(ins[0], 0)) ||
        !same_shape(ins[6].shape, ins[4].shape)) {
      return refuse(atb::ERROR_INVALID_TENSOR_DIM,
                    "mask " + to_string(ins[5]) + " [S, S] for NORM, [T, maxKv] for SPEC, and qSeqLen [b] expected");
    }
  }
  outs[0] = ins[0];
  return atb::NO_ERROR;
}

void PagedAttention::check_tiling(std::span<const Slot> ins, std::span<const int32_t> q_lens, Program& program) const {
  const int64_t head = dim(ins[0].desc, 2);
  const int64_t block = cache_layout(ins[1].desc).block_size;
  if (block % 16 != 0) {
    fail_tiling(program, "block size " + std::to_string(block) + " is not a multiple of 16");
  }
  if (is_910b() && head * block > kMaxTile) {
    fail_tiling(program, "head size times block size is " + std::to_string(head * block) + ", more than 16384");
  }
  if (!is_spec(param_)) {
    return;
  }
  if (dim(ins[4].desc, 0) > 2000 || param_.headNum > 256 || block > 128 || param_.headNum * head > kMaxTile ||
      std::any_of(q_lens.begin(), q_lens.end(), [](int32_t length) { return length <= 0; })) {
    fail_tiling(program, "SPEC takes 2000 sequences, 256 heads, blocks of 128, heads times size 16384, qSeqLen > 0");
  }
}

// What the library never notices.
std::string PagedAttention::find_garbage(std::span<const Slot> ins, std::span<const int32_t> lens,
                                         std::span<const int32_t> q_lens) const {
  const int64_t batch = dim(ins[4].desc, 0);
  const int64_t room = dim(ins[3].desc, 1) * cache_layout(ins[1].desc).block_size;
  if (param_.qkScale == 0.0F) {
    return "qkScale is 0";
  }
  if (dim(ins[3].desc, 0) != batch) {
    return "blockTables has " + std::to_string(dim(ins[3].desc, 0)) + " rows for " + std::to_string(batch) +
           " sequences";
  }
  if (std::accumulate(q_lens.begin(), q_lens.end(), int64_t{0}) != dim(ins[0].desc, 0)) {
    return "the query lengths do not sum to the rows of " + to_string(ins[0].desc);
  }
  for (std::size_t i = 0; i < lens.size(); ++i) {
    if (lens[i] <= 0 || lens[i] > room || q_lens[i] > lens[i]) {
      return "context length " + std::to_string(lens[i]) + " with room for " + std::to_string(room) + " in its blocks";
    }
    if (is_spec(param_) && lens[i] > last_dim(ins[5].desc)) {
      return "context length " + std::to_string(lens[i]) + " is beyond the mask " + to_string(ins[5].desc);
    }
  }
  return "";
}

Status PagedAttention::prepare(std::span<const Slot> ins, Program& program, Launch& launch) const {
  const std::vector<int32_t> lens = host_values(ins[4], "contextLens", program);
  std::vector<int32_t> q_lens(lens.size(), 1);
  launch.host_only = 1U << 4U;
  if (is_spec(param_)) {
    q_lens = host_values(ins[6], "qSeqLen", program);
    launch.host_only |= 1U << 6U;
  }
  if (lens.empty() || q_lens.empty()) {
    return atb::ERROR_INVALID_PARAM;
  }
  check_tiling(ins, q_lens, program);
  if (const std::string garbage = find_garbage(ins, lens, q_lens); !garbage.empty()) {
    warn_silent(garbage);
    launch.kernel = [garbage](std::span<const View>, std::span<const View>) { throw DeviceFault(garbage); };
    return atb::NO_ERROR;
  }
  const AttentionHeads heads{param_.headNum, kv_heads_, dim(ins[0].desc, 2), param_.qkScale, false};
  const bool norm = param_.maskType == PagedAttentionParam::MASK_TYPE_NORM;
  launch.kernel = [=](std::span<const View> in, std::span<const View> outs) {
    const std::vector<float> q = load_all(in[0]);
    const std::vector<int64_t> tables = load_integers(in[3]);
    const std::vector<float> mask = in.size() == 7 ? load_all(in[5]) : std::vector<float>();
    const int64_t mask_width = mask.empty() ? 0 : last_dim(in[5].desc);
    const auto table_width = static_cast<std::size_t>(dim(in[3].desc, 1));
    const auto width = static_cast<std::size_t>(heads.q_heads * heads.head_size);
    std::vector<float> out(q.size());
    std::size_t row = 0;
    for (std::size_t s = 0; s < lens.size(); ++s) {
      const std::span<const int64_t> table(tables.data() + s * table_width, table_width);
      const auto first_mask_row = norm ? lens[s] - q_lens[s] : static_cast<int64_t>(row);
      const Bias bias = [&](int64_t i, int64_t j) {
        return mask.empty() ? 0.0F : mask[static_cast<std::size_t>((first_mask_row + i) * mask_width + j)];
      };
      const std::size_t count = static_cast<std::size_t>(q_lens[s]) * width;
      attend(heads, {q.data() + row * width, count}, read_cache(in[1], table, lens[s]),
             read_cache(in[2], table, lens[s]), bias, {out.data() + row * width, count});
      row += static_cast<std::size_t>(q_lens[s]);
    }
    store(outs[0], 0, out);
  };
  return atb::NO_ERROR;
}

}  // namespace
}  // namespace atb_double

template <>
atb::Status atb::CreateOperation(const infer::PagedAttentionParam& param, Operation** operation) {
  using namespace atb_double;
  return create_operation(param, operation, check, [&] { return new PagedAttention(param); });
}
