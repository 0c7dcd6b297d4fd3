#pragma once

#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

namespace nibble::data {

struct DataFile {
  std::filesystem::path path;
  std::optional<double> weight;  // its share of an epoch's examples, in proportion to the other files' weights
};

// The files of rows that a run reads as one.
class DataFiles {
 public:
  DataFiles() = default;
  // One file, whatever its name looks like.
  template <typename Path>
    requires std::is_convertible_v<Path, std::filesystem::path>
  DataFiles(const Path& path) : files_{{std::filesystem::path(path), {}}} {}  // NOLINT: a path is a DataFiles

  // "PATH" or "PATH:WEIGHT" each; what names a file that is there is its path as a whole. Throws UsageError where a weight is
  // not above 0, where some files have one and others none, or where standard input ("-") comes twice.
  static DataFiles parse(std::span<const std::string> names);

  bool empty() const { return files_.empty(); }
  bool weighted() const { return !files_.empty() && files_.front().weight.has_value(); }
  const std::vector<DataFile>& files() const { return files_; }
  // "a.jsonl:0.7 b.jsonl:0.3", for a reader.
  std::string text() const;

 private:
  std::vector<DataFile> files_;
};

}  // namespace nibble::data
