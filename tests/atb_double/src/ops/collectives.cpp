#include "collectives.h"

#include <algorithm>
#include <cstring>

#include "acl/state.h"

namespace atb_double {
namespace {

constexpr std::size_t kMaxDomain = 128;
constexpr unsigned long kMaxLcclDomain = 65535;

// "", a number up to 65535, or from some release on "number:megabytes".
bool is_lccl_domain(const std::string& domain) {
  const std::string number = domain.substr(0, domain.find(':'));
  if (domain.empty()) {
    return true;
  }
  const bool digits = !number.empty() && number.size() <= 5 &&
                      std::all_of(number.begin(), number.end(), [](char c) { return c >= '0' && c <= '9'; });
  return digits && std::stoul(number) <= kMaxLcclDomain;
}

}  // namespace

Status Ranks::check(const std::string& who) const {
  const auto refused = [&who](const std::string& why) { return refuse(atb::ERROR_INVALID_PARAM, who, why); };
  const auto devices = static_cast<int>(settings().devices);
  if (domain.size() > kMaxDomain) {
    return refused("commDomain has more than 128 characters");
  }
  if (rank < 0 || rank >= size || root < 0 || root >= size || size > devices) {
    return refused("rank " + std::to_string(rank) + " and root " + std::to_string(root) + " of " +
                   std::to_string(size) + " on " + std::to_string(devices) + " devices");
  }
  if (backend != "hccl" && !is_lccl_domain(domain)) {
    return refused("commDomain '" + domain + "': lccl takes '' or a number up to 65535");
  }
  return atb::NO_ERROR;
}

std::shared_ptr<Communicator> Ranks::join(const std::string& who, Status& status) const {
  status = atb::NO_ERROR;
  if (!settings().executes) {
    return nullptr;
  }
  auto communicator = Communicator::join(backend, domain, rank, size);
  if (communicator == nullptr) {
    status = refuse(atb::ERROR_OPERATION_NULL_RUNNER, who, "no communicator");
  }
  return communicator;
}

std::vector<float> all_reduce(Communicator* communicator, const std::string& what, const std::string& type,
                              const std::vector<float>& mine) {
  const auto combine = [&](const std::vector<Communicator::Bytes>& all) {
    std::vector<float> sum(mine.size());
    std::vector<float> other(mine.size());
    std::memcpy(sum.data(), all[0].data(), all[0].size());
    for (std::size_t rank = 1; rank < all.size(); ++rank) {
      std::memcpy(other.data(), all[rank].data(), all[rank].size());
      for (std::size_t i = 0; i < sum.size(); ++i) {
        sum[i] = type == "sum"    ? sum[i] + other[i]
                 : type == "prod" ? sum[i] * other[i]
                 : type == "max"  ? std::max(sum[i], other[i])
                                  : std::min(sum[i], other[i]);
      }
    }
    const auto bytes = std::as_bytes(std::span(sum));
    return Communicator::Bytes(bytes.begin(), bytes.end());
  };
  const std::string label = what + " " + type + " of " + std::to_string(mine.size());
  const Communicator::Bytes result = communicator->exchange(label, std::as_bytes(std::span(mine)), combine);
  std::vector<float> values(mine.size());
  std::memcpy(values.data(), result.data(), result.size());
  return values;
}

namespace {

using atb::infer::AllGatherParam;
using atb::infer::AllReduceParam;
using atb::infer::BroadcastParam;

template <typename Param>
Status check_backend(const std::string& who, const Param& param) {
  if (param.backend != "hccl" && param.backend != "lccl") {
    return refuse(atb::ERROR_INVALID_PARAM, who, "backend '" + param.backend + "': hccl or lccl expected");
  }
  return check_ranks(who, param);
}

Status check(const AllReduceParam& param) {
  const auto refused = [](const std::string& why) { return refuse(atb::ERROR_INVALID_PARAM, "AllReduce", why); };
  const std::string& type = param.allReduceType;
  if (type != "sum" && type != "prod" && type != "max" && type != "min") {
    return refused("allReduceType '" + type + "': sum, prod, max or min expected");
  }
  if (param.backend == "lccl" && (type == "prod" || is_310p())) {
    return refused("lccl has no prod, and no 310P");
  }
  if (param.quantType != AllReduceParam::QUANT_TYPE_UNQUANT || param.outDataType != ACL_DT_UNDEFINED) {
    return refused("the double does not run quantisation");
  }
  return check_backend("AllReduce", param);
}

Status check(const AllGatherParam& param) { return check_backend("AllGather", param); }
Status check(const BroadcastParam& param) { return check_backend("Broadcast", param); }

std::vector<Column> collective_columns(const std::string& backend, std::size_t tensors) {
  return backend == "lccl" ? uniform({ACL_FLOAT16, ACL_BF16, ACL_FLOAT, ACL_INT8, ACL_INT32}, tensors)
                           : uniform({ACL_FLOAT16, ACL_BF16, ACL_FLOAT, ACL_INT8, ACL_INT32, ACL_INT64}, tensors);
}

class AllReduce final : public LeafOp {
 public:
  explicit AllReduce(const AllReduceParam& param)
      : LeafOp("AllReduceOperation", 1, 1, collective_columns(param.backend, 2)),
        ranks_(Ranks::of(param)),
        type_(param.allReduceType) {}

