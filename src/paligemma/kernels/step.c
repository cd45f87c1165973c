/* One step of the decoder in one call: from the embeddings of some tokens to their logits.

   All threads run the same function, `decode`, over the same phases; a barrier stands between two
   phases. Within a phase the threads take rows, panels of a matrix, or spans of attention. What is
   taken is computed whole by one thread, in an order of its own, so results depend neither on the
   number of threads nor on the other rows. A row here is a token: several may belong to one row of
   the cache, and as all keys and values are written before any is attended, each of them sees those
   before it, and none behind.

     rows    norm, and the inputs of the next product
     panels  q, k and v
     rows    rotary positions; keys and values go into the cache
     spans   attention: some heads of a row over SPAN_SLOTS slots of its cache
     rows    the heads' spans become one; inputs of the product
     panels  out
     rows    residual, norm, inputs
     panels  gate and up, whose outputs meet at once: gelu(gate) * up
     rows    inputs
     panels  down                                               and again for the next block
     rows    residual, norm, inputs
     panels  head

   Memory: the caller owns all of it. Matrices and norms stay where the model has them, keys and
   values where the cache has them, and scratch is as large as pg_step_scratch says. */
#include "step.h"

#include <math.h>
#include <stdatomic.h>

#include "step_rows.h"

/* ------------------------------------------------------------------ one step */

typedef struct {
  const pg_decoder *d;
  const pg_tokens *t;
  const row_arithmetic *do_;
  int num_spans; /* of the longest row */
  /* Scratch, all of it [num_rows][...] */
  float *normed, *y; /* [width] */
  float *q, *k, *v;  /* [heads][head_dim], one behind another in a row of `qkv_width` */
  float *mixed;      /* [num_heads][head_dim] */
  float *gate, *up;  /* [mlp] */
  float *cos_sin;    /* [2][head_dim / 2] */
  float *parts;      /* [num_heads][num_spans][PART_HEAD + head_dim] */
  void *input;       /* of the widest product */
  size_t qkv_width;
  size_t scratch_bytes;
  /* Shared by the threads, each on a line of the processor's cache of its own. */
  _Alignas(64) _Atomic int arrived;
  _Alignas(64) _Atomic int phase;
  _Alignas(64) _Atomic int taken;
} step;

static void *carve(char *memory, size_t *used, size_t bytes) {
  void *place = memory ? memory + *used : NULL;
  *used += (bytes + 63) & ~(size_t)63;
  return place;
}

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

/* Room for the inputs of every product with so many rows. */
static size_t input_bytes(const pg_decoder *d, int m) {
  size_t most = pg_input_bytes(d->head.kind, m, d->head.k);
  for (int i = 0; i < d->depth; i++) {
    const pg_block *b = d->blocks + i;
    most = larger(most, pg_input_bytes(b->q.kind, m, b->q.k));
    most = larger(most, pg_input_bytes(b->out.kind, m, b->out.k));
    most = larger(most, pg_input_bytes(b->gate.kind, m, b->gate.k));
    most = larger(most, pg_input_bytes(b->down.kind, m, b->down.k));
  }
  return most;
}

/* Divides scratch among its users; without memory, only counts. */
static void place_scratch(step *s, const pg_decoder *d, int num_rows, int num_slots, char *memory) {
  size_t m = (size_t)num_rows, used = 0, real = sizeof(float), head_dim = (size_t)d->head_dim;
  size_t heads = (size_t)d->num_heads, kv_heads = (size_t)d->num_kv_heads;
  s->qkv_width = (heads + 2 * kv_heads) * head_dim;
  s->num_spans = (num_slots + SPAN_SLOTS - 1) / SPAN_SLOTS;
  s->normed = carve(memory, &used, m * (size_t)d->width * real);
  s->y = carve(memory, &used, m * (size_t)d->width * real);
  s->q = carve(memory, &used, m * s->qkv_width * real);
  s->mixed = carve(memory, &used, m * heads * head_dim * real);
  s->gate = carve(memory, &used, m * (size_t)d->mlp * real);
  s->up = carve(memory, &used, m * (size_t)d->mlp * real);
  s->cos_sin = carve(memory, &used, m * head_dim * real);
  s->parts = carve(memory, &used, m * heads * (size_t)s->num_spans * (PART_HEAD + head_dim) * real);
  s->input = carve(memory, &used, input_bytes(d, num_rows));
  s->scratch_bytes = used;
  if (memory) {
    s->k = s->q + heads * head_dim;
    s->v = s->k + kv_heads * head_dim;
  }
}

