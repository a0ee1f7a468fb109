#include "backend/atb/operations.h"

#include <string>
#include <utility>
#include <vector>

#include "backend/atb/status.h"
#include "base/error.h"

namespace lb::npu {
namespace {

using namespace atb::infer;

// Creates the operation of one node.
class Creator {
 public:
  Creator(const Target& target, const std::string& subject) : target_(target), subject_(subject) {}

  OperationPtr operator()(const Gather&) const { return create(GatherParam{}); }

  OperationPtr operator()(const Norm& op) const {
    RmsNormParam param;
    param.layerType = op.adds_residual ? RmsNormParam::RMS_NORM_PRENORM : RmsNormParam::RMS_NORM_NORM;
    // An epsilon of 0 is refused even where it is not used.
    param.normParam.epsilon = param.preNormParam.epsilon = param.postNormParam.epsilon = op.epsilon;
    return create(param);
  }

  OperationPtr operator()(const MatMul& op) const {
    LinearParam param;
    param.transposeA = false;
    param.transposeB = true;
    param.hasBias = op.bias;
    return create(param);
  }

  OperationPtr operator()(const SplitColumns& op) const {
    SplitParam param;
    param.splitDim = 1;
    param.splitNum = static_cast<std::int32_t>(op.sizes.size());
    bool equal = true;
    for (const std::int32_t size : op.sizes) equal = equal && size == op.sizes.front();
    if (!equal) {
      for (const std::int32_t size : op.sizes) param.splitSizes.push_back(size);
    }
    return create(param);
  }

  OperationPtr operator()(const Rotate&) const {
    RopeParam param;
    param.rotaryCoeff = 2;  // the two halves of a head
    return create(param);
  }

  OperationPtr operator()(const WriteCache&) const { return create(ReshapeAndCacheParam{}); }

  OperationPtr operator()(const Encode& op) const {
    SelfAttentionParam param;
    param.headNum = static_cast<std::int32_t>(op.heads);
    param.kvHeadNum = static_cast<std::int32_t>(op.kv_heads);
    param.qkScale = op.scale;
    param.calcType = op.prefix ? SelfAttentionParam::PREFIX_ENCODER : SelfAttentionParam::PA_ENCODER;
    param.maskType = op.full_mask ? SelfAttentionParam::MASK_TYPE_NORM : SelfAttentionParam::MASK_TYPE_NORM_COMPRESS;
    param.isTriuMask = op.full_mask ? 0 : 1;
    if (op.high_precision) param.kernelType = SelfAttentionParam::KERNELTYPE_HIGH_PRECISION;
    return create(param);
  }

  OperationPtr operator()(const Page& op) const {
    PagedAttentionParam param;
    param.headNum = static_cast<std::int32_t>(op.heads);
    param.kvHeadNum = static_cast<std::int32_t>(op.kv_heads);
    param.qkScale = op.scale;
    if (op.several_queries) {
      param.calcType = PagedAttentionParam::CALC_TYPE_SPEC;
      param.maskType = PagedAttentionParam::MASK_TYPE_SPEC;
    }
    return create(param);
  }

  OperationPtr operator()(const SwiGluHalves&) const { return activation(ACTIVATION_SWIGLU_FORWARD); }
  OperationPtr operator()(const Swish&) const { return activation(ACTIVATION_SWISH); }
  OperationPtr operator()(const Multiply&) const { return elementwise(ElewiseParam::ELEWISE_MUL); }
  OperationPtr operator()(const Sum&) const { return elementwise(ElewiseParam::ELEWISE_ADD); }

  OperationPtr operator()(const Permute& op) const {
    TransposeParam param;
    for (const std::int32_t axis : op.order) param.perm.push_back(axis);
    return create(param);
  }

  OperationPtr operator()(const SumRanks&) const {
    AllReduceParam param;
    param.allReduceType = "sum";
    return communicate(param);
  }

  OperationPtr operator()(const GatherRanks&) const { return communicate(AllGatherParam{}); }

 private:
  template <class Param>
  OperationPtr create(const Param& param) const {
    atb::Operation* operation = nullptr;
    check_atb(atb::CreateOperation(param, &operation), "CreateOperation", subject_);
    return OperationPtr(operation);
  }

  OperationPtr activation(ActivationType type) const {
    ActivationParam param;
    param.activationType = type;
    return create(param);
  }

  OperationPtr elementwise(ElewiseParam::ElewiseType type) const {
    ElewiseParam param;
    param.elewiseType = type;
    return create(param);
  }

  template <class Param>
  OperationPtr communicate(Param param) const {
    param.rank = static_cast<int>(target_.ranks.rank);
    param.rankSize = static_cast<int>(target_.ranks.size);
    param.backend = target_.communication;
    return create(param);
  }

