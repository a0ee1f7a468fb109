// How a matrix product is cut into pieces for several threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "backend/cpu/kernels.h"
#include "base/memory.h"

namespace lb::cpu {

// Pieces are blocks of rows times one panel, or two where that leaves enough to share: kernels are faster with pairs.
// They are small, to even out a thread that is slowed down; neighbours are neighbours in memory too.
class LinearPieces {
 public:
  LinearPieces(std::int64_t rows, std::int64_t panels, int threads)
      : rows_(rows), panels_(panels), row_blocks_(ceil_div(rows, std::int64_t{kMaxLinearRows})) {
    if (row_blocks_ * ceil_div(panels, std::int64_t{2}) >= std::int64_t{8} * threads) width_ = 2;
  }

  std::int64_t count() const { return row_blocks_ * ceil_div(panels_, width_); }

  // Row at which a piece begins.
  std::int64_t first_row(std::int64_t piece) const { return row_block(piece) * rows_ / row_blocks_; }

  // Sets the arguments' number of rows and range of panels.
  void select(std::int64_t piece, LinearArgs& args) const {
    args.rows = (row_block(piece) + 1) * rows_ / row_blocks_ - first_row(piece);
    args.panel_begin = piece % ceil_div(panels_, width_) * width_;
    args.panel_end = std::min(args.panel_begin + width_, panels_);
  }

 private:
  std::int64_t row_block(std::int64_t piece) const { return piece / ceil_div(panels_, width_); }

  std::int64_t rows_;
  std::int64_t panels_;
  std::int64_t row_blocks_;
  std::int64_t width_ = 1;
};

}  // namespace lb::cpu
