// The engine without a model: scheduling, assembling steps, and taking tokens in.
#pragma once

#include "bench/kernel_cases.h"

namespace lb::bench {

// A call is one step of an engine in which `sequences` sequences with contexts up to `context` tokens decode, over a
// program that computes nothing and a vocabulary too small to cost anything.
KernelCase scheduler_case(const Shape& shape, const KernelContext& context);

}  // namespace lb::bench
