// SPDX-License-Identifier: Apache-2.0
#include "engine/sparse/calibration.h"

#include <Eigen/Eigenvalues>
#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/safetensors.h"

namespace asynctls {
namespace {

constexpr char kVersion[] = "1";
// Of the mean of its diagonal, added to the queries' second moment: directions that the calibration
// text never asked about keep a little weight.
constexpr double kRegularisation = 1e-3;
// The step of a 16-level code of a normal distribution that loses least (Max 1960), in deviations.
constexpr double kStep = 0.335;

using Eigen::MatrixXd;
using Eigen::VectorXd;

MatrixXd Mean(View<const double, 2> second, int64_t count, int d) {
  const MatrixXd m = Eigen::Map<const MatrixXd>(second.data, d, d) / static_cast<double>(count);
  return (m + m.transpose()) / 2;
}

// The r eigenvectors of a symmetric matrix with the largest eigenvalues, largest first, each with
// its largest component positive.
MatrixXd TopEigenvectors(const MatrixXd& m, int r) {
  const MatrixXd all = Eigen::SelfAdjointEigenSolver<MatrixXd>(m).eigenvectors();
  MatrixXd top = all.rightCols(r).rowwise().reverse();
  for (int c = 0; c < r; ++c) {
    Eigen::Index at = 0;
    top.col(c).cwiseAbs().maxCoeff(&at);
    if (top(at, c) < 0) top.col(c) = -top.col(c);
  }
  return top;
}

// The channels with the largest product of deviations of query and key, increasing.
std::vector<int32_t> TopChannels(const MatrixXd& cq, const MatrixXd& ck, int count) {
  std::vector<int32_t> order(static_cast<size_t>(cq.rows()));
  std::iota(order.begin(), order.end(), 0);
  const VectorXd weight = cq.diagonal().cwiseProduct(ck.diagonal());
  std::stable_sort(
      order.begin(), order.end(), [&](int32_t a, int32_t b) { return weight(a) > weight(b); });
  order.resize(static_cast<size_t>(count));
  std::sort(order.begin(), order.end());
  return order;
}

template <int N>
bool Finite(const View<double, N>& x) {
  return std::all_of(x.data, x.data + x.size(), [](double v) { return std::isfinite(v); });
}

absl::Status Wrong(const std::string& path, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
}

// Copies a tensor of the expected type and shape into `out`, whose size is that of the shape.
template <typename T>
absl::Status Load(const TensorSource& file,
                  const std::string& name,
                  const char* dtype,
                  const std::vector<int64_t>& shape,
                  std::vector<T>& out) {
  const Tensor* t = file.Find(name);
  if (t == nullptr) return Wrong(file.path(), absl::StrCat("tensor ", name, " is missing"));
  if (t->dtype != dtype || t->shape != shape) {
    return Wrong(file.path(),
                 absl::StrCat("tensor ",
                              name,
                              " is ",
                              t->dtype,
                              "[",
                              absl::StrJoin(t->shape, ","),
                              "], expected ",
                              dtype,
                              "[",
                              absl::StrJoin(shape, ","),
                              "]"));
  }
  std::memcpy(out.data(), t->bytes.data(), t->bytes.size());
  return absl::OkStatus();
}

absl::Status CheckFinite(const std::string& path,
                         const std::string& name,
                         const std::vector<float>& x) {
  if (std::all_of(x.begin(), x.end(), [](float v) { return std::isfinite(v); })) {
    return absl::OkStatus();
  }
  return Wrong(path, absl::StrCat("tensor ", name, " has a value that is not finite"));
}

absl::Status CheckMetadata(const TensorSource& file,
                           const std::string& key,
                           const std::string& value) {
  const auto it = file.metadata().find(key);
  const std::string found =
      it == file.metadata().end() ? "nothing" : absl::StrCat("'", it->second, "'");
  if (it != file.metadata().end() && it->second == value) return absl::OkStatus();
  return Wrong(file.path(),
               absl::StrCat("metadata ", key, " is ", found, ", expected '", value, "'"));
}

template <typename T>
TensorToWrite MakeTensor(const std::string& name,
                         const char* dtype,
                         std::vector<int64_t> shape,
                         const std::vector<T>& data) {
  return {name, dtype, std::move(shape), std::as_bytes(std::span(data))};
}

}  // namespace

KeyCodeTables::KeyCodeTables(const KeyCodeShape& shape, std::string model, std::string source)
    : shape_(shape),
      model_(std::move(model)),
      source_(std::move(source)),
      layers_(static_cast<size_t>(shape.layers)) {
  assert(shape.channels % 2 == 0);
  assert(kCodeDirections <= shape.head_dim && shape.channels <= shape.head_dim);
  const auto g = static_cast<size_t>(shape.groups), r = size_t{kCodeDirections};
  for (Layer& l : layers_) {
    l.encode.resize(g * static_cast<size_t>(shape.head_dim) * r);
    l.turn.resize(l.encode.size());
    l.offset.resize(g * r);
    l.channels.resize(g * static_cast<size_t>(shape.channels));
  }
}

View<float, 3> KeyCodeTables::encode(int layer) {
  return {layers_[layer].encode.data(), {shape_.groups, shape_.head_dim, kCodeDirections}};
}
View<float, 2> KeyCodeTables::offset(int layer) {
  return {layers_[layer].offset.data(), {shape_.groups, kCodeDirections}};
}
View<float, 3> KeyCodeTables::turn(int layer) {
  return {layers_[layer].turn.data(), {shape_.groups, shape_.head_dim, kCodeDirections}};
}
View<int32_t, 2> KeyCodeTables::channels(int layer) {
  return {layers_[layer].channels.data(), {shape_.groups, shape_.channels}};
}
View<const int32_t, 2> KeyCodeTables::channels(int layer) const {
  return {layers_[layer].channels.data(), {shape_.groups, shape_.channels}};
}
KeyCodeTable KeyCodeTables::table(int layer) const {
  const Layer& l = layers_[layer];
  const int64_t g = shape_.groups, d = shape_.head_dim, r = kCodeDirections;
  return {{l.encode.data(), {g, d, r}}, {l.offset.data(), {g, r}}, {l.turn.data(), {g, d, r}}};
}

KeyCodeTables KeyCodeTables::Slice(int first, int count) const {
  assert(first >= 0 && count >= 0 && first + count <= shape_.groups);
  KeyCodeShape shape = shape_;
  shape.groups = count;
  KeyCodeTables out(shape, model_, source_);
  const auto slice = [&](const auto& from, auto& to) {
    const auto per_head = static_cast<int64_t>(from.size()) / shape_.groups;
    std::copy_n(from.begin() + first * per_head, count * per_head, to.begin());
  };
  for (size_t i = 0; i < layers_.size(); ++i) {
    slice(layers_[i].encode, out.layers_[i].encode);
    slice(layers_[i].offset, out.layers_[i].offset);
    slice(layers_[i].turn, out.layers_[i].turn);
    slice(layers_[i].channels, out.layers_[i].channels);
  }
  return out;
}

absl::Status KeyCodeTables::Write(const std::string& path) const {
  const int64_t g = shape_.groups, d = shape_.head_dim, r = kCodeDirections;
  std::vector<TensorToWrite> tensors;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const std::string name = absl::StrCat("layers.", i, ".");
    const Layer& l = layers_[i];
    tensors.push_back(MakeTensor(name + "encode", "F32", {g, d, r}, l.encode));
    tensors.push_back(MakeTensor(name + "offset", "F32", {g, r}, l.offset));
    tensors.push_back(MakeTensor(name + "turn", "F32", {g, d, r}, l.turn));
    tensors.push_back(MakeTensor(name + "channels", "I32", {g, shape_.channels}, l.channels));
  }
  return WriteTensors(path,
                      tensors,
                      {{"format", "asynctls key codes"},
                       {"version", kVersion},
                       {"directions", absl::StrCat(kCodeDirections)},
                       {"model", model_},
                       {"source", source_}});
}

