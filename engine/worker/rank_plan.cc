// SPDX-License-Identifier: Apache-2.0
#include "engine/worker/rank_plan.h"

#include <algorithm>
#include <fstream>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/sparse/selection_results.h"
#include "engine/worker/padded_rows.h"

namespace asynctls {
namespace {

constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();
// Left free where kv_bytes is 0: what the runtime, the other tables and fragmentation take.
constexpr int64_t kReserveBytes = int64_t{1} << 30;
constexpr const char* kKvRow = "KV";
constexpr const char* kCodesRow = "key codes";
constexpr uint64_t kMostKvBytes = uint64_t{1} << 50;

// Rows of a prompt whose logits are computed at once where its log-probabilities are asked for.
constexpr int64_t kPromptTile = 64;

std::string Mebibytes(int64_t bytes) { return absl::StrCat((bytes + (1 << 20) - 1) >> 20, " MiB"); }

absl::Status CheckField(const char* field, uint64_t value, uint64_t low, uint64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("init: ", field, " is ", value, ", must be ", low, " to ", high));
}

absl::Status CheckRequest(const v1::InitRequest& r) {
  const struct {
    const char* field;
    uint64_t value, low, high;
  } bounds[] = {{"ranks", r.ranks(), 1, Shard::kMaxRanks},
                {"threads", r.threads(), 1, 1024},
                {"max_lanes", r.max_lanes(), 1, 4096},
                {"max_step_tokens", r.max_step_tokens(), r.max_lanes(), 1 << 20},
                {"max_budget", r.max_budget(), 1, 1 << 24},
                {"kv_bytes", r.kv_bytes(), 0, kMostKvBytes}};
  for (const auto& b : bounds) {
    const absl::Status status = CheckField(b.field, b.value, b.low, b.high);
    if (!status.ok()) return status;
  }
  return CheckField("rank", r.rank(), 0, r.ranks() - 1);
}

// The first number of a file, or of its line that starts with `key`; kUnlimited without one.
int64_t ReadNumber(const char* path, const std::string& key) {
  std::ifstream in(path);
  std::string line;
  while (std::getline(in, line)) {
    if (line.compare(0, key.size(), key) != 0) continue;
    const size_t digits = line.find_first_of("0123456789", key.size());
    int64_t value;
    if (digits != line.npos &&
        absl::SimpleAtoi(line.substr(digits, line.find_first_not_of("0123456789", digits) - digits),
                         &value)) {
      return value;
    }
    return kUnlimited;
  }
  return kUnlimited;
}

constexpr uint64_t kFnvBasis = 0xcbf29ce484222325u;
uint64_t Fnv1a(absl::string_view bytes, uint64_t hash = kFnvBasis) {
  for (const char c : bytes) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}
uint64_t Fnv1a(const std::vector<bf16>& values, uint64_t hash) {
  return Fnv1a({reinterpret_cast<const char*>(values.data()), values.size() * sizeof(bf16)}, hash);
}

int SampledVocab(const v1::InitRequest& request, const ModelConfig& config) {
  const uint32_t asked = request.sampled_vocab();
  return asked == 0 ? config.vocab : static_cast<int>(std::min<int64_t>(asked, config.vocab));
}

// Sizes and rotation: what the meaning of KV depends on, besides the weights.
std::string Identity(const ModelConfig& c) {
  return absl::StrJoin(std::make_tuple(c.architecture,
                                       c.layers,
                                       c.hidden,
                                       c.query_heads,
                                       c.kv_heads,
                                       c.head_dim,
                                       c.intermediate,
                                       c.vocab,
                                       c.rms_eps,
                                       c.rope_theta,
                                       c.rope_factor,
                                       c.rope_original,
                                       c.rope_scale),
                       "|");
}

}  // namespace

int64_t RankPlan::TotalBytes() const {
  int64_t total = 0;
  for (const Memory& m : memory) total += m.bytes;
  return total;
}

std::string RankPlan::MemoryTable() const {
  return absl::StrJoin(memory, ", ", [](std::string* out, const Memory& m) {
    absl::StrAppend(out, m.what, " ", Mebibytes(m.bytes));
  });
}

