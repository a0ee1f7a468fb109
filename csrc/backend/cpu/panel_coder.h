// Codes panels of weights, and keeps what coded panels have outside of their place.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/cpu/coded_panel.h"
#include "base/memory.h"

namespace lb::cpu {

// Must outlive the panels that it has coded.
class PanelCoder {
 public:
  explicit PanelCoder(const Kernels& kernels) : kernels_(&kernels) {}

  // Codes a panel of words [steps][32] into the panel_bytes() at `target`, 64-byte aligned.
  void code(const std::uint32_t* words, std::int64_t steps, std::byte* target);

  // Beside the panels.
  std::int64_t bytes() const;

 private:
  const Kernels* kernels_;
  std::vector<std::vector<Escape>> escapes_;
  std::vector<Buffer> plain_;
};

// The weights of row `lane` of a panel, target[2 * steps].
void decode_row(const CodedPanel& panel, int lane, std::int64_t steps, float* target);

}  // namespace lb::cpu