/* ------------------------------------------------------------------ threads */

/* Waits for all threads. The last one to arrive starts the next phase: while all others wait
   nobody takes work, so it may reset the counter. `phase` is the thread's own count of barriers. */
static void barrier(step *s, int num_threads, int *phase) {
  int next = ++*phase;
  if (atomic_fetch_add_explicit(&s->arrived, 1, memory_order_acq_rel) == num_threads - 1) {
    atomic_store_explicit(&s->arrived, 0, memory_order_relaxed);
    atomic_store_explicit(&s->taken, 0, memory_order_relaxed);
    atomic_store_explicit(&s->phase, next, memory_order_release);
    return;
  }
  for (int turns = 0; atomic_load_explicit(&s->phase, memory_order_acquire) != next; turns++)
    pg_pause(turns);
}

/* The first of `count` pieces of work that are this thread's now. */
static int take(step *s, int count) {
  return atomic_fetch_add_explicit(&s->taken, count, memory_order_relaxed);
}

/* Panels to take at once: enough bytes to read in one go, and some turns for every thread. */
static int panels_at_once(const pg_matrix *w, int num_panels, int num_threads) {
  static const int bits[PG_NUM_KINDS] = {[PG_F32] = 32, [PG_BF16] = 16, [PG_FP8] = 8,
                                         [PG_INT8] = 8, [PG_INT4] = 5,  [PG_NF4] = 5};
  int bytes = PG_PANEL * w->k / 8 * bits[w->kind];
  int most = num_panels / (4 * num_threads), count = (1 << 17) / (bytes + 1);
  count = count < most ? count : most;
  return count > 1 ? count : 1;
}

static int num_panels(const pg_matrix *w) { return (w->n + PG_PANEL - 1) / PG_PANEL; }

/* ------------------------------------------------------------------ phases */

/* Adds what the last product gave to the residual of a row, by way of the norm behind it. */
static void add_residual(step *s, int row, const float *post_norm) {
  const pg_decoder *d = s->d;
  size_t width = (size_t)d->width;
  float *y = s->y + (size_t)row * width;
  if (post_norm) s->do_->norm(y, post_norm, y, d->width, d->norm_eps);
  s->do_->add(s->t->x + (size_t)row * width, y, d->width);
}

static void norm_row(step *s, int row, const float *scale, pg_input *in) {
  size_t width = (size_t)s->d->width;
  float *normed = s->normed + (size_t)row * width;
  s->do_->norm(s->t->x + (size_t)row * width, scale, normed, s->d->width, s->d->norm_eps);
  pg_input_row(in, row, normed);
}

static void angles(step *s, int row) {
  const pg_decoder *d = s->d;
  int half = d->head_dim / 2;
  float *table = s->cos_sin + (size_t)row * (size_t)d->head_dim;
  int64_t slot = s->t->ends[row] - 1;
  float position = (float)s->t->positions[s->t->rows[row] * s->t->mask_stride + slot];
  for (int i = 0; i < half; i++) {
    float angle = position / d->wavelengths[i];
    table[i] = cosf(angle);
    table[half + i] = sinf(angle);
  }
}

