// From a layer graph to what ATB is told.
//
// A sum followed by a norm is one PRENORM node, within a layer and from one layer to the next: graphs hand each other a
// sum as its two terms, `hidden` and `residual`. With several ranks the matrices are sharded, and AllReduce or
// AllGather nodes put the parts together.
//
// The 310P has rules of its own: every matrix and the cache in NZ format, attention over [T, heads, D] with a mask that
// covers the whole prompt, no SwiGlu kernel, and no attention of several queries to the cache.
#pragma once

#include "backend/atb/plan.h"
#include "graph/graph.h"

namespace lb::npu {

// The embedding's rows, and those of the rope tables.
GraphPlan lower_embed(const Graph& graph, const Target& target, std::int64_t head_dim);

// A decoder layer. The first has one input where the others have the two terms of a sum.
GraphPlan lower_layer(const Graph& graph, const Target& target, Phase phase, bool is_first);

// The final norm and lm_head, of all rows of the step or of its logit rows.
GraphPlan lower_head(const Graph& graph, const Target& target, bool gathers_rows);

}  // namespace lb::npu
