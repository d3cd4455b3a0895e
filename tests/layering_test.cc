// SPDX-License-Identifier: Apache-2.0
// Holds the code against the layers of the architecture: which part may include which, no cycles
// between folders, third-party headers only where they belong. Lists what is over the size guide,
// without failing on it.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

namespace asynctls {
namespace {

namespace fs = std::filesystem;

// A part of the tree: every file whose path starts with the longest matching prefix belongs to it.
struct Part {
  std::string prefix;
  std::vector<std::string> may_include;  // prefixes of our own parts
};

const std::vector<Part>& Parts() {
  static const std::vector<Part> parts = {
      {"kernels/device/", {}},
      {"kernels/ops.h", {"kernels/device/"}},
      {"kernels/ref/", {"kernels/ops.h", "kernels/device/"}},
      {"kernels/cpu/", {"kernels/ops.h", "kernels/device/", "kernels/ref/"}},
      {"kernels/cuda/", {"kernels/ops.h", "kernels/device/", "kernels/ref/"}},
      {"engine/base/", {}},
      {"engine/metrics/", {}},
      {"engine/text/", {"engine/base/"}},
      {"engine/blocks/", {"engine/base/"}},
      {"engine/scheduler/", {"engine/base/", "engine/blocks/", "engine/metrics/", "asynctls/v1/"}},
      {"engine/worker/worker", {"engine/base/", "asynctls/v1/"}},
      {"engine/kv/", {"engine/base/", "kernels/device/", "kernels/ops.h"}},
      {"engine/parallel/", {"engine/base/", "kernels/device/"}},
      {"engine/sparse/", {"engine/base/", "engine/kv/", "kernels/device/", "kernels/ops.h"}},
      {"engine/model/",
       {"engine/base/",
        "engine/kv/",
        "engine/parallel/",
        "engine/sparse/",
        "kernels/device/",
        "kernels/ops.h"}},
      {"engine/worker/",
       {"engine/base/",
        "engine/kv/",
        "engine/metrics/",
        "engine/model/",
        "engine/parallel/",
        "engine/sparse/",
        "engine/worker/worker",
        "kernels/device/",
        "kernels/ops.h",
        "asynctls/v1/"}},
      {"engine/worker/make_cpu_worker", {"engine/", "kernels/", "asynctls/v1/"}},
      {"engine/worker/make_cuda_worker", {"engine/", "kernels/", "asynctls/v1/"}},
      {"engine/worker/no_cuda_worker", {"engine/worker/make_cuda_worker"}},
      {"engine/engine",
       {"engine/base/",
        "engine/metrics/",
        "engine/scheduler/",
        "engine/worker/worker",
        "asynctls/v1/"}},
      {"server/",
       {"engine/base/",
        "engine/metrics/",
        "engine/scheduler/request.h",
        "engine/scheduler/request_status.h",
        "engine/scheduler/scheduler.h",
        "engine/text/",
        "engine/worker/worker",
        "engine/engine.h",
        "asynctls/v1/"}},
      {"server/main.cc", {"server/", "engine/", "asynctls/v1/"}},
      {"client/", {"engine/base/", "asynctls/v1/"}},
      {"client/calibrate.cc",
       {"client/",
        "engine/base/",
        "engine/text/",
        "engine/worker/make_cpu_worker",
        "asynctls/v1/"}},
  };
  return parts;
}

// Third-party headers that may appear only below these prefixes.
const std::map<std::string, std::vector<std::string>>& Reserved() {
  static const std::map<std::string, std::vector<std::string>> reserved = {
      {"grpcpp/", {"server/grpc/", "client/"}},
      {"grpc/", {"server/grpc/", "client/"}},
      {"vllm/", {"server/grpc/"}},
      {"smg/", {"server/grpc/"}},
      {"inference/", {"server/grpc/"}},
      {"boost/", {"server/http/http_server.cc", "server/http/http_session"}},
      {"gloo/", {"engine/parallel/gloo_"}},
      {"nccl", {"engine/parallel/nccl_"}},
      {"cuda", {"kernels/device/", "kernels/cuda/", "engine/parallel/nccl_"}},
      {"cublas", {"kernels/cuda/"}},
      {"dnnl", {"kernels/cpu/"}},
      {"oneapi/", {"kernels/cpu/"}},
      {"hwy/", {"kernels/cpu/"}},
      {"omp.h", {"kernels/cpu/"}},
      {"Eigen/", {"engine/sparse/"}},
      {"nlohmann/", {"engine/base/"}},
      {"prometheus/", {"engine/metrics/", "server/"}},
      {"spdlog/", {"engine/base/"}},
  };
  return reserved;
}

bool StartsWith(const std::string& text, const std::string& prefix) {
  return text.compare(0, prefix.size(), prefix) == 0;
}

bool StartsWithAny(const std::string& text, const std::vector<std::string>& prefixes) {
  return std::any_of(
      prefixes.begin(), prefixes.end(), [&](const std::string& p) { return StartsWith(text, p); });
}

const Part* PartOf(const std::string& file) {
  const Part* best = nullptr;
  for (const Part& part : Parts()) {
    if (StartsWith(file, part.prefix) &&
        (best == nullptr || part.prefix.size() > best->prefix.size())) {
      best = &part;
    }
  }
  return best;
}

struct SourceFile {
  std::string path;  // relative to the root
  std::vector<std::string> includes;
  int lines = 0;
};

std::vector<SourceFile> Scan() {
  static const std::regex include(R"(^\s*#\s*include\s*[<"]([^>"]+)[>"])");
  const fs::path root(ASYNCTLS_SOURCE_DIR);
  std::vector<SourceFile> files;
  for (const char* top : {"kernels", "engine", "server", "client"}) {
    for (const auto& entry : fs::recursive_directory_iterator(root / top)) {
      const std::string extension = entry.path().extension();
      if (extension != ".h" && extension != ".cc" && extension != ".cu" && extension != ".cuh") {
        continue;
      }
      SourceFile file{fs::relative(entry.path(), root).generic_string(), {}, 0};
      std::ifstream in(entry.path());
      std::smatch match;
      for (std::string line; std::getline(in, line); ++file.lines) {
        if (std::regex_search(line, match, include)) file.includes.push_back(match[1]);
      }
      files.push_back(std::move(file));
    }
  }
  return files;
}

bool IsOurs(const std::string& include) {
  return StartsWithAny(include, {"kernels/", "engine/", "server/", "client/", "asynctls/v1/"});
}

TEST(LayeringTest, EveryFileBelongsToAPart) {
  const std::vector<SourceFile> files = Scan();
  EXPECT_GT(files.size(), 50u);
  for (const SourceFile& file : files) {
    EXPECT_NE(PartOf(file.path), nullptr) << file.path;
  }
}

TEST(LayeringTest, IncludesFollowTheLayers) {
  for (const SourceFile& file : Scan()) {
    const Part* part = PartOf(file.path);
    if (part == nullptr) continue;
    for (const std::string& include : file.includes) {
      if (!IsOurs(include)) continue;
      if (PartOf(include) == part) continue;
      EXPECT_TRUE(StartsWithAny(include, part->may_include))
          << file.path << " must not include " << include;
    }
  }
}

TEST(LayeringTest, ThirdPartyHeadersStayWhereTheyBelong) {
  for (const SourceFile& file : Scan()) {
    for (const std::string& include : file.includes) {
      if (IsOurs(include)) continue;
      for (const auto& [header, places] : Reserved()) {
        if (StartsWith(include, header)) {
          EXPECT_TRUE(StartsWithAny(file.path, places))
              << file.path << " must not include " << include;
        }
      }
    }
  }
}

TEST(LayeringTest, IncludedFilesExist) {
  for (const SourceFile& file : Scan()) {
    for (const std::string& include : file.includes) {
      if (!IsOurs(include) || StartsWith(include, "asynctls/v1/")) continue;
      EXPECT_TRUE(fs::exists(fs::path(ASYNCTLS_SOURCE_DIR) / include))
          << file.path << " includes " << include;
    }
  }
}

// Folders (not single files) must form a DAG. Roots that instantiate templates are left out: they
// are the top of the graph that happens to lie in a lower folder.
TEST(LayeringTest, FoldersFormNoCycle) {
  const std::vector<std::string> roots = {
      "engine/worker/make_", "engine/worker/local_worker", "engine/worker/step_inputs"};
  std::map<std::string, std::set<std::string>> edges;
  for (const SourceFile& file : Scan()) {
    if (StartsWithAny(file.path, roots)) continue;
    const std::string from = fs::path(file.path).parent_path().generic_string();
    for (const std::string& include : file.includes) {
      const std::string to = fs::path(include).parent_path().generic_string();
      if (IsOurs(include) && to != from) edges[from].insert(to);
    }
  }
  std::set<std::string> done;
  std::vector<std::string> path;
  std::function<void(const std::string&)> visit = [&](const std::string& folder) {
    if (done.count(folder)) return;
    const auto again = std::find(path.begin(), path.end(), folder);
    if (again != path.end()) {
      std::string cycle;
      for (auto it = again; it != path.end(); ++it) cycle += *it + " -> ";
      ADD_FAILURE() << "folder cycle: " << cycle << folder;
      return;
    }
    path.push_back(folder);
    for (const std::string& next : edges[folder]) visit(next);
    path.pop_back();
    done.insert(folder);
  };
  std::vector<std::string> folders;
  for (const auto& [folder, targets] : edges) folders.push_back(folder);
  for (const std::string& folder : folders) visit(folder);
}

// Every implementation file has a test of the same name, or is covered by the one named here.
TEST(LayeringTest, EveryImplementationHasATest) {
  const std::map<std::string, std::string> covered_by = {
      {"client/calibrate.cc", "tests/engine/worker/make_cpu_worker_test.cc"},
      {"client/main.cc", "tests/client/flags_test.cc"},
      {"kernels/cpu/amx.cc", "tests/kernels/gemm_test.cc"},
      {"kernels/cpu/attend_range.cc", "tests/kernels/decode_attend_test.cc"},
      {"kernels/cpu/attend_range_amx.cc", "tests/kernels/cpu/attend_range_test.cc"},
      {"kernels/cpu/code_dot.cc", "tests/kernels/select_blocks_test.cc"},
      {"kernels/cpu/cpu_ops.cc", "tests/kernels/cpu/thread_team_test.cc"},
      {"kernels/cpu/encode_keys.cc", "tests/kernels/exact_test.cc"},
      {"kernels/cpu/gemm_amx.cc", "tests/kernels/gemm_test.cc"},
      {"kernels/cpu/gemm_fp32.cc", "tests/kernels/gemm_test.cc"},
      {"kernels/cpu/prefill_attend_amx.cc", "tests/kernels/prefill_attend_test.cc"},
      {"kernels/device/cuda_memory.cc", "tests/kernels/device/buffer_test.cc"},
      {"kernels/device/host_memory.cc", "tests/kernels/device/buffer_test.cc"},
      {"kernels/device/no_device_memory.cc", "tests/kernels/device/buffer_test.cc"},
      {"kernels/cuda/cuda_ops.cc", "tests/kernels/gemm_test.cc"},
      {"kernels/cuda/prompt_gemm.cc", "tests/kernels/gemm_test.cc"},
      {"kernels/cuda/devices.cc", "tests/engine/worker/make_cuda_worker_test.cc"},
      {"engine/worker/no_cuda_worker.cc", "tests/engine/worker/make_cuda_worker_test.cc"},
      {"kernels/ref/attend.cc", "tests/kernels/decode_attend_test.cc"},
      {"server/main.cc", "tests/server/startup_test.cc"},
  };
  const fs::path root(ASYNCTLS_SOURCE_DIR);
  std::set<std::string> tests;
  for (const auto& entry : fs::recursive_directory_iterator(root / "tests")) {
    tests.insert(entry.path().filename().string());
  }
  for (const SourceFile& file : Scan()) {
    const fs::path path(file.path);
    if (path.extension() != ".cc" || tests.count(path.stem().string() + "_test.cc")) continue;
    const auto it = covered_by.find(file.path);
    if (it == covered_by.end()) {
      ADD_FAILURE() << file.path << " has no test";
    } else {
      EXPECT_TRUE(fs::exists(root / it->second)) << it->second;
    }
  }
}

// A guide to think with, not a gate: prints, never fails.
TEST(LayeringTest, ListsWhatIsOverTheSizeGuide) {
  std::vector<int> lines;
  for (const SourceFile& file : Scan()) {
    lines.push_back(file.lines);
    if (file.lines > 400) std::cout << "over 400 lines: " << file.path << " " << file.lines << "\n";
  }
  std::sort(lines.begin(), lines.end());
  std::cout << lines.size() << " files, median " << lines[lines.size() / 2] << ", p90 "
            << lines[lines.size() * 9 / 10] << ", largest " << lines.back() << " lines\n";
  EXPECT_FALSE(lines.empty());
}

}  // namespace
}  // namespace asynctls
