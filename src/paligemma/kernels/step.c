/* One step of the decoder in one call: from the embeddings of some tokens to their logits.

   All threads run the same function, `decode`, over the same phases. A phase has pieces of work that
   threads take until there are no more, and ends when every piece is done, whoever did it: a thread
   that gets no processor keeps nobody waiting unless it holds a piece. What is taken is computed
   whole by one thread, in an order of its own, so results depend neither on the number of threads nor
   on the other rows. A row here is a token: several may belong to one row of the cache, and as all
   keys and values are written before any is attended, each sees those before it, and none behind.

     panels  q, k and v; who does the last panel of a head turns it by its position, and writes keys
             and values into the cache
     spans   attention: some heads of a row over SPAN_SLOTS slots of its cache; who does the last span
             makes one of all
     panels  out
     panels  gate and up, whose outputs meet at once: gelu(gate) * up
     panels  down                                               and again for the next block
     panels  head

   Before each product its inputs are made: residual, norm, quantisation. For few rows every thread
   makes them all for itself, which takes less time than to wait for each other; for many rows they
   are a phase of their own, whose pieces are rows.

   Memory: the caller owns what is shared. Matrices and norms stay where the model has them, keys and
   values where the cache has them, and scratch is as large as pg_step_scratch says. */
#include "step.h"

#include <math.h>

#include "step_rows.h"

/* Rows are few while there is one, or the inputs of the widest product are no more than these. */
enum { FEW_INPUTS = 4096 };
/* Panels that one call multiplies. */
enum { PARTS = 4 };
/* Bytes of matrices that are read for a thread's share of a step at least; 4 MB take one thread some
   200 us, and two as long. */
static size_t bytes_a_thread = 1 << 22;

void pg_set_bytes_a_thread(size_t bytes) { bytes_a_thread = bytes; }

/* ------------------------------------------------------------------ one step */

typedef struct {
  _Alignas(64) atomic_int taken; /* on a line of the processor's cache of its own */
  pg_event done;
} phase;

typedef struct {
  const pg_decoder *d;
  const pg_tokens *t;
  const row_arithmetic *do_;
  int num_spans;   /* of the longest row */
  int many_inputs; /* made once for all threads */
  /* Counters, all zero when the step begins */
  phase *phases;
  atomic_int *panels; /* [heads]: panels of q, k and v that are done, of all blocks so far */
  atomic_int *spans;  /* [num_rows][num_heads]: spans that are done, likewise */
  /* Scratch, all of it [num_rows][...] */
  float *turn;       /* [width]: the residual stream, when it is not in `x` */
  float *y;          /* [width]: of the last product, to be taken up by the residual stream */
  float *q, *k, *v;  /* [heads][head_dim], one behind another in a row of `qkv_width` */
  float *mixed;      /* [num_heads][head_dim] */
  float *gate, *up;  /* [mlp] */
  float *cos_sin;    /* [2][head_dim / 2] */
  float *parts;      /* [num_heads][num_spans][PART_HEAD + head_dim] */
  void *input;       /* of the widest product */
  size_t qkv_width;
  size_t counter_bytes, scratch_bytes;
} step;

/* What one thread keeps. */
typedef struct worker worker;
struct worker {
  step *s;
  int num_threads, layer;
  phase *now;
  float *x, *next;     /* [num_rows][width]: residual stream, and where the next one is written */
  void (*make)(worker *, int row, int keeps); /* makes the inputs of a row */
  pg_input in;
  void *input;         /* memory of `in` */
  float *sum, *normed; /* [width] */
};

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
  s->phases = carve(memory, &used, (size_t)(10 * d->depth + 3) * sizeof(phase));
  s->panels = carve(memory, &used, (heads + 2 * kv_heads) * sizeof(atomic_int));
  s->spans = carve(memory, &used, m * heads * sizeof(atomic_int));
  s->counter_bytes = used;
  s->turn = carve(memory, &used, m * (size_t)d->width * real);
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

