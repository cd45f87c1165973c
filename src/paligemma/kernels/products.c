/* Products of a few or many rows of float32 inputs with a matrix in panels; kernels.h has the layouts.

   Every output is summed column by column in one chain, whatever the number of rows and threads, so
   a row gets the same bits alone and in a batch. Float kinds multiply in float32. Integer kinds
   quantise the inputs: int8 takes them in as many bits, up to 14, as the sum leaves room for; int4 in
   8 bits, with a scale for each group of 32 columns. */

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "panels.h"
#include "vectors.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 12")
/* The sum so far stays in its register: gcc would otherwise regroup sums and spill them. */
#define KEEP(vector) __asm__("" : "+x"(vector))
#define IN_MEMORY() __asm__ volatile("" ::: "memory")

enum { TILE_BYTES = 1 << 17, MANY_ROWS = 2 * PG_TILE, PREFETCH = 2048 };

/* ---------------------------------------------------------------- level */

static int level = -1;

int pg_best_level(void) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
#else
  return 0;
#endif
}

int pg_level(void) {
  if (level < 0) level = pg_best_level();
  return level;
}

void pg_set_level(int wanted) { level = wanted < pg_best_level() ? wanted : pg_best_level(); }

/* ---------------------------------------------------------------- sizes */

static int is_float(int kind) { return kind != PG_INT8 && kind != PG_INT4; }

size_t pg_panel_bytes(int kind, int k) { return panel_bytes(kind, (size_t)padded(kind, k)); }

/* ---------------------------------------------------------------- inputs */

size_t pg_input_bytes(int kind, int m, int k) {
  size_t columns = (size_t)padded(kind, k), rows = (size_t)m;
  if (kind == PG_INT8) return rows * columns * 2 + rows * 4 + 128;
  if (kind == PG_INT4) return rows * columns + 2 * (rows * columns / GROUP * 4) + 192;
  return rows * columns * 4 + 64;
}

INLINE void *aligned(char *p) { return (void *)(((uintptr_t)p + 63) & ~(uintptr_t)63); }

void pg_input_place(pg_input *in, void *memory, int kind, int m, int k) {
  size_t columns = (size_t)padded(kind, k), rows = (size_t)m;
  *in = (pg_input){kind, m, k, memory, NULL, NULL};
  if (kind == PG_INT8) in->scale = aligned((char *)memory + rows * columns * 2);
  if (kind == PG_INT4) {
    in->scale = aligned((char *)memory + rows * columns);
    in->start = aligned((char *)in->scale + rows * columns / GROUP * 4);
  }
}

/* The largest magnitude of an int8 matrix's inputs: a sum of k products fits 32 bits. */
static float int8_limit(int columns) {
  float most = floorf(2147483000.0f / (127.0f * (float)columns));
  return most < 8191 ? most : 8191;
}

/* The largest magnitude, NaN if there is one. */
INLINE float largest_of(const float *x, int k) {
  float largest = 0, nan = 0;
  for (int i = 0; i < k; i++) {
    if (x[i] != x[i]) nan = x[i];
    else largest = fmaxf(largest, fabsf(x[i]));
  }
  return nan != nan ? nan : largest;
}

typedef struct { /* where a row of inputs goes */
  int columns, rows;
  size_t tile, at; /* the first row of the tile, and its first number */
} place;

INLINE place place_of(const pg_input *in, int row) {
  place p = {.columns = padded(in->kind, in->k), .tile = (size_t)(row / PG_TILE * PG_TILE)};
  p.rows = in->m - (int)p.tile < PG_TILE ? in->m - (int)p.tile : PG_TILE;
  p.at = p.tile * p.columns;
  return p;
}

static void float_row(pg_input *in, int row, const float *x) {
  place p = place_of(in, row);
  float *to = (float *)in->rows + p.at + row % PG_TILE;
  for (int c = 0; c < in->k; c++) to[(size_t)c * p.rows] = x[c];
  for (int c = in->k; c < p.columns; c++) to[(size_t)c * p.rows] = 0;
}

/* From column `c` on: after those that were taken in vectors. */
INLINE void int8_columns(pg_input *in, int row, const float *x, float inverse, int c) {
  place p = place_of(in, row);
  int16_t *to = (int16_t *)in->rows + p.at + 2 * (row % PG_TILE);
  for (; c < p.columns; c++)
    to[(size_t)(c / 2) * p.rows * 2 + c % 2] = c < in->k ? (int16_t)lrintf(x[c] * inverse) : 0;
}

