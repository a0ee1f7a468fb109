#include "program.h"

#include "acl/memory.h"
#include "acl/state.h"

namespace atb_double {
namespace {

View reach(const Slot& slot, const Addresses& addresses, const std::string& what) {
  void* base = slot.place.where == Place::In::kWorkspace ? addresses.workspace
               : slot.place.where == Place::In::kInputs  ? addresses.ins[slot.place.index]
                                                         : addresses.outs[slot.place.index];
  void* address = base == nullptr ? nullptr : static_cast<std::byte*>(base) + slot.place.shift;
  return {slot.desc, Memory::instance().reach(address, size_bytes(slot.desc), what.c_str())};
}

void run_launch(const Launch& launch, const Addresses& addresses) {
  std::vector<View> ins;
  std::vector<View> outs;
  for (std::size_t i = 0; i < launch.ins.size(); ++i) {
    const bool host_only = (launch.host_only >> i & 1U) != 0;
    ins.push_back(host_only ? View{launch.ins[i].desc, nullptr}
                            : reach(launch.ins[i], addresses, launch.name + " input " + std::to_string(i)));
  }
  for (std::size_t i = 0; i < launch.outs.size(); ++i) {
    outs.push_back(reach(launch.outs[i], addresses, launch.name + " output " + std::to_string(i)));
  }
  for (const auto& [in, out] : launch.in_place) {
    if (ins[in].data != outs[out].data) {
      throw DeviceFault(launch.name + ": output " + std::to_string(out) + " must be the buffer of input " +
                        std::to_string(in));
    }
  }
  try {
    launch.kernel(ins, outs);
  } catch (const DeviceFault& fault) {
    throw DeviceFault(launch.name + ": " + fault.what());
  }
}

}  // namespace

void run_program(const Program& program, const Addresses& addresses) {
  for (const Launch& launch : program.launches) {
    if (injected("kernel", /*in_any=*/false)) {
      throw DeviceFault("INJECTED device exception in " + launch.name);
    }
    run_launch(launch, addresses);
  }
}

}  // namespace atb_double
