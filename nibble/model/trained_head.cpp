#include "nibble/model/trained_head.h"

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

PlacedArrayShape master_shape(std::uint32_t blocks, const TrainedHeadOptions& options) {
  return {.blocks = blocks, .block_values = moment_block, .piece_blocks = options.piece_blocks, .record_copies = options.record_copies};
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
      master_(device, master_place(options), master_shape(blocks_, options), "head master"),
      moments_(device, size_, options.moments_options(), "head moment") {
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

PlacedArray::Bytes TrainedHead::bytes(const gpu::AdapterInfo& info, const ModelConfig& config, const TrainedHeadOptions& options) {
  const std::uint64_t size = std::uint64_t{config.vocab_size} * config.hidden_size;
  const PlacedArray::Bytes master = PlacedArray::bytes(info, master_place(options), master_shape(blocks_of(size), options));
  const PlacedArray::Bytes moments = Moments::bytes(info, size, options.moments_options());
  PlacedArray::Bytes bytes{.device = gpu::buffer_bytes(size * sizeof(float)) + master.device + moments.device,
                           .host = master.host + moments.host};
  if (options.path != ProductPath::f32) {
    bytes.device += gpu::buffer_bytes(size * size_of(operand_dtype(options.path))) + gpu::buffer_bytes(sizeof(float));
  }
  return bytes;
}

gpu::Tensor TrainedHead::master_piece(std::uint32_t first, std::uint32_t last) const {
  return master_.at(first, last).view({elements_before(last) - elements_before(first)});
}

void TrainedHead::update(gpu::Recorder& recorder, const gpu::Tensor& norm_and_factor, const AdamWRule& rule) {
  std::vector<PlacedArray*> arrays = moments_.arrays();
  arrays.push_back(&master_);
  for_each_piece(recorder, arrays, 0, blocks_, [&](std::uint32_t first, std::uint32_t last) {
    const gpu::Tensor master = master_piece(first, last);
    const std::uint32_t begin = elements_before(first);
    moments_.record_kernels(recorder, {.weights = master,
                                       .gradients = gradient_.part(begin, {static_cast<std::uint32_t>(master.size())}),
                                       .norm_and_factor = norm_and_factor, .rule = rule, .first = begin});
    if (!has_copy()) return;
    record(recorder, Largest{.x = master, .largest = largest_, .accumulate = first > 0});
    copy_piece(recorder, first, last);
  });
  ++version_;
}

void TrainedHead::settle() {
  if (!has_copy()) return;
  const float largest = device_.read<float>(largest_)[0];
  // The copy was written under the scale of before, which still holds unless the largest has passed a power of two.
  if (product_.scale * top_of_f16(largest) != 1.0f) copy_all(largest);
}

void TrainedHead::copy_piece(gpu::Recorder& recorder, std::uint32_t first, std::uint32_t last) const {
  const gpu::Tensor master = master_piece(first, last);
  record(recorder, Convert{.x = master, .y = product_.data.part(elements_before(first), {static_cast<std::uint32_t>(master.size())}),
                           .factor = 1.0f / product_.scale});
}

void TrainedHead::copy_all(float largest) {
  gpu::Recorder recorder(device_);
  product_.scale = 1.0f / top_of_f16(largest);
  const std::uint32_t step = std::min(blocks_, master_.piece_blocks());
  for (std::uint32_t first = 0; first < blocks_; first += step) {
    const std::uint32_t last = std::min(blocks_, first + step);
    master_.bring(recorder, first, last);
    copy_piece(recorder, first, last);
    recorder.submit();  // before a copy that is not recorded takes the room
  }
}

MatrixSource TrainedHead::values() const {
  return {.rows = rows_, .columns = columns_, .read = [this](const PieceSink& sink) {
            master_.read(device_, 0, std::uint64_t{size_} * sizeof(float), [&](std::span<const std::byte> bytes, std::uint64_t first) {
              sink(as_floats(bytes), first / sizeof(float));
            });
          }};
}

MatrixSource TrainedHead::moment_source(Moments::Which which) const {
  return {.rows = rows_, .columns = columns_, .read = [this, which](const PieceSink& sink) { moments_.read_values(which, sink); }};
}

MatrixSource TrainedHead::first_moment() const { return moment_source(Moments::Which::first); }
MatrixSource TrainedHead::second_moment() const { return moment_source(Moments::Which::second); }

MomentPart TrainedHead::moment_part() const { return {.name = std::string(peft_head_tensor_name), .first = 0, .size = size_}; }

std::string TrainedHead::describe_element(std::uint64_t element) const {
  if (element >= size_) return {};
  return fmt::format(" in the gradient of lm_head, at entry {} of the vocabulary", element / columns_);
}

}  // namespace nibble
