#include "nibble/text/post_processor.h"

#include "nibble/base/error.h"
#include "nibble/text/json_pieces.h"

namespace nibble::text {
namespace {

// Puts `outer` around `frame`.
void wrap(SpecialFrame& frame, const SpecialFrame& outer) {
  frame.before.insert(frame.before.begin(), outer.before.begin(), outer.before.end());
  frame.after.insert(frame.after.end(), outer.after.begin(), outer.after.end());
}

SpecialFrame read_template(const JsonObject& json) {
  const auto special = json.object("special_tokens");
  SpecialFrame frame;
  int sequences = 0;
  for (const JsonObject& piece : read_objects(json, "single")) {
    if (piece.has("Sequence")) {
      ++sequences;
      continue;
    }
    const auto named = piece.object("SpecialToken");
    if (!named) piece.fail_key("SpecialToken", "an object, or \"Sequence\" one");
    const std::string name = named->string("id");
    const auto token = special ? special->object(name) : std::nullopt;
    check<DataError>(token.has_value(), json.origin(),
                     "The template names the token \"{}\", which special_tokens lacks.", name);
    auto& side = sequences == 0 ? frame.before : frame.after;
    for (const std::int64_t id : token->integers("ids", {0, max_token_id})) side.push_back(static_cast<TokenId>(id));
  }
  check<DataError>(sequences == 1, json.origin(), "The template has the text {} times; once is expected.", sequences);
  return frame;
}

// A pair ["token", id].
TokenId read_pair(const JsonObject& json, const char* key) {
  const auto found = json.json().find(key);
  const bool valid = found != json.json().end() && found->is_array() && found->size() == 2 &&
                     (*found)[1].is_number_unsigned() && (*found)[1].get<std::uint64_t>() <= max_token_id;
  if (!valid) json.fail_key(key, "a token and its id");
  return (*found)[1].get<TokenId>();
}

}  // namespace

SpecialFrame read_post_processor(const JsonObject& json) {
  const std::string type = json.string("type");
  SpecialFrame frame;
  if (type == "Sequence") {
    for (const JsonObject& step : read_objects(json, "processors")) wrap(frame, read_post_processor(step));
  } else if (type == "TemplateProcessing") {
    frame = read_template(json);
  } else if (type == "BertProcessing" || type == "RobertaProcessing") {
    frame = {{read_pair(json, "cls")}, {read_pair(json, "sep")}};
  } else if (type != "ByteLevel") {
    fail<DataError>(json.origin(),
                    "The post-processor type \"{}\" is not supported; Sequence, TemplateProcessing, BertProcessing, "
                    "RobertaProcessing and ByteLevel are.",
                    type);
  }
  return frame;
}

}  // namespace nibble::text
