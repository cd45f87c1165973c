/* Whether the level in use computes what plain C computes, on this very processor. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

enum { N = 116, K = 70, MOST = 13 }; /* eight panels: the last not whole */

static float drawn(uint32_t *seed) { /* in -1..1 */
  *seed = *seed * 1664525u + 1013904223u;
  return (float)(int32_t)*seed * 0x1p-31f;
}

/* The largest difference of products of one kind beside the norms of what is multiplied, about the
   rounding of float32; infinite where panels differ. Rows: a part of a tile, a whole one, several. */
static float difference(int kind, int level) {
  size_t size = (N + 15) / 16 * pg_panel_bytes(kind, K);
  char *memory = calloc(2, size);
  float rows[N * K], x[MOST * K], y[2][MOST * N], scale[2][(N + 15) / 16 * 16] = {{0}}, worst = 0;
  uint32_t seed = 1;
  if (!memory) abort();
  for (int i = 0; i < N * K; i++) rows[i] = drawn(&seed);
  for (int i = 0; i < MOST * K; i++) x[i] = drawn(&seed);
  pg_matrix w[2];
  for (int i = 0; i < 2; i++) {
    w[i] = (pg_matrix){.kind = kind, .n = N, .k = K, .data = memory + i * size, .scale = scale[i]};
    pg_set_level(i ? level : 0);
    pg_pack(&w[i], rows, K, 0);
  }
  if (memcmp(memory, memory + size, size) || memcmp(scale[0], scale[1], sizeof scale[0]))
    worst = INFINITY;
  for (int m = 1; m <= MOST; m = m < 6 ? m + 5 : m + 7) {
    for (int i = 0; i < 2; i++) {
      pg_set_level(i ? level : 0);
      pg_multiply(&w[i], x, K, NULL, y[i], N, m);
    }
    for (int i = 0; i < m * N; i++) {
      float far = fabsf(y[0][i] - y[1][i]) / (K / 3.0f); /* the product of the norms */
      worst = far <= worst ? worst : far; /* NaN, too, is a difference */
      if (far != far) worst = INFINITY;
    }
  }
  free(memory);
  return worst;
}

float pg_level_difference(void) {
  int level = pg_level();
  float worst = 0;
  for (int kind = 0; kind < PG_NUM_KINDS && level > 0; kind++)
    worst = fmaxf(worst, difference(kind, level));
  pg_set_level(level);
  return worst;
}
