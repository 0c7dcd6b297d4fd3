#include "nibble/model/moments.h"

#include "nibble/base/dynamic_map.h"
#include "nibble/base/error.h"
#include "nibble/io/safetensors.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace nibble {
namespace {

std::uint32_t moment_blocks(std::uint64_t size) { return static_cast<std::uint32_t>((size + moment_block - 1) / moment_block); }

const std::array<float, 256>& map_of(Moments::Which which) {
  return which == Moments::Which::first ? dynamic_map() : unsigned_dynamic_map();
}

PlacedArrayShape values_shape(std::uint32_t blocks, const MomentsOptions& options) {
  const bool in_codes = options.kind == MomentKind::eight_bit;
  return {.dtype = in_codes ? DType::u32 : DType::f32, .blocks = blocks, .block_values = in_codes ? moment_block / 4 : moment_block,
          .piece_blocks = options.piece_blocks, .record_copies = options.record_copies};
}

PlacedArrayShape absmax_shape(std::uint32_t blocks, const MomentsOptions& options) {
  return {.blocks = blocks, .block_values = 1, .piece_blocks = options.piece_blocks, .record_copies = options.record_copies};
}

std::vector<float> floats_of(std::span<const std::byte> bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

// Codes by one absmax; whether all values come back exactly.
bool encode_by(float absmax, Moments::Which which, std::span<const float> values, std::span<std::uint8_t> codes) {
  constexpr float smallest_normal = 1.1754944e-38f;
  const auto& map = map_of(which);
  bool exact = true;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const float share = absmax < smallest_normal ? 0.0f : values[i] / absmax;
    const std::uint8_t floor = which == Moments::Which::second && share > 0 ? 1 : 0;
    codes[i] = std::max(nearest_code(map, share), floor);
    exact = exact && map[codes[i]] * absmax == values[i];
  }
  return exact;
}

}  // namespace

std::string_view name_of(MomentKind kind) { return kind == MomentKind::f32 ? "f32" : "8bit"; }

MomentKind moment_kind_of(std::string_view name) {
  if (name == "8bit") return MomentKind::eight_bit;
  check<UsageError>(name == "f32", "moments", "\"{}\" is no kind of moments; there are f32 and 8bit.", name);
  return MomentKind::f32;
}

float encode_moments(Moments::Which which, std::span<const float> values, std::span<std::uint8_t> codes) {
  float lowest = 0, largest = 0;
  for (const float value : values) {
    lowest = std::min(lowest, value);
    largest = std::max(largest, std::fabs(value));
  }
  if (encode_by(largest, which, values, codes)) return largest;
  // The signed map ends above -1, so where a value below 0 is the largest it may be that of a larger absmax.
  if (const float end = map_of(which).front(); end < 0 && lowest == -largest) {
    float absmax = lowest / end;
    for (int i = 0; i < 2; ++i) absmax = std::nextafter(absmax, 0.0f);
    for (int i = 0; i < 5; ++i, absmax = std::nextafter(absmax, INFINITY)) {
      if (encode_by(absmax, which, values, codes)) return absmax;
    }
  }
  encode_by(largest, which, values, codes);
  return largest;
}

Moments::Moments(gpu::Device& device, std::uint64_t size, const MomentsOptions& options, std::string_view label)
    : device_(&device), options_(options), size_(size) {
  constexpr std::uint64_t most = UINT32_MAX - moment_block;  // so that whole blocks can be counted
  check<UsageError>(size > 0 && size <= most, label, "Moments of {} elements were asked for; 1 to {} can be kept.", size, most);
  const std::uint32_t blocks = moment_blocks(size);
  for (Moment* moment : {&first_, &second_}) {
    moment->values = PlacedArray(device, options.place, values_shape(blocks, options), label);
    if (in_codes()) moment->absmax = PlacedArray(device, options.place, absmax_shape(blocks, options), label);
  }
  if (in_codes()) maps_ = moment_maps(device);
}

PlacedArray::Bytes Moments::bytes(const gpu::AdapterInfo& info, std::uint64_t size, const MomentsOptions& options) {
  const std::uint32_t blocks = moment_blocks(size);
  PlacedArray::Bytes bytes;
  const auto add = [&](const PlacedArrayShape& shape) {
    const PlacedArray::Bytes one = PlacedArray::bytes(info, options.place, shape);
    bytes.device += 2 * one.device;
    bytes.host += 2 * one.host;
  };
  add(values_shape(blocks, options));
  if (options.kind == MomentKind::f32) return bytes;
  add(absmax_shape(blocks, options));
  bytes.device += gpu::buffer_bytes(2 * 256 * sizeof(float));
  return bytes;
}

