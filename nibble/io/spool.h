#pragma once

#include <functional>
#include <span>

#include "nibble/io/file.h"

namespace nibble {

// Fills a part of `out` and says how much, 0 at the end alone. A failure is a DataError.
using ByteReader = std::function<std::size_t(std::span<char> out)>;

// Of a descriptor, which must stay open; `name` is for errors.
ByteReader reader_of(int fd, fs::path name);

// A temporary file without a name, in $TMPDIR or /var/tmp: it is gone with its last reader, however the program ends.
class SpoolFile {
 public:
  // `name`, of what is written, is for errors.
  explicit SpoolFile(fs::path name);

  void write(std::string_view bytes);
  // What was written so far, to be read; stays readable without this.
  File open() const;

 private:
  fs::path name_;
  fs::path folder_;
  FileDescriptor fd_;
};

}  // namespace nibble
