/* Attention of many queries: scores, softmax and mix block by block, so that no more than a block of
   scores exists at a time; the same function as kernels/attention.py defines.

   Sixteen queries form a panel, and six keys, or six numbers of the values, a tile of inputs, as in
   products. A panel of queries times a tile of keys gives scores that lie key by key: a panel again,
   which the tiles of the values multiply. Nothing is turned or summed across a vector between.

   Blocks of keys begin at the first key, and a masked key adds an exact zero, so a query gets the same
   bits in any batch that is filled up behind it, and with any number of threads. */
#include "attend.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "vectors.h"

#define MASKED (-1e30f)
/* Below any score, and so far above MASKED that a masked key weighs nothing beside it. */
#define NO_MAXIMUM (-1e29f)

#define LEVEL(name) plain_##name
#define TARGET
#include "attend_level.h"
#undef LEVEL
#undef TARGET

#if defined(__x86_64__)
#define LEVEL(name) avx2_##name
#define TARGET AVX2
#include "attend_level.h"
#undef LEVEL
#undef TARGET
#endif

static void weigh(float *scores, int count, float cap, float *maximum, float *sum, float *mixed,
                  int dims) {
#if defined(__x86_64__)
  if (pg_level() > 0) {
    avx2_weigh(scores, count, cap, maximum, sum, mixed, dims);
    return;
  }
#endif
  plain_weigh(scores, count, cap, maximum, sum, mixed, dims);
}

enum {
  MOST_PANELS = 8,     /* of queries that a thread attends at once */
  MOST_KEYS = 192,     /* of a block; a multiple of tiles, and even */
  CACHED = 200 * 1024, /* bytes of a block's keys and values: they are read again from the second cache */
};

typedef struct {
  const pg_attention *a;
  int key_tiles, dim_tiles, block, panels; /* tiles of keys and of numbers; keys of a block; panels of a unit */
  int units_a_head;
  float *keys;   /* [row][kv head][key tile][head_dim][6] */
  float *values; /* [row][kv head][dim tile][key][6], keys filled up to whole tiles */
  size_t keys_a_head, values_a_head;
  atomic_int next_piece, next_unit;
  pg_event pieces_done;
} attention;

static int ceiling(int a, int b) { return (a + b - 1) / b; }

static const float *at(const float *x, pg_strides s, int row, int token, int head) {
  return x + row * s.row + token * s.token + head * s.head;
}

/* ---------------------------------------------------------------- keys and values into tiles */

static void take_keys(const attention *t, int row, int head, int first, int last) {
  const pg_attention *a = t->a;
  float *tile = t->keys + ((size_t)row * a->num_kv_heads + head) * t->keys_a_head;
  tile += (size_t)(first / PG_TILE) * a->head_dim * PG_TILE;
  for (; first < last; first += PG_TILE, tile += (size_t)a->head_dim * PG_TILE)
    for (int i = 0; i < PG_TILE; i++) {
      if (first + i >= a->num_keys) {
        for (int h = 0; h < a->head_dim; h++) tile[h * PG_TILE + i] = 0;
        continue;
      }
      const float *key = at(a->k, a->k_strides, row, first + i, head);
      for (int h = 0; h < a->head_dim; h++) tile[h * PG_TILE + i] = key[h];
    }
}

static void take_values(const attention *t, int row, int head, int first, int last) {
  const pg_attention *a = t->a;
  float *to = t->values + ((size_t)row * a->num_kv_heads + head) * t->values_a_head;
  size_t tile = (size_t)t->key_tiles * PG_TILE * PG_TILE;
  for (int key = first; key < last; key++) {
    const float *value = at(a->v, a->v_strides, row, key, head);
    for (int d = 0; d < t->dim_tiles; d++) {
      float *own = to + d * tile + (size_t)key * PG_TILE;
      for (int i = 0; i < PG_TILE; i++) {
        int h = d * PG_TILE + i;
        own[i] = key < a->num_keys && h < a->head_dim ? value[h] : 0;
      }
    }
  }
}

/* ---------------------------------------------------------------- a panel of queries */

typedef struct { /* of sixteen queries */
  float maximum[16], sum[16];
  float *queries; /* [head_dim][16] */
  float *mixed;   /* [dim tiles * 6][16] */
} panel;

static void begin(const attention *t, panel *p, int row, int head, int first) {
  const pg_attention *a = t->a;
  for (int i = 0; i < 16; i++) {
    p->maximum[i] = NO_MAXIMUM;
    p->sum[i] = 0;
    if (first + i >= a->num_queries) {
      for (int h = 0; h < a->head_dim; h++) p->queries[h * 16 + i] = 0;
      continue;
    }
    const float *query = at(a->q, a->q_strides, row, first + i, head);
    for (int h = 0; h < a->head_dim; h++) p->queries[h * 16 + i] = query[h] * a->scale;
  }
  memset(p->mixed, 0, sizeof(float) * 16 * PG_TILE * (size_t)t->dim_tiles);
}

static void end(const attention *t, const panel *p, int row, int head, int first) {
  const pg_attention *a = t->a;
  for (int i = 0; i < 16 && first + i < a->num_queries; i++) {
    float *out = (float *)at(a->out, a->out_strides, row, first + i, head);
    float inverse = p->sum[i] == 0 ? 0 : 1 / p->sum[i];
    for (int h = 0; h < a->head_dim; h++) out[h] = p->mixed[h * 16 + i] * inverse;
  }
}

