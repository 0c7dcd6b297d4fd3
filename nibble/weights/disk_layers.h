#pragma once

#include "nibble/gpu/host_memory.h"
#include "nibble/io/scratch_file.h"

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <span>
#include <stop_token>
#include <thread>
#include <vector>

namespace nibble {

struct DiskLayersOptions {
  fs::path folder;
  gpu::HostMemory memory = gpu::HostMemory::staged;  // how the device reads the rooms
  std::uint32_t layers = 0;                          // that there are
  std::uint64_t layer_bytes = 0;
};

// Layers in a scratch file on a disk. A few rooms in host memory have some of them: threads read those that come next while the device
// computes, and a room is written again only once the device is done with it. Used from the device's thread.
class DiskLayers {
 public:
  // In which a layer is sent, the next is there, and one more is being read.
  static constexpr std::uint32_t most_rooms = 3;
  static std::uint32_t rooms_of(std::uint32_t layers) { return layers < most_rooms ? layers : most_rooms; }

  DiskLayers(gpu::Device& device, const DiskLayersOptions& options);

  // Layers are written one after the other, `finish` behind the last byte of each; they are numbered from 0 in that order.
  void write(std::uint64_t first_byte, std::span<const std::byte> bytes);
  std::uint32_t finish();

  // The layer in host memory, waiting for the disk where it is not there; DataError where it could not be read. What reads it is recorded
  // and submitted, then leave() says so.
  const gpu::Tensor& take(std::uint32_t layer);
  void leave(std::uint32_t layer);
  // Begins to read those of the layers, in their order, that are not there, as far as rooms are free.
  void expect(std::span<const std::uint32_t> layers);

  std::uint64_t file_bytes() const { return file_.size(); }
  std::uint64_t read_bytes() const { return read_bytes_; }  // asked of the disk so far

 private:
  static constexpr std::uint32_t none = UINT32_MAX;

  struct Room {
    gpu::HostBuffer buffer;
    std::uint32_t layer = none;  // that it has, or will when it is read
    bool taken = false;
    std::uint64_t left = 0;  // when
    std::span<std::byte> bytes = {};
    // Of the threads, under mutex_.
    std::uint64_t begun = 0, done = 0;  // pieces
    std::exception_ptr error = {};
  };

  Room* room_of(std::uint32_t layer);
  bool is_wanted(const Room& room) const;
  // One whose layer is not wanted and which may be written at once.
  Room* idle_room();
  Room& make_room();
  void begin(Room& room, std::uint32_t layer);
  void wait_for_disk(Room& room);
  bool is_being_read(const Room& room);
  void work(const std::stop_token& stop);

  ScratchFile file_;
  std::uint64_t layer_bytes_ = 0, pieces_ = 0;
  std::uint32_t layers_ = 0, written_ = 0;
  std::uint64_t clock_ = 0, read_bytes_ = 0;
  std::vector<std::uint32_t> wanted_;  // that were expected last
  std::vector<Room> rooms_;
  std::mutex mutex_;
  std::condition_variable_any may_read_, was_read_;
  std::deque<Room*> to_read_;           // those with pieces that nobody has begun
  std::vector<std::jthread> threads_;   // last, so that they end first
};

}  // namespace nibble