/* One head of one row: queries come first, then keys, then values. */
static void place_head(step *s, int layer, int row, int head) {
  const pg_decoder *d = s->d;
  const pg_tokens *t = s->t;
  int size = d->head_dim, kv = head - d->num_heads, is_value = kv >= d->num_kv_heads;
  float *x = s->q + (size_t)row * s->qkv_width + (size_t)head * (size_t)size;
  const float *table = s->cos_sin + (size_t)row * (size_t)size;
  if (!is_value) s->do_->rotate(x, table, size / 2, kv < 0 ? d->query_scale : 1.0f);
  if (kv < 0) return;
  size_t head_bytes = (size_t)size * (t->cache_kind == PG_F32 ? 4 : 2);
  char *memory = is_value ? t->values[layer] : t->keys[layer];
  memory += t->rows[row] * t->row_bytes;
  memory += ((size_t)(t->ends[row] - 1) * (size_t)d->num_kv_heads +
             (size_t)(is_value ? kv - d->num_kv_heads : kv)) *
            head_bytes;
  s->do_->write(x, memory, size, t->cache_kind);
}

/* Heads that one thread attends together: they share loads of keys and values, but each thread is
   to have work. The group changes no result. */
static int heads_together(const step *s, int num_threads) {
  const pg_decoder *d = s->d;
  int sharing = d->num_heads / d->num_kv_heads, group = 4;
  int pieces = s->t->num_rows * s->num_spans * d->num_heads;
  while (group > 1 && (sharing % group || pieces / group < num_threads)) group /= 2;
  return group;
}

static void attend(step *s, int layer, int num_threads) {
  const pg_decoder *d = s->d;
  const pg_tokens *t = s->t;
  int group = heads_together(s, num_threads), groups = d->num_heads / group;
  int sharing = d->num_heads / d->num_kv_heads, pieces = t->num_rows * s->num_spans * groups;
  size_t head_dim = (size_t)d->head_dim;
  size_t head_bytes = head_dim * (t->cache_kind == PG_F32 ? 4 : 2);
  span w = {.group = group, .head_dim = d->head_dim, .kind = t->cache_kind, .cap = d->attn_cap};
  w.slot_bytes = head_bytes * (size_t)d->num_kv_heads;
  w.part_stride = (size_t)s->num_spans * (PART_HEAD + head_dim);
  for (int piece; (piece = take(s, 1)) < pieces;) {
    int head = piece % groups * group, place = piece / groups % s->num_spans;
    int row = piece / groups / s->num_spans;
    int64_t first = (int64_t)place * SPAN_SLOTS, left = t->ends[row] - first;
    if (left <= 0) continue;
    const int64_t *positions = t->positions + t->rows[row] * t->mask_stride;
    int has_window = d->window > 0 && layer % 2 == 0;
    size_t offset = (size_t)(t->rows[row] * t->row_bytes) + (size_t)first * w.slot_bytes +
                    (size_t)(head / sharing) * head_bytes;
    w.num_slots = left < SPAN_SLOTS ? (int)left : SPAN_SLOTS;
    w.q = s->q + (size_t)row * s->qkv_width + (size_t)head * head_dim;
    w.keys = (const char *)t->keys[layer] + offset;
    w.values = (const char *)t->values[layer] + offset;
    w.valid = t->valid + t->rows[row] * t->mask_stride + first;
    w.positions = positions + first;
    w.too_old = has_window ? positions[t->ends[row] - 1] - d->window : INT64_MIN;
    w.parts = s->parts + ((size_t)row * (size_t)d->num_heads + (size_t)head) * w.part_stride +
              (size_t)place * (PART_HEAD + head_dim);
    s->do_->attend(&w);
  }
}

