// SPDX-License-Identifier: Apache-2.0
// Names of full KV blocks: a 128-bit hash chain over the tokens from position 0, so equal names
// mean equal contents. SipHash-2-4-128 with a key drawn per process: nobody outside can prepare two
// prompts of one name.
#pragma once

#include <array>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/base/ids.h"

namespace asynctls {

struct BlockName {
  uint64_t low = 0, high = 0;

  bool operator==(const BlockName&) const = default;
  template <class H>
  friend H AbslHashValue(H h, const BlockName& name) {
    return H::combine(std::move(h), name.low, name.high);
  }
};

// SipHash-2-4 with 128 bits of output (Aumasson and Bernstein, github.com/veorq/SipHash).
BlockName SipHash128(const std::array<uint64_t, 2>& key, absl::string_view bytes);

// Immutable; any thread.
class BlockNamer {
 public:
  BlockNamer();

  // The name before the first block: what the keys depend on besides tokens (weights, rope and
  // layout in `fingerprint`) and who may share them (`salt`).
  BlockName Root(absl::string_view fingerprint, absl::string_view salt) const;
  // The name of the block that holds `tokens` after the block named `previous`.
  BlockName Next(const BlockName& previous, absl::Span<const Token> tokens) const;

 private:
  std::array<uint64_t, 2> key_;
};

}  // namespace asynctls
