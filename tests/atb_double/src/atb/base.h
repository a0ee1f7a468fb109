#ifndef ATB_DOUBLE_SRC_ATB_BASE_H
#define ATB_DOUBLE_SRC_ATB_BASE_H

// What all operations share: the checks of Setup and Execute in ATB's order, and the bookkeeping between the two. A
// leaf has columns (its table of element types and formats), a shape rule, and a kernel; a graph has nodes (graph.cpp).

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "acl/state.h"
#include "atb/operation.h"
#include "context.h"
#include "program.h"
#include "tensor.h"

namespace atb_double {

// Logs an ERROR line and returns the code.
Status refuse(Status code, const std::string& who, const std::string& why);
// For what the library never notices, but the device would: logs, and the call goes on.
void warn_silent(const std::string& who, const std::string& why);

class OpBase : public atb::Operation {
 public:
  explicit OpBase(std::string name, uint32_t num_ins, uint32_t num_outs);
  ~OpBase() override;

  std::string GetName() const override { return name_; }
  uint32_t GetInputNum() const override { return num_ins_; }
  uint32_t GetOutputNum() const override { return num_outs_; }
  Status Setup(const atb::VariantPack& pack, uint64_t& workspace_bytes, atb::Context* context) override;
  Status Execute(const atb::VariantPack& pack, uint8_t* workspace, uint64_t workspace_bytes,
                 atb::Context* context) override;

  // Appends this operation's launches. `ins` are final; `outs` have a place when `standalone` or when the graph gave
  // one, and their descs are already inferred.
  virtual Status lower(Program& program, std::span<const Slot> ins, std::span<const Slot> outs) const = 0;
  // What Setup checks only when the operation is not part of a graph.
  virtual Status check_standalone(const atb::VariantPack& pack) const = 0;

  uint32_t stream_id = 0;
  bool owned_by_graph = false;

 protected:
  Status check_inputs(const atb::SVector<TensorDesc>& ins) const;
  Status refuse(Status code, const std::string& why) const { return atb_double::refuse(code, name_, why); }

  std::string name_;
  uint32_t num_ins_;
  uint32_t num_outs_;

 private:
  Status check_pack(const atb::VariantPack& pack) const;
  Status make_program(const atb::VariantPack& pack);
  bool same_as_last_setup(const atb::VariantPack& pack) const;
  Status check_execute(const atb::VariantPack& pack, const uint8_t* workspace, uint64_t workspace_bytes,
                       const atb::Context* context) const;
  Status check_addresses(const atb::VariantPack& pack) const;
  Status launch(const atb::VariantPack& pack, uint8_t* workspace);

  std::shared_ptr<const Program> program_;
  std::vector<TensorDesc> in_descs_;  // Of the last successful Setup.
  std::vector<TensorDesc> out_descs_;
  ContextImpl* context_ = nullptr;
  uint64_t tiling_block_ = 0;
  bool ready_ = false;
  bool captured_ = false;  // Graph launch mode: shapes are fixed from the first Execute on.
  std::function<void()> prelaunched_;
  std::atomic<int> users_ = 0;
};

// One column of an operation's table: element type and formats of each input, then of each output.
struct Cell {
  aclDataType dtype;
  bool nd = true;
  bool nz = false;
};
using Column = std::vector<Cell>;
// The same type everywhere, a column for each of `dtypes`.
std::vector<Column> uniform(std::initializer_list<aclDataType> dtypes, std::size_t num_tensors);
std::vector<Column> columns(std::initializer_list<std::vector<aclDataType>> list);

using Descs = std::span<const TensorDesc>;

class LeafOp : public OpBase {
 public:
  LeafOp(std::string name, uint32_t num_ins, uint32_t num_outs, std::vector<Column> columns);

  Status InferShape(const atb::SVector<TensorDesc>& ins, atb::SVector<TensorDesc>& outs) const final;
  Status lower(Program& program, std::span<const Slot> ins, std::span<const Slot> outs) const final;
  Status check_standalone(const atb::VariantPack& pack) const final;

 protected:
  virtual Status infer(Descs ins, std::span<TensorDesc> outs) const = 0;
  // Reads host tensors and checks what tiling checks. May set launch.host_only and launch.in_place.
  virtual Status prepare(std::span<const Slot> ins, Program& program, Launch& launch) const = 0;
  // The host values of an int32 tensor; empty, with an ERROR line, when it has none.
  std::vector<int32_t> host_values(const Slot& slot, const char* what, Program& program) const;
  // ATB's Setup drops the status of tiling: Setup succeeds, Execute fails.
  void fail_tiling(Program& program, const std::string& why) const;
  void warn_silent(const std::string& why) const { atb_double::warn_silent(name_, why); }

 private:
  bool matches_columns(Descs ins, Descs outs) const;
  std::vector<Column> columns_;
};

// The frame of every CreateOperation: `check` answers for the parameters, `make` gives the operation.
template <typename Param, typename Make>
Status create_operation(const Param& param, atb::Operation** operation, Status (*check)(const Param&), Make make) {
  if (injected("CreateOperation")) {
    return atb::ERROR_INTERNAL_ERROR;
  }
  if (operation == nullptr) {
    return refuse(atb::ERROR_INVALID_PARAM, "CreateOperation", "null pointer");
  }
  *operation = nullptr;
  const Status status = check(param);
  if (status == atb::NO_ERROR) {
    *operation = make();
  }
  return status;
}

bool all_zero(std::span<const uint8_t> reserved);
bool opapi_is_there();  // Elewise and LinearParallel refuse to be created without libopapi.so.

}  // namespace atb_double

#endif
