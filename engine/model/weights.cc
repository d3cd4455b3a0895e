// SPDX-License-Identifier: Apache-2.0
#include "engine/model/weights.h"

#include <cmath>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/device/carver.h"
#include "kernels/device/splitmix.h"

namespace asynctls {

// How a tensor is divided among ranks.
enum class Split {
  kNone,     // every rank has all of it
  kRows,     // equal parts of the outputs
  kColumns,  // equal parts of the inputs; products are summed over ranks
  kVocab,    // rows, the last ranks padded with zeros
};

// One tensor of the checkpoint and where this rank's part of it goes. A vector is one row.
struct TensorSpec {
  std::string name;
  int64_t rows;  // in the checkpoint
  int64_t columns;
  bool vector;
  Split split;
  View<bf16, 2> part;
};

// The table: lays the arena out and lists every tensor.
struct WeightTable {
  WeightTable(const ModelConfig& config, const Shard& shard, Carver& carver, Weights& weights)
      : shape(*RankShape::Of(config, shard)), carver(carver) {
    const int64_t h = shape.hidden;
    weights.embedding_ = Matrix2(shape.vocab_rows, h);
    Add("model.embed_tokens.weight", config.vocab, h, Split::kVocab, weights.embedding_);
    weights.head_.data = Matrix2(shape.vocab_rows, h);
    Add(config.tied_embeddings ? "model.embed_tokens.weight" : "lm_head.weight",
        config.vocab,
        h,
        Split::kVocab,
        weights.head_.data);
    weights.final_norm_ = AddVector("model.norm.weight", h);
    weights.layers_.resize(static_cast<size_t>(config.layers));
    for (int i = 0; i < config.layers; ++i) {
      AddLayer(config, absl::StrCat("model.layers.", i, "."), weights.layers_[i]);
    }
  }

  void AddLayer(const ModelConfig& c, const std::string& prefix, LayerWeights& w) {
    const int64_t h = shape.hidden;
    const int64_t d = shape.head_dim;
    const int64_t q_rows = shape.query_heads * d;
    const int64_t kv_rows = shape.kv_heads * d;
    w.input_norm = AddVector(prefix + "input_layernorm.weight", h);
    const View<bf16, 2> qkv = w.qkv.data = Matrix2(shape.QkvWidth(), h);
    Add(prefix + "self_attn.q_proj.weight",
        c.query_heads * d,
        h,
        Split::kRows,
        qkv.Slice(0, q_rows));
    Add(prefix + "self_attn.k_proj.weight",
        c.kv_heads * d,
        h,
        Split::kRows,
        qkv.Slice(q_rows, kv_rows));
    Add(prefix + "self_attn.v_proj.weight",
        c.kv_heads * d,
        h,
        Split::kRows,
        qkv.Slice(q_rows + kv_rows, kv_rows));
    w.q_norm = AddVector(prefix + "self_attn.q_norm.weight", d);
    w.k_norm = AddVector(prefix + "self_attn.k_norm.weight", d);
    w.out.data = Matrix2(h, q_rows);
    Add(prefix + "self_attn.o_proj.weight", h, c.query_heads * d, Split::kColumns, w.out.data);
    w.post_norm = AddVector(prefix + "post_attention_layernorm.weight", h);
    const int64_t inner = shape.intermediate;
    w.gate_up.data = Matrix2(2 * inner, h);
    Add(prefix + "mlp.gate_proj.weight",
        c.intermediate,
        h,
        Split::kRows,
        w.gate_up.data.Slice(0, inner));
    Add(prefix + "mlp.up_proj.weight",
        c.intermediate,
        h,
        Split::kRows,
        w.gate_up.data.Slice(inner, inner));
    w.down.data = Matrix2(h, inner);
    Add(prefix + "mlp.down_proj.weight", h, c.intermediate, Split::kColumns, w.down.data);
  }

  View<bf16, 2> Matrix2(int64_t rows, int64_t columns) {
    return carver.Take<bf16, 2>({rows, columns});
  }
  void Add(std::string name, int64_t rows, int64_t columns, Split split, View<bf16, 2> part) {
    specs.push_back({std::move(name), rows, columns, false, split, part});
  }
  View<bf16, 2> AddVector(std::string name, int64_t n) {
    const View<bf16, 2> part = Matrix2(1, n);
    specs.push_back({std::move(name), 1, n, true, Split::kNone, part});
    return part;
  }

  static absl::StatusOr<Weights> Allocate(const ModelConfig& config,
                                          const Shard& shard,
                                          MemoryKind kind,
                                          std::vector<TensorSpec>& specs) {
    absl::StatusOr<Buffer> arena = Buffer::Allocate(kind, Weights::Bytes(config, shard));
    if (!arena.ok()) return arena.status();
    Weights weights;
    weights.arena_ = *std::move(arena);
    Carver carver(weights.arena_);
    specs = WeightTable(config, shard, carver, weights).specs;
    return weights;
  }

