// GraphParam: the checks at creation, shapes node by node, and the flat list of launches that Setup makes of the nodes.

#include <algorithm>
#include <cctype>
#include <optional>
#include <set>

#include "base.h"

namespace atb_double {
namespace {

using atb::GraphParam;
using atb::Node;

constexpr uint32_t kMaxTensors = 256;
constexpr std::size_t kMaxNodes = 1024;
constexpr std::size_t kMaxName = 128;

std::string at_node(std::size_t index, const std::string& why) { return "node " + std::to_string(index) + ": " + why; }

Status refuse_graph(const GraphParam& param, const std::string& why) {
  return refuse(atb::ERROR_INVALID_GRAPH, "graph '" + param.name + "'", why);
}

Status check_node(const GraphParam& param, std::size_t index, std::vector<bool>& written,
                  std::set<const atb::Operation*>& seen) {
  const Node& node = param.nodes[index];
  const auto* base = dynamic_cast<const OpBase*>(node.operation);
  if (base == nullptr) {
    return refuse_graph(param, at_node(index, "null, or an operation that the double cannot run"));
  }
  if (base->owned_by_graph || !seen.insert(node.operation).second) {
    return refuse_graph(param, at_node(index, "its operation belongs to another node"));
  }
  if (base->stream_id != 0) {
    return refuse_graph(param, at_node(index, "the double runs a graph on one stream"));
  }
  const std::size_t num_ins = node.inTensorIds.size();
  if (num_ins != base->GetInputNum() || node.outTensorIds.size() != base->GetOutputNum()) {
    return refuse_graph(param, at_node(index, base->GetName() + " takes " + std::to_string(base->GetInputNum()) +
                                                  " inputs and " + std::to_string(base->GetOutputNum()) + " outputs"));
  }
  const std::size_t num_views = node.inTensorReshapeFuncs.size();
  const std::size_t num_chunks = node.inTensorChunks.size();
  if ((num_views != 0 && num_views != num_ins) || (num_chunks != 0 && num_chunks != num_ins)) {
    return refuse_graph(param, at_node(index, "reshape functions and chunks: none, or one for each input"));
  }
  for (const uint32_t id : node.inTensorIds) {
    if (id >= written.size() || !written[id]) {
      return refuse_graph(param,
                          at_node(index, "input " + std::to_string(id) + " is out of range or has no value yet"));
    }
  }
  for (const uint32_t id : node.outTensorIds) {
    if (id >= written.size()) {
      return refuse_graph(param, at_node(index, "output " + std::to_string(id) + " is out of range"));
    }
    written[id] = true;
  }
  return atb::NO_ERROR;
}

Status check(const GraphParam& param) {
  const bool plain_name = std::all_of(param.name.begin(), param.name.end(), [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
  });
  if (!plain_name || param.name.size() > kMaxName) {
    return refuse_graph(param, "names have at most 128 of [A-Za-z0-9_]");
  }
  if (param.inTensorNum > kMaxTensors || param.outTensorNum > kMaxTensors || param.internalTensorNum > kMaxTensors) {
    return refuse_graph(param, "more than 256 inputs, outputs or internals");
  }
  if (param.nodes.empty() || param.nodes.size() > kMaxNodes) {
    return refuse_graph(param, "1 to 1024 nodes expected, found " + std::to_string(param.nodes.size()));
  }
  std::vector<bool> written(param.inTensorNum + param.outTensorNum + param.internalTensorNum, false);
  std::fill_n(written.begin(), param.inTensorNum, true);
  std::set<const atb::Operation*> seen;
  for (std::size_t i = 0; i < param.nodes.size(); ++i) {
    if (const Status status = check_node(param, i, written, seen); status != atb::NO_ERROR) {
      return status;
    }
  }
  for (uint32_t i = 0; i < param.outTensorNum; ++i) {
    if (!written[param.inTensorNum + i]) {
      return refuse_graph(param, "output " + std::to_string(i) + " is never written");
    }
  }
  return atb::NO_ERROR;
}

class GraphOp final : public OpBase {
 public:
  explicit GraphOp(const GraphParam& param)
      : OpBase(param.name.empty() ? "GraphOperation" : param.name, param.inTensorNum, param.outTensorNum),
        param_(param) {
    for (const Node& node : param_.nodes) {
      static_cast<OpBase*>(node.operation)->owned_by_graph = true;
    }
  }
  ~GraphOp() override {
    for (const Node& node : param_.nodes) {
      delete node.operation;
    }
  }
  GraphOp(const GraphOp&) = delete;
  GraphOp& operator=(const GraphOp&) = delete;

