// The C++ API of ATB behind plain C functions, so that tests can be written in Python. Parameters come as text, one
// `field=value` each; lists are separated by commas.

#include <cstring>
#include <map>
#include <sstream>
#include <string>

#include "atb/atb_infer.h"

namespace {

using namespace atb;
using namespace atb::infer;

struct DriverTensor {
  int32_t dtype;
  int32_t format;
  uint64_t rank;
  int64_t dims[MAX_DIM];
  void* device;
  void* host;
  uint64_t bytes;
};

struct DriverNode {
  Operation* operation;
  uint64_t num_ins;
  uint64_t num_outs;
  uint32_t ins[16];
  uint32_t outs[4];
  int64_t heads[16];  // 0: no view; n: [T, n * d] is read as [T, n, d]; -1: [T, n, d] as [T, n * d]; -2: a bad view.
};

class Fields {
 public:
  explicit Fields(const std::string& text) {
    std::istringstream in(text);
    for (std::string item; in >> item;) {
      const std::size_t at = item.find('=');
      values_[item.substr(0, at)] = item.substr(at + 1);
    }
  }
  template <typename T>
  void set(const char* name, T& field) {
    const auto found = values_.find(name);
    if (found == values_.end()) {
      return;
    }
    if constexpr (std::is_same_v<T, std::string>) {
      field = found->second;
    } else {
      field = static_cast<T>(std::stod(found->second));
    }
    values_.erase(found);
  }
  template <typename T>
  void set_list(const char* name, SVector<T>& field) {
    const auto found = values_.find(name);
    if (found == values_.end()) {
      return;
    }
    field.clear();
    std::istringstream in(found->second);
    for (std::string item; std::getline(in, item, ',');) {
      field.push_back(static_cast<T>(std::stoll(item)));
    }
    values_.erase(found);
  }
  void set_rsv(uint8_t* reserved) { set("rsv", reserved[0]); }
  bool empty() const { return values_.empty(); }

