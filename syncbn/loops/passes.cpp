// The four passes over a batch that the compiled stages consist of, each with the arithmetic of the vectors that belongs to it.
//
// Owns the arithmetic of these loops, for one type of values (-DVALUES=float, double or BFloat16). Does not own which batches come here
// (compiled.py) or how this file is built (library.py). Tests: tests/syncbn/test_compiled.py.
//
// Vectors are double where not said otherwise; formulas are those of moments.py, running.py and vectors.py.

#include "sums.hpp"

// Call function(first value, factors, mask, number of values) for all lines, in pieces of at most CHUNK values, and
// empty(first value, number of values) for rows outside the mask.
template <class Function, class Empty>
static void for_all_lines(const Batch &b, const Vector &vectors, Function function, Empty empty) {
  const Index num_values = b.N * b.C * b.S;
  [[maybe_unused]] const int threads = num_values < 2 * GRAIN ? 1 : int(b.num_threads);
  if (b.is_planes) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (Index line = 0; line < b.N * b.C; ++line) {
      const Index c = line % b.C;
      const Factors<Same> factors = of_channel(vectors, b.C, c);
      const std::uint8_t *mask = b.mask == nullptr ? nullptr : b.mask + line / b.C * b.S;
      for (Index i = 0; i < b.S; i += CHUNK)
        function(line * b.S + i, factors, mask == nullptr ? nullptr : mask + i, std::min(CHUNK, b.S - i));
    }
    return;
  }
  const Index times = b.mask != nullptr || b.C >= SPAN ? 1 : SPAN / b.C;
  const Vector wide = repeated(vectors, b.C, times);
  const Index width = times * b.C;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (Index row = 0; row < (b.N + times - 1) / times; ++row) {
    const Index at = row * width, count = std::min(width, num_values - at);
    if (b.mask != nullptr && !b.mask[row]) {
      empty(at, count);
      continue;
    }
    const Factors<Each> factors = of_row(wide);
    for (Index i = 0; i < count; i += CHUNK)
      function(at + i, factors.from(i), static_cast<const std::uint8_t *>(nullptr), std::min(CHUNK, count - i));
  }
}

// What the forward has normalized with, and room for three vectors more.
static Vector rounded_of(const Batch &b) {
  Vector vectors(b.rounded, b.rounded + 3 * b.C);
  vectors.resize(NUM_FACTORS * b.C);
  return vectors;
}

