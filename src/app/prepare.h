// What every command that trains or checks does first: reads and checks the input, opens the
// machine, finds the checkpoint to go on from, plans the memory, and prints the start table.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "app/machine.h"
#include "app/report.h"
#include "app/resume.h"
#include "comm/world.h"
#include "config/command_line.h"
#include "train/trainer.h"

namespace utrain {

struct Prepared {
  std::unique_ptr<Job> job;  // the trainer refers to it
  Machine machine;
  std::vector<Recompute> policy;
  int64_t passes_together = 1, layers_held = kFewestLayersHeld;
  std::unique_ptr<Trainer> trainer;
  RunFacts facts;
  std::optional<Resumed> resumed;  // never by a dry run or a dump
};

// The input as every rank has it: one of them reads the file. Collective.
Config read_shared_config(const CommandLine& command_line, const World& world);

// Everything short of taking the memory: what --check checks. Collective.
Prepared prepare(const CommandLine& command_line, const World& world);

}  // namespace utrain
