// What a step must do at least: the bytes that it has to read, and its arithmetic.
#pragma once

#include <cstdint>

#include "backend/backend.h"
#include "graph/graph.h"

namespace lb::bench {

struct Work {
  double bytes = 0;
  double flops = 0;

  Work& operator+=(const Work& other) {
    bytes += other.bytes;
    flops += other.flops;
    return *this;
  }
};

// Counts weights that products use once a step, embedding rows, and keys and values once a sequence; and the flops of
// matrix products and attention (a multiplication and an addition each), nothing else. In the last layer a token whose
// logits are not wanted needs no more than its key and value.
class Floor {
 public:
  // weight_bytes: of all weights, as the program has packed them.
  Floor(const ModelGraph& graph, std::int64_t weight_bytes, DType activation_dtype);

  Work of(const StepBatch& batch) const;

 private:
  Work tokens_;  // flops: of a token; bytes: of every step
  Work rows_;    // flops: of a logit row; bytes: of a step with logit rows
  double layers_before_last_ = 0;
  double embedding_bytes_ = 0;  // of a token
  double cache_bytes_ = 0;      // of a position and layer
  double attention_flops_ = 0;  // of a layer, a token, and a position that it attends to
};

}  // namespace lb::bench
