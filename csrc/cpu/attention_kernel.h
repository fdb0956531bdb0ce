// The kernel of attention, written once with the compiler's vector types. Each attention_<isa>.cpp defines
// SEED_FAST_LANES (lanes.h) and SEED_FAST_TILE (how many accumulators fit into registers), and includes this. With
// SEED_FAST_PAIRS, products are of pairs of bfloat16: a 32-bit word holds two neighbours of the summed axis; otherwise
// a word is one float. Everything has internal linkage for the reason given in lanes.h.
//
// Both products are computed in register tiles of R rows x N registers: score_tile and value_tile. The functions around
// them (score, value_rows, value_block) split a product into such tiles, whose sizes are template parameters.
#include "attention_layout.h"
#include "lanes.h"
#if SEED_FAST_LANES >= 8
#include <immintrin.h>
#endif

namespace seed_fast {
namespace {

// Largest number of registers of V in a tile. With 16 registers in all, 4 x 3 accumulators and 3 registers of V leave
// one for the weight.
constexpr int kVectors = SEED_FAST_TILE < 16 ? 3 : 4;
constexpr int kTallest = 12;    // largest number of rows of a tile
constexpr int kScoreKeys = 48;  // rows of K that stay in the L1 cache while all queries are processed; whole tiles
constexpr int kValueKeys = 64;  // the same for V
constexpr float kInfinity = __builtin_inff();
constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
constexpr int rows_of(int vectors) { return int(least(kTallest, SEED_FAST_TILE / vectors)); }
// Number of rows of the next tile. If less than two full tiles are left, they are divided evenly: in a tile with few
// accumulators each multiply-add has to wait for the previous one.
constexpr int64_t next_rows(int64_t left, int64_t most) {
  return left > most && left < 2 * most ? (left + 1) / 2 : least(left, most);
}
static_assert(kBlock % kWidth == 0, "a block is whole registers");

typedef float Quad __attribute__((vector_size(4 * sizeof(float)), aligned(2), may_alias));

#if SEED_FAST_PAIRS
constexpr int kPair = 2;
typedef uint32_t Word __attribute__((aligned(2), may_alias));
inline Floats multiply_add(Floats sum, Word a, Floats b) {
  return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(int(a)), (__m512bh)b);
}
#else
constexpr int kPair = 1;
typedef float Word __attribute__((aligned(4), may_alias));
inline Floats multiply_add(Floats sum, Word a, Floats b) { return sum + a * b; }
#endif

inline Word word_at(const char* base, int64_t offset) { return *reinterpret_cast<const Word*>(base + offset); }

// Words of a dot product that are summed one after the other. The sums of such runs are added at the end of each: in
// one long chain the rounding errors of float32 would grow with its length.
constexpr int64_t kRun = 32;

// Scores of R keys with N registers of queries: queries [depth, kBlock] words, keys [R, depth] words -> scores
// [R, kBlock].
template <int R, int N>
void score_tile(const float* queries, int64_t depth, const char* keys, int64_t stride, float scale, float* scores) {
  for (int64_t begin = 0; begin < depth; begin += kRun) {
    // The sum of one run, in registers.
    Floats acc[R][N] = {};
    const int64_t end = least(begin + kRun, depth);
    for (int64_t d = begin; d < end; ++d) {
      Floats query[N];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) query[n] = load(queries + d * kBlock + n * kWidth);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const Word key = word_at(keys, r * stride + d * 4);
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) acc[r][n] = multiply_add(acc[r][n], key, query[n]);
      }
    }
    // Added to those of the runs before; the last run applies the scale.
    const float factor = end == depth ? scale : 1.0f;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        float* sum = scores + r * kBlock + n * kWidth;
        store(sum, (begin == 0 ? acc[r][n] : load(sum) + acc[r][n]) * factor);
      }
  }
}

