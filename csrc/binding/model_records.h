// The Python face of what a model is loaded from: its config and its weight table.
#pragma once

#include <pybind11/pybind11.h>

namespace lb {

void bind_model_records(pybind11::module_& m);

}  // namespace lb
