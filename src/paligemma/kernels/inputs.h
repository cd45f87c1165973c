/* What quantising rows of inputs takes at every level. */
#ifndef PALIGEMMA_INPUTS_H
#define PALIGEMMA_INPUTS_H
#include <math.h>

#include "level.h"

/* The largest magnitude of an int8 matrix's inputs: a sum of k products fits 32 bits. */
INLINE float int8_limit(int columns) {
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

#endif