extern "C" {

Index size_of_batch() { return sizeof(Batch); }

// Writes total: this rank's packed moments. One pass, and another where the shift turns out to be far from the mean.
void local_sums(const Batch *batch) {
  const Batch &b = *batch;
  Vector origin = shifts_of(b);
  Sums sums = sums_of<true>(b, origin);
  if (is_far(sums, b.C)) {
    for (Index c = 0; c < b.C; ++c) origin[c] += Wide(sums.first[c] / std::max(sums.n, 1.0));
    sums = sums_of<true>(b, origin);
  }
  b.total[0] = sums.n;
  for (Index c = 0; c < b.C; ++c) {
    const double n = std::max(sums.n, 1.0), offset = sums.first[c] / n, mean = sums.n > 0 ? origin[c] + offset : 0;
    const double centred = sums.second[c] - sums.first[c] * offset, M2 = centred < 0 ? 0 : centred;
    b.total[1 + c] = sums.n * mean;
    b.total[1 + b.C + c] = M2 + sums.n * mean * mean;
  }
}

// Writes mean, invstd, rounded and y; moves the running statistics. total is over all ranks.
void normalize(const Batch *batch) {
  const Batch &b = *batch;
  const double n = b.total[0], divisor = std::max(n, 1.0), factor = n > 1 ? b.momentum : 0;
  for (Index c = 0; c < b.C; ++c) {
    const double sum = b.total[1 + c], mean = sum / divisor, centred = b.total[1 + b.C + c] - sum * mean, M2 = centred < 0 ? 0 : centred;
    const double invstd = 1 / std::sqrt(M2 / divisor + b.eps), scale = invstd * read(b.weight, b.weight_type, c, 1);
    if (factor != 0) {
      move(b.running_mean, b.running_type, c, mean, factor);
      move(b.running_var, b.running_type, c, M2 / (b.is_unbiased ? n - 1 : n), factor);
    }
    const Wide origin = Wide(mean);
    b.mean[c] = mean;
    b.invstd[c] = invstd;
    b.rounded[c] = origin;
    b.rounded[b.C + c] = Wide(scale);
    b.rounded[2 * b.C + c] = Wide(read(b.bias, b.bias_type, c, 0) + (origin - mean) * scale);
  }
  const auto line = [&b](Index at, auto factors, const std::uint8_t *mask, Index count) {
    alignas(LINE) Wide buffer[CHUNK];
    Wide *z = place(b.y + at, buffer);
    activate(z, b.x + at, b.residual == nullptr ? nullptr : b.residual + at, factors, count, b.activation);
    clear_outside(z, mask, count);
    if constexpr (!is_wide) store(b.y + at, z, count);
  };
  for_all_lines(b, rounded_of(b), line, [&b](Index at, Index count) { std::fill_n(b.y + at, count, Value(0)); });
}

// Writes summed, this rank's part of (sum g, sum g (x - mean)) with g = weight dz; and dweight and dbias.
void gradient_sums(const Batch *batch) {
  const Batch &b = *batch;
  const Sums sums = sums_of<false>(b, rounded_of(b));
  for (Index c = 0; c < b.C; ++c) {
    const double dot = sums.second[c] + (b.rounded[c] - b.mean[c]) * sums.first[c], weight = read(b.weight, b.weight_type, c, 1);
    b.summed[c] = weight * sums.first[c];
    b.summed[b.C + c] = weight * dot;
    write(b.dweight, b.gradient_type, c, dot * b.invstd[c]);
    write(b.dbias, b.gradient_type, c, sums.first[c]);
  }
}

// Writes dx = a dz + b (x - mean) + c, and dresidual = dz. summed is over all ranks.
void input_gradient(const Batch *batch) {
  const Batch &b = *batch;
  const double divisor = std::max(*b.n, 1.0);
  Vector vectors = rounded_of(b);
  for (Index c = 0; c < b.C; ++c) {
    const double invstd = b.invstd[c], slope = -invstd * invstd * invstd * b.summed[b.C + c] / divisor;
    vectors[3 * b.C + c] = Wide(invstd * read(b.weight, b.weight_type, c, 1));
    vectors[4 * b.C + c] = Wide(slope);
    vectors[5 * b.C + c] = Wide(-invstd * b.summed[c] / divisor + (b.rounded[c] - b.mean[c]) * slope);
  }
  const auto line = [&b](Index at, auto f, const std::uint8_t *mask, Index count) {
    alignas(LINE) Wide gradients[CHUNK], buffer[CHUNK];
    const Wide *dz = argument_gradients(b, at, gradients, mask, f, count);
    if (b.dresidual != nullptr) store(b.dresidual + at, dz, count);
    const Value *x = b.x + at;
    Wide *dx = place(b.dx + at, buffer);
#pragma omp simd
    for (Index i = 0; i < count; ++i) dx[i] = dz[i] * f.a[i] + ((Wide(x[i]) - f.origin[i]) * f.b[i] + f.c[i]);
    clear_outside(dx, mask, count);
    if constexpr (!is_wide) store(b.dx + at, dx, count);
  };
  for_all_lines(b, vectors, line, [&b](Index at, Index count) {
    std::fill_n(b.dx + at, count, Value(0));
    if (b.dresidual != nullptr) std::fill_n(b.dresidual + at, count, Value(0));
  });
}

}  // extern "C"
