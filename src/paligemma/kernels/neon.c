/* NEON with dot products: int4 sums four columns (sdot); int8 multiplies through int16 (smlal). */
#include "inputs.h"
#if defined(HAS_NEON)
#include <arm_neon.h>
#if defined(__clang__)
#define NEON __attribute__((target("dotprod")))
#else
#define NEON __attribute__((target("arch=armv8.2-a+dotprod")))
#endif

/* The sum so far stays in its register: gcc would otherwise load ahead, and spill sums for it. */
#define KEEP(vector) __asm__("" : "+w"(vector))

INLINE void prefetch(const char *w, int bytes) {
  for (int at = 0; at < bytes; at += 64) __builtin_prefetch(w + PREFETCH + at);
}

/* ---------------------------------------------------------------- inputs */

/* NaN if there is one: the instruction keeps it. */
INLINE float largest_by_fours(const float *x, int k) {
  float32x4_t most = vdupq_n_f32(0);
  int c = 0;
  for (; c + 4 <= k; c += 4) most = vmaxq_f32(most, vabsq_f32(vld1q_f32(x + c)));
  float own = vmaxvq_f32(most), rest = largest_of(x + c, k - c);
  return own > rest || own != own ? own : rest;
}

/* Sixteen-bit integers of eight numbers. */
INLINE int16x8_t rounded(const float *x, float inverse) {
  int32x4_t low = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x), inverse));
  int32x4_t high = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 4), inverse));
  return vcombine_s16(vqmovn_s32(low), vqmovn_s32(high));
}

static void int8_row(pg_input *in, int row, const float *x) {
  place p = place_of(in, row);
  float largest = largest_by_fours(x, in->k), limit = int8_limit(p.columns);
  float inverse = largest > 0 ? limit / largest : 0;
  in->scale[row] = largest / limit;
  int32_t *to = (int32_t *)((int16_t *)in->rows + p.at) + row % PG_TILE, pairs[4];
  int c = 0;
  for (; c + 8 <= in->k; c += 8) {
    vst1q_s32(pairs, vreinterpretq_s32_s16(rounded(x + c, inverse)));
    UNROLL for (int i = 0; i < 4; i++, to += p.rows) *to = pairs[i];
  }
  int8_columns(in, row, x, inverse, c);
}

static void int4_row(pg_input *in, int row, const float *x) {
  place p = place_of(in, row);
  int groups = p.columns / GROUP, r = row % PG_TILE, whole = in->k / GROUP;
  int32_t *to = (int32_t *)((int8_t *)in->rows + p.at) + r, quads[4];
  float *scale = in->scale + p.tile * groups + r;
  int16_t *start = (int16_t *)(in->start + p.tile * groups + r);
  for (int g = 0; g < whole; g++, scale += p.rows, start += 2 * p.rows) {
    float largest = largest_by_fours(x + g * GROUP, GROUP), inverse = largest > 0 ? 127 / largest : 0;
    int32x4_t sum = vdupq_n_s32(0); /* of columns 0..3 of every four: two of each half */
    for (int half = 0; half < 2; half++) {
      const float *from = x + g * GROUP + half * 16;
      int16x8_t low = rounded(from, inverse), high = rounded(from + 8, inverse);
      sum = vaddq_s32(sum, vpaddlq_s16(vaddq_s16(low, high)));
      vst1q_s32(quads, vreinterpretq_s32_s8(vcombine_s8(vqmovn_s16(low), vqmovn_s16(high))));
      UNROLL for (int i = 0; i < 4; i++, to += p.rows) *to = quads[i];
    }
    *scale = largest / 127;
    start[0] = (int16_t)(-8 * (vgetq_lane_s32(sum, 0) + vgetq_lane_s32(sum, 2)));
    start[1] = (int16_t)(-8 * (vgetq_lane_s32(sum, 1) + vgetq_lane_s32(sum, 3)));
  }
  int4_groups(in, row, x, whole);
}