// score_tile for a number of rows, 1 .. R, that is known at run time.
template <int R, int N>
void score_rows(int64_t rows, const float* queries, int64_t depth, const char* keys, int64_t stride, float scale,
                float* scores) {
  if constexpr (R > 0) {
    if (rows == R) return score_tile<R, N>(queries, depth, keys, stride, scale, scores);
    score_rows<R - 1, N>(rows, queries, depth, keys, stride, scale, scores);
  }
}

// Prefetches rows that are needed soon: the rows of one head are too far apart for hardware prefetchers.
inline void fetch(const char* rows, int64_t stride, int64_t count, int64_t bytes) {
  for (int64_t row = 0; row < count; ++row)
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(rows + row * stride + at);
}

// What to prefetch while scores are computed: the keys up to `count`, and the same rows of V. values = null: nothing.
struct Prefetch {
  const char* values = nullptr;
  int64_t stride = 0, count = 0;
};

// Scores of keys [begin, end) with N registers of queries.
template <int N>
void score(const float* queries, int64_t depth, const char* keys, int64_t stride, int64_t begin, int64_t end,
           float scale, float* scores, const Prefetch& coming) {
  while (begin < end) {
    const int64_t rows = next_rows(end - begin, rows_of(N));
    if (coming.values != nullptr) {
      fetch(keys + (begin + rows) * stride, stride, least(rows, coming.count - begin - rows), depth * 4);
      fetch(coming.values + begin * coming.stride, coming.stride, rows, depth * 4);
    }
    score_rows<rows_of(N), N>(rows, queries, depth, keys + begin * stride, stride, scale, scores + begin * kBlock);
    begin += rows;
  }
}

// How a sum over keys is combined with a row of the output: out = (before * factor + sum) * inverse.
struct RowUpdate {
  const float* before;  // [rows, D], or null for zeros
  int64_t before_stride;
  const float* factor;   // [rows], or null for ones
  const float* inverse;  // [rows], or null for ones
  float* out;            // [rows, D]
  int64_t out_stride;
};

// Sums over keys for R queries and N registers of columns of V: weights [depth, kBlock] words, values [depth, D] words.
// The last register begins `last` words after the first; it may overlap its neighbour if D is no whole number of
// registers.
template <int R, int N>
void value_tile(const float* weights, int64_t depth, const char* values, int64_t stride, int64_t last,
                const RowUpdate& row, int64_t first_row, int64_t first_word) {
  Floats acc[R][N] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Floats value[N];
    const char* at = values + k * stride + first_word * 4;
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) value[n] = load(at + (n < N - 1 ? n * kWidth : last) * 4);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Word weight = word_at(reinterpret_cast<const char*>(weights), (k * kBlock + first_row + r) * 4);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) acc[r][n] = multiply_add(acc[r][n], weight, value[n]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const int64_t at = first_row + r;
    const float factor = row.factor == nullptr ? 1.0f : row.factor[at];
    const float inverse = row.inverse == nullptr ? 1.0f : row.inverse[at];
    const auto word = [&](int n) { return first_word + (n < N - 1 ? n * kWidth : last); };
    if (row.before != nullptr)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) acc[r][n] += factor * load(row.before + at * row.before_stride + word(n));
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) store(row.out + at * row.out_stride + word(n), acc[r][n] * inverse);
  }
}

// value_tile for a number of rows, 1 .. R, that is known at run time.
template <int R, int N>
void value_some(int64_t rows, const float* weights, int64_t depth, const char* values, int64_t stride, int64_t last,
                const RowUpdate& row, int64_t first_row, int64_t first_word) {
  if constexpr (R > 0) {
    if (rows == R) return value_tile<R, N>(weights, depth, values, stride, last, row, first_row, first_word);
    value_some<R - 1, N>(rows, weights, depth, values, stride, last, row, first_row, first_word);
  }
}

