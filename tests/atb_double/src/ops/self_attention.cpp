// SelfAttention: PA_ENCODER, where K and V are those of the step, and PREFIX_ENCODER, which reads the paged cache.

#include <algorithm>
#include <limits>
#include <numeric>

#include "acl/state.h"
#include "attention.h"
#include "kv_cache.h"

namespace atb_double {
namespace {

using Param = atb::infer::SelfAttentionParam;

constexpr int64_t kTile = 128;  // Query rows and positions that a kernel takes at a time; the compressed mask's size.

bool is_prefix(const Param& param) { return param.calcType == Param::PREFIX_ENCODER; }

Status refused(const std::string& why) { return refuse(atb::ERROR_INVALID_PARAM, "SelfAttention", why); }

Status check_prefix(const Param& param) {
  bool mask_fits = param.maskType == Param::MASK_TYPE_NORM_COMPRESS;
#if ATB_DOUBLE_RELEASE >= 820
  mask_fits = mask_fits || param.maskType == Param::MASK_TYPE_CAUSAL_MASK;
#endif
  if (!is_910b() || param.isTriuMask != 1 || param.kernelType != Param::KERNELTYPE_HIGH_PRECISION || !mask_fits ||
      param.qScale != 1.0F) {
    return refused("PREFIX_ENCODER needs a 910B, isTriuMask 1, HIGH_PRECISION, a compressed or causal mask, qScale 1");
  }
  return atb::NO_ERROR;
}

Status check(const Param& param) {
  if (!all_zero(param.rsv)) {
    return refused("rsv is not zero");
  }
  if (param.headNum <= 0 || param.kvHeadNum < 0 || (param.kvHeadNum > 0 && param.headNum % param.kvHeadNum != 0)) {
    return refused("headNum > 0 and a kvHeadNum that divides it expected");
  }
  if (param.maskType == Param::MASK_TYPE_UNDEFINED && param.isTriuMask == 1) {
    return refused("isTriuMask 1 needs a mask");
  }
  if (param.calcType != Param::PA_ENCODER && param.calcType != Param::PREFIX_ENCODER) {
    return refused("the double runs PA_ENCODER and PREFIX_ENCODER");
  }
  if (param.quantType != Param::TYPE_QUANT_UNQUANT || param.outDataType != ACL_DT_UNDEFINED ||
      param.batchRunStatusEnable || param.clampType != Param::CLAMP_TYPE_UNDEFINED ||
      param.kvcacheCfg != Param::K_CACHE_V_CACHE || param.scaleType != Param::SCALE_TYPE_TOR ||
      param.inputLayout != atb::infer::TYPE_BSND || param.mlaVHeadSize != 0 ||
      param.cacheType != Param::CACHE_TYPE_NORM || param.windowSize != 0 ||
      param.kernelType > Param::KERNELTYPE_HIGH_PRECISION) {
    return refused("the double runs plain heads: no quantisation, clamp, bypass, MLA, BNSD, window or batch status");
  }
  if (is_prefix(param)) {
    return check_prefix(param);
  }
  if (param.maskType != Param::MASK_TYPE_UNDEFINED && param.maskType != Param::MASK_TYPE_NORM &&
      param.maskType != Param::MASK_TYPE_NORM_COMPRESS) {
    return refused("the double runs PA_ENCODER with maskType UNDEFINED, NORM and NORM_COMPRESS");
  }
  return atb::NO_ERROR;
}

std::size_t mask_index(const Param& param) { return is_prefix(param) ? 4 : 3; }

bool has_mask(const Param& param) {
  return param.maskType == Param::MASK_TYPE_NORM || param.maskType == Param::MASK_TYPE_NORM_COMPRESS;
}

uint32_t num_ins(const Param& param) { return (is_prefix(param) ? 6 : 4) + (has_mask(param) ? 1 : 0); }

// PA_ENCODER: q, k, v[, mask], seqLen. PREFIX_ENCODER: q, keyCache, valueCache, blockTables[, mask], seqLen, kvSeqLen.
std::vector<Column> attention_columns(const Param& param) {
  std::vector<Column> made;
  for (const aclDataType dtype : {ACL_FLOAT16, ACL_BF16}) {
    Column column(3, Cell{dtype});
    if (is_prefix(param)) {
      column.push_back({ACL_INT32});
    }
    if (has_mask(param)) {
      column.push_back({dtype, !is_310p(), is_310p()});
    }
    column.insert(column.end(), is_prefix(param) ? 2 : 1, Cell{ACL_INT32});
    column.push_back({dtype});
    made.push_back(std::move(column));
  }
  return made;
}

// A mask [S, S], [b, S, S], or NZ [1 or b, S / 16, S, 16].
int64_t mask_size(const TensorDesc& mask) { return dim(mask, rank(mask) - 2); }

bool mask_is_square(const TensorDesc& mask) {
  return mask.format == ACL_FORMAT_FRACTAL_NZ
             ? rank(mask) == 4 && dim(mask, 3) == 16 && dim(mask, 1) * 16 == dim(mask, 2)
             : (rank(mask) == 2 || rank(mask) == 3) && dim(mask, rank(mask) - 1) == mask_size(mask);
}

struct Mask {
  std::vector<float> values;
  int64_t size = 0;
  int64_t batch = 1;
  bool nz = false;

