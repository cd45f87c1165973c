/* Products of a few or many rows of float32 inputs with a matrix in panels; kernels.h has the layouts,
   level.h what computes a tile. A row gets the same bits alone and in a batch. */
#include <stdatomic.h>
#include <stdlib.h>

#include "level.h"

enum { TILE_BYTES = 1 << 17, MANY_ROWS = 2 * PG_TILE };
/* Panels whose sums are computed side by side; of more rows than these, two. */
enum { FEW_ROWS = 2, MOST_PARTS = 4 };

size_t pg_panel_bytes(int kind, int k) { return panel_bytes(kind, (size_t)padded(kind, k)); }

void pg_float_tile(const float *panel, const float *inputs, int columns, float *to) {
  span s = {.w = (const char *)panel, .x = inputs, .columns = columns};
  pg_level_in_use()->wide_tile(&s, (sums *)to);
}

INLINE int tile_rows(const pg_input *in, int tile) {
  int left = in->m - tile * PG_TILE;
  return left < PG_TILE ? left : PG_TILE;
}

/* Columns from `first` on of a panel and a tile of inputs. */
INLINE span span_of(const pg_input *in, const char *panel, int tile, int first, int columns) {
  int kind = in->kind, all = padded(kind, in->k), rows = tile_rows(in, tile);
  size_t unit = kind == PG_INT8 ? 2 : kind == PG_INT4 ? 1 : 4;
  span s = {.w = panel + panel_bytes(kind, (size_t)first), .columns = columns};
  s.x = (const char *)in->rows + ((size_t)tile * PG_TILE * all + (size_t)first * rows) * unit;
  if (kind == PG_INT4) {
    size_t at = (size_t)tile * PG_TILE * (all / GROUP) + (size_t)(first / GROUP) * rows;
    s.scale = in->scale + at;
    s.start = in->start + at;
  }
  return s;
}

/* The sums of a tile become outputs: scaled, with the bias, as far as the matrix has rows. */
static void finish(const pg_matrix *w, const pg_input *in, const float *bias, int panel, int tile,
                   const sums *a, float *y, size_t ldy) {
  int rows = tile_rows(in, tile), width = w->n - panel * 16 < 16 ? w->n - panel * 16 : 16;
  const float *own = has_row_scale(w->kind) ? w->scale + (size_t)panel * 16 : NULL;
  float factor = w->kind == PG_FP8 ? 256 : 1;
  for (int r = 0; r < rows; r++) {
    float out[16], *to = y + (size_t)r * ldy;
    for (int i = 0; i < 16; i++) {
      float v = a->f[r][i];
      if (w->kind == PG_INT8) v = (float)a->i[r][i] * (own[i] * in->scale[tile * PG_TILE + r]);
      else if (own) v *= own[i] * factor;
      out[i] = v;
    }
    if (bias)
      for (int i = 0; i < width; i++) out[i] += bias[panel * 16 + i];
    memcpy(to, out, (size_t)width * sizeof(float));
  }
}

static void panel_product(const pg_matrix *w, const pg_input *in, const float *bias, float *y,
                          size_t ldy, int panel) {
  int columns = padded(w->kind, w->k);
  const char *at = panel_of(w, panel);
  for (int tile = 0; tile * PG_TILE < in->m; tile++) {
    sums a;
    memset(&a, 0, sizeof a);
    span s = span_of(in, at, tile, 0, columns);
    pg_level_in_use()->tile(w->kind, tile_rows(in, tile), &s, &a);
    finish(w, in, bias, panel, tile, &a, y + (size_t)tile * PG_TILE * ldy, ldy);
  }
}

static void parts_side_by_side(const pg_part *parts, int count, const pg_input *in, size_t ldy,
                               const float *bias) {
  span s[MOST_PARTS];
  sums a[MOST_PARTS];
  memset(a, 0, sizeof(sums) * (size_t)count);
  for (int i = 0; i < count; i++)
    s[i] = span_of(in, panel_of(parts[i].w, parts[i].panel), 0, 0, padded(in->kind, in->k));
  pg_level_in_use()->tiles(in->kind, in->m, count, s, a);
  for (int i = 0; i < count; i++)
    finish(parts[i].w, in, bias, parts[i].panel, 0, &a[i], parts[i].y, ldy);
}

static void parts_product(const pg_part *parts, int count, const pg_input *in, size_t ldy,
                          const float *bias) {
  int is_float = in->kind != PG_INT8 && in->kind != PG_INT4;
  int together = is_float && in->m <= pg_level_in_use()->most_rows;
  while (count > 0) {
    int some = !together || count < 2 ? 1 : count < MOST_PARTS || in->m > FEW_ROWS ? 2 : MOST_PARTS;
    if (some > 1) parts_side_by_side(parts, some, in, ldy, bias);
    else panel_product(parts->w, in, bias, parts->y, ldy, parts->panel);
    parts += some;
    count -= some;
  }
}

void pg_parts(const pg_part *parts, int count, const pg_input *in, size_t ldy) {
  parts_product(parts, count, in, ldy, NULL);
}

typedef struct {
  const pg_matrix *w;
  const float *x, *bias;
  float *y;
  size_t ldx, ldy;
  pg_input in;
  atomic_int next_row, next_unit;
  pg_event rows_ready;
} product;

/* Panels and tiles of a unit of work, and columns of one turn, so that the inputs of a turn stay in
   the second cache and its weights in the first. */
enum { UNIT_PANELS = 8, UNIT_TILES = 40, WIDE_COLUMNS = 256, WIDE = 16 * WIDE_COLUMNS };
static int turn_columns(int kind) {
  return kind == PG_INT4 ? 1024 : kind == PG_INT8 ? 512 : WIDE_COLUMNS;
}

