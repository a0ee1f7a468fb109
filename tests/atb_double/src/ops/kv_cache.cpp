#include "kv_cache.h"

#include <cstring>

namespace atb_double {

CacheLayout cache_layout(const TensorDesc& cache) {
  const bool nz = cache.format == ACL_FORMAT_FRACTAL_NZ;
  return nz ? CacheLayout{true, dim(cache, 0), dim(cache, 2), dim(cache, 1) * dim(cache, 3)}
            : CacheLayout{false, dim(cache, 0), dim(cache, 1), dim(cache, 2) * dim(cache, 3)};
}

std::vector<float> read_cache(const View& cache, std::span<const int64_t> table, int64_t count) {
  const CacheLayout layout = cache_layout(cache.desc);
  std::vector<float> rows(static_cast<std::size_t>(count * layout.width));
  for (int64_t position = 0; position < count; ++position) {
    const int64_t block = table[static_cast<std::size_t>(position / layout.block_size)];
    if (block < 0 || block >= layout.num_blocks) {
      throw DeviceFault("the block table names block " + std::to_string(block) + " of " +
                        std::to_string(layout.num_blocks));
    }
    const int64_t slot = block * layout.block_size + position % layout.block_size;
    const int64_t step = layout.nz ? 16 : layout.width;
    for (int64_t column = 0; column < layout.width; column += step) {
      load(cache, layout.index(slot, column),
           {rows.data() + position * layout.width + column, static_cast<std::size_t>(step)});
    }
  }
  return rows;
}

namespace {

using atb::infer::ReshapeAndCacheParam;

Status check(const ReshapeAndCacheParam& param) {
  const auto refused = [](const std::string& why) { return refuse(atb::ERROR_INVALID_PARAM, "ReshapeAndCache", why); };
  if (!all_zero(param.rsv)) {
    return refused("rsv is not zero");
  }
  if (param.compressType != ReshapeAndCacheParam::COMPRESS_TYPE_UNDEFINED ||
      param.kvCacheCfg == ReshapeAndCacheParam::K_CACHE_V_BYPASS) {
    return refused("the double runs neither compression nor K_CACHE_V_BYPASS");
  }
  if (param.kvCacheCfg == ReshapeAndCacheParam::K_CACHE_V_CACHE_NZ && !is_910b()) {
    return refused("K_CACHE_V_CACHE_NZ needs a 910B");
  }
  return atb::NO_ERROR;
}

bool uses_nz(const ReshapeAndCacheParam& param) {
  return is_310p() || param.kvCacheCfg == ReshapeAndCacheParam::K_CACHE_V_CACHE_NZ;
}

// key, value, keyCache, valueCache, slots -> keyCache, valueCache.
std::vector<Column> cache_columns(bool nz) {
  std::vector<Column> made;
  for (const aclDataType dtype : {ACL_FLOAT16, ACL_BF16, ACL_INT8}) {
    if (nz && dtype == ACL_INT8) {
      continue;  // Its tiles are 32 wide, which the double does not run.
    }
    const Cell cache{dtype, !nz, nz};
    made.push_back({{dtype}, {dtype}, cache, cache, {ACL_INT32}, cache, cache});
  }
  return made;
}

class ReshapeAndCache final : public LeafOp {
 public:
  explicit ReshapeAndCache(const ReshapeAndCacheParam& param)
      : LeafOp("ReshapeAndCacheOperation", 5, 2, cache_columns(uses_nz(param))) {}

 private:
  Status infer(Descs ins, std::span<TensorDesc> outs) const override {
    for (std::size_t i = 0; i < 2; ++i) {
      const TensorDesc& rows = ins[i];
      const TensorDesc& cache = ins[i + 2];
      if (rank(rows) != 3 || rank(cache) != 4 || rank(ins[4]) != 1) {
        return refuse(atb::ERROR_INVALID_TENSOR_DIM_NUM, "[T, K, D], a cache of rank 4 and slots [T] expected, found " +
                                                             to_string(rows) + ", " + to_string(cache) + ", " +
                                                             to_string(ins[4]));
      }
      const CacheLayout layout = cache_layout(cache);
      const bool heads_fit = layout.nz || (dim(cache, 2) == dim(rows, 1) && dim(cache, 3) == dim(rows, 2));
      const bool nz_fits = !layout.nz || (last_dim(cache) == 16 && layout.block_size % 16 == 0);
      if (layout.width != dim(rows, 1) * dim(rows, 2) || !heads_fit || !nz_fits || dim(rows, 0) != dim(ins[4], 0)) {
        return refuse(atb::ERROR_INVALID_TENSOR_DIM, to_string(rows) + " and slots " + to_string(ins[4]) +
                                                         " do not fit the cache " + to_string(cache));
      }
      outs[i] = cache;
    }
    return atb::NO_ERROR;
  }

  Status prepare(std::span<const Slot>, Program&, Launch& launch) const override {
    launch.in_place = {{2, 0}, {3, 1}};
    launch.kernel = [](std::span<const View> ins, std::span<const View> outs) {
      const std::vector<int64_t> slots = load_integers(ins[4]);
      for (std::size_t which = 0; which < 2; ++which) {
        const CacheLayout layout = cache_layout(outs[which].desc);
        const auto bytes = static_cast<int64_t>(element_bytes(outs[which].desc.dtype));
        const int64_t step = layout.nz ? 16 : layout.width;
        for (std::size_t token = 0; token < slots.size(); ++token) {
          if (slots[token] < 0 || slots[token] >= layout.num_blocks * layout.block_size) {
            throw DeviceFault("slot " + std::to_string(slots[token]) + " is outside the cache");
          }
          for (int64_t column = 0; column < layout.width; column += step) {
            std::memcpy(outs[which].data + layout.index(slots[token], column) * bytes,
                        ins[which].data + (static_cast<int64_t>(token) * layout.width + column) * bytes,
                        static_cast<std::size_t>(step * bytes));
          }
        }
      }
    };
    return atb::NO_ERROR;
  }
};

}  // namespace
}  // namespace atb_double

template <>
atb::Status atb::CreateOperation(const infer::ReshapeAndCacheParam& param, Operation** operation) {
  using namespace atb_double;
  return create_operation(param, operation, check, [&] { return new ReshapeAndCache(param); });
}
