// SPDX-License-Identifier: Apache-2.0
// The whole op interface: one args struct per op and the concept a backend satisfies. RefOps
// (kernels/ref) is the definition of every op; CpuOps and CudaOps must agree with it within the
// tolerance table of kernels/README.md, and exactly where this file says "exact".
//
// Shape alphabet: T token rows of a step, S decode rows, L lanes, Q query heads, G KV heads,
// R = Q / G, D head dim, H hidden, I intermediate, V vocabulary rows, P positions per block,
// N slots, M width of a block table, r code directions, K selected.
//
// All views are contiguous and live where the backend computes. Ops are ordered by the backend's
// stream (a backend without one is synchronous). Ops never allocate after Prepare/first use of a
// shape, never log, and treat a broken precondition as a bug (assert), not as an error.
//
// Padding: where a step's rows are rounded up to a number that has been seen before, the rows too
// many read nobody's memory and write nobody's: lanes[t] = -1 in AppendKvArgs, length 0 in
// DecodeRow, lane -1 in SampleRow, token -1 and top 0 in LogProbRow. In all other ops they are rows
// like any other (id 0, position 0, row 0), whose results nobody reads.
#pragma once

#include <concepts>
#include <cstdint>
#include <functional>
#include <string>

#include "kernels/device/dtype.h"
#include "kernels/device/memory_kind.h"
#include "kernels/device/view.h"