INLINE void int4_groups(pg_input *in, int row, const float *x, int g) {
  place p = place_of(in, row);
  int groups = p.columns / GROUP, r = row % PG_TILE;
  int8_t *to = (int8_t *)in->rows + p.at + 4 * r;
  float *scale = in->scale + p.tile * groups + r;
  int16_t *start = (int16_t *)(in->start + p.tile * groups + r);
  for (; g < groups; g++) {
    int width = in->k - g * GROUP < GROUP ? in->k - g * GROUP : GROUP, sums[2] = {0, 0};
    float largest = largest_of(x + g * GROUP, width), inverse = largest > 0 ? 127 / largest : 0;
    for (int c = 0; c < GROUP; c++) {
      int q = c < width ? (int)lrintf(x[g * GROUP + c] * inverse) : 0;
      to[(size_t)(g * 8 + c / 4) * p.rows * 4 + c % 4] = (int8_t)q;
      sums[c % 4 / 2] += q;
    }
    scale[(size_t)g * p.rows] = largest / 127;
    for (int half = 0; half < 2; half++)
      start[(size_t)g * p.rows * 2 + half] = (int16_t)(-8 * sums[half]);
  }
}

#if defined(__x86_64__)
/* The largest magnitude of 32, NaN if there is one. */
AVX2 INLINE float largest_of_32(const __m256 v[4]) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  __m256 nan = _mm256_or_ps(_mm256_cmp_ps(v[0], v[1], _CMP_UNORD_Q),
                            _mm256_cmp_ps(v[2], v[3], _CMP_UNORD_Q));
  if (_mm256_movemask_ps(nan)) return NAN;
  __m256 a = _mm256_max_ps(_mm256_andnot_ps(sign, v[0]), _mm256_andnot_ps(sign, v[1]));
  __m256 b = _mm256_max_ps(_mm256_andnot_ps(sign, v[2]), _mm256_andnot_ps(sign, v[3]));
  a = _mm256_max_ps(a, b);
  __m128 c = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  c = _mm_max_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_max_ss(c, _mm_shuffle_ps(c, c, 1)));
}

AVX2 INLINE void load_32(const float *x, __m256 v[4]) {
  UNROLL for (int i = 0; i < 4; i++) v[i] = _mm256_loadu_ps(x + 8 * i);
}

/* Sixteen-bit integers of 16 numbers; 32-bit pairs in the order 0 1 4 5 2 3 6 7. */
AVX2 INLINE __m256i rounded(__m256 first, __m256 second, __m256 inverse) {
  return _mm256_packs_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(first, inverse)),
                            _mm256_cvtps_epi32(_mm256_mul_ps(second, inverse)));
}

AVX2 static void int8_row_avx2(pg_input *in, int row, const float *x) {
  place p = place_of(in, row);
  float largest = 0, limit = int8_limit(p.columns);
  int c = 0, whole = in->k / 32 * 32;
  for (; c < whole; c += 32) {
    __m256 v[4];
    load_32(x + c, v);
    float own = largest_of_32(v);
    largest = own > largest || own != own ? own : largest;
    if (own != own) break;
  }
  if (largest == largest) {
    float own = largest_of(x + whole, in->k - whole);
    largest = own > largest || own != own ? own : largest;
  }
  float inverse = largest > 0 ? limit / largest : 0;
  in->scale[row] = largest / limit;
  int32_t *to = (int32_t *)((int16_t *)in->rows + p.at) + row % PG_TILE, pairs[8];
  for (c = 0; c < whole; c += 16, to += (size_t)8 * p.rows) {
    __m256i both = rounded(_mm256_loadu_ps(x + c), _mm256_loadu_ps(x + c + 8), _mm256_set1_ps(inverse));
    _mm256_storeu_si256((__m256i *)pairs, _mm256_permute4x64_epi64(both, 0xd8));
    UNROLL for (int i = 0; i < 8; i++) to[(size_t)i * p.rows] = pairs[i];
  }
  int8_columns(in, row, x, inverse, whole);
}

