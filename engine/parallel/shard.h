// SPDX-License-Identifier: Apache-2.0
// Shard: which part of a tensor a rank holds. The one place for tensor-parallel split arithmetic;
// which tensor is split how is the table in engine/model/weights.cc.
#pragma once

#include <algorithm>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace asynctls {

struct Shard {
  int rank = 0;
  int size = 1;

  // Half-open.
  struct Range {
    int64_t begin;
    int64_t end;
    int64_t count() const { return end - begin; }
  };

  // Equal parts. Requires: Check(n) is OK.
  Range Even(int64_t n) const { return {n / size * rank, n / size * (rank + 1)}; }
  // Rows of a vocabulary of n on every rank, the last ranks' padded: ceil(n / size).
  int64_t PaddedRows(int64_t n) const { return (n + size - 1) / size; }
  // Those of them that exist. May be empty.
  Range Padded(int64_t n) const {
    const int64_t rows = PaddedRows(n);
    return {std::min(n, rows * rank), std::min(n, rows * (rank + 1))};
  }

  // INVALID_ARGUMENT naming `what` when it does not divide evenly, or rank and size are impossible.
  absl::Status Check(absl::string_view what, int64_t n) const {
    if (size < 1 || size > kMaxRanks || rank < 0 || rank >= size) {
      return absl::InvalidArgumentError(absl::StrCat(
          "rank ", rank, " of ", size, ": ranks must be 1 to ", kMaxRanks, " and rank below it"));
    }
    if (n % size != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(what, " is ", n, ", not divisible by the ", size, " tensor-parallel ranks"));
    }
    return absl::OkStatus();
  }

  static constexpr int kMaxRanks = 64;
};

}  // namespace asynctls
