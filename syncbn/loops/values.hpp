// What is done with a channel's vectors and with a run of values: types, factors, activations. Owns no loop over a batch (passes.cpp).
//
// For one type of values: -DVALUES=float, double or BFloat16. Loops are written for a compiler that does several steps side by side.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <vector>

using Index = std::int64_t;

struct BFloat16 {
  std::uint16_t bits;
  BFloat16() = default;
  explicit BFloat16(float value) {  // rounded to nearest, ties to even; NaN stays NaN
    std::uint32_t word;
    std::memcpy(&word, &value, sizeof word);
    bits = value != value ? 0x7fc0 : std::uint16_t((word + 0x7fff + ((word >> 16) & 1)) >> 16);
  }
  operator float() const {
    const std::uint32_t word = std::uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &word, sizeof value);
    return value;
  }
};

using Value = VALUES;
using Wide = std::conditional_t<std::is_same_v<Value, double>, double, float>;  // the accumulation type
constexpr bool is_wide = std::is_same_v<Value, Wide>;

enum Activation : Index { NONE, RELU, RELU6, LEAKY_RELU, SILU, GELU, HARDSWISH, ELU };  // as in library.py
enum Type : Index { ABSENT, FLOAT, DOUBLE, BFLOAT16 };                                  // as in library.py

// ------------------------------------------------------------------------------------------------------------------- alignment

constexpr std::size_t LINE = 64;                    // bytes: what is read at once and lies in two lines of the cache takes twice the time
constexpr Index LANES = LINE / sizeof(Wide);
typedef Wide Lanes __attribute__((vector_size(LINE)));  // values that are worked on at once

static Lanes load(const Wide *from) {
  Lanes values;
  std::memcpy(&values, from, LINE);
  return values;
}

static void keep(Wide *to, const Lanes &values) { std::memcpy(to, &values, LINE); }

// The values, 0 before a lane.
static Lanes from_lane(Index from, Lanes values) {
  using Number = std::conditional_t<std::is_same_v<Wide, double>, std::int64_t, std::int32_t>;
  typedef Number Numbers __attribute__((vector_size(LINE)));
  if (from == 0) return values;
  Numbers lanes;
  for (Index lane = 0; lane < LANES; ++lane) lanes[lane] = Number(lane);
  return lanes >= Number(from) ? values : Lanes{};
}

template <class T> struct Aligned {  // an allocator
  using value_type = T;
  Aligned() = default;
  template <class U> Aligned(const Aligned<U> &) {}
  T *allocate(std::size_t n) { return static_cast<T *>(::operator new(n * sizeof(T), std::align_val_t(LINE))); }
  void deallocate(T *values, std::size_t) { ::operator delete(values, std::align_val_t(LINE)); }
  template <class U> bool operator==(const Aligned<U> &) const { return true; }
  template <class U> bool operator!=(const Aligned<U> &) const { return false; }
};
using Vector = std::vector<Wide, Aligned<Wide>>;

static Index padded(Index width) { return (width + LANES - 1) / LANES * LANES; }

// ---------------------------------------------------------------------------------------------------------------------- vectors

static double read(const void *vector, Index type, Index c, double absent) {
  switch (type) {
    case FLOAT: return static_cast<const float *>(vector)[c];
    case DOUBLE: return static_cast<const double *>(vector)[c];
    case BFLOAT16: return static_cast<const BFloat16 *>(vector)[c];
    default: return absent;
  }
}

static void write(void *vector, Index type, Index c, double value) {
  switch (type) {
    case FLOAT: static_cast<float *>(vector)[c] = float(value); break;
    case DOUBLE: static_cast<double *>(vector)[c] = value; break;
    case BFLOAT16: static_cast<BFloat16 *>(vector)[c] = BFloat16(float(value)); break;
    default: break;
  }
}

static void move(void *buffer, Index type, Index c, double value, double factor) {
  const double before = read(buffer, type, c, 0), step = value - before;
  write(buffer, type, c, factor < 0.5 ? before + factor * step : value - (1 - factor) * step);  // at 1 the value, with all its digits
}