/* A unit of a product with many rows: columns are taken in turns, and partial sums wait between
   them in the memory of the thread. */
static void unit(const product *a, int first_panel, int first_tile, sums *waiting, float *wide) {
  const pg_matrix *w = a->w;
  int kind = w->kind, columns = padded(kind, w->k), panels = (w->n + 15) / 16;
  int tiles = (a->in.m + PG_TILE - 1) / PG_TILE;
  int last_panel = first_panel + UNIT_PANELS < panels ? first_panel + UNIT_PANELS : panels;
  int last_tile = first_tile + UNIT_TILES < tiles ? first_tile + UNIT_TILES : tiles;
  int step = turn_columns(kind);
  const level *own = pg_level_in_use();
  int is_float = kind != PG_INT8 && kind != PG_INT4;
  int is_wide = kind == PG_F32 || (is_float && own->widen), widens = is_wide && kind != PG_F32;
  memset(waiting, 0, sizeof(sums) * UNIT_PANELS * UNIT_TILES);
  int together = is_wide && own->two_wide_tiles ? 2 : 1;
  for (int first = 0; first < columns; first += step) {
    int num = columns - first < step ? columns - first : step;
    for (int panel = first_panel; panel < last_panel; panel += together) {
      int count = last_panel - panel < together ? 1 : together;
      const char *at[2];
      for (int i = 0; i < count; i++) {
        at[i] = panel_of(w, panel + i) + panel_bytes(kind, (size_t)first);
        if (!widens) continue;
        own->widen(kind, at[i], num, wide + i * WIDE);
        at[i] = (const char *)(wide + i * WIDE);
      }
      sums *partial = waiting + (panel - first_panel) * UNIT_TILES;
      for (int tile = first_tile; tile < last_tile; tile++, partial++) {
        span s = span_of(&a->in, panel_of(w, panel), tile, first, num);
        int rows = tile_rows(&a->in, tile);
        s.w = at[0];
        if (count == 2 && rows == PG_TILE) {
          own->two_wide_tiles(&s, at[1], partial, partial + UNIT_TILES);
          continue;
        }
        for (int i = 0; i < count; i++) {
          s.w = at[i];
          if (is_wide && rows == PG_TILE) own->wide_tile(&s, partial + i * UNIT_TILES);
          else own->tile(widens ? PG_F32 : kind, rows, &s, partial + i * UNIT_TILES);
        }
      }
    }
  }
  for (int panel = first_panel; panel < last_panel; panel++)
    for (int tile = first_tile; tile < last_tile; tile++)
      finish(w, &a->in, a->bias, panel, tile,
             waiting + (panel - first_panel) * UNIT_TILES + tile - first_tile,
             a->y + (size_t)tile * PG_TILE * a->ldy + panel * 16, a->ldy);
}

int pg_panels_at_once(const pg_matrix *w, int num_panels, int team) {
  int count = (int)(TILE_BYTES / pg_panel_bytes(w->kind, w->k)), most = num_panels / (4 * team);
  count = count > MOST_PARTS ? count : MOST_PARTS;
  count = count < most ? count : most;
  return count > 1 ? count : 1;
}

static void product_job(void *p, int thread, int team) {
  product *a = p;
  const pg_matrix *w = a->w;
  int m = a->in.m, panels = (w->n + 15) / 16, at;
  int turn = m < MANY_ROWS ? 1 : PG_TILE; /* rows of a tile share lines of the cache */
  (void)thread;
  while ((at = atomic_fetch_add(&a->next_row, turn)) < m) {
    int last = at + turn < m ? at + turn : m;
    for (int row = at; row < last; row++)
      pg_input_row(&a->in, row, a->x + (size_t)row * a->ldx);
    pg_advance(&a->rows_ready, last - at, m);
  }
  pg_await(&a->rows_ready, m);
  if (m < MANY_ROWS) {
    int step = pg_panels_at_once(w, panels, team);
    while ((at = atomic_fetch_add(&a->next_unit, step)) < panels)
      for (int panel = at; panel < at + step && panel < panels;) {
        pg_part parts[MOST_PARTS];
        int num = 0;
        for (; num < MOST_PARTS && panel < at + step && panel < panels; panel++)
          parts[num++] = (pg_part){w, a->y + panel * 16, panel};
        parts_product(parts, num, &a->in, a->ldy, a->bias);
      }
    return;
  }
  int tiles = (m + PG_TILE - 1) / PG_TILE, across = (panels + UNIT_PANELS - 1) / UNIT_PANELS;
  int units = across * ((tiles + UNIT_TILES - 1) / UNIT_TILES);
  size_t held = sizeof(sums) * UNIT_PANELS * UNIT_TILES;
  char *memory = aligned_alloc(64, held + 2 * WIDE * sizeof(float));
  if (!memory) abort();
  while ((at = atomic_fetch_add(&a->next_unit, 1)) < units)
    unit(a, at % across * UNIT_PANELS, at / across * UNIT_TILES, (sums *)memory,
         (float *)(memory + held));
  free(memory);
}

/* y[m, n] = x[m, k] w^T + bias, all float32; `bias` may be NULL. */
void pg_multiply(const pg_matrix *w, const float *x, size_t ldx, const float *bias, float *y,
                 size_t ldy, int m) {
  product a = {.w = w, .x = x, .bias = bias, .y = y, .ldx = ldx, .ldy = ldy};
  pg_input_place(&a.in, pg_scratch(pg_input_bytes(w->kind, m, w->k)), w->kind, m, w->k);
  pg_run(product_job, &a);
}
