// attention on CUDA for float16 with the tensor cores of Volta (m8n8k4). Scores, softmax and output sums are float32;
// weights are rounded to binary16 for the second product.
//
// attend_few, for few keys: a block computes 32 queries. In the first product its four warps divide the keys among
// themselves, eight at a time, and all scores stay in registers, so the softmax needs no rescaling. Weights go through
// shared memory. In the second product the warps divide the columns of the values.
//
// attend_many, for any number of keys: each of three warps computes 32 queries of its own and iterates over the keys,
// 16 to 32 at a time, with an online softmax: output sums are rescaled when a row's largest score grows (Milakov and
// Gimelshein 2018, arXiv:1805.02867). Scores and weights stay in registers. The 257 queries of ViT-g are nine such
// warps.
//
// Both load the next tile into registers while the current one is being multiplied. kSteps: head width in units of 8,
// rounded up to one of those that are compiled.
//
// architectures: 70 75
#include "attention_sm70.h"

namespace seed_fast::attention {

using device::barrier;

// Keys are loaded in up to kRounds rounds of kKeys = 32 kTiles keys; in each round a warp multiplies kTiles tiles of 8
// keys.
template <int kSteps, int kTiles, int kRounds>
SEED_FAST_DEVICE void attend_few(const Problem& problem) {
  constexpr int kWarps = kFewWarps, kThreads = kWarps * device::kWarp;
  constexpr int kQueries = kFewRows, kKeys = 8 * kWarps * kTiles, kKeySteps = kKeys * kRounds / kHalves;
  constexpr int kUnits = (kSteps + 1) / 2;                    // of 16 columns, of the head's width
  constexpr int kWarpUnits = (kUnits + kWarps - 1) / kWarps;  // of one warp
  using Block = Rows<kKeys, kSteps, kThreads>;
  using Weights = Tile<kKeySteps>;
  constexpr int kShared = kQueries * (Weights::kPitch > Tile<kSteps>::kPitch ? Weights::kPitch : Tile<kSteps>::kPitch);
  SEED_FAST_SHARED(uint4, q_or_weights, [kShared]);
  SEED_FAST_SHARED(uint4, k_or_v, [kKeys * Tile<kSteps>::kPitch + kSteps % 2]);  // one more: see the second product
  // Largest scores and sums of weights, by warp and query; in the memory of the keys.
  float (&rows)[2][kWarps][kQueries] = *reinterpret_cast<float (*)[2][kWarps][kQueries]>(k_or_v);
  static_assert(sizeof rows <= sizeof k_or_v);
  const Lane lane;
  const Tile<kSteps> queries{q_or_weights}, keys{k_or_v};
  const Tile<kSteps> own_query = queries.from(lane.row, 0), own_keys = keys.from(8 * lane.warp + lane.column, 0);
  const Weights own_weights = Weights{q_or_weights}.from(lane.row, 0);
  const Head head(problem, kQueries);
  const int seen = visible_keys(problem, head.first_row + kQueries - 1);  // keys visible to any query of the block

  // First product. `next` holds the keys of the next round, or after the last round the first values.
  Block next;
  next.load(head.k, problem.k.stride_l, 0, problem.lk, problem.d);
  {
    Rows<kQueries, kSteps, kThreads> own;
    own.load(head.q, problem.q.stride_l, head.first_row, problem.lq, problem.d);
    own.store(queries);
  }
  float score[kRounds * kTiles][8] = {};
  SEED_FAST_UNROLL
  for (int round = 0; round < kRounds; ++round) {
    if (round * kKeys >= seen) break;
    if (round > 0) barrier();  // all threads have finished reading the keys that are overwritten now
    next.store(keys);
    barrier();
    const bool last = (round + 1) * kKeys >= seen;
    next.load(last ? head.v : head.k, last ? problem.v.stride_l : problem.k.stride_l, last ? 0 : (round + 1) * kKeys,
              problem.lk, problem.d);
    SEED_FAST_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      const uint4 query = own_query.at(0, step);
      SEED_FAST_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        multiply(score[round * kTiles + tile], query, own_keys.at(tile * kWarps * 8, step));
      }
    }
  }

  // Softmax: each row's largest score and sum of weights, first over the keys of a warp, then over the warps.
  const int row[2] = {lane.result_row, lane.result_row + 2};
  const int visible[2] = {visible_keys(problem, head.first_row + row[0]),
                          visible_keys(problem, head.first_row + row[1])};
  float largest[2] = {-infinity(), -infinity()}, total[2] = {}, shift[2];
  SEED_FAST_UNROLL
  for (int t = 0; t < kRounds * kTiles; ++t) {
    scale_and_mask(score[t], problem.scale, (t * kWarps + lane.warp) * 8, visible, lane, largest);
  }
  barrier();  // all threads have finished reading keys and queries, which maxima and weights overwrite
  SEED_FAST_UNROLL
  for (int r = 0; r < 2; ++r) {
    largest[r] = maximum(largest[r], shuffle_xor(largest[r], 2));
    if (lane.side == 0) rows[0][lane.warp][row[r]] = largest[r];
  }
  barrier();
  SEED_FAST_UNROLL
  for (int r = 0; r < 2; ++r) {
    SEED_FAST_UNROLL
    for (int warp = 0; warp < kWarps; ++warp) largest[r] = maximum(largest[r], rows[0][warp][row[r]]);
    shift[r] = shift_of(largest[r]);
  }
  SEED_FAST_UNROLL
  for (int t = 0; t < kRounds * kTiles; ++t) {
    to_weights(score[t], shift, total);
    own_weights.at(0, t * kWarps + lane.warp) = as_operand(score[t], lane);
  }
  SEED_FAST_UNROLL
  for (int r = 0; r < 2; ++r) {
    total[r] += shuffle_xor(total[r], 2);
    if (lane.side == 0) rows[1][lane.warp][row[r]] = total[r];
  }
  barrier();
  SEED_FAST_UNROLL
  for (int r = 0; r < 2; ++r) {
    total[r] = 0;
    SEED_FAST_UNROLL
    for (int warp = 0; warp < kWarps; ++warp) total[r] += rows[1][warp][row[r]];
  }

  // Second product: the warps divide the units of columns. If the head's width is an odd number of vectors, the second
  // half of its last unit reads the columns of the next row (after the last row: the extra vector); write() drops them.
  Sums<false> sums[kWarpUnits];
  const Tile<kSteps> own_values = Sums<false>::part_of(keys, lane).from(0, 2 * lane.warp);
  SEED_FAST_NO_UNROLL
  for (int first_key = 0; first_key < seen; first_key += kKeys) {
    barrier();  // all threads have finished reading the tile that is overwritten now
    next.store(keys);
    barrier();
    next.load(head.v, problem.v.stride_l, first_key + kKeys, problem.lk, problem.d);
    const Weights block_weights = own_weights.from(0, first_key / kHalves);
    SEED_FAST_UNROLL
    for (int key = 0; key < kKeys; key += 8) {
      const uint4 weight = block_weights.at(0, key / kHalves);
      SEED_FAST_UNROLL
      for (int u = 0; u < kWarpUnits; ++u) {
        if (lane.warp + u * kWarps < kUnits) sums[u].add(weight, own_values, key, 2 * u * kWarps, lane);
      }
    }
  }

  // Divide by the sum of weights and write the output.
  const int own_row = head.first_row + lane.row;
  unsigned short* const out = own_row < problem.lq ? head.out + own_row * head.out_stride : nullptr;
  SEED_FAST_UNROLL
  for (int u = 0; u < kWarpUnits; ++u) {
    sums[u].scale(1 / total[0], 1 / total[1]);
    sums[u].write(out, 2 * (lane.warp + u * kWarps), problem.d, lane);
  }
}

