#include "nibble/kernels/qk_norm_rope.h"

#include "nibble/base/error.h"
#include "nibble/kernels/row_kernel.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace nibble {
namespace {

constexpr std::string_view in_qk_norm_rope = "qk_norm_rope";

struct QkNormRopeParams {
  std::uint32_t tokens, first_token, heads, first_head, all_heads, row_length, first_vector, capacity, row_offset;
  float eps;
};

// What forward and backward share: the two layouts and what lies between them.
struct Layouts {
  Tensor token_major;  // (T, at least first_column + H * D)
  Tensor head_major;   // (H, capacity, D)
  Tensor weight, position, table;
  std::uint32_t row_offset, first_column;
  bool scaled;
  float eps = 0;

  std::uint32_t tokens() const { return token_major.dim(0); }
  std::uint32_t heads() const { return head_major.dim(0); }
  std::uint32_t capacity() const { return head_major.dim(1); }
  std::uint32_t head_dim() const { return head_major.dim(2); }
};

void check_shapes(const Layouts& op) {
  check(op.head_major.rank() == 3 && op.head_dim() % 8 == 0 && op.head_dim() > 0, in_qk_norm_rope,
        "Head-major rows of shape {} were given; (heads, capacity, a multiple of 8) is needed.",
        op.head_major.shape_text());
  check(op.token_major.rank() == 2 && op.token_major.dim(1) % 4 == 0 && op.first_column % 4 == 0 &&
            op.token_major.dim(1) >= op.first_column + std::uint64_t{op.heads()} * op.head_dim(),
        in_qk_norm_rope, "Token-major rows of shape {}, read from column {} on, do not match head-major ones of shape {}.",
        op.token_major.shape_text(), op.first_column, op.head_major.shape_text());
  check(op.tokens() <= op.capacity() && op.row_offset <= op.capacity() - op.tokens(), in_qk_norm_rope,
        "{} rows from row {} on do not fit into a capacity of {}.", op.tokens(), op.row_offset, op.capacity());
  check(!op.weight || op.weight.size() == op.head_dim(), in_qk_norm_rope, "A norm weight of length {} was given for heads of {}.",
        op.weight.size(), op.head_dim());
  check(static_cast<bool>(op.position) == static_cast<bool>(op.table), in_qk_norm_rope,
        "Positions and table must be given together.");
  check(!op.weight || op.table, in_qk_norm_rope, "A norm without rotation was asked for.");
  const bool table_fits = op.table.rank() == 3 && op.table.dim(1) == op.head_dim() / 2;
  check(!op.table || (op.position.size() >= op.tokens() && table_fits), in_qk_norm_rope,
        "{} positions and a table of shape {} do not match {} tokens and heads of {}.", op.position.size(),
        op.table.shape_text(), op.tokens(), op.head_dim());
}

// The software adapter is fastest without workgroup memory; elsewhere 16 lanes make the loads of a row coalesce.
std::uint32_t lanes_of(const gpu::Device& device, std::uint32_t head_dim) {
  if (device.info().type == gpu::AdapterType::software) return 1;
  return std::min(16u, std::bit_floor(head_dim / 8));
}

gpu::Kernel kernel_of(gpu::Device& device, const Layouts& op, std::string_view direction, std::uint32_t workgroup) {
  gpu::Prelude prelude;
  prelude.constant("HEAD_DIM", op.head_dim()).constant("WORKGROUP", workgroup);
  prelude.constant("LANES", lanes_of(device, op.head_dim()));
  if (op.scaled) prelude.enable("f16");
  prelude.constant("SCALED", op.scaled).alias("X", op.scaled ? "vec4<f16>" : "vec4<f32>");
  const std::string_view kind = op.weight ? "norm" : op.table ? "rope" : "copy";
  return kernel(device, "qk_norm_rope", prelude, {"grid"}, fmt::format("{}_{}", direction, kind));
}

// Calls `dispatch(kernel, token-major slice, head-major slice, params, grid, work)` for slices that can be bound.
template <typename Dispatch>
void for_slices(gpu::Device& device, const Layouts& op, std::string_view direction, const Dispatch& dispatch) {
  check_shapes(op);
  constexpr std::uint32_t workgroup = 64;
  const auto entry = kernel_of(device, op, direction, workgroup);
  const std::uint32_t rows_per_group = workgroup / lanes_of(device, op.head_dim());
  const std::uint64_t head_bytes = std::uint64_t{op.capacity()} * op.head_dim() * 4;
  for (const auto heads : gpu::binding_slices(device, op.heads(), {head_bytes})) {
    const std::uint64_t row_bytes = std::uint64_t{op.token_major.dim(1)} * 4;
    for (const auto tokens : gpu::binding_slices(device, op.tokens(), {row_bytes, sizeof(float)})) {
      const QkNormRopeParams params{.tokens = tokens.end - tokens.begin,
                          .first_token = tokens.begin,
                          .heads = heads.end - heads.begin,
                          .first_head = heads.begin,
                          .all_heads = op.heads(),
                          .row_length = op.token_major.dim(1) / 4,
                          .first_vector = op.first_column / 4,
                          .capacity = op.capacity(),
                          .row_offset = op.row_offset,
                          .eps = op.eps};
      const std::uint64_t rows = std::uint64_t{params.tokens} * params.heads;
      const double values = static_cast<double>(rows) * op.head_dim();
      dispatch(entry, op.token_major.rows(tokens.begin, tokens.end), op.head_major.rows(heads.begin, heads.end), params,
               gpu::linear_grid(device, (rows + rows_per_group - 1) / rows_per_group),
               gpu::Work{.bytes = 8 * values, .flops = 8 * values});
    }
  }
}

}  // namespace

