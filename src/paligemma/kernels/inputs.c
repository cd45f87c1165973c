/* Rows of inputs as tiles: float, or quantised. int8 takes them in as many bits, up to 14, as the sum
   leaves room for; int4 in 8 bits, with a scale for each group of 32 columns. */
#include "inputs.h"

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

static void float_row(pg_input *in, int row, const float *x) {
  place p = place_of(in, row);
  float *to = (float *)in->rows + p.at + row % PG_TILE;
  for (int c = 0; c < in->k; c++) to[(size_t)c * p.rows] = x[c];
  for (int c = in->k; c < p.columns; c++) to[(size_t)c * p.rows] = 0;
}

void pg_input_row(pg_input *in, int row, const float *x) {
  if (in->kind == PG_INT8) pg_level_in_use()->int8_row(in, row, x);
  else if (in->kind == PG_INT4) pg_level_in_use()->int4_row(in, row, x);
  else float_row(in, row, x);
}
