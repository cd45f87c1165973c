/* Numbers and sizes of the panels that kernels.h describes. */
#ifndef PALIGEMMA_PANELS_H
#define PALIGEMMA_PANELS_H
#include <string.h>

#include "kernels.h"

enum { GROUP = 32, BLOCK = 64 }; /* columns that share a scale: of int4, of nf4 */

static const float NF4[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
    0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

static inline int has_row_scale(int kind) { return kind == PG_FP8 || kind == PG_INT8; }

static inline int padded(int kind, int k) {
  int step = kind == PG_INT4 ? GROUP : kind == PG_NF4 ? BLOCK : 2;
  return (k + step - 1) / step * step;
}

/* Bytes of a panel of `columns` columns, a multiple of what the kind groups. */
static inline size_t panel_bytes(int kind, size_t columns) {
  switch (kind) {
    case PG_F32: return columns * 64;
    case PG_BF16: return columns * 32;
    case PG_INT4: return columns * 9;
    case PG_NF4: return columns / BLOCK * (BLOCK * 8 + 32);
    default: return columns * 16;
  }
}

static inline const char *panel_of(const pg_matrix *w, int panel) {
  size_t size = panel_bytes(w->kind, (size_t)padded(w->kind, w->k));
  return (const char *)w->data + (size_t)panel * size;
}

static inline float from_bits(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}
static inline float from_bf16(uint16_t u) { return from_bits((uint32_t)u << 16); }
static inline float from_half(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
  if (rest >= 0x7c00) return from_bits(sign | 0x7f800000 | rest << 13);
  float magnitude = from_bits(rest << 13) * 0x1p112f;
  return sign ? -magnitude : magnitude;
}
static inline float from_e4m3(uint8_t b) {
  return from_half((uint16_t)((b & 0x80) << 8 | (b & 0x7f) << 7)) * 256;
}

#endif
