// SPDX-License-Identifier: Apache-2.0
#include "server/metrics_listener.h"

#include <exception>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"

namespace asynctls {

absl::StatusOr<std::unique_ptr<MetricsListener>> MetricsListener::Start(
    const std::string& listen, std::shared_ptr<prometheus::Registry> registry) {
  try {  // the library throws where the address cannot be bound
    return absl::WrapUnique(new MetricsListener(listen, std::move(registry)));
  } catch (const std::exception& error) {
    return absl::UnavailableError(
        absl::StrCat("metrics_listen ", listen, " cannot be bound: ", error.what()));
  }
}

MetricsListener::MetricsListener(const std::string& listen,
                                 std::shared_ptr<prometheus::Registry> registry)
    : registry_(std::move(registry)), exposer_(listen, 1) {
  exposer_.RegisterCollectable(registry_);
}

void MetricsListener::Add(std::shared_ptr<prometheus::Collectable> more) {
  exposer_.RegisterCollectable(more);  // which does not keep it
  more_.push_back(std::move(more));
}

int MetricsListener::port() const { return exposer_.GetListeningPorts().front(); }

}  // namespace asynctls
