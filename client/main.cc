// SPDX-License-Identifier: Apache-2.0
// asynctls: the client. One file per subcommand.
#include <cstdio>
#include <string>
#include <vector>

#include "client/commands.h"

namespace {

constexpr char kUsage[] =
    "usage: asynctls COMMAND [flags]; asynctls COMMAND --help lists the flags\n\n"
    "  generate   one reply from a server, printed as it arrives\n"
    "  chat       a conversation in the terminal\n"
    "  bench      load for a server: latencies, throughput, goodput, reports\n"
    "  eval       answers to a file of questions, compared over attention modes\n"
    "  calibrate  makes the key code tables of a model from a text\n";

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> args(argv + 1, argv + argc);
  const std::string command = args.empty() ? "" : args[0];
  const std::vector<std::string> rest(args.begin() + (args.empty() ? 0 : 1), args.end());
  if (command == "generate") return asynctls::RunGenerate(rest);
  if (command == "chat") return asynctls::RunChat(rest);
  if (command == "bench") return asynctls::RunBench(rest);
  if (command == "eval") return asynctls::RunEval(rest);
  if (command == "calibrate") return asynctls::RunCalibrate(rest);
  const bool help = command == "--help" || command == "help";
  std::fputs(kUsage, help ? stdout : stderr);
  return help ? asynctls::kExitOk : asynctls::kExitUsage;
}
