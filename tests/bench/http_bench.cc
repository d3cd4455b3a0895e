// SPDX-License-Identifier: Apache-2.0
// http_bench [streams [tokens]]: tokens a second through server-sent events beside gRPC, in turns,
// on an engine whose steps cost nothing. Clients are threads of the same process, so the figures
// are for comparing the two, not for what a server can do.
#include <sys/resource.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/check.h"
#include "tests/testing/http_client.h"
#include "tests/testing/serving_fixture.h"

namespace asynctls::testing {
namespace {

double CpuSeconds() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) { return t.tv_sec + t.tv_usec * 1e-6; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

void StreamHttp(TestServer& server, uint32_t first, uint32_t tokens) {
  HttpClient client(server.server().http_port());
  client.SendRequest("POST",
                     "/v1/completions",
                     absl::StrCat("{\"prompt\":[",
                                  first,
                                  ",2,3],\"temperature\":0,\"ignore_eos\":true,\"stream\":true,",
                                  "\"max_tokens\":",
                                  tokens,
                                  "}"));
  ASYNCTLS_CHECK(absl::EndsWith(client.ReadReply().body, "data: [DONE]\n\n"));
}

void StreamGrpc(TestServer& server, uint32_t first, uint32_t tokens) {
  v1::GenerateRequest request = IdsRequest({first, 2, 3}, tokens);
  request.mutable_stopping()->set_ignore_eos(true);
  request.mutable_response()->set_token_ids(false);
  grpc::ClientContext context;
  auto reader = server.stub().Generate(&context, request);
  v1::GenerateResponse message;
  while (reader->Read(&message)) continue;
  ASYNCTLS_CHECK(reader->Finish().ok());
}

void Measure(const char* name, int streams, uint32_t tokens, const std::function<void(int)>& one) {
  const double cpu = CpuSeconds();
  const absl::Time begin = absl::Now();
  std::vector<std::thread> threads;
  for (int i = 0; i < streams; ++i) threads.emplace_back(one, i);
  for (std::thread& thread : threads) thread.join();
  const double total = static_cast<double>(streams) * tokens;
  std::printf("%s  %8.0f tokens/s  %6.2f us of CPU a token, client and engine included\n",
              name,
              total / absl::ToDoubleSeconds(absl::Now() - begin),
              (CpuSeconds() - cpu) / total * 1e6);
}

void Main(int streams, uint32_t tokens) {
  TestServer::Options options = TestServer::Defaults();
  options.config.set_http_listen("127.0.0.1:0");
  options.config.set_max_waiting_requests(static_cast<uint32_t>(streams));
  options.config.set_max_connections(static_cast<uint32_t>(streams) + 64);
  TestServer server(options);
  for (int round = 0; round < 4; ++round) {
    Measure("grpc", streams, tokens, [&](int i) { StreamGrpc(server, i, tokens); });
    Measure("http", streams, tokens, [&](int i) { StreamHttp(server, i, tokens); });
  }
}

}  // namespace
}  // namespace asynctls::testing

int main(int argc, char** argv) {
  asynctls::testing::Main(argc > 1 ? std::atoi(argv[1]) : 32,
                          argc > 2 ? static_cast<uint32_t>(std::atoi(argv[2])) : 2000);
}