  const Target& target_;
  const std::string& subject_;
};

atb::ReshapeFunc reshape(const View& view) {
  switch (view.kind) {
    case View::kSame: return {};
    case View::kSplitHeads:
      return [heads = view.heads](const atb::Dims& old, atb::Dims& out) {
        out.dimNum = 3;
        out.dims[0] = old.dims[0];
        out.dims[1] = heads;
        out.dims[2] = old.dims[1] / heads;
      };
    case View::kMergeHeads:
      return [](const atb::Dims& old, atb::Dims& out) {
        out.dimNum = 2;
        out.dims[0] = old.dims[0];
        out.dims[1] = old.dims[1] * old.dims[2];
      };
  }
  return {};
}

aclDataType acl_type(Element element) {
  switch (element) {
    case Element::kF32: return ACL_FLOAT;
    case Element::kF16: return ACL_FLOAT16;
    case Element::kBF16: return ACL_BF16;
    case Element::kI32: return ACL_INT32;
  }
  return ACL_DT_UNDEFINED;
}

std::int64_t count(const atb::TensorDesc& desc) {
  std::int64_t product = 1;
  for (std::uint64_t i = 0; i < desc.shape.dimNum; ++i) product *= desc.shape.dims[i];
  return product;
}

}  // namespace

OperationPtr create_operation(const GraphPlan& plan, const Target& target) {
  std::vector<OperationPtr> owners;  // until the graph takes them over
  atb::GraphParam param;
  param.name = plan.name;
  param.inTensorNum = static_cast<std::uint32_t>(plan.inputs.size());
  param.outTensorNum = static_cast<std::uint32_t>(plan.outputs.size());
  param.internalTensorNum = static_cast<std::uint32_t>(plan.internals.size());
  param.nodes.resize(plan.nodes.size());
  for (std::size_t i = 0; i < plan.nodes.size(); ++i) {
    const Node& node = plan.nodes[i];
    owners.push_back(std::visit(Creator(target, cat("node '", node.name, "' of ", plan.name)), node.op));
    atb::Node& out = param.nodes[i];
    out.operation = owners.back().get();
    for (const std::uint32_t id : node.ins) out.inTensorIds.push_back(id);
    for (const std::uint32_t id : node.outs) out.outTensorIds.push_back(id);
    for (const View& view : node.views) out.inTensorReshapeFuncs.push_back(reshape(view));
  }
  atb::Operation* graph = nullptr;
  check_atb(atb::CreateOperation(param, &graph), "CreateOperation", plan.name);
  for (OperationPtr& owner : owners) static_cast<void>(owner.release());
  return OperationPtr(graph);
}

std::int64_t size_bytes(const Tensor& tensor, const Extents& extents) {
  std::int64_t bytes = size_bytes(tensor.element);
  for (const std::int64_t extent : tensor.shape) bytes *= extents.of(extent);
  return bytes;
}

void describe(const Tensor& tensor, const Extents& extents, atb::Tensor& out) {
  out.desc.dtype = acl_type(tensor.element);
  out.desc.format = tensor.nz ? ACL_FORMAT_FRACTAL_NZ : ACL_FORMAT_ND;
  out.desc.shape.dimNum = tensor.shape.size();
  for (std::size_t i = 0; i < tensor.shape.size(); ++i) out.desc.shape.dims[i] = extents.of(tensor.shape[i]);
  out.dataSize = static_cast<std::uint64_t>(size_bytes(tensor, extents));
}

void check_outputs(const GraphPlan& plan, const atb::Operation& operation, const Extents& extents) {
  atb::SVector<atb::TensorDesc> ins;
  atb::SVector<atb::TensorDesc> outs;
  atb::Tensor tensor;
  for (const Tensor& input : plan.inputs) {
    describe(input, extents, tensor);
    ins.push_back(tensor.desc);
  }
  check_atb(operation.InferShape(ins, outs), "InferShape", plan.name);
  LB_CHECK(outs.size() == plan.outputs.size(), plan.name);
  for (std::size_t i = 0; i < plan.outputs.size(); ++i) {
    describe(plan.outputs[i], extents, tensor);
    LB_CHECK(outs.at(i).dtype == tensor.desc.dtype && outs.at(i).format == tensor.desc.format &&
                 count(outs.at(i)) == count(tensor.desc),
             plan.name, ", output '", plan.outputs[i].name, "': ATB infers ", count(outs.at(i)), " elements of type ",
             static_cast<int>(outs.at(i).dtype), ", planned are ", count(tensor.desc), " of type ",
             static_cast<int>(tensor.desc.dtype));
  }
}

}  // namespace lb::npu
