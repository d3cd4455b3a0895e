// SPDX-License-Identifier: Apache-2.0
// What arrives on the port and is no well-formed call: every class, and a server that goes on
// serving its well-formed neighbour after each.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "grpcpp/generic/generic_stub.h"
#include "tests/testing/http2_client.h"
#include "tests/testing/serving_fixture.h"

namespace asynctls::testing {
namespace {

constexpr char kGenerate[] = "/asynctls.v1.GenerationService/Generate";

class TransportTest : public ::testing::Test {
 protected:
  ~TransportTest() override {
    EXPECT_TRUE(server_.Generate(IdsRequest({1, 2}, 3)).status.ok());
    EXPECT_TRUE(server_.WaitIdle());
    EXPECT_EQ(server_.engine().snapshot().blocks_used, 0);
  }
  int port() { return server_.server().grpc_port(); }
  // A connection with a call that has sent its headers.
  std::unique_ptr<Http2Client> Call(uint32_t window = 65535) {
    auto client = std::make_unique<Http2Client>(port());
    client->Greet(window);
    client->SendHeaders(1, Http2Client::Call(kGenerate));
    return client;
  }
  // Status of a call by any name with any bytes.
  grpc::Status Unary(const std::string& method,
                     const std::string& bytes,
                     grpc::ClientContext& context) {
    grpc::GenericStub stub(server_.channel());
    grpc::Slice slice(bytes);
    grpc::ByteBuffer request(&slice, 1), response;
    grpc::CompletionQueue queue;
    auto call = stub.PrepareUnaryCall(&context, method, request, &queue);
    grpc::Status status;
    call->StartCall();
    call->Finish(&response, &status, nullptr);
    void* tag;
    bool ok;
    queue.Next(&tag, &ok);
    return status;
  }

