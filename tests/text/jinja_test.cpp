#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "nibble/base/error.h"
#include "nibble/base/rng.h"
#include "nibble/text/jinja/template.h"

namespace nibble::jinja::jinja_test {
namespace {

using Json = nlohmann::ordered_json;

const std::string folder = NIBBLE_SOURCE_DIR "/tests/text/";

Json load_cases() {
  std::ifstream in(folder + "jinja_cases.json");
  return Json::parse(in);
}

std::string read_template(const std::string& name) {
  std::ifstream in(folder + "templates/" + name);
  return {std::istreambuf_iterator<char>(in), {}};
}

// 2025-03-09 14:05:06 in local time, as the script that made the cases.
std::time_t fixed_now() {
  std::tm parts{};
  parts.tm_year = 125;
  parts.tm_mon = 2;
  parts.tm_mday = 9;
  parts.tm_hour = 14;
  parts.tm_min = 5;
  parts.tm_sec = 6;
  parts.tm_isdst = -1;
  return std::mktime(&parts);
}

Rendered render(std::string_view source, const Json& variables = Json::object()) {
  return Template::parse(source).render(from_json(variables).dict(), fixed_now());
}

void expect_case(const Json& item, std::string_view source, const Json& variables) {
  SCOPED_TRACE(item["name"].get<std::string>());
  Rendered got;
  try {
    got = render(source, variables);
  } catch (const DataError& error) {
    EXPECT_TRUE(item.contains("error")) << error.what();
    EXPECT_EQ(std::string(error.what()).rfind("[chat_template] line ", 0), 0u) << error.what();
    return;
  }
  ASSERT_FALSE(item.contains("error")) << item["error"] << " expected, got: " << got.text;
  EXPECT_EQ(got.text, item["expected"].get<std::string>());
  const auto spans = item.value("generated", std::vector<std::pair<std::size_t, std::size_t>>{});
  EXPECT_EQ(got.generated, spans);
}

TEST(Jinja, EqualsPythonOnExpressionsAndStatements) {
  const Json all = load_cases();
  ASSERT_GT(all["cases"].size(), 550u);
  for (const Json& item : all["cases"]) {
    expect_case(item, item["template"].get<std::string>(), all["variables"]);
  }
}

TEST(Jinja, EqualsPythonOnTemplatesOfEachFamily) {
  const Json all = load_cases();
  ASSERT_GT(all["families"].size(), 100u);
  for (const Json& item : all["families"]) {
    const std::string source = read_template(item["template"].get<std::string>());
    ASSERT_FALSE(source.empty());
    expect_case(item, source, item["variables"]);
  }
}

std::string error_of(std::string_view source, const Json& variables = Json::object()) {
  try {
    render(source, variables);
  } catch (const DataError& error) {
    return error.what();
  }
  return "none";
}

TEST(Jinja, ErrorsNameTheLine) {
  EXPECT_EQ(error_of("a\nb\n{{ x.y }}"), "[chat_template] line 3: 'x' is undefined.");
  EXPECT_EQ(error_of("{% if true %}\n\n{{ 'a' |\n nothing }}{% endif %}"),
            "[chat_template] line 4: There is no filter 'nothing'.");
  EXPECT_EQ(error_of("\n{% include 'x' %}").rfind("[chat_template] line 2: The tag 'include' is not supported", 0), 0u);
  EXPECT_EQ(error_of("{# two\nlines #}{{ raise_exception('no') }}"),
            "[chat_template] line 2: The template refuses the conversation: no");
  EXPECT_EQ(error_of("{{ f(*x) }}").rfind("[chat_template] line 1: Arguments unpacked with *", 0), 0u);
}

// Each of these would run for ever, fill the memory or overflow the stack.
TEST(Jinja, HostileTemplatesEndInAnError) {
  const auto repeat = [](std::string_view text, int times) {
    std::string result;
    for (int i = 0; i < times; ++i) result += text;
    return result;
  };
  const std::string sources[] = {
      "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
      "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
      "{{ 'x' * 1000000000000 }}",
      "{{ [1] * 1000000000000 }}",
      "{% set ns = namespace(s='x') %}{% for a in range(100) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
      "{% set ns = namespace(s='x') %}{% for a in range(100) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
      "{% set ns = namespace(s='xx') %}{% for a in range(100) %}{% set ns.s = ns.s | replace('x', ns.s) %}{% endfor %}",
      "{% set ns = namespace(s=[]) %}{% for a in range(99999) %}{% set ns.s = [ns.s] %}{% endfor %}",
      "{% set ns = namespace(s=[1]) %}{% for a in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
      "{% set ns = namespace() %}{% set ns.self = ns %}",
      "{% set ns = namespace() %}{% set ns.self = [ns] %}",
      "{% set ns = namespace(f=1) %}{% for a in range(999) %}{% set ns.f = [ns.f].index %}{% endfor %}",
      "{% for a in range(99999) %}{% for b in range(99) %}{{ 'x' * 1000 }}{% endfor %}{% endfor %}",
      "{{ '%9999999d' % 1 }}",
      "{{ 'x' | indent(100000000) }}",
      "{{ range(1000000000) }}",
      "{{ 9223372036854775807 + 1 }}",
      "{{ (-9223372036854775807 - 1) // -1 }}",
      "{{ 99999999999999999999 }}",
      "{{ " + repeat("(", 100000) + "1" + repeat(")", 100000) + " }}",
      "{{ " + repeat("[", 100000),
      "{{ " + repeat("not ", 100000) + "1 }}",
      "{{ " + repeat("- ", 100000) + "1 }}",
      "{{ 1" + repeat(" + 1", 100000) + " }}",
      "{{ x" + repeat(".x", 100000) + " }}",
      "{{ x" + repeat(" | upper", 100000) + " }}",
      "{{ 1" + repeat(" if 1", 100000) + " }}",
      repeat("{% if true %}", 100000),
      "{% set " + repeat("(", 100000) + "a = 1 %}",
      "{% for x in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
  };
  for (const std::string& source : sources) EXPECT_NE(error_of(source), "none") << source.substr(0, 80);
}

// Whatever a template is changed into, it renders or is refused with a DataError.
TEST(Jinja, ChangedTemplatesRenderOrAreRefused) {
  const Json all = load_cases();
  Rng rng(17);
  std::size_t rendered = 0;
  for (std::size_t i = 0; i < all["families"].size(); ++i) {
    const Json& item = all["families"][i];
    std::string source = read_template(item["template"].get<std::string>());
    for (int change = 0; change < 40; ++change) {
      std::string changed = source;
      const std::size_t at = rng.below(static_cast<std::uint32_t>(changed.size()));
      const std::size_t from = rng.below(static_cast<std::uint32_t>(changed.size()));
      const std::size_t count = 1 + rng.below(12);
      if (change % 2 == 0) {
        changed.erase(at, count);
      } else {
        changed.insert(at, source.substr(from, count));
      }
      rendered += error_of(changed, item["variables"]) == "none" ? 1 : 0;
    }
  }
  EXPECT_GT(rendered, 100u);
}

TEST(Jinja, BrokenUtf8IsPassedThrough) {
  EXPECT_EQ(render("a\xff\xc3").text, "a\xff\xc3");
  EXPECT_EQ(render("{{ 'a\xff\xc3' | upper }}").text, "A\xff\xc3");
  EXPECT_EQ(render("{{ 'a\xff' | length }}").text, "2");
}

}  // namespace
}  // namespace nibble::jinja::jinja_test
