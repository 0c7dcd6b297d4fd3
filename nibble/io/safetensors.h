#pragma once

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "nibble/base/dtype.h"
#include "nibble/io/file.h"

// The safetensors format: u64 length, JSON header, bytes (https://huggingface.co/docs/safetensors).
namespace nibble {

using Shape = std::vector<std::int64_t>;

// "[4096, 256]"
std::string to_string(const Shape& shape);

struct TensorInfo {
  std::string name;
  std::string dtype_name;      // as the file says it: "BF16"
  std::optional<DType> dtype;  // empty where nibble has no such type (F64, I8, F8_E4M3, ...)
  Shape shape;
  std::uint64_t offset = 0;  // of the first byte, in the file
  std::uint64_t bytes = 0;

  std::uint64_t numel() const;
};

using TensorMap = std::map<std::string, TensorInfo, std::less<>>;

struct SafetensorsHeader {
  std::map<std::string, std::string> metadata;
  TensorMap tensors;
};

// Checks and reads the header of `file`: its length (at most 100 MB), each dtype, shape and pair of offsets, that the
// tensors fill the rest of the file without gap or overlap, and that no name comes twice. Throws DataError.
SafetensorsHeader read_safetensors_header(const File& file);

// Converts f32, f16 or bf16 bytes (no alignment needed) to f32; other types are a programming error.
void convert_to_f32(DType dtype, std::span<const std::byte> bytes, std::span<float> out);

// A file of tensors, open for reading. Nothing of the data is held: callers read it piece by piece. Safe from many threads.
class TensorFile {
 public:
  virtual ~TensorFile() = default;

  virtual const fs::path& path() const = 0;
  virtual const TensorMap& tensors() const = 0;
  // Fills `out` with the tensor's bytes from `offset` (within the tensor) on.
  virtual void read(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const = 0;

  // nullptr when there is none of this name.
  const TensorInfo* find(std::string_view name) const;
  // DataError naming file and tensor when there is none.
  const TensorInfo& at(std::string_view name) const;
  // The whole tensor, from F32, F16 or BF16.
  std::vector<float> read_as_f32(const TensorInfo& tensor) const;
  std::vector<float> read_as_f32(std::string_view name) const { return read_as_f32(at(name)); }
};

class SafetensorsFile : public TensorFile {
 public:
  explicit SafetensorsFile(const fs::path& path) : file_(path), header_(read_safetensors_header(file_)) {}

  const fs::path& path() const override { return file_.path(); }
  const TensorMap& tensors() const override { return header_.tensors; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }
  void read(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const override;

 private:
  File file_;
  SafetensorsHeader header_;
};

struct TensorSpec {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
};

// Writes a file as the official library does: tensors by falling size of type, then by name; compact header padded with
// spaces to 8 bytes. The bytes are streamed, so the file may be larger than memory; it appears whole or not at all.
class SafetensorsWriter {
 public:
  using Metadata = std::map<std::string, std::string>;

  SafetensorsWriter(const fs::path& path, std::vector<TensorSpec> tensors,
                    const Metadata& metadata = {{"format", "pt"}});
  ~SafetensorsWriter();

  // In the order in which append() wants their bytes.
  const std::vector<TensorSpec>& tensors() const { return tensors_; }
  // The next bytes, in pieces of any size; more than the tensors have is an error.
  void append(std::span<const std::byte> bytes);
  // The next bytes of one tensor, the tensors in any order. A file is filled in this way or in the other.
  void append(std::string_view tensor, std::span<const std::byte> bytes);
  // Checks that every byte has come, syncs, and puts the file in its place.
  void finish();

 private:
  struct Target;
  struct Place {
    std::uint64_t next, end;  // in the file
  };

  std::vector<TensorSpec> tensors_;
  std::map<std::string_view, Place> places_;  // by tensor
  std::uint64_t missing_bytes_ = 0;
  std::unique_ptr<Target> target_;
};

}  // namespace nibble