/* ---------------------------------------------------------------- tiles */

INLINE float32x4_t half_values(uint16x4_t bits) {
  return vcvt_f32_f16(vreinterpret_f16_u16(bits));
}

/* One of two neighbouring columns (0 or 1) of a float panel, as float: four vectors of four rows. */
INLINE void column(int kind, const char *w, int which, float32x4_t out[4]) {
  if (kind == PG_F32) {
    UNROLL for (int i = 0; i < 4; i++) out[i] = vld1q_f32((const float *)w + 16 * which + 4 * i);
  } else if (kind == PG_BF16) {
    UNROLL for (int i = 0; i < 4; i++) {
      uint32x4_t both = vreinterpretq_u32_u8(vld1q_u8((const uint8_t *)w + 16 * i));
      both = which ? vandq_u32(both, vdupq_n_u32(0xffff0000)) : vshlq_n_u32(both, 16);
      out[i] = vreinterpretq_f32_u32(both);
    }
  } else { /* 2^-8 of e4m3, by way of half precision; the scale of the row holds the rest */
    int8x16_t bytes = vld1q_s8((const int8_t *)w + 16 * which);
    UNROLL for (int i = 0; i < 2; i++) {
      int16x8_t v = vmovl_s8(i ? vget_high_s8(bytes) : vget_low_s8(bytes));
      int16x8_t sign = vandq_s16(v, vdupq_n_s16((int16_t)0x8000));
      int16x8_t rest = vandq_s16(vshlq_n_s16(v, 7), vdupq_n_s16(0x3f80));
      uint16x8_t half = vreinterpretq_u16_s16(vorrq_s16(sign, rest));
      out[2 * i] = half_values(vget_low_u16(half));
      out[2 * i + 1] = half_values(vget_high_u16(half));
    }
  }
}

INLINE void tile_float(int kind, const int m, int is_far, const span *s, sums *a) {
  float32x4_t sum[PG_TILE][4], w[4];
  UNROLL for (int r = 0; r < m; r++)
    UNROLL for (int i = 0; i < 4; i++) sum[r][i] = vld1q_f32(&a->f[r][4 * i]);
  const char *at = s->w;
  const float *x = s->x;
  const size_t step = panel_bytes(kind, 2);
  for (int c = 0; c < s->columns; c += 2, at += step) {
    if (is_far) prefetch(at, (int)step);
    UNROLL for (int which = 0; which < 2; which++, x += m) {
      if (which && c + 1 == s->columns) break;
      column(kind, at, which, w);
      UNROLL for (int r = 0; r < m; r++) {
        float32x4_t input = vld1q_dup_f32(x + r);
        UNROLL for (int i = 0; i < 4; i++) {
          sum[r][i] = vfmaq_f32(sum[r][i], w[i], input);
          KEEP(sum[r][i]);
        }
        if (m > 4) IN_MEMORY();
      }
    }
  }
  UNROLL for (int r = 0; r < m; r++)
    UNROLL for (int i = 0; i < 4; i++) vst1q_f32(&a->f[r][4 * i], sum[r][i]);
}

static void neon_wide(const span *s, sums *a) { tile_float(PG_F32, PG_TILE, 0, s, a); }

/* NF4's values are looked up byte by byte: of the first bytes of the 16 values, of the second ... */
INLINE void nf4_values(uint8x16_t codes, uint8x16x4_t values, const float32x4_t *scale, float *out) {
  uint8x16x4_t found;
  UNROLL for (int i = 0; i < 4; i++) found.val[i] = vqtbl1q_u8(values.val[i], codes);
  vst4q_u8((uint8_t *)out, found);
  UNROLL for (int i = 0; i < 4; i++)
    vst1q_f32(out + 4 * i, vmulq_f32(vld1q_f32(out + 4 * i), scale[i]));
}

