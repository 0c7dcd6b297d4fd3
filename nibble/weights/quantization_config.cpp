#include "nibble/weights/quantization_config.h"

#include "nibble/base/error.h"

namespace nibble {
namespace {

constexpr JsonObject::IntegerRange side{1, 1 << 20};

void check_bitsandbytes(const JsonObject& json) {
  if (!json.boolean("load_in_4bit", false)) json.fail_key("load_in_4bit", "true, as of bitsandbytes' kinds those in 4 bits are read");
  const std::string type = json.string("bnb_4bit_quant_type", "fp4");  // bitsandbytes' own default
  if (type != "nf4" && type != "fp4") json.fail_key("bnb_4bit_quant_type", R"("nf4" or "fp4")");
}

Fp8Blocks blocks_of(const JsonObject& json, const char* key) {
  const auto sides = json.integers(key, side);
  if (sides.empty()) return {};
  if (sides.size() != 2) json.fail_key(key, "two integers, the rows and columns of a block");
  return {static_cast<std::uint32_t>(sides[0]), static_cast<std::uint32_t>(sides[1])};
}

// All groups are of floats in eight bits; the first one's blocks hold for all.
std::optional<Fp8Blocks> read_compressed_tensors(const JsonObject& json) {
  const auto groups = json.object("config_groups");
  if (!groups || groups->json().empty()) json.fail_key("config_groups", "an object that describes the groups of weights");
  std::optional<Fp8Blocks> blocks;
  for (const auto& [name, unused] : groups->json().items()) {
    const auto group = groups->object(name);
    const auto weights = group ? group->object("weights") : std::nullopt;
    if (!weights) groups->fail_key(name, "an object that describes \"weights\"");
    if (weights->string("type") != "float") weights->fail_key("type", "\"float\", as of compressed-tensors floats in 8 bits are read");
    if (weights->integer("num_bits", {1, 64}) != 8) weights->fail_key("num_bits", "8, as of compressed-tensors floats in 8 bits are read");
    const bool listed = weights->has("block_structure") && weights->json()["block_structure"].is_array();
    if (!blocks) blocks = listed ? blocks_of(*weights, "block_structure") : Fp8Blocks{};
  }
  return blocks;
}

}  // namespace

std::optional<Fp8Blocks> read_quantization(const JsonObject& config) {
  const auto json = config.object("quantization_config");
  if (!json) return std::nullopt;
  const std::string method = json->string("quant_method", "");
  if (method == "bitsandbytes") {
    check_bitsandbytes(*json);
    return std::nullopt;
  }
  if (method == "fp8") return blocks_of(*json, "weight_block_size");
  if (method == "fbgemm_fp8") return Fp8Blocks{};
  if (method == "compressed-tensors") return read_compressed_tensors(*json);
  json->fail_key("quant_method", R"("bitsandbytes" (4 bits), "fp8", "fbgemm_fp8" or "compressed-tensors" (floats in 8 bits), the kinds that are read)");
}

}  // namespace nibble
