/* The arithmetic of single rows of the decoder step, in vectors of eight floats.

   step_rows.h includes this file once for each level of the processor: LEVEL(name) is the name of a
   function at that level, and TARGET names what the functions may use. The compiler makes a vector
   one register of AVX2, or two of SSE and NEON.

   Every sum runs in eight lanes in one order that depends on nothing but its own row, so a row gets
   the same bits in every batch and with every number of threads. All sizes are multiples of eight
   unless a comment says otherwise. */

#define INLINE TARGET static inline __attribute__((always_inline))

#include "math_level.h"

/* Eight numbers of a head of the cache, the first of them at index i; those of PG_INT8 are still to
   be multiplied by the scale. */
INLINE f8 LEVEL(load_cached)(const char *memory, size_t i, int kind) {
  if (kind == PG_F32) return LEVEL(load)((const float *)memory + i);
  if (kind == PG_INT8) return WIDEN8(memory + sizeof(float) + i);
  return (f8)(WIDEN((const uint16_t *)memory + i) << 16);
}

INLINE float LEVEL(cached_scale)(const char *memory, int kind) {
  return kind == PG_INT8 ? *(const float *)memory : 1.0f;
}

INLINE float LEVEL(sum)(f8 x) {
  return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}

/* out = x / sqrt(mean(x^2) + eps) * (1 + scale); out may be x. */
TARGET static void LEVEL(norm)(const float *x, const float *scale, float *out, int n, float eps) {
  f8 squares = {0};
  for (int i = 0; i < n; i += 8) {
    f8 v = LEVEL(load)(x + i);
    squares = v * v + squares;
  }
  float inverse = 1.0f / sqrtf(LEVEL(sum)(squares) / (float)n + eps);
  for (int i = 0; i < n; i += 8)
    LEVEL(store)(out + i, LEVEL(load)(x + i) * inverse * (1.0f + LEVEL(load)(scale + i)));
}

TARGET static void LEVEL(add)(float *x, const float *y, int n) {
  for (int i = 0; i < n; i += 8) LEVEL(store)(x + i, LEVEL(load)(x + i) + LEVEL(load)(y + i));
}

/* Rotates element i against element i + half, then multiplies by a factor. */
TARGET static void LEVEL(rotate)(float *x, const float *cos_sin, int half, float factor) {
  for (int i = 0; i < half; i += 8) {
    f8 c = LEVEL(load)(cos_sin + i), s = LEVEL(load)(cos_sin + half + i);
    f8 first = LEVEL(load)(x + i), second = LEVEL(load)(x + half + i);
    LEVEL(store)(x + i, (first * c - second * s) * factor);
    LEVEL(store)(x + half + i, (second * c + first * s) * factor);
  }
}

/* Writes n floats as whole numbers up to 127, behind a scale; a NaN or an infinity makes it NaN. */
INLINE void LEVEL(write_int8)(const float *x, char *memory, int n) {
  const float round = 12582912.0f; /* 1.5 * 2^23: adding it rounds to a whole number */
  f8 largest = {0}, fault = {0};
  for (int i = 0; i < n; i += 8) {
    f8 v = LEVEL(load)(x + i), magnitude = (f8)((i8)v & 0x7fffffff);
    largest = LEVEL(choose)(magnitude > largest, magnitude, largest);
    fault = fault + v * 0.0f;
  }
  float maximum = 0;
  for (int i = 0; i < 8; i++) maximum = largest[i] > maximum ? largest[i] : maximum;
  float scale = maximum / 127.0f, divisor = scale > 0 ? scale : 1.0f;
  *(float *)memory = scale + LEVEL(sum)(fault);
  for (int i = 0; i < n; i += 8) {
    f8 v = LEVEL(load)(x + i) / divisor;
    /* The scale of tiny numbers has few bits, and may be too small for them. */
    v = LEVEL(choose)(v > 127.0f, (f8){0} + 127.0f, v);
    v = LEVEL(choose)(v < -127.0f, (f8){0} - 127.0f, v);
    u8 bits = (u8)(v + round);
    *(u8x8_anywhere *)(memory + sizeof(float) + i) = __builtin_convertvector(bits, u8x8);
  }
}

