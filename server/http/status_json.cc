// SPDX-License-Identifier: Apache-2.0
#include "server/http/status_json.h"

#include <algorithm>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "engine/base/json.h"
#include "engine/engine.h"
#include "engine/scheduler/request_status.h"
#include "proto/enum_names.h"

namespace asynctls {
namespace {

const char* PhaseName(RequestPhase phase) {
  switch (phase) {
    case RequestPhase::kWaiting:
      return "waiting";
    case RequestPhase::kPrefill:
      return "prefill";
    case RequestPhase::kDecode:
      return "decode";
  }
  return "";
}

Json HealthJson(const Health& health) {
  return {{"live", health.live},
          {"started", health.started},
          {"ready", health.ready},
          {"reason", health.reason}};
}

Json ModelJson(const Frontend::Options& options) {
  const v1::GetModelInfoResponse& info = options.info;
  const v1::ModelInfo& model = info.model();
  return {{"name", model.name()},
          {"architecture", model.architecture()},
          {"layers", model.layers()},
          {"query_heads", model.query_heads()},
          {"kv_heads", model.kv_heads()},
          {"head_dim", model.head_dim()},
          {"hidden_size", model.hidden_size()},
          {"vocab_size", model.vocab_size()},
          {"max_context", options.limits.max_positions},
          {"key_codes", info.key_codes()},
          {"mode", ModeName(info.default_sparse().mode())},
          {"budget", info.default_sparse().budget()},
          {"kv_bytes_per_token", info.kv_bytes_per_token()},
          {"block_positions", info.block_positions()}};
}

Json LoadJson(const v1::GetLoadResponse& load, const Engine::Snapshot& engine) {
  return {{"running", load.running_requests()},
          {"waiting", load.waiting_requests()},
          {"max_running", load.max_running_requests()},
          {"max_waiting", load.max_waiting_requests()},
          {"overload_level", load.overload_level()},
          {"tokens_per_second", load.generation_tokens_per_second()},
          {"prefix_hit_ratio", load.prefix_cache_hit_ratio()},
          {"generation_tokens", engine.generation_tokens},
          {"prompt_tokens", engine.prompt_tokens_computed},
          {"steps", engine.steps}};
}

Json KvJson(const Engine::Snapshot& engine) {
  return {{"total", engine.blocks_total},
          {"used", engine.blocks_used},
          {"cached", engine.blocks_cached},
          {"reserved", engine.blocks_reserved}};
}

Json PhasesJson(const Engine::Snapshot& engine) {
  Json out = Json::object();
  for (size_t i = 0; i < kStepPhases.size(); ++i)
    out[kStepPhases[i]] = engine.step_phase_seconds[i];
  return out;
}

Json RequestJson(const RequestStatus& request) {
  const std::string cells = HeatCells(request.block_heat);
  return {{"id", request.id},
          {"phase", PhaseName(request.phase)},
          {"priority", request.priority},
          {"prompt", request.prompt},
          {"cached", request.cached},
          {"computed", request.computed},
          {"generated", request.generated},
          {"blocks", request.blocks},
          {"age", absl::ToDoubleSeconds(request.age)},
          {"mode", ModeName(request.mode)},
          {"budget", request.budget},
          {"heat_blocks", request.block_heat.size()},
          {"heat", absl::Base64Escape(cells)}};
}

Json RequestsJson(const RequestTable& table, absl::Time now) {
  Json list = Json::array();
  for (const RequestStatus& request : table.requests) {
    if (list.size() == kMaxShownRequests) break;
    list.push_back(RequestJson(request));
  }
  const bool watched = table.as_of != absl::InfinitePast();
  return {{"total", table.requests.size()},
          {"age", watched ? Json(absl::ToDoubleSeconds(now - table.as_of)) : Json()},
          {"list", std::move(list)}};
}

}  // namespace

std::string HeatCells(absl::string_view heat) {
  const size_t per_cell = (heat.size() + kMaxHeatCells - 1) / kMaxHeatCells;
  std::string out;
  for (size_t at = 0; at < heat.size(); at += per_cell) {
    const absl::string_view cell = heat.substr(at, per_cell);
    out += *std::max_element(
        cell.begin(), cell.end(), [](unsigned char a, unsigned char b) { return a < b; });
  }
  return out;
}

std::string StatusJsonText(const Frontend& frontend, const Health& health, absl::Time now) {
  Json out = {{"version", ServerVersion()},
              {"time", absl::ToDoubleSeconds(now - absl::UnixEpoch())},
              {"health", HealthJson(health)}};
  const absl::StatusOr<const Frontend::Serving*> serving = frontend.serving();
  if (serving.ok()) {
    const Engine& engine = (*serving)->engine;
    const Engine::Snapshot snapshot = engine.snapshot();
    out["model"] = ModelJson((*serving)->options);
    out["load"] = LoadJson(*frontend.Load(), snapshot);
    out["kv"] = KvJson(snapshot);
    out["phases"] = PhasesJson(snapshot);
    out["requests"] = RequestsJson(*engine.Requests(), now);
  }
  return out.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

}  // namespace asynctls