 private:
  Status infer(Descs ins, std::span<TensorDesc> outs) const override {
    outs[0] = ins[0];
    return atb::NO_ERROR;
  }
  Status prepare(std::span<const Slot>, Program&, Launch& launch) const override {
    Status status = atb::NO_ERROR;
    launch.kernel = [comm = ranks_.join(name_, status), type = type_](std::span<const View> ins,
                                                                      std::span<const View> outs) {
      store(outs[0], 0, all_reduce(comm.get(), "AllReduce", type, load_all(ins[0])));
    };
    return status;
  }

  Ranks ranks_;
  std::string type_;
};

// Every rank gets the bytes of all, in rank order.
Communicator::Bytes concatenate(const std::vector<Communicator::Bytes>& all) {
  Communicator::Bytes bytes;
  for (const Communicator::Bytes& part : all) {
    bytes.insert(bytes.end(), part.begin(), part.end());
  }
  return bytes;
}

class AllGather final : public LeafOp {
 public:
  explicit AllGather(const AllGatherParam& param)
      : LeafOp("AllGatherOperation", 1, 1, collective_columns(param.backend, 2)), ranks_(Ranks::of(param)) {}

 private:
  Status infer(Descs ins, std::span<TensorDesc> outs) const override {
    const TensorDesc& x = ins[0];
    if (rank(x) == atb::MAX_DIM) {
      return refuse(atb::ERROR_INVALID_TENSOR_DIM_NUM, "the output would have rank 9");
    }
    outs[0] = x;
    outs[0].shape.dims[0] = ranks_.size;
    std::copy(x.shape.dims, x.shape.dims + rank(x), outs[0].shape.dims + 1);
    ++outs[0].shape.dimNum;
    return atb::NO_ERROR;
  }
  Status prepare(std::span<const Slot>, Program&, Launch& launch) const override {
    Status status = atb::NO_ERROR;
    launch.kernel = [comm = ranks_.join(name_, status)](std::span<const View> ins, std::span<const View> outs) {
      const std::size_t bytes = size_bytes(ins[0].desc);
      const auto all = comm->exchange("AllGather of " + std::to_string(bytes), {ins[0].data, bytes}, concatenate);
      std::memcpy(outs[0].data, all.data(), all.size());
    };
    return status;
  }

  Ranks ranks_;
};

class Broadcast final : public LeafOp {
 public:
  explicit Broadcast(const BroadcastParam& param)
      : LeafOp("BroadcastOperation", 1, 0, collective_columns(param.backend, 1)), ranks_(Ranks::of(param)) {}

 private:
  Status infer(Descs, std::span<TensorDesc>) const override { return atb::NO_ERROR; }
  Status prepare(std::span<const Slot>, Program&, Launch& launch) const override {
    Status status = atb::NO_ERROR;
    launch.kernel = [comm = ranks_.join(name_, status), root = static_cast<std::size_t>(ranks_.root)](
                        std::span<const View> ins, std::span<const View>) {
      const std::size_t bytes = size_bytes(ins[0].desc);
      const auto all = comm->exchange("Broadcast of " + std::to_string(bytes), {ins[0].data, bytes},
                                      [root](const std::vector<Communicator::Bytes>& parts) { return parts[root]; });
      std::memcpy(ins[0].data, all.data(), bytes);
    };
    return status;
  }

  Ranks ranks_;
};

}  // namespace
}  // namespace atb_double

namespace atb {

using namespace atb_double;

template <>
Status CreateOperation(const infer::AllReduceParam& param, Operation** operation) {
  return create_operation<infer::AllReduceParam>(param, operation, check, [&] { return new AllReduce(param); });
}

template <>
Status CreateOperation(const infer::AllGatherParam& param, Operation** operation) {
  return create_operation<infer::AllGatherParam>(param, operation, check, [&] { return new AllGather(param); });
}

template <>
Status CreateOperation(const infer::BroadcastParam& param, Operation** operation) {
  return create_operation<infer::BroadcastParam>(param, operation, check, [&] { return new Broadcast(param); });
}

}  // namespace atb
