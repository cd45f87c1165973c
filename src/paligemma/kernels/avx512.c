/* AVX-512 with VNNI: a vector holds the 16 outputs. int8 sums pairs of columns (vpdpwssd), int4 sums
   four (vpdpbusd), without a stop at 16 bits; inputs are broadcast from memory by the products. */
#include "level.h"
#include "vectors.h"
#if defined(__x86_64__)

/* The sum so far stays in its register: gcc would otherwise copy sums. */
#define KEEP(vector) __asm__("" : IN_ZMM(vector))

INLINE void prefetch(const char *w, int bytes) {
  for (int at = 0; at < bytes; at += 64) _mm_prefetch(w + PREFETCH + at, _MM_HINT_T0);
}

/* Numbers of a tile's inputs that every output multiplies. */
AVX512 INLINE __m512i four_bytes(const void *x) {
  int32_t four;
  memcpy(&four, x, 4);
  return _mm512_set1_epi32(four);
}

AVX512 INLINE __m512 halves(const char *p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

/* 2^-8 of 16 e4m3 numbers, by way of half precision; the scale of the row holds the rest. */
AVX512 INLINE __m512 e4m3_values(const char *w) {
  __m256i v = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)w));
  __m256i sign = _mm256_and_si256(v, _mm256_set1_epi16((short)0x8000));
  __m256i rest = _mm256_and_si256(_mm256_slli_epi16(v, 7), _mm256_set1_epi16(0x3f80));
  return _mm512_cvtph_ps(_mm256_or_si256(sign, rest));
}

/* Two neighbouring columns of a float panel, as float; `scale` is that of a block of PG_NF4. */
AVX512 INLINE void two_columns(int kind, const char *w, __m512 scale, __m512 *even, __m512 *odd) {
  if (kind == PG_F32) {
    *even = _mm512_loadu_ps((const float *)w);
    *odd = _mm512_loadu_ps((const float *)w + 16);
  } else if (kind == PG_BF16) {
    __m512i both = _mm512_loadu_si512(w);
    *even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    *odd = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000)));
  } else if (kind == PG_FP8) {
    *even = e4m3_values(w);
    *odd = e4m3_values(w + 16);
  } else { /* the permutation looks at four bits only */
    __m512 values = _mm512_loadu_ps(NF4);
    __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)w));
    *even = _mm512_mul_ps(_mm512_permutexvar_ps(codes, values), scale);
    *odd = _mm512_mul_ps(_mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4), values), scale);
  }
}

/* Columns that share a scale, all where they have none; what they take, and where the next begin. */
INLINE int run_of(int kind, int columns) { return kind == PG_NF4 ? BLOCK : columns; }
INLINE size_t pair_bytes(int kind) { return kind == PG_NF4 ? 16 : panel_bytes(kind, 2); }
INLINE size_t bytes_after(int kind) { return kind == PG_NF4 ? 32 : 0; }
AVX512 INLINE __m512 scale_of(int kind, const char *w) {
  return kind == PG_NF4 ? halves(w + BLOCK * 8) : _mm512_set1_ps(1);
}

AVX512 INLINE void tile_float(int kind, const int m, int is_far, const span *s, sums *a) {
  __m512 sum[PG_TILE];
  UNROLL for (int r = 0; r < m; r++) sum[r] = _mm512_loadu_ps(a->f[r]);
  const char *w = s->w;
  const float *x = s->x;
  int run = run_of(kind, s->columns), odd_one = s->columns % 2;
  for (int first = 0; first < s->columns; first += run, w += bytes_after(kind)) {
    __m512 scale = scale_of(kind, w);
    for (int c = 0; c < run - odd_one; c += 2, w += pair_bytes(kind), x += 2 * m) {
      __m512 even, odd;
      if (is_far) prefetch(w, (int)pair_bytes(kind));
      two_columns(kind, w, scale, &even, &odd);
      UNROLL for (int r = 0; r < m; r++) sum[r] = _mm512_fmadd_ps(even, _mm512_set1_ps(x[r]), sum[r]);
      UNROLL for (int r = 0; r < m; r++)
        sum[r] = _mm512_fmadd_ps(odd, _mm512_set1_ps(x[m + r]), sum[r]);
    }
  }
  if (kind == PG_F32 && odd_one)
    UNROLL for (int r = 0; r < m; r++)
      sum[r] = _mm512_fmadd_ps(_mm512_loadu_ps((const float *)w), _mm512_set1_ps(x[r]), sum[r]);
  UNROLL for (int r = 0; r < m; r++) _mm512_storeu_ps(a->f[r], sum[r]);
}

