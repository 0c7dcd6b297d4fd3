#include "nibble/io/unpack.h"

#include <zlib.h>
#include <zstd.h>

#include <memory>
#include <vector>

#include "nibble/base/error.h"

namespace nibble {
namespace {

constexpr std::size_t block_bytes = std::size_t{256} << 10;
// Memory that a frame may ask for: 128 MiB, what zstd's own program allows.
constexpr int max_window_log = 27;

// The packed side: blocks of it, and how much there has been.
class PackedInput {
 public:
  PackedInput(ByteReader read, fs::path name) : read_(std::move(read)), name_(std::move(name)), block_(block_bytes) {}

  // What is left of the block, or the next one; empty at the end.
  std::string_view rest() {
    if (at_ < end_) return {block_.data() + at_, end_ - at_};
    at_ = 0;
    end_ = read_(block_);
    read_bytes_ += end_;
    return {block_.data(), end_};
  }
  void take(std::size_t bytes) { at_ += bytes; }

  void count(std::size_t unpacked) {
    unpacked_bytes_ += unpacked;
    check<DataError>(unpacked_bytes_ <= max_unpacked_bytes, name_.string(), "The file unpacks to more than {} bytes, the most that is read.",
                     max_unpacked_bytes);
    check<DataError>(unpacked_bytes_ <= unpack_ratio_from || unpacked_bytes_ / max_unpack_ratio < read_bytes_, name_.string(),
                     "Its first {} bytes unpack to over {}, more than {} times as many; at most that is read, unpack it yourself.",
                     read_bytes_, unpacked_bytes_, max_unpack_ratio);
  }
  [[noreturn]] void fail_damaged(std::string_view kind, std::string_view what) const {
    fail<DataError>(name_.string(), "The {} data are damaged near byte {}: {}.", kind, read_bytes_ - (end_ - at_), what);
  }
  [[noreturn]] void fail_short(std::string_view kind) const {
    fail<DataError>(name_.string(), "The {} data end after {} bytes, before they are complete.", kind, read_bytes_);
  }

 private:
  ByteReader read_;
  fs::path name_;
  std::vector<char> block_;
  std::size_t at_ = 0, end_ = 0;
  std::uint64_t read_bytes_ = 0, unpacked_bytes_ = 0;
};

class Gunzip {
 public:
  explicit Gunzip(PackedInput input) : input_(std::move(input)) {
    constexpr int gzip_only = 16 + MAX_WBITS;
    check<Error>(::inflateInit2(&stream_, gzip_only) == Z_OK, "gzip", "There is no memory to unpack with.");
  }
  Gunzip(const Gunzip&) = delete;
  Gunzip& operator=(const Gunzip&) = delete;
  ~Gunzip() { ::inflateEnd(&stream_); }

  std::size_t read(std::span<char> out) {
    while (true) {
      const std::string_view in = input_.rest();
      if (in.empty()) {
        if (in_member_) input_.fail_short("gzip");
        return 0;
      }
      if (!in_member_) ::inflateReset(&stream_);
      in_member_ = true;
      stream_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(in.data()));
      stream_.avail_in = static_cast<uInt>(in.size());
      stream_.next_out = reinterpret_cast<Bytef*>(out.data());
      stream_.avail_out = static_cast<uInt>(std::min(out.size(), block_bytes));
      const std::size_t room = stream_.avail_out;
      const int code = ::inflate(&stream_, Z_NO_FLUSH);
      input_.take(in.size() - stream_.avail_in);
      if (code != Z_OK && code != Z_STREAM_END && code != Z_BUF_ERROR) {
        input_.fail_damaged("gzip", stream_.msg != nullptr ? stream_.msg : "they cannot be read");
      }
      if (code == Z_STREAM_END) in_member_ = false;
      const std::size_t got = room - stream_.avail_out;
      input_.count(got);
      if (got > 0) return got;
    }
  }

 private:
  PackedInput input_;
  z_stream stream_{};
  bool in_member_ = true;  // an empty file is no gzip
};

class Unzstd {
 public:
  explicit Unzstd(PackedInput input) : input_(std::move(input)), stream_(::ZSTD_createDStream(), &::ZSTD_freeDStream) {
    check<Error>(stream_ != nullptr, "zstd", "There is no memory to unpack with.");
    ::ZSTD_DCtx_setParameter(stream_.get(), ZSTD_d_windowLogMax, max_window_log);
  }

  std::size_t read(std::span<char> out) {
    while (true) {
      const std::string_view in = input_.rest();
      // Of a frame that has been read whole something may still wait to be written.
      if (in.empty() && !in_frame_) return 0;
      ZSTD_inBuffer from{.src = in.data(), .size = in.size(), .pos = 0};
      ZSTD_outBuffer to{.dst = out.data(), .size = out.size(), .pos = 0};
      const std::size_t code = ::ZSTD_decompressStream(stream_.get(), &to, &from);
      input_.take(from.pos);
      if (::ZSTD_isError(code) != 0) input_.fail_damaged("zstd", ::ZSTD_getErrorName(code));
      in_frame_ = code != 0;
      input_.count(to.pos);
      if (to.pos > 0) return to.pos;
      if (in.empty() && in_frame_) input_.fail_short("zstd");
    }
  }

 private:
  PackedInput input_;
  std::unique_ptr<ZSTD_DStream, std::size_t (*)(ZSTD_DStream*)> stream_;
  bool in_frame_ = true;
};

}  // namespace

Packing packing_of(std::string_view head) {
  if (head.starts_with("\x1f\x8b")) return Packing::gzip;
  if (head.starts_with("\x28\xb5\x2f\xfd")) return Packing::zstd;
  return Packing::none;
}

ByteReader unpacked(ByteReader packed, Packing packing, const fs::path& name) {
  if (packing == Packing::none) return packed;
  PackedInput input(std::move(packed), name);
  if (packing == Packing::gzip) {
    return [stream = std::make_shared<Gunzip>(std::move(input))](std::span<char> out) { return stream->read(out); };
  }
  return [stream = std::make_shared<Unzstd>(std::move(input))](std::span<char> out) { return stream->read(out); };
}

}  // namespace nibble
