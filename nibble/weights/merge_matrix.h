#pragma once

#include <functional>

#include "nibble/weights/bnb.h"
#include "nibble/weights/peft.h"

// Private to weights: the numbers of a merge.
namespace nibble {

// scaling * B A. One of DoRA, which brings rows of the sum to its magnitudes, stands alone.
struct MergeTerm {
  const LoraMatrices* lora = nullptr;
  double scaling = 0;
};

// A row-major matrix W of a checkpoint, and what is added to it.
struct MergeMatrix {
  Checkpoint::Entry base;
  std::optional<BnbMatrix> bnb = {};   // W is what this restores, where the base is quantised
  bool through_nf4 = false;            // W is what it becomes in NF4; not with bnb
  std::vector<MergeTerm> terms = {};   // their sum is added
  DType dtype = DType::f32;            // of the result
};

// Squared 2-norms over the matrices that have an adapter: of W as stored, of the sum of the terms, and of what NF4 changes in
// W (nothing where the base is quantised).
struct MergeNorms {
  double weights = 0, update = 0, nf4_error = 0;

  MergeNorms& operator+=(const MergeNorms& other);
};

using TakeBytes = std::function<void(std::span<const std::byte> bytes)>;

// Computes the result in f32 on all cores, some megabytes of rows at a time, and gives its bytes to `take` in order;
// the same bytes for any number of cores. DataError names the tensor and index where the result is not finite in its
// type.
MergeNorms merge_matrix(const MergeMatrix& matrix, const TakeBytes& take);

// The same for a matrix to which nothing is added.
void convert_matrix(const MatrixSource& source, DType dtype, std::string_view name, const TakeBytes& take);

// Values in f32, rounded to nearest even where `dtype` is f16 or bf16. DataError names tensor and index of a value that
// is not finite there; `first_index` is that of the first value.
void convert_from_f32(std::span<const float> values, DType dtype, std::span<std::byte> out, std::string_view name,
                      std::size_t first_index);

}  // namespace nibble