std::vector<PlacedArray*> Moments::arrays() {
  if (!in_codes()) return {&first_.values, &second_.values};
  return {&first_.values, &second_.values, &first_.absmax, &second_.absmax};
}

void Moments::update(gpu::Recorder& recorder, const MomentUpdate& update) {
  const auto arrays_of_both = arrays();
  const auto first = static_cast<std::uint32_t>(update.first / moment_block);
  const std::uint64_t size = update.weights.size();
  for_each_piece(recorder, arrays_of_both, first, first + moment_blocks(size), [&](std::uint32_t begin, std::uint32_t end) {
    const std::uint64_t offset = std::uint64_t{begin - first} * moment_block;
    const auto count = static_cast<std::uint32_t>(std::min<std::uint64_t>(size - offset, std::uint64_t{end - begin} * moment_block));
    MomentUpdate piece = update;
    piece.weights = update.weights.part(offset, {count});
    piece.gradients = update.gradients.part(offset, {count});
    piece.first = update.first + offset;
    record_kernels(recorder, piece);
  });
}

void Moments::record_kernels(gpu::Recorder& recorder, const MomentUpdate& update) const {
  check(update.first % moment_block == 0 && update.first + update.weights.size() <= size_, "moments",
        "{} elements from {} on are no blocks of the {} that have moments.", update.weights.size(), update.first, size_);
  const auto count = static_cast<std::uint32_t>(update.weights.size());
  const auto first = static_cast<std::uint32_t>(update.first / moment_block);
  const std::uint32_t blocks = moment_blocks(count), last = first + blocks;
  const gpu::Tensor m = first_.values.at(first, last), v = second_.values.at(first, last);
  if (!in_codes()) {
    record(recorder, AdamW{.weights = update.weights, .gradients = update.gradients, .first_moment = m.view({count}),
                           .second_moment = v.view({count}), .norm_and_factor = update.norm_and_factor, .rule = update.rule});
    return;
  }
  const std::uint32_t skipped = first % blocks_of_binding;
  record(recorder, AdamW8Bit{.weights = update.weights, .gradients = update.gradients,
                             .moments = {.first_codes = m.view({blocks, moment_block / 4}),
                                         .second_codes = v.view({blocks, moment_block / 4}),
                                         .first_absmax = first_.absmax.at(first - skipped, last),
                                         .second_absmax = second_.absmax.at(first - skipped, last),
                                         .skipped = skipped},
                             .maps = maps_, .norm_and_factor = update.norm_and_factor, .rule = update.rule});
}

void Moments::read_values(Which which, const PieceSink& sink) const {
  const Moment& from = moment(which);
  if (!in_codes()) {
    from.values.read(*device_, 0, size_ * sizeof(float), [&](std::span<const std::byte> bytes, std::uint64_t first) {
      sink(floats_of(bytes), first / sizeof(float));
    });
    return;
  }
  const auto& map = map_of(which);
  std::vector<float> absmax, values;
  from.absmax.read(*device_, 0, std::uint64_t{moment_blocks(size_)} * sizeof(float), [&](std::span<const std::byte> bytes, std::uint64_t) {
    const auto piece = floats_of(bytes);
    absmax.insert(absmax.end(), piece.begin(), piece.end());
  });
  from.values.read(*device_, 0, size_, [&](std::span<const std::byte> codes, std::uint64_t first) {
    values.resize(codes.size());
    for (std::size_t i = 0; i < codes.size(); ++i) {
      values[i] = map[std::to_integer<std::size_t>(codes[i])] * absmax[(first + i) / moment_block];
    }
    sink(values, first);
  });
}

std::vector<float> Moments::values(Which which) const {
  std::vector<float> all;
  all.reserve(size_);
  read_values(which, [&](std::span<const float> piece, std::uint64_t) { all.insert(all.end(), piece.begin(), piece.end()); });
  return all;
}

void Moments::set_values(Which which, std::span<const float> values) {
  check(values.size() == size_, "moments", "{} values came for the moments of {} elements.", values.size(), size_);
  Moment& to = which == Which::first ? first_ : second_;
  if (!in_codes()) return to.values.write(*device_, 0, std::as_bytes(values));
  std::vector<std::uint8_t> codes(std::size_t{moment_blocks(size_)} * moment_block, nearest_code(map_of(which), 0.0f));
  std::vector<float> absmax;
  for (std::size_t first = 0; first < values.size(); first += moment_block) {
    const std::size_t count = std::min<std::size_t>(moment_block, values.size() - first);
    absmax.push_back(encode_moments(which, values.subspan(first, count), std::span(codes).subspan(first, count)));
  }
  to.values.write(*device_, 0, std::as_bytes(std::span(codes)));
  to.absmax.write(*device_, 0, std::as_bytes(std::span(absmax)));
}

