#include "nibble/weights/bnb.h"

#include "nibble/base/error.h"
#include "nibble/base/nf4_table.h"
#include "nibble/io/json.h"

#include <algorithm>
#include <cmath>

namespace nibble {
namespace {

constexpr std::string_view other_states = ".quant_state.bitsandbytes__";

std::string place_of(const Checkpoint::Entry& entry) { return entry.file->path().string(); }

const Checkpoint::Entry& part_of(const Checkpoint& checkpoint, const std::string& name, std::string_view suffix, std::string_view dtype,
                                 std::uint64_t count) {
  const std::string whole = name + std::string(suffix);
  check<DataError>(checkpoint.has(whole), checkpoint.folder().string(), "{} is quantised, but {} is missing.", name, whole);
  const Checkpoint::Entry& entry = checkpoint.at(whole);
  check<DataError>(entry.tensor->dtype_name == dtype && entry.tensor->numel() == count, place_of(entry),
                   "The tensor {} is {} of shape {}; {} elements of {} belong to the weight.", whole, entry.tensor->dtype_name,
                   to_string(entry.tensor->shape), count, dtype);
  return entry;
}

// Fills `to` from the value of that index on.
template <typename Values>
void read_from(const Checkpoint::Entry& entry, std::uint64_t first, Values&& to) {
  const std::span values(to);
  entry.file->read(*entry.tensor, first * sizeof(values[0]), std::as_writable_bytes(values));
}

Json read_state(const Checkpoint::Entry& entry) {
  constexpr std::uint64_t most = 1 << 16;
  check<DataError>(entry.tensor->dtype_name == "U8" && entry.tensor->bytes <= most, place_of(entry), "The tensor {} is no state in JSON.",
                   entry.tensor->name);
  std::string text(entry.tensor->bytes, '\0');
  read_from(entry, 0, text);
  return parse_json(text, place_of(entry) + ": " + entry.tensor->name);
}

void check_code_book(const Checkpoint& checkpoint, const std::string& name, CodeBook book) {
  const Checkpoint::Entry& entry = part_of(checkpoint, name, ".quant_map", "F32", codes_of(book).size());
  std::array<float, 16> codes;
  read_from(entry, 0, codes);
  check<DataError>(codes == codes_of(book), place_of(entry), "The tensor {} is not the code book of {}.", entry.tensor->name, name_of(book));
}

void check_state(const JsonObject& state, CodeBook book, std::uint32_t out, std::uint32_t in) {
  const std::string_view type = book == CodeBook::fp4 ? "fp4" : "nf4";
  if (state.string("quant_type") != type) state.fail_key("quant_type", fmt::format("\"{}\", as the tensor's name says", type));
  if (state.integer("blocksize", {1, 1 << 20}) != nf4_block) state.fail_key("blocksize", fmt::format("{}", nf4_block));
  const auto shape = state.integers("shape", {0, INT32_MAX});
  if (shape.size() != 2 || shape[0] != out || shape[1] != in) state.fail_key("shape", fmt::format("[{}, {}], as config.json makes it", out, in));
}

DType dtype_of(const JsonObject& state) {
  const std::string name = state.string("dtype");
  if (name == "bfloat16") return DType::bf16;
  if (name == "float16") return DType::f16;
  if (name != "float32") state.fail_key("dtype", R"("bfloat16", "float16" or "float32")");
  return DType::f32;
}

void read_nested(const Checkpoint& checkpoint, const std::string& name, const JsonObject& state, std::uint64_t blocks, BnbMatrix& matrix) {
  matrix.absmax = part_of(checkpoint, name, ".absmax", "U8", blocks);
  matrix.nested_blocksize = static_cast<std::uint32_t>(state.integer("nested_blocksize", {1, 1 << 20}));
  matrix.nested_offset = static_cast<float>(state.number("nested_offset", {-1e30, 1e30}));
  matrix.nested_absmax = part_of(checkpoint, name, ".nested_absmax", "F32", (blocks - 1) / matrix.nested_blocksize + 1);
  read_from(part_of(checkpoint, name, ".nested_quant_map", "F32", matrix.nested_map.size()), 0, matrix.nested_map);
}

// Two roundings, as bitsandbytes multiplies before it adds.
void read_nested_absmax(const BnbMatrix& matrix, std::uint64_t first, std::span<float> absmax) {
  const std::uint64_t nested = matrix.nested_blocksize, first_nested = first / nested;
  std::vector<std::uint8_t> codes(absmax.size());
  std::vector<float> blocks((first + absmax.size() - 1) / nested + 1 - first_nested);
  read_from(matrix.absmax, first, codes);
  read_from(matrix.nested_absmax, first_nested, blocks);
  for (std::size_t i = 0; i < absmax.size(); ++i) {
    const float scaled = matrix.nested_map[codes[i]] * blocks[(first + i) / nested - first_nested];
    absmax[i] = scaled + matrix.nested_offset;
  }
}

}  // namespace

bool is_bnb_part(std::string_view name, std::string_view weight) {
  if (!name.starts_with(weight)) return false;
  const std::string_view suffix = name.substr(weight.size());
  return suffix == ".absmax" || suffix == ".quant_map" || suffix == ".nested_absmax" || suffix == ".nested_quant_map" || suffix == bnb_state_suffix ||
         suffix == bnb_fp4_state_suffix;
}

std::optional<BnbMatrix> bnb_matrix(const Checkpoint& checkpoint, const std::string& name, std::uint32_t out, std::uint32_t in) {
  const bool nf4 = checkpoint.has(name + std::string(bnb_state_suffix)), fp4 = checkpoint.has(name + std::string(bnb_fp4_state_suffix));
  check<DataError>(!nf4 || !fp4, checkpoint.folder().string(), "{} is quantised both as nf4 and as fp4.", name);
  if (!nf4 && !fp4) {
    const auto next = checkpoint.tensors().lower_bound(name + std::string(other_states));
    const bool other = next != checkpoint.tensors().end() && next->first.starts_with(name + std::string(other_states));
    check<DataError>(!other, checkpoint.folder().string(), "{} is quantised as {}; of bitsandbytes NF4 and FP4 are read.", name,
                     other ? next->first.substr(name.size() + other_states.size()) : "");
    return std::nullopt;
  }
  const CodeBook book = fp4 ? CodeBook::fp4 : CodeBook::nf4;
  const Checkpoint::Entry& state_entry = checkpoint.at(name + std::string(fp4 ? bnb_fp4_state_suffix : bnb_state_suffix));
  const Json json = read_state(state_entry);
  const JsonObject state(json, place_of(state_entry) + ": " + state_entry.tensor->name);
  check_state(state, book, out, in);
  const std::uint64_t count = std::uint64_t{out} * in, blocks = count / nf4_block;
  BnbMatrix matrix{.rows = out, .columns = in, .book = book, .dtype = dtype_of(state), .codes = checkpoint.at(name), .absmax = {}, .nested_absmax = {}};
  // Stored as bytes, or as what wide type suits the training of shards.
  check<DataError>(matrix.codes.tensor->bytes == count / 2 && count % nf4_block == 0, place_of(matrix.codes),
                   "The tensor {} has {} bytes; a matrix of {} x {} in 4 bits has {}.", name, matrix.codes.tensor->bytes, out, in, count / 2);
  check_code_book(checkpoint, name, book);
  if (state.has("nested_blocksize")) {
    read_nested(checkpoint, name, state, blocks, matrix);
  } else {
    matrix.absmax = part_of(checkpoint, name, ".absmax", "F32", blocks);
  }
  return matrix;
}

void read_bnb(const BnbMatrix& matrix, std::uint64_t first_block, std::span<std::uint8_t> codes, std::span<float> absmax) {
  read_from(matrix.codes, first_block * nf4_block / 2, codes);
  if (!matrix.nested_absmax.tensor) {
    read_from(matrix.absmax, first_block, absmax);
  } else {
    read_nested_absmax(matrix, first_block, absmax);
  }
  const auto bad = std::ranges::find_if_not(absmax, [](float value) { return std::isfinite(value); });
  check<DataError>(bad == absmax.end(), place_of(matrix.codes), "The absmax of block {} of {} is {}; it must be finite.",
                   first_block + static_cast<std::uint64_t>(bad - absmax.begin()), matrix.codes.tensor->name, bad == absmax.end() ? 0.0f : *bad);
}

std::optional<DoubleQuantized> bnb_double_quantized(const BnbMatrix& matrix) {
  if (!matrix.nested_absmax.tensor || matrix.nested_blocksize != nested_block_size || matrix.nested_map != dynamic_map()) return std::nullopt;
  DoubleQuantized scales{.codes = std::vector<std::uint8_t>(matrix.absmax.tensor->numel()),
                         .nested_absmax = std::vector<float>(matrix.nested_absmax.tensor->numel()),
                         .offset = matrix.nested_offset};
  read_from(matrix.absmax, 0, scales.codes);
  read_from(matrix.nested_absmax, 0, scales.nested_absmax);
  return scales;
}

}  // namespace nibble
