#pragma once

#include <memory>
#include <variant>

#include "nibble/base/ggml_type.h"
#include "nibble/io/json.h"
#include "nibble/io/safetensors.h"

// The GGUF format (github.com/ggml-org/ggml, docs/gguf.md), versions 2 and 3, little-endian: metadata, infos of
// tensors, data.
namespace nibble {

struct GgufTensor {
  std::string name;
  std::uint32_t type = 0;    // a number of ggml_types
  Shape shape;               // outermost first, as in safetensors; the file has them the other way round
  std::uint64_t offset = 0;  // of the first byte, in the file
  std::uint64_t bytes = 0;
  std::size_t part = 0;  // of the files, the one that has it

  const GgmlTypeInfo& info() const { return *find_ggml_type(type); }
};

// What is named by a file, by the first of the parts of one that was split ("NAME-00001-of-00003.gguf", as llama-gguf-split does it), or
// by the folder that they lie in, open for reading. Only metadata and infos are held; data is read piece by piece, from any number of
// threads.
class GgufFile {
 public:
  // Everything is checked before it is believed: counts, lengths, types, shapes, alignment, that tensors lie within their
  // file and do not overlap, that no name comes twice, and that all parts are there and belong together. DataError names the file and
  // what was found.
  explicit GgufFile(const fs::path& path);

  // Of the first part.
  const fs::path& path() const { return files_.front().path(); }
  const std::vector<File>& files() const { return files_; }
  // Integers, numbers, booleans, strings (UTF-8) and lists of these, by key, of the first part. f32 values are the same doubles.
  const Json& metadata() const { return metadata_; }
  const std::map<std::string, GgufTensor, std::less<>>& tensors() const { return tensors_; }
  // Fills `out` with the tensor's bytes from `offset` (within the tensor) on.
  void read(const GgufTensor& tensor, std::uint64_t offset, std::span<std::byte> out) const;

 private:
  // Takes a part's tensors and returns its metadata.
  Json add_part(File file);
  void add_other_parts(std::int64_t count);

  std::vector<File> files_;
  Json metadata_ = Json::object();
  std::map<std::string, GgufTensor, std::less<>> tensors_;
};

// Whether a path names a GGUF file: one that ends in .gguf or begins with its magic, or a folder that has files of that ending and no
// weights in safetensors. Never throws.
bool is_gguf(const fs::path& path);

// A path without the ending of a GGUF file and of one that was split: what the model is called.
std::string gguf_model_name(const fs::path& path);

// Values of the types that writers of models and adapters use.
using GgufValue =
    std::variant<std::uint32_t, float, bool, std::string, std::vector<std::int32_t>, std::vector<std::string>>;
using GgufMetadata = std::vector<std::pair<std::string, GgufValue>>;

struct GgufSpec {
  std::string name;
  GgmlType type = GgmlType::f32;
  Shape shape;  // outermost first

  std::uint64_t bytes() const;
};

// Writes a file of version 3 with an alignment of 32, metadata and tensors in the order given. The bytes are streamed;
// the file appears whole or not at all.
class GgufWriter {
 public:
  GgufWriter(const fs::path& path, const GgufMetadata& metadata, std::vector<GgufSpec> tensors);
  ~GgufWriter();

  // The next bytes of the tensors, in order and in pieces of any size within one tensor; padding is added behind each.
  void append(std::span<const std::byte> bytes);
  void finish();

 private:
  struct Target;
  std::vector<GgufSpec> tensors_;
  std::size_t current_ = 0;    // the tensor that is being written
  std::uint64_t written_ = 0;  // of it, in bytes
  std::unique_ptr<Target> target_;
};

}  // namespace nibble
