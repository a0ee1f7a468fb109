#include "base.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "acl/memory.h"
#include "acl/state.h"
#include "acl/stream.h"

namespace atb_double {
namespace {

constexpr uint64_t kMaxTensorBytes = uint64_t{256} << 30U;

// Counts who is inside an operation, to notice Setup and Execute at the same time.
struct Inside {
  explicit Inside(std::atomic<int>& count) : users(count), alone(count.fetch_add(1) == 0) {}
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;
  ~Inside() { --users; }
  std::atomic<int>& users;
  bool alone;
};

struct SetupTurn {
  explicit SetupTurn(ContextImpl& owner) : context(owner), entered(owner.enter_setup()) {}
  SetupTurn(const SetupTurn&) = delete;
  SetupTurn& operator=(const SetupTurn&) = delete;
  ~SetupTurn() {
    if (entered) {
      context.leave_setup();
    }
  }
  ContextImpl& context;
  bool entered;
};

bool same_descs(const std::vector<TensorDesc>& descs, const atb::SVector<Tensor>& tensors) {
  return descs.size() == tensors.size() &&
         std::equal(descs.begin(), descs.end(), tensors.begin(),
                    [](const TensorDesc& desc, const Tensor& tensor) { return same(desc, tensor.desc); });
}

std::vector<TensorDesc> descs_of(const atb::SVector<Tensor>& tensors) {
  std::vector<TensorDesc> descs;
  for (const Tensor& tensor : tensors) {
    descs.push_back(tensor.desc);
  }
  return descs;
}

std::vector<Slot> slots_of(const atb::SVector<Tensor>& tensors, Place::In where) {
  std::vector<Slot> slots;
  for (const Tensor& tensor : tensors) {
    slots.push_back({{where, slots.size(), 0}, tensor.desc, tensor.hostData});
  }
  return slots;
}

std::vector<void*> addresses_of(const atb::SVector<Tensor>& tensors) {
  std::vector<void*> addresses;
  for (const Tensor& tensor : tensors) {
    addresses.push_back(tensor.deviceData);
  }
  return addresses;
}

// 0, or what is wrong with a tensor of any operation.
Status tensor_status(const TensorDesc& desc) {
  if (rank(desc) < 1 || rank(desc) > atb::MAX_DIM) {
    return atb::ERROR_INVALID_TENSOR_DIM;
  }
  const uint64_t bytes = size_bytes(desc);
  return bytes == 0 || bytes > kMaxTensorBytes ? atb::ERROR_INVALID_TENSOR_SIZE : atb::NO_ERROR;
}

}  // namespace

Status refuse(Status code, const std::string& who, const std::string& why) {
  log_error(who + ": " + why + " (" + std::to_string(code) + ")");
  return code;
}

void warn_silent(const std::string& who, const std::string& why) {
  log_error(who + ": " + why + " (the library does not notice)");
}

bool all_zero(std::span<const uint8_t> reserved) {
  return std::all_of(reserved.begin(), reserved.end(), [](uint8_t byte) { return byte == 0; });
}

bool opapi_is_there() {
  const char* home = std::getenv("ASCEND_HOME_PATH");
  static void* library =
      home == nullptr ? nullptr : dlopen((std::string(home) + "/lib64/libopapi.so").c_str(), RTLD_NOW | RTLD_LOCAL);
  return library != nullptr;
}

OpBase::OpBase(std::string name, uint32_t num_ins, uint32_t num_outs)
    : name_(std::move(name)), num_ins_(num_ins), num_outs_(num_outs) {
  ++live(Live::kOperation);
}

OpBase::~OpBase() {
  --live(Live::kOperation);
  if (context_ != nullptr) {
    --context_->operations_set_up;
  }
}

Status OpBase::check_inputs(const atb::SVector<TensorDesc>& ins) const {
  if (ins.size() != num_ins_) {
    return refuse(atb::ERROR_INVALID_IN_TENSOR_NUM,
                  std::to_string(num_ins_) + " inputs expected, found " + std::to_string(ins.size()));
  }
  for (std::size_t i = 0; i < ins.size(); ++i) {
    if (const Status status = tensor_status(ins[i]); status != atb::NO_ERROR) {
      return refuse(status, "input " + std::to_string(i) + " is " + to_string(ins[i]) + ", empty or of no rank");
    }
  }
  return atb::NO_ERROR;
}

Status OpBase::check_pack(const atb::VariantPack& pack) const {
  if (pack.inTensors.size() != num_ins_ || pack.outTensors.size() != num_outs_) {
    return refuse(atb::ERROR_INVALID_IN_TENSOR_NUM,
                  std::to_string(num_ins_) + " inputs and " + std::to_string(num_outs_) + " outputs expected, found " +
                      std::to_string(pack.inTensors.size()) + " and " + std::to_string(pack.outTensors.size()));
  }
  for (const atb::SVector<Tensor>* tensors : {&pack.inTensors, &pack.outTensors}) {
    for (const Tensor& tensor : *tensors) {
      if (const Status status = tensor_status(tensor.desc); status != atb::NO_ERROR) {
        return refuse(status, "a tensor is " + to_string(tensor.desc) + ", empty or of no rank");
      }
    }
  }
  return atb::NO_ERROR;
}

bool OpBase::same_as_last_setup(const atb::VariantPack& pack) const {
  return program_ != nullptr && same_descs(in_descs_, pack.inTensors) && same_descs(out_descs_, pack.outTensors);
}

Status OpBase::Setup(const atb::VariantPack& pack, uint64_t& workspace_bytes, atb::Context* context) {
  if (injected("Setup")) {
    return atb::ERROR_INTERNAL_ERROR;
  }
  if (context == nullptr) {
    return refuse(atb::ERROR_INVALID_PARAM, "Setup without a context");
  }
  const Inside inside(users_);
  if (!inside.alone) {
    return refuse(atb::ERROR_INTERNAL_ERROR, "Setup while another thread is in Setup or Execute of this operation");
  }
  auto* own_context = static_cast<ContextImpl*>(context);
  const SetupTurn turn(*own_context);
  if (!turn.entered) {
    return atb::ERROR_INTERNAL_ERROR;
  }
  if (captured_) {
    if (!same_as_last_setup(pack)) {
      return refuse(atb::ERROR_INVALID_TENSOR_DIM, "shapes changed after the launches were captured");
    }
  }
  ready_ = false;
  const bool known = !settings().executes && same_as_last_setup(pack);  // The zero-cost mode does nothing twice.
  if (!known) {
    Status status = check_pack(pack);
    status = status == atb::NO_ERROR ? check_standalone(pack) : status;
    status = status == atb::NO_ERROR ? make_program(pack) : status;
    if (status != atb::NO_ERROR) {
      program_ = nullptr;
      return status;
    }
  }
  tiling_block_ = own_context->take_tiling_block();
  if (context_ != own_context) {
    ++own_context->operations_set_up;
    if (context_ != nullptr) {
      --context_->operations_set_up;
    }
    context_ = own_context;
  }
  ready_ = true;
  if (!captured_) {
    workspace_bytes = program_->workspace_bytes;
  }
  return atb::NO_ERROR;
}

Status OpBase::make_program(const atb::VariantPack& pack) {
  auto program = std::make_shared<Program>();
  const std::vector<Slot> ins = slots_of(pack.inTensors, Place::In::kInputs);
  const std::vector<Slot> outs = slots_of(pack.outTensors, Place::In::kOutputs);
  if (const Status status = lower(*program, ins, outs); status != atb::NO_ERROR) {
    return status;
  }
  if (settings().workspace_rises && !captured_) {
    static std::atomic<uint64_t> setups{0};
    program->workspace_bytes += ++setups << 18U;
  }
  in_descs_ = descs_of(pack.inTensors);
  out_descs_ = descs_of(pack.outTensors);
  program_ = std::move(program);
  return atb::NO_ERROR;
}

Status OpBase::Execute(const atb::VariantPack& pack, uint8_t* workspace, uint64_t workspace_bytes,
                       atb::Context* context) {
  if (injected("Execute")) {
    return atb::ERROR_RT_FAIL;
  }
  const Inside inside(users_);
  if (!inside.alone) {
    return refuse(atb::ERROR_INTERNAL_ERROR, "Execute while another thread is in Setup or Execute of this operation");
  }
  if (context != nullptr && context->GetExecuteType() == atb::EXECUTE_LAUNCH) {
    if (!prelaunched_) {
      return refuse(atb::ERROR_INVALID_PARAM, "EXECUTE_LAUNCH without EXECUTE_PRELAUNCH before it");
    }
    prelaunched_();
    prelaunched_ = nullptr;
    return atb::NO_ERROR;
  }
  const Status status = check_execute(pack, workspace, workspace_bytes, context);
  return status == atb::NO_ERROR ? launch(pack, workspace) : status;
}

Status OpBase::check_execute(const atb::VariantPack& pack, const uint8_t* workspace, uint64_t workspace_bytes,
                             const atb::Context* context) const {
  const auto invalid = [this](const std::string& why) { return refuse(atb::ERROR_INVALID_PARAM, why); };
  if (context == nullptr) {
    return invalid("Execute without a context crashes");
  }
  if (!ready_) {
    return invalid("Execute before a successful Setup");
  }
  if (static_cast<const ContextImpl*>(context)->stream(stream_id) == nullptr) {
    return invalid("the context has no stream");
  }
  if (context != context_) {
    return invalid("Execute with another context than Setup's");
  }
  if (workspace_bytes < program_->workspace_bytes) {
    return invalid("a workspace of " + std::to_string(program_->workspace_bytes) + " bytes expected, found " +
                   std::to_string(workspace_bytes));
  }
  if (workspace == nullptr && workspace_bytes > 0) {
    return invalid("the workspace is null");
  }
  if (const Status status = check_addresses(pack); status != atb::NO_ERROR) {
    return status;
  }
  if (!context_->tiling_block_is_intact(tiling_block_)) {
    return refuse(atb::ERROR_INTERNAL_ERROR,
                  "its tiling block was overwritten: more Setups than tiling blocks since this one's");
  }
  if (program_->tiling_failed) {
    return refuse(atb::ERROR_RT_FAIL, "tiling had failed in Setup");
  }
  return device_is_set() ? atb::NO_ERROR : refuse(atb::ERROR_RT_FAIL, "this thread did not call aclrtSetDevice");
}

Status OpBase::check_addresses(const atb::VariantPack& pack) const {
  const auto invalid = [this](const std::string& why) { return refuse(atb::ERROR_INVALID_PARAM, why); };
  if (pack.inTensors.empty() && pack.outTensors.empty()) {
    return invalid("Execute with an empty pack: the double wants the addresses again");
  }
  if (pack.inTensors.size() != num_ins_ || pack.outTensors.size() != num_outs_) {
    return invalid("other numbers of tensors than Setup's");
  }
  const auto check = [&](const atb::SVector<Tensor>& tensors, const std::vector<TensorDesc>& descs, const char* kind) {
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      const Tensor& tensor = tensors[i];
      const uint64_t bytes = size_bytes(descs[i]);
      if (tensor.dataSize != bytes) {
        return invalid(kind + std::to_string(i) + ": dataSize " + std::to_string(bytes) + " expected, found " +
                       std::to_string(tensor.dataSize));
      }
      if (tensor.deviceData == nullptr && tensor.hostData == nullptr) {
        return invalid(kind + std::to_string(i) + " has no address");
      }
    }
    return Status{atb::NO_ERROR};
  };
  Status status = check(pack.inTensors, in_descs_, "input ");
  return status == atb::NO_ERROR ? check(pack.outTensors, out_descs_, "output ") : status;
}