AVX2 static void int4_row_avx2(pg_input *in, int row, const float *x) {
  place p = place_of(in, row);
  int groups = p.columns / GROUP, r = row % PG_TILE, whole = in->k / GROUP;
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  int32_t *to = (int32_t *)((int8_t *)in->rows + p.at) + r, quads[8];
  float *scale = in->scale + p.tile * groups + r;
  int32_t *start = in->start + p.tile * groups + r;
  for (int g = 0; g < whole; g++, to += (size_t)8 * p.rows, scale += p.rows, start += p.rows) {
    __m256 v[4];
    load_32(x + g * GROUP, v);
    float largest = largest_of_32(v);
    __m256 inverse = _mm256_set1_ps(largest > 0 ? 127 / largest : 0);
    __m256i bytes = _mm256_packs_epi16(rounded(v[0], v[1], inverse), rounded(v[2], v[3], inverse));
    _mm256_storeu_si256((__m256i *)quads, _mm256_permutevar8x32_epi32(bytes, order));
    UNROLL for (int i = 0; i < 8; i++) to[(size_t)i * p.rows] = quads[i];
    *scale = largest / 127;
    __m256i two = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
    __m128i sum = _mm_add_epi16(_mm256_castsi256_si128(two), _mm256_extracti128_si256(two, 1));
    sum = _mm_add_epi16(sum, _mm_srli_si128(sum, 8));
    sum = _mm_add_epi16(sum, _mm_srli_si128(sum, 4));
    *start = _mm_cvtsi128_si32(_mm_mullo_epi16(sum, _mm_set1_epi16(-8)));
  }
  int4_groups(in, row, x, whole);
}
#endif

void pg_input_row(pg_input *in, int row, const float *x) {
  if (is_float(in->kind)) {
    float_row(in, row, x);
    return;
  }
#if defined(__x86_64__)
  if (pg_level()) {
    if (in->kind == PG_INT8) int8_row_avx2(in, row, x);
    else int4_row_avx2(in, row, x);
    return;
  }
#endif
  if (in->kind == PG_INT8) {
    float largest = largest_of(x, in->k), limit = int8_limit(padded(in->kind, in->k));
    in->scale[row] = largest / limit;
    int8_columns(in, row, x, largest > 0 ? limit / largest : 0, 0);
  } else {
    int4_groups(in, row, x, 0);
  }
}

/* ---------------------------------------------------------------- tiles: 16 outputs of up to 6 rows */

/* Sums of a tile: float, or int32 for PG_INT8. */
typedef union {
  float f[PG_TILE][16];
  int32_t i[PG_TILE][16];
} sums;

typedef struct { /* a range of columns of a panel and of a tile of inputs */
  const char *w;
  const void *x;
  const float *scale;
  const int32_t *start;
  int columns;
} span;

static void tile_plain(int kind, int m, const span *s, sums *a) {
  float column[16];
  for (int c = 0; c < s->columns; c++) {
    if (kind == PG_INT8) {
      const int8_t *w = (const int8_t *)s->w + (c / 2) * 32 + c % 2;
      const int16_t *x = (const int16_t *)s->x + (size_t)(c / 2) * m * 2 + c % 2;
      for (int r = 0; r < m; r++)
        for (int i = 0; i < 16; i++) a->i[r][i] += w[2 * i] * x[2 * r];
      continue;
    }
    if (kind == PG_INT4) {
      int group = c / GROUP, in = c % GROUP, products[16];
      const uint8_t *w = (const uint8_t *)s->w + (size_t)group * 288;
      const int8_t *x = (const int8_t *)s->x + (size_t)group * GROUP * m;
      if (in) continue;
      for (int r = 0; r < m; r++) {
        memset(products, 0, sizeof products);
        for (int j = 0; j < GROUP; j++)
          for (int i = 0; i < 16; i++) {
            int byte = w[(j % 16 / 4) * 64 + i * 4 + j % 4];
            products[i] += ((j < 16 ? byte & 15 : byte >> 4) - 8) * x[((j / 4) * m + r) * 4 + j % 4];
          }
        for (int i = 0; i < 16; i++) {
          uint16_t half;
          memcpy(&half, w + 256 + 2 * i, 2);
          float both = from_half(half) * s->scale[group * m + r];
          a->f[r][i] = fmaf((float)products[i], both, a->f[r][i]);
        }
      }
      continue;
    }
    for (int i = 0; i < 16; i++) {
      const uint8_t *u8 = (const uint8_t *)s->w;
      if (kind == PG_F32) column[i] = ((const float *)s->w)[c * 16 + i];
      else if (kind == PG_BF16)
        column[i] = from_bf16(((const uint16_t *)s->w)[(c / 2) * 32 + i * 2 + c % 2]);
      else if (kind == PG_FP8) column[i] = from_e4m3(u8[c * 16 + i]);
      else {
        const uint8_t *block = u8 + (size_t)(c / BLOCK) * (BLOCK * 8 + 32);
        int byte = block[(c % BLOCK / 2) * 16 + i];
        uint16_t half;
        memcpy(&half, block + BLOCK * 8 + 2 * i, 2);
        column[i] = NF4[c % 2 ? byte >> 4 : byte & 15] * from_half(half);
      }
    }
    for (int r = 0; r < m; r++)
      for (int i = 0; i < 16; i++)
        a->f[r][i] = fmaf(column[i], ((const float *)s->x)[(size_t)c * m + r], a->f[r][i]);
  }
}