// kTiles: tiles of 8 keys that are processed at once, in shared memory and as scores in registers.
template <int kSteps, int kTiles>
SEED_FAST_DEVICE void attend_many(const Problem& problem) {
  constexpr int kWarps = kManyWarps, kThreads = kWarps * device::kWarp, kKeys = 8 * kTiles;
  constexpr int kUnits = kSteps / 2;  // of 16 columns, of the head's width
  constexpr bool kOdd = kSteps % 2;   // 8 columns are left
  SEED_FAST_SHARED(uint4, q_tile, [kManyRows * Tile<kSteps>::kPitch]);
  SEED_FAST_SHARED(uint4, k_tile, [kKeys * Tile<kSteps>::kPitch]);
  SEED_FAST_SHARED(uint4, v_tile, [kKeys * Tile<kSteps>::kPitch]);
  const Lane lane;
  const Tile<kSteps> queries{q_tile}, keys{k_tile}, values{v_tile};
  const Tile<kSteps> own_query = queries.from(lane.warp * device::kWarp + lane.row, 0);
  const Tile<kSteps> own_keys = keys.from(lane.column, 0);
  const Tile<kSteps> own_values = Sums<false>::part_of(values, lane), odd_values = Sums<true>::part_of(values, lane);
  const Head head(problem, kManyRows);
  const int first_row = head.first_row + lane.warp * device::kWarp;
  const int seen = visible_keys(problem, head.first_row + kManyRows - 1);  // keys visible to any query of the block
  const int visible[2] = {visible_keys(problem, first_row + lane.result_row),
                          visible_keys(problem, first_row + lane.result_row + 2)};
  {
    Rows<kManyRows, kSteps, kThreads> own;
    own.load(head.q, problem.q.stride_l, head.first_row, problem.lq, problem.d);
    own.store(queries);
  }
  Sums<false> sums[kUnits];
  Sums<true> odd_sums;
  float largest[2] = {-infinity(), -infinity()}, total[2] = {};

  Rows<kKeys, kSteps, kThreads> next;
  next.load(head.k, problem.k.stride_l, 0, problem.lk, problem.d);
  SEED_FAST_NO_UNROLL
  for (int first_key = 0; first_key < seen; first_key += kKeys) {
    // First product, while the values of these keys are being loaded.
    next.store(keys);
    barrier();
    next.load(head.v, problem.v.stride_l, first_key, problem.lk, problem.d);
    float score[kTiles][8] = {};
    SEED_FAST_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      const uint4 query = own_query.at(0, step);
      SEED_FAST_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) multiply(score[tile], query, own_keys.at(8 * tile, step));
    }
    next.store(values);
    barrier();
    next.load(head.k, problem.k.stride_l, first_key + kKeys, problem.lk, problem.d);

    // Online softmax: update the largest scores, and rescale what was summed with the old ones.
    float shift[2], rescale[2] = {largest[0], largest[1]};
    SEED_FAST_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      scale_and_mask(score[tile], problem.scale, first_key + 8 * tile, visible, lane, largest);
    }
    SEED_FAST_UNROLL
    for (int r = 0; r < 2; ++r) {
      largest[r] = maximum(largest[r], shuffle_xor(largest[r], 2));
      shift[r] = shift_of(largest[r]);
      rescale[r] = power_of_two(rescale[r] - shift[r]);
      total[r] *= rescale[r];
    }
    SEED_FAST_UNROLL
    for (int unit = 0; unit < kUnits; ++unit) sums[unit].scale(rescale[0], rescale[1]);
    if constexpr (kOdd) odd_sums.scale(rescale[0], rescale[1]);
    // Second product, while the next keys are being loaded.
    SEED_FAST_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      to_weights(score[tile], shift, total);
      const uint4 weight = as_operand(score[tile], lane);
      SEED_FAST_UNROLL
      for (int unit = 0; unit < kUnits; ++unit) sums[unit].add(weight, own_values, 8 * tile, 2 * unit, lane);
      if constexpr (kOdd) odd_sums.add(weight, odd_values, 8 * tile, 2 * kUnits, lane);
    }
  }

  // Divide by the sum of weights and write the output.
  const int own_row = first_row + lane.row;
  unsigned short* const out = own_row < problem.lq ? head.out + own_row * head.out_stride : nullptr;
  SEED_FAST_UNROLL
  for (int r = 0; r < 2; ++r) total[r] = 1 / (total[r] + shuffle_xor(total[r], 2));
  SEED_FAST_UNROLL
  for (int unit = 0; unit < kUnits; ++unit) {
    sums[unit].scale(total[0], total[1]);
    sums[unit].write(out, 2 * unit, problem.d, lane);
  }
  if constexpr (kOdd) {
    odd_sums.scale(total[0], total[1]);
    odd_sums.write(out, 2 * kUnits, problem.d, lane);
  }
}

