// SPDX-License-Identifier: Apache-2.0
// How many rows a pass of decode rows is padded to, so that few numbers of rows occur: what a
// backend replays is made once for each.
#pragma once

#include <algorithm>
#include <cstdint>

namespace asynctls {

// 0, 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, ...: the least that is not below `rows`.
constexpr int64_t PaddedRows(int64_t rows) {
  if (rows <= 0) return 0;
  int64_t size = 1;
  while (size < rows) size *= 2;
  const int64_t between = size / 4 * 3;
  return size > 16 && rows <= between ? between : size;
}

// Most rows that `rows` rows become when they are padded in two groups.
constexpr int64_t MostPaddedRows(int64_t rows) {
  int64_t most = 0;
  for (int64_t first = 0; first <= rows; ++first) {
    most = std::max(most, PaddedRows(first) + PaddedRows(rows - first));
  }
  return most;
}

}  // namespace asynctls
