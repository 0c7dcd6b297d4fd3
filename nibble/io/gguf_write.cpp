#include <cstring>

#include "nibble/base/error.h"
#include "nibble/io/atomic.h"
#include "nibble/io/gguf.h"

namespace nibble {
namespace {

constexpr std::uint64_t alignment = 32;

std::uint64_t padded(std::uint64_t size) { return (size + alignment - 1) / alignment * alignment; }

// The header as bytes.
class HeaderText {
 public:
  template <typename T>
  void number(T value) {
    const std::size_t at = text_.size();
    text_.resize(at + sizeof value);
    std::memcpy(text_.data() + at, &value, sizeof value);
  }
  void text(std::string_view value) {
    number<std::uint64_t>(value.size());
    text_ += value;
  }

  void value(std::uint32_t v) { typed(4, v); }
  void value(float v) { typed(6, v); }
  void value(bool v) { typed<std::uint8_t>(7, v); }
  void value(const std::string& v) {
    number<std::uint32_t>(8);
    text(v);
  }
  void value(const std::vector<std::int32_t>& list) {
    begin_list(5, list.size());
    for (const auto v : list) number(v);
  }
  void value(const std::vector<std::string>& list) {
    begin_list(8, list.size());
    for (const auto& v : list) text(v);
  }

  void pad() { text_.resize(padded(text_.size())); }
  std::span<const std::byte> bytes() const { return std::as_bytes(std::span(text_)); }

 private:
  template <typename T>
  void typed(std::uint32_t type, T value) {
    number(type);
    number(value);
  }
  void begin_list(std::uint32_t type, std::uint64_t count) {
    number<std::uint32_t>(9);
    number(type);
    number(count);
  }

  std::string text_;
};

}  // namespace

struct GgufWriter::Target {
  explicit Target(const fs::path& path) : file(path) {}
  AtomicFile file;
};

std::uint64_t GgufSpec::bytes() const {
  const GgmlTypeInfo& info = info_of(type);
  std::uint64_t numel = 1;
  for (const auto size : shape) numel *= static_cast<std::uint64_t>(size);
  return numel / info.values * info.bytes;
}

GgufWriter::GgufWriter(const fs::path& path, const GgufMetadata& metadata, std::vector<GgufSpec> tensors)
    : tensors_(std::move(tensors)) {
  HeaderText header;
  for (const char c : std::string_view("GGUF")) header.number(c);
  header.number<std::uint32_t>(3);
  header.number<std::uint64_t>(tensors_.size());
  header.number<std::uint64_t>(metadata.size());
  for (const auto& [key, value] : metadata) {
    header.text(key);
    std::visit([&](const auto& v) { header.value(v); }, value);
  }
  std::uint64_t offset = 0;
  for (const GgufSpec& tensor : tensors_) {
    check(!tensor.shape.empty() && tensor.shape.back() % info_of(tensor.type).values == 0, path.string(),
          "The tensor {} of shape {} has no rows of whole blocks of {}.", tensor.name, to_string(tensor.shape),
          info_of(tensor.type).name);
    header.text(tensor.name);
    header.number(static_cast<std::uint32_t>(tensor.shape.size()));
    for (std::size_t i = tensor.shape.size(); i-- > 0;) header.number(static_cast<std::uint64_t>(tensor.shape[i]));
    header.number(static_cast<std::uint32_t>(tensor.type));
    header.number(offset);
    offset += padded(tensor.bytes());
  }
  header.pad();
  target_ = std::make_unique<Target>(path);
  target_->file.write(header.bytes());
}

GgufWriter::~GgufWriter() = default;

void GgufWriter::append(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  check(current_ < tensors_.size() && bytes.size() <= tensors_[current_].bytes() - written_, "GgufWriter",
        "{} bytes were appended, which is more than the tensor lacks.", bytes.size());
  target_->file.write(bytes);
  written_ += bytes.size();
  if (written_ < tensors_[current_].bytes()) return;
  const std::array<std::byte, alignment> zeros{};
  target_->file.write(std::span(zeros).first(padded(written_) - written_));
  written_ = 0;
  ++current_;
}

void GgufWriter::finish() {
  check(current_ == tensors_.size(), "GgufWriter", "The file was finished with {} tensors still missing.",
        tensors_.size() - current_);
  target_->file.commit();
}

}  // namespace nibble
