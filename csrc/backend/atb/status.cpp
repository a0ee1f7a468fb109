#include "backend/atb/status.h"

#include <span>

#include "base/error.h"

namespace lb::npu {
namespace {

struct Meaning {
  int code = 0;
  const char* text = "";
  const char* remedy = "";
};

constexpr const char* kReport = "turn on CANN's log (ASCEND_SLOG_PRINT_TO_STDOUT=1) for its reason, and report this";
constexpr const char* kLessMemory = "use a smaller num_blocks, max_num_batched_tokens or max_num_seqs, or more ranks";
constexpr const char* kDoctor = "run llm-boost doctor";
constexpr const char* kLoadAgain = "load the model again; if it stays, look at npu-smi info and at CANN's log";

constexpr Meaning kAtb[] = {
    {1, "invalid parameter", kReport},
    {2, "invalid graph", kReport},
    {3, "internal error", kReport},
    {4, "the runtime failed", kLoadAgain},
    {5, "wrong number of tensors", kReport},
    {6, "wrong tensor type", kReport},
    {7, "wrong tensor format", kReport},
    {8, "wrong tensor extent", kReport},
    {9, "wrong tensor size", kReport},
    {10, "the operation has no kernel for this chip", kDoctor},
    {11, "shape inference failed", kReport},
    {12, "CANN failed", "source ascend-toolkit/set_env.sh, so that libopapi.so is found, and load the model again"},
    {13, "no kernel takes these types and formats", kReport},
    {14, "wrong tensor address", kReport},
    {15, "wrong number of tensors", kReport},
    {16, "wrong tensor rank", kReport},
    {17, "invalid parameter of an operation", kReport},
    {18, "a reshape failed", kReport},
    {19, "invalid chunk", kReport},
    {20, "invalid context", kReport},
    {21, "invalid stream", kReport},
    {22, "workspace too small", kReport},
    {23, "invalid workspace", kReport},
    {24, "invalid operation", kReport},
    {25, "communication between ranks failed",
     "look at the other ranks, remove what a crash left (/dev/shm/sem.hccl*, /dev/shm/sem.lccl*), and start them "
     "again"},
    {26, "out of device memory", kLessMemory},
    {27, "out of host memory", "free host memory: each rank takes some 400 MB of it for tiling data"},
    {28, "no communicator", "start as many ranks as RANK_SIZE says"},
    {29, "copying host memory failed", kLoadAgain},
};

constexpr Meaning kAcl[] = {
    {100000, "invalid parameter", kReport},
    {100001, "not initialised", kReport},
    {107000, "invalid argument", kReport},
    {107001, "no such device", "choose a device that npu-smi info lists, and that ASCEND_RT_VISIBLE_DEVICES allows"},
    {107002, "no device is set on this thread", kReport},
    {200000, "out of memory", kLessMemory},
    {207001, "out of device memory", kLessMemory},
    {207018, "out of device memory", kLessMemory},
    {507014, "a kernel took too long", kLoadAgain},
    {507015, "a kernel failed on the device", kLoadAgain},
    {507034, "a kernel took too long", kLoadAgain},
    {507035, "a kernel failed on the device", kLoadAgain},
    {507046, "the device did not answer in time", kLoadAgain},
    {507054, "the device's memory is damaged", "look at npu-smi info, and use another device"},
};

// Codes that are not listed, by their range.
Meaning acl_range(int code) {
  switch (code / 1000) {
    case 100:
    case 107: return {code, "invalid argument", kReport};
    case 200:
    case 207: return {code, "a resource is exhausted", kLessMemory};
    case 500: return {code, "internal error of CANN", kLoadAgain};
    case 507: return {code, "the device or its driver failed", kLoadAgain};
    default: return {code, "unknown code", kLoadAgain};
  }
}

const Meaning* find(std::span<const Meaning> table, int code) {
  for (const Meaning& meaning : table) {
    if (meaning.code == code) return &meaning;
  }
  return nullptr;
}

Meaning meaning_of_acl(int code) {
  const Meaning* found = find(kAcl, code);
  return found != nullptr ? *found : acl_range(code);
}

Meaning meaning_of_atb(int code) {
  const Meaning* found = find(kAtb, code);
  return found != nullptr ? *found : Meaning{code, "unknown code", kReport};
}

[[noreturn]] void fail(const Meaning& meaning, std::string_view call, std::string_view subject) {
  throw BackendError(cat("atb backend: ", call, " for ", subject, " failed with ", meaning.code, " (", meaning.text,
                         "); ", meaning.remedy));
}

}  // namespace

void fail_acl(int code, std::string_view call, std::string_view subject) { fail(meaning_of_acl(code), call, subject); }
void fail_atb(int code, std::string_view call, std::string_view subject) { fail(meaning_of_atb(code), call, subject); }

}  // namespace lb::npu
