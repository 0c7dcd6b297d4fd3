#include "nibble/io/scratch_file.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <system_error>

#include "nibble/base/error.h"

namespace nibble {
namespace {

// As statfs(2) has them.
constexpr std::uint64_t tmpfs_type = 0x01021994, ramfs_type = 0x858458f6;

// The folder, or where it is not there the nearest above it that is.
fs::path existing(fs::path folder) {
  folder = fs::absolute(folder);
  while (!path_exists(folder) && folder.has_relative_path()) folder = folder.parent_path();
  return folder;
}

// Beyond it writing ends the program with a signal.
std::uint64_t largest_file() {
  struct rlimit limit {};
  if (::getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return std::numeric_limits<std::uint64_t>::max();
  return limit.rlim_cur;
}

[[noreturn]] void fail_for_room(const fs::path& folder, std::uint64_t bytes, std::uint64_t free, std::string_view option) {
  fail<DataError>(folder.string(), "A scratch file needs {} bytes and this folder's disk has {} free; name a folder on another disk with {}.",
                  bytes, free, option);
}

std::uint64_t free_bytes(const fs::path& folder) {
  struct statvfs disk {};
  if (::statvfs(folder.c_str(), &disk) != 0) fail_with_errno(folder, "look at this folder");
  return std::uint64_t{disk.f_bavail} * disk.f_frsize;
}

}  // namespace

void check_scratch_folder(const fs::path& folder, std::uint64_t bytes, std::string_view option) {
  check<DataError>(!folder.empty(), option, "There is no cache folder to put a scratch file into; name a folder on a disk.");
  const fs::path there = existing(folder);
  struct statfs kind {};
  if (::statfs(there.c_str(), &kind) != 0) fail_with_errno(folder, "look at this folder");
  const auto type = static_cast<std::uint32_t>(kind.f_type);
  check<DataError>(type != tmpfs_type && type != ramfs_type, folder.string(),
                   "This folder lies in memory (tmpfs), which a scratch file is to save; name a folder on a disk with {}.", option);
  if (const std::uint64_t free = free_bytes(there); free < bytes) fail_for_room(folder, bytes, free, option);
  check<DataError>(bytes <= largest_file(), folder.string(), "A scratch file needs {} bytes; files may have {} here (ulimit -f).", bytes,
                   largest_file());
}

ScratchFile::ScratchFile(fs::path folder, std::uint64_t bytes, std::string_view option) : folder_(std::move(folder)), size_(bytes) {
  check_scratch_folder(folder_, bytes, option);
  std::error_code failed;
  fs::create_directories(folder_, failed);
  check<DataError>(!failed, folder_.string(), "Could not make this folder: {}; name another with {}.", failed.message(), option);
  fd_ = FileDescriptor(open_unnamed(folder_));
  if (fd_.get() < 0) fail_with_errno(folder_, fmt::format("make a scratch file in this folder ({} names another)", option));
  if (bytes == 0) return;
  int code = EINTR;
  while (code == EINTR) code = ::posix_fallocate(fd_.get(), 0, static_cast<off_t>(bytes));
  if (code == ENOSPC || code == EDQUOT) fail_for_room(folder_, bytes, free_bytes(folder_), option);
  errno = code;
  if (code != 0) fail_with_errno(folder_, fmt::format("take {} bytes of this folder's disk for a scratch file ({} names another)", bytes, option));
}

void ScratchFile::check_range(std::uint64_t offset, std::uint64_t count) const {
  check(offset <= size_ && count <= size_ - offset, folder_.string(), "{} bytes at byte {} are not within a scratch file of {}.", count, offset,
        size_);
}

void ScratchFile::write_at(std::uint64_t offset, std::span<const std::byte> bytes) {
  check_range(offset, bytes.size());
  if (!write_all(fd_.get(), offset, bytes)) fail_with_errno(folder_, "write the scratch file in this folder");
}

void ScratchFile::sync() {
  if (::fdatasync(fd_.get()) != 0) fail_with_errno(folder_, "put the scratch file in this folder on the disk");
}

void ScratchFile::read(std::uint64_t offset, std::span<std::byte> out) const {
  check_range(offset, out.size());
  const auto got = read_all(fd_.get(), offset, out);
  if (!got) fail_with_errno(folder_, "read the scratch file in this folder");
  check<DataError>(*got == out.size(), folder_.string(), "The scratch file in this folder ends at byte {}, but it had {} bytes.", offset + *got, size_);
}

}  // namespace nibble
