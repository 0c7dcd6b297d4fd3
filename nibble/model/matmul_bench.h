#pragma once

#include "nibble/kernels/nf4.h"
#include "nibble/kernels/product_matrix.h"
#include "nibble/weights/joint.h"

#include <cstdint>
#include <string>
#include <vector>

namespace nibble {

// A product of a training step at a model's sizes over made-up values, to verify and time by itself.
struct MatmulProblem {
  std::optional<Joint> joint;  // empty: the head
  MatrixLayout layout = MatrixLayout::nt;
  std::uint32_t rows = 512;
  std::uint32_t lora_rank = 16;  // adapters as the product takes them along; 0: none, as for the head
};

// "gate_up"
std::string_view name_of(const MatmulProblem& problem);

class MatmulBench {
 public:
  MatmulBench(gpu::Device& device, const ModelConfig& config, ProductPath path, const MatmulProblem& problem);

  const MatrixShape& shape() const { return shape_; }
  double flops() const { return 2.0 * shape_.rows * shape_.columns * shape_.inner; }
  // Weight, input and result moved once.
  double bytes() const;

  bool has_tiles() const { return static_cast<bool>(tiled_.data); }
  // What a layer would take, with the weight in rows or in tiles.
  MatrixPlan own_plan(bool tiled) const;
  // Whether no block of the tile crosses a projection's end, which would mix up adapters.
  bool allows(const MatrixTile& tile) const;
  // Plans come from matrix_plan or candidates; other paths have none. With a direct tile the weight in tiles is read.
  void record(gpu::Recorder& recorder, const MatrixPlan* plan);
  // Whether the weight is decoded before the product in a step: all but the head.
  bool decodes() const { return problem_.joint.has_value(); }
  // That decoding; nothing where there is none.
  void record_decoding(gpu::Recorder& recorder, bool tiled);

  // Runs it once over a cleared result. The error is the 2-norm of the difference from sums in double over that of the sums, at
  // 16 places of some rows.
  double error(const MatrixPlan* plan);
  // The same from what the last call of `error` left in these rows, all of their columns.
  double difference(const MatrixPlan& plan);
  // f32 sums of K terms, each rounded at 2^-23 of what they have come to; by matrix units, which cut every addition to an
  // accumulator towards zero (Fasi et al. 2021), half of that for each, all to one side; and where it is so, the result's
  // rounding to f16.
  double allowed_error() const;

 private:
  struct Host {
    std::vector<std::uint32_t> rows, columns;
    std::vector<double> sums;  // of each row, at its columns
  };

  std::span<const std::uint32_t> ends() const;  // that no block may cross
  void make_weight(gpu::Device& device, std::uint32_t outputs, std::uint32_t inputs);
  void make_adapters(gpu::Device& device, const ModelConfig& config);
  void make_result(gpu::Device& device);
  double weight_at(std::span<const float> weight, std::uint32_t column, std::uint32_t i) const;
  void find_sums();
  std::vector<float> row_of_result(std::uint32_t row);
  void run(const MatrixPlan* plan);

  gpu::Device& device_;
  ProductPath path_;
  MatmulProblem problem_;
  MatrixShape shape_;
  std::uint32_t outputs_ = 0, inputs_ = 0;  // of the weight
  Operand x_;
  Nf4 nf4_;
  Weight weight_, tiled_;
  LoraTail lora_ = {};
  Tensor y_, y_scale_, plus_, scratch_;
  Host host_;
  std::vector<std::vector<float>> reference_;  // rows of the result that `error` looked at
};

// Tiles worth trying on a device for products over weights in rows or in tiles, the adapter's own first.
std::vector<MatrixTile> candidate_tiles(const gpu::AdapterInfo& info, bool tiled);

// "128x128x64 by 64x64, 2 splits of the last wave", with "direct" where the weight lies in tiles.
std::string describe(const MatrixPlan& plan);

}  // namespace nibble