/* ------------------------------------------------------------------ phases */

/* Runs a phase: `all` pieces, `count` of them taken at once. `prepare` comes before a thread's first
   piece: while it holds one the phase cannot end, and what the phase reads stays. */
static void run(worker *k, int all, int count, void (*prepare)(worker *, int is_first),
                void (*work)(worker *, int first, int last)) {
  phase *p = k->now++;
  int finished = 0;
  for (int first; (first = atomic_fetch_add(&p->taken, count)) < all;) {
    int last = first + count < all ? first + count : all;
    if (finished == 0 && prepare) prepare(k, first == 0);
    work(k, first, last);
    finished += last - first;
  }
  if (finished) pg_advance(&p->done, finished, all);
  pg_await(&p->done, all);
}

static int num_panels(const pg_matrix *w) { return (w->n + PG_PANEL - 1) / PG_PANEL; }

/* ------------------------------------------------------------------ inputs */

/* The residual stream takes up what the last product gave, by way of the norm behind it, and its norm
   is the input. `keeps` if the stream is to be seen by later phases. */
static void residual_input(worker *k, int row, const float *post_norm, const float *norm, int keeps) {
  const step *s = k->s;
  const pg_decoder *d = s->d;
  size_t at = (size_t)row * (size_t)d->width, size = (size_t)d->width * sizeof(float);
  memcpy(k->sum, k->x + at, size);
  if (norm != d->blocks->attn_norm) { /* there was a product */
    memcpy(k->normed, s->y + at, size);
    if (post_norm) s->do_->norm(k->normed, post_norm, k->normed, d->width, d->norm_eps);
    s->do_->add(k->sum, k->normed, d->width);
  }
  if (keeps) memcpy(k->next + at, k->sum, size);
  s->do_->norm(k->sum, norm, k->normed, d->width, d->norm_eps);
  pg_input_row(&k->in, row, k->normed);
}

static void attn_input(worker *k, int row, int keeps) {
  const pg_block *b = k->s->d->blocks + k->layer;
  residual_input(k, row, k->layer > 0 ? b[-1].mlp_post_norm : NULL, b->attn_norm, keeps);
}

static void mlp_input(worker *k, int row, int keeps) {
  const pg_block *b = k->s->d->blocks + k->layer;
  residual_input(k, row, b->attn_post_norm, b->mlp_norm, keeps);
}

static void head_input(worker *k, int row, int keeps) {
  const pg_decoder *d = k->s->d;
  residual_input(k, row, d->blocks[d->depth - 1].mlp_post_norm, d->norm, keeps);
}

static void out_input(worker *k, int row, int keeps) {
  const pg_decoder *d = k->s->d;
  (void)keeps;
  pg_input_row(&k->in, row, k->s->mixed + (size_t)row * (size_t)(d->num_heads * d->head_dim));
}

static void down_input(worker *k, int row, int keeps) {
  (void)keeps;
  pg_input_row(&k->in, row, k->s->gate + (size_t)row * (size_t)k->s->d->mlp);
}

static void make_all(worker *k, int is_first) {
  for (int row = 0; row < k->s->t->num_rows; row++) k->make(k, row, is_first);
}

static void make_some(worker *k, int first, int last) {
  for (int row = first; row < last; row++) k->make(k, row, 1);
}

/* A product with matrices of w's kind, `all` panels in all, and before it its inputs. */
static void product(worker *k, void (*make)(worker *, int row, int keeps), const pg_matrix *w,
                    int all, void (*work)(worker *, int first, int last)) {
  int m = k->s->t->num_rows, many = k->s->many_inputs;
  k->make = make;
  pg_input_place(&k->in, k->input, w->kind, m, w->k);
  if (many) run(k, m, 1, NULL, make_some);
  run(k, all, pg_panels_at_once(w, all, k->num_threads), many ? NULL : make_all, work);
}

