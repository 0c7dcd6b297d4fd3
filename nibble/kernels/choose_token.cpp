#include "nibble/kernels/choose_token.h"

#include "nibble/base/error.h"
#include "nibble/kernels/row_kernel.h"

namespace nibble {
namespace {

constexpr std::string_view in_choose_token = "choose_token";
constexpr std::uint32_t choose_workgroup = 256;

}  // namespace

void record(gpu::Recorder& recorder, const ChooseToken& op) {
  const std::uint32_t rows = op.tokens.dim(0);
  expect_shape(op.tokens, DType::u32, {rows}, in_choose_token, "tokens");
  expect_shape(op.draws, DType::f32, {rows}, in_choose_token, "draws");
  check(rows <= op.room.found.dim(0), in_choose_token, "{} rows came; there are lists for {}.", rows, op.room.found.dim(0));
  check(op.choice.temperature == 0 || op.choice.top_k > 0, in_choose_token, "All of the tokens were to be chosen from, of which only the best are listed.");
  gpu::Prelude prelude;
  prelude.constant("WORKGROUP", choose_workgroup).constant("HEADER", best_list_header).constant("ROOM", best_list_room).constant("FOUND", best_list_words);
  recorder.dispatch(kernel(recorder.device(), "choose_token", prelude, {"score_order"}),
                    {gpu::read(op.draws), gpu::read_write(op.room.found), gpu::write(op.tokens)}, op.choice, {rows});
}

std::uint32_t chosen_token(std::span<const std::uint32_t> list) { return list[best_list_header - 1]; }

}  // namespace nibble