// attend_few for at most `keys` keys and heads of up to `width` columns; `blocks` per multiprocessor. The last
// arguments are kTiles and kRounds.
#define SEED_FAST_ATTEND_FEW_KEYS(keys, width, blocks, ...)                  \
  SEED_FAST_KERNEL(128, blocks)                                              \
  attention_fwd_sm70_keys##keys##_w##width##_kernel(const Problem problem) { \
    attend_few<width / kHalves, __VA_ARGS__>(problem);                       \
  }
SEED_FAST_ATTEND_FEW_KEYS(32, 32, 6, 1, 1)
SEED_FAST_ATTEND_FEW_KEYS(32, 64, 6, 1, 1)
SEED_FAST_ATTEND_FEW_KEYS(32, 88, 4, 1, 1)
SEED_FAST_ATTEND_FEW_KEYS(32, 128, 4, 1, 1)
SEED_FAST_ATTEND_FEW_KEYS(288, 32, 3, 3, 3)
SEED_FAST_ATTEND_FEW_KEYS(288, 64, 3, 3, 3)
SEED_FAST_ATTEND_FEW_KEYS(288, 88, 2, 3, 3)
SEED_FAST_ATTEND_FEW_KEYS(288, 128, 2, 3, 3)
#undef SEED_FAST_ATTEND_FEW_KEYS

// attend_many for any number of keys and heads of up to `width` columns; `blocks` per multiprocessor; kTiles.
#define SEED_FAST_ATTEND_MANY_KEYS(width, blocks, tiles) \
  SEED_FAST_KERNEL(96, blocks)                           \
  attention_fwd_sm70_many_w##width##_kernel(const Problem problem) { attend_many<width / kHalves, tiles>(problem); }
SEED_FAST_ATTEND_MANY_KEYS(32, 4, 4)
SEED_FAST_ATTEND_MANY_KEYS(64, 4, 3)
SEED_FAST_ATTEND_MANY_KEYS(88, 3, 2)
SEED_FAST_ATTEND_MANY_KEYS(128, 2, 3)
#undef SEED_FAST_ATTEND_MANY_KEYS

}  // namespace seed_fast::attention