namespace asynctls {

// Positions per block: of KV, of the key codes, of residency, of prefix reuse. One number.
inline constexpr int kBlockPositions = 64;
// Always-attended positions at the start and at the end of a sequence.
inline constexpr int kSinkPositions = 16;
inline constexpr int kWindowPositions = 64;

// ---------------------------------------------------------------------------------- dense ops --

// A weight matrix [N out, K in], row-major as in the checkpoint, until Ops::Prepare has rewritten
// it in place in the layout its Gemm reads. `layout` is the backend's own tag, 0 = row-major.
struct Matrix {
  View<bf16, 2> data;
  int layout = 0;
};

// out[t] = table[id - first_id], zero where the id is outside the table (vocabulary-parallel
// ranks add up). id = ids[t] if >= 0, else last_token[-1 - ids[t]]: decode rows name their lane, so
// that sampled tokens never visit the host.
struct EmbedArgs {
  View<const int32_t, 1> ids;         // [T]
  View<const int32_t, 1> last_token;  // [L]
  View<const bf16, 2> table;          // [V, H]
  int32_t first_id;
  View<bf16, 2> out;  // [T, H]
};

// If residual is not empty: residual += x (rounded to bf16), then out = norm(residual); else
// out = norm(x). norm(v) = bf16(v * rsqrt(mean(v^2) + eps)) * weight, fp32 inside, as HuggingFace
// Qwen3RMSNorm. `out` may be `x`.
struct RmsNormArgs {
  View<const bf16, 2> x;       // [T, H]
  View<bf16, 2> residual;      // [T, H] or empty
  View<const bf16, 1> weight;  // [H]
  View<bf16, 2> out;           // [T, H]
  float eps;
};

// out = x * w^T, fp32 accumulation. Row t of out depends on row t of x only, bit for bit: not on
// how many rows there are (this is what makes a sequence independent of its batch). `decode`: all
// rows are decode rows; a backend may compute decode rows and prompt rows in different ways, each
// of which keeps the row contract (it then asks for passes of their own: kSplitPasses).
//
// What may come before and after a product, with the bits of the ops so named, so that a backend
// can do it on the way: a norm of x, and then the addition to a residual or the gate. Where there
// is one, `normed` or `out` is scratch whose contents are nobody's business.
struct GemmArgs {
  View<const bf16, 2> x;  // [T, K]
  const Matrix* w;        // [N, K]
  View<bf16, 2> out;      // [T, N]
  bool decode = false;
  View<const bf16, 1> norm = {};  // [K] or empty: x is RmsNorm(x, norm, eps) then
  float eps = 0;
  View<bf16, 2> normed = {};    // [T, K] where there is a norm
  View<bf16, 2> residual = {};  // [T, N] or empty: residual += out, rounded to bf16
  View<bf16, 2> gated = {};     // [T, N / 2] or empty: SwiGlu(out); not with a residual
};
struct LogitsArgs {
  View<const bf16, 2> x;  // [S, K]
  const Matrix* w;        // [N, K]
  View<float, 2> out;     // [S, N]
  bool decode = false;
};

// cos_sin[t] = [cos(p f_i) * scale for i < D/2 | sin(p f_i) * scale], p = positions[t]. Computed
// once per step and read by every layer.
struct RopeTableArgs {
  View<const int32_t, 1> positions;    // [T]
  View<const float, 1> inv_frequency;  // [D/2]
  float scale;                         // YaRN attention factor, 1 without
  View<float, 2> cos_sin;              // [T, D]
};

// out[t] = silu(gate_up[t][:I]) * gate_up[t][I:], fp32 inside, silu(gate) not rounded in between.
struct SwiGluArgs {
  View<const bf16, 2> gate_up;  // [T, 2I]
  View<bf16, 2> out;            // [T, I]
};

// dst[s] = src[rows[s]].
struct CopyRowsArgs {
  View<const bf16, 2> src;      // [T, H]
  View<const int32_t, 1> rows;  // [S]
  View<bf16, 2> dst;            // [S, H]
};

// ------------------------------------------------------------------------------ KV and its codes
// --

// One layer's KV cache: kv[slot][g] is P rows of [K | V], so that one token of one head is 2D
// contiguous values. A slot is found through slot_table[lane][position / P].
struct KvView {
  View<bf16, 4> rows;                 // [N, G, P, 2D]
  View<const int32_t, 2> slot_table;  // [L, M]
};

// A key code has 4 bits for each of 32 directions, in the order of what they contribute to q . k.
// Part 1, read for every token, has all bits of the first kFineDirections and the high 2 bits of
// the next kCoarseDirections; part 2, read for candidates only, has the low 2 bits of those and all
// bits of the rest. 8 bytes each per token and head.
inline constexpr int kCodeDirections = 32;
inline constexpr int kFineDirections = 8;
inline constexpr int kCoarseDirections = 16;
inline constexpr int kCodeWords = 2;  // 32-bit words of each part

// The turning of keys and queries of one layer into the code's directions, from calibration
// (engine/sparse/calibration.h); r = kCodeDirections.
// Products with these tables are exact: component c is ((a0 + a1) + (a2 + a3)), where a_j is the
// chain of fused multiply-adds over d = j, j + 4, j + 8, ... starting from 0.
struct KeyCodeTable {
  View<const float, 3> encode;  // [G, D, r]  U' Cq^1/2, divided by the direction's code step
  View<const float, 2> offset;  // [G, r]     mean of the keys in code steps
  View<const float, 3> turn;    // [G, D, r]  U' Cq^-1/2, times the direction's code step
};

// One layer's key codes, a function of the keys as stored (bf16). Code of direction c =
// clamp(floor(x_c) + 8, 0, 15) with x_c = (key product) - offset (one subtraction), NaN codes as 8;
// it stands for the value code - 7.5. The open tail block is coded like any other. Words are laid
// out per (slot, head) with the token index running fastest, and within a word so that four
// directions are the bytes of (word >> shift) & mask: what vpdpbusd, dp4a and int8 matrix fragments
// take.
//   first word 0, second word 1: byte j = code_{b+j} | code_{b+4+j} << 4, b = 0 and 24
//   first word 1, second word 0: byte j = x_{8+j} | x_{12+j} << 2 | x_{16+j} << 4 | x_{20+j} << 6,
//                                x = code >> 2 and code & 3
// Packing and unpacking are in kernels/ref/exact.h.
struct KeyCodes {
  View<uint32_t, 4> first;   // [N, G, 2, P]
  View<uint32_t, 4> second;  // [N, G, 2, P]
};

// The turned query of decode rows, written by AppendKv and read by both levels. Exact: with m the
// largest magnitude of the head's r products, code8_c = int8(rint(product_c * (127 / m))), scale =
// m * (attention scale / 254), so that the approximate logit of a token is
// float(sum_c code8_c * (2 code_c - 15)) * scale. m below 2^-100 gives zeros (scale too); a product
// that is not finite, or above 2^100, gives scale = NaN and code8 = 0: that head is left out and
// counted. All of it is TurnQuery in kernels/ref/exact.h.
struct TurnedQuery {
  View<int8_t, 3> code8;  // [S, Q, r]
  View<float, 2> scale;   // [S, Q]
};

// QK-norm (RMSNorm over D, weight shared by the heads), RoPE on halves (i, i + D/2), the append of
// K | V to the token's slot and of its key code to the index, and the turning of q as it is stored
// in q_out, as one op. With an empty `code.encode` (dense layers, calibration) no codes are written;
// with an empty `turned` nothing is turned, else rows turn_begin .. turn_begin + S of the T. For a
// row of lane -1 (padding) nothing is written but, perhaps, its q_out.
struct AppendKvArgs {
  View<const bf16, 2> qkv;     // [T, (Q + 2G) D], heads of q, then of k, then of v
  View<const bf16, 1> q_norm;  // [D]
  View<const bf16, 1> k_norm;  // [D]
  float eps;
  View<const float, 2> cos_sin;      // [T, D]
  View<const int32_t, 1> lanes;      // [T], -1 = padding
  View<const int32_t, 1> positions;  // [T]
  View<bf16, 3> q_out;               // [T, Q, D]
  KvView kv;
  KeyCodeTable code;
  KeyCodes codes;
  TurnedQuery turned;
  int64_t turn_begin;
  float scale;  // attention scale, for `turned`
};

// ---------------------------------------------------------------------------------- attention --

// A run of consecutive positions of one lane, `row` being its first row in the step.
struct PrefillSegment {
  int32_t row;
  int32_t count;
  int32_t lane;
  int32_t start;  // position of the first row
};

// Causal attention of prompt chunks over everything before them in their lane (the chunk's own KV
// is already appended). out is [T, Q, D] flattened. Row results do not depend on chunk borders.
struct PrefillAttendArgs {
  View<const bf16, 3> q;  // [T, Q, D]
  KvView kv;
  View<const PrefillSegment, 1> segments;
  float scale;        // of q . k, usually D^-1/2
  View<bf16, 2> out;  // [T, Q D]
};

// One decode row. A row reads positions [0, length), its own included. Length 0 is padding: it
// selects nothing, attends to nothing (its `out` is zero), and its lane and q are not looked at.
struct DecodeRow {
  int32_t lane;
  int32_t length;
  int32_t max_blocks;  // k_b
  int32_t max_tokens;  // k_t
  float top_p;         // cut of the selected tokens by mass, 1 = off
  enum Lag : int32_t { kExact = 0, kLagged = 1, kLaggedFirst = 2 } lag;
};

// Full attention of S decode rows.
struct DecodeAttendArgs {
  View<const bf16, 3> q;  // [S, Q, D]
  KvView kv;
  View<const DecodeRow, 1> rows;  // [S]
  float scale;
  View<bf16, 2> out;  // [S, Q D]
};

// What attention will read: the contract between selecting and attending. Ids are sorted by
// position. Counts are per row and KV head.
struct Selection {
  View<int32_t, 3> blocks;       // [S, G, M]   logical block index within the lane
  View<int32_t, 2> block_count;  // [S, G]
  View<int32_t, 3> tokens;       // [S, G, K]   position within the lane
  View<int32_t, 2> token_count;  // [S, G]
  View<int32_t, 2> touched;      // [S, G]      distinct blocks the tokens lie in
  View<int32_t, 2> nan_heads;    // [S, G]      query heads whose scores were not finite
};

// Level 1. Exact: s1(head, token) = float(product) * scale(head), product = sum over the fine
// directions of code8 (2 code - 15) + sum over the coarse ones of code8 (8 (code >> 2) - 12); the
// score of a block is the maximum over its tokens below `length` and over the R heads (-inf without
// a finite head); the max_blocks best by RankKey are kept: the first block and the last two before
// all others (they count), then by score, ties (and the forced ones) to the lower index. Rows with
// lag != kExact exchange:
// `lag` [L, G, M + 1] holds the previous step's count and blocks; kLagged rows get those, joined
// with the first and the last two blocks of now (up to 3 more than max_blocks), and leave their
// own behind; kLaggedFirst rows keep their own and leave a copy. Padded rows select nothing.
struct SelectBlocksArgs {
  View<const int32_t, 2> slot_table;
  View<const DecodeRow, 1> rows;
  KeyCodes codes;
  TurnedQuery turned;
  View<int32_t, 3> lag;
  Selection out;  // writes blocks, block_count, nan_heads
};

// Level 2, over the tokens of out.blocks below `length`. Exact: logit(h, t) = float(int product
// over all r) * scale(h); y = (logit - max_t logit) * 1.44269502f; weight(h, t) = FixedExp2(y), an
// integer of 24 fraction bits; Z(h) = sum_t weight (64-bit integer); score(t) = chain over h of
// fma(float(weight), 1.0f / float(Z(h)), score) from 0. The max_tokens best by RankKey are kept:
// positions below kSinkPositions or within kWindowPositions of the end before all others (they
// count), then by score, ties (and the forced ones) to the lower position. top_p < 1 cuts them to
// the smallest prefix in that order that holds all the forced ones kept and whose sum of FixedScore
// reaches MassNeeded(top_p, sum over all candidates). FixedExp2 and the others are in
// kernels/ref/exact.h.
struct SelectTokensArgs {
  View<const int32_t, 2> slot_table;
  View<const DecodeRow, 1> rows;
  KeyCodes codes;
  TurnedQuery turned;
  Selection out;  // reads blocks, writes tokens, token_count, touched
};

// Softmax attention over the selected tokens only, with full-precision K and V.
struct SparseAttendArgs {
  View<const bf16, 3> q;  // [S, Q, D]
  KvView kv;
  View<const DecodeRow, 1> rows;
  Selection selection;
  float scale;
  View<bf16, 2> out;  // [S, Q D]
};

// heat[s][b] = in how many KV heads a token of block b is selected, or that much more where `add`.
struct CountBlocksArgs {
  Selection selection;
  View<int32_t, 2> heat;  // [S, M]
  bool add;
};

// ---------------------------------------------------------- the paper's selector, to compare with
// --

// AsyncTLS's own index (arXiv 2604.07815 as far as it is known): per block and channel the minimum
// and maximum of the keys, and per token `r` channels of 4 bits with a scale and zero of its own.
struct BoundIndex {
  View<bf16, 4> range;              // [N, G, 2 (min, max), D]
  View<uint8_t, 4> code;            // [N, G, P, r/2]
  View<bf16, 4> step;               // [N, G, P, 2 (step, zero)]
  View<const int32_t, 2> channels;  // [G, r]
};
// Brings the index up to date for the T rows just appended (the key is read back from kv).
struct BoundAppendArgs {
  KvView kv;
  View<const int32_t, 1> lanes;
  View<const int32_t, 1> positions;
  BoundIndex index;
};
// Quest's bound per block, maximum over the group's heads, then the same rules as SelectBlocks.
struct BoundSelectBlocksArgs {
  View<const bf16, 3> q;
  View<const int32_t, 2> slot_table;
  View<const DecodeRow, 1> rows;
  BoundIndex index;
  View<int32_t, 3> lag;
  Selection out;
};
struct BoundSelectTokensArgs {
  View<const bf16, 3> q;
  View<const int32_t, 2> slot_table;
  View<const DecodeRow, 1> rows;
  BoundIndex index;
  float scale;
  Selection out;
};

// --------------------------------------------------------------------------------- the two ends --

// What sampling remembers of the lanes whose rows have a penalty; nobody touches the others'.
struct TokenHistory {
  View<uint16_t, 2> generated;  // [L, V] how often the id was sampled, at most 65535
  View<uint32_t, 2> prompt;     // [L, ceil(V / 32)] bit (id % 32) of word id / 32: in the prompt
};
// Begins a lane's history: nothing generated, these ids in the prompt. Ids >= V are passed over.
struct StartHistoryArgs {
  int32_t lane;
  View<const uint32_t, 1> prompt_ids;
  TokenHistory history;
};

// Added to the logit of an id >= 0; NaN bans the id.
struct LogitEdit {
  int32_t id;
  float add;
};

struct SampleRow {
  float temperature;  // 0 = greedy
  int32_t top_k;      // 0 = off
  float top_p;        // 1 = off
  float min_p;        // 0 = off
  uint64_t seed;
  uint32_t index;                          // which of the request's sequences
  uint32_t position;                       // position of the token being chosen
  int32_t lane;                            // last_token[lane] receives the token; -1 = padding
  float repetition = 1;                    // 1 = off
  float frequency = 0;                     // 0 = off
  float presence = 0;                      // 0 = off
  int32_t edit_begin = 0, edit_count = 0;  // of the lane's edits