  static TestServer::Options Options() {
    TestServer::Options options = TestServer::Defaults();
    options.config.set_max_connections(200);
    options.config.set_max_message_mib(1);
    return options;
  }
  TestServer server_{Options()};
};

TEST_F(TransportTest, RandomBytes) {
  std::mt19937 random(7);
  for (int i = 0; i < 100; ++i) {
    Http2Client client(port());
    std::string bytes(1 + random() % 4096, 0);
    for (char& c : bytes) c = static_cast<char>(random());
    client.Send(bytes);
    if (bytes[0] != 'P') {
      EXPECT_TRUE(client.WaitForClose());
    }
  }
}

TEST_F(TransportTest, RandomBytesAfterThePreface) {
  std::mt19937 random(8);
  for (int i = 0; i < 100; ++i) {
    Http2Client client(port());
    client.Greet();
    std::string bytes(1 + random() % 4096, 0);
    for (char& c : bytes) c = static_cast<char>(random());
    client.Send(bytes);
    client.ReadFrames(1);
  }
}

TEST_F(TransportTest, TlsHello) {
  Http2Client client(port());
  client.Send(std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11));
  EXPECT_TRUE(client.WaitForClose());
}

TEST_F(TransportTest, TruncatedMessage) {
  const auto client = Call();
  client->SendFrame(
      Http2Client::kData, Http2Client::kEndStream, 1, std::string("\0\0\0\0\x64xyz", 8));
  EXPECT_THAT(client->ReadFrames(300), ::testing::Contains(Http2Client::kHeaders));  // trailers
}

TEST_F(TransportTest, LengthPrefixOfFourGigabytes) {
  const auto client = Call();
  // gRPC looks at the length once the client has said all it will.
  client->SendFrame(
      Http2Client::kData, Http2Client::kEndStream, 1, std::string("\0\xff\xff\xff\xff", 5) + "abc");
  EXPECT_THAT(client->ReadFrames(300), ::testing::Contains(Http2Client::kHeaders));
}

TEST_F(TransportTest, CompressionBomb) {
  v1::GenerateRequest request;
  request.set_text(std::string(64 << 20, 'a'));
  grpc::ClientContext context;
  context.set_compression_algorithm(GRPC_COMPRESS_GZIP);
  EXPECT_EQ(server_.Generate(request, context).status.error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(TransportTest, MessageOverTheLimit) {
  v1::GenerateRequest request;
  request.set_text(std::string(2 << 20, 'a'));
  EXPECT_EQ(server_.Generate(request).status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(TransportTest, UnknownMethodAndService) {
  for (const char* method : {"/asynctls.v1.GenerationService/Nothing",
                             "/no.Service/Generate",
                             "/",
                             "//",
                             "/asynctls.v1.GenerationService"}) {
    grpc::ClientContext context;
    EXPECT_EQ(Unary(method, "", context).error_code(), grpc::StatusCode::UNIMPLEMENTED) << method;
  }
}

TEST_F(TransportTest, BytesThatAreNoMessage) {
  for (const std::string& bytes : {std::string("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
                                   std::string("\x0a\x7f short"),
                                   std::string("\x0b\x0b\x0b")}) {
    grpc::ClientContext context;
    EXPECT_EQ(Unary("/asynctls.v1.GenerationService/Tokenize", bytes, context).error_code(),
              grpc::StatusCode::INVALID_ARGUMENT);
  }
}

TEST_F(TransportTest, WrongContentType) {
  Http2Client client(port());
  client.Greet();
  Http2Client::Headers headers = Http2Client::Call(kGenerate);
  headers[4].second = "text/html";
  client.SendHeaders(1, headers, Http2Client::kEndStream);
  EXPECT_THAT(client.ReadFrames(300), ::testing::Contains(Http2Client::kHeaders));
}

TEST_F(TransportTest, HeadersOverTheLimit) {
  const auto call = [&](int entries, size_t bytes) {
    grpc::ClientContext context;
    for (int i = 0; i < entries; ++i) {
      context.AddMetadata(absl::StrCat("x-entry-", i), std::string(bytes, 'x'));
    }
    grpc::ChannelArguments own;  // a connection of its own, for the server may end it
    own.SetInt("connection", entries);
    auto stub = v1::GenerationService::NewStub(grpc::CreateCustomChannel(
        absl::StrCat("127.0.0.1:", port()), grpc::InsecureChannelCredentials(), own));
    auto reader = stub->Generate(&context, IdsRequest({1}, 1));
    v1::GenerateResponse message;
    while (reader->Read(&message)) continue;
    return reader->Finish().error_code();
  };
  // UNAVAILABLE: the end of the connection came before the answer.
  const auto refused =
      ::testing::AnyOf(grpc::StatusCode::RESOURCE_EXHAUSTED, grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(call(50, 10), grpc::StatusCode::OK);
  EXPECT_THAT(call(1000, 100), refused);
  EXPECT_THAT(call(1, 1 << 20), refused);
  EXPECT_EQ(call(49, 10), grpc::StatusCode::OK);
}

TEST_F(TransportTest, IdleConnectionsBeyondTheLimit) {
  ASSERT_TRUE(server_.Generate(IdsRequest({1}, 1)).status.ok());  // has its connection
  std::vector<std::unique_ptr<Http2Client>> idle;
  for (int i = 0; i < 300; ++i) {
    idle.push_back(std::make_unique<Http2Client>(port()));
    idle.back()->Greet();
  }
  EXPECT_TRUE(idle.back()->WaitForClose());
  EXPECT_TRUE(server_.Generate(IdsRequest({1}, 1)).status.ok());
}

TEST_F(TransportTest, StreamsBeyondTheLimitOfAConnection) {
  const auto client = Call();
  for (uint32_t stream = 3; stream < 20001; stream += 2) {
    if (!client->SendHeaders(stream, Http2Client::Call(kGenerate))) break;
  }
  client->ReadFrames(100);
}

TEST_F(TransportTest, RapidReset) {
  const auto client = Call();
  v1::GenerateRequest request = IdsRequest({1, 2, 3}, 1000);
  for (uint32_t stream = 3; stream < 10001; stream += 2) {
    if (!client->SendHeaders(stream, Http2Client::Call(kGenerate)) ||
        !client->SendMessage(stream, request) ||
        !client->SendFrame(Http2Client::kReset, 0, stream, Http2Client::Big32(8))) {
      break;
    }
  }
  client->ReadFrames(100);
}

TEST_F(TransportTest, PingFlood) {
  const auto client = Call();
  for (int i = 0; i < 100000; ++i) {
    if (!client->SendFrame(Http2Client::kPing, 0, 0, "12345678")) break;
  }
  client->ReadFrames(100);
}

TEST_F(TransportTest, SettingsFlood) {
  const auto client = Call();
  for (int i = 0; i < 20000; ++i) {
    if (!client->SendFrame(Http2Client::kSettings, 0, 0, "")) break;
  }
  client->ReadFrames(100);
}

TEST_F(TransportTest, ABodyThatComesByteByByteAndStops) {
  const auto client = Call();
  for (char c : std::string("\0\0\0\0\x09", 5)) {
    client->SendFrame(Http2Client::kData, 0, 1, std::string(1, c));
  }
  EXPECT_TRUE(server_.Generate(IdsRequest({1, 2}, 3)).status.ok());  // nobody waits for it
}

TEST_F(TransportTest, AClientThatNeverReads) {
  const auto client = Call(/*window=*/0);
  client->SendMessage(1, IdsRequest({1, 2, 3}, 5000));
  EXPECT_TRUE(
      server_.WaitFor([](const Engine::Snapshot& s) { return s.generation_tokens >= 5000; }));
  EXPECT_TRUE(server_.WaitIdle());  // its blocks do not wait for it
}

TEST_F(TransportTest, HalfCloseThatNeverComes) {
  const auto client = Call();
  const std::string bytes = IdsRequest({1, 2}, 3).SerializeAsString();
  client->SendFrame(
      Http2Client::kData, 0, 1, std::string("\0", 1) + Http2Client::Big32(bytes.size()) + bytes);
  client->ReadFrames(50);
}

TEST_F(TransportTest, GoAwayInTheMiddleOfAStream) {
  const auto client = Call();
  client->SendMessage(1, IdsRequest({1, 2, 3}, 50000));
  EXPECT_TRUE(server_.WaitFor([](const Engine::Snapshot& s) { return s.running > 0; }));
  client->SendFrame(Http2Client::kGoAway, 0, 0, std::string(8, '\0'));
  client->Close();
}

TEST_F(TransportTest, CrashInTheMiddleOfAStream) {
  const auto client = Call();
  client->SendMessage(1, IdsRequest({1, 2, 3}, 50000));
  EXPECT_TRUE(server_.WaitFor([](const Engine::Snapshot& s) { return s.running > 0; }));
  client->Crash();
}

}  // namespace
}  // namespace asynctls::testing