namespace {

// The plan with so many bytes of KV and key codes.
absl::StatusOr<RankPlan> PlanWith(const v1::InitRequest& request,
                                  const ModelConfig& config,
                                  const BackendTraits& backend,
                                  int64_t kv_bytes) {
  RankPlan p;
  p.shard = {.rank = static_cast<int>(request.rank()), .size = static_cast<int>(request.ranks())};
  absl::StatusOr<RankShape> shape = RankShape::Of(config, p.shard);
  if (!shape.ok()) return shape.status();
  p.shape = *shape;
  p.kv = {.layers = config.layers, .kv_heads = shape->kv_heads, .head_dim = config.head_dim};
  p.index = {.layers = config.layers,
             .first_layer = static_cast<int>(
                 std::min<uint32_t>(request.dense_layers(), static_cast<uint32_t>(config.layers))),
             .kv_heads = shape->kv_heads,
             .head_dim = config.head_dim,
             .bound = request.bound_selector(),
             .bound_channels = std::min(32, config.head_dim)};
  if (p.index.SparseLayers() > 0 && config.head_dim < kCodeDirections) {
    return absl::InvalidArgumentError(absl::StrCat("head_dim is ",
                                                   config.head_dim,
                                                   ", key codes need at least ",
                                                   kCodeDirections,
                                                   ": set dense_layers to ",
                                                   config.layers));
  }

  const int64_t fixed = KeyIndex::Bytes(p.index, 0);
  const int64_t block_bytes = p.kv.BlockBytes() + KeyIndex::Bytes(p.index, 1) - fixed;
  p.blocks = std::min<int64_t>((kv_bytes - fixed) / block_bytes, 1 << 30);
  if (p.blocks < 1) {
    return absl::ResourceExhaustedError(absl::StrCat("init: kv_bytes is ",
                                                     kv_bytes,
                                                     ", but one block of ",
                                                     kBlockPositions,
                                                     " positions needs ",
                                                     block_bytes,
                                                     " and the code tables ",
                                                     fixed));
  }
  const int64_t asked = request.max_context() == 0 ? config.max_positions : request.max_context();
  if (asked > config.max_positions) {
    return absl::InvalidArgumentError(absl::StrCat(
        "init: max_context is ", asked, ", the model has positions up to ", config.max_positions));
  }
  const int64_t max_context = std::min(asked, p.blocks * kBlockPositions);
  p.max_blocks = BlocksFor(max_context);
  const int lanes = static_cast<int>(request.max_lanes());
  const int64_t rows = request.max_step_tokens();
  const bool split = backend.split_passes;
  p.decode_rows = split ? MostPaddedRows(lanes) : lanes;
  const int64_t logit_rows =
      std::max(split ? PaddedRows(lanes) : lanes, std::min(kPromptTile, rows));
  p.activations = {
      .rows = std::max(rows, p.decode_rows), .logit_rows = logit_rows, .ranks = p.shard.size};
  p.selection = {
      .query_heads = shape->query_heads,
      .lanes = lanes,
      .rows = p.decode_rows,
      .max_blocks = p.max_blocks,
      .max_tokens = std::min<int64_t>(request.max_budget(), p.max_blocks * kBlockPositions)};
  p.inputs = {.lanes = lanes,
              .step_tokens = rows,
              .decode_rows = p.decode_rows,
              .max_blocks = p.max_blocks,
              .dense_below = request.dense_below(),
              .split_passes = split};
  p.sampling = {.lanes = lanes,
                .step_tokens = rows,
                .tile = logit_rows,
                .vocab = SampledVocab(request, config),
                .prompt_ids = config.vocab,
                .samples = p.shard.rank == 0,
                .split_passes = split};
  p.lanes = {.lanes = lanes,
             .step_tokens = rows,
             .max_context = max_context,
             .vocab = config.vocab,
             .max_budget = request.max_budget(),
             .bound_selector = request.bound_selector()};
  p.memory = {{"weights", Weights::Bytes(config, p.shard)},
              {kKvRow, p.kv.BlockBytes() * p.blocks},
              {kCodesRow, KeyIndex::Bytes(p.index, p.blocks)},
              {"activations", Activations::Bytes(p.shape, p.activations)},
              {"selection",
               SelectionBuffers::Bytes(p.selection, p.index) +
                   SelectionResults::Bytes(p.selection, p.index)},
              {"step buffers", StepInputs::Bytes(p.inputs) + SlotTable::Bytes(lanes, p.max_blocks)},
              {"sampling", SamplingInputs::Bytes(p.sampling)},
              {"workspace", 0}};
  p.memory.back().bytes = backend.workspace(p);
  return p;
}

}  // namespace

