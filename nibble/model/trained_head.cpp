#include "nibble/model/trained_head.h"

#include "nibble/base/dynamic_map.h"
#include "nibble/base/error.h"
#include "nibble/base/half.h"
#include "nibble/kernels/convert.h"
#include "nibble/kernels/largest.h"
#include "nibble/weights/peft.h"

#include <bit>
#include <cmath>
#include <cstring>

namespace nibble {
namespace {

std::uint32_t blocks_of(std::uint64_t size) { return static_cast<std::uint32_t>((size + moment_block - 1) / moment_block); }

PlacedArrayShape f32_shape(std::uint32_t blocks, const TrainedHeadOptions& options) {
  return {.blocks = blocks, .block_values = moment_block, .piece_blocks = options.piece_blocks};
}

PlacedArrayShape codes_shape(std::uint32_t blocks, const TrainedHeadOptions& options) {
  return {.dtype = DType::u32, .blocks = blocks, .block_values = moment_block / 4, .piece_blocks = options.piece_blocks};
}

PlacedArrayShape absmax_shape(std::uint32_t blocks, const TrainedHeadOptions& options) {
  return {.blocks = blocks, .block_values = 1, .piece_blocks = options.piece_blocks};
}

// In f32 products read the master itself, which so is on the device.
MemoryPlace master_place(const TrainedHeadOptions& options) {
  return options.path == ProductPath::f32 ? MemoryPlace::device : options.place;
}

std::uint32_t size_of_head(const MatrixSource& values) {
  constexpr std::uint64_t most = UINT32_MAX - moment_block;  // so that whole blocks can be counted
  check<UsageError>(values.size() <= most, "head", "A head of {} parameters cannot be trained; {} are allowed.", values.size(),
                    most);
  return static_cast<std::uint32_t>(values.size());
}

std::vector<float> as_floats(std::span<const std::byte> bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

}  // namespace

std::string_view name_of(HeadMoments moments) { return moments == HeadMoments::f32 ? "f32" : "8bit"; }

TrainedHead::TrainedHead(gpu::Device& device, const MatrixSource& values, const TrainedHeadOptions& options,
                         DenseMatrix& product)
    : device_(device),
      options_(options),
      product_(product),
      rows_(values.rows),
      columns_(values.columns),
      size_(size_of_head(values)),
      blocks_(blocks_of(values.size())),
      gradient_(device.tensor(DType::f32, {rows_, columns_}, "head gradient")),
      master_(device, master_place(options), f32_shape(blocks_, options), "head master") {
  const bool in_codes = options.moments == HeadMoments::eight_bit;
  for (Moment* moment : {&first_, &second_}) {
    const auto shape = in_codes ? codes_shape(blocks_, options) : f32_shape(blocks_, options);
    moment->values = PlacedArray(device, options.place, shape, "head moment");
    if (in_codes) moment->absmax = PlacedArray(device, options.place, absmax_shape(blocks_, options), "head moment's absmax");
  }
  if (in_codes) maps_ = moment_maps(device);
  if (has_copy()) {
    largest_ = device.tensor(DType::f32, {1}, "largest of the head");
    product_ = {.data = device.tensor(operand_dtype(options.path), {rows_, columns_}, "head")};
  } else {
    product_ = {.data = master_.tensor().view({rows_, columns_})};
  }
  set_values(values);
}

void TrainedHead::set_values(const MatrixSource& values) {
  check(values.rows == rows_ && values.columns == columns_, "head", "Values of {} x {} came for a head of {} x {}.", values.rows,
        values.columns, rows_, columns_);
  float largest = 0;
  values.read([&](std::span<const float> piece, std::uint64_t first) {
    master_.write(device_, first * sizeof(float), std::as_bytes(piece));
    for (const float value : piece) largest = std::max(largest, std::fabs(value));
  });
  ++version_;
  if (has_copy()) copy_all(largest);
}

TrainedHead::Bytes TrainedHead::bytes(const ModelConfig& config, const TrainedHeadOptions& options) {
  const std::uint64_t size = std::uint64_t{config.vocab_size} * config.hidden_size;
  const std::uint32_t blocks = blocks_of(size);
  Bytes bytes{.device = gpu::buffer_bytes(size * sizeof(float))};
  const auto add = [&](MemoryPlace place, const PlacedArrayShape& shape, std::uint64_t count) {
    bytes.device += count * PlacedArray::device_bytes(place, shape);
    bytes.host += count * PlacedArray::host_bytes(place, shape);
  };
  add(master_place(options), f32_shape(blocks, options), 1);
  if (options.moments == HeadMoments::eight_bit) {
    add(options.place, codes_shape(blocks, options), 2);
    add(options.place, absmax_shape(blocks, options), 2);
    bytes.device += gpu::buffer_bytes(2 * 256 * sizeof(float));
  } else {
    add(options.place, f32_shape(blocks, options), 2);
  }
  if (options.path != ProductPath::f32) {
    bytes.device += gpu::buffer_bytes(size * size_of(operand_dtype(options.path))) + gpu::buffer_bytes(sizeof(float));
  }
  return bytes;
}

template <typename Use>
void TrainedHead::for_each_piece(Use&& use) const {
  const std::uint32_t step = options_.place == MemoryPlace::device ? blocks_ : options_.piece_blocks;
  for (std::uint32_t first = 0; first < blocks_; first += step) use(first, std::min(blocks_, first + step));
}

gpu::Tensor TrainedHead::master_piece(std::uint32_t first, std::uint32_t last) const {
  return master_.get(device_, first, last).view({elements_before(last) - elements_before(first)});
}

void TrainedHead::update(gpu::Recorder& recorder, const gpu::Tensor& norm_and_factor, const AdamWRule& rule) {
  for_each_piece([&](std::uint32_t first, std::uint32_t last) {
    update_piece(recorder, norm_and_factor, rule, first, last);
  });
  ++version_;
}

void TrainedHead::settle() {
  if (!has_copy()) return;
  const float largest = device_.read<float>(largest_)[0];
  // The copy was written under the scale of before, which still holds unless the largest has passed a power of two.
  if (product_.scale * top_of_f16(largest) != 1.0f) copy_all(largest);
}

void TrainedHead::update_piece(gpu::Recorder& recorder, const gpu::Tensor& norm_and_factor, const AdamWRule& rule,
                               std::uint32_t first, std::uint32_t last) {
  const gpu::Tensor master = master_piece(first, last);
  record_adamw(recorder, master, norm_and_factor, rule, first, last);
  if (has_copy()) {
    record(recorder, Largest{.x = master, .largest = largest_, .accumulate = first > 0});
    copy_piece(recorder, master, first);
  }
  if (options_.place == MemoryPlace::device) return;
  recorder.submit();
  master_.put_back(device_, first, last);
  for_each_moment_array(*this, [&](auto&&, PlacedArray& array, auto&&...) { array.put_back(device_, first, last); });
}

void TrainedHead::record_adamw(gpu::Recorder& recorder, const gpu::Tensor& master, const gpu::Tensor& norm_and_factor,
                               const AdamWRule& rule, std::uint32_t first, std::uint32_t last) {
  const auto count = static_cast<std::uint32_t>(master.size());
  const gpu::Tensor gradient = gradient_.part(elements_before(first), {count});
  const gpu::Tensor m = first_.values.get(device_, first, last), v = second_.values.get(device_, first, last);
  if (options_.moments == HeadMoments::f32) {
    record(recorder, AdamW{.weights = master, .gradients = gradient, .first_moment = m.view({count}),
                           .second_moment = v.view({count}), .norm_and_factor = norm_and_factor, .rule = rule});
    return;
  }
  record(recorder, AdamW8Bit{.weights = master, .gradients = gradient,
                             .moments = {.first_codes = m.view({last - first, moment_block / 4}),
                                         .second_codes = v.view({last - first, moment_block / 4}),
                                         .first_absmax = first_.absmax.get(device_, first, last),
                                         .second_absmax = second_.absmax.get(device_, first, last)},
                             .maps = maps_, .norm_and_factor = norm_and_factor, .rule = rule});
}

void TrainedHead::copy_piece(gpu::Recorder& recorder, const gpu::Tensor& master, std::uint32_t first) const {
  const auto count = static_cast<std::uint32_t>(master.size());
  record(recorder, Convert{.x = master, .y = product_.data.part(elements_before(first), {count}),
                           .factor = 1.0f / product_.scale});
}

void TrainedHead::copy_all(float largest) {
  gpu::Recorder recorder(device_);
  product_.scale = 1.0f / top_of_f16(largest);
  for_each_piece([&](std::uint32_t first, std::uint32_t last) {
    copy_piece(recorder, master_piece(first, last), first);
    recorder.submit();
  });
}

MatrixSource TrainedHead::values() const { return f32_source(master_); }
MatrixSource TrainedHead::first_moment() const { return moment_source(first_, dynamic_map()); }
MatrixSource TrainedHead::second_moment() const { return moment_source(second_, unsigned_dynamic_map()); }

MatrixSource TrainedHead::f32_source(const PlacedArray& array) const {
  return {.rows = rows_, .columns = columns_, .read = [this, &array](const PieceSink& sink) {
            array.read(device_, std::uint64_t{size_} * sizeof(float),
                       [&](std::span<const std::byte> bytes, std::uint64_t first) {
                         sink(as_floats(bytes), first / sizeof(float));
                       });
          }};
}

MatrixSource TrainedHead::moment_source(const Moment& moment, const std::array<float, 256>& map) const {
  if (options_.moments == HeadMoments::f32) return f32_source(moment.values);
  return {.rows = rows_, .columns = columns_, .read = [this, &moment, &map](const PieceSink& sink) {
            std::vector<float> absmax, values;
            moment.absmax.read(device_, std::uint64_t{blocks_} * sizeof(float),
                               [&](std::span<const std::byte> bytes, std::uint64_t) {
                                 const auto piece = as_floats(bytes);
                                 absmax.insert(absmax.end(), piece.begin(), piece.end());
                               });
            moment.values.read(device_, size_, [&](std::span<const std::byte> codes, std::uint64_t first) {
              values.resize(codes.size());
              for (std::size_t i = 0; i < codes.size(); ++i) {
                values[i] = map[std::to_integer<std::size_t>(codes[i])] * absmax[(first + i) / moment_block];
              }
              sink(values, first);
            });
          }};
}

template <typename Self, typename Visit>
void TrainedHead::for_each_moment_array(Self& self, Visit&& visit) {
  const bool in_codes = self.options_.moments == HeadMoments::eight_bit;
  const auto arrays = [&](std::string_view prefix, auto& moment) {
    const std::string name = fmt::format("{}.{}", prefix, peft_head_tensor_name);
    const std::uint64_t size = self.size_;
    visit(name, moment.values, in_codes ? DType::u8 : DType::f32, in_codes ? size : size * sizeof(float));
    if (in_codes) visit(name + ".absmax", moment.absmax, DType::f32, std::uint64_t{self.blocks_} * sizeof(float));
  };
  arrays("exp_avg", self.first_);
  arrays("exp_avg_sq", self.second_);
}

std::vector<TensorSpec> TrainedHead::moment_specs() const {
  std::vector<TensorSpec> specs;
  for_each_moment_array(*this, [&](const std::string& name, const PlacedArray&, DType dtype, std::uint64_t bytes) {
    specs.push_back({.name = name, .dtype = dtype, .shape = {static_cast<std::int64_t>(bytes / size_of(dtype))}});
  });
  return specs;
}

void TrainedHead::read_moment(const std::string& wanted, const std::function<void(std::span<const std::byte>)>& sink) const {
  for_each_moment_array(*this, [&](const std::string& name, const PlacedArray& array, DType, std::uint64_t bytes) {
    if (name == wanted) array.read(device_, bytes, [&](std::span<const std::byte> piece, std::uint64_t) { sink(piece); });
  });
}

void TrainedHead::load_moments(const SafetensorsFile& file) {
  constexpr std::uint64_t piece_bytes = std::uint64_t{16} << 20;
  for_each_moment_array(*this, [&](const std::string& name, const PlacedArray&, DType dtype, std::uint64_t bytes) {
    const TensorInfo& tensor = file.at(name);
    check<DataError>(tensor.dtype == dtype && tensor.bytes == bytes, file.path().string(),
                     "The tensor {} is {} of {} bytes; the head has {} bytes of another type or number there.", name,
                     tensor.dtype_name, tensor.bytes, bytes);
  });
  for_each_moment_array(*this, [&](const std::string& name, PlacedArray& array, DType, std::uint64_t bytes) {
    const TensorInfo& tensor = file.at(name);
    std::vector<std::byte> piece;
    for (std::uint64_t first = 0; first < bytes; first += piece_bytes) {
      piece.resize(std::min(piece_bytes, bytes - first));
      file.read(tensor, first, piece);
      array.write(device_, first, piece);
    }
  });
}

std::string TrainedHead::describe_element(std::uint64_t element) const {
  if (element >= size_) return {};
  return fmt::format(" in the gradient of lm_head, at entry {} of the vocabulary", element / columns_);
}

}  // namespace nibble