static void merge_row(step *s, int row, pg_input *in) {
  const pg_decoder *d = s->d;
  size_t head_dim = (size_t)d->head_dim, heads = (size_t)d->num_heads;
  size_t stride = (size_t)s->num_spans * (PART_HEAD + head_dim);
  int used = (int)((s->t->ends[row] + SPAN_SLOTS - 1) / SPAN_SLOTS);
  float *mixed = s->mixed + (size_t)row * heads * head_dim;
  for (size_t head = 0; head < heads; head++)
    s->do_->merge(s->parts + ((size_t)row * heads + head) * stride, used, d->head_dim,
                  mixed + head * head_dim);
  pg_input_row(in, row, mixed);
}

static void product(step *s, const pg_matrix *w, const pg_input *in, float *y, size_t ldy,
                    int num_threads) {
  int end = num_panels(w), count = panels_at_once(w, end, num_threads);
  for (int panel; (panel = take(s, count)) < end;)
    for (int stop = panel + count < end ? panel + count : end; panel < stop; panel++)
      pg_panel(w, in, y + (size_t)panel * PG_PANEL, ldy, panel);
}

/* q, k and v as one matrix: their panels follow one another. */
static void product_qkv(step *s, const pg_block *b, const pg_input *in, int num_threads) {
  int q = num_panels(&b->q), k = num_panels(&b->k), end = q + k + num_panels(&b->v);
  int count = panels_at_once(&b->q, end, num_threads);
  for (int first; (first = take(s, count)) < end;) {
    int stop = first + count < end ? first + count : end;
    for (int i = first; i < stop; i++) {
      const pg_matrix *w = i < q ? &b->q : i < q + k ? &b->k : &b->v;
      float *y = i < q ? s->q : i < q + k ? s->k : s->v;
      int panel = i < q ? i : i < q + k ? i - q : i - q - k;
      pg_panel(w, in, y + (size_t)panel * PG_PANEL, s->qkv_width, panel);
    }
  }
}

/* Gate and up by pairs of panels, and the activation of the pair while it is near. */
static void product_gate_up(step *s, const pg_block *b, const pg_input *in, int num_threads) {
  size_t mlp = (size_t)s->d->mlp;
  int end = num_panels(&b->gate), count = panels_at_once(&b->gate, end, num_threads);
  count = (count + 1) / 2;
  for (int panel; (panel = take(s, count)) < end;)
    for (int stop = panel + count < end ? panel + count : end; panel < stop; panel++) {
      float *gate = s->gate + (size_t)panel * PG_PANEL;
      float *up = s->up + (size_t)panel * PG_PANEL;
      pg_panel(&b->gate, in, gate, mlp, panel);
      pg_panel(&b->up, in, up, mlp, panel);
      for (int row = 0; row < s->t->num_rows; row++)
        s->do_->gate(gate + (size_t)row * mlp, up + (size_t)row * mlp);
    }
}

/* Logits of one panel; of ids in no range from `range` on, they are minus infinity. Returns the
   first range that may matter to the next panel. */
static int head_panel(step *s, const pg_input *in, int panel, int range) {
  const pg_decoder *d = s->d;
  const pg_tokens *t = s->t;
  int first = panel * PG_PANEL, left = d->vocab - first, count = left < PG_PANEL ? left : PG_PANEL;
  uint8_t wanted[PG_PANEL] = {0};
  int num_wanted = t->ids ? 0 : count;
  if (t->ids) {
    while (range < t->num_ranges && t->ids[2 * range + 1] <= first) range++;
    for (int i = range; i < t->num_ranges && t->ids[2 * i] < first + count; i++)
      for (int id = first; id < first + count; id++)
        if (id >= t->ids[2 * i] && id < t->ids[2 * i + 1]) wanted[id - first] = 1;
    for (int i = 0; i < count; i++) num_wanted += wanted[i];
  }
  if (num_wanted > 0) pg_panel(&d->head, in, t->logits + first, (size_t)d->vocab, panel);
  for (int row = 0; row < t->num_rows; row++) {
    float *logits = t->logits + (size_t)row * (size_t)d->vocab + first;
    if (num_wanted > 0 && d->final_cap > 0) s->do_->cap(logits, count, d->final_cap);
    if (num_wanted < count)
      for (int i = 0; i < count; i++) logits[i] = wanted[i] ? logits[i] : -INFINITY;
  }
  return range;
}

