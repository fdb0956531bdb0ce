// add_layer_norm on the CPU against the definition in float64, on every instruction set of this CPU.
#include "add_layer_norm_cpu.h"
#include "add_layer_norm_harness.h"

namespace {

using namespace seed_fast;
using namespace seed_fast::add_layer_norm::testing;

const DType kTypes[] = {DType::float32, DType::float16, DType::bfloat16};

// Calls check(launch) for every instruction set and for 1 and 3 threads; launch(problem) runs the op that way. An
// instruction set that this CPU lacks falls back to the best one it has.
template <class Check>
void on_every_isa(const Check& check) {
  for (const Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512})
    for (const int threads : {1, 3})
      check([=](const AddLayerNorm& problem) { add_layer_norm_cpu(problem, threads, isa); });
}

TEST(every_width_and_type_gives_the_sum_and_its_norm) {
  on_every_isa([](const auto& launch) {
    const struct {
      int rows, columns;
    } sizes[] = {{0, 8}, {1, 1}, {5, 31}, {9, 96}, {70, 768}, {3, 1408}, {2, 3001}};
    for (const auto& size : sizes)
      for (const DType type : kTypes)
        for (const bool post_norm : {false, true}) {
          compare({size.rows, size.columns, DType::float32, type, type, post_norm, 3, 1}, launch);
          compare({size.rows, size.columns, type, DType::bfloat16, type, post_norm}, launch);
        }
  });
}

TEST(large_tiny_and_far_from_zero) {
  on_every_isa([](const auto& launch) {
    for (const float magnitude : {1e-4f, 1e4f, 1e15f})
      compare({3, 97, DType::float32, DType::float32, DType::float32, false, 0, 0, magnitude}, launch);
    compare({3, 1408, DType::float32, DType::float32, DType::float32, false, 0, 0, 1, 4096}, launch);
  });
}

TEST(constant_rows_have_variance_zero) {
  on_every_isa([](const auto& launch) { constant_rows_have_variance_zero(launch); });
}
TEST(the_stream_may_overwrite_x) {
  on_every_isa([](const auto& launch) { the_stream_may_overwrite_x(launch); });
}
TEST(a_null_stream_is_not_written) {
  on_every_isa([](const auto& launch) { a_null_stream_is_not_written(launch); });
}
TEST(rows_with_nan_change_no_other_row) {
  on_every_isa([](const auto& launch) { rows_with_nan_change_no_other_row(launch); });
}

}  // namespace

int main() { return check::run(); }
