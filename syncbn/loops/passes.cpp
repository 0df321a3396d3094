// The four passes over a batch that the compiled stages consist of, each with the arithmetic of the vectors that belongs to it.
//
// Owns the arithmetic of these loops, for one type of values (-DVALUES=float, double or BFloat16). Does not own which batches come here
// (compiled.py) or how this file is built (library.py). Tests: tests/syncbn/test_compiled.py.
//
// A batch lies in memory as lines of values next to each other:
//
//     planes  N * C lines of S values, a channel each        rows  N lines of C values, one of each channel
//
// Sums are taken in the accumulation type over at most a few hundred values, and in double beyond; how a batch is cut into parts for that
// does not depend on the number of threads, so neither does a result. Vectors are double where not said otherwise; formulas are those of
// moments.py, running.py and vectors.py.

#include "values.hpp"

constexpr Index CHUNK = 1024;    // values that pass through the nearest cache at a time, and that Wide adds up
constexpr Index ROWS = 256;      // rows that Wide adds up one after the other
constexpr Index SPAN = 512;      // channels below which several rows are taken for one where values are worked on one by one
constexpr Index WIDTH = 64;      // the same where they are added up
constexpr Index SIDE = 16;       // rows that are added up one after the other, some columns at a time
#ifdef __AVX512F__
constexpr Index ABREAST = 4;     // columns, in LANES, whose sums stay in registers
#else
constexpr Index ABREAST = 2;
#endif
constexpr Index RUN = 2048;      // values next to each other that a part of the channels has at least of each image: shorter runs are read slower
constexpr Index HEAD = 64;       // values per channel from which the shift is taken
constexpr Index PARTS = 64;      // into which a batch is cut at most, for threads
constexpr Index GRAIN = 1 << 15; // values that are worth a thread
constexpr double FAR = 16;       // (shift - mean)^2 / variance beyond which the shift costs accuracy: that factor in the variance's error

struct Batch {  // the same fields in the same order as `Batch` in library.py
  const Value *x, *dy, *residual;
  const std::uint8_t *mask;  // one for each row, or for each place of a plane
  Value *y, *dx, *dresidual; // to be written
  Index N, C, S;             // S is 1 for rows
  Index is_planes, activation, num_threads;
  double *total;             // (2C + 1,)
  const void *weight, *bias; // (C,)
  void *running_mean, *running_var, *dweight, *dbias; // (C,), to be moved or written
  Index weight_type, bias_type, running_type, gradient_type, is_unbiased;
  double eps, momentum;
  double *mean, *invstd;     // (C,)
  Wide *rounded;             // (3, C): mean, scale and shift
  double *summed;            // (2C,)
  const double *n;           // ()
};

// ------------------------------------------------------------------------------------------------------------------ elementwise

// The gradients of the activation's arguments, 0 outside the mask: dy itself if they are.
template <class Factor>
static const Wide *argument_gradients(const Batch &b, Index at, Wide *buffer, const std::uint8_t *mask, Factors<Factor> f, Index count) {
  if constexpr (is_wide)
    if (b.activation == NONE && mask == nullptr) return reinterpret_cast<const Wide *>(b.dy + at);
  differentiate(buffer, b.dy + at, b.x + at, b.residual == nullptr ? nullptr : b.residual + at, f, count, b.activation);
  clear_outside(buffer, mask, count);
  return buffer;
}


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

// ------------------------------------------------------------------------------------------------------------------------- sums

struct Sums {  // over part of a batch, of the channels [from, from + size)
  Index from;
  std::vector<double> first, second;
  double n;
  Sums(Index from, Index to) : from(from), first(to - from), second(to - from), n(0) {}
};

// Sums of a channel's values side by side, until they are added to those in double.
struct SideBySide {
  Lanes first, second;
  void flush(double &to_first, double &to_second) {
    for (Index lane = 0; lane < LANES; ++lane) {
      to_first += first[lane];
      to_second += second[lane];
    }
    first = second = Lanes{};
  }
};

// Add up (g, g (x - origin)) or, for local sums, (x - origin, (x - origin)^2).
template <bool is_local> static void add_line(const Wide *g, const Wide *x, Wide origin, Index count, SideBySide &sums) {
  Lanes first = sums.first, second = sums.second, first_odd{}, second_odd{};  // in turns, since an addition is not done when the next begins
  const auto add = [=](Index i, Lanes &a, Lanes &b, Index from) {
    const Lanes distance = from_lane(from, load(x + i) - origin), value = is_local ? distance : from_lane(from, load(g + i));
    a += value;
    b += value * distance;
  };
  Index i = 0;
  for (; i + 2 * LANES <= count; i += 2 * LANES) {
    add(i, first, second, 0);
    add(i + LANES, first_odd, second_odd, 0);
  }
  if (i + LANES <= count) {
    add(i, first, second, 0);
    i += LANES;
  }
  if (i < count && count >= LANES) {  // the last, without those of them that were added already
    add(count - LANES, first_odd, second_odd, i - (count - LANES));
    i = count;
  }
  first += first_odd;
  second += second_odd;
  for (; i < count; ++i) {
    const Wide distance = x[i] - origin, value = is_local ? distance : g[i];
    first[0] += value;
    second[0] += value * distance;
  }
  sums.first = first;
  sums.second = second;
}