  explicit Mask(const View& view)
      : values(load_all(view)), size(mask_size(view.desc)), nz(view.desc.format == ACL_FORMAT_FRACTAL_NZ) {
    batch = num_elements(view.desc) / (size * size);
  }
  float at(int64_t sequence, int64_t i, int64_t j) const {
    const int64_t first = batch == 1 ? 0 : sequence * size * size;
    return values[static_cast<std::size_t>(first + (nz ? nz_index(i, j, size) : i * size + j))];
  }
};

// `first_row` is the position of the sequence's first query row: 0, or its cached prefix, a multiple of the tile.
Bias make_bias(bool triangular, const Mask* mask, bool half, int64_t sequence, int64_t first_row) {
  constexpr float kSkipped = -std::numeric_limits<float>::infinity();
  const auto convert = half ? half_kernel_bias : float_kernel_bias;
  if (mask == nullptr) {  // No mask at all, or the causal one that the kernel makes.
    return [=](int64_t i, int64_t j) { return triangular && j > first_row + i ? kSkipped : 0.0F; };
  }
  if (triangular && mask->size == kTile) {
    return [=](int64_t i, int64_t j) {
      const int64_t row = first_row + i;
      if (j / kTile != row / kTile) {
        return j > row ? kSkipped : 0.0F;
      }
      return convert(mask->at(sequence, row % kTile, j % kTile));
    };
  }
  return [=](int64_t i, int64_t j) {
    return triangular && j / kTile > i / kTile ? kSkipped : convert(mask->at(sequence, i, j));
  };
}

class SelfAttention final : public LeafOp {
 public:
  explicit SelfAttention(const Param& param)
      : LeafOp("SelfAttentionOperation", num_ins(param), 1, attention_columns(param)),
        param_(param),
        kv_heads_(param.kvHeadNum == 0 ? param.headNum : param.kvHeadNum) {}

 private:
  Status infer(Descs ins, std::span<TensorDesc> outs) const override;
  Status infer_encoder(Descs ins) const;
  Status infer_prefix(Descs ins) const;
  Status prepare(std::span<const Slot> ins, Program& program, Launch& launch) const override;
  Status check_mask(const TensorDesc& mask, int64_t longest) const;
  Status check_prefix_lengths(std::span<const int32_t> q_lens, std::span<const int32_t> kv_lens) const;
  std::string find_garbage(std::span<const Slot> ins, std::span<const int32_t> q_lens,
                           std::span<const int32_t> kv_lens) const;
  Kernel kernel(const TensorDesc& query, std::vector<int32_t> q_lens, std::vector<int32_t> kv_lens) const;
  int64_t head_size(const TensorDesc& query) const {
    return rank(query) == 3 ? dim(query, 2) : dim(query, 1) / param_.headNum;
  }

