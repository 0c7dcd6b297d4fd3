#include "nibble/io/spool.h"

#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <string>
#include <system_error>

#include "nibble/base/error.h"

namespace nibble {
namespace {

fs::path spool_folder() {
  const char* given = std::getenv("TMPDIR");
  if (given != nullptr && *given != '\0') return given;
  return path_exists("/var/tmp") ? "/var/tmp" : "/tmp";
}

}  // namespace

ByteReader reader_of(int fd, fs::path name) {
  return [fd, name = std::move(name)](std::span<char> out) {
    while (true) {
      const auto got = ::read(fd, out.data(), out.size());
      if (got >= 0) return static_cast<std::size_t>(got);
      if (errno != EINTR) fail_with_errno(name, "read");
    }
  };
}

SpoolFile::SpoolFile(fs::path name) : name_(std::move(name)), folder_(spool_folder()), fd_(open_unnamed(folder_)) {
  if (fd_.get() >= 0) return;
  fail_with_errno(folder_, fmt::format("make a temporary file for {} in this folder (TMPDIR names another)", name_.string()));
}

void SpoolFile::write(std::string_view bytes) {
  while (!bytes.empty()) {
    const auto put = ::write(fd_.get(), bytes.data(), bytes.size());
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) {
      fail_with_errno(folder_, fmt::format("put {} into a temporary file in this folder (TMPDIR names another)", name_.string()));
    }
    bytes.remove_prefix(static_cast<std::size_t>(put));
  }
}

// A file without a name has only this one.
File SpoolFile::open() const { return File(fmt::format("/proc/self/fd/{}", fd_.get())); }

}  // namespace nibble