// value_tile for all rows. visible(row): how many words of keys of the block the queries up to `row` need.
template <int N, class Visible>
void value_rows(const float* weights, const Visible& visible, const char* values, int64_t stride, int64_t rows,
                int64_t last, const RowUpdate& row, int64_t first_word) {
  for (int64_t first = 0; first < rows;) {
    const int64_t some = next_rows(rows - first, rows_of(N));
    value_some<rows_of(N), N>(some, weights, visible(first + some - 1), values, stride, last, row, first, first_word);
    first += some;
  }
}

// Sums over one block of keys for all queries and columns. The registers of columns are divided into groups as evenly
// as possible.
template <class Visible>
void value_block(const float* weights, const Visible& visible, const char* values, int64_t stride, int64_t rows,
                 int64_t D, const RowUpdate& row) {
  const int64_t vectors = (D + kWidth - 1) / kWidth, groups = (vectors + kVectors - 1) / kVectors;
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t begin = group * vectors / groups, end = (group + 1) * vectors / groups, first = begin * kWidth;
    const int64_t last = least((end - 1) * kWidth, D - kWidth) - first;
    switch (end - begin) {
      case 1: value_rows<1>(weights, visible, values, stride, rows, last, row, first); break;
      case 2: value_rows<2>(weights, visible, values, stride, rows, last, row, first); break;
      case 3: value_rows<3>(weights, visible, values, stride, rows, last, row, first); break;
      default: value_rows<4>(weights, visible, values, stride, rows, last, row, first); break;
    }
  }
}

// One step of the online softmax for one register of queries: replaces the scores of keys [0, count) by weights,
// updates `largest` and `sum`, and sets `factor`, by which earlier output sums must be multiplied. The query in `lane`
// attends to keys up to diagonal + lane; all other keys get weight 0.
void softmax_lanes(float* scores, int64_t count, int64_t diagonal, float* largest, float* sum, float* factor) {
  // Causal mask.
  int64_t visible = count;
  if (diagonal < count - 1) {
    Ints lane;
    for (int i = 0; i < kWidth; ++i) lane[i] = i;
    visible = most(0, least(count, diagonal + kWidth));
    for (int64_t k = most(0, diagonal + 1); k < visible; ++k) {
      const Ints hidden = lane < Ints{} + int32_t(k - diagonal);
      store(scores + k * kBlock, hidden ? splat(-kInfinity) : load(scores + k * kBlock));
    }
  }
  // Largest score, in four independent maxima.
  const Floats before = load(largest);
  Floats top[4] = {before, before, before, before};
  int64_t k = 0;
  for (; k + 4 <= visible; k += 4)
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) top[i] = larger(load(scores + (k + i) * kBlock), top[i]);
  for (; k < visible; ++k) top[0] = larger(load(scores + k * kBlock), top[0]);
  const Floats best = larger(larger(top[0], top[1]), larger(top[2], top[3]));
  // If every score of a query is -infinity so far, 0 is subtracted instead of the largest, because -infinity -
  // -infinity would be NaN even if a later key has a finite score.
  const Floats reference = best == splat(-kInfinity) ? Floats{} : best;
  const Floats rescale = exponential(before - reference);
  Floats total = load(sum) * rescale, part = {}, lost = {};
  // Weights and their sum. The sum is accurate for any number of keys: weights are added in partial sums of 32, and the
  // rounding errors of adding these to the total are collected in `lost` (Knuth's two-sum).
  const auto flush = [&] {
    const Floats was = total;
    total += part;
    const Floats added = total - was;
    lost += (was - (total - added)) + (part - added);
    part = Floats{};
  };
  for (k = 0; k < visible; k += kPair) {
    if (k % 32 == 0) flush();
#if SEED_FAST_PAIRS
    // Weights are rounded to bfloat16, two keys in a word. The rounded weights are summed, so that they add up to 1.
    Bits pair = {};
    for (int i = 0; i < 2 && k + i < count; ++i) {
      const Bits weight = (Bits)exponential(load(scores + (k + i) * kBlock) - reference);
      const Bits rounded = (weight + 0x7fff + ((weight >> 16) & 1)) & 0xffff0000u;
      part += (Floats)rounded;
      pair = i == 0 ? rounded >> 16 : pair | rounded;
    }
    store(scores + k / 2 * kBlock, (Floats)pair);
#else
    const Floats weight = exponential(load(scores + k * kBlock) - reference);
    store(scores + k * kBlock, weight);
    part += weight;
#endif
  }
  // Keys that no query of the register attends to.
  for (k = (visible + kPair - 1) / kPair; k < (count + kPair - 1) / kPair; ++k) store(scores + k * kBlock, Floats{});
  store(largest, best);
  flush();
  store(sum, total + lost);
  store(factor, rescale);
}