absl::StatusOr<KeyCodeTables> KeyCodeTables::Read(const std::string& path,
                                                  const KeyCodeShape& shape,
                                                  const std::string& model) {
  absl::StatusOr<TensorSource> file = TensorSource::OpenFile(path);
  if (!file.ok()) return file.status();
  for (const auto& [key, value] :
       std::map<std::string, std::string>{{"version", kVersion},
                                          {"directions", absl::StrCat(kCodeDirections)},
                                          {"model", model}}) {
    if (absl::Status s = CheckMetadata(*file, key, value); !s.ok()) return s;
  }
  const auto source = file->metadata().find("source");
  KeyCodeTables out(shape, model, source == file->metadata().end() ? "" : source->second);
  if (file->tensors().size() != 4 * out.layers_.size()) {
    return Wrong(
        path,
        absl::StrCat(
            file->tensors().size(), " tensors, expected 4 for each of ", shape.layers, " layers"));
  }
  const int64_t g = shape.groups, d = shape.head_dim, r = kCodeDirections;
  for (size_t i = 0; i < out.layers_.size(); ++i) {
    const std::string name = absl::StrCat("layers.", i, ".");
    Layer& l = out.layers_[i];
    for (absl::Status s : {Load(*file, name + "encode", "F32", {g, d, r}, l.encode),
                           Load(*file, name + "offset", "F32", {g, r}, l.offset),
                           Load(*file, name + "turn", "F32", {g, d, r}, l.turn),
                           Load(*file, name + "channels", "I32", {g, shape.channels}, l.channels),
                           CheckFinite(path, name + "encode", l.encode),
                           CheckFinite(path, name + "offset", l.offset),
                           CheckFinite(path, name + "turn", l.turn)}) {
      if (!s.ok()) return s;
    }
    for (int32_t c : l.channels) {
      if (c >= 0 && c < d) continue;
      return Wrong(path,
                   absl::StrCat("tensor ", name, "channels has channel ", c, ", limit ", d - 1));
    }
  }
  return out;
}