  Status InferShape(const atb::SVector<TensorDesc>& ins, atb::SVector<TensorDesc>& outs) const override;
  Status lower(Program& program, std::span<const Slot> ins, std::span<const Slot> outs) const override;
  Status check_standalone(const atb::VariantPack&) const override { return atb::NO_ERROR; }

 private:
  using Slots = std::vector<std::optional<Slot>>;
  using OnNode = std::function<Status(const Node&, std::span<const Slot>, const atb::SVector<TensorDesc>&)>;

  Status walk(Slots& slots, const OnNode& on_node) const;
  Status view_input(const Node& node, std::size_t input, Slot& slot) const;

  GraphParam param_;
};

// Applies the node's reshape function and chunk to one input.
Status GraphOp::view_input(const Node& node, std::size_t input, Slot& slot) const {
  if (!node.inTensorChunks.empty() && node.inTensorChunks[input].chunkNum != 1) {
    const auto [num, index] = node.inTensorChunks[input];
    if (num == 0 || index >= num || dim(slot.desc, 0) % num != 0) {
      return refuse(atb::ERROR_INVALID_GRAPH_NODE_CHUNK, "an input does not divide into its chunks");
    }
    slot.desc.shape.dims[0] /= num;
    slot.place.shift += index * size_bytes(slot.desc);
  }
  if (node.inTensorReshapeFuncs.empty() || !node.inTensorReshapeFuncs[input]) {
    return atb::NO_ERROR;
  }
  TensorDesc view = slot.desc;
  view.shape = Dims{};
  node.inTensorReshapeFuncs[input](slot.desc.shape, view.shape);
  if (rank(view) == 0 || rank(view) > atb::MAX_DIM) {
    return refuse(atb::ERROR_GRAPH_NODE_RESHAPE_FUNC_FAIL,
                  "a reshape function gave rank " + std::to_string(rank(view)));
  }
  if (num_elements(view) != num_elements(slot.desc)) {
    warn_silent(name_, "a reshape function turned " + to_string(slot.desc) + " into " + to_string(view));
  }
  slot.desc = view;
  return atb::NO_ERROR;
}

// Visits the nodes in order with their inputs and inferred outputs, and keeps the descs of all tensors.
Status GraphOp::walk(Slots& slots, const OnNode& on_node) const {
  for (std::size_t index = 0; index < param_.nodes.size(); ++index) {
    const Node& node = param_.nodes[index];
    std::vector<Slot> ins;
    atb::SVector<TensorDesc> in_descs;
    for (std::size_t i = 0; i < node.inTensorIds.size(); ++i) {
      Slot slot = *slots[node.inTensorIds[i]];
      if (const Status status = view_input(node, i, slot); status != atb::NO_ERROR) {
        return refuse(status, at_node(index, "input " + std::to_string(i)));
      }
      in_descs.push_back(slot.desc);
      ins.push_back(slot);
    }
    atb::SVector<TensorDesc> out_descs;
    Status status = node.operation->InferShape(in_descs, out_descs);
    status = status == atb::NO_ERROR ? on_node(node, ins, out_descs) : status;
    if (status != atb::NO_ERROR) {
      return refuse(status, at_node(index, node.operation->GetName() + " failed"));
    }
  }
  return atb::NO_ERROR;
}

Status GraphOp::InferShape(const atb::SVector<TensorDesc>& ins, atb::SVector<TensorDesc>& outs) const {
  if (const Status status = check_inputs(ins); status != atb::NO_ERROR) {
    return status;
  }
  outs.clear();
  outs.resize(num_outs_);
  if (param_.inferShapeFunc) {
    const Status status = param_.inferShapeFunc(ins, outs);
    const bool complete = std::all_of(outs.begin(), outs.end(), [](const TensorDesc& desc) {
      return rank(desc) <= atb::MAX_DIM && size_bytes(desc) > 0 && desc.format != ACL_FORMAT_UNDEFINED;
    });
    return status == atb::NO_ERROR && complete
               ? status
               : refuse(atb::ERROR_GRAPH_INFERSHAPE_FUNC_FAIL, "inferShapeFunc failed or left an output unfilled");
  }
  Slots slots(num_ins_ + num_outs_ + param_.internalTensorNum);
  for (std::size_t i = 0; i < num_ins_; ++i) {
    slots[i] = Slot{{}, ins[i], nullptr};
  }
  const auto keep = [&slots](const Node& node, std::span<const Slot>, const atb::SVector<TensorDesc>& descs) {
    for (std::size_t i = 0; i < descs.size(); ++i) {
      slots[node.outTensorIds[i]] = Slot{{}, descs[i], nullptr};
    }
    return Status{atb::NO_ERROR};
  };
  const Status status = walk(slots, keep);
  for (std::size_t i = 0; status == atb::NO_ERROR && i < num_outs_; ++i) {
    outs[i] = slots[num_ins_ + i]->desc;
  }
  return status;
}

Status GraphOp::lower(Program& program, std::span<const Slot> ins, std::span<const Slot> outs) const {
  Slots slots(num_ins_ + num_outs_ + param_.internalTensorNum);
  std::copy(ins.begin(), ins.end(), slots.begin());
  const auto place = [&](uint32_t id, const TensorDesc& desc) -> Place {
    if (id >= num_ins_ && id < num_ins_ + num_outs_) {
      return outs[id - num_ins_].place;
    }
    const bool fits = slots[id].has_value() && size_bytes(slots[id]->desc) >= size_bytes(desc);
    if (id < num_ins_ && !fits) {
      warn_silent(name_, "a node writes " + to_string(desc) + " into input " + to_string(slots[id]->desc));
    }
    return fits || id < num_ins_ ? slots[id]->place : program.add_intermediate(size_bytes(desc));
  };
  const auto lower_node = [&](const Node& node, std::span<const Slot> node_ins, const atb::SVector<TensorDesc>& descs) {
    std::vector<Slot> node_outs;
    for (std::size_t i = 0; i < descs.size(); ++i) {
      const uint32_t id = node.outTensorIds[i];
      slots[id] = Slot{place(id, descs[i]), descs[i], nullptr};
      node_outs.push_back(*slots[id]);
    }
    return static_cast<const OpBase*>(node.operation)->lower(program, node_ins, node_outs);
  };
  const Status status = walk(slots, lower_node);
  for (std::size_t i = 0; status == atb::NO_ERROR && i < num_outs_; ++i) {
    const TensorDesc& made = slots[num_ins_ + i]->desc;
    if (size_bytes(made) != size_bytes(outs[i].desc) || made.dtype != outs[i].desc.dtype) {
      warn_silent(name_, "output " + std::to_string(i) + " is described as " + to_string(outs[i].desc) +
                             ", the nodes write " + to_string(made));
    }
  }
  return status;
}

}  // namespace
}  // namespace atb_double

template <>
atb::Status atb::CreateOperation(const GraphParam& param, Operation** operation) {
  using namespace atb_double;
  return create_operation(param, operation, check, [&] { return new GraphOp(param); });
}