/* Writes n floats into the cache, rounded to nearest even. */
TARGET static void LEVEL(write)(const float *x, void *memory, int n, int kind) {
  if (kind == PG_INT8) {
    LEVEL(write_int8)(x, memory, n);
    return;
  }
  if (kind == PG_F32) {
    memcpy(memory, x, (size_t)n * sizeof *x);
    return;
  }
  for (int i = 0; i < n; i += 8) {
    f8 v = LEVEL(load)(x + i);
    u8 bits = (u8)v, is_nan = (u8)(v != v);
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    bits = (bits & ~is_nan) | (is_nan & 0x7fc0);
    *(u16x8_anywhere *)((uint16_t *)memory + i) = __builtin_convertvector(bits, u16x8);
  }
}

/* gate = gelu(gate) * up with the tanh form of gelu, of sixteen outputs. */
TARGET static void LEVEL(gate)(float *gate, const float *up) {
  for (int i = 0; i < PG_PANEL; i += 8) {
    f8 x = LEVEL(load)(gate + i);
    /* 1.5957691 = 2 * sqrt(2 / pi) */
    f8 y = x / (1.0f + LEVEL(exp)((x * x * x * 0.044715f + x) * -1.5957691216f));
    LEVEL(store)(gate + i, y * LEVEL(load)(up + i));
  }
}

/* x = cap * tanh(x / cap); n is any number up to sixteen. */
TARGET static void LEVEL(cap)(float *x, int n, float cap) {
  float rows[PG_PANEL] = {0};
  memcpy(rows, x, (size_t)n * sizeof *x);
  for (int i = 0; i < PG_PANEL; i += 8)
    LEVEL(store)(rows + i, LEVEL(tanh)(LEVEL(load)(rows + i) / cap) * cap);
  memcpy(x, rows, (size_t)n * sizeof *x);
}

/* scores[head][key] of `group` heads that share their keys; two keys at a time. */
INLINE void LEVEL(scores)(const span *s, float (*scores)[SPAN_SLOTS], int group, int kind) {
  size_t size = (size_t)s->head_dim;
  for (int i = 0; i < s->num_slots; i += 2) {
    const char *key = s->keys + (size_t)i * s->slot_bytes;
    const char *next = i + 1 < s->num_slots ? key + s->slot_bytes : key;
    f8 sums[2][4] = {{{0}}};
    for (size_t j = 0; j < size; j += 8) {
      f8 k0 = LEVEL(load_cached)(key, j, kind), k1 = LEVEL(load_cached)(next, j, kind);
#pragma GCC unroll 4
      for (int g = 0; g < group; g++) {
        f8 q = LEVEL(load)(s->q + (size_t)g * size + j);
        sums[0][g] = k0 * q + sums[0][g];
        sums[1][g] = k1 * q + sums[1][g];
      }
    }
    float scale0 = LEVEL(cached_scale)(key, kind), scale1 = LEVEL(cached_scale)(next, kind);
#pragma GCC unroll 4
    for (int g = 0; g < group; g++) {
      scores[g][i] = LEVEL(sum)(sums[0][g]) * scale0;
      scores[g][i + 1] = LEVEL(sum)(sums[1][g]) * scale1;
    }
  }
}

/* out[head] += weights[head][key] * values[key]; two keys at a time, the last of an odd number
   beside a weight of zero. */
INLINE void LEVEL(mix)(const span *s, float (*weights)[SPAN_SLOTS], int group, int kind) {
  size_t size = (size_t)s->head_dim, stride = s->part_stride;
  float *outs = s->parts + PART_HEAD;
  for (int i = 0; i < s->num_slots; i += 2) {
    const char *value = s->values + (size_t)i * s->slot_bytes;
    const char *next = i + 1 < s->num_slots ? value + s->slot_bytes : value;
    float scale0 = LEVEL(cached_scale)(value, kind), scale1 = LEVEL(cached_scale)(next, kind);
    float w[2][4];
    for (int g = 0; g < group; g++) {
      w[0][g] = weights[g][i] * scale0;
      w[1][g] = weights[g][i + 1] * scale1;
    }
    for (size_t j = 0; j < size; j += 8) {
      f8 v0 = LEVEL(load_cached)(value, j, kind), v1 = LEVEL(load_cached)(next, j, kind);
#pragma GCC unroll 4
      for (int g = 0; g < group; g++) {
        float *out = outs + (size_t)g * stride + j;
        f8 sum = v0 * w[0][g] + LEVEL(load)(out);
        LEVEL(store)(out, v1 * w[1][g] + sum);
      }
    }
  }
}

