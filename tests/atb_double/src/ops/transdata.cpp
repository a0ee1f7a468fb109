#include <cstring>

#include "atb/base.h"

namespace atb_double {
namespace {

using atb::infer::TransdataParam;

Status check(const TransdataParam& param) {
  if (!all_zero(param.rsv) || param.transdataType < TransdataParam::FRACTAL_NZ_TO_ND ||
      param.transdataType > TransdataParam::ND_TO_FRACTAL_NZ) {
    return refuse(atb::ERROR_INVALID_PARAM, "Transdata", "transdataType 1 or 2 and zero rsv expected");
  }
  return atb::NO_ERROR;
}

std::vector<Column> transdata_columns(bool to_nz) {
  std::vector<Column> made;
  for (const aclDataType dtype : {ACL_FLOAT16, ACL_INT8, ACL_BF16}) {
    const Cell nd{dtype};
    const Cell nz{dtype, /*nd=*/false, /*nz=*/true};
    made.push_back(to_nz ? Column{nd, nz} : Column{nz, nd});
  }
  return made;
}

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

class Transdata final : public LeafOp {
 public:
  explicit Transdata(const TransdataParam& param)
      : LeafOp("TransdataOperation", 1, 1, transdata_columns(param.transdataType == TransdataParam::ND_TO_FRACTAL_NZ)),
        param_(param) {}

 private:
  bool to_nz() const { return param_.transdataType == TransdataParam::ND_TO_FRACTAL_NZ; }

  Status infer(Descs ins, std::span<TensorDesc> outs) const override {
    const TensorDesc& x = ins[0];
    const int64_t tile = x.dtype == ACL_INT8 ? 32 : 16;
    if (to_nz()) {
      if (rank(x) != 2 && rank(x) != 3) {
        return refuse(atb::ERROR_INVALID_TENSOR_DIM_NUM, to_string(x) + " is not of rank 2 or 3");
      }
      const int64_t batch = rank(x) == 3 ? dim(x, 0) : 1;
      outs[0] = described(x.dtype, ACL_FORMAT_FRACTAL_NZ,
                          {batch, round_up(last_dim(x), tile) / tile, round_up(dim(x, rank(x) - 2), 16), tile});
      return atb::NO_ERROR;
    }
    if (rank(x) != 4 || param_.outCrops.size() != 2) {
      return refuse(atb::ERROR_INVALID_TENSOR_DIM_NUM, "rank 4 and two outCrops expected, found " + to_string(x));
    }
    const int64_t rows = param_.outCrops[0];
    const int64_t columns = param_.outCrops[1];
    if (round_up(rows, 16) != dim(x, 2) || round_up(columns, tile) != dim(x, 1) * dim(x, 3)) {
      return refuse(atb::ERROR_INVALID_TENSOR_DIM, "outCrops do not fit " + to_string(x));
    }
    outs[0] = described(x.dtype, ACL_FORMAT_ND, {dim(x, 0), rows, columns});
    return atb::NO_ERROR;
  }

  Status prepare(std::span<const Slot>, Program&, Launch& launch) const override {
    launch.kernel = [forward = to_nz()](std::span<const View> ins, std::span<const View> outs) {
      const View& nd = forward ? ins[0] : outs[0];
      const View& nz = forward ? outs[0] : ins[0];
      const uint64_t bytes = element_bytes(nd.desc.dtype);
      const int64_t rows = dim(nd.desc, rank(nd.desc) - 2);
      const int64_t columns = last_dim(nd.desc);
      const int64_t tile = last_dim(nz.desc);
      const int64_t rows16 = dim(nz.desc, 2);
      if (forward) {
        std::memset(nz.data, 0, size_bytes(nz.desc));
      }
      for (int64_t i = 0; i < num_elements(nd.desc); ++i) {
        const int64_t column = i % columns;
        const int64_t row = i / columns % rows;
        const int64_t tiles = i / columns / rows * dim(nz.desc, 1) + column / tile;
        std::byte* stored = nz.data + static_cast<uint64_t>((tiles * rows16 + row) * tile + column % tile) * bytes;
        std::byte* plain = nd.data + static_cast<uint64_t>(i) * bytes;
        forward ? std::memcpy(stored, plain, bytes) : std::memcpy(plain, stored, bytes);
      }
    };
    return atb::NO_ERROR;
  }

  TransdataParam param_;
};

}  // namespace
}  // namespace atb_double

template <>
atb::Status atb::CreateOperation(const infer::TransdataParam& param, Operation** operation) {
  using namespace atb_double;
  return create_operation(param, operation, check, [&] { return new Transdata(param); });
}