 private:
  std::map<std::string, std::string> values_;
};

void fill(Fields& f, GatherParam& p) {
  f.set("axis", p.axis);
  f.set("batchDims", p.batchDims);
}

void fill(Fields& f, RmsNormParam& p) {
  f.set("layerType", p.layerType);
  f.set("epsilon", p.normParam.epsilon);
  f.set("preEpsilon", p.preNormParam.epsilon);
  f.set("postEpsilon", p.postNormParam.epsilon);
  f.set("preBias", p.preNormParam.hasBias);
}

void fill(Fields& f, LinearParam& p) {
  f.set("transposeA", p.transposeA);
  f.set("transposeB", p.transposeB);
  f.set("hasBias", p.hasBias);
  f.set("enAccum", p.enAccum);
}

template <typename Param>
void fill_ranks(Fields& f, Param& p) {
  f.set("rank", p.rank);
  f.set("rankSize", p.rankSize);
  f.set("rankRoot", p.rankRoot);
  f.set("backend", p.backend);
  f.set("commDomain", p.commDomain);
  f.set("commMode", p.commMode);
  f.set("rankTableFile", p.rankTableFile);
}

void fill(Fields& f, LinearParallelParam& p) {
  fill_ranks(f, p);
  f.set("hasResidual", p.hasResidual);
  f.set("transWeight", p.transWeight);
}

void fill(Fields& f, AllReduceParam& p) {
  fill_ranks(f, p);
  f.set("allReduceType", p.allReduceType);
}

void fill(Fields& f, AllGatherParam& p) { fill_ranks(f, p); }
void fill(Fields& f, BroadcastParam& p) { fill_ranks(f, p); }

void fill(Fields& f, SplitParam& p) {
  f.set("splitDim", p.splitDim);
  f.set("splitNum", p.splitNum);
  f.set_list("splitSizes", p.splitSizes);
}

void fill(Fields& f, ConcatParam& p) { f.set("concatDim", p.concatDim); }
void fill(Fields& f, TransposeParam& p) { f.set_list("perm", p.perm); }

void fill(Fields& f, SliceParam& p) {
  f.set_list("offsets", p.offsets);
  f.set_list("size", p.size);
}

void fill(Fields& f, TransdataParam& p) {
  f.set("transdataType", p.transdataType);
  f.set_list("outCrops", p.outCrops);
}

void fill(Fields& f, ElewiseParam& p) {
  f.set("elewiseType", p.elewiseType);
  f.set("varAttr", p.mulsParam.varAttr);
  f.set("outTensorType", p.outTensorType);
}

void fill(Fields& f, ActivationParam& p) {
  f.set("activationType", p.activationType);
  f.set("scale", p.scale);
  f.set("dim", p.dim);
}

void fill(Fields& f, RopeParam& p) { f.set("rotaryCoeff", p.rotaryCoeff); }

void fill(Fields& f, SelfAttentionParam& p) {
  f.set("headNum", p.headNum);
  f.set("kvHeadNum", p.kvHeadNum);
  f.set("qkScale", p.qkScale);
  f.set("isTriuMask", p.isTriuMask);
  f.set("calcType", p.calcType);
  f.set("kernelType", p.kernelType);
  f.set("maskType", p.maskType);
}

void fill(Fields& f, PagedAttentionParam& p) {
  f.set("headNum", p.headNum);
  f.set("kvHeadNum", p.kvHeadNum);
  f.set("qkScale", p.qkScale);
  f.set("maskType", p.maskType);
  f.set("calcType", p.calcType);
}

void fill(Fields& f, ReshapeAndCacheParam& p) { f.set("kvCacheCfg", p.kvCacheCfg); }
void fill(Fields& f, SoftmaxParam& p) { f.set_list("axes", p.axes); }
void fill(Fields& f, SortParam& p) { f.set_list("num", p.num); }

constexpr int kUnknown = -1;  // The test's own mistake.

template <typename Param>
int create(const std::string& text, Operation** operation) {
  Fields fields(text);
  Param param;
  fill(fields, param);
  fields.set_rsv(param.rsv);
  return fields.empty() ? CreateOperation(param, operation) : kUnknown;
}

using Create = int (*)(const std::string&, Operation**);

const std::map<std::string, Create>& creators() {
  static const std::map<std::string, Create> all = {
      {"Gather", create<GatherParam>},
      {"RmsNorm", create<RmsNormParam>},
      {"Linear", create<LinearParam>},
      {"LinearParallel", create<LinearParallelParam>},
      {"AllReduce", create<AllReduceParam>},
      {"AllGather", create<AllGatherParam>},
      {"Broadcast", create<BroadcastParam>},
      {"Split", create<SplitParam>},
      {"Concat", create<ConcatParam>},
      {"Transpose", create<TransposeParam>},
      {"Slice", create<SliceParam>},
      {"Transdata", create<TransdataParam>},
      {"Elewise", create<ElewiseParam>},
      {"Activation", create<ActivationParam>},
      {"Rope", create<RopeParam>},
      {"SelfAttention", create<SelfAttentionParam>},
      {"PagedAttention", create<PagedAttentionParam>},
      {"ReshapeAndCache", create<ReshapeAndCacheParam>},
      {"Softmax", create<SoftmaxParam>},
      {"Sort", create<SortParam>},
  };
  return all;
}

Tensor tensor_of(const DriverTensor& from) {
  Tensor tensor;
  tensor.desc.dtype = static_cast<aclDataType>(from.dtype);
  tensor.desc.format = static_cast<aclFormat>(from.format);
  tensor.desc.shape.dimNum = from.rank;
  std::memcpy(tensor.desc.shape.dims, from.dims, sizeof(from.dims));
  tensor.deviceData = from.device;
  tensor.hostData = from.host;
  tensor.dataSize = from.bytes;
  return tensor;
}

VariantPack pack_of(const DriverTensor* ins, uint64_t num_ins, const DriverTensor* outs, uint64_t num_outs) {
  VariantPack pack;
  for (uint64_t i = 0; i < num_ins; ++i) {
    pack.inTensors.push_back(tensor_of(ins[i]));
  }
  for (uint64_t i = 0; i < num_outs; ++i) {
    pack.outTensors.push_back(tensor_of(outs[i]));
  }
  return pack;
}

ReshapeFunc view(int64_t heads) {
  if (heads == 0) {
    return nullptr;
  }
  return [heads](const Dims& from, Dims& to) {
    if (heads == -2) {
      return;
    }
    to.dimNum = heads == -1 ? 2 : 3;
    to.dims[0] = from.dims[0];
    to.dims[1] = heads == -1 ? from.dims[1] * from.dims[2] : heads;
    to.dims[2] = heads == -1 ? 1 : from.dims[1] / heads;
  };
}

}  // namespace