// The same of NUM * LANES columns of some rows.
template <bool is_local, Index NUM>
static void add_columns(const Wide *g, const Wide *x, const Wide *origin, Index rows, Index width, Wide *first, Wide *second) {
  Lanes from[NUM], a[NUM], b[NUM];
  for (Index k = 0; k < NUM; ++k) {
    from[k] = load(origin + k * LANES);
    a[k] = load(first + k * LANES);
    b[k] = load(second + k * LANES);
  }
  for (Index row = 0; row < rows; ++row)
    for (Index k = 0; k < NUM; ++k) {
      const Index i = row * width + k * LANES;
      const Lanes distance = load(x + i) - from[k], value = is_local ? distance : load(g + i);
      a[k] += value;
      b[k] += value * distance;
    }
  for (Index k = 0; k < NUM; ++k) {
    keep(first + k * LANES, a[k]);
    keep(second + k * LANES, b[k]);
  }
}

template <bool is_local>
static void add_rows(const Wide *g, const Wide *x, const Wide *origin, Index rows, Index width, Wide *first, Wide *second) {
  Index i = 0;
  for (; i + ABREAST * LANES <= width; i += ABREAST * LANES)
    add_columns<is_local, ABREAST>(g + i, x + i, origin + i, rows, width, first + i, second + i);
  for (; i + LANES <= width; i += LANES) add_columns<is_local, 1>(g + i, x + i, origin + i, rows, width, first + i, second + i);
  for (Index row = 0; row < rows; ++row)
    for (Index k = i; k < width; ++k) {
      const Wide distance = x[row * width + k] - origin[k], value = is_local ? distance : g[row * width + k];
      first[k] += value;
      second[k] += value * distance;
    }
}

// Of the images [begin, end) and, of their planes, the places [from, to).
template <bool is_local>
static void add_planes(const Batch &b, const Vector &vectors, Index begin, Index end, Index from, Index to, Sums &sums) {
  alignas(LINE) Wide gradients[CHUNK], values[CHUNK];
  const Index size = sums.first.size();
  std::vector<SideBySide, Aligned<SideBySide>> partial(size, SideBySide{});
  Index held = 0, after = 0;  // numbers that each lane is the sum of, before and after a line
  for (Index image = begin; image < end; ++image, held = after) {
    const std::uint8_t *mask = b.mask == nullptr ? nullptr : b.mask + image * b.S;
    sums.n += mask == nullptr ? double(to - from) : double(std::count_if(mask + from, mask + to, [](std::uint8_t m) { return m != 0; }));
    for (Index k = 0; k < size; ++k) {
      const Index c = sums.from + k;
      const Factors<Same> f = of_channel(vectors, b.C, c);
      after = held;
      for (Index i = from; i < to; i += CHUNK) {
        const Index at = (image * b.C + c) * b.S + i, count = std::min(CHUNK, to - i);
        const std::uint8_t *inside = mask == nullptr ? nullptr : mask + i;
        const Wide *x = widened(b.x + at, values, inside, f.origin, count);
        const Wide *g = is_local ? nullptr : argument_gradients(b, at, gradients, inside, f, count);
        add_line<is_local>(g, x, vectors[c], count, partial[k]);
        after += (count + LANES - 1) / LANES;
        if (after >= ROWS) {
          partial[k].flush(sums.first[k], sums.second[k]);
          after = 0;
        }
      }
    }
  }
  for (Index k = 0; k < size; ++k) partial[k].flush(sums.first[k], sums.second[k]);
}

// Sums of rows, of which several may have been taken for one.
class RowSums {
 public:
  RowSums(Index C, Index width) : C(C), width(width), first(width), second(width) {}
  template <bool is_local> void add(const Wide *g, const Wide *x, const Wide *origin, Index rows, Sums &sums) {
    add_rows<is_local>(g, x, origin, rows, width, first.data(), second.data());
    if ((pending += rows) >= ROWS) flush(sums);
  }
  void flush(Sums &sums) {
    for (Index i = 0; i < width; ++i) {
      sums.first[i % C] += first[i];
      sums.second[i % C] += second[i];
      first[i] = second[i] = 0;
    }
    pending = 0;
  }

 private:
  Index C, width, pending = 0;
  Vector first, second;
};

