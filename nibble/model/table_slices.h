#pragma once

#include "nibble/gpu/cargo.h"
#include "nibble/kernels/operand.h"
#include "nibble/weights/table.h"

#include <array>
#include <cstdint>
#include <memory>

namespace nibble {

// A head slice by slice: of one that products cannot read as it is, because it lies in host memory or in codes, slices are brought
// to the device and decoded in turn; of another they are its rows.
class TableSlices {
 public:
  struct Options {
    DType dtype = DType::f32;    // that products read
    std::uint32_t rows = 0;      // of a slice, a multiple of 64; 0: by the size
    bool carried = false;        // products take the next slice along (gpu::Cargo)
  };
  TableSlices(gpu::Device& device, const Table& table, const Options& options);

  // Whether products cannot read a table as it is.
  static bool needed(TableForm form, bool on_host) { return on_host || form != TableForm::dense; }

  std::uint32_t count() const { return (table_.rows + rows_ - 1) / rows_; }
  gpu::RowRange range(std::uint32_t slice) const;
  // As products read it, until another is asked for. What is there already is not brought again. `next` is the one that is
  // likely to be asked for then; count() or more: none.
  Weight slice(gpu::Recorder& recorder, std::uint32_t slice, std::uint32_t next);

  // What it takes of the device's memory.
  static std::uint64_t bytes(std::uint32_t rows, std::uint32_t columns, TableForm form, bool on_host, const Options& options);
  // Rows of a slice of so many columns.
  static std::uint32_t rows_of(std::uint32_t table_rows, std::uint32_t columns, const Options& options);

 private:
  static constexpr std::uint32_t none = UINT32_MAX;
  // A slice in the table's own form, brought from host memory.
  struct Slot {
    gpu::Tensor data;  // u32: the values, or codes and block scales one after the other
    std::uint32_t holds = none;
  };
  // Of a slice: the values of a dense table or the codes, and the block scales of codes.
  struct Values {
    gpu::Tensor codes, scales;
  };
  Values in_table(std::uint32_t slice) const;
  Values in_slot(const Slot& slot, std::uint32_t slice) const;

  // `route`: see gpu::Cargo.
  void load(gpu::Recorder& recorder, std::uint32_t slice, Slot& slot, std::uint32_t route);
  void bring(gpu::Recorder& recorder, std::uint32_t slice, std::uint32_t next);
  Weight decode(gpu::Recorder& recorder, std::uint32_t slice);

  const Table& table_;
  Options options_;
  std::uint32_t rows_;
  std::array<Slot, 2> slots_;  // the second where products carry; none of a table on the device
  gpu::Tensor decoded_;        // empty of a dense table
  std::uint32_t decoded_slice_ = none;
  std::shared_ptr<gpu::Cargo> cargo_;  // null unless carried
};

}  // namespace nibble