Status OpBase::launch(const atb::VariantPack& pack, uint8_t* workspace) {
  if (!settings().executes) {
    return atb::NO_ERROR;
  }
  for (const HostTensor& host : program_->host) {
    if (std::memcmp(host.address, host.seen.data(), host.seen.size()) != 0) {
      return refuse(atb::ERROR_INTERNAL_ERROR, "a host tensor changed between Setup, which read it, and Execute");
    }
  }
  Stream* stream = Stream::from(context_->stream(stream_id));
  if (stream == nullptr) {
    return refuse(atb::ERROR_INVALID_PARAM, "the context's stream was destroyed");
  }
  if (context_->captures()) {
    if (!captured_ && !context_->is_setup_thread()) {
      warn_silent(name_, "captured beside the thread that calls Setup, which may call the runtime meanwhile");
    }
    if (!captured_ && injected("aclmdlRICaptureBegin")) {
      return atb::ERROR_RT_FAIL;
    }
    captured_ = true;
    if (injected("aclmdlRIExecuteAsync")) {
      return atb::ERROR_RT_FAIL;
    }
  }
  Addresses addresses{addresses_of(pack.inTensors), addresses_of(pack.outTensors), workspace};
  auto enqueue = [stream, program = program_, addresses = std::move(addresses)] {
    stream->enqueue({[program, addresses] { run_program(*program, addresses); }});
  };
  if (context_->GetExecuteType() == atb::EXECUTE_PRELAUNCH) {
    prelaunched_ = std::move(enqueue);
  } else {
    enqueue();
  }
  return atb::NO_ERROR;
}

}  // namespace atb_double

namespace atb {

using atb_double::OpBase;
using atb_double::refuse;

Status DestroyOperation(Operation* operation) {
  auto* base = dynamic_cast<OpBase*>(operation);
  if (base == nullptr) {
    return refuse(ERROR_INVALID_PARAM, "DestroyOperation", "not an operation");
  }
  if (base->owned_by_graph) {
    return refuse(ERROR_INVALID_PARAM, base->GetName(), "belongs to a graph, which destroys it");
  }
  delete base;
  return NO_ERROR;
}

Status SetExecuteStreamId(Operation* operation, uint32_t stream_id) {
  auto* base = dynamic_cast<OpBase*>(operation);
  if (base == nullptr) {
    return refuse(ERROR_INVALID_PARAM, "SetExecuteStreamId", "not an operation");
  }
  base->stream_id = stream_id;
  return NO_ERROR;
}

uint32_t GetExecuteStreamId(Operation* operation) {
  const auto* base = dynamic_cast<const OpBase*>(operation);
  return base == nullptr ? 0 : base->stream_id;
}

}  // namespace atb
