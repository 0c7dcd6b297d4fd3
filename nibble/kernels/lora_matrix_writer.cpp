#include "nibble/kernels/lora_matrix_writer.h"

#include "nibble/base/error.h"

namespace nibble::detail {

void LoraWriter::for_vectors(const Stage& stage, const VectorBody& f) const {
  const std::uint32_t count = stage.rows * stage.columns;
  for (std::uint32_t i = 0; i * t_.invocations() < count; ++i) {
    auto at = fmt::format("(index + {}u)", i * t_.invocations());
    if ((i + 1) * t_.invocations() > count) at = fmt::format("min{}, {}u)", at.substr(0, at.size() - 1), count - 1);
    f(i, fmt::format("{} / {}u", at, stage.columns), fmt::format("{} % {}u", at, stage.columns));
  }
}

std::string LoraWriter::if_own(const Stage& stage, std::uint32_t i) const {
  const std::uint32_t count = stage.rows * stage.columns;
  if ((i + 1) * t_.invocations() <= count) return {};
  return fmt::format("if (index + {}u < {}u) ", i * t_.invocations(), count);
}

void LoraWriter::multiply() {
  const Stage sx = wide(), sw = narrow();
  line("    let share = subgroup * {}u;", columns() ? share() / lane : share() * sx.stride());
  for (std::uint32_t k = 0; k < t_.step; k += t_.matrix.k) {
    line("    {{");
    for (std::uint32_t i = 0; i < down(); ++i) {
      if (columns()) {
        line("      let a{} = subgroupMatrixLoad<Left, col_major>(&tiles, {}u, {}u);", i,
             sw.base + k * sw.stride() + i * t_.matrix.m / lane, sw.stride());
      } else {
        line("      let a{} = subgroupMatrixLoad<Left, row_major>(&tiles, share + {}u, {}u);", i,
             i * t_.matrix.m * sx.stride() + k / lane, sx.stride());
      }
    }
    for (std::uint32_t j = 0; j < across(); ++j) {
      if (columns()) {
        line("      let b{} = subgroupMatrixLoad<Right, row_major>(&tiles, share + {}u, {}u);", j,
             k * sx.stride() + j * t_.matrix.n / lane, sx.stride());
      } else if (o_.pass == LoraPass::down) {
        line("      let b{} = subgroupMatrixLoad<Right, col_major>(&tiles, {}u, {}u);", j,
             sw.base + j * t_.matrix.n * sw.stride() + k / lane, sw.stride());
      } else {
        line("      let b{} = subgroupMatrixLoad<Right, row_major>(&tiles, {}u, {}u);", j,
             sw.base + k * sw.stride() + j * t_.matrix.n / lane, sw.stride());
      }
      for (std::uint32_t i = 0; i < down(); ++i) {
        line("      c{0}_{1} = subgroupMatrixMultiplyAccumulate(a{0}, b{1}, c{0}_{1});", i, j);
      }
    }
    line("    }}");
  }
}

void LoraWriter::keep_narrow() {
  const Stage kept = kept_narrow();
  for_vectors(kept, [&](auto, auto& row, auto& column) {
    line("  tiles[{} * {}u + {}] = select(vec4<u32>(), b[min(first * 8u + {}, place.y * 8u - 1u) * {}u + {}],", row,
         kept.stride(), column, row, kept.columns, column);
    line("      first * 8u + {} < place.y * 8u);", row);
  });
  line("  workgroupBarrier();");
  for (std::uint32_t k = 0; k < share(); k += t_.matrix.k) {
    for (std::uint32_t j = 0; j < o_.narrow; j += t_.matrix.n) {
      line("  let b{}_{} = subgroupMatrixLoad<Right, row_major>(&tiles, subgroup * {}u + {}u, {}u);", k / t_.matrix.k,
           j / t_.matrix.n, share() * kept.stride(), k * kept.stride() + j / lane, kept.stride());
    }
  }
  line("  workgroupBarrier();");
}

void LoraWriter::multiply_rows() {
  const Stage sx = wide();
  const std::uint32_t down = t_.step / t_.matrix.m, across = o_.narrow / t_.matrix.n;
  for (std::uint32_t i = 0; i < down; ++i)
    for (std::uint32_t j = 0; j < across; ++j) line("    var d{}_{} = Result();", i, j);
  for (std::uint32_t k = 0; k < share(); k += t_.matrix.k) {
    line("    {{");
    for (std::uint32_t i = 0; i < down; ++i) {
      line("      let a{} = subgroupMatrixLoad<Left, row_major>(&tiles, share + {}u, {}u);", i,
           i * t_.matrix.m * sx.stride() + k / lane, sx.stride());
      for (std::uint32_t j = 0; j < across; ++j) {
        line("      d{0}_{1} = subgroupMatrixMultiplyAccumulate(a{0}, b{2}_{1}, d{0}_{1});", i, j, k / t_.matrix.k);
      }
    }
    line("    }}");
  }
  for (std::uint32_t i = 0; i < down; ++i) {
    for (std::uint32_t j = 0; j < across; ++j) {
      line("    subgroupMatrixStore<row_major>(&shares, subgroup * {}u + {}u, d{}_{}, {}u);", t_.step * share_stride(),
           i * t_.matrix.m * share_stride() + j * t_.matrix.n, i, j, share_stride());
    }
  }
}

void LoraWriter::add_shares() {
  line("    let rows_to = params.rows_at + (block * params.padded_rows + begin + step * {}u) * {}u;", t_.step, o_.narrow);
  line("    for (var i = index; i < {}u; i += {}u) {{", t_.step * o_.narrow, t_.invocations());
  line("      let at = i / {0}u * {1}u + i % {0}u;", o_.narrow, share_stride());
  std::string sum = "shares[at]";
  for (std::uint32_t i = 1; i < t_.subgroups; ++i)
    sum += fmt::format(" + shares[at + {}u]", i * t_.step * share_stride());
  line("      sums[rows_to + i] = {};\n    }}", sum);
}

void LoraWriter::finish() {
  if (columns()) {
    line("  let to = part * params.part_size + (block * params.narrow_blocks + narrow_block) * {}u + subgroup * {}u;",
         o_.narrow * t_.block, share());
    line("  let stride = {}u;", t_.block);
  } else {
    line("  let stride = params.narrow_blocks * {}u;", o_.narrow);
    line("  let to = part * params.part_size + (first + subgroup * {}u) * stride + narrow_first;", share());
  }
  for_matrices([&](auto i, auto j) {
    line("  subgroupMatrixStore<row_major>(&sums, to + {}u * stride + {}u, c{}_{}, stride);", i * t_.matrix.m,
         j * t_.matrix.n, i, j);
  });
}

}  // namespace nibble::detail
