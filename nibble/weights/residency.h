#pragma once

#include "nibble/gpu/host_memory.h"
#include "nibble/weights/table.h"

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace nibble {

// Where a layer's frozen projections are kept, and in what form.
enum class Residency : std::uint8_t {
  resident,  // NF4 on the device, decoded before each use into room that the layers share
  cached,    // NF4 on the device, decoded once and kept
  streamed,  // NF4 in host memory or on a disk, sent to the device before each use
};

// How layers are streamed, and where and in which form the tables of the vocabulary are kept. Tables on the host need kernels that read
// its memory: of the embedding they gather rows, and the head is brought to the device in slices.
struct StreamOptions {
  std::optional<gpu::HostMemory> memory = {};  // empty: what is usual for the adapter
  bool embedding = false;   // on the host; of a model that ties them either word holds for both
  std::uint32_t slots = 2;  // layers that have room on the device, at least 2: one computes while the other is on its way
  bool head = false;        // on the host
  TableForm tables = TableForm::dense;
  bool on_disk = false;       // streamed layers lie in a scratch file, and `memory` is that of a few of them on their way (disk_layers.h)
  std::filesystem::path folder = {};  // of that file; empty: nibble's cache folder
  bool double_quant = false;  // scales of the layers, streamed or not, are kept in 8 bits (scale_room.h)
};

struct TablePlaces {
  bool embedding_on_host = false, head_on_host = false;
};
TablePlaces table_places(const StreamOptions& options, bool tied);
// Throws UsageError unless rows of them can be written: both are dense and on the device.
void check_rows_change(const StreamOptions& options);
// Of what is not usual, as ", embedding and head in 4 bits in host memory".
std::string describe_tables(const StreamOptions& options, bool tied);

gpu::HostMemory memory_of(const gpu::AdapterInfo& info, const StreamOptions& options);

// Where layers on a disk lie; empty where there is no cache folder.
std::filesystem::path stream_folder(const StreamOptions& options);

// Of a layer, from a list by layer; an empty list stands for all resident.
Residency residency_of(const std::vector<Residency>& residency, std::uint32_t layer);

// Of `layers` layers.
std::uint32_t count_of(const std::vector<Residency>& residency, std::uint32_t layers, Residency which);

// Slots that such layers have on the device: not more than there are streamed layers, and none where kernels read host memory.
std::uint32_t stream_slots(const std::vector<Residency>& residency, std::uint32_t layers, const StreamOptions& options);

// `streamed` of the layers, the others as `rest` says. They lie evenly apart: each copy to the device then has the same work of
// other layers to go on behind. UsageError where there are not so many layers.
std::vector<Residency> spread_streamed(std::uint32_t layers, std::uint32_t streamed, Residency rest = Residency::resident);

// The choice of the command line: `streamed` layers, or where it is empty all under Residency::streamed and none under another;
// the rest is as `residency` says, and resident under Residency::streamed.
std::vector<Residency> choose_residency(std::uint32_t layers, Residency residency, std::optional<std::uint32_t> streamed);

}  // namespace nibble
