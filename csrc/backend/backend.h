// The contract between the engine and whatever computes: Backend, Program, StepBatch.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/thread_pool.h"
#include "graph/graph.h"

namespace lb {

// One step: host arrays, valid during run() only. T tokens, S sequences, R logit rows.
//
// A sequence may bring one token (decode), a whole prompt, or a chunk of it; its tokens are consecutive in the step and
// in position. A framework that owns scheduler and block tables fills this itself.
struct StepBatch {
  std::span<const std::int32_t> token_ids;    // [T]
  std::span<const std::int32_t> positions;    // [T]
  std::span<const std::int32_t> slots;        // [T]     slot = block * block_size + offset in the block
  std::span<const std::int32_t> seq_begin;    // [S + 1] prefix sums of the tokens of each sequence in this step
  std::span<const std::int32_t> context_len;  // [S]     tokens in the cache after this step
  std::span<const std::int32_t> block_table;  // [S, max_blocks] row-major, -1 where unused
  std::span<const std::int32_t> logit_rows;   // [R]     rows of the step whose logits are wanted, ascending
};

struct BlockCopy {
  std::int32_t source = 0;
  std::int32_t target = 0;
};

// Sizes that a program is compiled for. Buffers are planned for the largest step; a smaller one uses a prefix of them.
struct ProgramOptions {
  std::int64_t max_tokens = 512;     // T
  std::int64_t max_sequences = 64;   // S
  std::int64_t max_logit_rows = 64;  // R
  std::int64_t max_blocks = 0;       // width of a block table row
  std::int64_t block_size = 16;
  std::int64_t num_blocks = 0;
  DType activation_dtype = DType::kBF16;  // of matrix product inputs and of the KV cache: kBF16 or kF32
  std::optional<DType> weight_dtype;      // nothing: as stored
  bool time_steps = false;                // collect step times
  std::function<void(std::int64_t done, std::int64_t total)>
      on_progress;  // bytes of weights packed so far; called by compile(), on its thread
};

// A compiled model: owns packed weights, arena and KV cache. One thread at a time may use it.
class Program {
 public:
  virtual ~Program() = default;

  // Computes one step and returns its logits [R, V], valid until the next call. The batch must satisfy check_batch().
  virtual std::span<const float> run(const StepBatch& batch) = 0;

  // Copies the cache of whole blocks, in order, before the next run().
  virtual void copy_blocks(std::span<const BlockCopy> copies) = 0;

  // Time spent in each kind of step since the last call, for benchmarks: {name, seconds}.
  struct StepTime {
    std::string name;
    double seconds = 0;
  };
  virtual std::vector<StepTime> take_step_times() { return {}; }

  // Sizes in bytes, for people.
  struct Memory {
    std::int64_t weights = 0;
    std::int64_t cache = 0;
    std::int64_t arena = 0;
  };
  virtual Memory memory() const = 0;
};

// Finds where a weight is stored, by its checkpoint name.
using WeightLookup = std::function<const StoredTensor&(const std::string& name)>;

struct Capabilities {
  bool mixes_prefill_and_decode = true;  // one step may hold both
  std::int64_t block_size_multiple = 1;  // block_size must be a multiple of this
  std::string description;               // "AVX-512 BF16, 2 threads"
};

// What a user may choose about an accelerator; a backend that runs on the host has no use for it.
struct DeviceOptions {
  std::int32_t device_id = 0;
  std::optional<bool> need_nz;        // weights and cache in NZ format; nothing: as the chip demands
  std::string communication_backend;  // between devices, "lccl" or "hccl"; "": as the host's topology allows
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual const Capabilities& capabilities() const = 0;
  // Bytes of KV cache that one block takes in all layers.
  virtual std::int64_t block_bytes(const ModelGraph& graph, std::int64_t block_size, DType activation_dtype) const = 0;
  virtual std::unique_ptr<Program> compile(const ModelGraph& graph, const WeightLookup& weights,
                                           const ProgramOptions& options) = 0;
};

// Creates the backend called `name` ("cpu"); throws BackendError for a name that this build does not have. The pool
// must outlive the backend and its programs.
std::unique_ptr<Backend> make_backend(std::string_view name, ThreadPool& pool, const DeviceOptions& device);

// The names that make_backend() knows in this build, the best first: what "auto" takes.
std::vector<std::string> backend_names();

// Throws RequestError unless `batch` can run in a program compiled with `options` for a model with `vocab_size` tokens
// and `max_positions` positions: sizes, ranges, and agreement of positions, slots and block tables.
void check_batch(const StepBatch& batch, const ProgramOptions& options, std::int64_t vocab_size,
                 std::int64_t max_positions);

}  // namespace lb