#if defined(__x86_64__)
/* Masks that stay in memory: a tile of six rows has a register for everything else. */
#define MASKED_BY(vector, mask) __asm__("vpand %1, %0, %0" : "+x"(vector) : "m"(mask))
static const _Alignas(32) uint8_t FOUR_BITS[32] = {
    15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15,
    15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15};
static const _Alignas(16) uint16_t HALF_SIGN[8] = {0x8000, 0x8000, 0x8000, 0x8000,
                                                   0x8000, 0x8000, 0x8000, 0x8000};
static const _Alignas(16) uint16_t HALF_REST[8] = {0x3f80, 0x3f80, 0x3f80, 0x3f80,
                                                   0x3f80, 0x3f80, 0x3f80, 0x3f80};

/* 2^-8 of eight e4m3 numbers, by way of half precision; the scale of the row holds the rest. */
AVX2 INLINE __m256 eight_e4m3(const char *w) {
  __m128i v = _mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i *)w));
  __m128i rest = _mm_slli_epi16(v, 7);
  MASKED_BY(v, HALF_SIGN);
  MASKED_BY(rest, HALF_REST);
  return _mm256_cvtph_ps(_mm_or_si128(v, rest));
}

/* Eight rows (half 0 or 1) of two neighbouring columns of a float panel, as float. */
AVX2 INLINE void two_columns(int kind, const char *w, int half, __m256 *even, __m256 *odd) {
  if (kind == PG_F32) {
    *even = _mm256_loadu_ps((const float *)w + 8 * half);
    *odd = _mm256_loadu_ps((const float *)w + 16 + 8 * half);
  } else if (kind == PG_BF16) {
    __m256i both = _mm256_loadu_si256((const __m256i *)(w + 32 * half));
    *even = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    *odd = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32((int)0xffff0000)));
  } else {
    *even = eight_e4m3(w + 8 * half);
    *odd = eight_e4m3(w + 16 + 8 * half);
  }
}

/* Codes 0..15 of eight rows to NF4's values. */
AVX2 INLINE __m256 nf4_values(__m256i codes, __m256 low, __m256 high) {
  __m256 a = _mm256_permutevar8x32_ps(low, codes), b = _mm256_permutevar8x32_ps(high, codes);
  return _mm256_blendv_ps(a, b, _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28)));
}

AVX2 INLINE void tile_float(int kind, const int m, const span *s, sums *a) {
  __m256 sum[2][PG_TILE];
  UNROLL for (int r = 0; r < m; r++)
    for (int h = 0; h < 2; h++) sum[h][r] = _mm256_loadu_ps(&a->f[r][8 * h]);
  const char *w = s->w;
  const float *x = s->x;
  const size_t step = panel_bytes(kind, 2);
  for (int c = 0; c < s->columns; c += 2, w += step, x += 2 * m) {
    _mm_prefetch(w + PREFETCH, _MM_HINT_T0);
    if (kind == PG_F32) _mm_prefetch(w + PREFETCH + 64, _MM_HINT_T0);
    UNROLL for (int h = 0; h < 2; h++) {
      __m256 even, odd;
      two_columns(kind, w, h, &even, &odd);
      UNROLL for (int r = 0; r < m; r++) {
        sum[h][r] = _mm256_fmadd_ps(even, _mm256_broadcast_ss(x + r), sum[h][r]);
        KEEP(sum[h][r]);
      }
      UNROLL for (int r = 0; r < m; r++) {
        sum[h][r] = _mm256_fmadd_ps(odd, _mm256_broadcast_ss(x + m + r), sum[h][r]);
        KEEP(sum[h][r]);
      }
      if (m > 3) IN_MEMORY(); /* inputs are read again, not kept */
    }
  }
  UNROLL for (int r = 0; r < m; r++)
    for (int h = 0; h < 2; h++) _mm256_storeu_ps(&a->f[r][8 * h], sum[h][r]);
}

