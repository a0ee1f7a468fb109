#include "backend/cpu/panel_coder.h"

#include <cstring>
#include <new>
#include <utility>

#include "base/dtype.h"

namespace lb::cpu {

std::int64_t PanelCoder::bytes() const {
  std::size_t bytes = 0;
  for (const std::vector<Escape>& list : escapes_) bytes += list.size() * sizeof(Escape);
  for (const Buffer& buffer : plain_) bytes += buffer.size();
  return static_cast<std::int64_t>(bytes);
}

void PanelCoder::code(const std::uint32_t* words, std::int64_t steps, std::byte* target) {
  auto* panel = new (target) CodedPanel;
  // With more escapes than this, one pair of steps in four would have one.
  std::vector<Escape> escapes(static_cast<std::size_t>(steps / 8 + 1));
  const std::int64_t count =
      kernels_->code_panel(reinterpret_cast<const std::uint16_t*>(words), steps, panel, escapes.data(), steps / 8);
  if (count > steps / 8) {
    const std::size_t plain_bytes = static_cast<std::size_t>(steps * kPanel) * sizeof(std::uint32_t);
    Buffer& copy = plain_.emplace_back(plain_bytes);  // whole pages, which the words need not fill
    std::memcpy(copy.data(), words, plain_bytes);
    panel->plain = reinterpret_cast<const std::uint32_t*>(copy.data());
    return;
  }
  escapes.resize(static_cast<std::size_t>(count));
  escapes.push_back({kNoElement, 0});
  escapes.shrink_to_fit();
  panel->escapes = escapes_.emplace_back(std::move(escapes)).data();
}

void decode_row(const CodedPanel& panel, int lane, std::int64_t steps, float* target) {
  for (std::int64_t i = 0; i < 2 * steps; ++i) {
    const std::int64_t step = i / 2;
    const int half = static_cast<int>(i % 2);
    if (panel.plain != nullptr) {
      target[i] = to_float(Bf16{static_cast<std::uint16_t>(panel.plain[step * kPanel + lane] >> (16 * half))});
      continue;
    }
    const std::uint8_t* pair = panel.code() + step / 2 * kCodedPairBytes;
    const int at = coded_byte(2 * lane + half);
    const int lower = pair[step % 2 * kStepElements + at];
    const int nibble = pair[2 * kStepElements + at] >> (step % 2 * 4) & 15;
    target[i] = to_float(Bf16{static_cast<std::uint16_t>(coded_upper(panel.base, nibble) << 8 | lower)});
  }
  if (panel.plain != nullptr) return;
  for (const Escape* escape = panel.escapes; escape->element != kNoElement; ++escape) {
    const auto step = static_cast<std::int64_t>(escape->element / kStepElements);
    const auto element = static_cast<int>(escape->element % kStepElements);
    if (element / 2 == lane) target[2 * step + element % 2] = to_float(Bf16{escape->bits});
  }
}

}  // namespace lb::cpu