/* The stream that was written is the one to be read. */
static void turn(worker *k) {
  float *x = k->x;
  k->x = k->next;
  k->next = x;
}

/* ------------------------------------------------------------------ work */

static void angles(worker *k, int first, int last) {
  const step *s = k->s;
  const pg_decoder *d = s->d;
  int half = d->head_dim / 2;
  for (int row = first; row < last; row++) {
    float *table = s->cos_sin + (size_t)row * (size_t)d->head_dim;
    int64_t slot = s->t->ends[row] - 1;
    float position = (float)s->t->positions[s->t->rows[row] * s->t->mask_stride + slot];
    for (int i = 0; i < half; i++) {
      float angle = position / d->wavelengths[i];
      table[i] = cosf(angle);
      table[half + i] = sinf(angle);
    }
  }
}

/* One head of one row: queries come first, then keys, then values. */
static void place_head(const step *s, int layer, int row, int head) {
  const pg_decoder *d = s->d;
  const pg_tokens *t = s->t;
  int size = d->head_dim, kv = head - d->num_heads, is_value = kv >= d->num_kv_heads;
  float *x = s->q + (size_t)row * s->qkv_width + (size_t)head * (size_t)size;
  const float *table = s->cos_sin + (size_t)row * (size_t)size;
  if (!is_value) s->do_->rotate(x, table, size / 2, kv < 0 ? d->query_scale : 1.0f);
  if (kv < 0) return;
  size_t head_bytes = cached_bytes(t->cache_kind, (size_t)size);
  char *memory = is_value ? t->values[layer] : t->keys[layer];
  memory += t->rows[row] * t->row_bytes;
  memory += ((size_t)(t->ends[row] - 1) * (size_t)d->num_kv_heads +
             (size_t)(is_value ? kv - d->num_kv_heads : kv)) *
            head_bytes;
  s->do_->write(x, memory, size, t->cache_kind);
}

