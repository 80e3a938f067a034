// What is done to one row of activations, in the order of roundings that transformers has in bfloat16. Plain loops over
// lanes that the compiler turns into vectors; sums are added in 16 lanes whatever the instruction set.
#pragma once
#include "numbers.h"

namespace {

constexpr long ROW_LANES = 16;

__attribute__((always_inline)) inline float rounded(float value) { return from_bf16(to_bf16(value)); }

// e^x to 2 units in the last place; arguments are held within -87 to 88, NaN stays NaN.
__attribute__((always_inline)) inline float exponential(float x) {
  constexpr float ROUND = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  x = x > 88.f ? 88.f : x;
  x = x < -87.f ? -87.f : x;
  float shifted = __builtin_fmaf(x, 1.44269504f, ROUND), n = shifted - ROUND;
  float rest = __builtin_fmaf(n, 2.12194440e-4f, __builtin_fmaf(n, -0.693359375f, x));
  float sum = 1.9875691500e-4f;
  sum = __builtin_fmaf(sum, rest, 1.3981999507e-3f);
  sum = __builtin_fmaf(sum, rest, 8.3334519073e-3f);
  sum = __builtin_fmaf(sum, rest, 4.1665795894e-2f);
  sum = __builtin_fmaf(sum, rest, 1.6666665459e-1f);
  sum = __builtin_fmaf(sum, rest, 5.0000001201e-1f);
  sum = __builtin_fmaf(sum * rest, rest, rest + 1.f);
  return float_of(bits_of(sum) + ((bits_of(shifted) - bits_of(ROUND)) << 23));
}

inline float sum_of_lanes(float *lanes) {
  for (long half = ROW_LANES / 2; half; half /= 2)
    for (long i = 0; i < half; i++) lanes[i] += lanes[i + half];
  return lanes[0];
}

// How a model norms: Gemma multiplies by 1 + weight, and rounds only the product.
struct Norm {
  float eps;
  bool is_gemma;
};

// y = weight * (x / root of the mean square); count is a multiple of 16. y may be x.
inline void rms_norm(const uint16_t *x, const uint16_t *weight, long count, Norm how, uint16_t *y) {
  float squares[ROW_LANES] = {};
  for (long i = 0; i < count; i += ROW_LANES)
    for (long lane = 0; lane < ROW_LANES; lane++) {
      float value = from_bf16(x[i + lane]);
      squares[lane] = __builtin_fmaf(value, value, squares[lane]);
    }
  float scale = 1.f / __builtin_sqrtf(sum_of_lanes(squares) / static_cast<float>(count) + how.eps);
  if (how.is_gemma)
    for (long i = 0; i < count; i++) y[i] = to_bf16((1.f + from_bf16(weight[i])) * (from_bf16(x[i]) * scale));
  else
    for (long i = 0; i < count; i++) y[i] = to_bf16(from_bf16(weight[i]) * rounded(from_bf16(x[i]) * scale));
}

// Turns dimension i of the first half and of the second half by the angle i of this position.
inline void rotate(uint16_t *x, const uint16_t *cosines, const uint16_t *sines, long head_dim) {
  long half = head_dim / 2;
  for (long i = 0; i < half; i++) {
    float first = from_bf16(x[i]), second = from_bf16(x[half + i]);
    float cosine = from_bf16(cosines[i]), sine = from_bf16(sines[i]);
    x[i] = to_bf16(rounded(first * cosine) - rounded(second * sine));
    x[half + i] = to_bf16(rounded(second * cosine) + rounded(first * sine));
  }
}

}  // namespace