inline Quad load_quad(const char* from) { return *reinterpret_cast<const Quad*>(from); }
inline void store_quad(float* to, Quad value) { *reinterpret_cast<Quad*>(to) = value; }

#if defined(__clang__)
#define SEED_FAST_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int32_t Indices __attribute__((vector_size(4 * sizeof(int32_t))));
#define SEED_FAST_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Indices{__VA_ARGS__})
#endif

// Transposes rows of words [count, depth] to [depth, kBlock], in squares of 4 x 4; missing rows become zeros. depth is
// a multiple of 4.
void transpose(const char* rows, int64_t stride, int64_t count, int64_t depth, float* out) {
  for (int64_t first = 0; first < (count + kWidth - 1) / kWidth * kWidth; first += 4)
    for (int64_t d = 0; d < depth; d += 4) {
      Quad row[4];
      for (int i = 0; i < 4; ++i) row[i] = first + i < count ? load_quad(rows + (first + i) * stride + d * 4) : Quad{};
      const Quad a = SEED_FAST_SHUFFLE(row[0], row[1], 0, 4, 1, 5), b = SEED_FAST_SHUFFLE(row[2], row[3], 0, 4, 1, 5);
      const Quad c = SEED_FAST_SHUFFLE(row[0], row[1], 2, 6, 3, 7), e = SEED_FAST_SHUFFLE(row[2], row[3], 2, 6, 3, 7);
      float* to = out + d * kBlock + first;
      store_quad(to, SEED_FAST_SHUFFLE(a, b, 0, 1, 4, 5));
      store_quad(to + kBlock, SEED_FAST_SHUFFLE(a, b, 2, 3, 6, 7));
      store_quad(to + 2 * kBlock, SEED_FAST_SHUFFLE(c, e, 0, 1, 4, 5));
      store_quad(to + 3 * kBlock, SEED_FAST_SHUFFLE(c, e, 2, 3, 6, 7));
    }
}

// float16 to float32 and back, one register at a time.
#if SEED_FAST_LANES >= 8
inline Floats floats_from_halves(const uint16_t* from) {
#if SEED_FAST_LANES == 16
  return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#else
  return (Floats)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#endif
}
inline void halves_from_floats(uint16_t* to, Floats from) {
#if SEED_FAST_LANES == 16
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph((__m512)from, _MM_FROUND_TO_NEAREST_INT));
#else
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph((__m256)from, _MM_FROUND_TO_NEAREST_INT));
#endif
}
#endif

// Converts rows [count, D] of any type and stride to contiguous float32 [count, D].
void widen(const AttentionProblem& problem, const AttentionOperand& from, const char* rows, int64_t count, float* out) {
  const int64_t D = problem.D;
  for (int64_t row = 0; row < count; ++row) {
    const char* at = rows + row * from.stride_l;
    int64_t d = 0;
    if (problem.dtype == DType::bfloat16 && from.stride_d == 2) {
      const uint16_t* bits = reinterpret_cast<const uint16_t*>(at);
      for (; d < D; ++d) out[row * D + d] = bits_to_float(uint32_t(bits[d]) << 16);
    }
#if SEED_FAST_LANES >= 8
    if (problem.dtype == DType::float16 && from.stride_d == 2)
      for (; d + kWidth <= D; d += kWidth)
        store(out + row * D + d, floats_from_halves(reinterpret_cast<const uint16_t*>(at) + d));
#endif
    for (; d < D; ++d) out[row * D + d] = load_as_float(at + d * from.stride_d, 0, problem.dtype);
  }
}

