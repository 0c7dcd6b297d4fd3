#include <cmath>

#include "nibble/base/error.h"
#include "nibble/io/json.h"

namespace nibble {
namespace {

class Writer {
 public:
  explicit Writer(bool pretty) : pretty_(pretty) {}

  void write(const Json& value) {
    if (value.is_object()) {
      write_object(value);
    } else if (value.is_array()) {
      write_array(value);
    } else if (value.is_number_float()) {
      write_double(value.get<double>());
    } else {
      // Integers, strings (non-ASCII as \uXXXX), true, false and null look the same in both.
      text_ += value.dump(-1, ' ', true);
    }
  }

  std::string take() { return std::move(text_); }

 private:
  void write_object(const Json& object) {
    open('{');
    bool first = true;
    for (const auto& [key, value] : object.items()) {  // a std::map: in the order of UTF-8 bytes, so of code points
      separate(first);
      text_ += Json(key).dump(-1, ' ', true);
      text_ += ": ";
      write(value);
    }
    close('}', first);
  }

  void write_array(const Json& array) {
    open('[');
    bool first = true;
    for (const auto& value : array) {
      separate(first);
      write(value);
    }
    close(']', first);
  }

  // Python's repr: the shortest digits that read back, an exponent below 1e-4 and from 1e16 on, and ".0" for integers.
  void write_double(double value) {
    check(std::isfinite(value), "write_json", "The number {} cannot be written: JSON knows finite numbers only.",
          value);
    std::string digits = fmt::format("{}", value);
    if (digits.find_first_of(".e") == digits.npos) digits += ".0";
    text_ += digits;
  }

  void open(char bracket) {
    text_ += bracket;
    ++depth_;
  }

  void separate(bool& first) {
    if (!first) text_ += pretty_ ? "," : ", ";
    first = false;
    break_line();
  }

  void close(char bracket, bool empty) {
    --depth_;
    if (!empty) break_line();
    text_ += bracket;
  }

  void break_line() {
    if (!pretty_) return;
    text_ += '\n';
    text_.append(2 * depth_, ' ');
  }

  bool pretty_;
  std::size_t depth_ = 0;
  std::string text_;
};

std::string written(const Json& value, bool pretty) {
  try {
    Writer writer(pretty);
    writer.write(value);
    return writer.take();
  } catch (const Json::exception&) {
    fail("write_json", "A string in the value is not valid UTF-8.");
  }
}

}  // namespace

std::string write_json(const Json& value) { return written(value, true); }

std::string write_json_line(const Json& value) { return written(value, false); }

}  // namespace nibble
