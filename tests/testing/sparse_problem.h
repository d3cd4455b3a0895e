// SPDX-License-Identifier: Apache-2.0
// A random paged cache with its key codes and everything the sparse ops take, and the outputs of
// one run of them. One problem can be given to several backends, each with outputs of its own.
#pragma once

#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/ops.h"
#include "kernels/ref/exact.h"
#include "kernels/ref/selection.h"
#include "tests/testing/tensor.h"

namespace asynctls::testing {

struct SparseShape {
  int64_t groups = 2, heads = 4;  // KV heads, query heads per KV head
  int64_t d = 32;
  int64_t lanes = 1;
  int64_t length = 200;  // of every lane
};

inline DecodeRow MakeRow(int lane, int64_t length, int blocks, int tokens, float top_p = 1.0f) {
  return {lane, static_cast<int32_t>(length), blocks, tokens, top_p, DecodeRow::kExact};
}

class SparseProblem {
 public:
  SparseProblem(const SparseShape& shape, uint32_t seed) : shape(shape), random(seed) {
    const int64_t m = std::max<int64_t>(1, BlocksOf(shape.length)), n = shape.lanes * m;
    const int64_t g = shape.groups, d = shape.d, r = kCodeDirections;
    kv_data.resize(n * g * kBlockPositions * 2 * d);
    first_data.resize(n * g * kCodeWords * kBlockPositions);
    second_data.resize(n * g * kCodeWords * kBlockPositions);
    slot_data.resize(n);
    std::iota(slot_data.begin(), slot_data.end(), 0);
    std::shuffle(slot_data.begin(), slot_data.end(), random);
    encode_data.resize(g * d * r);
    turn_data.resize(g * d * r);
    offset_data.resize(g * r);
    FillNormal(encode_data, 1.0f);
    FillNormal(turn_data, 0.3f);
    FillNormal(offset_data, 0.5f);
    for (bf16& x : kv_data) x = ToBf16(Normal());
    slot_table = {slot_data.data(), {shape.lanes, m}};
    kv = {{kv_data.data(), {n, g, kBlockPositions, 2 * d}}, slot_table};
    table.encode = {encode_data.data(), {g, d, r}};
    table.offset = {offset_data.data(), {g, r}};
    table.turn = {turn_data.data(), {g, d, r}};
    codes = {{first_data.data(), {n, g, kCodeWords, kBlockPositions}},
             {second_data.data(), {n, g, kCodeWords, kBlockPositions}}};
  }

  // Codes as AppendKv writes them, of the keys in kv.
  void EncodeAll() {
    std::vector<float> key(shape.d);
    std::vector<uint8_t> code(kCodeDirections);
    for (int64_t slot = 0; slot < kv.rows.dim(0); ++slot) {
      for (int64_t g = 0; g < shape.groups; ++g) {
        for (int64_t p = 0; p < kBlockPositions; ++p) {
          for (int64_t d = 0; d < shape.d; ++d) key[d] = ToFloat(kv.rows(slot, g, p, d));
          EncodeKey(key.data(), table, static_cast<int>(g), code.data());
          StoreCode(code.data(), codes, slot, g, p);
        }
      }
    }
  }
  // Any codes are valid; `levels` < 16 makes ties likely.
  void RandomCodes(int levels = 16) {
    std::vector<uint8_t> code(kCodeDirections);
    for (int64_t slot = 0; slot < kv.rows.dim(0); ++slot) {
      for (int64_t g = 0; g < shape.groups; ++g) {
        for (int64_t p = 0; p < kBlockPositions; ++p) {
          for (uint8_t& c : code) c = static_cast<uint8_t>(random() % levels);
          StoreCode(code.data(), codes, slot, g, p);
        }
      }
    }
  }

  void SetRows(const std::vector<DecodeRow>& new_rows, float q_scale = 1.0f) {
    row_data.assign(new_rows.begin(), new_rows.end());
    const auto s = static_cast<int64_t>(row_data.size());
    q_data.resize(s * shape.groups * shape.heads * shape.d);
    for (bf16& x : q_data) x = ToBf16(Normal() * q_scale);
    rows = {row_data.data(), {s}};
    q = {q_data.data(), {s, shape.groups * shape.heads, shape.d}};
  }