extern "C" {

int driver_create(const char* kind, const char* fields, Operation** operation) {
  const auto found = creators().find(kind);
  return found == creators().end() ? kUnknown : found->second(fields, operation);
}

int driver_graph(const char* name, const uint32_t* counts, const DriverNode* nodes, uint64_t num_nodes,
                 Operation** operation) {
  GraphParam param;
  param.name = name;
  param.inTensorNum = counts[0];
  param.outTensorNum = counts[1];
  param.internalTensorNum = counts[2];
  for (uint64_t n = 0; n < num_nodes; ++n) {
    Node& node = param.nodes.emplace_back();
    node.operation = nodes[n].operation;
    for (uint64_t i = 0; i < nodes[n].num_ins; ++i) {
      node.inTensorIds.push_back(nodes[n].ins[i]);
      node.inTensorReshapeFuncs.push_back(view(nodes[n].heads[i]));
    }
    for (uint64_t i = 0; i < nodes[n].num_outs; ++i) {
      node.outTensorIds.push_back(nodes[n].outs[i]);
    }
  }
  return CreateOperation(param, operation);
}

int driver_destroy(Operation* operation) { return DestroyOperation(operation); }

int driver_infer(const Operation* operation, const DriverTensor* ins, uint64_t num_ins, DriverTensor* out) {
  SVector<TensorDesc> in_descs;
  for (uint64_t i = 0; i < num_ins; ++i) {
    in_descs.push_back(tensor_of(ins[i]).desc);
  }
  SVector<TensorDesc> out_descs;
  const Status status = operation->InferShape(in_descs, out_descs);
  for (std::size_t i = 0; status == NO_ERROR && i < out_descs.size(); ++i) {
    out[i].dtype = out_descs[i].dtype;
    out[i].format = out_descs[i].format;
    out[i].rank = out_descs[i].shape.dimNum;
    std::memcpy(out[i].dims, out_descs[i].shape.dims, sizeof(out[i].dims));
  }
  return status;
}

int driver_setup(Operation* operation, const DriverTensor* ins, uint64_t num_ins, const DriverTensor* outs,
                 uint64_t num_outs, uint64_t* workspace_bytes, Context* context) {
  return operation->Setup(pack_of(ins, num_ins, outs, num_outs), *workspace_bytes, context);
}

int driver_execute(Operation* operation, const DriverTensor* ins, uint64_t num_ins, const DriverTensor* outs,
                   uint64_t num_outs, uint8_t* workspace, uint64_t workspace_bytes, Context* context) {
  return operation->Execute(pack_of(ins, num_ins, outs, num_outs), workspace, workspace_bytes, context);
}

int driver_create_context(Context** context) { return CreateContext(context); }
int driver_destroy_context(Context* context) { return DestroyContext(context); }
int driver_set_stream(Context* context, aclrtStream stream) { return context->SetExecuteStream(stream); }
int driver_set_execute_type(Context* context, int type) {
  return context->SetExecuteType(static_cast<ExecuteType>(type));
}

int driver_release() { return ATB_DOUBLE_RELEASE; }

#if ATB_DOUBLE_RELEASE >= 820
int driver_set_launch_mode(Context* context, int mode) { return context->SetLaunchMode(static_cast<LaunchMode>(mode)); }
#endif
}
