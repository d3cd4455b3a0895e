// SPDX-License-Identifier: Apache-2.0
#include "server/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "google/protobuf/descriptor.h"

namespace asynctls {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string WriteFile(const std::string& name, const std::string& text) {
  const std::string path = (std::filesystem::path(::testing::TempDir()) / name).string();
  std::ofstream(path) << text;
  return path;
}

TEST(LoadConfigTest, FillsEveryDefault) {
  auto config = LoadConfig({"--model", "m"});
  ASSERT_TRUE(config.ok()) << config.status();
  v1::ServerConfig expected = DefaultConfig();
  expected.set_model("m");
  EXPECT_EQ(config->DebugString(), expected.DebugString());
  EXPECT_EQ(config->listen(), "0.0.0.0:50051");
  EXPECT_EQ(config->dense_layers(), 2u);
  EXPECT_EQ(config->sparse().budget(), 1024u);
}

TEST(LoadConfigTest, FlagsOfEveryKind) {
  auto config = LoadConfig({"--model=m",
                            "--kv-memory-mib",
                            "4096",
                            "--sparse.mode=lagged",
                            "--sparse.selector",
                            "bound",
                            "--bound-selector",
                            "--sparse.top-p=0.5",
                            "--sparse.budget",
                            "256",
                            "--dense-layers=0",
                            "--listen=[::1]:0"});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->kv_memory_mib(), 4096u);
  EXPECT_EQ(config->sparse().mode(), v1::ATTENTION_MODE_LAGGED);
  EXPECT_EQ(config->sparse().selector(), v1::SELECTOR_BOUND);
  EXPECT_TRUE(config->bound_selector());
  EXPECT_FLOAT_EQ(config->sparse().top_p(), 0.5f);
  EXPECT_EQ(config->sparse().budget(), 256u);
  EXPECT_EQ(config->dense_layers(),
            0u);  // a zero that was written is kept where zero means something
  EXPECT_EQ(config->listen(), "[::1]:0");
}

TEST(LoadConfigTest, FlagsWinOverTheFileWhereverItStands) {
  const std::string path = WriteFile("server.textproto",
                                     "model: 'file' max_sequences: 8 bound_selector: true\n"
                                     "sparse { budget: 512 }\n");
  auto config = LoadConfig({"--model", "flag", "--bound-selector=false", "--config", path});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->model(), "flag");
  EXPECT_FALSE(config->bound_selector());
  EXPECT_EQ(config->max_sequences(), 8u);
  EXPECT_EQ(config->sparse().budget(), 512u);
  EXPECT_EQ(config->sparse().blocks(), 64u);
}

TEST(LoadConfigTest, NamesFileLineAndFieldOfASyntaxError) {
  const std::string path = WriteFile("bad.textproto", "model: 'm'\nno_such_field: 1\n");
  auto config = LoadConfig({"--config", path});
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(config.status().message()),
              AllOf(HasSubstr("bad.textproto:2:"), HasSubstr("no_such_field")));
  EXPECT_EQ(LoadConfig({"--config", "/nowhere/x"}).status().code(), absl::StatusCode::kNotFound);
}

struct Bad {
  std::vector<std::string> args;
  std::string message;
};

class BadConfigTest : public ::testing::TestWithParam<Bad> {};

TEST_P(BadConfigTest, IsRefusedWithFieldValueAndLimit) {
  auto config = LoadConfig(GetParam().args);
  ASSERT_FALSE(config.ok());
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(config.status().message()), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    All,
    BadConfigTest,
    ::testing::Values(
        Bad{{}, "model is required"},
        Bad{{"--model"}, "--model needs a value"},
        Bad{{"--config"}, "--config needs a value"},
        Bad{{"model"}, "unexpected argument 'model'"},
        Bad{{"--modle", "m"}, "unknown flag --modle"},
        Bad{{"--model=m", "--threads", "many"}, "--threads: 'many' is not a whole number"},
        Bad{{"--model=m", "--threads=-1"}, "--threads: '-1' is not a whole number"},
        Bad{{"--model=m", "--threads=4294967296"}, "from 0 to 4294967295"},
        Bad{{"--model=m", "--sparse.mode=fast"}, "'fast' is not one of dense, exact, lagged"},
        Bad{{"--model=m", "--bound-selector=perhaps"}, "'perhaps' is not true or false"},
        Bad{{"--model=m", "--sparse.top-p=nan"}, "sparse.top_p nan is outside 0 to 1"},
        Bad{{"--model=m", "--sparse.top-p=x"}, "--sparse.top-p: 'x' is not a number"},
        Bad{{"--model=m", "--sparse.top-p=1.5"}, "sparse.top_p 1.5 is outside 0 to 1"},
        Bad{{"--model=m", "--sparse.budget=64"}, "sparse.budget 64 is outside 128"},
        Bad{{"--model=m", "--sparse.budget=8192"},
            "sparse.budget 8192 is more than max_budget 4096"},
        Bad{{"--model=m", "--sparse.selector=bound"}, "needs bound_selector"},
        Bad{{"--model=m", "--weights=random"}, "weights 'random' is not one of files, synthetic"},
        Bad{{"--model=m", "--log-level=loud"}, "log_level 'loud' is not one of"},
        Bad{{"--model=m", "--listen=nope"}, "listen 'nope' is not HOST:PORT"},
        Bad{{"--model=m", "--listen=a:65536"}, "port from 0 to 65535"},
        Bad{{"--model=m", "--listen=::1:80"}, "write an IPv6 address as"},
        Bad{{"--model=m", "--metrics-listen=:1"}, "metrics_listen ':1' is not HOST:PORT"},
        Bad{{"--model=m", "--http-listen=nope"}, "http_listen 'nope' is not HOST:PORT"},
        Bad{{"--model=m", "--max-message-mib=2048"}, "max_message_mib 2048 is outside 1 to 1024"}));

TEST(ConfigHelpTest, DescribesEveryFieldOnce) {
  const std::string help = ConfigHelp();
  int lines = 0;
  const auto* top = v1::ServerConfig::descriptor();
  for (int i = 0; i < top->field_count(); ++i) {
    const auto* field = top->field(i);
    const auto* nested = field->message_type();
    for (int j = 0; j < (nested ? nested->field_count() : 1); ++j) {
      std::string flag = "--" + field->name() + (nested ? "." + nested->field(j)->name() : "");
      std::replace(flag.begin(), flag.end(), '_', '-');
      const size_t at = help.find("  " + flag + " ");
      ASSERT_NE(at, std::string::npos) << flag;
      const std::string line = help.substr(at, help.find('\n', at) - at);
      EXPECT_GT(line.size(), 33 + 15u) << "no description: " << line;
      EXPECT_THAT(line, HasSubstr(" [")) << "no default";
      ++lines;
    }
  }
  EXPECT_EQ(std::count(help.begin(), help.end(), '\n'), lines + 1);  // and --config
  EXPECT_THAT(help, HasSubstr("tokens attended per KV head"));
}

}  // namespace
}  // namespace asynctls
