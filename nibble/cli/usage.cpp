#include "nibble/cli/usage.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <numeric>
#include <vector>

namespace nibble::cli {
namespace {

class VerbList : public CLI::Formatter {
 public:
  std::string make_subcommand(const CLI::App* verb) const override {
    const std::string manual = verb->get_description();
    return fmt::format("  {:<10} {}\n", verb->get_name(), manual.substr(0, manual.find('\n')));
  }
};

const auto every = [](const CLI::App*) { return true; };

void add_options(const CLI::App& app, std::vector<std::string>& names) {
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  for (const CLI::App* group : app.get_subcommands(every)) {
    if (group->get_name().empty()) add_options(*group, names);
  }
}

// Levenshtein's distance.
std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i + 1;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t substituted = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({substituted, row[j] + 1, diagonal + 1});
    }
  }
  return row.back();
}

// "; did you mean --model?" or "."
std::string nearest(std::string_view word, const std::vector<std::string>& names) {
  // --steps for --max-steps, the shortest of those with such an end.
  const std::string* longer = nullptr;
  for (const std::string& name : names) {
    if (word.starts_with("--") && name.ends_with(word.substr(1)) && (longer == nullptr || name.size() < longer->size())) longer = &name;
  }
  if (longer != nullptr) return fmt::format("; did you mean {}?", *longer);
  const auto best = std::min_element(names.begin(), names.end(), [&](const std::string& a, const std::string& b) {
    return distance(word, a) < distance(word, b);
  });
  if (best == names.end() || distance(word, *best) > std::max<std::size_t>(2, word.size() / 3)) return ".";
  return fmt::format("; did you mean {}?", *best);
}

std::string unknown_word(const CLI::App& verb, const std::string& command, const std::string& word) {
  std::vector<std::string> names;
  if (word.starts_with('-')) {
    add_options(verb, names);
    return fmt::format("{} has no option {}{}", command, word, nearest(word.substr(0, word.find('=')), names));
  }
  for (const CLI::App* other : verb.get_subcommands(every)) {
    if (!other->get_name().empty()) names.push_back(other->get_name());
  }
  if (!names.empty()) return fmt::format("There is no verb \"{}\"{}", word, nearest(word, names));
  return fmt::format("{} does not take the word \"{}\".", command, word);
}

template <typename Number>
bool converts(std::string value) {
  return CLI::TypeValidator<Number>("")(value).empty();
}

std::string refuse_all_but_counts(const std::string& value) {
  // CLI11 would take the largest number there is.
  std::uint64_t number = 0;
  if (std::from_chars(value.data(), value.data() + value.size(), number).ec == std::errc::result_out_of_range) return fmt::format("{} is too large", value);
  return value.starts_with('-') || !converts<std::uint64_t>(value) ? fmt::format("{} is no whole number from 0 on", value) : std::string();
}

std::string refuse_all_but_finite(const std::string& value) {
  return !converts<double>(value) || !std::isfinite(std::strtod(value.c_str(), nullptr)) ? fmt::format("{} is no finite number", value) : std::string();
}

// Of what CLI11 says of a number that does not fit, "Could not convert: NAME = VALUE".
std::string conversion_error(std::string_view what) {
  constexpr std::string_view begin = "Could not convert: ";
  const std::size_t middle = what.find(" = ");
  if (!what.starts_with(begin) || middle == what.npos) return std::string(what);
  return fmt::format("{}: {} is no number, or one that is too large", what.substr(begin.size(), middle - begin.size()), what.substr(middle + 3));
}

CLI::Validator number_that(const char* name, const char* which, bool (*fits)(double)) {
  const auto refuse = [which, fits](std::string& given) {
    char* end = nullptr;
    const double value = std::strtod(given.c_str(), &end);
    const bool is_number = !given.empty() && *end == '\0' && std::isfinite(value);
    return is_number && fits(value) ? std::string() : fmt::format("{} is no number {}", given, which);
  };
  return CLI::Validator(refuse, name);
}

}  // namespace

void check_numbers(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    const std::string type = option->get_type_name();
    if (type.starts_with("UINT")) option->check(refuse_all_but_counts);
    if (type.starts_with("FLOAT")) option->check(refuse_all_but_finite);
  }
  for (CLI::App* verb : app.get_subcommands([](CLI::App*) { return true; })) check_numbers(*verb);
}

CLI::Validator above_zero() { return number_that("POSITIVE", "above 0", [](double value) { return value > 0; }); }
CLI::Validator from_zero() { return number_that("NONNEGATIVE", "from 0 on", [](double value) { return value >= 0; }); }

CLI::Validator size_in_bytes() {
  const auto convert = [](std::string& value) {
    const std::string given = value;
    try {
      if (!value.starts_with('-') && CLI::AsSizeValue(true)(value).empty()) return std::string();
    } catch (const CLI::ValidationError&) {  // of units that it does not know
    }
    return fmt::format("{} is no size; give one as 5GB or 2GiB", given);
  };
  return CLI::Validator(convert, "");
}

std::shared_ptr<CLI::FormatterBase> help_format() { return std::make_shared<VerbList>(); }

std::string usage_error(const CLI::App& app, const CLI::ParseError& error) {
  const CLI::App* verb = &app;
  std::string command = app.get_name();
  for (auto parsed = app.get_subcommands(); !parsed.empty(); parsed = verb->get_subcommands()) {
    verb = parsed.front();
    if (verb->get_name().empty()) break;
    command += " " + verb->get_name();
  }
  const auto unknown = app.remaining(true);
  std::string sentence = unknown.empty() ? conversion_error(error.what()) : unknown_word(*verb, command, unknown.front());
  if (!sentence.ends_with('.') && !sentence.ends_with('?')) sentence += '.';
  return fmt::format("{} See: {} --help", sentence, command);
}

}  // namespace nibble::cli
