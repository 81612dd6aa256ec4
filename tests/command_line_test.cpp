// The command line and its help: commands, overrides, and what a wrong word is told.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "config/command_line.h"
#include "config/keys.h"
#include "config/nearest.h"
#include "config/print.h"
#include "core/error.h"

namespace utrain {
namespace {

using Texts = std::vector<std::string>;

void expect_contains(const std::string& text, const Texts& parts) {
  for (const std::string& part : parts)
    EXPECT_NE(text.find(part), std::string::npos) << "wanted: " << part << "\nfound: " << text;
}

size_t count_lines(const std::string& text) {
  return text.empty() ? 0 : 1 + static_cast<size_t>(std::count(text.begin(), text.end(), '\n'));
}

TEST(Help, HasEveryKey) {
  const std::string all = help_config("");
  for (const Key& key : keys()) {
    expect_contains(all, {fmt::format("  {} = ", key.name), std::string(key.doc), wanted(key)});
    EXPECT_EQ(help_config(std::string(key.section())).find("  model.path = ") != std::string::npos,
              key.section() == "model");
  }
  try {
    help_config("loar");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    expect_contains(error.what(), {"\"loar\"", "did you mean \"lora\"?"});
  }
}

TEST(Keys, AreSound) {
  std::set<std::string_view> names;
  for (const Key& key : keys()) {
    EXPECT_TRUE(names.insert(key.name).second) << key.name;
    EXPECT_EQ(find_key(key.name), &key);
    EXPECT_FALSE(key.doc.empty()) << key.name;
  }
  EXPECT_EQ(find_key("lora"), nullptr);
  EXPECT_EQ(section_names().size(), 9u);
}

TEST(Nearest, Distance) {
  EXPECT_EQ(edit_distance("alpha", "alpha"), 0u);
  EXPECT_EQ(edit_distance("alhpa", "alpha"), 1u);
  EXPECT_EQ(edit_distance("", "abc"), 3u);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3u);
  EXPECT_EQ(nearest("cosin", Texts{"linear", "cosine"}), "cosine");
  EXPECT_EQ(nearest("zzzz", Texts{"linear", "cosine"}), "");
}

CommandLine parse(const Texts& words) {
  std::vector<const char*> argv = {"utrain"};
  for (const std::string& word : words) argv.push_back(word.c_str());
  return parse_command_line(static_cast<int>(argv.size()), argv.data());
}

std::string refusal(const Texts& words) {
  try {
    parse(words);
    return "";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    return error.what();
  }
}

TEST(CommandLine, Commands) {
  using Command = CommandLine::Command;
  EXPECT_EQ(parse({"in.toml"}).command, Command::train);
  EXPECT_EQ(parse({"in.toml"}).input, "in.toml");
  EXPECT_EQ(parse({"in.toml"}).dry_run, -1);
  EXPECT_EQ(parse({"in.toml", "--check"}).command, Command::check);
  EXPECT_EQ(parse({"--check", "in.toml"}).input, "in.toml");
  EXPECT_EQ(parse({"in.toml", "--print-config"}).command, Command::print_config);
  EXPECT_EQ(parse({"--help"}).command, Command::help);
  EXPECT_EQ(parse({"in.toml", "--help"}).command, Command::help);
  EXPECT_EQ(parse({"--version"}).command, Command::version);
  EXPECT_EQ(parse({"--help-config"}).command, Command::help_config);
  EXPECT_EQ(parse({"--help-config"}).help_section, "");
  EXPECT_EQ(parse({"--help-config", "lora"}).help_section, "lora");
  EXPECT_EQ(parse({"--help-config=lora"}).help_section, "lora");
  EXPECT_EQ(parse({"in.toml", "--dry-run", "3"}).dry_run, 3);
  EXPECT_EQ(parse({"--dry-run=3", "in.toml"}).dry_run, 3);
  EXPECT_EQ(parse({"in.toml", "--dump", "a.safetensors"}).dump, "a.safetensors");
  EXPECT_EQ(parse({"in.toml", "--plan"}).command, Command::plan);
  EXPECT_EQ(parse({"in.toml", "--plan"}).ranks, 0);
  EXPECT_EQ(parse({"in.toml", "--plan", "--ranks", "4"}).ranks, 4);
  EXPECT_EQ(parse({"in.toml", "--check", "--ranks=4"}).ranks, 4);
  EXPECT_FALSE(parse({"in.toml", "--plan"}).json);
  EXPECT_TRUE(parse({"--json", "in.toml", "--plan"}).json);
  EXPECT_EQ(parse({"--dump=a=b", "in.toml"}).dump, "a=b");
}

TEST(CommandLine, OverridesAreKeptAsWritten) {
  const CommandLine line = parse({"--model.path=/a b=c", "in.toml", "--data.eval=", "--loar.r=8"});
  ASSERT_EQ(line.overrides.size(), 3u);
  EXPECT_EQ(line.overrides[0].key, "model.path");
  EXPECT_EQ(line.overrides[0].value, "/a b=c");
  EXPECT_EQ(line.overrides[1].key, "data.eval");
  EXPECT_EQ(line.overrides[1].value, "");
  EXPECT_EQ(line.overrides[2].key, "loar.r");
}

TEST(CommandLine, Refusals) {
  struct Bad {
    Texts words, expected;
    size_t lines = 1;
  };
  const std::vector<Bad> cases = {
      {{}, {"no input file", "usage: utrain input.toml [--section.key=value ...]"}},
      {{"--check"}, {"no input file", "usage: utrain input.toml"}},
      {{""}, {"command line: found an empty word, wanted an input file; usage: utrain input.toml"}},
      {{"", "a.toml"}, {"command line: found an empty word"}},
      {{"a.toml", "b.toml"}, {"b.toml: a second input file, the first is a.toml"}},
      {{"a.toml", "--chekc"}, {"--chekc: unknown flag; did you mean --check?"}},
      {{"a.toml", "--dryrun=3"}, {"--dryrun: unknown flag; did you mean --dry-run?"}},
      {{"a.toml", "--lr=3"}, {"--lr: unknown flag; did you mean --train.lr=...?"}},
      {{"a.toml", "--qqqqqqqqqqq"}, {"--qqqqqqqqqqq: unknown flag; see utrain --help"}},
      {{"a.toml", "--che"}, {"--che: unknown flag; did you mean --check?"}},
      {{"a.toml", "-x"}, {"-x: unknown flag"}},
      {{"a.toml", "--", "--check"}, {"--check: unknown flag; after -- only the input file may"}},
      {{"a.toml", "-lora.r=8"}, {"-lora.r: unknown flag; did you mean --lora.r=...?"}},
      {{"a.toml", "--check=1"}, {"--check", "does not take any arguments"}},
      {{"a.toml", "--lora.r"}, {"--lora.r: has no value; write --lora.r=VALUE"}},
      {{"a.toml", "--lora.r", "8"}, {"--lora.r: has no value; write --lora.r=VALUE"}},
      {{"--run.overwrite", "a.toml"}, {"--run.overwrite: has no value"}},
      {{"a.toml", "--loar.r"}, {"--loar.r: unknown flag; did you mean --lora.r=...?"}},
      {{"a.toml", "--dump"}, {"'--dump' is missing"}},
      {{"a.toml", "--dump="}, {"--dump"}},
      {{"a.toml", "--dump", ""}, {"--dump: found an empty value", "write --dump=FILE"}},
      {{"a.toml", "--dump", "--check"}, {"--dump: found --check where its value should be"}},
      {{"a.toml", "--dump=a", "--dump=b"}, {"--dump: given twice"}},
      {{"a.toml", "--dry-run"}, {"'--dry-run' is missing"}},
      {{"a.toml", "--dry-run=0"}, {"--dry-run: found \"0\", wanted a number of steps >= 1"}},
      {{"a.toml", "--dry-run=-1"}, {"--dry-run: found \"-1\""}},
      {{"a.toml", "--dry-run=3x"}, {"--dry-run: found \"3x\""}},
      {{"a.toml", "--dry-run=99999999999999999999"}, {"--dry-run: found \"999"}},
      {{"a.toml", "--dump=a", "--check"}, {"--check and --dump: cannot be combined"}},
      {{"a.toml", "--dump=a", "--dry-run=1"}, {"--dry-run and --dump: cannot be combined"}},
      {{"a.toml", "--check", "--dry-run=1"}, {"--check and --dry-run: cannot be combined"}},
      {{"a.toml", "--plan", "--check"}, {"--check and --plan: cannot be combined"}},
      {{"a.toml", "--plan", "--dry-run=1"}, {"--dry-run and --plan: cannot be combined"}},
      {{"a.toml", "--plan", "--ranks"}, {"'--ranks' is missing"}},
      {{"a.toml", "--plan", "--ranks=0"},
       {"--ranks: found \"0\", wanted a number of ranks >= 1 and <= 100000; write --ranks 3"}},
      {{"a.toml", "--plan", "--ranks=-4"}, {"--ranks: found \"-4\""}},
      {{"a.toml", "--plan", "--ranks=4x"}, {"--ranks: found \"4x\""}},
      {{"a.toml", "--plan", "--ranks=100001"}, {"--ranks: found \"100001\""}},
      {{"a.toml", "--plan", "--ranks=2", "--ranks=4"}, {"--ranks: given twice"}},
      {{"a.toml", "--plan", "--json=1"}, {"--json", "does not take any arguments"}},
      {{"a.toml", "--json"}, {"--json: goes with --plan alone"}},
      {{"a.toml", "--ranks=4", "--json"},
       {"--ranks: goes with --plan or --check", "--json: goes with --plan alone"},
       2},
  };
  for (const Bad& bad : cases) {
    std::string line;
    for (const std::string& word : bad.words) line += " " + word;
    SCOPED_TRACE(line);
    const std::string found = refusal(bad.words);
    expect_contains(found, bad.expected);
    EXPECT_EQ(count_lines(found), bad.lines) << found;
  }
}

TEST(CommandLine, HelpNamesEveryFlagAndSection) {
  const std::string help = help_text();
  for (const char* flag : {"--check", "--dry-run", "--dump", "--plan", "--ranks", "--json",
                           "--print-config", "--help", "--help-config", "--version"})
    expect_contains(help, {flag});
  for (std::string_view section : section_names()) expect_contains(help, {std::string(section)});
}

}  // namespace
}  // namespace utrain
