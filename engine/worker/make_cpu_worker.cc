// SPDX-License-Identifier: Apache-2.0
#include "engine/worker/make_cpu_worker.h"

#include <algorithm>

#include "engine/worker/key_codes.h"
#include "engine/worker/local_worker.h"
#include "kernels/cpu/cpu_ops.h"

namespace asynctls {

std::unique_ptr<Worker> MakeCpuWorker() {
  return std::make_unique<LocalWorker<CpuOps>>([](const v1::InitRequest& request) {
    return Backend<CpuOps>(std::make_unique<CpuOps>(static_cast<int>(request.threads())));
  });
}

absl::Status CalibrateCpu(const CpuCalibration& calibration) {
  if (calibration.tokens.empty()) {
    return absl::InvalidArgumentError("calibrate: no tokens, 1 or more are needed");
  }
  const absl::StatusOr<ModelConfig> config = LoadModelConfig(calibration.model_dir);
  if (!config.ok()) return config.status();
  const int64_t context =
      std::min<int64_t>(static_cast<int64_t>(calibration.tokens.size()), config->max_positions);
  const KvLayout kv{
      .layers = config->layers, .kv_heads = config->kv_heads, .head_dim = config->head_dim};
  v1::InitRequest request;
  request.set_model_dir(calibration.model_dir);
  request.set_weights(calibration.weights);
  request.set_ranks(1);
  request.set_threads(static_cast<uint32_t>(calibration.threads));
  request.set_max_lanes(1);
  request.set_max_step_tokens(512);
  request.set_max_context(static_cast<uint32_t>(context));
  request.set_max_budget(1);
  request.set_dense_layers(static_cast<uint32_t>(config->layers));  // no codes while calibrating
  request.set_kv_bytes(static_cast<uint64_t>(BlocksFor(context) * kv.BlockBytes()));
  v1::InitReply reply;
  absl::StatusOr<std::unique_ptr<RankModel<CpuOps>>> model =
      RankModel<CpuOps>::Create(request, std::make_unique<CpuOps>(calibration.threads), reply);
  if (!model.ok()) return model.status();
  absl::StatusOr<KeyCodeTables> tables =
      Calibrate(**model, calibration.tokens, calibration.source, calibration.progress);
  if (!tables.ok()) return tables.status();
  return tables->Write(calibration.out_file.empty()
                           ? calibration.model_dir + "/key_codes.safetensors"
                           : calibration.out_file);
}

}  // namespace asynctls
