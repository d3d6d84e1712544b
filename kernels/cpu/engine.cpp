#include "engine.h"

#include <cmath>

namespace youtu {

Engine engine;

float half_to_float(uint16_t half) {
  const int sign = half >> 15, exponent = half >> 10 & 31, mantissa = half & 1023;
  float value = exponent ? std::ldexp(1024.0f + static_cast<float>(mantissa), exponent - 25)
                         : std::ldexp(static_cast<float>(mantissa), -24);
  if (exponent == 31) value = mantissa ? NAN : INFINITY;
  return sign ? -value : value;
}

}  // namespace youtu