/* A whole tile of widened columns that lie in the first cache. */
AVX2 static void wide_tile(const span *s, sums *a) {
  __m256 low[PG_TILE], high[PG_TILE];
  UNROLL for (int r = 0; r < PG_TILE; r++) {
    low[r] = _mm256_loadu_ps(&a->f[r][0]);
    high[r] = _mm256_loadu_ps(&a->f[r][8]);
  }
  const float *w = (const float *)s->w, *x = s->x;
  for (int c = 0; c < s->columns; c++, w += 16, x += PG_TILE) {
    __m256 first = _mm256_loadu_ps(w), second = _mm256_loadu_ps(w + 8);
    UNROLL for (int r = 0; r < PG_TILE; r++) {
      __m256 input = _mm256_broadcast_ss(x + r);
      low[r] = _mm256_fmadd_ps(first, input, low[r]);
      high[r] = _mm256_fmadd_ps(second, input, high[r]);
    }
  }
  UNROLL for (int r = 0; r < PG_TILE; r++) {
    _mm256_storeu_ps(&a->f[r][0], low[r]);
    _mm256_storeu_ps(&a->f[r][8], high[r]);
  }
}

/* Columns of a float panel widened to PG_F32, for products with many rows. */
AVX2 static void widen(int kind, const char *w, int columns, float *out) {
  if (kind == PG_NF4) {
    __m256 low = _mm256_loadu_ps(NF4), high = _mm256_loadu_ps(NF4 + 8);
    for (int c = 0; c < columns; c += 2) {
      const char *block = w + (size_t)(c / BLOCK) * (BLOCK * 8 + 32);
      for (int h = 0; h < 2; h++) {
        __m256 scale = _mm256_cvtph_ps(
            _mm_loadu_si128((const __m128i *)(block + BLOCK * 8 + 16 * h)));
        __m256i codes = _mm256_cvtepu8_epi32(
            _mm_loadl_epi64((const __m128i *)(block + (c % BLOCK / 2) * 16 + 8 * h)));
        __m256 even = nf4_values(_mm256_and_si256(codes, _mm256_set1_epi32(15)), low, high);
        __m256 odd = nf4_values(_mm256_srli_epi32(codes, 4), low, high);
        _mm256_storeu_ps(out + c * 16 + 8 * h, _mm256_mul_ps(even, scale));
        _mm256_storeu_ps(out + c * 16 + 16 + 8 * h, _mm256_mul_ps(odd, scale));
      }
    }
    return;
  }
  const size_t step = panel_bytes(kind, 2);
  for (int c = 0; c < columns; c += 2, w += step)
    for (int h = 0; h < 2; h++) {
      __m256 even, odd;
      if (kind == PG_BF16) two_columns(PG_BF16, w, h, &even, &odd);
      else two_columns(PG_FP8, w, h, &even, &odd);
      _mm256_storeu_ps(out + c * 16 + 8 * h, even);
      _mm256_storeu_ps(out + c * 16 + 16 + 8 * h, odd);
    }
}

AVX2 INLINE void tile_nf4(const int m, const span *s, sums *a) {
  float wide[BLOCK * 16];
  for (int c = 0; c < s->columns; c += BLOCK) {
    span part = {.w = (const char *)wide, .x = (const float *)s->x + (size_t)c * m, .columns = BLOCK};
    widen(PG_NF4, s->w + panel_bytes(PG_NF4, (size_t)c), BLOCK, wide);
    tile_float(PG_F32, m, &part, a);
  }
}

AVX2 INLINE void tile_int8(const int m, const span *s, sums *a) {
  __m256i sum[2][PG_TILE];
  UNROLL for (int r = 0; r < m; r++)
    for (int h = 0; h < 2; h++) sum[h][r] = _mm256_loadu_si256((const __m256i *)&a->i[r][8 * h]);
  const char *w = s->w;
  const int16_t *x = s->x;
  for (int c = 0; c < s->columns; c += 2, w += 32, x += 2 * m) {
    _mm_prefetch(w + PREFETCH, _MM_HINT_T0);
    __m256i low = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)w));
    __m256i high = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(w + 16)));
    UNROLL for (int r = 0; r < m; r++) {
      int32_t pair;
      memcpy(&pair, x + 2 * r, 4);
      __m256i both = _mm256_set1_epi32(pair);
      sum[0][r] = _mm256_add_epi32(sum[0][r], _mm256_madd_epi16(low, both));
      KEEP(sum[0][r]);
      sum[1][r] = _mm256_add_epi32(sum[1][r], _mm256_madd_epi16(high, both));
      KEEP(sum[1][r]);
    }
  }
  UNROLL for (int r = 0; r < m; r++)
    for (int h = 0; h < 2; h++) _mm256_storeu_si256((__m256i *)&a->i[r][8 * h], sum[h][r]);
}

