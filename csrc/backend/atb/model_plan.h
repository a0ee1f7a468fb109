// All graph operations of a model, and what they take of a device's memory.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "backend/atb/plan.h"
#include "backend/backend.h"

namespace lb::npu {

struct LayerPlans {
  GraphPlan first;  // of layer 0
  GraphPlan rest;
};

struct ModelPlan {
  GraphPlan embed;
  std::vector<Phase> phases;
  std::array<LayerPlans, kNumPhases> layers;  // by phase
  GraphPlan head;                             // of all rows
  GraphPlan head_rows;                        // of the logit rows
  std::int64_t num_layers = 0;
};

// Throws ConfigError for what the chip cannot run.
ModelPlan plan_model(const ModelGraph& graph, const Target& target, const ProgramOptions& options);

// Bytes of the KV cache that one block takes in all layers, on this rank.
std::int64_t block_bytes(const ModelGraph& graph, const Target& target, std::int64_t block_size);

// Bytes of the device's memory that a program takes besides its KV cache, at most.
std::int64_t resident_bytes(const ModelPlan& plan, const ProgramOptions& options);

// All plans, for people and golden tests.
std::string to_string(const ModelPlan& plan);

}  // namespace lb::npu