/* Sums of two panels for up to four rows, or of four for two: a sum waits four cycles for the one before it. */
AVX512 INLINE void tiles_float(int kind, const int m, const int count, const span *s, sums *a) {
  enum { PANELS = 4, ROWS = 4 };
  __m512 sum[PANELS][ROWS], scale[PANELS];
  const char *w[PANELS];
  const float *x = s->x;
  int run = run_of(kind, s->columns), odd_one = s->columns % 2;
  UNROLL for (int j = 0; j < count; j++) {
    w[j] = s[j].w;
    UNROLL for (int r = 0; r < m; r++) sum[j][r] = _mm512_loadu_ps(a[j].f[r]);
  }
  for (int first = 0; first < s->columns; first += run) {
    UNROLL for (int j = 0; j < count; j++) scale[j] = scale_of(kind, w[j]);
    for (int c = 0; c < run - odd_one; c += 2, x += 2 * m) {
      UNROLL for (int j = 0; j < count; j++) {
        __m512 even, odd;
        prefetch(w[j], (int)pair_bytes(kind));
        two_columns(kind, w[j], scale[j], &even, &odd);
        UNROLL for (int r = 0; r < m; r++) {
          sum[j][r] = _mm512_fmadd_ps(even, _mm512_set1_ps(x[r]), sum[j][r]);
          sum[j][r] = _mm512_fmadd_ps(odd, _mm512_set1_ps(x[m + r]), sum[j][r]);
        }
        w[j] += pair_bytes(kind);
      }
    }
    UNROLL for (int j = 0; j < count; j++) w[j] += bytes_after(kind);
  }
  UNROLL for (int j = 0; j < count; j++) UNROLL for (int r = 0; r < m; r++) {
      if (kind == PG_F32 && odd_one)
        sum[j][r] = _mm512_fmadd_ps(_mm512_loadu_ps((const float *)w[j]), _mm512_set1_ps(x[r]), sum[j][r]);
      _mm512_storeu_ps(a[j].f[r], sum[j][r]);
    }
}

AVX512 INLINE void tiles_of_kind(int kind, int rows, int count, const span *s, sums *a) {
  if (rows == 1 && count == 4) tiles_float(kind, 1, 4, s, a);
  else if (rows == 1) tiles_float(kind, 1, 2, s, a);
  else if (count == 4) tiles_float(kind, 2, 4, s, a);
  else if (rows == 2) tiles_float(kind, 2, 2, s, a);
  else if (rows == 3) tiles_float(kind, 3, 2, s, a);
  else tiles_float(kind, 4, 2, s, a);
}

AVX512 static void avx512_tiles(int kind, int rows, int count, const span *s, sums *a) {
  if (kind == PG_F32) tiles_of_kind(PG_F32, rows, count, s, a);
  else if (kind == PG_BF16) tiles_of_kind(PG_BF16, rows, count, s, a);
  else if (kind == PG_FP8) tiles_of_kind(PG_FP8, rows, count, s, a);
  else tiles_of_kind(PG_NF4, rows, count, s, a);
}

AVX512 static void avx512_wide(const span *s, sums *a) { tile_float(PG_F32, PG_TILE, 0, s, a); }