static void product_head(step *s, const pg_input *in, int num_threads) {
  int end = num_panels(&s->d->head), count = panels_at_once(&s->d->head, end, num_threads);
  for (int panel; (panel = take(s, count)) < end;) {
    int range = 0, stop = panel + count < end ? panel + count : end;
    for (; panel < stop; panel++) range = head_panel(s, in, panel, range);
  }
}

/* ------------------------------------------------------------------ the step */

#define EACH_ROW(row) for (int row = thread; row < s->t->num_rows; row += num_threads)

static void decode(void *argument, int thread, int num_threads) {
  step *s = argument;
  const pg_decoder *d = s->d;
  int phase = 0, m = s->t->num_rows;
  int heads = d->num_heads + 2 * d->num_kv_heads;
  const float *post_norm = NULL; /* behind the product whose result waits in y */
  pg_input in;

  EACH_ROW (row) angles(s, row);
  for (int layer = 0; layer < d->depth; layer++) {
    const pg_block *b = d->blocks + layer;
    pg_input_place(&in, s->input, b->q.kind, m, b->q.k);
    EACH_ROW (row) {
      if (layer > 0) add_residual(s, row, post_norm);
      norm_row(s, row, b->attn_norm, &in);
    }
    barrier(s, num_threads, &phase);
    product_qkv(s, b, &in, num_threads);
    barrier(s, num_threads, &phase);
    for (int i = thread; i < m * heads; i += num_threads)
      place_head(s, layer, i / heads, i % heads);
    barrier(s, num_threads, &phase);
    attend(s, layer, num_threads);
    barrier(s, num_threads, &phase);
    pg_input_place(&in, s->input, b->out.kind, m, b->out.k);
    EACH_ROW (row) merge_row(s, row, &in);
    barrier(s, num_threads, &phase);
    product(s, &b->out, &in, s->y, (size_t)d->width, num_threads);
    barrier(s, num_threads, &phase);
    pg_input_place(&in, s->input, b->gate.kind, m, b->gate.k);
    EACH_ROW (row) {
      add_residual(s, row, b->attn_post_norm);
      norm_row(s, row, b->mlp_norm, &in);
    }
    barrier(s, num_threads, &phase);
    product_gate_up(s, b, &in, num_threads);
    barrier(s, num_threads, &phase);
    pg_input_place(&in, s->input, b->down.kind, m, b->down.k);
    EACH_ROW (row) pg_input_row(&in, row, s->gate + (size_t)row * (size_t)d->mlp);
    barrier(s, num_threads, &phase);
    product(s, &b->down, &in, s->y, (size_t)d->width, num_threads);
    barrier(s, num_threads, &phase);
    post_norm = b->mlp_post_norm;
  }
  pg_input_place(&in, s->input, d->head.kind, m, d->head.k);
  EACH_ROW (row) {
    add_residual(s, row, post_norm);
    norm_row(s, row, d->norm, &in);
  }
  barrier(s, num_threads, &phase);
  product_head(s, &in, num_threads);
}

size_t pg_step_scratch(const pg_decoder *d, int num_rows, int num_slots) {
  step s;
  place_scratch(&s, d, num_rows, num_slots, NULL);
  return s.scratch_bytes;
}

void pg_step(const pg_decoder *d, const pg_tokens *t) {
  step s = {.d = d, .t = t, .do_ = arithmetic_of_level()};
  int64_t longest = 0;
  for (int row = 0; row < t->num_rows; row++)
    longest = t->ends[row] > longest ? t->ends[row] : longest;
  place_scratch(&s, d, t->num_rows, (int)longest, t->scratch);
  pg_run(decode, &s);
}
