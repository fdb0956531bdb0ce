#include "vector_quantize_cpu.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "thread_pool.h"

namespace seed_fast {
namespace {

constexpr int64_t kRowsPerTask = 256;
constexpr int64_t kEntriesPerTask = 64;

// The rows sorted by their id: rows[first[k]] .. rows[first[k + 1] - 1] are those with id k, in ascending order.
struct RowsByEntry {
  std::vector<int64_t> first, rows;

  RowsByEntry(const int64_t* ids, int64_t N, int64_t K) : first(K + 1, 0), rows(N) {
    for (int64_t n = 0; n < N; ++n)
      if (ids[n] >= 0) ++first[ids[n] + 1];
    for (int64_t k = 0; k < K; ++k) first[k + 1] += first[k];
    std::vector<int64_t> next(first.begin(), first.end() - 1);
    for (int64_t n = 0; n < N; ++n)
      if (ids[n] >= 0) rows[next[ids[n]]++] = n;
  }
};

// Calls task(i) for i < count, in parallel chunks.
template <class Task>
void in_chunks(int64_t count, int64_t chunk, int threads, const Task& task) {
  parallel_for((count + chunk - 1) / chunk, threads, [&](int64_t part) {
    for (int64_t i = part * chunk; i < std::min(count, (part + 1) * chunk); ++i) task(i);
  });
}

}  // namespace

void vector_quantize_backward_cpu(const ConstMatrix& z, const ConstMatrix& codebook, const int64_t* ids,
                                  const ConstMatrix& grad_z_q, double grad_commit, double grad_codebook_loss,
                                  DType z_dtype, DType codebook_dtype, int64_t N, int64_t D, int64_t K, void* grad_z,
                                  void* grad_codebook, int threads) {
  const double scale = 2.0 / double(std::max<int64_t>(1, N * D));
  const auto at = [](const ConstMatrix& matrix, int64_t row, int64_t d, DType dtype) {
    return double(load_as_float(matrix.data, row * matrix.stride_row + d * matrix.stride_column, dtype));
  };
  if (grad_z) {
    in_chunks(N, kRowsPerTask, threads, [&](int64_t n) {
      for (int64_t d = 0; d < D; ++d) {
        const double entry =
            ids[n] < 0 ? std::numeric_limits<double>::quiet_NaN() : at(codebook, ids[n], d, codebook_dtype);
        const double difference = scale * (entry - at(z, n, d, z_dtype));
        store_from_float(grad_z, n * D + d, z_dtype, float(at(grad_z_q, n, d, z_dtype) - grad_commit * difference));
      }
    });
  }
  if (!grad_codebook) return;
  const RowsByEntry by_entry(ids, N, K);
  in_chunks(K, kEntriesPerTask, threads, [&](int64_t k) {
    for (int64_t d = 0; d < D; ++d) {
      const double entry = at(codebook, k, d, codebook_dtype);
      double sum = 0;
      for (int64_t i = by_entry.first[k]; i < by_entry.first[k + 1]; ++i)
        sum += entry - at(z, by_entry.rows[i], d, z_dtype);
      store_from_float(grad_codebook, k * D + d, codebook_dtype, float(grad_codebook_loss * scale * sum));
    }
  });
}

}  // namespace seed_fast
