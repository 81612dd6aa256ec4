// Inputs that must be refused, each with the texts its message must hold. One problem each.
#pragma once

#include <string>
#include <vector>

namespace utrain {

struct Case {
  std::string text;
  std::vector<std::string> expected;
};

// Its place, its key, what is wrong.
inline const std::vector<Case>& malformed() {
  static const std::vector<Case> cases = {
      // syntax
      {"[lora", {"in.toml:1:6: "}},
      {"[lora]\nr = ", {"in.toml:2:"}},
      {"[lora]\nr == 8", {"in.toml:2:"}},
      {"[lora]\nr = 8\nr = 9", {"in.toml:3:", "r", "correct the TOML"}},
      {"[lora]\nr = 8\n[lora]\nalpha = 1", {"in.toml:3:"}},
      {"[data]\ntrain = \"abc", {"in.toml:2:"}},
      {"[data]\ntrain = abc", {"in.toml:2:"}},
      {"[lora]\nr = 99999999999999999999", {"in.toml:2:"}},
      {"[lora]\nr = 08", {"in.toml:2:"}},
      {"[lora]\ntarget_modules = [\"q_proj\"", {"in.toml:2:"}},
      {std::string("[lora]\nr = 8\0", 13), {"in.toml:2:"}},
      {"[data]\neval = \"\xff\xfe\"", {"in.toml:2:"}},
      {"\xff\xfe[\0l\0o\0", {"in.toml:1:1: "}},
      // names
      {"[loar]\nr = 8", {"in.toml:1:2: loar: unknown section; did you mean \"lora\"?"}},
      {"[qqqqqqqqqq]", {"in.toml:1:2: qqqqqqqqqq: unknown section; the sections are model, lora"}},
      {"[lora]\n alhpa = 8",
       {"in.toml:2:2: lora.alhpa: unknown key; did you mean \"lora.alpha\"? (utrain --help-config "
        "lora)"}},
      {"r = 8", {"in.toml:1:1: r: unknown key; did you mean \"lora.r\"?"}},
      {"[train]\nr = 8", {"in.toml:2:1: train.r: unknown key; did you mean \"lora.r\"?"}},
      {"[train]\nlearning_rate = 1",
       {"train.learning_rate: unknown key; did you mean \"train.lr\"?"}},
      {"lora_alpha = 8", {"in.toml:1:1: lora_alpha: unknown key; did you mean \"lora.alpha\"?"}},
      {"[lora]\nqqqqqqqq = 8", {"in.toml:2:1: lora.qqqqqqqq: unknown key; [lora] has r, alpha"}},
      {"qqqqqqqqqqqq = 8", {"in.toml:1:1: qqqqqqqqqqqq: unknown key; the sections are"}},
      {"\"lora.r\" = 8", {"in.toml:1:1: \"lora.r\": unknown key"}},
      {"\"\" = 8", {"in.toml:1:1: \"\": unknown key"}},
      {"[lora]\n\"a\\nb\" = 8", {"in.toml:2:1: lora.\"a b\": unknown key"}},
      {"lora.r.x = 8", {"lora.r: found a table, wanted an integer"}},
      {"[lora.adapter]\nr = 8", {"in.toml:1:7: lora.adapter: unknown key"}},
      {"lora = 8", {"in.toml:1:1: lora: found 8, wanted a section; write [lora]"}},
      {"[[lora]]\nr = 8", {"in.toml:1:3: lora: found an array of tables, wanted a section"}},
      {"[[loar]]\nr = 8", {"in.toml:1:3: loar: unknown section; did you mean \"lora\"?"}},
      // types
      {"[lora]\nr = 8.0", {"in.toml:2:5: lora.r: found 8.0, wanted an integer from 1 to 4096"}},
      {"[lora]\nr = \"8\"", {"in.toml:2:5: lora.r: found the string \"8\", wanted an integer"}},
      {"[lora]\nr = true", {"in.toml:2:5: lora.r: found true, wanted an integer"}},
      {"[lora]\nr = [8]", {"in.toml:2:5: lora.r: found an array of 1, wanted an integer"}},
      {"[lora]\nr = {a = 8}", {"in.toml:2:5: lora.r: found a table, wanted an integer"}},
      {"[lora]\nr = 2024-01-01", {"in.toml:2:5: lora.r: found a date or time, wanted an integer"}},
      {"[lora]\nr = 10:00:00", {"in.toml:2:5: lora.r: found a date or time"}},
      {"[[lora.r]]\nx = 8", {"lora.r: found an array of tables, wanted an integer"}},
      {"[lora]\nalpha = \"16\"",
       {"in.toml:2:9: lora.alpha: found the string \"16\", wanted a finite number > 0"}},
      {"[data]\npacking = 1", {"in.toml:2:11: data.packing: found 1, wanted true or false"}},
      {"[data]\npacking = \"true\"", {"in.toml:2:11: data.packing: found the string \"true\""}},
      {"[data]\neval = 8", {"in.toml:2:8: data.eval: found 8, wanted a string"}},
      {"[model]\npath = 8",
       {"in.toml:2:8: model.path: found 8, wanted a string that is not empty"}},
      {"[model]\npath = \"\"", {"in.toml:2:8: model.path: found the empty string"}},
      {"[data]\ntrain = \"\"", {"in.toml:2:9: data.train: found the empty string"}},
      {"[run]\ndir = \"\"", {"in.toml:2:7: run.dir: found the empty string"}},
      {"[run]\ndir = \"a\\u0000b\"", {"in.toml:2:7: run.dir: found", "control characters"}},
      {"[checkpoint]\nresume = \"\"", {"in.toml:2:10: checkpoint.resume: found the empty string"}},
      // ranges
      {"[lora]\nr = 0", {"in.toml:2:5: lora.r: found 0, wanted an integer from 1 to 4096"}},
      {"[lora]\nr = 4097", {"in.toml:2:5: lora.r: found 4097"}},
      {"[lora]\nalpha = 0", {"in.toml:2:9: lora.alpha: found 0, wanted a finite number > 0"}},
      {"[lora]\nalpha = inf", {"in.toml:2:9: lora.alpha: found inf"}},
      {"[lora]\ndropout = 1.0",
       {"in.toml:2:11: lora.dropout: found 1.0, wanted a finite number >= 0 and < 1"}},
      {"[lora]\ndropout = -0.1", {"in.toml:2:11: lora.dropout: found -0.1"}},
      {"[lora]\ndropout = nan", {"in.toml:2:11: lora.dropout: found nan"}},
      {"[data]\nseq_len = 0",
       {"in.toml:2:11: data.seq_len: found 0, wanted an integer from 1 to 16777216"}},
      {"[data]\nseq_len = 16777217", {"in.toml:2:11: data.seq_len: found 16777217"}},
      {"[train]\nglobal_batch_size = 0", {"in.toml:2:21: train.global_batch_size: found 0"}},
      {"[train]\nglobal_batch_size = 1073741825", {"train.global_batch_size: found 1073741825"}},
      {"[train]\ngradient_accumulation_steps = 0",
       {"in.toml:2:31: train.gradient_accumulation_steps"}},
      {"[train]\nmicro_batch_size = 1048577",
       {"in.toml:2:20: train.micro_batch_size: found 1048577"}},
      {"[train]\nmax_steps = 0", {"in.toml:2:13: train.max_steps: found 0"}},
      {"[train]\nlr = -1e-4",
       {"in.toml:2:6: train.lr: found -0.0001, wanted a finite number >= 0"}},
      {"[train]\nlr = -inf", {"in.toml:2:6: train.lr: found -inf"}},
      {"[train]\nwarmup_steps = -1", {"in.toml:2:16: train.warmup_steps: found -1"}},
      {"[train]\nweight_decay = -1", {"in.toml:2:16: train.weight_decay: found -1"}},
      {"[train]\nbetas = [0.9]",
       {"in.toml:2:9: train.betas: found an array of 1, wanted an array of 2"}},
      {"[train]\nbetas = [0.9, 1]", {"in.toml:2:9: train.betas: found 1 in the array"}},
      {"[train]\nbetas = [0.9, \"a\"]",
       {"in.toml:2:9: train.betas: found the string \"a\" in the array"}},
      {"[train]\nbetas = [[0.9], [0.9]]", {"train.betas: found an array of 1 in the array"}},
      {"[train]\neps = 0", {"in.toml:2:7: train.eps: found 0"}},
      {"[train]\nmax_grad_norm = -1", {"in.toml:2:17: train.max_grad_norm: found -1"}},
      {"[train]\nseed = -1", {"in.toml:2:8: train.seed: found -1, wanted an integer >= 0"}},
      {"[eval]\nevery = -1", {"in.toml:2:9: eval.every: found -1"}},
      {"[eval]\nmax_rows = -1", {"in.toml:2:12: eval.max_rows: found -1"}},
      {"[checkpoint]\nkeep = 0", {"in.toml:2:8: checkpoint.keep: found 0"}},
      {"[log]\nevery = 0", {"in.toml:2:9: log.every: found 0"}},
      // allowed values
      {"[train]\nschedule = \"cosin\"",
       {"in.toml:2:12: train.schedule: found the string \"cosin\", wanted one of \"linear\", "
        "\"cosine\", "
        "\"constant\"; did you mean \"cosine\"?"}},
      {"[train]\nschedule = \"qqqqqqqq\"",
       {"wanted one of \"linear\", \"cosine\", \"constant\"; change it"}},
      {"[data]\ntoo_long = \"\"",
       {"in.toml:2:12: data.too_long: found the string \"\", wanted one of"}},
      {"[model]\ninit = \"Random\"", {"in.toml:2:8: model.init:", "did you mean \"random\"?"}},
      {"[lora]\ntarget_modules = []", {"in.toml:2:18: lora.target_modules: found an empty array"}},
      {"[lora]\ntarget_modules = \"all\"",
       {"in.toml:2:18: lora.target_modules: found the string \"all\""}},
      {"[lora]\ntarget_modules = [\"q_porj\"]",
       {"found the string \"q_porj\"", "did you mean \"q_proj\"?"}},
      {"[lora]\ntarget_modules = [\"q_proj\", 8]", {"lora.target_modules: found 8 in the array"}},
      {"[lora]\ntarget_modules = [\"q_proj\", \"q_proj\"]", {"found the string \"q_proj\" twice"}},
      // paths
      {"[data]\neval = \"/no/such/file\"",
       {"in.toml:2:8: data.eval: \"/no/such/file\" does not exist"}},
      {"[lora]\ninit_from = \"/no/such/dir\"", {"in.toml:2:13: lora.init_from:", "does not exist"}},
      // two keys
      {"[train]\nepochs = 0", {"train.epochs: found 0, wanted a finite number > 0"}},
      {"[train]\nglobal_batch_size = 8\ngradient_accumulation_steps = 2",
       {"in.toml:3:31: train.gradient_accumulation_steps: found train.global_batch_size as well, "
        "wanted at most one"}},
  };
  return cases;
}

// Values of the contract that come later, each with the way on.
inline const std::vector<Case>& not_in_this_version() {
  static const std::vector<Case> cases = {
      {"[model]\nquantize = \"fp8\"", {"in.toml:2:12: model.quantize: \"fp8\" is", "\"none\""}},
      {"[model]\nquantize = \"nf4\"", {"in.toml:2:12: model.quantize"}},
      {"[log]\ntensorboard = true", {"in.toml:2:15: log.tensorboard"}},
  };
  return cases;
}

}  // namespace utrain
