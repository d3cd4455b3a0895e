// SPDX-License-Identifier: Apache-2.0
// What startup derives from the configuration and from what the workers answered. Pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "asynctls/v1/config.pb.h"
#include "asynctls/v1/worker.pb.h"
#include "engine/engine.h"
#include "server/frontend/frontend.h"

namespace asynctls {

// Bytes of KV and key codes of a rank on the CPU where the configuration says 0.
inline constexpr uint64_t kDefaultKvBytes = uint64_t{2048} << 20;
// Prompt tokens of a step that also generates, on a GPU, where the configuration says 0.
inline constexpr uint32_t kGpuMixedTokens = 512;

// "cuda" or "cpu", of a machine with so many GPUs that the build can use.
std::string DeviceFor(const v1::ServerConfig& config, int gpus);

// Common to all ranks, which compute on `device`; the group fills in rank and ranks. `cores` are
// shared by the ranks where threads is 0. `calibration_tokens` may be empty. `tokenizer_vocab`: ids
// below it may be sampled.
v1::InitRequest InitRequestFrom(const v1::ServerConfig& config,
                                const std::string& device,
                                uint32_t cores,
                                const std::string& rendezvous,
                                const std::vector<uint32_t>& calibration_tokens,
                                uint32_t tokenizer_vocab);

SchedulerConfig SchedulerConfigFrom(const v1::ServerConfig& config,
                                    const std::string& device,
                                    const v1::InitReply& init);

// `tokenizer_vocab`: ids below it are in the tokenizer. A checkpoint's embedding may have more
// rows, which no text reaches; requests may name neither these nor ids beyond the embedding.
Frontend::Options FrontendOptionsFrom(const v1::ServerConfig& config,
                                      const v1::InitReply& init,
                                      uint32_t tokenizer_vocab);

// The memory plan and the phases of startup, for people.
std::string StartupTable(const v1::InitReply& init);

}  // namespace asynctls
