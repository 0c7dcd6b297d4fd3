#pragma once

#include "nibble/io/checkpoint.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

namespace nibble {

// Takes values of a flattened matrix and the index of the first of them.
using PieceSink = std::function<void(std::span<const float> values, std::uint64_t first)>;

// Where the values of a matrix (rows, columns) come from, as f32. `read` gives them in order, a piece at a time, so that a
// matrix of any size is never whole in host memory; it may be called again.
struct MatrixSource {
  std::uint32_t rows = 0, columns = 0;
  std::function<void(const PieceSink& sink)> read;

  std::uint64_t size() const { return std::uint64_t{rows} * columns; }
};

// A tensor (F32, F16 or BF16) in pieces. DataError names file and tensor where it cannot be read.
void read_pieces(const TensorFile& file, const TensorInfo& tensor, const PieceSink& sink);

// A matrix of a file that the source keeps open, or of a checkpoint that must outlive it. DataError names file, tensor and
// index where a value is not finite.
MatrixSource source_of(std::shared_ptr<const TensorFile> file, const TensorInfo& tensor);
MatrixSource source_of(const Checkpoint::Entry& entry);

}  // namespace nibble