// A factor that is the same for all values of a line, and one for each.
struct Same {
  Wide value;
  Wide operator[](Index) const { return value; }
  Same from(Index) const { return *this; }
};
struct Each {
  const Wide *values;
  Wide operator[](Index i) const { return values[i]; }
  Each from(Index i) const { return {values + i}; }
};
// What a channel's values are worked on with: rounded mean, scale and shift of the forward; a, b, c of the input gradient.
constexpr Index NUM_FACTORS = 6;
template <class Factor> struct Factors {
  Factor origin, scale, shift, a, b, c;
  Factors from(Index i) const { return {origin.from(i), scale.from(i), shift.from(i), a.from(i), b.from(i), c.from(i)}; }
};

static Factors<Same> of_channel(const Vector &vectors, Index C, Index c) {
  const Wide *v = vectors.data() + c;
  return {{v[0]}, {v[C]}, {v[2 * C]}, {v[3 * C]}, {v[4 * C]}, {v[5 * C]}};
}

// Vectors (6, C), several times side by side for rows that are taken for one.
static Vector repeated(const Vector &vectors, Index C, Index times) {
  const Index stride = padded(times * C);
  Vector result(NUM_FACTORS * stride);
  for (Index k = 0; k < NUM_FACTORS; ++k)
    for (Index time = 0; time < times; ++time) std::copy_n(vectors.data() + k * C, C, result.data() + k * stride + time * C);
  return result;
}

static Factors<Each> of_row(const Vector &repeated) {
  const Wide *v = repeated.data();
  const Index stride = repeated.size() / NUM_FACTORS;
  return {{v}, {v + stride}, {v + 2 * stride}, {v + 3 * stride}, {v + 4 * stride}, {v + 5 * stride}};
}

// ------------------------------------------------------------------------------------------------- values, at most CHUNK at a time

static void widen(Wide *__restrict to, const Value *__restrict from, Index count) {
#pragma omp simd
  for (Index i = 0; i < count; ++i) to[i] = Wide(from[i]);
}

static void store(Value *__restrict to, const Wide *__restrict from, Index count) {
#pragma omp simd
  for (Index i = 0; i < count; ++i) to[i] = Value(from[i]);
}

