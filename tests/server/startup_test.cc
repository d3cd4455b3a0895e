// SPDX-License-Identifier: Apache-2.0
#include "server/startup.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/config.h"

namespace asynctls {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

v1::InitReply Reply() {
  v1::InitReply reply;
  reply.set_blocks(100);
  reply.set_block_positions(64);
  reply.mutable_model()->set_max_context(131072);
  reply.mutable_model()->set_vocab_size(2048);
  reply.mutable_model()->set_fingerprint("print");
  return reply;
}

TEST(InitRequestFromTest, CarriesTheConfiguration) {
  v1::ServerConfig config = DefaultConfig();
  config.set_model("dir");
  config.set_weights("synthetic");
  config.set_tensor_parallel(2);
  config.set_dense_layers(0);
  const v1::InitRequest init = InitRequestFrom(config, "cpu", 8, "meet", {1, 2}, 2000);
  EXPECT_EQ(init.model_dir(), "dir");
  EXPECT_EQ(init.weights(), v1::WEIGHT_SOURCE_SYNTHETIC);
  EXPECT_EQ(init.threads(), 4u);  // its share of the cores
  EXPECT_EQ(init.kv_bytes(), 2048ull << 20);
  EXPECT_EQ(init.max_lanes(), 32u);
  EXPECT_EQ(init.max_step_tokens(), 1024u);
  EXPECT_EQ(init.dense_layers(), 0u);
  EXPECT_EQ(init.dense_below(), 4096u);
  EXPECT_EQ(init.rendezvous(), "meet");
  EXPECT_THAT(init.calibration_tokens(), ElementsAre(1, 2));
  EXPECT_EQ(init.sampled_vocab(), 2000u);
  config.set_threads(3);
  EXPECT_EQ(InitRequestFrom(config, "cpu", 8, "", {}, 2000).threads(), 3u);
  config.set_threads(0);
  config.set_tensor_parallel(16);
  EXPECT_EQ(InitRequestFrom(config, "cpu", 8, "", {}, 2000).threads(), 1u);
}

TEST(InitRequestFromTest, MemoryForKvFollowsTheDevice) {
  v1::ServerConfig config = DefaultConfig();
  EXPECT_EQ(InitRequestFrom(config, "cpu", 8, "", {}, 2000).kv_bytes(), kDefaultKvBytes);
  EXPECT_EQ(InitRequestFrom(config, "cuda", 8, "", {}, 2000).kv_bytes(), 0u);  // what is free
  config.set_kv_memory_mib(100);
  EXPECT_EQ(InitRequestFrom(config, "cuda", 8, "", {}, 2000).kv_bytes(), 100u << 20);
}

TEST(DeviceForTest, AutoTakesAGpuWhereThereIsOne) {
  v1::ServerConfig config = DefaultConfig();
  EXPECT_EQ(DeviceFor(config, 0), "cpu");
  EXPECT_EQ(DeviceFor(config, 2), "cuda");
  config.set_device("cpu");
  EXPECT_EQ(DeviceFor(config, 2), "cpu");
  config.set_device("cuda");
  EXPECT_EQ(DeviceFor(config, 0), "cuda");
}

TEST(SchedulerConfigFromTest, TakesSizesFromTheWorkersAndLimitsFromTheConfiguration) {
  const SchedulerConfig out = SchedulerConfigFrom(DefaultConfig(), "cpu", Reply());
  EXPECT_EQ(out.blocks, 100u);
  EXPECT_EQ(out.max_context, 131072u);
  EXPECT_EQ(out.fingerprint, "print");
  EXPECT_EQ(out.max_lanes, 32u);
  EXPECT_EQ(out.max_waiting_prompt_tokens, 4194304u);
  EXPECT_EQ(out.max_mixed_tokens, 0u);
  EXPECT_EQ(out.plans_in_flight, 1u) << "a rank that does not say";
}

TEST(SchedulerConfigFromTest, AGpuIsKeptBusyAndItsDecodesGoOn) {
  v1::ServerConfig config = DefaultConfig();
  v1::InitReply reply = Reply();
  reply.set_plans_in_flight(2);
  EXPECT_EQ(SchedulerConfigFrom(config, "cuda", reply).plans_in_flight, 2u);
  EXPECT_EQ(SchedulerConfigFrom(config, "cuda", reply).max_mixed_tokens, kGpuMixedTokens);
  config.set_plans_in_flight(1);
  config.set_max_mixed_tokens(100);
  EXPECT_EQ(SchedulerConfigFrom(config, "cuda", reply).plans_in_flight, 1u);
  EXPECT_EQ(SchedulerConfigFrom(config, "cuda", reply).max_mixed_tokens, 100u);
}

TEST(FrontendOptionsFromTest, PositionsAreTheContextOrWhatMemoryHolds) {
  v1::InitReply reply = Reply();
  EXPECT_EQ(FrontendOptionsFrom(DefaultConfig(), reply, 2000).limits.max_positions, 6400u);
  reply.set_blocks(1 << 20);
  const auto options = FrontendOptionsFrom(DefaultConfig(), reply, 2000);
  EXPECT_EQ(options.limits.max_positions, 131072u);
  EXPECT_EQ(options.info.max_prompt_tokens(), 131071u);
}

TEST(FrontendOptionsFromTest, IdsAreInTheTokenizerAndInTheEmbedding) {
  EXPECT_EQ(FrontendOptionsFrom(DefaultConfig(), Reply(), 2000).limits.vocab, 2000u);
  EXPECT_EQ(FrontendOptionsFrom(DefaultConfig(), Reply(), 3000).limits.vocab, 2048u);
}

TEST(StartupTableTest, ShowsEveryPartAndTheTotal) {
  v1::InitReply reply = Reply();
  for (int i = 1; i <= 2; ++i) {
    v1::InitReply::Memory& memory = *reply.add_memory();
    memory.set_what(i == 1 ? "weights" : "KV");
    memory.set_bytes(uint64_t{3} << 20);
  }
  v1::InitReply::Phase& phase = *reply.add_startup();
  phase.set_name("load");
  phase.set_seconds(1.25);
  reply.set_device("a GPU");
  const std::string table = StartupTable(reply);
  EXPECT_THAT(table, HasSubstr("device: a GPU"));
  EXPECT_THAT(table, HasSubstr("weights"));
  EXPECT_THAT(table, HasSubstr("3.0 MiB"));
  EXPECT_THAT(table, HasSubstr("6.0 MiB"));
  EXPECT_THAT(table, HasSubstr("1.25 s"));
}

}  // namespace
}  // namespace asynctls
