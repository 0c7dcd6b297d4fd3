#include "nibble/cli/config_file.h"

#include "nibble/base/error.h"
#include "nibble/io/file.h"
#include "nibble/io/json.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <sstream>

namespace nibble::cli {
namespace {

constexpr std::string_view option_name = "--config";
constexpr std::uint64_t largest_file = 1 << 20;

// Numbers and the two truths are bare, all else is a string; TOML's basic strings escape as JSON's do.
std::string toml_value(const std::string& value) {
  const Json number = Json::parse(value, nullptr, false);
  if (number.is_number() || number.is_boolean()) return value;
  return Json(value).dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string value_of(const CLI::Option& option) {
  if (option.count() == 0) {
    if (option.get_expected_min() == 0) return "false";
    return option.get_default_str().empty() ? "" : toml_value(option.get_default_str());
  }
  // A flag's result is "true".
  const auto values = option.reduced_results();
  if (values.size() == 1) return toml_value(values[0]);
  std::string text;
  for (const std::string& value : values) text += fmt::format("{}{}", text.empty() ? "" : ", ", toml_value(value));
  return "[" + text + "]";
}

// The verb's own options and those of its groups.
std::vector<const CLI::Option*> options_of(const CLI::App& verb) {
  std::vector<const CLI::Option*> options;
  for (const CLI::App* group : verb.get_subcommands([](const CLI::App*) { return true; })) {
    for (const CLI::Option* option : group->get_options()) options.push_back(option);
  }
  for (const CLI::Option* option : verb.get_options()) options.push_back(option);
  return options;
}

// A line of the file, read from its start on.
class Line {
 public:
  Line(std::string_view text, std::string place) : text_(text), place_(std::move(place)) {}

  bool at_end() {
    skip_blanks();
    return text_.empty() || text_[0] == '#';
  }
  std::string name() {
    skip_blanks();
    const std::size_t end = std::min(text_.find_first_of(" \t=#"), text_.size());
    if (end == 0) refuse();
    const std::string name(text_.substr(0, end));
    text_.remove_prefix(end);
    return name;
  }
  void expect(char c) {
    if (!skip(c)) refuse();
  }
  bool skip(char c) {
    skip_blanks();
    if (text_.empty() || text_[0] != c) return false;
    text_.remove_prefix(1);
    return true;
  }
  std::vector<std::string> values() {
    if (!skip('[')) return {value()};
    std::vector<std::string> result;
    while (!skip(']')) {
      result.push_back(value());
      if (skip(']')) break;
      expect(',');
    }
    return result;
  }
  [[noreturn]] void refuse() const {
    throw CLI::ValidationError(std::string(option_name), place_ + ": this line is not of the form name = value.");
  }

 private:
  void skip_blanks() { text_.remove_prefix(std::min(text_.find_first_not_of(" \t\r"), text_.size())); }
  std::string value() {
    skip_blanks();
    if (text_.empty()) refuse();
    if (text_[0] == '\'') return literal();
    if (text_[0] == '"') return basic();
    const std::size_t end = std::min(text_.find_first_of(" \t\r,]#"), text_.size());
    const std::string word(text_.substr(0, end));
    const Json parsed = Json::parse(word, nullptr, false);
    if (!parsed.is_number() && !parsed.is_boolean()) refuse();
    text_.remove_prefix(end);
    return word;
  }
  std::string literal() {
    const std::size_t end = text_.find('\'', 1);
    if (end == text_.npos) refuse();
    const std::string result(text_.substr(1, end - 1));
    text_.remove_prefix(end + 1);
    return result;
  }
  std::string basic() {
    std::size_t end = 1;
    while (end < text_.size() && text_[end] != '"') end += text_[end] == '\\' ? 2 : 1;
    if (end >= text_.size()) refuse();
    const Json parsed = Json::parse(text_.substr(0, end + 1), nullptr, false);
    if (!parsed.is_string()) refuse();
    text_.remove_prefix(end + 1);
    return parsed.get<std::string>();
  }

  std::string_view text_;
  std::string place_;
};

// Gives an option what the file says, unless the command line did.
void give(CLI::App& verb, const std::string& name, const std::vector<std::string>& values, const std::string& place) {
  CLI::Option* option = verb.get_option_no_throw("--" + name);
  if (option == nullptr || "--" + name == option_name) {
    throw CLI::ValidationError(std::string(option_name), fmt::format("{}: \"{}\" is no option of {}.", place, name, verb.get_name()));
  }
  if (!option->empty()) return;
  for (const std::string& value : values) option->add_result(value);
}

void read_config(CLI::App& verb, const std::string& path) {
  std::string text;
  try {
    text = read_file(path, largest_file);
  } catch (const Error& error) {
    throw CLI::ValidationError(std::string(option_name), error.what());
  }
  std::istringstream in(text);
  std::size_t number = 0;
  std::map<std::string, std::size_t> lines;  // of the names that were read
  for (std::string content; std::getline(in, content);) {
    const std::string place = fmt::format("{}:{}", path, ++number);
    Line line(content, place);
    if (line.at_end()) continue;
    const std::string name = line.name();
    const auto [first, is_new] = lines.emplace(name, number);
    if (!is_new) {
      throw CLI::ValidationError(std::string(option_name), fmt::format("{}: \"{}\" stands in line {} already; leave one of the two out.", place, name, first->second));
    }
    line.expect('=');
    const auto values = line.values();
    if (!line.at_end()) line.refuse();
    give(verb, name, values, place);
  }
}

}  // namespace

std::string config_text(const CLI::App& verb, const std::vector<std::string>& leave_out) {
  std::string text;
  for (const CLI::Option* option : options_of(verb)) {
    const std::string name = option->get_single_name();
    const std::string value = value_of(*option);
    const bool left_out = std::find(leave_out.begin(), leave_out.end(), name) != leave_out.end();
    if (!option->get_configurable() || left_out || value.empty()) continue;
    text += fmt::format("{} = {}\n", name, value);
  }
  return text;
}

void add_config_option(CLI::App& verb) {
  verb.add_option_function<std::string>(
          std::string(option_name), [&verb](const std::string& path) { read_config(verb, path); },
          "Options from a file of name = value lines (TOML); those on the command line win")
      ->configurable(false);
}

}  // namespace nibble::cli
