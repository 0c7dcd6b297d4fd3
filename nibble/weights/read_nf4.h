#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "nibble/weights/bnb.h"

namespace nibble {

// A matrix in NF4, or in FP4 where bitsandbytes has it so: blocks of 64, the first value of a pair in the high half of its byte.
struct Nf4Values {
  std::span<const std::uint8_t> packed;  // nf4_packed_bytes(numel)
  std::span<const float> absmax;         // nf4_blocks(numel)
  CodeBook codes = CodeBook::nf4;
};

struct Nf4ReaderOptions {
  std::size_t buffers = 2;  // matrices in NF4 that are held at a time: the one given out last, and those being made
  unsigned threads = 0;     // 0: as many as the processor has; the result is the same for any number
};

// A tensor to be had in NF4: quantised here, or by bitsandbytes already.
struct Nf4Source {
  Checkpoint::Entry entry;
  std::optional<BnbMatrix> bnb = {};

  std::size_t count() const { return bnb ? std::size_t{bnb->rows} * bnb->columns : entry.tensor->numel(); }
};

// Reads tensors and quantises those that are F32, F16 or BF16, in the order given. Its threads share out pieces of about a megabyte,
// also of the matrices that follow, while the caller uploads the last one; a tensor itself is never held.
class Nf4Reader {
 public:
  // The checkpoint must outlive it. DataError names file and tensor where the type is another.
  explicit Nf4Reader(const std::vector<Nf4Source>& sources, const Nf4ReaderOptions& options = {});
  Nf4Reader(const Nf4Reader&) = delete;
  Nf4Reader& operator=(const Nf4Reader&) = delete;

  // The next tensor; holds until the following call. DataError names file and tensor where it cannot be read, and the index too
  // where a value is not finite.
  Nf4Values next();

  // Seconds that all threads together have spent so far.
  struct Times {
    double read = 0, quantize = 0;
  };
  Times times() const;

 private:
  struct Matrix {
    Checkpoint::Entry entry;
    std::optional<BnbMatrix> bnb;
    std::string name;  // for errors
    std::size_t count = 0, pieces = 0;
    std::size_t begun = 0, done = 0;  // pieces
    std::exception_ptr error;         // of the piece nearest to the beginning
    std::size_t error_piece = 0;
  };
  struct Buffer {
    std::unique_ptr<std::uint8_t[]> packed;
    std::unique_ptr<float[]> absmax;
  };

  void work(const std::stop_token& stop);
  Times quantize(const Matrix& matrix, std::size_t piece, const Buffer& buffer, std::span<std::byte> room) const;

  std::vector<Matrix> matrices_;
  std::vector<Buffer> buffers_;
  mutable std::mutex mutex_;
  std::condition_variable_any may_begin_, done_;
  std::size_t beginning_ = 0;  // the matrix whose pieces are given out
  std::size_t given_ = 0;      // matrices that next() has returned
  std::size_t released_ = 0;   // of these, whose buffers may be used again
  Times times_;
  std::vector<std::jthread> threads_;  // last, so that they end first
};

}  // namespace nibble
