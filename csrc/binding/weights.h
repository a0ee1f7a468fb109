// The Python face of the weight table.
#pragma once

#include <pybind11/pybind11.h>

namespace lb {

void bind_weights(pybind11::module_& m);

}  // namespace lb