/* Scores of one head become weights, not yet divided by their sum; the part gets maximum and sum.
   Slots that may not be attended get the weight 0. */
TARGET static void LEVEL(weigh)(const span *s, float *scores, float *part) {
  int padded = (s->num_slots + 7) & ~7;
  if (s->cap > 0)
    for (int i = 0; i < padded; i += 8)
      LEVEL(store)(scores + i, LEVEL(tanh)(LEVEL(load)(scores + i) / s->cap) * s->cap);
  for (int i = 0; i < s->num_slots; i++)
    if (!s->valid[i] || s->positions[i] <= s->too_old) scores[i] = MASKED;
  for (int i = s->num_slots; i < padded; i++) scores[i] = MASKED;
  float maximum = MASKED;
  for (int i = 0; i < s->num_slots; i++) /* a NaN becomes the maximum, and all that follows */
    maximum = scores[i] > maximum || scores[i] != scores[i] ? scores[i] : maximum;
  f8 sum = {0};
  for (int i = 0; i < padded; i += 8) {
    f8 weight = LEVEL(exp)(LEVEL(load)(scores + i) - maximum);
    LEVEL(store)(scores + i, weight);
    sum = sum + weight;
  }
  part[0] = maximum;
  part[1] = LEVEL(sum)(sum);
}

INLINE void LEVEL(attend_group)(const span *s, int group, int kind) {
  float scores[4][SPAN_SLOTS] __attribute__((aligned(64)));
  LEVEL(scores)(s, scores, group, kind);
  for (int g = 0; g < group; g++) {
    float *part = s->parts + (size_t)g * s->part_stride;
    memset(part + PART_HEAD, 0, (size_t)s->head_dim * sizeof *part);
    LEVEL(weigh)(s, scores[g], part);
  }
  LEVEL(mix)(s, scores, group, kind);
}

INLINE void LEVEL(attend_kind)(const span *s, int kind) {
  if (s->group == 4)
    LEVEL(attend_group)(s, 4, kind);
  else if (s->group == 2)
    LEVEL(attend_group)(s, 2, kind);
  else
    LEVEL(attend_group)(s, 1, kind);
}

/* Attention of one, two or four heads over one span of slots of one row. */
TARGET static void LEVEL(attend)(const span *s) {
  if (s->kind == PG_F32)
    LEVEL(attend_kind)(s, PG_F32);
  else if (s->kind == PG_BF16)
    LEVEL(attend_kind)(s, PG_BF16);
  else
    LEVEL(attend_kind)(s, PG_INT8);
}

/* One head over all its slots, from its parts over spans of slots. */
TARGET static void LEVEL(merge)(const float *parts, int num_parts, int head_dim, float *out) {
  size_t stride = PART_HEAD + (size_t)head_dim;
  float maximum = MASKED, factors[8], sum = 0;
  for (int i = 0; i < num_parts; i++) {
    float m = parts[i * stride];
    maximum = m > maximum || m != m ? m : maximum;
  }
  memset(out, 0, (size_t)head_dim * sizeof *out);
  for (int i = 0; i < num_parts; i++) {
    const float *part = parts + i * stride;
    if (part[0] == MASKED) /* nothing to attend in this span */
      continue;
    f8 wide = {part[0] - maximum};
    LEVEL(store)(factors, LEVEL(exp)(wide));
    sum = part[1] * factors[0] + sum;
    for (int j = 0; j < head_dim; j += 8)
      LEVEL(store)(out + j, LEVEL(load)(part + PART_HEAD + j) * factors[0] + LEVEL(load)(out + j));
  }
  for (int j = 0; j < head_dim; j += 8) LEVEL(store)(out + j, LEVEL(load)(out + j) / sum);
}

static const row_arithmetic LEVEL(arithmetic) = {
    LEVEL(norm),   LEVEL(add),   LEVEL(rotate), LEVEL(write),
    LEVEL(attend), LEVEL(merge), LEVEL(gate),   LEVEL(cap),
};

#undef INLINE
