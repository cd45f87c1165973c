/* Attention of many queries at once: what the caller hands over. */
#ifndef PALIGEMMA_ATTEND_H
#define PALIGEMMA_ATTEND_H
#include <stdint.h>

/* Numbers from one row, token and head to the next; the numbers of a head lie side by side. */
typedef struct {
  int64_t row, token, head;
} pg_strides;

typedef struct {
  int32_t num_rows, num_queries, num_keys, num_heads, num_kv_heads, head_dim;
  const float *q; /* [row][query][head][head_dim], rotated, not scaled */
  const float *k, *v; /* [row][key][kv head][head_dim] */
  pg_strides q_strides, k_strides, v_strides;
  const uint8_t *mask; /* [row][query][key], 1 where a key is attended; null: everywhere */
  int64_t mask_row, mask_query;
  float scale, cap; /* cap: 0 for none */
  float *out; /* as q, with strides of its own */
  pg_strides out_strides;
} pg_attention;

/* A query that may attend nothing gets zeros. */
void pg_attend(const pg_attention *a);

#endif