/* Hides what the queries may not attend of `count` keys; whether anything is left. */
static int apply_mask(const pg_attention *a, float *scores, int row, int first, int key, int count) {
  const uint8_t *mask = a->mask + row * a->mask_row + key;
  int any = 0;
  for (int i = 0; i < 16 && first + i < a->num_queries; i++) {
    const uint8_t *own = mask + (first + i) * a->mask_query;
    if (!memchr(own, 0, (size_t)count)) {
      any = 1;
      continue;
    }
    any |= memchr(own, 1, (size_t)count) != NULL;
    for (int j = 0; j < count; j++)
      if (!own[j]) scores[j * 16 + i] = MASKED;
  }
  return any;
}

static void attend_block(const attention *t, panel *p, float *scores, int row, int head, int first,
                         int key) {
  const pg_attention *a = t->a;
  size_t kv = (size_t)row * a->num_kv_heads + head / (a->num_heads / a->num_kv_heads);
  int left = a->num_keys - key, tiles = ceiling(left < t->block ? left : t->block, PG_TILE);
  int count = tiles * PG_TILE, real = left < count ? left : count;
  const float *keys = t->keys + kv * t->keys_a_head + (size_t)key * a->head_dim;
  memset(scores, 0, sizeof(float) * 16 * (size_t)count);
  for (int i = 0; i < tiles; i++)
    pg_float_tile(p->queries, keys + (size_t)i * PG_TILE * a->head_dim, a->head_dim,
                  scores + i * PG_TILE * 16);
  for (int i = real * 16; i < count * 16; i++) scores[i] = MASKED;
  if (a->mask && !apply_mask(a, scores, row, first, key, real)) return;
  weigh(scores, count, a->cap, p->maximum, p->sum, p->mixed, t->dim_tiles * PG_TILE);
  const float *values = t->values + kv * t->values_a_head + (size_t)key * PG_TILE;
  size_t tile = (size_t)t->key_tiles * PG_TILE * PG_TILE;
  for (int d = 0; d < t->dim_tiles; d++)
    pg_float_tile(scores, values + d * tile, count, p->mixed + d * PG_TILE * 16);
}

/* ---------------------------------------------------------------- threads */

static void attend_job(void *argument, int thread, int team) {
  attention *t = argument;
  const pg_attention *a = t->a;
  int filled = t->key_tiles * PG_TILE, blocks = ceiling(filled, t->block), next;
  int pieces = a->num_rows * a->num_kv_heads * blocks;
  (void)thread, (void)team;
  while ((next = atomic_fetch_add(&t->next_piece, 1)) < pieces) {
    int first = next % blocks * t->block, last = first + t->block < filled ? first + t->block : filled;
    int head = next / blocks % a->num_kv_heads, row = next / blocks / a->num_kv_heads;
    take_keys(t, row, head, first, last);
    take_values(t, row, head, first, last);
    pg_advance(&t->pieces_done, 1, pieces);
  }
  pg_await(&t->pieces_done, pieces);
  size_t size = (size_t)a->head_dim * 16, mixed = 16 * PG_TILE * (size_t)t->dim_tiles;
  float *memory = pg_new_memory(sizeof(float) * (16 * MOST_KEYS + (size_t)t->panels * (size + mixed)));
  panel panels[MOST_PANELS];
  for (int i = 0; i < t->panels; i++) {
    panels[i].queries = memory + 16 * MOST_KEYS + i * (size + mixed);
    panels[i].mixed = panels[i].queries + size;
  }
  int units = t->units_a_head * a->num_heads * a->num_rows;
  while ((next = atomic_fetch_add(&t->next_unit, 1)) < units) {
    int first = next % t->units_a_head * t->panels * 16, head = next / t->units_a_head % a->num_heads;
    int row = next / t->units_a_head / a->num_heads, count = 0;
    for (; count < t->panels && first + count * 16 < a->num_queries; count++)
      begin(t, &panels[count], row, head, first + count * 16);
    for (int key = 0; key < a->num_keys; key += t->block)
      for (int i = 0; i < count; i++)
        attend_block(t, &panels[i], memory, row, head, first + i * 16, key);
    for (int i = 0; i < count; i++) end(t, &panels[i], row, head, first + i * 16);
  }
  free(memory);
}

void pg_attend(const pg_attention *a) {
  attention t = {.a = a};
  t.key_tiles = ceiling(a->num_keys, PG_TILE);
  t.dim_tiles = ceiling(a->head_dim, PG_TILE);
  t.block = MOST_KEYS;
  while (t.block > 48 && t.block * a->head_dim * 8 > CACHED) t.block /= 2;
  t.panels = a->head_dim > 128 ? MOST_PANELS / 2 : MOST_PANELS;
  t.units_a_head = ceiling(a->num_queries, 16 * t.panels);
  t.keys_a_head = (size_t)t.key_tiles * PG_TILE * a->head_dim;
  t.values_a_head = (size_t)t.key_tiles * PG_TILE * PG_TILE * t.dim_tiles;
  size_t heads = (size_t)a->num_rows * a->num_kv_heads;
  t.keys = pg_new_memory(sizeof(float) * heads * (t.keys_a_head + t.values_a_head));
  t.values = t.keys + heads * t.keys_a_head;
  pg_run(attend_job, &t);
  free(t.keys);
}
