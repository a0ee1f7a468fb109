// Shapes of published models, by name.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"

namespace lb::bench {

std::vector<std::string> preset_names();

// The config of a preset, with `num_layers` layers instead of its own unless that is 0, and room for `max_positions`
// positions. Throws ConfigError that lists the presets for any other name.
ModelConfig preset(std::string_view name, std::int64_t num_layers, std::int64_t max_positions);

}  // namespace lb::bench