  const RankShape shape;
  Carver& carver;
  std::vector<TensorSpec> specs;
};

namespace {

// The rows and columns of the checkpoint's tensor that this rank holds.
struct Part {
  Shard::Range rows;
  Shard::Range columns;
};
Part PartOf(const TensorSpec& spec, const Shard& shard) {
  Part part{{0, spec.rows}, {0, spec.columns}};
  switch (spec.split) {
    case Split::kNone:
      break;
    case Split::kRows:
      part.rows = shard.Even(spec.rows);
      break;
    case Split::kColumns:
      part.columns = shard.Even(spec.columns);
      break;
    case Split::kVocab:
      part.rows = shard.Padded(spec.rows);
      break;
  }
  return part;
}

absl::Status CheckTensor(const TensorSpec& spec, const TensorSource& source) {
  const Tensor* tensor = source.Find(spec.name);
  if (tensor == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(source.path(), ": tensor '", spec.name, "' is missing"));
  }
  const std::vector<int64_t> expected = spec.vector ? std::vector<int64_t>{spec.columns}
                                                    : std::vector<int64_t>{spec.rows, spec.columns};
  if (tensor->shape != expected) {
    return absl::InvalidArgumentError(absl::StrCat(*tensor->file,
                                                   ": tensor '",
                                                   spec.name,
                                                   "' has shape [",
                                                   absl::StrJoin(tensor->shape, ", "),
                                                   "], config.json asks for [",
                                                   absl::StrJoin(expected, ", "),
                                                   "]"));
  }
  if (tensor->dtype != "BF16") {
    return absl::InvalidArgumentError(absl::StrCat(*tensor->file,
                                                   ": tensor '",
                                                   spec.name,
                                                   "' is ",
                                                   tensor->dtype,
                                                   ", this version reads BF16 only"));
  }
  return absl::OkStatus();
}

// Refuses what the table does not name: it may be a part of the model that we would leave out.
absl::Status CheckUnexpected(const ModelConfig& config,
                             const TensorSource& source,
                             const std::vector<TensorSpec>& specs) {
  std::set<absl::string_view> expected;
  for (const TensorSpec& spec : specs) expected.insert(spec.name);
  if (config.tied_embeddings) expected.insert("lm_head.weight");
  constexpr int kNamed = 5;
  std::vector<std::string> unexpected;
  for (const auto& [name, tensor] : source.tensors()) {
    if (expected.contains(name) || absl::EndsWith(name, ".rotary_emb.inv_freq")) continue;
    unexpected.push_back(name);
  }
  if (unexpected.empty()) return absl::OkStatus();
  const size_t count = unexpected.size();
  if (count > kNamed) unexpected.resize(kNamed);
  return absl::InvalidArgumentError(absl::StrCat(source.path(),
                                                 ": ",
                                                 count,
                                                 " tensors are not a part of ",
                                                 config.architecture,
                                                 " with ",
                                                 config.layers,
                                                 " layers: ",
                                                 absl::StrJoin(unexpected, ", ")));
}

ReadPiece PieceOf(const TensorSpec& spec, const Shard& shard, const Tensor& tensor) {
  const Part part = PartOf(spec, shard);
  const int64_t size = sizeof(bf16);
  return {.tensor = &tensor,
          .offset = (part.rows.begin * spec.columns + part.columns.begin) * size,
          .rows = part.rows.count(),
          .row_bytes = part.columns.count() * size,
          .stride = spec.columns * size,
          .to = reinterpret_cast<char*>(spec.part.data)};
}

FillRandomArgs FillOf(const TensorSpec& spec, const Shard& shard, uint64_t seed) {
  uint64_t key = SplitMix64(seed);
  for (const char c : spec.name) key = SplitMix64(key ^ static_cast<unsigned char>(c));
  const Part part = PartOf(spec, shard);
  View<bf16, 2> out = spec.part;
  out.shape = {part.rows.count(), part.columns.count()};
  return {.out = out,
          .key = key,
          .first = part.rows.begin * spec.columns + part.columns.begin,
          .stride = spec.columns,
          .centre = spec.vector ? 1.0f : 0.0f,
          .spread = 0.02f * std::sqrt(3.0f) / 32768};  // uniform with deviation 0.02
}

}  // namespace

int64_t Weights::Bytes(const ModelConfig& config, const Shard& shard) {
  Weights measured;
  Carver carver;
  WeightTable(config, shard, carver, measured);
  return carver.bytes();
}

absl::StatusOr<Weights> Weights::Load(const ModelConfig& config,
                                      const Shard& shard,
                                      const TensorSource& source,
                                      MemoryKind kind,
                                      const SendBytes& send) {
  std::vector<TensorSpec> specs;
  absl::StatusOr<Weights> weights = WeightTable::Allocate(config, shard, kind, specs);
  if (!weights.ok()) return weights;
  for (const TensorSpec& spec : specs) {
    const absl::Status status = CheckTensor(spec, source);
    if (!status.ok()) return status;
  }
  absl::Status status = CheckUnexpected(config, source, specs);
  if (!status.ok()) return status;
  std::vector<ReadPiece> pieces;
  for (const TensorSpec& spec : specs) {
    pieces.push_back(PieceOf(spec, shard, *source.Find(spec.name)));
  }
  status = ReadPieces(pieces, source, kind, send);
  if (!status.ok()) return status;
  return weights;
}

absl::StatusOr<Weights> Weights::Synthetic(const ModelConfig& config,
                                           const Shard& shard,
                                           uint64_t seed,
                                           MemoryKind kind,
                                           const std::function<void(const FillRandomArgs&)>& fill) {
  std::vector<TensorSpec> specs;
  absl::StatusOr<Weights> weights = WeightTable::Allocate(config, shard, kind, specs);
  if (!weights.ok()) return weights;
  for (const TensorSpec& spec : specs) fill(FillOf(spec, shard, seed));
  return weights;
}

std::vector<Matrix*> Weights::matrices() {
  std::vector<Matrix*> all = {&head_};
  for (LayerWeights& layer : layers_) {
    all.insert(all.end(), {&layer.qkv, &layer.out, &layer.gate_up, &layer.down});
  }
  return all;
}

int64_t ParameterCount(const ModelConfig& config) {
  Weights measured;
  Carver carver;
  const WeightTable table(config, Shard{}, carver, measured);
  std::set<absl::string_view> counted;
  int64_t parameters = 0;
  for (const TensorSpec& spec : table.specs) {
    if (counted.insert(spec.name).second) parameters += spec.rows * spec.columns;
  }
  return parameters;
}

}  // namespace asynctls
