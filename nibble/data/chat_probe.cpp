#include "nibble/data/chat_probe.h"

#include <algorithm>

#include "nibble/base/error.h"

namespace nibble::data {
namespace {

// Plain letters, so that templates neither trim nor escape them; the two differ in their first and last character, so
// that the text they stand for cannot share both.
constexpr std::string_view markers[] = {"QmarkerQnibbleQ", "ZmarkerZnibbleZ"};

void mark_content(OrderedJson& message, std::string_view marker) {
  OrderedJson& content = message["content"];
  if (!content.is_array()) {
    content = marker;
    return;
  }
  for (OrderedJson& part : content) part["text"] = marker;
}

void mark_calls(OrderedJson& message, std::string_view marker) {
  for (OrderedJson& call : message["tool_calls"]) {
    OrderedJson& function = call.contains("function") ? call["function"] : call;
    function["name"] = marker;
    if (!function.contains("arguments")) continue;
    if (function["arguments"].is_object()) {
      function["arguments"] = {{std::string(marker), marker}};
    } else {
      function["arguments"] = marker;
    }
  }
}

void mark(OrderedJson& message, Field field, std::string_view marker) {
  switch (field) {
    case Field::content: return mark_content(message, marker);
    case Field::calls: return mark_calls(message, marker);
    case Field::reasoning:
      for (const char* key : reasoning_keys) {
        if (message.contains(key) && message[key].is_string()) message[key] = marker;
      }
  }
}

std::size_t common_prefix(std::string_view a, std::string_view b) {
  return static_cast<std::size_t>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin());
}

std::size_t common_suffix(std::string_view a, std::string_view b) {
  return static_cast<std::size_t>(std::mismatch(a.rbegin(), a.rend(), b.rbegin(), b.rend()).first - a.rbegin());
}

}  // namespace

bool ChatProbe::has_field(const OrderedJson& message, Field field) {
  const auto is_text = [&](const char* key) {
    return message.contains(key) && message[key].is_string() && !message[key].get_ref<const std::string&>().empty();
  };
  switch (field) {
    case Field::content: return message.contains("content") && !message["content"].is_null();
    case Field::calls: return message.contains("tool_calls");
    case Field::reasoning: return std::any_of(std::begin(reasoning_keys), std::end(reasoning_keys), is_text);
  }
  return false;
}

text::ChatRequest ChatProbe::request(std::size_t count) const {
  text::ChatRequest result{.tools = chat_.tools, .variables = variables_};
  if (count == chat_.messages.size()) {
    result.messages = chat_.messages;
  } else {
    for (std::size_t i = 0; i < count; ++i) result.messages.push_back(chat_.messages[i]);
  }
  return result;
}

std::string ChatProbe::render(std::size_t count, bool add_generation_prompt) const {
  text::ChatRequest chat = request(count);
  chat.add_generation_prompt = add_generation_prompt;
  return template_.render(chat).text;
}

text::RenderedChat ChatProbe::render_all() const { return template_.render(request(chat_.messages.size())); }

std::optional<Region> ChatProbe::find(std::string_view full, std::size_t count, std::size_t message,
                                      Field field) const {
  text::ChatRequest chat = request(count);
  std::size_t prefix = full.size();
  std::size_t suffix = full.size();
  std::string probes[2];
  for (std::size_t i = 0; i < 2; ++i) {
    mark(chat.messages[message], field, markers[i]);
    probes[i] = template_.render(chat).text;
    prefix = std::min(prefix, common_prefix(full, probes[i]));
    suffix = std::min(suffix, common_suffix(full, probes[i]));
  }
  if (probes[0] == full && probes[1] == full) return std::nullopt;
  Region region{.begin = prefix, .end = std::max(prefix, full.size() - suffix)};
  const auto fits = [&](std::size_t i) {
    return region.end == full.size() - suffix &&
           probes[i].size() == region.begin + markers[i].size() + suffix &&
           std::string_view(probes[i]).substr(region.begin, markers[i].size()) == markers[i];
  };
  region.exact = field == Field::content && fits(0) && fits(1);
  return region;
}

std::optional<std::size_t> ChatProbe::prompt_end(std::string_view full, std::size_t message, std::size_t from,
                                                 std::size_t until) const {
  std::string prompt;
  std::string before;
  try {
    prompt = render(message, true);
    before = render(message, false);
  } catch (const DataError&) {
    return std::nullopt;  // a template that refuses a chat without its end
  }
  if (prompt.size() >= from && prompt.size() <= until && full.starts_with(prompt)) return prompt.size();
  if (!prompt.starts_with(before) || prompt.size() == before.size()) return std::nullopt;
  const std::string_view header = std::string_view(prompt).substr(before.size());
  if (until < header.size()) return std::nullopt;
  const std::size_t found = full.rfind(header, until - header.size());
  if (found == full.npos || found < from) return std::nullopt;
  return found + header.size();
}

}  // namespace nibble::data