static void widen(int kind, const char *w, int columns, float *out) {
  if (kind == PG_NF4) {
    uint8x16x4_t values = vld4q_u8((const uint8_t *)NF4);
    for (int c = 0; c < columns; c += BLOCK, w += BLOCK * 8 + 32) {
      float32x4_t scale[4];
      for (int i = 0; i < 4; i++)
        scale[i] = half_values(vld1_u16((const uint16_t *)(w + BLOCK * 8) + 4 * i));
      for (int j = 0; j < BLOCK / 2; j++, out += 32) {
        uint8x16_t codes = vld1q_u8((const uint8_t *)w + 16 * j);
        nf4_values(vandq_u8(codes, vdupq_n_u8(15)), values, scale, out);
        nf4_values(vshrq_n_u8(codes, 4), values, scale, out + 16);
      }
    }
    return;
  }
  const size_t step = panel_bytes(kind, 2);
  for (int c = 0; c < columns; c += 2, w += step, out += 32)
    UNROLL for (int which = 0; which < 2; which++) {
      float32x4_t values[4];
      if (kind == PG_BF16) column(PG_BF16, w, which, values);
      else column(PG_FP8, w, which, values);
      UNROLL for (int i = 0; i < 4; i++) vst1q_f32(out + 16 * which + 4 * i, values[i]);
    }
}

INLINE void tile_nf4(const int m, const span *s, sums *a) {
  float wide[BLOCK * 16];
  for (int c = 0; c < s->columns; c += BLOCK) {
    const char *w = s->w + panel_bytes(PG_NF4, (size_t)c);
    span part = {.w = (const char *)wide, .x = (const float *)s->x + (size_t)c * m, .columns = BLOCK};
    prefetch(w, BLOCK * 8 + 32);
    widen(PG_NF4, w, BLOCK, wide);
    tile_float(PG_F32, m, 0, &part, a);
  }
}

INLINE void tile_int8(const int m, const span *s, sums *a) {
  int32x4_t sum[PG_TILE][4];
  UNROLL for (int r = 0; r < m; r++)
    UNROLL for (int i = 0; i < 4; i++) sum[r][i] = vld1q_s32(&a->i[r][4 * i]);
  const char *at = s->w;
  const int16_t *x = s->x;
  for (int c = 0; c < s->columns; c += 2, at += 32, x += 2 * m) {
    prefetch(at, 32);
    int8x16x2_t w = vld2q_s8((const int8_t *)at);
    UNROLL for (int which = 0; which < 2; which++) {
      int16x8_t low = vmovl_s8(vget_low_s8(w.val[which])), high = vmovl_high_s8(w.val[which]);
      UNROLL for (int r = 0; r < m; r++) {
        int16x8_t input = vld1q_dup_s16(x + 2 * r + which);
        sum[r][0] = vmlal_s16(sum[r][0], vget_low_s16(low), vget_low_s16(input));
        sum[r][1] = vmlal_high_s16(sum[r][1], low, input);
        sum[r][2] = vmlal_s16(sum[r][2], vget_low_s16(high), vget_low_s16(input));
        sum[r][3] = vmlal_high_s16(sum[r][3], high, input);
        UNROLL for (int i = 0; i < 4; i++) KEEP(sum[r][i]);
        if (m > 4) IN_MEMORY();
      }
    }
  }
  UNROLL for (int r = 0; r < m; r++)
    UNROLL for (int i = 0; i < 4; i++) vst1q_s32(&a->i[r][4 * i], sum[r][i]);
}

