/* AVX2: int8 multiplies through int16 (madd), int4 through unsigned by signed bytes (maddubs). */
#include "inputs.h"
#include "vectors.h"
#if defined(__x86_64__)

/* The sum so far stays in its register: gcc would otherwise regroup sums and spill them. */
#define KEEP(vector) __asm__("" : "+x"(vector))

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

AVX2 void pg_avx2_int8_row(pg_input *in, int row, const float *x) {
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

AVX2 void pg_avx2_int4_row(pg_input *in, int row, const float *x) {
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
AVX2 static void avx2_wide(const span *s, sums *a) {
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
AVX2 static void avx2_widen(int kind, const char *w, int columns, float *out) {
  if (kind == PG_NF4) {
    __m256 low = _mm256_loadu_ps(NF4), high = _mm256_loadu_ps(NF4 + 8);
    for (unsigned c = 0; c < (unsigned)columns; c += 2) {
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
    avx2_widen(PG_NF4, s->w + panel_bytes(PG_NF4, (size_t)c), BLOCK, wide);
    tile_float(PG_F32, m, &part, a);
  }
}

/* Sums of two panels for one or two rows, or of four for one: a sum waits four cycles for the one
   before it. */
AVX2 INLINE void tiles_float(int kind, const int m, const int count, const span *s, sums *a) {
  enum { PANELS = 4, ROWS = 2 };
  __m256 sum[PANELS][2][ROWS];
  const char *w[PANELS];
  const float *x = s->x;
  const size_t step = panel_bytes(kind, 2);
  UNROLL for (int j = 0; j < count; j++) {
    w[j] = s[j].w;
    UNROLL for (int r = 0; r < m; r++)
      UNROLL for (int h = 0; h < 2; h++) sum[j][h][r] = _mm256_loadu_ps(&a[j].f[r][8 * h]);
  }
  for (int c = 0; c < s->columns; c += 2, x += 2 * m)
    UNROLL for (int j = 0; j < count; j++) {
      _mm_prefetch(w[j] + PREFETCH, _MM_HINT_T0);
      if (kind == PG_F32) _mm_prefetch(w[j] + PREFETCH + 64, _MM_HINT_T0);
      UNROLL for (int h = 0; h < 2; h++) {
        __m256 even, odd;
        two_columns(kind, w[j], h, &even, &odd);
        UNROLL for (int r = 0; r < m; r++) {
          sum[j][h][r] = _mm256_fmadd_ps(even, _mm256_broadcast_ss(x + r), sum[j][h][r]);
          sum[j][h][r] = _mm256_fmadd_ps(odd, _mm256_broadcast_ss(x + m + r), sum[j][h][r]);
          KEEP(sum[j][h][r]);
        }
      }
      w[j] += step;
    }
  UNROLL for (int j = 0; j < count; j++)
    UNROLL for (int r = 0; r < m; r++)
      UNROLL for (int h = 0; h < 2; h++) _mm256_storeu_ps(&a[j].f[r][8 * h], sum[j][h][r]);
}

AVX2 INLINE void tiles_of_kind(int kind, int rows, int count, const span *s, sums *a) {
  if (rows == 1 && count == 4) tiles_float(kind, 1, 4, s, a);
  else if (rows == 1) tiles_float(kind, 1, 2, s, a);
  else
    for (int j = 0; j < count; j += 2) tiles_float(kind, 2, 2, s + j, a + j);
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

FOR_ROWS(AVX2, avx2_f32, tile_float(PG_F32, m, s, a))
FOR_ROWS(AVX2, avx2_bf16, tile_float(PG_BF16, m, s, a))
FOR_ROWS(AVX2, avx2_fp8, tile_float(PG_FP8, m, s, a))
FOR_ROWS(AVX2, avx2_int8, tile_int8(m, s, a))
FOR_ROWS(AVX2, avx2_int4, tile_int4(m, s, a))
FOR_ROWS(AVX2, avx2_nf4, tile_nf4(m, s, a))

/* ---------------------------------------------------------------- what the processor could do */

#define FLOATS(sum, w, x) _mm256_fmadd_ps(w, x, sum)
#define BYTES(sum, w, x) _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x))
#define WORDS(sum, w, x) _mm256_add_epi32(sum, _mm256_madd_epi16(w, x))
PEAK(AVX2, "+x", peak_of_floats, __m256, _mm256_set1_ps, FLOATS)
PEAK(AVX2, "+x", peak_of_bytes, __m256i, _mm256_set1_epi8, BYTES)
PEAK(AVX2, "+x", peak_of_words, __m256i, _mm256_set1_epi16, WORDS)

static int peak(int integers, long turns) {
  (integers == 8 ? peak_of_bytes : integers ? peak_of_words : peak_of_floats)(turns);
  return 10 * (integers == 8 ? 64 : integers ? 32 : 16);
}

static void tile(int kind, int rows, const span *s, sums *a) {
  static const tiles_by_rows TILES = {ROWS_OF(avx2_f32),  ROWS_OF(avx2_bf16), ROWS_OF(avx2_fp8),
                                      ROWS_OF(avx2_int8), ROWS_OF(avx2_int4), ROWS_OF(avx2_nf4)};
  TILES[kind][rows - 1](s, a);
}

AVX2 static void avx2_tiles(int kind, int rows, int count, const span *s, sums *a) {
  if (kind == PG_F32) tiles_of_kind(PG_F32, rows, count, s, a);
  else if (kind == PG_BF16) tiles_of_kind(PG_BF16, rows, count, s, a);
  else /* e4m3 and NF4 are widened longer than a sum waits */
    for (int j = 0; j < count; j++) tile(kind, rows, s + j, a + j);
}

const level pg_avx2 = {.name = "AVX2",
                       .tile = tile,
                       .tiles = avx2_tiles,
                       .most_rows = 2,
                       .wide_tile = avx2_wide,
                       .widen = avx2_widen,
                       .int8_row = pg_avx2_int8_row,
                       .int4_row = pg_avx2_int4_row,
                       .peak = peak};
#endif
