/* Each level of the processor beside plain C, to the bit: products of every kind, of shapes that fill
   neither panels nor groups, with rows of every number that a tile has, several tiles, and turns.
   Prints the levels, and ends with 1 where one differs. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

int pg_best_level(void);
const char *pg_level_name(int number);

static uint32_t seed = 1;
static float drawn(void) { /* in -1..1 */
  seed = seed * 1664525u + 1013904223u;
  return (float)(int32_t)seed * 0x1p-31f;
}

/* Numbers of one kind of difficulty: ordinary, all of the largest magnitude, with outliers, zeros. */
enum { NUM_FILLS = 4 };
static void fill(float *x, size_t count, int how) {
  for (size_t i = 0; i < count; i++) {
    float v = drawn();
    if (how == 1) v = v < 0 ? -1.0f : 1.0f;
    if (how == 2 && i % 37 == 0) v *= 1000;
    if (how == 3) v = i % 3 ? 0 : v * 1e-3f;
    x[i] = v;
  }
}

static int differs(int kind, int n, int k, int m, int how) {
  char *memory[2];
  size_t size = (size_t)(n + 15) / 16 * pg_panel_bytes(kind, k);
  float *rows = malloc((size_t)n * k * 4), *x = malloc((size_t)m * k * 4);
  float *bias = malloc((size_t)n * 4), *scale = calloc((size_t)n + 16, 4);
  float *y[2] = {malloc((size_t)m * n * 4), malloc((size_t)m * n * 4)};
  int best = pg_level(), wrong = 0;
  fill(rows, (size_t)n * k, how);
  fill(x, (size_t)m * k, how == 1 ? 1 : m % NUM_FILLS);
  fill(bias, (size_t)n, 0);
  for (int i = 0; i < 2; i++) {
    memory[i] = aligned_alloc(64, (size + 63) / 64 * 64);
    pg_matrix w = {.kind = kind, .n = n, .k = k, .data = memory[i], .scale = scale};
    pg_set_level(i ? best : 0);
    pg_pack(&w, rows, (size_t)k, 0);
    pg_multiply(&w, x, (size_t)k, bias, y[i], (size_t)n, m);
  }
  if (memcmp(memory[0], memory[1], size)) wrong = 1;
  if (memcmp(y[0], y[1], (size_t)m * n * 4)) wrong = 1;
  if (wrong) printf("kind %d, %d x %d, %d rows, numbers %d: differs\n", kind, n, k, m, how);
  for (int i = 0; i < 2; i++) free(memory[i]), free(y[i]);
  free(rows), free(x), free(bias), free(scale);
  return wrong;
}

static int tile_differs(int columns) {
  float panel[65 * 16], inputs[65 * 6], sums[2][96];
  int best = pg_level();
  fill(panel, sizeof panel / 4, 0);
  fill(inputs, sizeof inputs / 4, 0);
  fill(sums[0], 96, 0);
  memcpy(sums[1], sums[0], sizeof sums[0]);
  for (int i = 0; i < 2; i++) {
    pg_set_level(i ? best : 0);
    pg_float_tile(panel, inputs, columns, sums[i]);
  }
  if (memcmp(sums[0], sums[1], sizeof sums[0])) return printf("float tile %d differs\n", columns), 1;
  return 0;
}

int main(void) {
  static const int SHAPES[][2] = {{16, 64}, {1, 1}, {37, 100}, {33, 31}, {17, 1090}, {150, 129}};
  static const int ROWS[] = {1, 2, 3, 4, 5, 6, 11, 13, 250};
  int wrong = 0, best = pg_best_level();
  for (int level = 1; level <= best; level++) {
    pg_set_level(level);
    for (int kind = 0; kind < PG_NUM_KINDS; kind++)
      for (size_t s = 0; s < sizeof SHAPES / sizeof *SHAPES; s++)
        for (size_t r = 0; r < sizeof ROWS / sizeof *ROWS; r++)
          for (int how = 0; how < NUM_FILLS; how++) {
            int n = SHAPES[s][0], k = SHAPES[s][1], m = ROWS[r];
            if ((m == 250 && (n < 100 || how)) || (m > 6 && how % 2)) continue;
            wrong += differs(kind, n, k, m, how);
          }
    for (int columns = 1; columns <= 65; columns++) wrong += tile_differs(columns);
    printf("%s: %s\n", pg_level_name(level), wrong ? "differs" : "as plain C");
  }
  if (best < 1) printf("no level but plain C\n");
  return wrong != 0;
}
