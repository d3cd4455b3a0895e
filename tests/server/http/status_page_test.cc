// SPDX-License-Identifier: Apache-2.0
// The status page as headless Chromium shows it, of a server with a request in every phase. Skipped
// where there is no chromium.
#include "server/http/status_page.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <regex>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "tests/testing/http_client.h"
#include "tests/testing/serving_fixture.h"
#include "tests/testing/temp_dir.h"

namespace asynctls::testing {
namespace {

// A request over HTTP that stays until its connection is closed.
class Running {
 public:
  Running(int port, const std::string& id, size_t prompt_tokens) : client_(port) {
    std::string prompt = "7";
    for (size_t i = 1; i < prompt_tokens; ++i) prompt += ",7";
    client_.SendRequest("POST",
                        "/v1/completions",
                        absl::StrCat("{\"prompt\":[",
                                     prompt,
                                     "],\"max_tokens\":4000,\"ignore_eos\":true,\"request_id\":",
                                     Json(id).dump(),
                                     "}"));
  }

 private:
  HttpClient client_;
};

struct Dump {
  std::string dom, log;
};

// What the page at `url` has become after `ms` milliseconds of the page's own time.
Dump Browse(const std::string& url, int ms, const std::string& folder) {
  const std::string log = folder + "/log";
  const std::string command = absl::StrCat(
      "timeout 120 chromium --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage "
      "--no-first-run --enable-logging=stderr --dump-dom --virtual-time-budget=",
      ms,
      " --user-data-dir=",
      folder,
      "/profile ",
      url,
      " 2>",
      log);
  Dump out;
  FILE* pipe = popen(command.c_str(), "r");
  char buffer[65536];
  for (size_t n; (n = fread(buffer, 1, sizeof(buffer), pipe)) > 0;) out.dom.append(buffer, n);
  EXPECT_EQ(pclose(pipe), 0);
  std::ifstream in(log);
  out.log.assign(std::istreambuf_iterator<char>(in), {});
  return out;
}

bool HaveChromium() { return std::system("command -v chromium >/dev/null") == 0; }

// The row of a request, up to its end; empty where there is none.
std::string RowOf(const std::string& dom, const std::string& escaped_id) {
  for (absl::string_view row : absl::StrSplit(dom, "<tr")) {
    const size_t end = row.find("</tr>");
    if (absl::StrContains(row.substr(0, end), absl::StrCat(">", escaped_id))) {
      return std::string(row.substr(0, end));
    }
  }
  return "";
}

size_t Rows(const std::string& dom) {
  size_t n = 0;
  for (size_t at = 0; (at = dom.find(" data-phase=\"", at)) != std::string::npos; ++at) ++n;
  return n;
}

// Looks until the engine has told which blocks were read; a page does not wait for that.
bool HeatComes(int port) {
  for (int i = 0; i < 1000; ++i) {
    const Json status = Fetch(port, "GET", "/status.json").json();
    for (const Json& request : status["requests"]["list"]) {
      if (request["heat"] != "") return true;
    }
    absl::SleepFor(absl::Milliseconds(10));
  }
  return false;
}

TEST(StatusPageTest, TheTextIsWhole) {
  EXPECT_TRUE(absl::StartsWith(StatusPage(), "<!doctype html>"));
  EXPECT_TRUE(absl::StrContains(StatusPage(), "</html>"));
}

TEST(StatusPageTest, ShowsRequestsInChromium) {
  if (!HaveChromium()) GTEST_SKIP() << "NOT TESTED: there is no chromium here";
  TestServer::Options options = TestServer::Defaults();
  options.config.set_http_listen("127.0.0.1:0");
  options.config.set_max_sequences(2);
  options.config.set_max_step_tokens(64);
  options.fake.max_step_tokens = 64;
  options.fake.step_time = absl::Milliseconds(100);  // 50000 tokens of prompt take 78 s
  TestServer server(options);
  const int port = server.server().http_port();
  const std::string evil = "<img src=x onerror=document.title='pwned'>";
  Running decoding(port, "decoding", 300);
  ASSERT_TRUE(server.WaitFor([](const auto& s) { return s.generation_tokens > 0; }));
  Running prefilling(port, evil, 50000);
  ASSERT_TRUE(server.WaitFor([](const auto& s) { return s.running == 2; }));
  Running waiting(port, "waiting", 10);
  ASSERT_TRUE(server.WaitFor([](const auto& s) { return s.waiting == 1; }));

  ASSERT_TRUE(HeatComes(port));
  TempDir folder;
  const Dump dump = Browse(absl::StrCat("http://127.0.0.1:", port, "/"), 4000, folder.path());
  const std::string& dom = dump.dom;
  EXPECT_EQ(dump.log.find("CONSOLE"), std::string::npos) << dump.log;
  EXPECT_NE(dom.find("data-state=\"live\""), std::string::npos) << dom.substr(0, 2000) << dump.log;
  EXPECT_EQ(Rows(dom), 3u);
  EXPECT_NE(RowOf(dom, "decoding").find("data-phase=\"decode\""), std::string::npos);
  EXPECT_NE(RowOf(dom, "waiting").find("data-phase=\"waiting\""), std::string::npos);
  // What a client called itself stays text.
  const std::string row = RowOf(dom, "&lt;img src=x");
  EXPECT_NE(row.find("data-phase=\"prefill\""), std::string::npos);
  EXPECT_EQ(dom.find("<img"), std::string::npos);
  EXPECT_NE(dom.find("<title>AsyncTLS</title>"), std::string::npos);
  // Blocks that the decoding request read.
  EXPECT_TRUE(std::regex_search(RowOf(dom, "decoding"),
                                std::regex(R"(title="\d+ blocks; \d+ of \d+ cells read")")))
      << RowOf(dom, "decoding");
  EXPECT_NE(RowOf(dom, "waiting").find("nothing was reported yet"), std::string::npos);
  EXPECT_TRUE(std::regex_search(dom, std::regex(R"(id="running">2<)")));
  EXPECT_TRUE(std::regex_search(dom, std::regex(R"(id="waiting">1<)")));
  EXPECT_TRUE(std::regex_search(dom, std::regex(R"(id="health" class="pill good"[^>]*>ready<)")));
  EXPECT_TRUE(std::regex_search(dom, std::regex(R"(id="speed">[\d.k]+<)")));
  EXPECT_TRUE(std::regex_search(dom, std::regex(R"(id="kv-legend"><span[^>]*>used [1-9])")));
  // FakeWorker calls all of its time "other".
  EXPECT_NE(dom.find(">other 100 %<"), std::string::npos);
  EXPECT_NE(dom.find("FakeForCausalLM"), std::string::npos);
}

TEST(StatusPageTest, SaysThatTheModelIsLoadingInChromium) {
  if (!HaveChromium()) GTEST_SKIP() << "NOT TESTED: there is no chromium here";
  TestServer::Options options = TestServer::Defaults();
  options.config.set_http_listen("127.0.0.1:0");
  options.open = false;
  TestServer server(options);
  TempDir folder;
  const Dump dump = Browse(
      absl::StrCat("http://127.0.0.1:", server.server().http_port(), "/"), 1000, folder.path());
  EXPECT_EQ(dump.log.find("CONSOLE"), std::string::npos) << dump.log;
  EXPECT_NE(dump.dom.find("the model is loading"), std::string::npos);
}

}  // namespace
}  // namespace asynctls::testing
