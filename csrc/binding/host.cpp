// What the core knows of the machine, without a model.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/isa.h"
#include "base/host.h"
#include "base/memory.h"

namespace py = pybind11;
using namespace py::literals;

void bind_host(py::module_& m) {
  m.def("default_backend", &lb::default_backend, "The backend that \"auto\" means.");
  m.def("backend_names", &lb::backend_names, "Backends of this build, best first.");
  m.def(
      "device_report",
      [] {
        const lb::DeviceReport report = lb::probe_devices();
        return py::dict("is_built"_a = report.is_built, "built_for"_a = report.built_for, "abi"_a = report.abi,
                        "num_devices"_a = report.num_devices, "soc"_a = report.soc, "free_bytes"_a = report.free_bytes,
                        "total_bytes"_a = report.total_bytes, "problem"_a = report.problem);
      },
      "What is known of the NPUs of this machine; never raises.");
  m.def("return_free_memory", &lb::return_free_memory, py::call_guard<py::gil_scoped_release>(),
        "Gives back to the system what the C library keeps of freed memory.");
  m.def(
      "usable_threads", [] { return lb::usable_threads(); }, "Threads that the affinity mask and the CPU quota allow.");
  m.def(
      "isa_levels",
      [] {
        std::vector<std::string> names;
        for (const lb::cpu::Kernels* kernels : lb::cpu::available_kernels()) names.emplace_back(kernels->name);
        return names;
      },
      "Instruction set levels of this machine, best first.");
}
