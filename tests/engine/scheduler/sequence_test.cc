// SPDX-License-Identifier: Apache-2.0
#include "engine/scheduler/sequence.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

namespace asynctls {
namespace {

using ::testing::ElementsAre;

class SequenceTest : public ::testing::Test {
 protected:
  std::unique_ptr<Sequence> Make(uint32_t prompt,
                                 uint32_t max_tokens,
                                 uint32_t tail = 0,
                                 const Sequence* twin = nullptr) {
    Request request;
    request.prompt.resize(prompt);
    request.sampling.set_prompt_log_probs(prompt_log_probs_);
    std::iota(request.prompt.begin(), request.prompt.end(), 100);
    request.max_tokens = max_tokens;
    request.tail = tail;
    auto sequence =
        std::make_unique<Sequence>(std::move(request),
                                   absl::UnixEpoch(),
                                   4,
                                   allocator_,
                                   Sequence::Naming{namer_, namer_.Root("model", ""), twin});
    sequence->lane = lanes_++;
    return sequence;
  }
  v1::LaneWork Rows(Sequence& sequence, uint32_t count) {
    v1::LaneWork work;
    sequence.PlanRows(++step_, count, work);
    sequence.CommitRows();
    return work;
  }

  BlockAllocator allocator_{32};
  BlockNamer namer_;
  Lane lanes_ = 0;
  uint64_t step_ = 0;
  bool prompt_log_probs_ = false;  // of what Make makes
};

TEST_F(SequenceTest, ChunksThenDecodes) {
  auto sequence = Make(6, 4);
  EXPECT_EQ(sequence->full_blocks(), 3);
  EXPECT_EQ(sequence->reserved(), 3);
  const auto first = Rows(*sequence, 5);
  EXPECT_THAT(first.new_blocks(), ElementsAre(0, 1));
  EXPECT_THAT(first.tokens(), ElementsAre(100, 101, 102, 103, 104));
  EXPECT_FALSE(first.sample());
  EXPECT_EQ(sequence->prefill_left(), 1);
  const auto last = Rows(*sequence, 1);
  EXPECT_TRUE(last.sample());
  EXPECT_FALSE(last.decode());
  EXPECT_TRUE(sequence->prompt_done());
  Rows(*sequence, 1);
  Rows(*sequence, 1);
  const auto decode = Rows(*sequence, 1);
  EXPECT_EQ(decode.start(), 8);
  EXPECT_THAT(decode.new_blocks(), ElementsAre(2));
  EXPECT_TRUE(decode.tokens().empty());
  EXPECT_TRUE(decode.decode());
  EXPECT_TRUE(decode.sample());
  EXPECT_EQ(sequence->reserved(), 0);
}

TEST_F(SequenceTest, RowsNameTheTokenAfterThemForPromptLogProbs) {
  prompt_log_probs_ = true;
  auto sequence = Make(7, 2, 2);
  EXPECT_EQ(Rows(*sequence, 4).next_token(), 104u);
  EXPECT_EQ(Rows(*sequence, 1).next_token(), 105u);
  EXPECT_EQ(Rows(*sequence, 1).next_token(), 106u);   // the tail
  EXPECT_FALSE(Rows(*sequence, 1).has_next_token());  // the prompt's last
  EXPECT_FALSE(Rows(*sequence, 1).has_next_token());
  prompt_log_probs_ = false;
  EXPECT_FALSE(Rows(*Make(7, 2), 4).has_next_token());
}

TEST_F(SequenceTest, AdoptsWhatAnotherHasPlanned) {
  auto older = Make(14, 3);
  auto younger = Make(14, 3);
  EXPECT_TRUE(younger->WaitsFor(*older));
  EXPECT_EQ(younger->AdoptPrefix(), 0);
  Rows(*older, 6);
  EXPECT_EQ(younger->CountHeldHits(), 1);
  EXPECT_EQ(younger->AdoptPrefix(), 4);
  EXPECT_TRUE(younger->WaitsFor(*older));
  Rows(*older, 8);
  EXPECT_EQ(younger->AdoptPrefix(), 8);
  EXPECT_FALSE(younger->WaitsFor(*older));
  EXPECT_EQ(younger->usage.cached_tokens, 12);
  const auto work = Rows(*younger, 2);
  EXPECT_THAT(work.new_blocks(), ElementsAre(0, 1, 2, 4));
  EXPECT_EQ(work.start(), 12);
  older.reset();
  EXPECT_EQ(allocator_.used(), 4);
}

TEST_F(SequenceTest, OnlyPrefillBlocksAreNamed) {
  auto tail = Make(12, 8, /*tail=*/5);
  Rows(*tail, 7);
  for (int i = 0; i < 9; ++i) Rows(*tail, 1);
  tail.reset();
  EXPECT_EQ(allocator_.cached(), 1);
  auto again = Make(12, 8);
  EXPECT_EQ(again->AdoptPrefix(), 4);
  // An older one that will read the next block through the decode path is not waited for.
  auto sparse = Make(12, 8, /*tail=*/5);
  EXPECT_EQ(sparse->AdoptPrefix(), 4);
  EXPECT_FALSE(again->WaitsFor(*sparse));
}

TEST_F(SequenceTest, PlansFurtherWhileRowsAreInFlight) {
  auto sequence = Make(6, 3);
  v1::LaneWork chunk, last, decode;
  sequence->PlanRows(1, 5, chunk);
  sequence->PlanRows(2, 1, last);
  EXPECT_EQ(sequence->computed(), 0);
  EXPECT_TRUE(sequence->prompt_planned());
  EXPECT_FALSE(sequence->prompt_done());
  EXPECT_EQ(sequence->RowsOf(1)->end(), 5);
  EXPECT_EQ(sequence->RowsOf(2), nullptr) << "not the oldest";
  sequence->CommitRows();
  EXPECT_EQ(sequence->computed(), 5);
  EXPECT_TRUE(sequence->RowsOf(2)->sample);
  sequence->PlanRows(3, 1, decode);
  EXPECT_EQ(decode.start(), 6);
  EXPECT_TRUE(decode.decode());
  EXPECT_TRUE(sequence->wants_rows());
  sequence->PlanRows(4, 1, decode);  // the third and last token
  EXPECT_FALSE(sequence->wants_rows());
  while (sequence->in_flight()) sequence->CommitRows();
  EXPECT_EQ(sequence->computed(), 8);
}

TEST_F(SequenceTest, BlocksAreTakenOverFromPlanToPlan) {
  auto older = Make(14, 3);
  auto younger = Make(14, 3);
  v1::LaneWork work, next;
  older->PlanRows(1, 6, work);
  EXPECT_EQ(younger->AdoptPrefix(), 4) << "its rows run later";
  EXPECT_EQ(younger->computed(), 4);
  younger->PlanRows(2, 4, next);  // the second block is a copy of its own
  older->PlanRows(2, 8, work);
  EXPECT_EQ(younger->AdoptPrefix(), 4);
  EXPECT_EQ(younger->computed(), 4) << "behind rows in flight";
  younger->CommitRows();
  EXPECT_EQ(younger->computed(), 12);
}

// Copied names are the ones it would have computed: it finds the blocks that were named by them.
TEST_F(SequenceTest, NamesOfATwinAreItsOwn) {
  auto reader = Make(17, 3);
  Rows(*reader, 17);
  auto other = Make(9, 3);  // another prompt: nothing is copied
  for (const uint32_t tail : {0u, 6u}) {
    for (const Sequence* twin : {reader.get(), other.get()}) {
      auto sequence = Make(17, 3, tail, twin);
      EXPECT_EQ(sequence->AdoptPrefix(), tail == 0 ? 16 : 8);
    }
  }
  auto short_names = Make(17, 3, 10);  // one block before its tail
  EXPECT_EQ(Make(17, 3, 0, short_names.get())->AdoptPrefix(), 16);
}

}  // namespace
}  // namespace asynctls
