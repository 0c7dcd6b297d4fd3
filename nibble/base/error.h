#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <string_view>

namespace nibble {

// Every failure of the library is one of these exceptions. The text is "[where] Full sentence.", with the value that was
// given and what is allowed. The library never prints, exits or aborts.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The data, the model or another file is at fault (exit code 1).
class DataError : public Error {
 public:
  using Error::Error;
};

// An option or argument is at fault (exit code 2).
class UsageError : public Error {
 public:
  using Error::Error;
};

// The GPU, its driver or Dawn failed (exit code 3).
class DeviceError : public Error {
 public:
  using Error::Error;
};

class DeviceLost : public DeviceError {
 public:
  using DeviceError::DeviceError;
};

class OutOfDeviceMemory : public DeviceError {
 public:
  using DeviceError::DeviceError;
};

// A non-finite loss, gradient or weight (exit code 4).
class Diverged : public Error {
 public:
  using Error::Error;
};

// The [where] of its text; empty where there is none.
inline std::string_view place_of(const Error& error) {
  const std::string_view what = error.what();
  const auto end = what.find("] ");
  return what.starts_with('[') && end != what.npos ? what.substr(1, end - 1) : std::string_view();
}

// Throws E with the formatted sentence. `where` names the function or file, without brackets.
template <typename E = Error, typename... Args>
[[noreturn]] void fail(std::string_view where, fmt::format_string<Args...> sentence, Args&&... args) {
  throw E(fmt::format("[{}] {}", where, fmt::format(sentence, std::forward<Args>(args)...)));
}

template <typename E = Error, typename... Args>
void check(bool holds, std::string_view where, fmt::format_string<Args...> sentence, Args&&... args) {
  if (!holds) fail<E>(where, sentence, std::forward<Args>(args)...);
}

}  // namespace nibble
