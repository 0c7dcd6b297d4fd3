#pragma once

#include <cmath>
#include <iterator>

namespace nibble {

// ||values - expected|| / ||expected||, of numbers of any type; NaN where one is.
template <typename Values, typename Expected>
double relative_error(const Values& values, const Expected& expected) {
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < std::size(values); ++i) {
    const double difference = static_cast<double>(values[i]) - static_cast<double>(expected[i]);
    error += difference * difference;
    norm += static_cast<double>(expected[i]) * static_cast<double>(expected[i]);
  }
  return std::sqrt(error / norm);
}

}  // namespace nibble
