#include "nibble/weights/json_checkpoint.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <istream>
#include <optional>
#include <streambuf>

#include "nibble/base/error.h"
#include "nibble/weights/json_checkpoint_form.h"

namespace nibble {
namespace {

using namespace json_checkpoint;

// A file as the parser's stream, a block at a time. The parser keeps a token whole, so its length needs a bound.
class BlockReader : public std::streambuf {
 public:
  explicit BlockReader(const fs::path& path) : file_(path) {}

  const fs::path& path() const { return file_.path(); }
  std::uint64_t size() const { return file_.size(); }
  void saw_token() { blocks_since_token_ = 0; }

 protected:
  int_type underflow() override {
    const auto bytes = std::min<std::uint64_t>(block_.size(), file_.size() - offset_);
    if (bytes == 0) return traits_type::eof();
    check<DataError>(++blocks_since_token_ <= 2, path().string(),
                     "A string, number or gap around byte {} is longer than {} bytes, which no checkpoint has.",
                     offset_, block_.size());
    file_.read(offset_, std::as_writable_bytes(std::span(block_).first(bytes)));
    offset_ += bytes;
    setg(block_.data(), block_.data(), block_.data() + bytes);
    return traits_type::to_int_type(block_.front());
  }

 private:
  File file_;
  std::vector<char> block_ = std::vector<char>(std::size_t{1} << 16);
  std::uint64_t offset_ = 0;
  int blocks_since_token_ = 0;
};

// The keys of one JSON object: each must come, none twice.
class Keys {
 public:
  explicit Keys(std::vector<std::string_view> names) : names_(std::move(names)) {}

  void start() { seen_.assign(names_.size(), false); }

  // Takes the next key; `where` names the object.
  void take(std::string_view key, const std::string& where) {
    current_ = static_cast<std::size_t>(std::find(names_.begin(), names_.end(), key) - names_.begin());
    constexpr std::size_t longest_shown = 40;
    check<DataError>(current_ < names_.size(), where, "The key \"{}\" has no place here; the keys are {}.",
                     key.substr(0, longest_shown), fmt::join(names_, ", "));
    check<DataError>(!seen_[current_], where, "The key \"{}\" comes twice.", key);
    seen_[current_] = true;
  }

  void finish(const std::string& where) const {
    const auto missing = static_cast<std::size_t>(std::find(seen_.begin(), seen_.end(), false) - seen_.begin());
    if (missing == seen_.size()) return;
    fail<DataError>(where, "The key \"{}\" is missing; the keys are {}.", names_[missing], fmt::join(names_, ", "));
  }

  // The key whose value is being read: its index and its name.
  std::size_t current() const { return current_; }
  std::string_view name() const { return names_[current_]; }

 private:
  std::vector<std::string_view> names_;
  std::vector<bool> seen_;
  std::size_t current_ = 0;
};

std::vector<std::string_view> keys_of(const std::vector<Projection>& targets) {
  std::vector<std::string_view> keys;
  for (const Projection p : targets) keys.push_back(projection_keys[static_cast<std::size_t>(p)]);
  return keys;
}

// Follows the parser through the one form that a checkpoint has; nlohmann's sax_parse calls it by these names.
class Handler {
 public:
  Handler(BlockReader& source, const ModelConfig& model, const LoraConfig& lora)
      : source_(source), model_(model), lora_(lora), layer_keys_(keys_of(lora.target_modules)) {
    checkpoint_.layers.reserve(model.num_layers);
  }

  JsonCheckpoint take() { return std::move(checkpoint_); }

  bool null() { refuse("null, which is how some writers put a value that is not finite"); }
  bool boolean(bool value) { refuse(value ? "true" : "false"); }
  bool string(std::string&) { refuse("a string"); }
  bool binary(std::vector<std::uint8_t>&) { refuse("bytes"); }
  bool number_unsigned(std::uint64_t value) {
    return level_ == Level::matrix ? append(static_cast<float>(value)) : scalar(static_cast<double>(value), value);
  }
  bool number_integer(std::int64_t value) {
    return level_ == Level::matrix ? append(static_cast<float>(value)) : scalar(static_cast<double>(value), {});
  }
  bool number_float(double value, const std::string& text) {
    return level_ == Level::matrix ? append(nearest_float(value, text)) : scalar(value, {});
  }