/* Six chains of sums are fewer than wait for each other; twelve also share the broadcast inputs. */
AVX512 static void avx512_two_wide(const span *s, const char *second, sums *a, sums *b) {
  __m512 low[PG_TILE], high[PG_TILE];
  UNROLL for (int r = 0; r < PG_TILE; r++) {
    low[r] = _mm512_loadu_ps(a->f[r]);
    high[r] = _mm512_loadu_ps(b->f[r]);
  }
  const float *w = (const float *)s->w, *v = (const float *)second, *x = s->x;
  for (int c = 0; c < s->columns; c++, w += 16, v += 16, x += PG_TILE) {
    __m512 one = _mm512_loadu_ps(w), two = _mm512_loadu_ps(v);
    UNROLL for (int r = 0; r < PG_TILE; r++) {
      __m512 input = _mm512_set1_ps(x[r]);
      low[r] = _mm512_fmadd_ps(one, input, low[r]);
      high[r] = _mm512_fmadd_ps(two, input, high[r]);
    }
  }
  UNROLL for (int r = 0; r < PG_TILE; r++) {
    _mm512_storeu_ps(a->f[r], low[r]);
    _mm512_storeu_ps(b->f[r], high[r]);
  }
}

AVX512 INLINE void widen_kind(int kind, const char *w, int columns, float *out) {
  int run = run_of(kind, columns);
  for (int first = 0; first < columns; first += run, w += bytes_after(kind)) {
    __m512 scale = scale_of(kind, w);
    for (int c = 0; c < run; c += 2, w += pair_bytes(kind), out += 32) {
      __m512 even, odd;
      two_columns(kind, w, scale, &even, &odd);
      _mm512_storeu_ps(out, even);
      _mm512_storeu_ps(out + 16, odd);
    }
  }
}

AVX512 static void widen(int kind, const char *w, int columns, float *out) {
  if (kind == PG_BF16) widen_kind(PG_BF16, w, columns, out);
  else if (kind == PG_FP8) widen_kind(PG_FP8, w, columns, out);
  else widen_kind(PG_NF4, w, columns, out);
}

/* Few rows have several sums of an output, so that products need not wait for each other. */
AVX512 INLINE void tile_int8(const int m, const span *s, sums *a) {
  enum { MOST = 4 };
  const int chains = m < 4 ? MOST : 2;
  __m512i sum[MOST][PG_TILE];
  UNROLL for (int r = 0; r < m; r++) {
    sum[0][r] = _mm512_loadu_si512(a->i[r]);
    UNROLL for (int j = 1; j < chains; j++) sum[j][r] = _mm512_setzero_si512();
  }
  const char *w = s->w;
  const int16_t *x = s->x;
  int c = 0;
  for (; c + 2 * chains <= s->columns; c += 2 * chains) {
    prefetch(w, 32 * chains);
    UNROLL for (int j = 0; j < chains; j++, w += 32, x += 2 * m) {
      __m512i pairs = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)w));
      UNROLL for (int r = 0; r < m; r++) {
        sum[j][r] = _mm512_dpwssd_epi32(sum[j][r], pairs, four_bytes(x + 2 * r));
        KEEP(sum[j][r]);
      }
    }
  }
  for (; c < s->columns; c += 2, w += 32, x += 2 * m) {
    __m512i pairs = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)w));
    UNROLL for (int r = 0; r < m; r++)
      sum[0][r] = _mm512_dpwssd_epi32(sum[0][r], pairs, four_bytes(x + 2 * r));
  }
  UNROLL for (int r = 0; r < m; r++) {
    UNROLL for (int j = 1; j < chains; j++) sum[0][r] = _mm512_add_epi32(sum[0][r], sum[j][r]);
    _mm512_storeu_si512(a->i[r], sum[0][r]);
  }
}

