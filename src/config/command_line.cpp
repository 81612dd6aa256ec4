#include "config/command_line.h"

#include <fmt/core.h>

#include <algorithm>
#include <boost/program_options.hpp>
#include <charconv>
#include <limits>
#include <set>
#include <sstream>
#include <utility>

#include "config/keys.h"
#include "config/nearest.h"
#include "core/error.h"

namespace utrain {
namespace {

namespace po = boost::program_options;
using Command = CommandLine::Command;

constexpr const char* kUsage = "usage: utrain input.toml [--section.key=value ...]";

po::options_description make_flags() {
  po::options_description flags("What to do instead of training");
  const auto value = [](const char* name) { return po::value<std::string>()->value_name(name); };
  flags.add_options()                                                         //
      ("check", "read and validate everything, print the start table, exit")  //
      ("dry-run", value("N"), "train N steps, write nothing but metrics")     //
      ("dump", value("FILE"),
       "forward and backward of the first batch, no update: loss, logits and gradients as "
       "safetensors")                                                                           //
      ("plan", "memory and communication of the four strategies, no GPU needed")                //
      ("ranks", value("N"), "ranks that --plan or --check is for, instead of those there are")  //
      ("json", "--plan as JSON")                                                                //
      ("print-config", "print the input with all defaults and overrides, exit")                 //
      ("help", "this text")                                                                     //
      ("help-config", value("SECTION")->implicit_value(""),
       "every key of input.toml, or those of one section")  //
      ("version", "version, compiler and libraries");
  return flags;
}

std::string flag_name(const po::options_description& flags, const std::string& word) {
  std::vector<std::string> names;
  for (const auto& flag : flags.options()) names.push_back(flag->long_name());
  return nearest(word, names);
}

std::string unknown_flag(const po::options_description& flags, const std::string& token) {
  const std::string word = token.substr(0, token.find('='));
  const std::string name = word.substr(std::min(word.find_first_not_of('-'), word.size()));
  const size_t dot = name.find('.');
  const std::string flag = flag_name(flags, name);
  const std::string key = dot == name.npos ? nearest_key("", name)
                                           : nearest_key(name.substr(0, dot), name.substr(dot + 1));
  std::string remedy = "see utrain --help";
  if (token == "--" + flag)
    remedy = "after -- only the input file may stand";
  else if (!flag.empty())
    remedy = fmt::format("did you mean --{}? (utrain --help)", flag);
  else if (!key.empty())
    remedy = fmt::format("did you mean --{}=...? (utrain --help-config)", key);
  return fmt::format("{}: unknown flag; {}", word.substr(0, 80), remedy);
}

// "--lora.r=8" or "--lora.r". Boost would refuse the empty value of "--data.eval=", so the whole
// token is the value.
std::pair<std::string, std::string> override_token(const std::string& token) {
  const std::string name = token.substr(0, token.find('='));
  const bool dotted = name.size() > 3 && name.compare(0, 2, "--") == 0 && name[2] != '-' &&
                      name.find('.') != name.npos;
  return dotted ? std::pair{std::string("override"), token} : std::pair<std::string, std::string>{};
}

std::optional<int64_t> count_up_to(int64_t most, std::string_view text) {
  int64_t n = 0;
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, n);
  if (error != std::errc{} || rest != end || n < 1 || n > most) return std::nullopt;
  return n;
}

class Parser {
 public:
  explicit Parser(const po::options_description& flags) : flags_(flags) {}

  void take(const po::option& option) {
    if (option.position_key < 0) key_without_value_ = false;
    const std::string value = option.value.empty() ? "" : option.value.front();
    const std::string& name = option.string_key;
    if (option.position_key >= 0)
      take_positional(value);
    else if (name == "override")
      take_override(value);
    else if (option.unregistered)
      problem(unknown_flag(flags_, option.original_tokens.front()));
    else
      take_flag(name, value);
  }

  CommandLine finish() {
    using enum CommandLine::Command;
    const auto given = [&](const char* name) { return seen_.count(name) != 0; };
    if (problems_.empty()) {
      line_.command = given("help")           ? help
                      : given("version")      ? version
                      : given("help-config")  ? help_config
                      : given("check")        ? check
                      : given("plan")         ? plan
                      : given("print-config") ? print_config
                                              : train;
      if (line_.command == help || line_.command == version || line_.command == help_config)
        return line_;
    }
    std::string together;
    for (const char* name : {"check", "dry-run", "dump", "plan", "print-config"})
      if (given(name)) together += fmt::format("{}--{}", together.empty() ? "" : " and ", name);
    if (together.find(" and ") != together.npos)
      problem(fmt::format("{}: cannot be combined; give one of them", together));
    if (given("json") && !given("plan"))
      problem("--json: goes with --plan alone; add --plan or leave it out");
    if (given("ranks") && !given("plan") && !given("check"))
      problem("--ranks: goes with --plan or --check; add one of them or leave it out");
    if (inputs_.empty() && problems_.empty())
      problem(
          fmt::format("command line: no input file given, wanted one; {} (utrain --help)", kUsage));
    if (inputs_.size() > 1)
      problem(
          fmt::format("{}: a second input file, the first is {}; give one, and values of keys as "
                      "--section.key=value",
                      inputs_[1], inputs_[0]));
    if (!problems_.empty()) throw Error(ExitCode::usage, problems_);
    line_.input = inputs_.front();
    return line_;
  }