#if SEED_FAST_PAIRS
// Interleaves rows of bfloat16 [count, D] to [ceil(count / 2), D] words of two neighbouring rows; a missing second row
// becomes zero.
void pair_rows(const char* rows, int64_t stride, int64_t count, int64_t D, float* out) {
  for (int64_t row = 0; row < count; row += 2) {
    const uint16_t* low = reinterpret_cast<const uint16_t*>(rows + row * stride);
    const uint16_t* high = reinterpret_cast<const uint16_t*>(rows + (row + 1) * stride);
    Word* to = reinterpret_cast<Word*>(out + row / 2 * D);
    if (row + 1 < count)
      for (int64_t d = 0; d < D; ++d) to[d] = uint32_t(high[d]) << 16 | low[d];
    else
      for (int64_t d = 0; d < D; ++d) to[d] = low[d];
  }
}
#endif

// Rounds float32 [rows, D] to the problem's 16-bit type and writes it to out [rows, H, D], from element `offset` on.
void narrow(const AttentionProblem& p, const float* from, int64_t rows, int64_t offset) {
  uint16_t* const out = reinterpret_cast<uint16_t*>(p.out) + offset;
  for (int64_t row = 0; row < rows; ++row) {
    const float* const values = from + row * p.D;
    uint16_t* const to = out + row * p.H * p.D;
    int64_t d = 0;
#if SEED_FAST_LANES >= 8
    if (p.dtype == DType::float16)
      for (; d + kWidth <= p.D; d += kWidth) halves_from_floats(to + d, load(values + d));
#endif
    for (; d < p.D; ++d) to[d] = p.dtype == DType::bfloat16 ? float_to_bfloat16(values[d]) : float_to_half(values[d]);
  }
}

// The address of a row.
inline const char* at(const AttentionOperand& x, int64_t b, int64_t l, int64_t h) {
  return x.data + b * x.stride_b + l * x.stride_l + h * x.stride_h;
}