/* Codes 0..15 times int8 inputs; both halves of the start belong to the same 32 bits here. */
AVX512 INLINE void tile_int4(const int m, const span *s, sums *a) {
  const __m512i four_bits = _mm512_set1_epi8(15), one = _mm512_set1_epi16(1);
  const char *w = s->w;
  const int8_t *x = s->x;
  const int32_t *start = s->start;
  const float *scale = s->scale;
  __m512 sum[PG_TILE];
  UNROLL for (int r = 0; r < m; r++) sum[r] = _mm512_loadu_ps(a->f[r]);
  for (int c = 0; c < s->columns; c += GROUP, w += 288, x += GROUP * m, start += m, scale += m) {
    __m512i low[PG_TILE], high[PG_TILE];
    prefetch(w, 288);
    UNROLL for (int r = 0; r < m; r++) {
      low[r] = _mm512_dpwssd_epi32(_mm512_setzero_si512(), one, four_bytes(start + r));
      high[r] = _mm512_setzero_si512();
    }
    UNROLL for (int q = 0; q < 4; q++) {
      __m512i codes = _mm512_loadu_si512(w + q * 64);
      __m512i first = _mm512_and_si512(codes, four_bits);
      __m512i second = _mm512_and_si512(_mm512_srli_epi16(codes, 4), four_bits);
      UNROLL for (int r = 0; r < m; r++) {
        low[r] = _mm512_dpbusd_epi32(low[r], first, four_bytes(x + (q * m + r) * 4));
        high[r] = _mm512_dpbusd_epi32(high[r], second, four_bytes(x + ((4 + q) * m + r) * 4));
      }
    }
    __m512 own = halves(w + 256);
    UNROLL for (int r = 0; r < m; r++) {
      __m512 total = _mm512_cvtepi32_ps(_mm512_add_epi32(low[r], high[r]));
      sum[r] = _mm512_fmadd_ps(total, _mm512_mul_ps(own, _mm512_set1_ps(scale[r])), sum[r]);
    }
  }
  UNROLL for (int r = 0; r < m; r++) _mm512_storeu_ps(a->f[r], sum[r]);
}

FOR_ROWS(AVX512, avx512_f32, tile_float(PG_F32, m, 1, s, a))
FOR_ROWS(AVX512, avx512_bf16, tile_float(PG_BF16, m, 1, s, a))
FOR_ROWS(AVX512, avx512_fp8, tile_float(PG_FP8, m, 1, s, a))
FOR_ROWS(AVX512, avx512_int8, tile_int8(m, s, a))
FOR_ROWS(AVX512, avx512_int4, tile_int4(m, s, a))
FOR_ROWS(AVX512, avx512_nf4, tile_float(PG_NF4, m, 1, s, a))

/* ---------------------------------------------------------------- what the processor could do */

#define FLOATS(sum, w, x) _mm512_fmadd_ps(w, x, sum)
PEAK(AVX512, IN_ZMM, peak_of_floats, __m512, _mm512_set1_ps, FLOATS)
PEAK(AVX512, IN_ZMM, peak_of_bytes, __m512i, _mm512_set1_epi8, _mm512_dpbusd_epi32)
PEAK(AVX512, IN_ZMM, peak_of_words, __m512i, _mm512_set1_epi16, _mm512_dpwssd_epi32)

static int peak(int integers, long turns) {
  (integers == 8 ? peak_of_bytes : integers ? peak_of_words : peak_of_floats)(turns);
  return 10 * (integers == 8 ? 128 : integers ? 64 : 32);
}

static void tile(int kind, int rows, const span *s, sums *a) {
  static const tiles_by_rows TILES = {
      ROWS_OF(avx512_f32),  ROWS_OF(avx512_bf16), ROWS_OF(avx512_fp8),
      ROWS_OF(avx512_int8), ROWS_OF(avx512_int4), ROWS_OF(avx512_nf4)};
  TILES[kind][rows - 1](s, a);
}

const level pg_avx512 = {.name = "AVX-512",
                         .tile = tile,
                         .tiles = avx512_tiles,
                         .most_rows = 4,
                         .wide_tile = avx512_wide,
                         .two_wide_tiles = avx512_two_wide,
                         .widen = widen,
                         .int8_row = pg_avx2_int8_row,
                         .int4_row = pg_avx2_int4_row,
                         .peak = peak};
#endif