void Calibrator::Carve(Carver& carver) {
  const int64_t d = shape_.head_dim;
  heads_.resize(static_cast<size_t>(shape_.layers * shape_.groups));
  for (Head& head : heads_) {
    for (Moments* m : {&head.queries, &head.keys}) {
      m->second = carver.Take<double, 2>({d, d});
      m->first = carver.Take<double, 1>({d});
    }
  }
}

absl::StatusOr<Calibrator> Calibrator::Create(const KeyCodeShape& shape, MemoryKind kind) {
  Calibrator calibrator;
  calibrator.shape_ = shape;
  Carver measure;
  calibrator.Carve(measure);
  absl::StatusOr<Mirror> sums = Mirror::Create(kind, measure.bytes());
  if (!sums.ok()) return sums.status();
  calibrator.sums_ = *std::move(sums);
  Carver carver(calibrator.sums_.host());
  calibrator.Carve(carver);
  return calibrator;
}

MomentsArgs Calibrator::Add(Moments& m, const bf16* x, int64_t count, int64_t stride) {
  m.count += count;
  return {x, count, stride, sums_.Device(m.second), sums_.Device(m.first)};
}

MomentsArgs Calibrator::Queries(
    int layer, int group, const bf16* x, int64_t count, int64_t stride) {
  return Add(heads_[layer * shape_.groups + group].queries, x, count, stride);
}
MomentsArgs Calibrator::Keys(int layer, int group, const bf16* x, int64_t count, int64_t stride) {
  return Add(heads_[layer * shape_.groups + group].keys, x, count, stride);
}

absl::Status Calibrator::FinishHead(int layer, int group, KeyCodeTables& tables) const {
  const Head& head = heads_[layer * shape_.groups + group];
  const int d = shape_.head_dim, r = kCodeDirections;
  const std::string where = absl::StrCat("calibration: layer ", layer, ", KV head ", group);
  if (head.queries.count == 0 || head.keys.count == 0) {
    return absl::FailedPreconditionError(absl::StrCat(where, " saw no tokens"));
  }
  if (!Finite(head.queries.second) || !Finite(head.keys.second) || !Finite(head.keys.first)) {
    return absl::FailedPreconditionError(absl::StrCat(where, " saw values that are not finite"));
  }
  MatrixXd cq = Mean(head.queries.second, head.queries.count, d);
  const MatrixXd ck = Mean(head.keys.second, head.keys.count, d);
  const VectorXd mean =
      Eigen::Map<const VectorXd>(head.keys.first.data, d) / static_cast<double>(head.keys.count);
  const std::vector<int32_t> channels = TopChannels(cq, ck, shape_.channels);
  std::copy(channels.begin(), channels.end(), tables.channels(layer)[group].data);
  const double weight = cq.diagonal().mean();
  // Queries that are all zero ask for nothing; any basis will do.
  cq.diagonal().array() += weight > 0 ? kRegularisation * weight : 1.0;

  const Eigen::SelfAdjointEigenSolver<MatrixXd> solver(cq);
  const MatrixXd root = solver.operatorSqrt(), inverse = solver.operatorInverseSqrt();
  // The mean adds the same to every score and is left out of the code, so the directions are those
  // of the keys' spread around it.
  const MatrixXd centred = ck - mean * mean.transpose();
  const MatrixXd u = TopEigenvectors(root * centred * root, r);
  const MatrixXd encode = root * u, turn = inverse * u;
  for (int c = 0; c < r; ++c) {
    const double variance = encode.col(c).dot(centred * encode.col(c));
    const double step = variance > 0 ? kStep * std::sqrt(variance) : 1.0;
    tables.offset(layer)(group, c) = static_cast<float>(encode.col(c).dot(mean) / step);
    for (int i = 0; i < d; ++i) {
      tables.encode(layer)(group, i, c) = static_cast<float>(encode(i, c) / step);
      tables.turn(layer)(group, i, c) = static_cast<float>(turn(i, c) * step);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<KeyCodeTables> Calibrator::Finish(std::string model, std::string source) const {
  KeyCodeTables tables(shape_, std::move(model), std::move(source));
  for (int layer = 0; layer < shape_.layers; ++layer) {
    for (int group = 0; group < shape_.groups; ++group) {
      if (absl::Status s = FinishHead(layer, group, tables); !s.ok()) return s;
    }
  }
  return tables;
}

}  // namespace asynctls
