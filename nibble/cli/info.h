#pragma once

#include "nibble/cli/device_flags.h"
#include "nibble/cli/row_flags.h"

#include <cstdint>
#include <string>

namespace nibble::cli {

// The options of `nibble info`.
struct InfoFlags {
  std::string model, adapter;
  RowFlags data;
  DeviceFlags device;
  bool json = false;

  // Of --data.
  std::uint64_t rows = 3;  // shown
  std::uint32_t max_length = 1024;
  std::string format = "auto", train_on = "assistant", color = "auto";
  data::Think think = data::Think::stock;
  std::string system;
  bool skip_bad_rows = false;
};

// Each prints what it found, as text or with --json as one JSON object. DataError where a file is at fault.
void info_model(const InfoFlags& flags);
void info_adapter(const InfoFlags& flags);
void info_data(const InfoFlags& flags);

// "hidden     256"
void print_fact(std::string_view what, std::string_view value);

}  // namespace nibble::cli