 private:
  void problem(const std::string& text) { problems_ += (problems_.empty() ? "" : "\n") + text; }

  void take_positional(const std::string& word) {
    // The value of "--lora.r 8": the line is refused already.
    if (std::exchange(key_without_value_, false)) return;
    if (word.empty())
      return problem(fmt::format(
          "command line: found an empty word, wanted an input file; {} (utrain --help)", kUsage));
    if (word.size() > 1 && word[0] == '-') return problem(unknown_flag(flags_, word));
    if (seen_.count("help-config") != 0 && line_.help_section.empty())
      line_.help_section = word;
    else
      inputs_.push_back(word);
  }

  void take_override(const std::string& token) {
    const size_t equal = token.find('=');
    const std::string name = token.substr(2, equal - 2);
    if (equal != token.npos) {
      line_.overrides.push_back({name, token.substr(equal + 1)});
    } else if (find_key(name) == nullptr) {
      problem(unknown_flag(flags_, token));
    } else {
      problem(fmt::format("{0}: has no value; write {0}=VALUE, with = and no space", token));
      key_without_value_ = true;
    }
  }

  void take_flag(const std::string& name, const std::string& value) {
    const bool again = !seen_.insert(name).second;
    if (again && (name == "dry-run" || name == "dump" || name == "ranks"))
      problem(fmt::format("--{}: given twice; give it once", name));
    else if (value.compare(0, 2, "--") == 0)
      problem(fmt::format("--{}: found {} where its value should be; write --{}=VALUE", name,
                          value.substr(0, 80), name));
    else if (name == "dump" && value.empty())  // would mean no dump
      problem("--dump: found an empty value, wanted a file name; write --dump=FILE");
    else if (name == "dry-run")
      line_.dry_run = count(name, value, "steps", std::numeric_limits<int64_t>::max());
    else if (name == "ranks")
      line_.ranks = count(name, value, "ranks", kMostRanks);
    else if (name == "json")
      line_.json = true;
    else if (name == "dump")
      line_.dump = value;
    else if (name == "help-config")
      line_.help_section = value;
  }

  int64_t count(const std::string& name, const std::string& value, const char* what, int64_t most) {
    const std::optional<int64_t> n = count_up_to(most, value);
    if (!n)
      problem(fmt::format("--{0}: found \"{1}\", wanted a number of {2} >= 1{3}; write --{0} 3",
                          name, value.substr(0, 80), what,
                          most == kMostRanks ? fmt::format(" and <= {}", most) : ""));
    return n.value_or(0);
  }

  const po::options_description& flags_;
  CommandLine line_;
  std::set<std::string> seen_;
  std::vector<std::string> inputs_;
  std::string problems_;
  bool key_without_value_ = false;
};

}  // namespace

std::optional<int64_t> count_of_ranks(std::string_view text) {
  return count_up_to(kMostRanks, text);
}

CommandLine parse_command_line(int argc, const char* const* argv) {
  const po::options_description flags = make_flags();
  po::options_description known;
  known.add(flags).add_options()("override", po::value<std::string>());
  using namespace po::command_line_style;
  try {
    const po::parsed_options parsed = po::command_line_parser(argc, argv)
                                          .options(known)
                                          .style(allow_long | long_allow_adjacent | long_allow_next)
                                          .extra_parser(override_token)
                                          .allow_unregistered()
                                          .run();
    Parser parser(flags);
    for (const po::option& option : parsed.options) parser.take(option);
    return parser.finish();
  } catch (const po::error& error) {
    fail(ExitCode::usage, "command line", error.what(), fmt::format("{} (utrain --help)", kUsage));
  }
}

std::string help_text() {
  std::string sections;
  for (std::string_view section : section_names()) sections += fmt::format(" {}", section);
  std::ostringstream flags;
  flags << make_flags();
  return fmt::format(
      "utrain: LoRA fine-tuning of language models over MPI\n\n{}\n"
      "       mpirun -np 4 utrain input.toml --train.lr=1e-4\n\n"
      "A value on the command line wins over the file. Text needs no quotes; lists are a,b,c.\n"
      "Sections of input.toml:{}\n\n{}\n"
      "Exit codes: 0 done, 2 usage or configuration, 3 a bad file, 4 diverged, 5 no checkpoint,\n"
      "70 internal, 71 ranks disagree, 74 input/output, 75 stopped early.\n",
      kUsage, sections, flags.str());
}

}  // namespace utrain