/* int4: codes 0..15 times int8 inputs, summed in 16 bits over a group: at most 15*127*16 = 30480, and
   what the start takes off is never more than the whole. */
AVX2 INLINE void tile_int4(const int m, const span *s, sums *a) {
  const __m256i one = _mm256_set1_epi16(1);
  const char *w = s->w;
  const int8_t *x = s->x;
  const int32_t *start = s->start;
  const float *scale = s->scale;
  for (int c = 0; c < s->columns; c += GROUP, w += 288, x += GROUP * m, start += m, scale += m) {
    __m256i sum[2][PG_TILE];
    IN_MEMORY(); /* registers are for the sums of the group */
    for (int line = 0; line < 5; line++) _mm_prefetch(w + PREFETCH + 64 * line, _MM_HINT_T0);
    UNROLL for (int r = 0; r < m; r++) sum[0][r] = sum[1][r] = _mm256_set1_epi32(start[r]);
    _Pragma("GCC unroll 1") for (int q = 0; q < 4; q++)
      UNROLL for (int part = 0; part < 2; part++) {
        __m256i low = _mm256_loadu_si256((const __m256i *)(w + q * 64));
        __m256i high = _mm256_loadu_si256((const __m256i *)(w + q * 64 + 32));
        if (part) low = _mm256_srli_epi16(low, 4), high = _mm256_srli_epi16(high, 4);
        MASKED_BY(low, FOUR_BITS);
        MASKED_BY(high, FOUR_BITS);
        UNROLL for (int r = 0; r < m; r++) {
          int32_t quad;
          memcpy(&quad, x + ((part * 4 + q) * m + r) * 4, 4);
          __m256i inputs = _mm256_set1_epi32(quad);
          sum[0][r] = _mm256_add_epi16(sum[0][r], _mm256_maddubs_epi16(low, inputs));
          KEEP(sum[0][r]);
          sum[1][r] = _mm256_add_epi16(sum[1][r], _mm256_maddubs_epi16(high, inputs));
          KEEP(sum[1][r]);
        }
        if (m > 3) IN_MEMORY();
      }
    UNROLL for (int h = 0; h < 2; h++) {
      __m256 own = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(w + 256 + 16 * h)));
      UNROLL for (int r = 0; r < m; r++) {
        __m256 total = _mm256_cvtepi32_ps(_mm256_madd_epi16(sum[h][r], one));
        __m256 both = _mm256_mul_ps(own, _mm256_broadcast_ss(scale + r));
        float *to = &a->f[r][8 * h];
        _mm256_storeu_ps(to, _mm256_fmadd_ps(total, both, _mm256_loadu_ps(to)));
      }
    }
  }
}

#define FOR_ROWS(name, call)                                                      \
  AVX2 static void name##_1(const span *s, sums *a) { const int m = 1; call; }    \
  AVX2 static void name##_2(const span *s, sums *a) { const int m = 2; call; }    \
  AVX2 static void name##_3(const span *s, sums *a) { const int m = 3; call; }    \
  AVX2 static void name##_4(const span *s, sums *a) { const int m = 4; call; }    \
  AVX2 static void name##_5(const span *s, sums *a) { const int m = 5; call; }    \
  AVX2 static void name##_6(const span *s, sums *a) { const int m = 6; call; }
FOR_ROWS(f32, tile_float(PG_F32, m, s, a))
FOR_ROWS(bf16, tile_float(PG_BF16, m, s, a))
FOR_ROWS(fp8, tile_float(PG_FP8, m, s, a))
FOR_ROWS(int8, tile_int8(m, s, a))
FOR_ROWS(int4, tile_int4(m, s, a))
FOR_ROWS(nf4, tile_nf4(m, s, a))
#define ROWS_OF(name) {name##_1, name##_2, name##_3, name##_4, name##_5, name##_6}
static void (*const TILES[PG_NUM_KINDS][PG_TILE])(const span *, sums *) = {
    ROWS_OF(f32), ROWS_OF(bf16), ROWS_OF(fp8), ROWS_OF(int8), ROWS_OF(int4), ROWS_OF(nf4)};
