// What becomes of the sums that a tile returns.
#pragma once
#include "kernels.h"
#include "numbers.h"

namespace {

// What a tile returns for one token: the sums of 8 rows.
struct alignas(32) RowSums {
  float row[BLOCK_ROWS];
};

// An epilogue is called with a block of rows, a token and its sums. This one adds the bias, rounds and stores.
template <class Out>
struct Store {
  Out *y;
  const Out *bias;  // or null
  long rows;

  explicit Store(const Product &job)
      : y(static_cast<Out *>(job.y)), bias(static_cast<const Out *>(job.bias)), rows(job.weight.rows) {}

  void operator()(long row_block, long token, const RowSums &sums) const {
    long first = row_block * BLOCK_ROWS, rest = rows - first, count = rest < BLOCK_ROWS ? rest : long{BLOCK_ROWS};
    Out *to = y + token * rows + first;
    float total[BLOCK_ROWS];
    for (int i = 0; i < BLOCK_ROWS; i++) total[i] = sums.row[i];
    if (bias)
      for (long i = 0; i < count; i++) total[i] += read_float(bias + first + i);
    if (count == BLOCK_ROWS)
      for (int i = 0; i < BLOCK_ROWS; i++) write_float(to + i, total[i]);
    else
      for (long i = 0; i < count; i++) write_float(to + i, total[i]);
  }
};

}  // namespace
