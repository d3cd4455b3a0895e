// SPDX-License-Identifier: Apache-2.0
// Any bytes as a safetensors file: refused, or tensors that lie inside it.
#include <cstddef>

#include "engine/base/check.h"
#include "engine/base/safetensors.h"
#include "tests/fuzz/fuzz_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace asynctls;
  const FuzzFile file(data, size);
  const auto source = TensorSource::OpenFile(file.path());
  if (!source.ok()) return 0;
  size_t total = 0;
  unsigned sum = 0;
  for (const auto& [name, tensor] : source->tensors()) {
    ASYNCTLS_CHECK(source->Find(name) == &tensor);
    total += tensor.bytes.size();
    for (std::byte byte : tensor.bytes) sum += static_cast<unsigned>(byte);  // all readable
  }
  ASYNCTLS_CHECK(total <= size && sum <= 255 * size);
  return 0;
}
