#include "nibble/weights/disk_layers.h"

#include "nibble/base/error.h"

#include <algorithm>
#include <utility>

namespace nibble {
namespace {

// Disks are at their best with a few large reads at a time.
constexpr std::uint64_t piece_bytes = std::uint64_t{4} << 20;
constexpr unsigned reading_threads = 4;

constexpr std::string_view disk_place = "layers on disk";

}  // namespace

DiskLayers::DiskLayers(gpu::Device& device, const DiskLayersOptions& options)
    : file_(options.folder, options.layers * options.layer_bytes, "--stream-dir"),
      layer_bytes_(options.layer_bytes),
      pieces_((options.layer_bytes + piece_bytes - 1) / piece_bytes),
      layers_(options.layers) {
  for (std::uint32_t i = 0; i < rooms_of(options.layers); ++i) {
    rooms_.push_back({.buffer = gpu::HostBuffer(device, options.memory, options.layer_bytes, "layer from disk")});
  }
  for (unsigned i = 0; i < reading_threads; ++i) threads_.emplace_back([this](const std::stop_token& stop) { work(stop); });
}

void DiskLayers::write(std::uint64_t first_byte, std::span<const std::byte> bytes) {
  check(written_ < layers_ && first_byte <= layer_bytes_ && bytes.size() <= layer_bytes_ - first_byte, disk_place,
        "{} bytes at byte {} of layer {} were to be written; there are {} layers of {} bytes.", bytes.size(), first_byte, written_, layers_,
        layer_bytes_);
  file_.write_at(written_ * layer_bytes_ + first_byte, bytes);
}

std::uint32_t DiskLayers::finish() {
  file_.sync();
  return written_++;
}

const gpu::Tensor& DiskLayers::take(std::uint32_t layer) {
  check(layer < written_, disk_place, "Layer {} was asked for; {} were written.", layer, written_);
  Room* room = room_of(layer);
  if (!room) {
    room = &make_room();
    begin(*room, layer);
  }
  check(!room->taken, disk_place, "Layer {} was asked for while it is in use.", layer);
  wait_for_disk(*room);
  room->buffer.wait_until_open(disk_place);
  room->buffer.seal();
  room->taken = true;
  return room->buffer.tensor();
}

void DiskLayers::leave(std::uint32_t layer) {
  Room* room = room_of(layer);
  check(room && room->taken, disk_place, "Layer {} was given back, which is not in use.", layer);
  room->taken = false;
  room->left = ++clock_;
  room->buffer.reopen();
}

void DiskLayers::expect(std::span<const std::uint32_t> layers) {
  wanted_.assign(layers.begin(), layers.end());
  for (const std::uint32_t layer : layers) {
    if (room_of(layer)) continue;
    Room* room = idle_room();
    if (!room) return;
    begin(*room, layer);
  }
}

DiskLayers::Room* DiskLayers::room_of(std::uint32_t layer) {
  const auto found = std::find_if(rooms_.begin(), rooms_.end(), [&](const Room& room) { return room.layer == layer; });
  return found == rooms_.end() ? nullptr : &*found;
}

bool DiskLayers::is_being_read(const Room& room) {
  const std::lock_guard lock(mutex_);
  return room.layer != none && room.done < pieces_;
}

bool DiskLayers::is_wanted(const Room& room) const { return std::find(wanted_.begin(), wanted_.end(), room.layer) != wanted_.end(); }

DiskLayers::Room* DiskLayers::idle_room() {
  Room* best = nullptr;
  for (Room& room : rooms_) {
    if (room.taken || is_wanted(room) || (best && best->left <= room.left)) continue;
    if (!is_being_read(room) && room.buffer.is_open()) best = &room;
  }
  return best;
}

// Waits for the device or the disk where no room is idle.
DiskLayers::Room& DiskLayers::make_room() {
  if (Room* room = idle_room()) return *room;
  Room* best = nullptr;
  for (Room& room : rooms_) {
    if (!room.taken && (!best || std::pair(is_wanted(room), room.left) < std::pair(is_wanted(*best), best->left))) best = &room;
  }
  check(best != nullptr, disk_place, "All {} rooms are in use.", rooms_.size());
  std::unique_lock lock(mutex_);
  was_read_.wait(lock, [&] { return best->layer == none || best->done == pieces_; });
  lock.unlock();
  best->buffer.wait_until_open(disk_place);
  return *best;
}

void DiskLayers::begin(Room& room, std::uint32_t layer) {
  const std::span<std::byte> bytes = room.buffer.bytes();
  const std::lock_guard lock(mutex_);
  room.layer = layer;
  room.bytes = bytes;
  room.begun = room.done = 0;
  room.error = {};
  read_bytes_ += layer_bytes_;
  to_read_.push_back(&room);
  may_read_.notify_all();
}

// A room that could not be filled has no layer.
void DiskLayers::wait_for_disk(Room& room) {
  std::unique_lock lock(mutex_);
  was_read_.wait(lock, [&] { return room.done == pieces_; });
  if (!room.error) return;
  room.layer = none;
  std::rethrow_exception(room.error);
}

void DiskLayers::work(const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  while (may_read_.wait(lock, stop, [&] { return !to_read_.empty(); })) {
    Room& room = *to_read_.front();
    const std::uint64_t piece = room.begun++, first = piece * piece_bytes, count = std::min(piece_bytes, layer_bytes_ - first);
    if (room.begun == pieces_) to_read_.pop_front();
    const std::uint64_t offset = room.layer * layer_bytes_ + first;
    const std::span<std::byte> into = room.bytes.subspan(first, count);
    lock.unlock();
    std::exception_ptr error;
    try {
      file_.read(offset, into);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    if (error && !room.error) room.error = error;
    if (++room.done == pieces_) was_read_.notify_all();
    if (stop.stop_requested()) return;
  }
}

}  // namespace nibble