namespace {

// Its scales for the tokens, or a tensor that stands in.
Tensor scales_of(const Operand& x, const QkNormRopeParams& params, const Tensor& other) {
  return is_scaled(x) ? x.scale.rows(params.first_token, params.first_token + params.tokens) : other;
}

}  // namespace

void record(gpu::Recorder& recorder, const QkNormRope& op) {
  check(!op.weight || (op.inv_rms && op.inv_rms.size() >= std::uint64_t{op.x.data.dim(0)} * op.y.dim(0)), in_qk_norm_rope,
        "inv_rms must have an element for each token and head.");
  const Layouts layouts{op.x.data,     op.y,            op.weight,       op.position, op.table,
                        op.row_offset, op.first_column, is_scaled(op.x), op.eps};
  for_slices(recorder.device(), layouts, "forward", [&](const gpu::Kernel& entry, const Tensor& x, const Tensor& y,
                                                        const QkNormRopeParams& params, gpu::Grid grid, gpu::Work work) {
    using gpu::read, gpu::write;
    const Tensor scale = scales_of(op.x, params, x);
    if (op.weight) {
      recorder.dispatch(entry,
                        {read(x), write(y), read(scale), read(op.position), read(op.table), read(op.weight),
                         write(op.inv_rms)},
                        params, grid, work);
    } else if (op.table) {
      recorder.dispatch(entry, {read(x), write(y), read(scale), read(op.position), read(op.table)}, params, grid, work);
    } else {
      recorder.dispatch(entry, {read(x), write(y), read(scale)}, params, grid, work);
    }
  });
}

void record(gpu::Recorder& recorder, const QkNormRopeBackward& op) {
  check(!op.weight || (op.inv_rms && op.x.data && op.x.data.size() == op.dx.size() &&
                       op.inv_rms.size() >= std::uint64_t{op.dx.dim(0)} * op.dy.dim(0)),
        in_qk_norm_rope, "The backward of a norm needs x and an inv_rms for each token and head.");
  const Layouts layouts{op.dx, op.dy, op.weight, op.position, op.table, op.row_offset, op.first_column, is_scaled(op.x)};
  for_slices(recorder.device(), layouts, "backward", [&](const gpu::Kernel& entry, const Tensor& dx, const Tensor& dy,
                                                         const QkNormRopeParams& params, gpu::Grid grid, gpu::Work work) {
    using gpu::read, gpu::read_write;
    const Tensor scale = scales_of(op.x, params, dy);
    // Other columns of dx stay.
    if (op.weight) {
      const Tensor x = op.x.data.rows(params.first_token, params.first_token + params.tokens);
      recorder.dispatch(entry,
                        {read(dy), read_write(dx), read(scale), read(op.position), read(op.table), read(op.weight),
                         read(op.inv_rms), read(x)},
                        params, grid, work);
    } else if (op.table) {
      recorder.dispatch(entry, {read(dy), read_write(dx), read(scale), read(op.position), read(op.table)}, params, grid, work);
    } else {
      recorder.dispatch(entry, {read(dy), read_write(dx), read(scale)}, params, grid, work);
    }
  });
}

void record(gpu::Recorder& recorder, const ToHeads& op) {
  record(recorder, QkNormRope{.x = op.x, .y = op.y, .row_offset = op.row_offset, .first_column = op.first_column});
}

void record(gpu::Recorder& recorder, const FromHeads& op) {
  record(recorder, QkNormRopeBackward{.dy = op.dy, .dx = op.dx, .row_offset = op.row_offset, .first_column = op.first_column});
}

std::vector<float> rope_frequencies(std::uint32_t head_dim, double theta) {
  std::vector<float> frequencies(head_dim / 2);
  for (std::uint32_t i = 0; i < head_dim / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
    frequencies[i] = 1.0f / static_cast<float>(std::pow(theta, double{exponent}));
  }
  return frequencies;
}

std::vector<float> rope_table(std::uint32_t positions, std::span<const float> frequencies) {
  std::vector<float> table;
  table.reserve(2 * std::size_t{positions} * frequencies.size());
  for (std::uint32_t position = 0; position < positions; ++position) {
    for (const float frequency : frequencies) {
      const float angle = static_cast<float>(position) * frequency;
      table.push_back(static_cast<float>(std::cos(double{angle})));
      table.push_back(static_cast<float>(std::sin(double{angle})));
    }
  }
  return table;
}

std::vector<float> rope_table(std::uint32_t positions, std::uint32_t head_dim, double theta) {
  return rope_table(positions, rope_frequencies(head_dim, theta));
}

}  // namespace nibble
