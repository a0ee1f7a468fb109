#include "backend/atb/plan.h"

#include <array>
#include <string_view>

#include "base/error.h"

namespace lb::npu {
namespace {

struct OpText {
  std::string operator()(const Gather&) const { return "Gather"; }
  std::string operator()(const Norm& op) const {
    return cat("RmsNorm", op.adds_residual ? " PRENORM" : "", " epsilon=", op.epsilon);
  }
  std::string operator()(const MatMul& op) const { return op.bias ? "Linear bias" : "Linear"; }
  std::string operator()(const SplitColumns& op) const {
    std::string text = "Split";
    for (const std::int32_t size : op.sizes) text += cat(" ", size);
    return text;
  }
  std::string operator()(const Rotate&) const { return "Rope"; }
  std::string operator()(const WriteCache&) const { return "ReshapeAndCache"; }
  std::string operator()(const Encode& op) const {
    return cat("SelfAttention ", op.prefix ? "PREFIX_ENCODER" : "PA_ENCODER",
               op.high_precision ? " HIGH_PRECISION" : "", op.full_mask ? " full mask" : "", " heads=", op.heads,
               " kv_heads=", op.kv_heads, " scale=", op.scale);
  }
  std::string operator()(const Page& op) const {
    return cat("PagedAttention", op.several_queries ? " SPEC" : "", " heads=", op.heads, " kv_heads=", op.kv_heads,
               " scale=", op.scale);
  }
  std::string operator()(const SwiGluHalves&) const { return "SwiGlu"; }
  std::string operator()(const Swish&) const { return "Swish"; }
  std::string operator()(const Multiply&) const { return "Mul"; }
  std::string operator()(const Sum&) const { return "Add"; }
  std::string operator()(const Permute& op) const {
    std::string text = "Transpose";
    for (const std::int32_t axis : op.order) text += cat(" ", axis);
    return text;
  }
  std::string operator()(const SumRanks&) const { return "AllReduce"; }
  std::string operator()(const GatherRanks&) const { return "AllGather"; }
};

std::string extent_text(std::int64_t extent) {
  static constexpr std::array<std::string_view, 8> kSymbols{"T", "S", "R", "C", "B", "W", "N", "P"};
  return extent >= 0 ? cat(extent) : std::string(kSymbols[static_cast<std::size_t>(-extent - 1)]);
}

std::string tensor_text(const Tensor& tensor) {
  static constexpr std::array<std::string_view, 4> kElements{"f32", "f16", "bf16", "i32"};
  std::string text = tensor.name + " " + std::string(kElements[static_cast<std::size_t>(tensor.element)]) + "[";
  for (std::size_t i = 0; i < tensor.shape.size(); ++i) text += (i == 0 ? "" : ", ") + extent_text(tensor.shape[i]);
  return text + (tensor.nz ? "] NZ" : "]");
}

std::string part_text(const WeightPart& part) {
  std::string text;
  for (const Range& range : part.rows) text += cat(" rows ", range.begin, "+", range.count);
  text += cat(" columns ", part.columns.begin, "+", part.columns.count);
  if (part.padding > 0) text += cat(" and ", part.padding, " rows of zeros");
  return part.zeros ? text + ", all zeros" : text;
}

}  // namespace

DType dtype_of(Element element) {
  LB_CHECK(element != Element::kI32);
  return element == Element::kF32 ? DType::kF32 : element == Element::kF16 ? DType::kF16 : DType::kBF16;
}

const char* to_string(Phase phase) {
  switch (phase) {
    case Phase::kPrefill: return "prefill";
    case Phase::kPrefix: return "prefix";
    case Phase::kExtend: return "extend";
    case Phase::kDecode: return "decode";
  }
  return "";
}

std::string to_string(const GraphPlan& plan) {
  std::string text = "graph " + plan.name + "\n";
  std::uint32_t id = 0;
  for (const Tensor& tensor : plan.inputs) {
    text += cat("  in ", id++, " ", tensor_text(tensor));
    if (tensor.feed == Feed::kWeight) text += " =" + part_text(plan.weights[tensor.weight]);
    text += "\n";
  }
  for (const Tensor& tensor : plan.outputs) text += cat("  out ", id++, " ", tensor_text(tensor), "\n");
  for (const Tensor& tensor : plan.internals) text += cat("  internal ", id++, " ", tensor_text(tensor), "\n");
  for (const Node& node : plan.nodes) {
    text += cat("  ", node.name, ": ", std::visit(OpText{}, node.op), " (");
    for (std::size_t i = 0; i < node.ins.size(); ++i) {
      text += cat(i == 0 ? "" : ", ", node.ins[i]);
      if (node.views.empty()) continue;
      if (node.views[i].kind == View::kSplitHeads) text += cat(" as ", node.views[i].heads, " heads");
      if (node.views[i].kind == View::kMergeHeads) text += " as one row";
    }
    text += ") -> ";
    for (std::size_t i = 0; i < node.outs.size(); ++i) text += cat(i == 0 ? "" : ", ", node.outs[i]);
    text += "\n";
  }
  return text;
}

}  // namespace lb::npu
