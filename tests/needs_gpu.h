// What a test needs that a machine may lack: as its first lines, or those of a fixture's SetUp().
// tools/run_tests and CMakeLists.txt know the words.
#pragma once

#include <gtest/gtest.h>

#include "backend.h"
#include "comm/nccl_collectives.h"

#define UTRAIN_NEEDS_GPU() \
  if (visible_gpus().empty()) GTEST_SKIP() << "no GPU"
#define UTRAIN_NEEDS_NCCL() \
  if (!nccl_is_built()) GTEST_SKIP() << "no NCCL"
#define UTRAIN_NEEDS_GPUS(n) \
  if (visible_gpus().size() < static_cast<size_t>(n)) GTEST_SKIP() << (n) << " GPUs are needed"