#endif

INLINE void run_tile(int kind, int m, const span *s, sums *a) {
#if defined(__x86_64__)
  if (pg_level()) {
    TILES[kind][m - 1](s, a);
    return;
  }
#endif
  tile_plain(kind, m, s, a);
}

void pg_float_tile(const float *panel, const float *inputs, int columns, float *to) {
  span s = {.w = (const char *)panel, .x = inputs, .columns = columns};
#if defined(__x86_64__)
  if (pg_level()) {
    wide_tile(&s, (sums *)to);
    return;
  }
#endif
  tile_plain(PG_F32, PG_TILE, &s, (sums *)to);
}

/* ---------------------------------------------------------------- panels and products */

INLINE int tile_rows(const pg_input *in, int tile) {
  int left = in->m - tile * PG_TILE;
  return left < PG_TILE ? left : PG_TILE;
}

/* Columns from `first` on of a panel and a tile of inputs. */
INLINE span span_of(const pg_input *in, const char *panel, int tile, int first, int columns) {
  int kind = in->kind, all = padded(kind, in->k), rows = tile_rows(in, tile);
  size_t unit = kind == PG_INT8 ? 2 : kind == PG_INT4 ? 1 : 4;
  span s = {.w = panel + panel_bytes(kind, (size_t)first), .columns = columns};
  s.x = (const char *)in->rows + ((size_t)tile * PG_TILE * all + (size_t)first * rows) * unit;
  if (kind == PG_INT4) {
    size_t at = (size_t)tile * PG_TILE * (all / GROUP) + (size_t)(first / GROUP) * rows;
    s.scale = in->scale + at;
    s.start = in->start + at;
  }
  return s;
}

/* The sums of a tile become outputs: scaled, with the bias, as far as the matrix has rows. */
static void finish(const pg_matrix *w, const pg_input *in, const float *bias, int panel, int tile,
                   const sums *a, float *y, size_t ldy) {
  int rows = tile_rows(in, tile), width = w->n - panel * 16 < 16 ? w->n - panel * 16 : 16;
  const float *own = has_row_scale(w->kind) ? w->scale + (size_t)panel * 16 : NULL;
  float factor = w->kind == PG_FP8 && pg_level() ? 256 : 1;
  for (int r = 0; r < rows; r++) {
    float out[16], *to = y + (size_t)r * ldy;
    for (int i = 0; i < 16; i++) {
      float v = a->f[r][i];
      if (w->kind == PG_INT8) v = (float)a->i[r][i] * (own[i] * in->scale[tile * PG_TILE + r]);
      else if (own) v *= own[i] * factor;
      out[i] = v;
    }
    if (bias)
      for (int i = 0; i < width; i++) out[i] += bias[panel * 16 + i];
    memcpy(to, out, (size_t)width * sizeof(float));
  }
}

static void panel_product(const pg_matrix *w, const pg_input *in, const float *bias, float *y,
                          size_t ldy, int panel) {
  int columns = padded(w->kind, w->k);
  const char *at = panel_of(w, panel);
  for (int tile = 0; tile * PG_TILE < in->m; tile++) {
    sums a;
    memset(&a, 0, sizeof a);
    span s = span_of(in, at, tile, 0, columns);
    run_tile(w->kind, tile_rows(in, tile), &s, &a);
    finish(w, in, bias, panel, tile, &a, y + (size_t)tile * PG_TILE * ldy, ldy);
  }
}

void pg_panel(const pg_matrix *w, const pg_input *in, float *y, size_t ldy, int panel) {
  panel_product(w, in, NULL, y, ldy, panel);
}

typedef struct {
  const pg_matrix *w;
  const float *x, *bias;
  float *y;
  size_t ldx, ldy;
  pg_input in;
  atomic_int next_row, next_unit;
  pg_event rows_ready;
} product;

/* Panels and tiles of a unit of work, and columns of one turn, so that the inputs of a turn stay in
   the second cache and its weights in the first. */
enum { UNIT_PANELS = 8, UNIT_TILES = 40 };
static int turn_columns(int kind) { return kind == PG_INT4 ? 1024 : kind == PG_INT8 ? 512 : 256; }

/* A unit of a product with many rows: columns are taken in turns, and partial sums wait between
   them in the memory of the thread. */
