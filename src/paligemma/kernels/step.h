/* What the caller of the decoder step hands over: a decoder, and the tokens of one step. */
#ifndef PALIGEMMA_STEP_H
#define PALIGEMMA_STEP_H
#include "kernels.h"

typedef struct {
  pg_matrix q, k, v, out, gate, up, down;
  const float *attn_norm, *mlp_norm;           /* [width], without the one that is added */
  const float *attn_post_norm, *mlp_post_norm; /* the same, or null */
} pg_block;

typedef struct {
  int32_t depth, width, mlp, num_heads, num_kv_heads, head_dim, vocab;
  int32_t window;                                   /* positions that even layers look back, or 0 */
  float norm_eps, query_scale, attn_cap, final_cap; /* caps: 0 for none */
  const pg_block *blocks;
  pg_matrix head;
  const float *norm;
  const float *wavelengths; /* [head_dim / 2]: a position divided by one is an angle */
} pg_decoder;

/* Tokens of this step and their cache; the slot of each is claimed already. */
typedef struct {
  int32_t num_rows;
  int32_t cache_kind; /* PG_F32, PG_BF16 or PG_INT8 */
  float *x;           /* [num_rows][width] embeddings; overwritten */
  void *const *keys;  /* [depth] of [row][slot][num_kv_heads][head_dim]; of PG_INT8 each head is a
                         float, its scale, and head_dim whole numbers behind it */
  void *const *values;
  int64_t row_bytes;        /* from one row of keys or values to the next */
  const uint8_t *valid;     /* [row][slot] */
  const int64_t *positions; /* [row][slot] */
  int64_t mask_stride;      /* slots from one row of valid and positions to the next */
  const int64_t *rows;      /* [num_rows]: the row of the cache that a token belongs to */
  const int64_t *ends;      /* [num_rows]: the slot after the token's own */
  const int32_t *ids;       /* [num_ranges][2]: first and end of ranges, ascending; null: all */
  int32_t num_ranges;       /* ids outside get minus infinity */
  float *logits;            /* [num_rows][vocab] */
  void *scratch;            /* aligned to 64 */
} pg_tokens;

/* Bytes of scratch for so many rows, none of whose caches holds more than so many slots. */
size_t pg_step_scratch(const pg_decoder *d, int num_rows, int num_slots);
/* Each thread of a step reads so many bytes at least, or there are fewer threads. */
void pg_set_bytes_a_thread(size_t bytes);
void pg_step(const pg_decoder *d, const pg_tokens *t);

#endif