/* Codes 0..15 are signed bytes, too; both halves of the start belong to the same sum here. */
NEON INLINE void tile_int4(const int m, const span *s, sums *a) {
  const char *w = s->w;
  const int8_t *x = s->x;
  const int16_t *start = (const int16_t *)s->start;
  const float *scale = s->scale;
  for (int c = 0; c < s->columns; c += GROUP, w += 288, x += GROUP * m, start += 2 * m, scale += m) {
    int32x4_t sum[PG_TILE][4];
    prefetch(w, 288);
    UNROLL for (int r = 0; r < m; r++)
      UNROLL for (int i = 0; i < 4; i++) sum[r][i] = vdupq_n_s32(start[2 * r] + start[2 * r + 1]);
    _Pragma("GCC unroll 1") for (int q = 0; q < 4; q++)
      UNROLL for (int part = 0; part < 2; part++) {
        int8x16_t codes[4];
        UNROLL for (int i = 0; i < 4; i++) {
          uint8x16_t both = vld1q_u8((const uint8_t *)w + q * 64 + 16 * i);
          both = part ? vshrq_n_u8(both, 4) : vandq_u8(both, vdupq_n_u8(15));
          codes[i] = vreinterpretq_s8_u8(both);
        }
        UNROLL for (int r = 0; r < m; r++) {
          int32_t four;
          memcpy(&four, x + ((part * 4 + q) * m + r) * 4, 4);
          int8x16_t inputs = vreinterpretq_s8_s32(vdupq_n_s32(four));
          UNROLL for (int i = 0; i < 4; i++) {
            sum[r][i] = vdotq_s32(sum[r][i], codes[i], inputs);
            KEEP(sum[r][i]);
          }
          if (m > 4) IN_MEMORY();
        }
      }
    UNROLL for (int i = 0; i < 4; i++) {
      float32x4_t own = half_values(vld1_u16((const uint16_t *)(w + 256) + 4 * i));
      UNROLL for (int r = 0; r < m; r++) {
        float *to = &a->f[r][4 * i];
        float32x4_t both = vmulq_f32(own, vld1q_dup_f32(scale + r));
        vst1q_f32(to, vfmaq_f32(vld1q_f32(to), vcvtq_f32_s32(sum[r][i]), both));
      }
    }
  }
}

/* ---------------------------------------------------------------- what the processor could do */

#define WORDS(sum, w, x) \
  vmlal_s16(sum, vget_low_s16(vreinterpretq_s16_s32(w)), vget_low_s16(vreinterpretq_s16_s32(x)))
#define BYTES(sum, w, x) vdotq_s32(sum, vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(x))
PEAK(NEON, "+w", peak_of_floats, float32x4_t, vdupq_n_f32, vfmaq_f32)
PEAK(NEON, "+w", peak_of_bytes, int32x4_t, vdupq_n_s32, BYTES)
PEAK(NEON, "+w", peak_of_words, int32x4_t, vdupq_n_s32, WORDS)

static int peak(int integers, long turns) {
  (integers == 8 ? peak_of_bytes : integers ? peak_of_words : peak_of_floats)(turns);
  return 10 * (integers == 8 ? 32 : 8);
}

#define ANY_TARGET /* without dot products every processor has the instructions */
FOR_ROWS(ANY_TARGET, neon_f32, tile_float(PG_F32, m, 1, s, a))
FOR_ROWS(ANY_TARGET, neon_bf16, tile_float(PG_BF16, m, 1, s, a))
FOR_ROWS(ANY_TARGET, neon_fp8, tile_float(PG_FP8, m, 1, s, a))
FOR_ROWS(ANY_TARGET, neon_int8, tile_int8(m, s, a))
FOR_ROWS(NEON, neon_int4, tile_int4(m, s, a))
FOR_ROWS(ANY_TARGET, neon_nf4, tile_nf4(m, s, a))

static void tile(int kind, int rows, const span *s, sums *a) {
  static const tiles_by_rows TILES = {ROWS_OF(neon_f32),  ROWS_OF(neon_bf16), ROWS_OF(neon_fp8),
                                      ROWS_OF(neon_int8), ROWS_OF(neon_int4), ROWS_OF(neon_nf4)};
  TILES[kind][rows - 1](s, a);
}

const level pg_neon = {.name = "NEON",
                       .tile = tile,
                       .wide_tile = neon_wide,
                       .widen = widen,
                       .int8_row = int8_row,
                       .int4_row = int4_row,
                       .peak = peak};
#endif