  bool start_object(std::size_t) {
    source_.saw_token();
    switch (level_) {
      case Level::file: return enter(Level::header, header_keys_);
      case Level::layers: return start_layer();
      case Level::layer: return start_adapter();
      default: refuse("an object");
    }
  }
  bool key(std::string& name) {
    source_.saw_token();
    keys().take(name, place());
    return true;
  }
  bool end_object() {
    source_.saw_token();
    keys().finish(place());
    level_ = level_ == Level::adapter ? Level::layer : level_ == Level::layer ? Level::layers : Level::file;
    return true;
  }

  bool start_array(std::size_t) {
    source_.saw_token();
    if (level_ == Level::header && header_keys_.current() == header_key::layers) {
      level_ = Level::layers;
      return true;
    }
    if (level_ != Level::adapter || adapter_keys_.current() >= matrices.size()) refuse("a list");
    values_ = &(adapter().*matrices[adapter_keys_.current()]);
    expected_ = matrix_size(adapter(), adapter_keys_.current());
    values_->reserve(expected_);
    level_ = Level::matrix;
    return true;
  }
  bool end_array() {
    source_.saw_token();
    const bool of_layers = level_ == Level::layers;
    level_ = of_layers ? Level::header : Level::adapter;
    const auto found = of_layers ? checkpoint_.layers.size() : values_->size();
    const auto expected = of_layers ? model_.num_layers : expected_;
    check<DataError>(found == expected, place_of_value(), "The list has {} {}; model and rank make it {}.", found,
                     of_layers ? "layers" : "values", expected);
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& error) {
    constexpr int beyond_f64 = 406;
    if (error.id == beyond_f64) refuse("a number beyond the range of f64");
    check<DataError>(position <= source_.size(), place_of_value(), "The file is cut off: it ends here, at byte {}.",
                     source_.size());
    fail<DataError>(place_of_value(), "This is not valid JSON, at byte {}.", position);
  }

 private:
  // What is open: the file itself, the outermost object, its list of layers, one of them, one projection, its numbers.
  enum class Level { file, header, layers, layer, adapter, matrix };

  Keys& keys() { return level_ == Level::header ? header_keys_ : level_ == Level::layer ? layer_keys_ : adapter_keys_; }
  LoraProjection& adapter() { return checkpoint_.layers.back().at(projection_); }

  bool enter(Level level, Keys& keys) {
    level_ = level;
    keys.start();
    return true;
  }
  bool start_layer() {
    check<DataError>(checkpoint_.layers.size() < model_.num_layers, place(),
                     "The list has more layers than the {} of the model.", model_.num_layers);
    checkpoint_.layers.emplace_back();
    return enter(Level::layer, layer_keys_);
  }
  bool start_adapter() {
    projection_ = lora_.target_modules[layer_keys_.current()];
    const auto [out, in] = projection_dims(model_, projection_);
    adapter().rank = lora_.rank;
    adapter().in_dim = in;
    adapter().out_dim = out;
    return enter(Level::adapter, adapter_keys_);
  }

  bool append(float value) {
    source_.saw_token();
    if (values_->size() == expected_) {  // not check(), which would spell out the place for every number
      fail<DataError>(place(), "The list goes on here; model and rank make it {} values.", expected_);
    }
    values_->push_back(value);
    return true;
  }

  // The text itself is rounded, once: by way of f64 it would be rounded twice.
  float nearest_float(double value, const std::string& text) const {
    float nearest = 0;
    const auto result = std::from_chars(text.data(), text.data() + text.size(), nearest);
    if (result.ec == std::errc::result_out_of_range) nearest = static_cast<float>(value);
    if (!std::isfinite(nearest)) refuse(fmt::format("{}, which is beyond the range of f32", value));
    return nearest;
  }

