// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/grpc_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <thread>

#include "grpcpp/generic/generic_stub.h"
#include "tests/testing/serving_fixture.h"

namespace asynctls::testing {
namespace {

using ::testing::HasSubstr;

std::string Bytes(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  std::string out;
  for (const grpc::Slice& slice : slices) {
    out.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return out;
}

// grpc.health.v1.Health/Check, spelled out: Debian installs no stubs for it.
absl::StatusOr<bool> IsServing(TestServer& server, const std::string& name) {
  grpc::GenericStub stub(server.channel());
  grpc::Slice slice("\x0a" + std::string(1, static_cast<char>(name.size())) + name);
  grpc::ByteBuffer request(&slice, 1), response;
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  auto call = stub.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check", request, &queue);
  grpc::Status status;
  call->StartCall();
  call->Finish(&response, &status, nullptr);
  void* tag;
  bool ok;
  queue.Next(&tag, &ok);
  if (!status.ok()) {
    return absl::Status(static_cast<absl::StatusCode>(status.error_code()), "Check");
  }
  return Bytes(response) == std::string("\x08\x01");
}

TEST(HealthTest, AllNamesAreServed) {
  TestServer server;
  for (const char* name : {"",
                           "liveness",
                           "startup",
                           "readiness",
                           "asynctls.v1.GenerationService",
                           "vllm.grpc.engine.VllmEngine",
                           "inference.GRPCInferenceService"}) {
    const auto serving = IsServing(server, name);
    ASSERT_TRUE(serving.ok()) << name << serving.status();
    EXPECT_TRUE(*serving) << name;
  }
  EXPECT_EQ(IsServing(server, "nobody").status().code(), absl::StatusCode::kNotFound);
}

TEST(HealthTest, WhileTheModelLoadsItIsLiveAndNotReady) {
  TestServer::Options options = TestServer::Defaults();
  options.open = false;
  TestServer server(options);
  EXPECT_TRUE(*IsServing(server, "liveness"));
  EXPECT_FALSE(*IsServing(server, "startup"));
  EXPECT_FALSE(*IsServing(server, "readiness"));
  const Outcome out = server.Generate(IdsRequest({1}, 2));
  EXPECT_EQ(out.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(out.status.error_message(), HasSubstr("loading"));
}

// A Watch call: one status after another.
class Watch {
 public:
  Watch(TestServer& server, const std::string& name) : stub_(server.channel()) {
    call_ = stub_.PrepareCall(&context_, "/grpc.health.v1.Health/Watch", &queue_);
    call_->StartCall(nullptr);
    Wait();
    grpc::Slice slice("\x0a" + std::string(1, static_cast<char>(name.size())) + name);
    call_->WriteLast(grpc::ByteBuffer(&slice, 1), grpc::WriteOptions(), nullptr);
    Wait();
  }
  ~Watch() {
    context_.TryCancel();
    queue_.Shutdown();
    void* tag;
    bool ok;
    while (queue_.Next(&tag, &ok)) continue;
  }
  // Waits for the next; empty: the call has ended.
  std::string Next() {
    grpc::ByteBuffer response;
    call_->Read(&response, nullptr);
    return Wait() ? Bytes(response) : "";
  }
  grpc::StatusCode Finish() {
    grpc::Status status;
    call_->Finish(&status, nullptr);
    EXPECT_TRUE(Wait());
    return status.error_code();
  }

 private:
  bool Wait() {
    void* tag;
    bool ok = false;
    return queue_.Next(&tag, &ok) && ok;
  }

  grpc::GenericStub stub_;
  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
};

constexpr char kServing[] = "\x08\x01";
constexpr char kNotServing[] = "\x08\x02";

TEST(HealthTest, AWatchTellsEveryChangeAndStaysOpen) {
  TestServer::Options options = TestServer::Defaults();
  options.open = false;
  options.fake.step_time = absl::Milliseconds(1);
  TestServer server(options);
  auto ready = std::make_unique<Watch>(server, "inference.GRPCInferenceService");
  EXPECT_EQ(ready->Next(), kNotServing);
  server.Open();
  EXPECT_EQ(ready->Next(), kServing);
  for (int i = 0; i < 10; ++i) server.server().UpdateHealth();  // no change, no message
  // A request keeps the drain going until it is cancelled.
  grpc::ClientContext context;
  auto reader = server.stub().Generate(&context, IdsRequest({1, 2}, 60000));
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  std::thread drain([&] { server.server().Drain(absl::Minutes(5)); });
  EXPECT_EQ(ready->Next(), kNotServing);
  EXPECT_TRUE(*IsServing(server, "liveness"));
  context.TryCancel();
  while (reader->Read(&message)) continue;
  reader->Finish();
  EXPECT_EQ(ready->Next(), "");  // the end of the drain ends it
  EXPECT_EQ(ready->Finish(), grpc::StatusCode::UNAVAILABLE);
  drain.join();
}

TEST(HealthTest, ADeadEngineIsNeitherLiveNorReady) {
  TestServer::Options options = TestServer::Defaults();
  options.fake.fail_at_step = 1;
  TestServer server(options);
  EXPECT_TRUE(server.server().UpdateHealth());
  EXPECT_EQ(server.Generate(IdsRequest({1}, 2)).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_FALSE(server.server().UpdateHealth());
  EXPECT_FALSE(*IsServing(server, "liveness"));
  EXPECT_FALSE(*IsServing(server, "readiness"));
}

TEST(ReflectionTest, ListsTheServices) {
  TestServer server;
  grpc::GenericStub stub(server.channel());
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  auto call = stub.PrepareCall(
      &context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  void* tag;
  bool ok = false;
  const auto wait = [&] { return queue.Next(&tag, &ok) && ok; };
  call->StartCall(nullptr);
  ASSERT_TRUE(wait());
  grpc::Slice slice("\x3a\x01*");  // list_services
  call->Write(grpc::ByteBuffer(&slice, 1), nullptr);
  ASSERT_TRUE(wait());
  grpc::ByteBuffer response;
  call->Read(&response, nullptr);
  ASSERT_TRUE(wait());
  const std::string text = Bytes(response);
  EXPECT_THAT(text, HasSubstr("asynctls.v1.GenerationService"));
  EXPECT_THAT(text, HasSubstr("grpc.health.v1.Health"));
  grpc::Status status;
  call->WritesDone(nullptr);
  ASSERT_TRUE(wait());
  call->Finish(&status, nullptr);
  ASSERT_TRUE(wait());
  EXPECT_TRUE(status.ok());
}

TEST(StartTest, ATakenPortIsRefused) {
  TestServer server;
  TestServer::Options options = TestServer::Defaults();
  v1::ServerConfig config = options.config;
  config.set_listen(absl::StrCat("127.0.0.1:", server.server().grpc_port()));
  const auto second = GrpcServer::Start(config, {});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(config.listen()));
}

}  // namespace
}  // namespace asynctls::testing
