// Sums over a batch, by channel: the moments of the forward and what the backward needs.
//
// They are taken in the accumulation type over at most a few hundred values, and in double beyond. How a batch is cut into parts for that
// does not depend on the number of threads, so neither does a result.

#pragma once

#include "batch.hpp"

constexpr Index ROWS = 256;      // values that Wide adds up one after the other
constexpr Index WIDTH = 64;      // channels below which several rows are taken for one
constexpr Index SIDE = 16;       // rows of which some columns are added up before the next
#ifdef __AVX512F__
constexpr Index ABREAST = 4;     // columns, in LANES, whose sums stay in registers
#else
constexpr Index ABREAST = 2;
#endif
constexpr Index RUN = 2048;      // values next to each other that a part of the channels has at least of each image: shorter runs are read slower
constexpr Index HEAD = 64;       // values per channel from which the shift is taken
constexpr Index PARTS = 64;      // into which a batch is cut at most, for threads
constexpr double FAR = 16;       // (shift - mean)^2 / variance beyond which the shift costs accuracy: that factor in the variance's error

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

static bool is_far(const Sums &sums, Index C) {
  for (Index c = 0; c < C; ++c)
    if (sums.first[c] * sums.first[c] > FAR / (1 + FAR) * sums.n * sums.second[c]) return true;
  return false;
}
