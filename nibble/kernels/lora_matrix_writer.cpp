#include "nibble/kernels/lora_matrix_writer.h"

#include "nibble/base/error.h"

namespace nibble::detail {

void LoraWriter::for_vectors(const Stage& stage, const VectorBody& f) const {
  check(stage.rows * stage.columns % t_.invocations() == 0, "lora_matrix",
        "{} invocations do not divide {} rows of {} vectors.", t_.invocations(), stage.rows, stage.columns);
  for (std::uint32_t i = 0; i < stage.rows * stage.columns / t_.invocations(); ++i) {
    const auto at = fmt::format("(index + {}u)", i * t_.invocations());
    f(i, fmt::format("{} / {}u", at, stage.columns), fmt::format("{} % {}u", at, stage.columns));
  }
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
    line("  tiles[{}u + {} * {}u + {}] = select(vec4<u32>(), b[min(first * 8u + {}, place.y * 8u - 1u) * {}u + {}],",
         kept.base, row, kept.stride(), column, row, kept.columns, column);
    line("      first * 8u + {} < place.y * 8u);", row);
  });
}

void LoraWriter::multiply_rows() {
  const Stage sx = wide(), kept = kept_narrow();
  const std::uint32_t rows = t_.step / t_.subgroups, across = o_.narrow / t_.matrix.n;
  const auto for_results = [&](auto f) {
    for (std::uint32_t i = 0; i < rows / t_.matrix.m; ++i)
      for (std::uint32_t j = 0; j < across; ++j) f(i, j);
  };
  line("    let rows = subgroup * {}u;", rows);
  for_results([&](auto i, auto j) { line("    var d{}_{} = Result();", i, j); });
  for (std::uint32_t k = 0; k < t_.block; k += t_.matrix.k) {
    line("    {{");
    for (std::uint32_t i = 0; i < rows / t_.matrix.m; ++i) {
      line("      let a{} = subgroupMatrixLoad<Left, row_major>(&tiles, rows * {}u + {}u, {}u);", i, sx.stride(),
           i * t_.matrix.m * sx.stride() + k / lane, sx.stride());
    }
    for (std::uint32_t j = 0; j < across; ++j) {
      line("      let b{} = subgroupMatrixLoad<Right, row_major>(&tiles, {}u, {}u);", j,
           kept.base + k * kept.stride() + j * t_.matrix.n / lane, kept.stride());
      for (std::uint32_t i = 0; i < rows / t_.matrix.m; ++i) {
        line("      d{0}_{1} = subgroupMatrixMultiplyAccumulate(a{0}, b{1}, d{0}_{1});", i, j);
      }
    }
    line("    }}");
  }
  line("    let rows_to = params.rows_at + (block * params.padded_rows + begin + step * {}u + rows) * {}u;", t_.step,
       o_.narrow);
  for_results([&](auto i, auto j) {
    line("    subgroupMatrixStore<row_major>(&sums, rows_to + {}u, d{}_{}, {}u);",
         i * t_.matrix.m * o_.narrow + j * t_.matrix.n, i, j, o_.narrow);
  });
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
