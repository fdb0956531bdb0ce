// add_layer_norm on the CPU against the definition in float64, on every instruction set of this CPU.
#include "add_layer_norm_cpu.h"
#include "add_layer_norm_harness.h"

namespace {

using namespace seed_fast;
using namespace seed_fast::add_layer_norm::testing;

const DType kTypes[] = {DType::float32, DType::float16, DType::bfloat16};

template <class Check>
void everywhere(const Check& check) {
  for (const Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512})
    for (const int threads : {1, 3})
      check([=](const AddLayerNorm& problem) { add_layer_norm_cpu(problem, threads, isa); });
}

TEST(every_width_and_type_gives_the_sum_and_its_norm) {
  everywhere([](const auto& launch) {
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
  everywhere([](const auto& launch) {
    for (const float magnitude : {1e-4f, 1e4f, 1e15f})
      compare({3, 97, DType::float32, DType::float32, DType::float32, false, 0, 0, magnitude}, launch);
    compare({3, 1408, DType::float32, DType::float32, DType::float32, false, 0, 0, 1, 4096}, launch);
  });
}

TEST(constant_rows_have_variance_zero) {
  everywhere([](const auto& launch) { constant_rows_have_variance_zero(launch); });
}
TEST(the_stream_may_be_x_itself) {
  everywhere([](const auto& launch) { the_stream_may_be_x_itself(launch); });
}
TEST(no_stream_is_written_where_none_is_wanted) {
  everywhere([](const auto& launch) { no_stream_is_written_where_none_is_wanted(launch); });
}
TEST(rows_with_nan_spoil_no_other) {
  everywhere([](const auto& launch) { rows_with_nan_spoil_no_other(launch); });
}

}  // namespace

int main() { return check::run(); }