  bool scalar(double value, std::optional<std::uint64_t> integer) {
    source_.saw_token();
    if (level_ == Level::adapter) return adapter_scalar(value, integer);
    if (level_ != Level::header) refuse(fmt::format("{}", value));
    auto& header = checkpoint_.header;
    switch (header_keys_.current()) {
      case header_key::step:
        if (!integer) refuse(fmt::format("{}", value));
        header.step = *integer;
        return true;
      case header_key::alpha: header.alpha = value; return true;
      case header_key::loss: header.loss = value; return true;
      case header_key::rank: return expect(header.rank = lora_.rank, value, integer);
      case header_key::hidden_size: return expect(header.hidden_size = model_.hidden_size, value, integer);
      case header_key::num_layers: return expect(model_.num_layers, value, integer);
      default: refuse(fmt::format("{}", value));
    }
  }
  bool adapter_scalar(double value, std::optional<std::uint64_t> integer) {
    switch (adapter_keys_.current()) {
      case adapter_key::rank: return expect(lora_.rank, value, integer);
      case adapter_key::in_dim: return expect(adapter().in_dim, value, integer);
      case adapter_key::out_dim: return expect(adapter().out_dim, value, integer);
      default: refuse(fmt::format("{}", value));
    }
  }
  bool expect(std::uint32_t expected, double value, std::optional<std::uint64_t> integer) const {
    check<DataError>(integer == expected, place_of_value(), "The file has {}; model and adapter of this run have {}.",
                     value, expected);
    return true;
  }

  // "PATH: layers[3].down.m_a[17]": what is open.
  std::string place() const {
    std::string text = source_.path().string();
    if (level_ == Level::file || level_ == Level::header) return text;
    if (level_ == Level::layers) return text + fmt::format(": layers[{}]", checkpoint_.layers.size());
    text += fmt::format(": layers[{}]", checkpoint_.layers.size() - 1);
    if (level_ == Level::layer) return text;
    text += fmt::format(".{}", projection_keys[static_cast<std::size_t>(projection_)]);
    return level_ == Level::adapter ? text : text + fmt::format(".{}[{}]", adapter_keys_.name(), values_->size());
  }
  // The same with the key that was read last.
  std::string place_of_value() const {
    if (level_ == Level::header) return place() + fmt::format(": {}", header_keys_.name());
    if (level_ == Level::layer) return place() + fmt::format(".{}", layer_keys_.name());
    if (level_ == Level::adapter) return place() + fmt::format(".{}", adapter_keys_.name());
    return place();
  }

  std::string_view expected_here() const {
    switch (level_) {
      case Level::file: return "the object of a checkpoint";
      case Level::layers: return "a layer, an object";
      case Level::layer: return "a projection, an object";
      case Level::matrix: return "a finite number";
      case Level::adapter: return adapter_keys_.current() < matrices.size() ? "a list of numbers" : "an integer";
      case Level::header: break;
    }
    const auto key = header_keys_.current();
    if (key == header_key::layers) return "a list of layers";
    return key == header_key::alpha || key == header_key::loss ? "a finite number" : "an integer from 0 on";
  }
  [[noreturn]] void refuse(std::string_view found) const {
    fail<DataError>(place_of_value(), "Found {}; expected {}.", found, expected_here());
  }

  BlockReader& source_;
  const ModelConfig& model_;
  const LoraConfig& lora_;
  JsonCheckpoint checkpoint_;

  Level level_ = Level::file;
  Keys header_keys_{{header_keys.begin(), header_keys.end()}};
  Keys layer_keys_;
  Keys adapter_keys_{{adapter_keys.begin(), adapter_keys.end()}};
  Projection projection_ = Projection::q;
  std::vector<float>* values_ = nullptr;  // of the matrix being read, and how many it must have
  std::size_t expected_ = 0;
};

}  // namespace

JsonCheckpoint load_json_checkpoint(const fs::path& path, const ModelConfig& model, const LoraConfig& lora) {
  BlockReader source(path);
  std::istream stream(&source);
  Handler handler(source, model, lora);
  Json::sax_parse(stream, &handler);
  return handler.take();
}

}  // namespace nibble
