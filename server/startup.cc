// SPDX-License-Identifier: Apache-2.0
#include "server/startup.h"

#include <algorithm>

#include "absl/strings/str_format.h"

namespace asynctls {

std::string DeviceFor(const v1::ServerConfig& config, int gpus) {
  if (config.device() != "auto") return config.device();
  return gpus > 0 ? "cuda" : "cpu";
}

v1::InitRequest InitRequestFrom(const v1::ServerConfig& config,
                                const std::string& device,
                                uint32_t cores,
                                const std::string& rendezvous,
                                const std::vector<uint32_t>& calibration_tokens,
                                uint32_t tokenizer_vocab) {
  const uint32_t share = std::max(1u, cores / std::max(1u, config.tensor_parallel()));
  v1::InitRequest init;
  init.set_model_dir(config.model());
  init.set_weights(config.weights() == "synthetic" ? v1::WEIGHT_SOURCE_SYNTHETIC
                                                   : v1::WEIGHT_SOURCE_FILES);
  init.set_rendezvous(rendezvous);
  init.set_threads(config.threads() > 0 ? config.threads() : share);
  init.set_max_lanes(config.max_sequences());
  init.set_max_step_tokens(config.max_step_tokens());
  init.set_max_context(config.max_context());
  init.set_kv_bytes(config.kv_memory_mib() << 20);
  if (init.kv_bytes() == 0 && device == "cpu") init.set_kv_bytes(kDefaultKvBytes);
  init.set_max_budget(config.max_budget());
  init.set_dense_layers(config.dense_layers());
  init.set_dense_below(config.dense_below());
  init.set_bound_selector(config.bound_selector());
  init.set_calibration_file(config.calibration_file());
  init.set_sampled_vocab(tokenizer_vocab);
  init.mutable_calibration_tokens()->Assign(calibration_tokens.begin(), calibration_tokens.end());
  return init;
}

SchedulerConfig SchedulerConfigFrom(const v1::ServerConfig& config,
                                    const std::string& device,
                                    const v1::InitReply& init) {
  SchedulerConfig out;
  out.blocks = init.blocks();
  out.block_positions = init.block_positions();
  out.max_context = init.model().max_context();
  out.vocab_size = init.model().vocab_size();
  out.fingerprint = init.model().fingerprint();
  out.max_lanes = config.max_sequences();
  out.max_step_tokens = config.max_step_tokens();
  out.plans_in_flight = std::max(
      1u, config.plans_in_flight() > 0 ? config.plans_in_flight() : init.plans_in_flight());
  out.max_mixed_tokens = config.max_mixed_tokens();
  if (out.max_mixed_tokens == 0 && device == "cuda") out.max_mixed_tokens = kGpuMixedTokens;
  out.max_waiting_requests = config.max_waiting_requests();
  out.max_waiting_prompt_tokens = config.max_waiting_prompt_tokens();
  return out;
}

Frontend::Options FrontendOptionsFrom(const v1::ServerConfig& config,
                                      const v1::InitReply& init,
                                      uint32_t tokenizer_vocab) {
  const uint64_t capacity = uint64_t{init.blocks()} * init.block_positions();
  Frontend::Options out;
  out.max_running_requests = config.max_sequences();
  out.max_waiting_requests = config.max_waiting_requests();
  out.max_waiting_prompt_tokens = config.max_waiting_prompt_tokens();

  ServingLimits& limits = out.limits;
  limits.model = init.model();
  if (!config.served_model_name().empty()) limits.model.set_name(config.served_model_name());
  limits.vocab = std::min(tokenizer_vocab, init.model().vocab_size());
  limits.sparse = config.sparse();
  limits.max_positions =
      static_cast<uint32_t>(std::min<uint64_t>(init.model().max_context(), capacity));
  limits.max_budget = config.max_budget();
  limits.bound_selector = config.bound_selector();

  v1::GetModelInfoResponse& info = out.info;
  *info.mutable_model() = limits.model;
  info.set_server_version(ServerVersion());
  *info.mutable_default_sparse() = config.sparse();
  info.set_max_prompt_tokens(limits.max_positions - 1);
  info.set_max_budget(config.max_budget());
  info.set_kv_blocks(init.blocks());
  info.set_block_positions(init.block_positions());
  info.set_bound_selector(config.bound_selector());
  info.set_key_codes(init.key_codes());
  info.set_kv_bytes_per_token(init.kv_bytes_per_token());
  return out;
}

std::string StartupTable(const v1::InitReply& init) {
  std::string out = absl::StrFormat("device: %s\nmemory\n", init.device());
  uint64_t total = 0;
  for (const v1::InitReply::Memory& memory : init.memory()) {
    absl::StrAppendFormat(&out, "  %-32s %10.1f MiB\n", memory.what(), memory.bytes() / 1048576.0);
    total += memory.bytes();
  }
  absl::StrAppendFormat(&out, "  %-32s %10.1f MiB\n", "total", total / 1048576.0);
  absl::StrAppendFormat(&out,
                        "%d blocks of %d positions; %d B of K and V, %d B of key codes a token\n",
                        init.blocks(),
                        init.block_positions(),
                        init.kv_bytes_per_token(),
                        init.code_bytes_per_token());
  absl::StrAppendFormat(&out, "key codes: %s\nstartup\n", init.key_codes());
  for (const v1::InitReply::Phase& phase : init.startup()) {
    absl::StrAppendFormat(&out, "  %-32s %10.2f s\n", phase.name(), phase.seconds());
  }
  return out;
}

}  // namespace asynctls