absl::StatusOr<RankPlan> PlanRank(const v1::InitRequest& request,
                                  const ModelConfig& config,
                                  const BackendTraits& backend) {
  const absl::Status status = CheckRequest(request);
  if (!status.ok()) return status;
  if (request.bound_selector() && !backend.bound_selector) {
    return absl::InvalidArgumentError(
        "init: bound_selector is true, must be false: this device selects by key codes only");
  }
  if (request.kv_bytes() > 0) {
    return PlanWith(request, config, backend, static_cast<int64_t>(request.kv_bytes()));
  }
  const absl::StatusOr<RankPlan> largest =
      PlanWith(request, config, backend, static_cast<int64_t>(kMostKvBytes));
  if (!largest.ok()) return largest;
  int64_t others = kReserveBytes;
  for (const RankPlan::Memory& m : largest->memory) {
    if (m.what != kKvRow && m.what != kCodesRow) others += m.bytes;
  }
  return PlanWith(
      request,
      config,
      backend,
      std::clamp<int64_t>(backend.available - others, 0, static_cast<int64_t>(kMostKvBytes)));
}

absl::Status CheckFits(const RankPlan& plan, int64_t available) {
  if (plan.TotalBytes() <= available) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("memory: ",
                   Mebibytes(plan.TotalBytes()),
                   " needed (",
                   plan.MemoryTable(),
                   "), ",
                   Mebibytes(available),
                   " available; lower kv_bytes, max_lanes or max_step_tokens"));
}

int64_t AvailableMemory() {
  const int64_t kib = ReadNumber("/proc/meminfo", "MemAvailable:");
  int64_t available = kib == kUnlimited ? kUnlimited : kib * 1024;
  const struct {
    const char *limit, *usage, *stat, *cache;
  } groups[] = {{"/sys/fs/cgroup/memory.max",
                 "/sys/fs/cgroup/memory.current",
                 "/sys/fs/cgroup/memory.stat",
                 "inactive_file "},
                {"/sys/fs/cgroup/memory/memory.limit_in_bytes",
                 "/sys/fs/cgroup/memory/memory.usage_in_bytes",
                 "/sys/fs/cgroup/memory/memory.stat",
                 "total_inactive_file "}};
  for (const auto& group : groups) {
    const int64_t limit = ReadNumber(group.limit, "");
    const int64_t usage = ReadNumber(group.usage, "");
    const int64_t cache = ReadNumber(group.stat, group.cache);  // given back when asked for
    if (limit == kUnlimited || usage == kUnlimited) continue;
    const int64_t used = usage - (cache == kUnlimited ? 0 : cache);
    available = std::min(available, std::max<int64_t>(limit - used, 0));
  }
  return available;
}

std::string CheckpointFingerprint(const ModelConfig& config,
                                  const std::vector<std::vector<bf16>>& norms) {
  uint64_t hash = Fnv1a(Identity(config));
  for (const std::vector<bf16>& norm : norms) hash = Fnv1a(norm, hash);
  return absl::StrCat(absl::Hex(hash, absl::kZeroPad16));
}

v1::ModelInfo DescribeModel(const v1::InitRequest& request,
                            const ModelConfig& c,
                            const RankPlan& plan) {
  v1::ModelInfo info;
  info.set_architecture(c.architecture);
  std::string dir = request.model_dir();
  while (dir.size() > 1 && dir.back() == '/') dir.pop_back();
  info.set_name(dir.substr(dir.find_last_of('/') + 1));
  info.set_vocab_size(static_cast<uint32_t>(c.vocab));
  info.set_max_context(static_cast<uint32_t>(plan.lanes.max_context));
  info.set_layers(static_cast<uint32_t>(c.layers));
  info.set_query_heads(static_cast<uint32_t>(c.query_heads));
  info.set_kv_heads(static_cast<uint32_t>(c.kv_heads));
  info.set_head_dim(static_cast<uint32_t>(c.head_dim));
  info.set_hidden_size(static_cast<uint32_t>(c.hidden));
  for (const uint32_t id : c.eos) info.add_eos_token_ids(id);
  info.set_parameters(static_cast<uint64_t>(ParameterCount(c)));
  info.set_rope_factor(c.rope_factor);
  if (c.temperature.has_value()) info.set_temperature(*c.temperature);
  if (c.top_p.has_value()) info.set_top_p(*c.top_p);
  if (c.top_k.has_value()) info.set_top_k(*c.top_k);
  if (c.do_sample.has_value()) info.set_do_sample(*c.do_sample);
  const std::string identity = absl::StrJoin(std::make_tuple(Identity(c),
                                                             kBlockPositions,
                                                             plan.index.first_layer,
                                                             kCodeDirections,
                                                             static_cast<int>(request.weights()),
                                                             request.synthetic_seed(),
                                                             request.model_dir()),
                                             "|");
  info.set_fingerprint(absl::StrCat(absl::Hex(Fnv1a(identity), absl::kZeroPad16)));
  return info;
}

}  // namespace asynctls
