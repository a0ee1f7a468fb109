// Weights of any size from a few megabytes of random numbers.
#pragma once

#include <cstdint>

#include "graph/graph.h"
#include "model/weights.h"

namespace lb::bench {

// Every tensor that `graph` needs, stored as `dtype`: each reads one file of random numbers in memory again and again,
// from a place of its own. Matrices and biases are normal with deviation 0.02, norm weights lie around 1, so that
// activations stay of a size at which kernels neither overflow nor meet denormal numbers.
WeightTable random_weights(const ModelGraph& graph, DType dtype, std::uint64_t seed);

}  // namespace lb::bench
