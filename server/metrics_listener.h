// SPDX-License-Identifier: Apache-2.0
// GET /metrics over HTTP, for Prometheus.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "prometheus/exposer.h"
#include "prometheus/registry.h"

namespace asynctls {

// Serves until destroyed.
class MetricsListener {
 public:
  // `listen` is HOST:PORT, port 0 = any free one. Errors: UNAVAILABLE naming the address.
  static absl::StatusOr<std::unique_ptr<MetricsListener>> Start(
      const std::string& listen, std::shared_ptr<prometheus::Registry> registry);

  int port() const;

  // Served too from now on; the listener keeps it.
  void Add(std::shared_ptr<prometheus::Collectable> more);

 private:
  MetricsListener(const std::string& listen, std::shared_ptr<prometheus::Registry> registry);

  const std::shared_ptr<prometheus::Registry> registry_;
  std::vector<std::shared_ptr<prometheus::Collectable>> more_;
  prometheus::Exposer exposer_;
};

}  // namespace asynctls