  Param param_;
  int64_t kv_heads_;
};

Status SelfAttention::infer_encoder(Descs ins) const {
  const uint64_t dims = rank(ins[0]);
  if ((dims != 2 && dims != 3) || rank(ins[1]) != dims || rank(ins[2]) != dims || (is_310p() && dims != 3)) {
    return refuse(atb::ERROR_INVALID_TENSOR_SIZE, "q, k and v of rank 2 or 3 (310P: 3) expected, found " +
                                                      to_string(ins[0]) + ", " + to_string(ins[1]));
  }
  const int64_t head = head_size(ins[0]);
  const bool q_fits =
      product(ins[0], 1, dims) == param_.headNum * head && (dims == 2 || dim(ins[0], 1) == param_.headNum);
  const bool k_fits = product(ins[1], 1, dims) == kv_heads_ * head && (dims == 2 || dim(ins[1], 1) == kv_heads_);
  if (!q_fits || !k_fits || !same(ins[1], ins[2]) || dim(ins[0], 0) != dim(ins[1], 0) || head > 256) {
    return refuse(atb::ERROR_INVALID_TENSOR_DIM,
                  "q " + to_string(ins[0]) + ", k " + to_string(ins[1]) + ", v " + to_string(ins[2]) + " do not fit " +
                      std::to_string(param_.headNum) + "/" + std::to_string(kv_heads_) + " heads of at most 256");
  }
  const TensorDesc& lengths = ins.back();
  if (rank(lengths) != 1 && (rank(lengths) != 2 || dim(lengths, 0) != 2)) {
    return refuse(atb::ERROR_INVALID_TENSOR_SIZE, "seqLen [b] or [2, b] expected, found " + to_string(lengths));
  }
  return atb::NO_ERROR;
}

Status SelfAttention::infer_prefix(Descs ins) const {
  if (rank(ins[0]) != 3 || rank(ins[1]) != 4 || rank(ins[3]) != 2 || rank(ins[ins.size() - 2]) != 1 ||
      !same_shape(ins.back().shape, ins[ins.size() - 2].shape)) {
    return refuse(atb::ERROR_INVALID_TENSOR_SIZE,
                  "q of rank 3, caches 4, blockTables 2, seqLen and kvSeqLen [b] expected, found " + to_string(ins[0]) +
                      ", " + to_string(ins[1]) + ", " + to_string(ins[3]));
  }
  const int64_t head = dim(ins[0], 2);
  if (dim(ins[0], 1) != param_.headNum || dim(ins[1], 2) != kv_heads_ || dim(ins[1], 3) != head ||
      !same(ins[1], ins[2])) {
    return refuse(atb::ERROR_INVALID_TENSOR_DIM, "q " + to_string(ins[0]) + " and caches " + to_string(ins[1]) +
                                                     " do not fit " + std::to_string(param_.headNum) + "/" +
                                                     std::to_string(kv_heads_) + " heads");
  }
  if (dim(ins[1], 1) != kTile || head > 128 || head % 16 != 0) {
    return refuse(atb::ERROR_INVALID_TENSOR_DIM,
                  "PREFIX_ENCODER needs blocks of 128 and heads of 16 to 128, found " + to_string(ins[1]));
  }
  return atb::NO_ERROR;
}

Status SelfAttention::infer(Descs ins, std::span<TensorDesc> outs) const {
  const Status status = is_prefix(param_) ? infer_prefix(ins) : infer_encoder(ins);
  if (status != atb::NO_ERROR) {
    return status;
  }
  if (has_mask(param_)) {
    const TensorDesc& mask = ins[mask_index(param_)];
    const bool compressed = param_.maskType == Param::MASK_TYPE_NORM_COMPRESS;
    if (!mask_is_square(mask) || (compressed && (mask_size(mask) != kTile || num_elements(mask) != kTile * kTile))) {
      return refuse(atb::ERROR_INVALID_TENSOR_DIM, "the mask is " + to_string(mask));
    }
  }
  outs[0] = ins[0];
  return atb::NO_ERROR;
}

Status SelfAttention::check_mask(const TensorDesc& mask, int64_t longest) const {
  if (mask_size(mask) < std::min(kTile, longest)) {
    return refuse(atb::ERROR_INVALID_TENSOR_DIM,
                  "the mask " + to_string(mask) + " is too small for " + std::to_string(longest) + " tokens");
  }
  return atb::NO_ERROR;
}

Status SelfAttention::check_prefix_lengths(std::span<const int32_t> q_lens, std::span<const int32_t> kv_lens) const {
  for (std::size_t i = 0; i < q_lens.size(); ++i) {
    if (kv_lens[i] < q_lens[i] || (kv_lens[i] - q_lens[i]) % kTile != 0) {
      return refuse(atb::ERROR_INVALID_PARAM,
                    "kvSeqLen - seqLen is " + std::to_string(kv_lens[i] - q_lens[i]) + ", not a multiple of 128");
    }
  }
  return atb::NO_ERROR;
}

// What the library never notices.
std::string SelfAttention::find_garbage(std::span<const Slot> ins, std::span<const int32_t> q_lens,
                                        std::span<const int32_t> kv_lens) const {
  if (param_.qkScale == 0.0F) {
    return "qkScale is 0";
  }
  const int64_t sum = std::accumulate(q_lens.begin(), q_lens.end(), int64_t{0});
  if (sum != dim(ins[0].desc, 0) || *std::min_element(q_lens.begin(), q_lens.end()) <= 0) {
    return "seqLen sums to " + std::to_string(sum) + " for " + std::to_string(dim(ins[0].desc, 0)) + " tokens";
  }
  const int64_t longest = *std::max_element(kv_lens.begin(), kv_lens.end());
  if (is_prefix(param_)) {
    if (dim(ins[3].desc, 0) != static_cast<int64_t>(q_lens.size()) || longest > dim(ins[3].desc, 1) * kTile) {
      return "blockTables " + to_string(ins[3].desc) + " for " + std::to_string(q_lens.size()) +
             " sequences of at most " + std::to_string(longest) + " tokens";
    }
    return "";
  }
  if (!std::equal(q_lens.begin(), q_lens.end(), kv_lens.begin(), kv_lens.end())) {
    return "PA_ENCODER with other kv lengths than query lengths";
  }
  if (has_mask(param_)) {
    const TensorDesc& mask = ins[3].desc;
    const bool tiled = param_.isTriuMask == 1 && mask_size(mask) == kTile;
    const int64_t batch = num_elements(mask) / (mask_size(mask) * mask_size(mask));
    if ((!tiled && mask_size(mask) < longest) || (batch != 1 && batch != static_cast<int64_t>(q_lens.size()))) {
      return "the mask " + to_string(mask) + " does not cover " + std::to_string(longest) + " tokens";
    }
  }
  return "";
}

Kernel SelfAttention::kernel(const TensorDesc& query, std::vector<int32_t> q_lens, std::vector<int32_t> kv_lens) const {
  const bool half = query.dtype == ACL_FLOAT16 && param_.kernelType == Param::KERNELTYPE_DEFAULT;
  const AttentionHeads heads{param_.headNum, kv_heads_, head_size(query), param_.qkScale * param_.qScale, half};
  return [=, param = param_](std::span<const View> ins, std::span<const View> outs) {
    const bool prefix = is_prefix(param);
    const std::vector<float> q = load_all(ins[0]);
    const std::vector<float> k = prefix ? std::vector<float>() : load_all(ins[1]);
    const std::vector<float> v = prefix ? std::vector<float>() : load_all(ins[2]);
    const std::vector<int64_t> tables = prefix ? load_integers(ins[3]) : std::vector<int64_t>();
    const auto mask = has_mask(param) ? std::make_unique<Mask>(ins[mask_index(param)]) : nullptr;
    const auto q_width = static_cast<std::size_t>(heads.q_heads * heads.head_size);
    const auto kv_width = static_cast<std::size_t>(heads.kv_heads * heads.head_size);
    std::vector<float> out(q.size());
    std::size_t row = 0;
    for (std::size_t s = 0; s < q_lens.size(); ++s) {
      const auto rows = static_cast<std::size_t>(q_lens[s]);
      const Bias added =
          make_bias(param.isTriuMask == 1, mask.get(), half, static_cast<int64_t>(s), kv_lens[s] - q_lens[s]);
      const std::span<const float> queries(q.data() + row * q_width, rows * q_width);
      const std::span<float> results(out.data() + row * q_width, rows * q_width);
      if (prefix) {
        const std::size_t table_width = tables.size() / q_lens.size();
        const std::span<const int64_t> table(tables.data() + s * table_width, table_width);
        attend(heads, queries, read_cache(ins[1], table, kv_lens[s]), read_cache(ins[2], table, kv_lens[s]), added,
               results);
      } else {
        attend(heads, queries, {k.data() + row * kv_width, rows * kv_width},
               {v.data() + row * kv_width, rows * kv_width}, added, results);
      }
      row += rows;
    }
    store(outs[0], 0, out);
  };
}

Status SelfAttention::prepare(std::span<const Slot> ins, Program& program, Launch& launch) const {
  const std::size_t seq_len = ins.size() - (is_prefix(param_) ? 2 : 1);
  std::vector<int32_t> q_lens = host_values(ins[seq_len], "seqLen", program);
  std::vector<int32_t> kv_lens = is_prefix(param_) ? host_values(ins.back(), "kvSeqLen", program) : q_lens;
  if (q_lens.empty() || kv_lens.empty()) {
    return atb::ERROR_INVALID_PARAM;
  }
  launch.host_only = (is_prefix(param_) ? 3U : 1U) << seq_len;
  if (rank(ins[seq_len].desc) == 2) {  // Row 0 the query lengths, row 1 the kv lengths.
    const auto half = static_cast<std::ptrdiff_t>(q_lens.size() / 2);
    kv_lens.assign(q_lens.begin() + half, q_lens.end());
    q_lens.resize(static_cast<std::size_t>(half));
  }
  if (is_prefix(param_)) {
    if (const Status status = check_prefix_lengths(q_lens, kv_lens); status != atb::NO_ERROR) {
      return status;
    }
  } else if (has_mask(param_)) {
    const int64_t longest = *std::max_element(q_lens.begin(), q_lens.end());
    if (const Status status = check_mask(ins[3].desc, longest); status != atb::NO_ERROR) {
      return status;
    }
  }
  if (const std::string garbage = find_garbage(ins, q_lens, kv_lens); !garbage.empty()) {
    warn_silent(garbage);
    launch.kernel = [garbage](std::span<const View>, std::span<const View>) { throw DeviceFault(garbage); };
    return atb::NO_ERROR;
  }
  launch.kernel = kernel(ins[0].desc, std::move(q_lens), std::move(kv_lens));
  return atb::NO_ERROR;
}

}  // namespace
}  // namespace atb_double

template <>
atb::Status atb::CreateOperation(const infer::SelfAttentionParam& param, Operation** operation) {
  using namespace atb_double;
  return create_operation(param, operation, check, [&] { return new SelfAttention(param); });
}