std::vector<MomentTensor> Moments::tensors(std::span<const MomentPart> parts) {
  std::vector<MomentTensor> all;
  for (const MomentPart& part : parts) {
    for (const bool second : {false, true}) {
      Moment& moment = second ? second_ : first_;
      const std::string name = fmt::format("{}.{}", second ? "exp_avg_sq" : "exp_avg", part.name);
      const std::uint64_t bytes_each = in_codes() ? 1 : sizeof(float), block = part.first / moment_block;
      all.push_back({.name = name, .dtype = in_codes() ? DType::u8 : DType::f32, .array = &moment.values,
                     .first = part.first * bytes_each, .bytes = part.size * bytes_each, .at_least_zero = second && !in_codes(),
                     .zero = nearest_code(second ? unsigned_dynamic_map() : dynamic_map(), 0.0f)});
      if (!in_codes()) continue;
      all.push_back({.name = name + ".absmax", .dtype = DType::f32, .array = &moment.absmax, .first = block * sizeof(float),
                     .bytes = std::uint64_t{moment_blocks(part.size)} * sizeof(float), .at_least_zero = true});
    }
  }
  return all;
}

void Moments::read(const MomentTensor& tensor, const std::function<void(std::span<const std::byte>)>& sink) const {
  tensor.array->read(*device_, tensor.first, tensor.bytes, [&](std::span<const std::byte> bytes, std::uint64_t) { sink(bytes); });
}

namespace {

// Calls use(bytes, first) with a tensor's bytes in pieces.
template <typename Use>
void read_in_pieces(const SafetensorsFile& file, const TensorInfo& tensor, Use&& use) {
  constexpr std::uint64_t piece_bytes = std::uint64_t{16} << 20;
  std::vector<std::byte> piece;
  for (std::uint64_t first = 0; first < tensor.bytes; first += piece_bytes) {
    piece.resize(std::min(piece_bytes, tensor.bytes - first));
    file.read(tensor, first, piece);
    use(std::span<const std::byte>(piece), first);
  }
}

void check_saved(const SafetensorsFile& file, const MomentTensor& wanted) {
  const TensorInfo& tensor = file.at(wanted.name);
  check<DataError>(tensor.dtype == wanted.dtype && tensor.bytes == wanted.bytes, file.path().string(),
                   "The tensor {} is {} of {} bytes; the moments are {} of {} bytes there.", wanted.name, tensor.dtype_name,
                   tensor.bytes, wanted.dtype == DType::u8 ? "U8" : "F32", wanted.bytes);
  if (wanted.dtype != DType::f32) return;
  read_in_pieces(file, tensor, [&](std::span<const std::byte> bytes, std::uint64_t first) {
    const std::vector<float> values = floats_of(bytes);
    const auto bad = std::find_if(values.begin(), values.end(), [&](float value) {
      return !std::isfinite(value) || (wanted.at_least_zero && value < 0);
    });
    check<DataError>(bad == values.end(), file.path().string(), "The tensor {} holds {} at index {}; {} can stand there.", wanted.name,
                     bad == values.end() ? 0.0f : *bad, first / sizeof(float) + static_cast<std::uint64_t>(bad - values.begin()),
                     wanted.at_least_zero ? "finite numbers from 0 on" : "finite numbers");
  });
}

}  // namespace

void Moments::load(const SafetensorsFile& file, std::span<const MomentPart> parts) {
  const auto wanted = tensors(parts);
  for (const MomentTensor& tensor : wanted) check_saved(file, tensor);
  for (const MomentTensor& tensor : wanted) {
    read_in_pieces(file, file.at(tensor.name), [&](std::span<const std::byte> bytes, std::uint64_t first) {
      if (tensor.dtype == DType::f32) return tensor.array->write(*device_, tensor.first + first, bytes);
      // Behind the part's last element too, which the block's largest is taken of.
      std::vector<std::byte> whole(bytes.begin(), bytes.end());
      whole.resize((bytes.size() + moment_block - 1) / moment_block * moment_block, std::byte{tensor.zero});
      tensor.array->write(*device_, tensor.first + first, whole);
    });
  }
}

}  // namespace nibble
