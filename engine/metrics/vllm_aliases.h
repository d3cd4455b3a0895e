// SPDX-License-Identifier: Apache-2.0
// VllmAliases: our metrics once more, under the names vLLM has for the same thing, so that routers
// and dashboards made for vLLM work unchanged. One table in vllm_aliases.cc, repeated in
// engine/metrics/README.md. Nothing is counted twice: every scrape reads the source.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "prometheus/collectable.h"

namespace asynctls {

class VllmAliases : public prometheus::Collectable {
 public:
  // `source` collects Metrics. Every alias has the labels model_name and engine="0".
  VllmAliases(std::shared_ptr<const prometheus::Collectable> source, std::string model_name);

  // The aliases only, in the order of the table. Any thread.
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const std::shared_ptr<const prometheus::Collectable> source_;
  const std::string model_name_;
};

}  // namespace asynctls
