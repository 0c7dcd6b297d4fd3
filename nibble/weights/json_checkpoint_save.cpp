#include <fmt/compile.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "nibble/base/error.h"
#include "nibble/io/atomic.h"
#include "nibble/weights/json_checkpoint.h"
#include "nibble/weights/json_checkpoint_form.h"

namespace nibble {
namespace {

using namespace json_checkpoint;

constexpr std::string_view origin = "save_json_checkpoint";

// Text on its way to the file, a block at a time.
class TextStream {
 public:
  explicit TextStream(const fs::path& path) : file_(path) {}

  void text(std::string_view text) {
    if (text.size() > block_.size() - used_) flush();
    std::copy(text.begin(), text.end(), block_.begin() + used_);
    used_ += text.size();
  }

  template <typename T>
  void number(T value) {
    constexpr std::size_t longest = 32;
    if (block_.size() - used_ < longest) flush();
    const char* end = fmt::format_to(block_.data() + used_, FMT_COMPILE("{}"), value);
    used_ = static_cast<std::size_t>(end - block_.data());
  }

  // The fewest digits that read back bit for bit. Readers take "-0" for an integer and lose its sign.
  void real(std::floating_point auto value) {
    if (value == 0) {
      text(std::signbit(value) ? "-0.0" : "0");
    } else {
      number(value);
    }
  }

  void commit() {
    flush();
    file_.commit();
  }

 private:
  void flush() {
    file_.write(std::as_bytes(std::span(block_).first(used_)));
    used_ = 0;
  }

  AtomicFile file_;
  std::vector<char> block_ = std::vector<char>(std::size_t{1} << 18);
  std::size_t used_ = 0;
};

// Writes `{"key":` for the first key of an object and `,"key":` for the others.
void write_key(TextStream& out, std::string_view key, bool first) {
  out.text(first ? "{\"" : ",\"");
  out.text(key);
  out.text("\":");
}

void check_finite(double value, std::string_view name) {
  check(std::isfinite(value), origin, "The {} is {}; a checkpoint holds finite numbers only.", name, value);
}

void check_adapter(const LoraProjection& adapter, std::size_t layer, std::size_t projection) {
  for (std::size_t m = 0; m < matrices.size(); ++m) {
    const auto& values = adapter.*matrices[m];
    check(values.size() == matrix_size(adapter, m), origin,
          "{} has {} values; rank {}, in_dim {} and out_dim {} make it {}.", matrix_place(layer, projection, m),
          values.size(), adapter.rank, adapter.in_dim, adapter.out_dim, matrix_size(adapter, m));
    const auto bad = std::find_if(values.begin(), values.end(), [](float value) { return !std::isfinite(value); });
    check(bad == values.end(), origin, "{}[{}] is {}; a checkpoint holds finite numbers only.",
          matrix_place(layer, projection, m), bad - values.begin(), bad == values.end() ? 0.0f : *bad);
  }
}

void check_layers(const JsonCheckpointHeader& header, std::span<const LoraLayer> layers) {
  check_finite(header.alpha, "alpha");
  check_finite(header.loss, "loss");
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    for (const Projection p : all_projections) {
      const auto& adapter = layers[layer].at(p);
      const auto projection = static_cast<std::size_t>(p);
      check(!adapter.used() || adapter.rank == header.rank, origin, "layers[{}].{} has the rank {}; the header has {}.",
            layer, projection_keys[projection], adapter.rank, header.rank);
      if (adapter.used()) check_adapter(adapter, layer, projection);
    }
  }
}

void write_adapter(TextStream& out, const LoraProjection& adapter) {
  for (std::size_t m = 0; m < matrices.size(); ++m) {
    write_key(out, adapter_keys[m], m == 0);
    out.text("[");
    bool first = true;
    for (const float value : adapter.*matrices[m]) {
      if (!first) out.text(",");
      first = false;
      out.real(value);
    }
    out.text("]");
  }
  const std::array<std::uint32_t, 3> sizes{adapter.rank, adapter.in_dim, adapter.out_dim};
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    write_key(out, adapter_keys[matrices.size() + i], false);
    out.number(sizes[i]);
  }
  out.text("}");
}

void write_layer(TextStream& out, const LoraLayer& layer) {
  bool first = true;
  for (const Projection p : all_projections) {
    const auto& adapter = layer.at(p);
    if (!adapter.used()) continue;
    write_key(out, projection_keys[static_cast<std::size_t>(p)], first);
    first = false;
    write_adapter(out, adapter);
  }
  out.text(first ? "{}" : "}");
}

void write_header(TextStream& out, const JsonCheckpointHeader& header, std::size_t num_layers) {
  write_key(out, "step", true);
  out.number(header.step);
  write_key(out, "rank", false);
  out.number(header.rank);
  write_key(out, "alpha", false);
  out.real(header.alpha);
  write_key(out, "loss", false);
  out.real(header.loss);
  write_key(out, "hidden_size", false);
  out.number(header.hidden_size);
  write_key(out, "num_layers", false);
  out.number(num_layers);
}

}  // namespace

fs::path save_json_checkpoint(const fs::path& folder, const JsonCheckpointHeader& header,
                              std::span<const LoraLayer> layers) {
  check_layers(header, layers);
  const fs::path path = folder / fmt::format("lora-checkpoint-step{}.json", header.step);
  TextStream out(path);
  write_header(out, header, layers.size());
  write_key(out, "layers", false);
  out.text("[");
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    if (layer > 0) out.text(",");
    write_layer(out, layers[layer]);
  }
  out.text("]}\n");
  out.commit();
  return path;
}

}  // namespace nibble