// Of the rows [begin, end), `times` of which are taken for one.
template <bool is_local>
static void add_rows_of(const Batch &b, const Vector &vectors, Index begin, Index end, Index times, Sums &sums) {
  const Index width = times * b.C;
  const Index span = std::max<Index>(SPAN / width, 1);  // rows whose gradients are worked out at once
  const Vector wide = repeated(vectors, b.C, times * span);
  const Factors<Each> f = of_row(wide);
  Vector gradients(is_local ? 0 : SIDE * width), values(is_wide ? 0 : SIDE * width);
  RowSums partial(b.C, width);
  for (Index row = begin; row < end;) {
    const Index rows = b.mask == nullptr ? std::min(SIDE, (end - row) / times) : 1, at = row * b.C;
    row += rows * times;
    if (b.mask != nullptr && !b.mask[at / b.C]) continue;
    sums.n += double(rows * times);
    const Wide *x = widened(b.x + at, values.data(), nullptr, f.origin, rows * width);
    const Wide *g = x;  // of these rows, one after the other, in dy or in the buffer
    if constexpr (!is_local)
      for (Index k = 0; k < rows; k += span) {
        const Wide *some = argument_gradients(b, at + k * width, gradients.data() + k * width, nullptr, f, std::min(span, rows - k) * width);
        if (k == 0) g = some;
      }
    partial.add<is_local>(g, x, wide.data(), rows, sums);
  }
  partial.flush(sums);
}

static Sums merged(const std::vector<Sums> &parts, Index C) {
  Sums whole(0, C);
  for (const Sums &part : parts) {
    if (part.from == 0) whole.n += part.n;
    for (std::size_t k = 0; k < part.first.size(); ++k) {
      whole.first[part.from + k] += part.first[k];
      whole.second[part.from + k] += part.second[k];
    }
  }
  return whole;
}

// Sums over the batch, cut into parts by its size alone. Of the vectors (6, C) local sums read the origin only.
template <bool is_local> static Sums sums_of(const Batch &b, const Vector &vectors) {
  const Index num_parts = std::clamp<Index>(b.N * b.C * b.S / GRAIN, 1, PARTS);
  const Index by_channel = b.is_planes ? std::clamp<Index>(b.C * b.S / RUN, 1, std::min(num_parts, b.C)) : 1, along = std::clamp<Index>(num_parts / by_channel, 1, std::max<Index>(b.N, 1));
  const Index across = b.is_planes ? std::clamp<Index>(num_parts / by_channel / along, 1, (b.S + CHUNK - 1) / CHUNK) : 1;
  const Index times = b.is_planes || b.mask != nullptr || b.C >= WIDTH ? 1 : WIDTH / b.C;
  std::vector<Sums> parts;
  for (Index part = 0; part < along * across; ++part)
    for (Index k = 0; k < by_channel; ++k) parts.emplace_back(k * b.C / by_channel, (k + 1) * b.C / by_channel);
  [[maybe_unused]] const int threads = parts.size() < 2 ? 1 : int(b.num_threads);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::size_t number = 0; number < parts.size(); ++number) {
    const Index part = number / by_channel, begin = part / across * b.N / along, end = (part / across + 1) * b.N / along;
    if (b.is_planes) {
      add_planes<is_local>(b, vectors, begin, end, part % across * b.S / across, (part % across + 1) * b.S / across, parts[number]);
    } else {
      const Index whole = begin + (end - begin) / times * times;
      add_rows_of<is_local>(b, vectors, begin, whole, times, parts[number]);
      if (whole < end) add_rows_of<is_local>(b, vectors, whole, end, 1, parts[number]);
    }
  }
  return merged(parts, b.C);
}

// A cheap estimate of the means: those of the head of the batch.
static Vector shifts_of(const Batch &b) {
  Vector origin(NUM_FACTORS * b.C);
  Sums head(0, b.C);
  if (b.is_planes)
    add_planes<true>(b, origin, 0, 1, 0, std::min(b.S, HEAD), head);
  else
    add_rows_of<true>(b, origin, 0, std::min(b.N, HEAD), 1, head);
  for (Index c = 0; c < b.C && head.n > 0; ++c) origin[c] = Wide(head.first[c] / head.n);
  return origin;
}

// What the forward has normalized with, and room for three vectors more.
static Vector rounded_of(const Batch &b) {
  Vector vectors(b.rounded, b.rounded + 3 * b.C);
  vectors.resize(NUM_FACTORS * b.C);
  return vectors;
}

static bool is_far(const Sums &sums, Index C) {
  for (Index c = 0; c < C; ++c)
    if (sums.first[c] * sums.first[c] > FAR / (1 + FAR) * sums.n * sums.second[c]) return true;
  return false;
}

// ------------------------------------------------------------------------------------------------------------------- the passes

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