static void unit(const product *a, int first_panel, int first_tile, sums *waiting, float *wide) {
  const pg_matrix *w = a->w;
  int kind = w->kind, columns = padded(kind, w->k), panels = (w->n + 15) / 16;
  int tiles = (a->in.m + PG_TILE - 1) / PG_TILE;
  int last_panel = first_panel + UNIT_PANELS < panels ? first_panel + UNIT_PANELS : panels;
  int last_tile = first_tile + UNIT_TILES < tiles ? first_tile + UNIT_TILES : tiles;
  int step = turn_columns(kind);
  int widens = 0;
#if defined(__x86_64__)
  widens = pg_level() && is_float(kind) && kind != PG_F32;
#endif
  memset(waiting, 0, sizeof(sums) * UNIT_PANELS * UNIT_TILES);
  for (int first = 0; first < columns; first += step) {
    int num = columns - first < step ? columns - first : step;
    for (int panel = first_panel; panel < last_panel; panel++) {
      const char *at = panel_of(w, panel);
      sums *own = waiting + (panel - first_panel) * UNIT_TILES;
#if defined(__x86_64__)
      if (widens) widen(kind, at + panel_bytes(kind, (size_t)first), num, wide);
#endif
      for (int tile = first_tile; tile < last_tile; tile++) {
        span s = span_of(&a->in, at, tile, first, num);
        int rows = tile_rows(&a->in, tile);
        if (widens) s.w = (const char *)wide;
#if defined(__x86_64__)
        if (rows == PG_TILE && (widens || (kind == PG_F32 && pg_level()))) {
          wide_tile(&s, own + tile - first_tile);
          continue;
        }
#endif
        run_tile(widens ? PG_F32 : kind, rows, &s, own + tile - first_tile);
      }
    }
  }
  for (int panel = first_panel; panel < last_panel; panel++)
    for (int tile = first_tile; tile < last_tile; tile++)
      finish(w, &a->in, a->bias, panel, tile,
             waiting + (panel - first_panel) * UNIT_TILES + tile - first_tile,
             a->y + (size_t)tile * PG_TILE * a->ldy + panel * 16, a->ldy);
}

int pg_panels_at_once(const pg_matrix *w, int num_panels, int team) {
  int count = (int)(TILE_BYTES / pg_panel_bytes(w->kind, w->k)), most = num_panels / (4 * team);
  count = count < most ? count : most;
  return count > 1 ? count : 1;
}

static void product_job(void *p, int thread, int team) {
  product *a = p;
  const pg_matrix *w = a->w;
  int m = a->in.m, panels = (w->n + 15) / 16, at;
  int turn = m < MANY_ROWS ? 1 : PG_TILE; /* rows of a tile share lines of the cache */
  (void)thread;
  while ((at = atomic_fetch_add(&a->next_row, turn)) < m) {
    int last = at + turn < m ? at + turn : m;
    for (int row = at; row < last; row++)
      pg_input_row(&a->in, row, a->x + (size_t)row * a->ldx);
    pg_advance(&a->rows_ready, last - at, m);
  }
  pg_await(&a->rows_ready, m);
  if (m < MANY_ROWS) {
    int step = pg_panels_at_once(w, panels, team);
    while ((at = atomic_fetch_add(&a->next_unit, step)) < panels)
      for (int panel = at; panel < at + step && panel < panels; panel++)
        panel_product(w, &a->in, a->bias, a->y + panel * 16, a->ldy, panel);
    return;
  }
  int tiles = (m + PG_TILE - 1) / PG_TILE, across = (panels + UNIT_PANELS - 1) / UNIT_PANELS;
  int units = across * ((tiles + UNIT_TILES - 1) / UNIT_TILES);
  size_t held = sizeof(sums) * UNIT_PANELS * UNIT_TILES;
  char *memory = aligned_alloc(64, held + 256 * 16 * sizeof(float));
  if (!memory) abort();
  while ((at = atomic_fetch_add(&a->next_unit, 1)) < units)
    unit(a, at % across * UNIT_PANELS, at / across * UNIT_TILES, (sums *)memory,
         (float *)(memory + held));
  free(memory);
}

/* y[m, n] = x[m, k] w^T + bias, all float32; `bias` may be NULL. */
void pg_multiply(const pg_matrix *w, const float *x, size_t ldx, const float *bias, float *y,
                 size_t ldy, int m) {
  product a = {.w = w, .x = x, .bias = bias, .y = y, .ldx = ldx, .ldy = ldy};
  pg_input_place(&a.in, pg_scratch(pg_input_bytes(w->kind, m, w->k)), w->kind, m, w->k);
  pg_run(product_job, &a);
}
