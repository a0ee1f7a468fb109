// Packs weights from where they are stored into the layouts that kernels read.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/panel_coder.h"
#include "base/memory.h"
#include "base/thread_pool.h"

namespace lb::cpu {

enum class Packing : std::uint8_t {
  kPanels,        // a matrix in panels of 32 rows
  kGateUpPanels,  // rows gate, up: a panel holds 16 gate rows and the 16 up rows that belong to them
  kVector,        // f32, zero-padded to a multiple of 32 elements
};

// A packed weight; the data lies in the buffer of PackedWeights.
struct PackedWeight {
  const std::byte* data = nullptr;
  Packing packing = Packing::kVector;
  DType dtype = DType::kF32;  // of panels
  bool coded = false;         // panels of bf16, see coded_panel.h
  std::int64_t rows = 0;      // elements, for a vector
  std::int64_t columns = 0;   // 1, for a vector
};

struct PackingRequest {
  std::string name;  // in the checkpoint
  Packing packing = Packing::kVector;
};

// Owns all packed weights of a program, in one mapping.
class PackedWeights {
 public:
  // Reads and packs in parallel, a few rows at a time, so that memory beyond the packed weights stays small. The panels
  // get the stored type, or `weight_dtype` where one is given.
  PackedWeights(const std::vector<PackingRequest>& requests, const WeightLookup& lookup,
                std::optional<DType> weight_dtype, const Kernels& kernels, ThreadPool& pool,
                const std::function<void(std::int64_t, std::int64_t)>& on_progress);

  // One per request, in the same order; equal requests share their data.
  const std::vector<PackedWeight>& weights() const { return weights_; }
  std::int64_t bytes() const;

 private:
  Buffer buffer_;
  std::vector<PanelCoder> coders_;  // one for each task of packing
  std::vector<PackedWeight> weights_;
};

inline std::int64_t num_panels(const PackedWeight& weight) {
  // A panel of gate and up rows gives half as many outputs, from twice as many rows.
  return (weight.rows + kPanel - 1) / kPanel;
}

// Unpacks row `row` of a matrix in plain panels to f32.
void unpack_row(const PackedWeight& weight, std::int64_t row, float* target);

}  // namespace lb::cpu
