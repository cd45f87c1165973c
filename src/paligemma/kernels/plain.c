/* Plain C: what the other levels are checked against. */
#include "inputs.h"

static void tile(int kind, int m, const span *s, sums *a) {
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
      else if (kind == PG_FP8) column[i] = from_e4m3(u8[c * 16 + i]) / 256;
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

static void wide_tile(const span *s, sums *a) { tile(PG_F32, PG_TILE, s, a); }

static void int8_row(pg_input *in, int row, const float *x) {
  float largest = largest_of(x, in->k), limit = int8_limit(padded(in->kind, in->k));
  in->scale[row] = largest / limit;
  int8_columns(in, row, x, largest > 0 ? limit / largest : 0, 0);
}

static void int4_row(pg_input *in, int row, const float *x) { int4_groups(in, row, x, 0); }

const level pg_plain = {.name = "plain C",
                        .tile = tile,
                        .wide_tile = wide_tile,
                        .int8_row = int8_row,
                        .int4_row = int4_row};