// e^z - 1, by steps that a compiler does side by side: z = n ln 2 + r, the series of e^r - 1, times 2^n. Relative error 2e-7.
static float exp_minus_1(float z) {
  z = z < -87 ? -87 : z > 88 ? 88 : z;
  const float n = std::floor(z * float(M_LOG2E) + 0.5f), r = z - n * 0.693359375f - n * -2.12194440e-4f;
  const float series = r + r * r * (0.5f + r * (1 / 6.f + r * (1 / 24.f + r * (1 / 120.f + r * (1 / 720.f + r / 5040)))));
  const std::int32_t bits = (std::int32_t(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return series * power + (power - 1);
}
static double exp_minus_1(double z) { return std::expm1(z); }
static Wide sigmoid(Wide z) { return 1 / (2 + exp_minus_1(-z)); }
static Wide normal_density(Wide z) { return Wide(M_2_SQRTPI * M_SQRT1_2 / 2) * (1 + exp_minus_1(z * z / -2)); }

// The normal distribution function. In float Abramowitz, Stegun 1964, 7.1.26: within 1e-7, which is what float has of 1 + erf.
static float normal_cdf(float z) {
  const float x = std::fabs(z) * float(M_SQRT1_2), t = 1 / (1 + 0.3275911f * x);
  const float above = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
  const float tail = above * (1 + exp_minus_1(-x * x)) / 2;
  return z < 0 ? tail : 1 - tail;
}
static double normal_cdf(double z) { return (1 + std::erf(z * M_SQRT1_2)) / 2; }

// Call function(i, z) with z = (x - origin) scale + shift + residual, the argument of the activation, for each value.
template <class Factor, class Function>
static void with_arguments(const Value *x, const Value *residual, Factors<Factor> f, Index count, Function function) {
  if (residual == nullptr) {
#pragma omp simd
    for (Index i = 0; i < count; ++i) function(i, (Wide(x[i]) - f.origin[i]) * f.scale[i] + f.shift[i]);
  } else {
#pragma omp simd
    for (Index i = 0; i < count; ++i) function(i, (Wide(x[i]) - f.origin[i]) * f.scale[i] + f.shift[i] + Wide(residual[i]));
  }
}

template <class Factor>
static void activate(Wide *to, const Value *x, const Value *residual, Factors<Factor> f, Index count, Index activation) {
  const auto apply = [=](auto function) { with_arguments(x, residual, f, count, [=](Index i, Wide v) { to[i] = function(v); }); };
  switch (activation) {
    case NONE: return apply([](Wide v) { return v; });
    case RELU: return apply([](Wide v) { return v < 0 ? Wide(0) : v; });
    case RELU6: return apply([](Wide v) { return v < 0 ? Wide(0) : v > 6 ? Wide(6) : v; });
    case LEAKY_RELU: return apply([](Wide v) { return v > 0 ? v : v * Wide(0.01); });
    case SILU: return apply([](Wide v) { return v * sigmoid(v); });
    case GELU: return apply([](Wide v) { return v * normal_cdf(v); });
    case HARDSWISH: return apply([](Wide v) { return v < -3 ? Wide(0) : v > 3 ? v : v * (v + 3) / 6; });
    case ELU: return apply([](Wide v) { return v > 0 ? v : exp_minus_1(v); });
  }
}

// The gradients of the activation's arguments from those of its results.
template <class Factor>
static void differentiate(Wide *to, const Value *dy, const Value *x, const Value *residual, Factors<Factor> f, Index count, Index activation) {
  const auto chain = [=](auto derivative) {
    with_arguments(x, residual, f, count, [=](Index i, Wide v) {
      const Wide slope = derivative(v);
      to[i] = slope == 0 ? Wide(0) : Wide(dy[i]) * slope;  // 0 also where dy is infinite
    });
  };
  switch (activation) {
    case NONE: return widen(to, dy, count);
    case RELU: return chain([](Wide v) { return v <= 0 ? Wide(0) : Wide(1); });
    case RELU6: return chain([](Wide v) { return v <= 0 || v >= 6 ? Wide(0) : Wide(1); });
    case LEAKY_RELU: return chain([](Wide v) { return v > 0 ? Wide(1) : Wide(0.01); });
    case SILU: return chain([](Wide v) { const Wide s = sigmoid(v); return s * (1 + v * (1 - s)); });
    case GELU: return chain([](Wide v) { return normal_cdf(v) + v * normal_density(v); });
    case HARDSWISH: return chain([](Wide v) { return v <= -3 ? Wide(0) : v >= 3 ? Wide(1) : v / 3 + Wide(0.5); });
    case ELU: return chain([](Wide v) { return v > 0 ? Wide(1) : 1 + exp_minus_1(v); });
  }
}

static void clear_outside(Wide *z, const std::uint8_t *mask, Index count) {
  if (mask == nullptr) return;
#pragma omp simd
  for (Index i = 0; i < count; ++i) z[i] = mask[i] ? z[i] : Wide(0);
}

// Where Wide values are written before they are stored: where they belong, if that is their type.
static Wide *place(Value *to, Wide *buffer) {
  if constexpr (is_wide) return reinterpret_cast<Wide *>(to);
  return buffer;
}

// The values as Wide: themselves if they are and nothing is masked; a copy in the buffer otherwise, with the origin outside the mask.
template <class Factor>
static const Wide *widened(const Value *x, Wide *__restrict buffer, const std::uint8_t *mask, Factor origin, Index count) {
  if constexpr (is_wide)
    if (mask == nullptr) return reinterpret_cast<const Wide *>(x);
  widen(buffer, x, count);
  if (mask != nullptr) {
#pragma omp simd
    for (Index i = 0; i < count; ++i) buffer[i] = mask[i] ? buffer[i] : origin[i];
  }
  return buffer;
}
