#include "nibble/weights/read_nf4.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "nibble/base/error.h"
#include "nibble/quant/nf4.h"

namespace nibble {
namespace {

// A piece stays in the second-level cache between reading and quantising. In values, and whole blocks.
constexpr std::size_t quantised_piece = std::size_t{1} << 18;

using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

}  // namespace

Nf4Reader::Nf4Reader(const std::vector<Nf4Source>& sources, const Nf4ReaderOptions& options) {
  std::size_t largest = 0, pieces = 0;
  for (const Nf4Source& source : sources) {
    const TensorInfo& info = *source.entry.tensor;
    Matrix matrix{.entry = source.entry, .bnb = source.bnb,
                  .name = fmt::format("{}: {}", source.entry.file->path().string(), info.name),
                  .count = source.count()};
    check<DataError>(source.bnb || info.dtype == DType::f32 || info.dtype == DType::f16 || info.dtype == DType::bf16, matrix.name,
                     "The tensor is {}; F32, F16 and BF16 can be quantised.", info.dtype_name);
    matrix.pieces = source.bnb ? 1 : matrix.count / quantised_piece + (matrix.count % quantised_piece != 0 ? 1 : 0);
    largest = std::max(largest, matrix.count);
    pieces += matrix.pieces;
    matrices_.push_back(std::move(matrix));
  }
  buffers_.resize(std::clamp<std::size_t>(options.buffers, 1, std::max<std::size_t>(1, matrices_.size())));
  for (Buffer& buffer : buffers_) {
    buffer.packed = std::make_unique_for_overwrite<std::uint8_t[]>(nf4_packed_bytes(largest));
    buffer.absmax = std::make_unique_for_overwrite<float[]>(nf4_blocks(largest));
  }
  const std::size_t wanted = options.threads != 0 ? options.threads : std::max(1u, std::thread::hardware_concurrency());
  for (std::size_t i = 0; i < std::min(wanted, pieces); ++i) {
    threads_.emplace_back([this](const std::stop_token& stop) { work(stop); });
  }
}

void Nf4Reader::work(const std::stop_token& stop) {
  std::vector<std::byte> room;
  std::unique_lock lock(mutex_);
  while (true) {
    const auto ready = [this] {
      while (beginning_ < matrices_.size() && matrices_[beginning_].begun == matrices_[beginning_].pieces) ++beginning_;
      return beginning_ == matrices_.size() || beginning_ < released_ + buffers_.size();
    };
    if (!may_begin_.wait(lock, stop, ready) || stop.stop_requested() || beginning_ == matrices_.size()) return;
    Matrix& matrix = matrices_[beginning_];
    const Buffer& buffer = buffers_[beginning_ % buffers_.size()];
    const std::size_t piece = matrix.begun++;
    lock.unlock();
    std::exception_ptr error;
    Times spent;
    try {
      if (!matrix.bnb) room.resize(quantised_piece * size_of(*matrix.entry.tensor->dtype));
      spent = quantize(matrix, piece, buffer, room);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    times_.read += spent.read;
    times_.quantize += spent.quantize;
    if (error && (!matrix.error || piece < matrix.error_piece)) {
      matrix.error = error;
      matrix.error_piece = piece;
    }
    if (++matrix.done == matrix.pieces) done_.notify_all();
  }
}

Nf4Reader::Times Nf4Reader::quantize(const Matrix& matrix, std::size_t piece, const Buffer& buffer,
                                     std::span<std::byte> room) const {
  if (matrix.bnb) {
    const auto begin = Clock::now();
    read_bnb(*matrix.bnb, 0, {buffer.packed.get(), nf4_packed_bytes(matrix.count)}, {buffer.absmax.get(), nf4_blocks(matrix.count)});
    return {.read = seconds_between(begin, Clock::now()), .quantize = 0};
  }
  const DType dtype = *matrix.entry.tensor->dtype;
  const std::size_t first = piece * quantised_piece, count = std::min(quantised_piece, matrix.count - first);
  const auto bytes = room.first(count * size_of(dtype));
  const auto begin = Clock::now();
  matrix.entry.file->read(*matrix.entry.tensor, first * size_of(dtype), bytes);
  const auto read = Clock::now();
  nf4_quantize(dtype, bytes, {buffer.packed.get() + first / 2, nf4_packed_bytes(count)},
               {buffer.absmax.get() + first / nf4_block, nf4_blocks(count)},
               {.threads = 1, .name = matrix.name, .first_index = first});
  return {.read = seconds_between(begin, read), .quantize = seconds_between(read, Clock::now())};
}

Nf4Values Nf4Reader::next() {
  std::unique_lock lock(mutex_);
  check(given_ < matrices_.size(), "Nf4Reader", "All {} tensors have been given out.", matrices_.size());
  if (std::exchange(released_, given_) != given_) may_begin_.notify_all();
  const Matrix& matrix = matrices_[given_];
  done_.wait(lock, [&] { return matrix.done == matrix.pieces; });
  if (matrix.error) std::rethrow_exception(matrix.error);
  const Buffer& buffer = buffers_[given_++ % buffers_.size()];
  return {.packed = {buffer.packed.get(), nf4_packed_bytes(matrix.count)},
          .absmax = {buffer.absmax.get(), nf4_blocks(matrix.count)},
          .codes = matrix.bnb ? matrix.bnb->book : CodeBook::nf4};
}

Nf4Reader::Times Nf4Reader::times() const {
  const std::lock_guard lock(mutex_);
  return times_;
}

}  // namespace nibble