// Computes one work item: a block of queries of one head.
void attend(const AttentionProblem& p, int64_t item, AttentionScratch& scratch) {
  const int64_t blocks = (p.Lq + p.block - 1) / p.block;
  const int64_t first = item % blocks * p.block, h = item / blocks % p.H, b = item / blocks / p.H;
  const int64_t queries = least(p.block, p.Lq - first), lanes = (queries + kWidth - 1) / kWidth * kWidth;
  const int64_t keys = p.causal ? least(p.Lk, first + queries) : p.Lk, D = p.D;
  const bool in_place = SEED_FAST_PAIRS || (p.dtype == DType::float32 && p.contiguous);  // no conversion to float32
  const int64_t depth = D / kPair;                                                       // words per row of Q and K
  const bool fetches = in_place && !SEED_FAST_PAIRS;

  // Transpose the queries, so that each register holds one dimension of several queries.
  if (in_place) {
    transpose(at(p.q, b, first, h), p.q.stride_l, queries, depth, scratch.queries);
  } else {
    widen(p, p.q, at(p.q, b, first, h), queries, scratch.values);
    transpose(reinterpret_cast<const char*>(scratch.values), D * 4, queries, D, scratch.queries);
  }
  for (int64_t lane = 0; lane < lanes; ++lane) {
    scratch.largest[lane] = -kInfinity;
    scratch.sum[lane] = 0;
  }

  // Process the keys in chunks whose scores fit into scratch memory.
  const bool direct = p.dtype == DType::float32;  // the last sum is written to the output without conversion
  const int64_t out_offset = ((b * p.Lq + first) * p.H + h) * D;
  for (int64_t chunk = 0; chunk < keys; chunk += kChunk) {
    // Convert keys and values if necessary.
    const int64_t count = least(kChunk, keys - chunk);
    const char* key = at(p.k, b, chunk, h);
    const char* value = at(p.v, b, chunk, h);
    int64_t key_stride = p.k.stride_l, value_stride = p.v.stride_l;
    if (!in_place) {
      widen(p, p.k, key, count, scratch.keys);
      widen(p, p.v, value, count, scratch.values);
      key = reinterpret_cast<const char*>(scratch.keys);
      value = reinterpret_cast<const char*>(scratch.values);
      key_stride = value_stride = D * 4;
    }
#if SEED_FAST_PAIRS
    pair_rows(value, value_stride, count, D, scratch.values);
    value = reinterpret_cast<const char*>(scratch.values);
    value_stride = D * 4;
#endif

    // First product: scores, for two registers of queries at a time. reach(lane): how many keys of the chunk the
    // register of queries that begins at `lane` needs; with causality, those up to its last query.
    const auto reach = [&](int64_t lane) {
      return p.causal ? most(0, least(count, first + lane + kWidth - chunk)) : count;
    };
    for (int64_t begin = 0; begin < count; begin += kScoreKeys) {
      const int64_t end = least(count, begin + kScoreKeys);
      for (int64_t lane = 0; lane < lanes; lane += 2 * kWidth) {
        const bool two = lane + kWidth < lanes;
        const int64_t both = least(end, reach(lane));
        const float* const q = scratch.queries + lane;
        float* const scores = scratch.scores + lane;
        const Prefetch coming{lane == 0 && fetches ? value : nullptr, value_stride, count};
        if (two) {
          score<2>(q, depth, key, key_stride, begin, both, p.scale, scores, coming);
          score<1>(q + kWidth, depth, key, key_stride, most(begin, both), least(end, reach(lane + kWidth)), p.scale,
                   scores + kWidth, Prefetch{});
        } else {
          score<1>(q, depth, key, key_stride, begin, both, p.scale, scores, coming);
        }
      }
    }
    // Softmax. After the last chunk `sum` becomes its reciprocal.
    for (int64_t lane = 0; lane < lanes; lane += kWidth)
      softmax_lanes(scratch.scores + lane, count, p.causal ? first + lane - chunk : count, scratch.largest + lane,
                    scratch.sum + lane, scratch.factor + lane);
    if (chunk + count == keys) {
      if (p.lse != nullptr)
        for (int64_t query = 0; query < queries; ++query)
          p.lse[(b * p.H + h) * p.Lq + first + query] = scratch.largest[query] + __builtin_logf(scratch.sum[query]);
      for (int64_t lane = 0; lane < lanes; ++lane) scratch.sum[lane] = 1.0f / scratch.sum[lane];
    }

    // Second product: weights times values. The first block of a chunk rescales the earlier sums; the last block of all
    // divides by the sum of weights.
    for (int64_t begin = 0; begin < count; begin += kValueKeys) {
      const int64_t end = least(count, begin + kValueKeys);
      const bool finish = chunk + end == keys;
      const RowUpdate row{chunk + begin == 0 ? nullptr : scratch.out,
                          D,
                          begin == 0 ? scratch.factor : nullptr,
                          finish ? scratch.sum : nullptr,
                          finish && direct ? reinterpret_cast<float*>(p.out) + out_offset : scratch.out,
                          finish && direct ? p.H * D : D};
      const auto visible = [&](int64_t query) {
        const int64_t stop = p.causal ? least(end, first + query + 1 - chunk) : end;
        return most(0, (stop - begin + kPair - 1) / kPair);
      };
      value_block(scratch.scores + begin / kPair * kBlock, visible, value + begin / kPair * value_stride, value_stride,
                  queries, D, row);
    }
  }
  if (!direct) narrow(p, scratch.out, queries, out_offset);
}

}  // namespace
}  // namespace seed_fast