/* q, k and v as one matrix: their panels follow one another. */
static void qkv_panels(worker *k, int first, int last) {
  const step *s = k->s;
  const pg_block *b = s->d->blocks + k->layer;
  int q = num_panels(&b->q), kv = num_panels(&b->k), each = s->d->head_dim / PG_PANEL;
  pg_part parts[PARTS];
  for (int at = first; at < last; at += PARTS) {
    int num = last - at < PARTS ? last - at : PARTS;
    for (int i = at; i < at + num; i++) {
      const pg_matrix *w = i < q ? &b->q : i < q + kv ? &b->k : &b->v;
      float *y = i < q ? s->q : i < q + kv ? s->k : s->v;
      int panel = i < q ? i : i < q + kv ? i - q : i - q - kv;
      parts[i - at] = (pg_part){w, y + (size_t)panel * PG_PANEL, panel};
    }
    pg_parts(parts, num, &k->in, s->qkv_width);
    for (int i = at; i < at + num; i++)
      if (atomic_fetch_add(s->panels + i / each, 1) + 1 == each * (k->layer + 1))
        for (int row = 0; row < s->t->num_rows; row++) place_head(s, k->layer, row, i / each);
  }
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

/* The spans of `count` heads of a row become one. */
static void merge_heads(const step *s, int row, int head, int count) {
  const pg_decoder *d = s->d;
  size_t head_dim = (size_t)d->head_dim, stride = (size_t)s->num_spans * (PART_HEAD + head_dim);
  int used = (int)((s->t->ends[row] + SPAN_SLOTS - 1) / SPAN_SLOTS);
  for (size_t i = (size_t)(row * d->num_heads + head); count > 0; i++, count--)
    s->do_->merge(s->parts + i * stride, used, d->head_dim, s->mixed + i * head_dim);
}

static void attend(worker *k, int piece, int last) {
  const step *s = k->s;
  const pg_decoder *d = s->d;
  const pg_tokens *t = s->t;
  int group = heads_together(s, k->num_threads), groups = d->num_heads / group;
  int sharing = d->num_heads / d->num_kv_heads, layer = k->layer;
  size_t head_dim = (size_t)d->head_dim, head_bytes = cached_bytes(t->cache_kind, head_dim);
  span w = {.group = group, .head_dim = d->head_dim, .kind = t->cache_kind, .cap = d->attn_cap};
  w.slot_bytes = head_bytes * (size_t)d->num_kv_heads;
  w.part_stride = (size_t)s->num_spans * (PART_HEAD + head_dim);
  for (; piece < last; piece++) {
    int head = piece % groups * group, place = piece / groups % s->num_spans;
    int row = piece / groups / s->num_spans;
    int64_t first = (int64_t)place * SPAN_SLOTS, left = t->ends[row] - first;
    if (left > 0) {
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
    atomic_int *done = s->spans + row * d->num_heads + head;
    if (atomic_fetch_add(done, 1) + 1 == s->num_spans * (layer + 1))
      merge_heads(s, row, head, group);
  }
}

static void panels_of(worker *k, const pg_matrix *w, int panel, int last) {
  pg_part parts[PARTS];
  while (panel < last) {
    int num = 0;
    for (; num < PARTS && panel < last; panel++)
      parts[num++] = (pg_part){w, k->s->y + (size_t)panel * PG_PANEL, panel};
    pg_parts(parts, num, &k->in, (size_t)k->s->d->width);
  }
}

static void out_panels(worker *k, int first, int last) {
  panels_of(k, &k->s->d->blocks[k->layer].out, first, last);
}

static void down_panels(worker *k, int first, int last) {
  panels_of(k, &k->s->d->blocks[k->layer].down, first, last);
}

/* Gate and up by two pairs of panels, and the activation of a pair while it is near. */
static void gate_up_panels(worker *k, int panel, int last) {
  const step *s = k->s;
  const pg_block *b = s->d->blocks + k->layer;
  size_t mlp = (size_t)s->d->mlp;
  pg_part parts[PARTS];
  while (panel < last) {
    int num = 0;
    for (; num < PARTS && panel < last; panel++) {
      parts[num++] = (pg_part){&b->gate, s->gate + (size_t)panel * PG_PANEL, panel};
      parts[num++] = (pg_part){&b->up, s->up + (size_t)panel * PG_PANEL, panel};
    }
    pg_parts(parts, num, &k->in, mlp);
    for (int i = 0; i < num; i += 2)
      for (int row = 0; row < s->t->num_rows; row++)
        s->do_->gate(parts[i].y + (size_t)row * mlp, parts[i + 1].y + (size_t)row * mlp);
  }
}

/* Which ids of a panel are asked for, a bit each, in ranges from `range` on, which moves on. */
static unsigned wanted_of(const pg_tokens *t, int first, int count, int *range) {
  unsigned wanted = 0;
  if (!t->ids) return (1u << count) - 1;
  while (*range < t->num_ranges && t->ids[2 * *range + 1] <= first) ++*range;
  for (int i = *range; i < t->num_ranges && t->ids[2 * i] < first + count; i++)
    for (int id = first; id < first + count; id++)
      if (id >= t->ids[2 * i] && id < t->ids[2 * i + 1]) wanted |= 1u << (id - first);
  return wanted;
}

/* Logits of some panels; of ids that are in no range, they are minus infinity. */
static void head_panels(worker *k, int panel, int last) {
  const step *s = k->s;
  const pg_decoder *d = s->d;
  const pg_tokens *t = s->t;
  size_t vocab = (size_t)d->vocab;
  for (int range = 0; panel < last; panel += PARTS) {
    pg_part parts[PARTS];
    unsigned wanted[PARTS];
    int num = last - panel < PARTS ? last - panel : PARTS, asked = 0;
    for (int i = 0; i < num; i++) {
      int first = (panel + i) * PG_PANEL, left = d->vocab - first;
      wanted[i] = wanted_of(t, first, left < PG_PANEL ? left : PG_PANEL, &range);
      if (wanted[i]) parts[asked++] = (pg_part){&d->head, t->logits + first, panel + i};
    }
    pg_parts(parts, asked, &k->in, vocab);
    for (int i = 0; i < num; i++) {
      int first = (panel + i) * PG_PANEL, left = d->vocab - first;
      int count = left < PG_PANEL ? left : PG_PANEL;
      for (int row = 0; row < t->num_rows; row++) {
        float *logits = t->logits + (size_t)row * vocab + first;
        if (wanted[i] && d->final_cap > 0) s->do_->cap(logits, count, d->final_cap);
        for (int id = 0; id < count; id++)
          if (!(wanted[i] >> id & 1)) logits[id] = -INFINITY;
      }
    }
  }
}

/* ------------------------------------------------------------------ the step */

static void decode(void *argument, int thread, int team) {
  step *s = argument;
  const pg_decoder *d = s->d;
  int m = s->t->num_rows;
  worker k = {.s = s, .num_threads = team, .now = s->phases, .x = s->t->x, .next = s->turn};
  size_t used = 0, width = (size_t)d->width * sizeof(float);
  char *memory = pg_scratch(2 * width + 192 + (s->many_inputs ? 0 : input_bytes(d, m)));
  (void)thread;
  memory += -(uintptr_t)memory & 63;
  k.sum = carve(memory, &used, width);
  k.normed = carve(memory, &used, width);
  k.input = s->many_inputs ? s->input : memory + used;
  if (s->many_inputs) k.next = k.x;

  run(&k, m, 1, NULL, angles);
  for (k.layer = 0; k.layer < d->depth; k.layer++) {
    const pg_block *b = d->blocks + k.layer;
    product(&k, attn_input, &b->q, num_panels(&b->q) + num_panels(&b->k) + num_panels(&b->v),
            qkv_panels);
    turn(&k);
    run(&k, m * s->num_spans * d->num_heads / heads_together(s, team), 1, NULL, attend);
    product(&k, out_input, &b->out, num_panels(&b->out), out_panels);
    product(&k, mlp_input, &b->gate, num_panels(&b->gate), gate_up_panels);
    turn(&k);
    product(&k, down_input, &b->down, num_panels(&b->down), down_panels);
  }
  product(&k, head_input, &d->head, num_panels(&d->head), head_panels);
}

size_t pg_step_scratch(const pg_decoder *d, int num_rows, int num_slots) {
  step s;
  place_scratch(&s, d, num_rows, num_slots, NULL);
  return s.scratch_bytes;
}

/* As many threads as have enough to read. */
static int threads_for(const pg_decoder *d, int num_rows) {
  const pg_block *b = d->blocks;
  const pg_matrix *matrices[] = {&b->q, &b->k, &b->v, &b->out, &b->gate, &b->up, &b->down};
  size_t bytes = 0, threads = (size_t)pg_num_threads();
  for (int i = 0; i < 7; i++)
    bytes += (size_t)num_panels(matrices[i]) * pg_panel_bytes(matrices[i]->kind, matrices[i]->k);
  size_t most = bytes * (size_t)d->depth * (size_t)num_rows / bytes_a_thread + 1;
  return (int)(threads < most ? threads : most);
}

void pg_step(const pg_decoder *d, const pg_tokens *t) {
  step s = {.d = d, .t = t, .do_ = arithmetic_of_level()};
  int64_t longest = 0;
  for (int row = 0; row < t->num_rows; row++)
    longest = t->ends[row] > longest ? t->ends[row] : longest;
  place_scratch(&s, d, t->num_rows, (int)longest, t->scratch);
  s.many_inputs = t->num_rows > 1 && (int64_t)t->num_rows * d->mlp > FEW_INPUTS;
  memset(s.phases, 0, s.counter_bytes);
  pg_offer(decode, &s, threads_for(d, t->num_rows));
}