  float Normal() { return normal_(random); }
  void FillNormal(HostVector<float>& v, float scale) {
    for (float& x : v) x = Normal() * scale;
  }

  SparseShape shape;
  std::mt19937 random;
  float scale = 0.17f;
  View<const int32_t, 2> slot_table;
  KvView kv;
  KeyCodeTable table;
  KeyCodes codes;
  View<const DecodeRow, 1> rows;
  View<bf16, 3> q;
  HostVector<bf16> kv_data, q_data;
  HostVector<uint32_t> first_data, second_data;
  HostVector<int32_t> slot_data;
  HostVector<float> encode_data, turn_data, offset_data;
  HostVector<DecodeRow> row_data;

 private:
  std::normal_distribution<float> normal_;
};

// One backend's outputs for the rows of a problem.
class SparseOutputs {
 public:
  explicit SparseOutputs(const SparseProblem& p) : problem_(p) {
    const int64_t s = p.rows.dim(0), g = p.shape.groups, h = g * p.shape.heads;
    const int64_t m = p.slot_table.dim(1), k = m * kBlockPositions, r = kCodeDirections;
    blocks_.assign(s * g * m, -1);
    tokens_.assign(s * g * k, -1);
    for (auto* v : {&block_count_, &token_count_, &touched_, &nan_heads_}) v->assign(s * g, -1);
    code8_.assign(s * h * r, 0);
    scale_.assign(s * h, 0.0f);
    lag_.assign(p.shape.lanes * g * (m + 1), 0);
    out_.assign(s * h * p.shape.d, ToBf16(-7.0f));
    selection = {{blocks_.data(), {s, g, m}},
                 {block_count_.data(), {s, g}},
                 {tokens_.data(), {s, g, k}},
                 {token_count_.data(), {s, g}},
                 {touched_.data(), {s, g}},
                 {nan_heads_.data(), {s, g}}};
    turned = {{code8_.data(), {s, h, r}}, {scale_.data(), {s, h}}};
    lag = {lag_.data(), {p.shape.lanes, g, m + 1}};
    out = {out_.data(), {s, h * p.shape.d}};
  }

  // After turning the queries as the reference does.
  template <class B>
  void SelectBlocks(B& ops) {
    const SparseProblem& p = problem_;
    std::vector<float> q(p.shape.d), product(kCodeDirections);
    for (int64_t s = 0; s < p.rows.dim(0); ++s) {
      for (int64_t h = 0; h < p.q.dim(1) && p.rows[s].length > 0; ++h) {
        for (int64_t d = 0; d < p.shape.d; ++d) q[d] = ToFloat(p.q(s, h, d));
        turned.scale(s, h) = TurnQuery(q.data(),
                                       p.table,
                                       static_cast<int>(h / p.shape.heads),
                                       p.scale,
                                       product.data(),
                                       turned.code8[s][h].data);
      }
    }
    ops.SelectBlocks({p.slot_table, p.rows, p.codes, turned, lag, selection});
  }
  template <class B>
  void SelectTokens(B& ops) {
    const SparseProblem& p = problem_;
    ops.SelectTokens({p.slot_table, p.rows, p.codes, turned, selection});
  }
  template <class B>
  void Attend(B& ops) {
    const SparseProblem& p = problem_;
    ops.SparseAttend({p.q, p.kv, p.rows, selection, p.scale, out});
  }

  std::vector<int32_t> BlocksOfRow(int64_t s, int64_t g) const {
    const int32_t* x = selection.blocks[s][g].data;
    return {x, x + selection.block_count(s, g)};
  }
  std::vector<int32_t> TokensOfRow(int64_t s, int64_t g) const {
    const int32_t* x = selection.tokens[s][g].data;
    return {x, x + selection.token_count(s, g)};
  }

  Selection selection;
  TurnedQuery turned;
  View<int32_t, 3> lag;
  View<bf16, 2> out;

 private:
  const SparseProblem& problem_;
  HostVector<int32_t> blocks_, tokens_, block_count_, token_count_, touched_, nan_heads_, lag_;
  HostVector<int8_t> code8_;
  HostVector<float> scale_;
  HostVector<bf16> out_;
};

}  // namespace asynctls::testing
