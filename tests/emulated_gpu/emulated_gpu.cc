// SPDX-License-Identifier: Apache-2.0
// The CudaOps of the emulated GPU: what its operators and the tests need of it.
#include "kernels/cuda/state.h"

#include "kernels/cuda/prompt_gemm.h"

namespace asynctls {
namespace {

template <typename T>
View<T, 1> Scratch(std::vector<T>& memory, int64_t count, T content) {
  memory.assign(static_cast<size_t>(count), content);
  return {memory.data(), {count}};
}

template <typename Out, typename Store>
void Multiply(const View<bf16, 2>& w, const bf16* x, Out* out, int64_t rows, Store store) {
  const int64_t features = w.dim(0), width = w.dim(1);
  for (int64_t i = 0; i < rows * features; ++i) {
    float sum = 0;
    for (int64_t k = 0; k < width; ++k) {
      sum += ToFloat(x[i / features * width + k]) * ToFloat(w(i % features, k));
    }
    out[i] = store(sum);
  }
}

}  // namespace

// In cuBLASLt's place.
void PromptGemm(CudaOps::State&, const View<bf16, 2>& w, const bf16* x, bf16* out, int64_t rows) {
  Multiply(w, x, out, rows, ToBf16);
}
void PromptGemm(CudaOps::State&, const View<bf16, 2>& w, const bf16* x, float* out, int64_t rows) {
  Multiply(w, x, out, rows, [](float sum) { return sum; });
}

CudaOps::CudaOps(std::unique_ptr<State> state) : state_(std::move(state)) {}
CudaOps::~CudaOps() = default;
void CudaOps::Wait() {}
void CudaOps::Prepare(Matrix&) {}

// Counters begin at zero; the rest holds what would be seen in a result. Sizes: those of the op
// tests' largest problems, and some room.
absl::StatusOr<std::unique_ptr<CudaOps>> CudaOps::Create(int, const CudaLimits&) {
  constexpr int64_t kPairs = 16 << 10, kParts = 1 << 20, kValues = 16 << 20;
  auto state = std::make_unique<State>();
  state->split = {.out = Scratch(state->floats[0], kValues, -7e7f),
                  .largest = Scratch(state->floats[1], kParts, -7e7f),
                  .weight = Scratch(state->floats[2], kParts, -7e7f),
                  .arrived = Scratch(state->words[0], kPairs, 0u)};
  state->scored = Scratch(state->words[1], kPairs, 0u);
  state->block_keys = Scratch(state->words[2], kValues, 77u);
  state->token_keys = Scratch(state->words[3], kValues, 77u);
  return std::unique_ptr<CudaOps>(new CudaOps(std::move(state)));
}

}  // namespace asynctls
