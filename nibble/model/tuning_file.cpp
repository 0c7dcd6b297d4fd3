#include "nibble/model/tuning_file.h"

#include "nibble/base/error.h"
#include "nibble/base/log.h"
#include "nibble/io/atomic.h"
#include "nibble/io/json.h"

#include <algorithm>

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr JsonObject::IntegerRange side{1, UINT32_MAX}, edge{1, 4096};

std::string key_of(const gpu::AdapterInfo& info) { return fmt::format("{} ({})", info.name, info.driver); }

Json to_json(const MatrixTuning::Product& product) {
  const auto& [shape, plan] = product;
  const MatrixTile& t = plan.tile;
  return {{"layout", shape.layout == MatrixLayout::nt ? "nt" : "nn"},
          {"rows", shape.rows},
          {"columns", shape.columns},
          {"inner", shape.inner},
          {"matrix", {t.matrix.m, t.matrix.n, t.matrix.k}},
          {"block", {t.block_m, t.block_n, t.block_k}},
          {"part", {t.part_m, t.part_n}},
          {"band", t.band},
          {"direct", t.direct},
          {"splits", plan.splits},
          {"wave", plan.wave}};
}

std::uint32_t number(const JsonObject& object, std::string_view key, JsonObject::IntegerRange range) {
  return static_cast<std::uint32_t>(object.integer(key, range));
}

std::vector<std::uint32_t> numbers(const JsonObject& object, std::string_view key, std::size_t count) {
  const auto values = object.integers(key, edge);
  if (values.size() != count) object.fail_key(key, fmt::format("a list of {} numbers", count));
  return {values.begin(), values.end()};
}

MatrixTuning::Product product_of(const JsonObject& object, std::uint32_t subgroup) {
  const auto matrix = numbers(object, "matrix", 3), block = numbers(object, "block", 3), part = numbers(object, "part", 2);
  MatrixTile tile{.matrix = {matrix[0], matrix[1], matrix[2]}, .subgroup = subgroup, .block_m = block[0], .block_n = block[1],
                  .block_k = block[2], .part_m = part[0], .part_n = part[1], .band = number(object, "band", edge),
                  .direct = object.boolean("direct")};
  const std::string layout = object.string("layout");
  if (layout != "nt" && layout != "nn") object.fail_key("layout", "\"nt\" or \"nn\"");
  return {.shape = {layout == "nt" ? MatrixLayout::nt : MatrixLayout::nn, number(object, "rows", side),
                    number(object, "columns", side), number(object, "inner", side)},
          .plan = {.tile = tile, .splits = number(object, "splits", {1, 64}), .wave = number(object, "wave", {0, UINT32_MAX})}};
}

MatrixTuning tuning_of(const JsonObject& entry, const gpu::AdapterInfo& info) {
  MatrixTuning tuning{.products = {}, .tiled_rows = number(entry, "tiled_rows", side)};
  const Json& products = entry.json().value("products", Json());
  if (!products.is_array()) entry.fail_key("products", "a list");
  for (const Json& product : products) {
    const auto read = product_of(JsonObject(product, entry.origin()), info.subgroup_max_size);
    if (suits(info, read.plan.tile)) tuning.products.push_back(read);
  }
  return tuning;
}

}  // namespace

void load_matrix_tuning(const gpu::Device& device, const fs::path& folder) {
  const fs::path file = folder / tuning_file_name;
  const gpu::AdapterInfo& info = device.info();
  if (folder.empty() || !fs::exists(file) || !default_matrix_tile(info)) return;
  try {
    const Json json = read_json_file(file, {.max_bytes = std::size_t{16} << 20});
    const JsonObject all(json, file.string());
    if (const auto entry = all.object(key_of(info))) matrix_tuning(device) = tuning_of(*entry, info);
  } catch (const DataError& error) {
    log_warning(fmt::format("{} Products go by the adapter's usual plans; `nibble bench matmul --sweep --save` writes the file anew.",
                            error.what()));
  }
}

void save_matrix_tuning(const gpu::Device& device, const fs::path& folder) {
  check<UsageError>(!folder.empty(), "tuning", "There is no cache folder to write to; set XDG_CACHE_HOME or HOME.");
  const fs::path file = folder / tuning_file_name;
  Json all = Json::object();
  if (fs::exists(file)) {
    try {
      all = read_json_file(file, {.max_bytes = std::size_t{16} << 20});
    } catch (const DataError&) {
      // A damaged file is replaced.
    }
    if (!all.is_object()) all = Json::object();
  }
  const MatrixTuning& tuning = matrix_tuning(device);
  Json products = Json::array();
  for (const auto& product : tuning.products) products.push_back(to_json(product));
  all[key_of(device.info())] = {{"tiled_rows", tuning.tiled_rows.value_or(UINT32_MAX)}, {"products", products}};
  fs::create_directories(folder);
  write_file_atomically(file, write_json(all) + "\n");
}

}  // namespace nibble