  constexpr bool penalised() const { return repetition != 1 || frequency != 0 || presence != 0; }
};

// One token per row. The logits it is chosen from, in this order (fp32, each step rounded):
//   1. repetition (HuggingFace, vLLM): of ids in the prompt or generated, l > 0 ? l / r : l * r;
//   2. frequency and presence (OpenAI), of generated ids only: l - frequency * count, then
//      l - presence;
//   3. the row's edits are added, in their order.
// These are exact. Greedy (temperature 0): the largest of them, ties to the lower id. Else
// softmax(l / temperature) cut by top_k (ties to the lower id), then top_p (of what top_k left,
// the smallest prefix by probability reaching top_p of it), then min_p (relative to the largest),
// then inverse CDF over the kept ids in increasing id order at u = SampleUniform(seed, index,
// position) of kernels/ref/philox.h. log_prob is of the chosen token under softmax(logits), before
// penalties, edits and temperature (vLLM's raw_logprobs). Ids >= vocab are never chosen and have no
// part in any sum; NaN logits have no probability. Where nothing has probability: the largest
// logit's id, or 0 where all are NaN. A penalised row's token is counted in its lane's history.
// `history` may be empty where no row is penalised, `edits` where none has edits. Nothing is
// written for a row of lane -1 (padding).
struct SampleArgs {
  View<const float, 2> logits;  // [S, V rows]
  int32_t vocab;
  View<const SampleRow, 1> rows;        // [S]
  View<int32_t, 1> token;               // [S]
  View<float, 1> log_prob;              // [S]
  View<int32_t, 1> last_token;          // [L]
  View<const LogitEdit, 2> edits = {};  // [L, E]; ids >= vocab are passed over
  TokenHistory history = {};
};

// Most ids that LogProbs lists.
inline constexpr int kMaxTopIds = 20;

struct LogProbRow {
  int32_t row;    // of logits
  int32_t token;  // < V rows; its log-probability is wanted, -1 = none is
  int32_t top;    // how many of the likeliest ids are, at most kMaxTopIds
};
// Log-probabilities under softmax over the ids below vocab, as Sample's log_prob. Likeliest ids:
// largest logit first, ties to the lower id, exact; NaN logits are not listed, and places left over
// get id -1.
struct LogProbsArgs {
  View<const float, 2> logits;  // [S, V rows]
  int32_t vocab;
  View<const LogProbRow, 1> rows;  // [n]
  View<float, 1> log_prob;         // [n]
  View<int32_t, 2> top_ids;        // [n, kMaxTopIds], the first `top` are written
  View<float, 2> top_log_probs;    // [n, kMaxTopIds]
};

// Calibration: second[d][e] += sum of x_d x_e, first[d] += sum of x_d, over `count` rows of D
// values that lie `stride` values apart.
struct MomentsArgs {
  const bf16* x;
  int64_t count;
  int64_t stride;
  View<double, 2> second;  // [D, D]
  View<double, 1> first;   // [D]
};

// Random values, for models of the true shapes without files: out(i, j) = bf16(centre + spread *
// draw), with the product and the sum each rounded to fp32; draw is the 16-bit integer (signed,
// little end first) number c % 4 of the 64 bits SplitMix64(key + c / 4), c = first + i stride + j.
// Exact. SplitMix64 is in kernels/device/splitmix.h.
struct FillRandomArgs {
  View<bf16, 2> out;
  uint64_t key;
  int64_t first;   // >= 0
  int64_t stride;  // >= columns of out
  float centre, spread;
};

inline constexpr int kMarks = 16;

// A backend. Besides the ops:
//   kMemory        where it computes: the kind of memory that views point to.
//   kSplitPasses   whether the prompt rows and the decode rows of a step are to be run as two
//                  passes: then the bits of a decode row do not depend on what prompt rows run
//                  beside it, although both run by different kernels.
//   Describe       the machine it runs on, for people.
//   Upload, Download   copies between host memory and kMemory, in the stream's order. Pinned host
//                  memory must be left alone until that is done; pageable memory has been read, or
//                  written, when they return. Not inside Replay.
//   Wait           returns when everything put on the stream is done.
//   Mark(i)        marks this place of the stream as number i, 0 to kMarks - 1, in place of the one
//                  that i was before. Not inside Replay.
//   WaitFor(i)     returns when everything put on the stream before mark i is done.
//   WhenDone(i, f) has f called once that is so, on a thread of the backend's or at once. f
//   outlives
//                  the backend and must not use it.
//   Seconds(i, j)  from mark i to mark j by the device's clock, both being done; 0 on a backend
//                  that computes at once.
//   Replay(key, f) runs the ops that `f` calls. The backend may call `f` the first time it sees
//                  `key` only, and later repeat the ops with the arguments of that time, so these
//                  must be the same for the same key, and `f` must do nothing else that matters.
template <class B>
concept Ops = requires(B& ops,
                       Matrix& matrix,
                       const EmbedArgs& embed,
                       const RmsNormArgs& norm,
                       const GemmArgs& gemm,
                       const LogitsArgs& logits,
                       const RopeTableArgs& rope,
                       const SwiGluArgs& swiglu,
                       const CopyRowsArgs& copy,
                       const AppendKvArgs& append,
                       const PrefillAttendArgs& prefill,
                       const DecodeAttendArgs& decode,
                       const SelectBlocksArgs& blocks,
                       const SelectTokensArgs& tokens,
                       const SparseAttendArgs& attend,
                       const CountBlocksArgs& count,
                       const StartHistoryArgs& history,
                       const SampleArgs& sample,
                       const LogProbsArgs& log_probs,
                       const MomentsArgs& moments,
                       const FillRandomArgs& fill,
                       void* to,
                       const void* from,
                       int64_t bytes,
                       uint64_t key,
                       void (&calls)(),
                       int mark,
                       const std::function<void()>& told) {
  { B::kMemory } -> std::convertible_to<MemoryKind>;
  { B::kSplitPasses } -> std::convertible_to<bool>;
  { ops.Describe() } -> std::convertible_to<std::string>;
  ops.Upload(to, from, bytes);
  ops.Download(to, from, bytes);
  ops.Wait();
  ops.Mark(mark);
  ops.WaitFor(mark);
  ops.WhenDone(mark, told);
  { ops.Seconds(mark, mark) } -> std::convertible_to<double>;
  ops.Replay(key, calls);
  ops.Prepare(matrix);
  ops.Embed(embed);
  ops.RmsNorm(norm);
  ops.Gemm(gemm);
  ops.Logits(logits);
  ops.RopeTable(rope);
  ops.SwiGlu(swiglu);
  ops.CopyRows(copy);
  ops.AppendKv(append);
  ops.PrefillAttend(prefill);
  ops.DecodeAttend(decode);
  ops.SelectBlocks(blocks);
  ops.SelectTokens(tokens);
  ops.SparseAttend(attend);
  ops.CountBlocks(count);
  ops.StartHistory(history);
  ops.Sample(sample);
  ops.LogProbs(log_probs);
  ops.Moments(moments);
  ops.FillRandom(fill);
};

// A backend that has the paper's selector too.
template <class B>
concept BoundOps = Ops<B> && requires(B& ops,
                                      const BoundAppendArgs& append,
                                      const BoundSelectBlocksArgs& blocks,
                                      const BoundSelectTokensArgs& tokens) {
  ops.BoundAppend(append);
  ops.BoundSelectBlocks(blocks);
  ops.BoundSelectTokens(tokens);
};

}  // namespace asynctls
