#include <cstring>

#include "acl/state.h"
#include "base.h"

namespace atb_double {
namespace {

bool cell_matches(const Cell& cell, const TensorDesc& desc) {
  return desc.dtype == cell.dtype &&
         ((cell.nd && desc.format == ACL_FORMAT_ND) || (cell.nz && desc.format == ACL_FORMAT_FRACTAL_NZ));
}

// In a graph both ends of an in-place pair have a place; they must be one.
bool surely_elsewhere(const Place& in, const Place& out) {
  const bool bound_at_execute = in.where == Place::In::kInputs && out.where == Place::In::kOutputs;
  return !(in == out) && !bound_at_execute;
}

}  // namespace

std::vector<Column> uniform(std::initializer_list<aclDataType> dtypes, std::size_t num_tensors) {
  std::vector<Column> made;
  for (const aclDataType dtype : dtypes) {
    made.emplace_back(num_tensors, Cell{dtype});
  }
  return made;
}

std::vector<Column> columns(std::initializer_list<std::vector<aclDataType>> list) {
  std::vector<Column> made;
  for (const std::vector<aclDataType>& dtypes : list) {
    Column& column = made.emplace_back();
    for (const aclDataType dtype : dtypes) {
      column.push_back({dtype});
    }
  }
  return made;
}

LeafOp::LeafOp(std::string name, uint32_t num_ins, uint32_t num_outs, std::vector<Column> columns)
    : OpBase(std::move(name), num_ins, num_outs), columns_(std::move(columns)) {
  if (is_310p()) {  // That chip has no bf16.
    std::erase_if(columns_, [](const Column& column) {
      for (const Cell& cell : column) {
        if (cell.dtype == ACL_BF16) {
          return true;
        }
      }
      return false;
    });
  }
}

bool LeafOp::matches_columns(Descs ins, Descs outs) const {
  for (const Column& column : columns_) {
    bool matches = true;
    for (std::size_t i = 0; i < ins.size() + outs.size(); ++i) {
      matches = matches && cell_matches(column[i], i < ins.size() ? ins[i] : outs[i - ins.size()]);
    }
    if (matches) {
      return true;
    }
  }
  return false;
}

Status LeafOp::InferShape(const atb::SVector<TensorDesc>& ins, atb::SVector<TensorDesc>& outs) const {
  if (const Status status = check_inputs(ins); status != atb::NO_ERROR) {
    return status;
  }
  const Descs in_descs(ins.data(), ins.size());
  if (!matches_columns(in_descs, {})) {
    std::string text;
    for (const TensorDesc& desc : in_descs) {
      text += " " + to_string(desc);
    }
    return refuse(atb::ERROR_INVALID_TENSOR_INI_MATCH, "no column has these types and formats:" + text);
  }
  outs.clear();
  outs.resize(num_outs_);
  return infer(in_descs, {outs.data(), outs.size()});
}

Status LeafOp::check_standalone(const atb::VariantPack& pack) const {
  atb::SVector<TensorDesc> ins;
  atb::SVector<TensorDesc> outs;
  atb::SVector<TensorDesc> inferred;
  for (const Tensor& tensor : pack.inTensors) {
    ins.push_back(tensor.desc);
  }
  for (const Tensor& tensor : pack.outTensors) {
    outs.push_back(tensor.desc);
  }
  if (const Status status = InferShape(ins, inferred); status != atb::NO_ERROR) {
    return status;
  }
  if (!matches_columns({ins.data(), ins.size()}, {outs.data(), outs.size()})) {
    return refuse(atb::ERROR_INVALID_TENSOR_INI_MATCH, "no column has these types and formats of the outputs");
  }
  for (std::size_t i = 0; i < outs.size(); ++i) {
    if (!same(outs[i], inferred[i])) {
      return refuse(atb::ERROR_INVALID_TENSOR_DIM, "output " + std::to_string(i) + " is " + to_string(outs[i]) +
                                                       ", expected " + to_string(inferred[i]));
    }
  }
  return atb::NO_ERROR;
}

Status LeafOp::lower(Program& program, std::span<const Slot> ins, std::span<const Slot> outs) const {
  Launch launch{name_, nullptr, {ins.begin(), ins.end()}, {outs.begin(), outs.end()}, 0, {}};
  if (const Status status = prepare(ins, program, launch); status != atb::NO_ERROR) {
    return status;
  }
  for (const auto& [in, out] : launch.in_place) {
    if (surely_elsewhere(ins[in].place, outs[out].place)) {
      warn_silent("output " + std::to_string(out) + " must be the buffer of input " + std::to_string(in));
    }
  }
  program.launches.push_back(std::move(launch));
  return atb::NO_ERROR;
}

std::vector<int32_t> LeafOp::host_values(const Slot& slot, const char* what, Program& program) const {
  if (slot.host == nullptr) {
    refuse(atb::ERROR_INVALID_PARAM, std::string(what) + " has no hostData");
    return {};
  }
  std::vector<int32_t> values(static_cast<std::size_t>(num_elements(slot.desc)));
  std::memcpy(values.data(), slot.host, values.size() * sizeof(int32_t));
  const auto* bytes = static_cast<const std::byte*>(slot.host);
  program.host.push_back({slot.host, {bytes, bytes + values.size() * sizeof(int32_t)}});
  return values;
}

void LeafOp::fail_tiling(Program& program, const std::string& why) const {
  log_error(name_ + ": tiling fails: " + why + " (Setup returns 0 all the same)");
  program.tiling_failed = true;
}

}  // namespace atb_double
