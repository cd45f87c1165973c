/* Rows of float32 or bfloat16 into panels and back; kernels.h has the layouts.

   CHUNK columns of the 16 rows of a panel at a time are widened to float, turned so that a vector
   holds one column of eight rows, and encoded so: the arithmetic of a row never leaves its lane. Sums
   run from column to column, without fused multiplications, so that every level of the processor and
   panels.py write the same bytes. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC optimize("fp-contract=off")
#endif
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "panels.h"
#include "vectors.h"

enum { CHUNK = 64 };

typedef struct {
  const pg_matrix *w;
  const void *rows; /* source, or target of unpacking */
  size_t ld;
  int is_bf16, first, last; /* the source's numbers; rows to unpack */
  atomic_int next;
} packing;

/* The scale of each row of a panel, and its inverse: 0 for zeros and what is as small. */
static void row_scales(const packing *a, int panel, float *scale, float *inverse) {
  const pg_matrix *w = a->w;
  for (int r = 0; r < PG_PANEL; r++) {
    size_t at = (size_t)(panel * PG_PANEL + r) * a->ld;
    int32_t largest = 0; /* magnitudes are ordered as their bits are */
    if (panel * PG_PANEL + r >= w->n) at = 0;
    else if (a->is_bf16) {
      const uint16_t *row = (const uint16_t *)a->rows + at;
      int16_t most = 0;
      for (int c = 0; c < w->k; c++) {
        int16_t bits = (int16_t)(row[c] & 0x7fff);
        most = bits > most ? bits : most;
      }
      largest = (int32_t)most << 16;
    } else {
      const char *row = (const char *)((const float *)a->rows + at);
      for (int c = 0; c < w->k; c++) {
        int32_t bits;
        memcpy(&bits, row + 4 * (size_t)c, 4);
        bits &= 0x7fffffff;
        largest = bits > largest ? bits : largest;
      }
    }
    scale[r] = from_bits((uint32_t)largest) / (w->kind == PG_INT8 ? 127 : 448);
    inverse[r] = largest > 0 ? 1 / scale[r] : 0;
    if (!isfinite(inverse[r])) scale[r] = inverse[r] = 0;
  }
}

#define LEVEL(name) plain_##name
#define TARGET
#define WIDEN(p) __builtin_convertvector(*(const u16x8_anywhere *)(p), u8)
#define BYTES(v) __builtin_convertvector(v, u8x8)
#define SMALLER(a, b) LEVEL(choose)((a) < (b), a, b)
#define LARGER(a, b) LEVEL(choose)((a) > (b), a, b)
#include "pack_level.h"
#undef LEVEL
#undef TARGET
#undef WIDEN
#undef BYTES
#undef SMALLER
#undef LARGER

#if defined(__x86_64__)
#define LEVEL(name) avx2_##name
#define TARGET AVX2
#define WIDEN(p) ((u8)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p))))
AVX2 static inline u8x8 avx2_bytes(u8 v) {
  __m128i words = _mm_packus_epi32(_mm256_castsi256_si128((__m256i)v),
                                   _mm256_extracti128_si256((__m256i)v, 1));
  return (u8x8)_mm_cvtsi128_si64(_mm_packus_epi16(words, words));
}
#define BYTES(v) avx2_bytes(v)
#define SMALLER(a, b) (f8) _mm256_min_ps((__m256)(a), (__m256)(b))
#define LARGER(a, b) (f8) _mm256_max_ps((__m256)(a), (__m256)(b))
#include "pack_level.h"
#endif

static void pack_job(void *p, int thread, int team) {
  packing *a = p;
  const pg_matrix *w = a->w;
  int num_panels = (w->n + PG_PANEL - 1) / PG_PANEL, panel;
  (void)thread, (void)team;
  while ((panel = atomic_fetch_add(&a->next, 1)) < num_panels) {
    float inverse[PG_PANEL] = {0};
    if (has_row_scale(w->kind))
      row_scales(a, panel, (float *)w->scale + (size_t)panel * PG_PANEL, inverse);
#if defined(__x86_64__)
    if (pg_level()) {
      avx2_pack_panel(a, panel, inverse);
      continue;
    }
#endif
    plain_pack_panel(a, panel, inverse);
  }
}

void pg_pack(const pg_matrix *w, const void *rows, size_t ld, int is_bf16) {
  packing a = {.w = w, .rows = rows, .ld = ld, .is_bf16 = is_bf16};
  pg_run(pack_job, &a);
}

/* One row of a panel as float. */
static void unpack_row(int kind, const char *panel, int row, float scale, int columns, float *out) {
  for (int c = 0; c < columns; c++) {
    const uint8_t *u8 = (const uint8_t *)panel;
    uint16_t half;
    switch (kind) {
      case PG_F32: out[c] = ((const float *)panel)[c * 16 + row]; break;
      case PG_BF16:
        out[c] = from_bf16(((const uint16_t *)panel)[(c / 2) * 32 + row * 2 + c % 2]);
        break;
      case PG_FP8: out[c] = from_e4m3(u8[c * 16 + row]) * scale; break;
      case PG_INT8:
        out[c] = ((const int8_t *)panel)[(c / 2) * 32 + row * 2 + c % 2] * scale;
        break;
      case PG_INT4: {
        const uint8_t *codes = u8 + (size_t)(c / GROUP) * 288;
        int in = c % GROUP, byte = codes[(in % 16 / 4) * 64 + row * 4 + in % 4];
        memcpy(&half, codes + 256 + 2 * row, 2);
        out[c] = (float)((in < 16 ? byte & 15 : byte >> 4) - 8) * from_half(half);
        break;
      }
      default: {
        const uint8_t *codes = u8 + (size_t)(c / BLOCK) * (BLOCK * 8 + 32);
        int in = c % BLOCK, byte = codes[(in / 2) * 16 + row];
        memcpy(&half, codes + BLOCK * 8 + 2 * row, 2);
        out[c] = NF4[in % 2 ? byte >> 4 : byte & 15] * from_half(half);
      }
    }
  }
}

static void unpack_job(void *p, int thread, int team) {
  packing *a = p;
  const pg_matrix *w = a->w;
  int columns = padded(w->kind, w->k), step;
  float *row = malloc((size_t)columns * sizeof(float));
  if (!row) abort();
  (void)thread, (void)team;
  while ((step = atomic_fetch_add(&a->next, 16)) < a->last - a->first)
    for (int i = step; i < step + 16 && i < a->last - a->first; i++) {
      int n = a->first + i;
      float s = 1;
      if (has_row_scale(w->kind)) s = w->scale[n];
      unpack_row(w->kind, panel_of(w, n / 16), n % 16, s, columns, row);
      memcpy((float *)a->rows + (size_t)i * w->k, row, (size_t)w->k * sizeof(float));
    }
  free(row);
}

void pg_unpack(const pg_matrix *w, int first, int last, float *rows) {
  packing a = {.w = w, .rows = rows, .first = first, .last = last};
  if (last - first <= 16) unpack_job(&a, 0, 1);
  else pg_run(unpack_job, &a);
}

/* Rows by their numbers; they are few, so that one thread is enough. */
void pg_unpack_rows(const pg_matrix *w, const int64_t *numbers, int count, float *rows) {
  for (int i = 0; i < count; i++) {
    int n = (int)numbers[i];
    packing a = {.w = w, .rows = rows + (size_t)i * w->k, .first = n, .last = n + 1};
    unpack_job(&a, 0, 1);
  }
}
