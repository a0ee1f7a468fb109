// llm_boost._testing: parts of the core that tests drive directly. Not installed with a release.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>

#include "backend/cpu/work_shares.h"
#include "base/host.h"
#include "base/thread_pool.h"
#include "graph/arena.h"

namespace py = pybind11;
using namespace py::literals;

void bind_atb(py::module_& m);
void bind_engine(py::module_& m);

PYBIND11_MODULE(_testing, m) {
  m.doc() = "Parts of the core that tests drive directly.";
  m.def("usable_threads", &lb::usable_threads, "root"_a);
  m.def("available_memory", &lb::available_memory, "root"_a);
  m.def(
      "plan_arena",
      [](const std::vector<std::tuple<std::int64_t, int, int>>& lifetimes, std::int64_t alignment) {
        std::vector<lb::Lifetime> list;
        for (const auto& [bytes, first, last] : lifetimes) list.push_back({bytes, first, last});
        lb::ArenaPlan plan = lb::plan_arena(list, alignment);
        return std::pair(plan.offsets, plan.bytes);
      },
      "lifetimes"_a, "alignment"_a);
  m.def(
      "pool_sums",
      [](int num_threads, int num_jobs) {
        lb::ThreadPool pool(num_threads);
        std::vector<std::int64_t> sums;
        for (int job = 0; job < num_jobs; ++job) {
          std::atomic<std::int64_t> sum{0};
          pool.run([&](int member) { sum += member + job; });
          sums.push_back(sum);
        }
        return sums;
      },
      "num_threads"_a, "num_jobs"_a, py::call_guard<py::gil_scoped_release>());
  m.def(
      "share_pieces",
      [](int num_threads, std::int64_t count, int idle_member) {
        lb::ThreadPool pool(num_threads);
        lb::cpu::WorkShares shares(num_threads);
        std::vector<std::atomic<int>> calls(static_cast<std::size_t>(count));
        std::atomic<bool> others_are_done = false;
        pool.run([&](int member) {
          if (member == idle_member) others_are_done.wait(false);
          shares.run(member, count, [&](std::int64_t piece) { ++calls[static_cast<std::size_t>(piece)]; });
          others_are_done = true;
          others_are_done.notify_all();
        });
        return std::vector<int>(calls.begin(), calls.end());
      },
      "num_threads"_a, "count"_a, "idle_member"_a, py::call_guard<py::gil_scoped_release>());
  bind_atb(m);
  bind_engine(m);
}
