// A batch as the passes get it, and the gradients of its activation's arguments. Owns no loop over a batch (sums.hpp, passes.cpp).
//
// It lies in memory as lines of values next to each other:
//
//     planes  N * C lines of S values, a channel each        rows  N lines of C values, one of each channel

#pragma once

#include "values.hpp"

constexpr Index CHUNK = 1024;    // values that pass through the nearest cache at a time
constexpr Index SPAN = 512;      // values of rows that are worked on one by one in one go, where rows are shorter
constexpr Index GRAIN = 1 << 15; // values that are worth a thread

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

// The gradients of the activation's arguments, 0 outside the mask: dy itself if they are.
template <class Factor>
static const Wide *argument_gradients(const Batch &b, Index at, Wide *buffer, const std::uint8_t *mask, Factors<Factor> f, Index count) {
  if constexpr (is_wide)
    if (b.activation == NONE && mask == nullptr) return reinterpret_cast<const Wide *>(b.dy + at);
  differentiate(buffer, b.dy + at, b.x + at, b.residual == nullptr ? nullptr : b.residual + at, f, count, b.activation);
  clear_outside(buffer, mask, count);
  return buffer;
}
