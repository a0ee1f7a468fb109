#include "base/host.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <string_view>
#include <thread>
#include <vector>

namespace lb {
namespace {

constexpr std::int64_t kUnlimited = std::numeric_limits<std::int64_t>::max();

// First line of a file, or "" where there is none.
std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// A decimal number, or kUnlimited for anything else (control groups write "max").
std::int64_t number_or_unlimited(const std::string& text) {
  try {
    const std::int64_t value = std::stoll(text);
    return value < 0 ? kUnlimited : value;
  } catch (const std::exception&) {
    return kUnlimited;
  }
}

// The directories of this process's control group and all its parents, for the version 2 hierarchy (controller "") or
// one controller of version 1. Inside a container the path may name a group that is not visible: then only the root is.
std::vector<std::string> group_directories(const std::string& root, std::string_view controller) {
  const std::string mount = root + "/sys/fs/cgroup" + (controller.empty() ? "" : "/" + std::string(controller));
  std::string path;
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {  // "0::/a/b" or "4:cpu,cpuacct:/a/b"
    const std::size_t first = line.find(':');
    const std::size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string names = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool match =
        controller.empty() ? names == ",," : names.find("," + std::string(controller) + ",") != std::string::npos;
    if (match) path = line.substr(second + 1);
  }
  std::vector<std::string> directories;
  while (path.size() > 1) {
    directories.push_back(mount + path);
    path.resize(path.rfind('/'));
  }
  directories.push_back(mount);
  return directories;
}

// CPUs that the quotas of all enclosing groups allow; infinity where there is none.
double cpu_quota(const std::string& root) {
  double cpus = std::numeric_limits<double>::infinity();
  const auto limit = [&cpus](std::int64_t quota, std::int64_t period) {
    if (quota != kUnlimited && period != kUnlimited && quota > 0 && period > 0) {
      cpus = std::min(cpus, static_cast<double>(quota) / static_cast<double>(period));
    }
  };
  for (const std::string& directory : group_directories(root, "")) {
    const std::string line = first_line(directory + "/cpu.max");  // "200000 100000" or "max 100000"
    const std::size_t space = line.find(' ');
    if (space != std::string::npos)
      limit(number_or_unlimited(line.substr(0, space)), number_or_unlimited(line.substr(space + 1)));
  }
  for (const std::string& directory : group_directories(root, "cpu")) {
    limit(number_or_unlimited(first_line(directory + "/cpu.cfs_quota_us")),
          number_or_unlimited(first_line(directory + "/cpu.cfs_period_us")));
  }
  return cpus;
}

}  // namespace

int usable_threads(const std::string& root) {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  int count = ::sched_getaffinity(0, sizeof(mask), &mask) == 0 ? CPU_COUNT(&mask)
                                                               : static_cast<int>(std::thread::hardware_concurrency());
  const double quota = cpu_quota(root);
  if (quota < count) count = static_cast<int>(std::floor(quota));
  return std::max(count, 1);
}

std::int64_t available_memory(const std::string& root) {
  std::int64_t available = kUnlimited;
  std::ifstream file(root + "/proc/meminfo");
  for (std::string line; std::getline(file, line);) {  // "MemAvailable:   23456 kB"
    if (line.rfind("MemAvailable:", 0) == 0) available = number_or_unlimited(line.substr(13)) * 1024;
  }
  const auto limit = [&available](const std::string& directory, const char* limit_file, const char* usage_file) {
    const std::int64_t maximum = number_or_unlimited(first_line(directory + limit_file));
    const std::int64_t used = number_or_unlimited(first_line(directory + usage_file));
    if (maximum != kUnlimited && used != kUnlimited)
      available = std::min(available, std::max<std::int64_t>(maximum - used, 0));
  };
  for (const std::string& directory : group_directories(root, "")) limit(directory, "/memory.max", "/memory.current");
  for (const std::string& directory : group_directories(root, "memory")) {
    limit(directory, "/memory.limit_in_bytes", "/memory.usage_in_bytes");
  }
  return available;
}

std::int64_t l1_data_bytes() {
#ifdef _SC_LEVEL1_DCACHE_SIZE
  return std::max<std::int64_t>(sysconf(_SC_LEVEL1_DCACHE_SIZE), 0);
#else
  return 0;
#endif
}

}  // namespace lb
